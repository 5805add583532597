//! The sending half. It can be cloned: frames of several threads go out whole, one after the other.
//!
//! A send returns when the kernel has taken the bytes, which says nothing about arrival; only acknowledgements do.

use super::link::Shared;
use crate::error::ConnectionError as Error;
use crate::frame::{Kind, Limits};
use crate::pace::Pace;
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

    /// How fast this end may send, and how fast it does.
    pub fn pace(&self) -> &Arc<Pace> {
        &self.shared.pace
    }

    /// Where the connection begins and ends, and the kernel's congestion control on it; empty where the system does not say.
    pub fn ends(&self) -> (String, String, String) {
        let stream = &self.shared.stream;
        let text = |address: std::io::Result<std::net::SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
        let name = socket2::SockRef::from(stream).tcp_congestion().unwrap_or_default();
        let name = String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
        (text(stream.local_addr()), text(stream.peer_addr()), name)
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
