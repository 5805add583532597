//! The sending half. It can be cloned: frames of several threads go out whole, one after the other.
//!
//! A send returns when the kernel has taken the bytes, which says nothing about arrival; only acknowledgements do.

use super::link::Shared;
use crate::error::ConnectionError as Error;
use crate::frame::{Kind, Limits};
use std::sync::Arc;

#[derive(Clone)]
pub struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>) -> Sender {
        Sender { shared }
    }

    /// Sends a control message. Fails without harm to the connection when it is longer than 1 MiB.
    pub fn send<M: serde::Serialize>(&self, message: &M) -> Result<(), Error> {
        let payload = serde_json::to_vec(message).map_err(|source| Error::BadMessage { source })?;
        Limits::SESSION.check(Kind::Control, payload.len())?;
        self.shared.send(Kind::Control, &payload)
    }

    /// Sends the bytes of a segment. Blocks while the link is full, at most `Timeouts::write` without progress.
    pub fn send_segment(&self, bytes: &[u8]) -> Result<(), Error> {
        Limits::SESSION.check(Kind::Segment, bytes.len())?;
        self.shared.send(Kind::Segment, bytes)
    }

    /// Tells the other end that nothing more comes. This end may still receive.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Ends the connection at once, from any thread; a blocked `receive` or `send` returns with an error.
    pub fn abort(&self) {
        self.shared.abort();
    }
}
