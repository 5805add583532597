//! The receiving half: one thread reads frames, and keeps the connection alive meanwhile.
//!
//! Reading from the socket happens outside every lock. At most one record batch and one frame are held in memory. A frame that breaks a
//! rule, or a peer that is silent for too long, ends the connection.

use super::handshake::linger;
use super::link::Shared;
use crate::error::ConnectionError as Error;
use crate::frame::{Assembler, Kind, Limits};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One TLS record is at most 16 KiB and a little.
const READ_BYTES: usize = 32 * 1024;
const PIECE_BYTES: usize = 4 * 1024;

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<M> {
    Control(M),
    /// Bytes of a segment, not yet looked at.
    Segment(Vec<u8>),
}

impl<M> Incoming<M> {
    pub fn control(self) -> Result<M, Error> {
        match self {
            Incoming::Control(message) => Ok(message),
            Incoming::Segment(_) => Err(Error::Unexpected { expected: "a control message" }),
        }
    }
}

pub struct Receiver {
    shared: Arc<Shared>,
    assembler: Assembler,
    encrypted: Vec<u8>,
    plain: Vec<u8>,
    /// Part of `plain` that was not yet looked at.
    unread: std::ops::Range<usize>,
    last_received: Instant,
    deadline: Option<(Instant, Duration)>,
    ended: bool,
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>, limits: Limits) -> Result<Receiver, Error> {
        // Half the interval, so that a keep-alive is late by half an interval at most. Zero would mean "forever" to the socket.
        let tick = (shared.timeouts.keepalive.min(shared.timeouts.idle) / 2).max(Duration::from_millis(1));
        shared.stream.set_read_timeout(Some(tick)).map_err(|source| Error::Lost { action: "setting the socket up", source })?;
        Ok(Receiver {
            shared,
            assembler: Assembler::new(limits),
            encrypted: vec![0; READ_BYTES],
            plain: Vec::new(),
            unread: 0..0,
            last_received: Instant::now(),
            deadline: None,
            ended: false,
        })
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.assembler.set_limits(limits);
    }

    /// From now on all that is expected must have arrived within `limit`, however lively the peer is. `None` lifts the limit.
    pub fn set_deadline(&mut self, limit: Option<Duration>) {
        self.deadline = limit.map(|limit| (Instant::now() + limit, limit));
    }

    /// Waits for the next frame. An error is final.
    pub fn receive<M: serde::de::DeserializeOwned>(&mut self) -> Result<Incoming<M>, Error> {
        match self.receive_frame()? {
            (Kind::Segment, payload) => Ok(Incoming::Segment(payload)),
            (_, payload) => {
                let message = serde_json::from_slice(&payload).map_err(|source| self.fail(Error::BadMessage { source }))?;
                Ok(Incoming::Control(message))
            }
        }
    }

    fn receive_frame(&mut self) -> Result<(Kind, Vec<u8>), Error> {
        if self.ended {
            return Err(super::link::broken());
        }
        loop {
            match self.assembled() {
                Ok(Some((Kind::KeepAlive, _))) => {}
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {
                    if let Err(error) = self.check_deadline().and_then(|()| self.fill()) {
                        return Err(self.fail(error));
                    }
                }
                Err(error) => return Err(self.fail(error)),
            }
        }
    }

    fn assembled(&mut self) -> Result<Option<(Kind, Vec<u8>)>, Error> {
        let unread = self.plain.get(self.unread.clone()).unwrap_or_default();
        if unread.is_empty() {
            return Ok(None);
        }
        let (frame, rest) = self.assembler.take(unread)?;
        self.unread.start = self.unread.end.saturating_sub(rest.len());
        Ok(frame)
    }

    /// Gets more plaintext: what TLS has ready, else from the socket.
    fn fill(&mut self) -> Result<(), Error> {
        self.plain.clear();
        self.unread = 0..0;
        while self.plain.is_empty() {
            let shared = self.shared.clone();
            if read_plain(&mut *shared.tls()?, &mut self.plain)? {
                break;
            }
            shared.keep_alive()?;
            match (&shared.stream).read(&mut self.encrypted) {
                Ok(0) => return Err(Error::Lost { action: "receiving", source: io::ErrorKind::UnexpectedEof.into() }),
                Ok(count) => {
                    self.last_received = Instant::now();
                    self.decrypt(count)?;
                }
                Err(error) if is_tick(&error) => self.wait().and_then(|()| self.check_deadline())?,
                Err(source) => return Err(Error::Lost { action: "receiving", source }),
            }
        }
        self.unread = 0..self.plain.len();
        Ok(())
    }

    /// Feeds `count` bytes from the socket to TLS, and gathers what they decrypt to: never more than they were themselves.
    fn decrypt(&mut self, count: usize) -> Result<(), Error> {
        let mut bytes = self.encrypted.get(..count).unwrap_or_default();
        let mut tls = self.shared.tls()?;
        while !bytes.is_empty() {
            let before = bytes.len();
            tls.read_tls(&mut bytes).map_err(|source| Error::Lost { action: "decrypting", source })?;
            tls.process_new_packets()?;
            match read_plain(&mut tls, &mut self.plain) {
                // What came before the goodbye counts; the next read finds the goodbye again.
                Err(Error::Closed) if !self.plain.is_empty() => return Ok(()),
                read => read?,
            };
            if bytes.len() == before {
                return Err(Error::Unexpected { expected: "progress in TLS" });
            }
        }
        Ok(())
    }

    /// Whether waiting on is still within the limits.
    fn wait(&self) -> Result<(), Error> {
        let waited = self.last_received.elapsed();
        if waited >= self.shared.timeouts.idle {
            return Err(Error::TimedOut { action: "waiting for the other end", waited });
        }
        Ok(())
    }

    fn check_deadline(&self) -> Result<(), Error> {
        match self.deadline {
            Some((deadline, waited)) if Instant::now() >= deadline => Err(Error::TimedOut { action: "waiting for a message", waited }),
            _ => Ok(()),
        }
    }

    /// After an error the connection is over; an alert that TLS wants to send still goes out.
    fn fail(&mut self, error: Error) -> Error {
        self.ended = true;
        if error.is_corrupt() {
            self.shared.close();
            linger(&self.shared.stream);
        }
        self.shared.abort();
        error
    }
}

fn is_tick(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Appends all plaintext that TLS has ready; `Ok(false)` when there is none, `Closed` when the peer has said goodbye.
fn read_plain(tls: &mut rustls::Connection, plain: &mut Vec<u8>) -> Result<bool, Error> {
    let before = plain.len();
    let mut piece = [0u8; PIECE_BYTES];
    loop {
        match tls.reader().read(&mut piece) {
            Ok(0) if plain.len() > before => return Ok(true),
            Ok(0) => return Err(Error::Closed),
            Ok(count) => plain.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(plain.len() > before),
            Err(source) => return Err(Error::Lost { action: "receiving", source }),
        }
    }
}
