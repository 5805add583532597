//! What both halves share: the socket, the TLS state, and the right to write.
//!
//! See the parent for the lock order and why it cannot deadlock. A panic while a lock is held, or a write that failed in the middle of a
//! frame, makes the connection unusable for good.

use super::Timeouts;
use crate::error::ConnectionError as Error;
use crate::frame::{Kind, header};
use crate::pace::{Pace, slice_bytes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Instant;

/// Plaintext encrypted under one hold of the TLS lock: two records.
const PIECE_BYTES: usize = 32 * 1024;
/// Under a limit the kernel holds so little that it has not sent yet, or two slices: what lies there leaves at the link's own speed when a link comes back.
const UNSENT_BYTES_MIN: usize = 4 * 1024;

pub(super) struct Shared {
    pub stream: TcpStream,
    pub tls: Mutex<rustls::Connection>,
    out: Mutex<Out>,
    pub timeouts: Timeouts,
    pub pace: Arc<Pace>,
}

/// The right to write to the socket.
struct Out {
    /// Encrypted bytes on their way to the socket; empty between frames.
    records: Vec<u8>,
    broken: bool,
    last_sent: Instant,
    /// The limit that the kernel's buffer was last made to fit.
    fitted: Option<u64>,
}

impl Shared {
    pub fn new(stream: TcpStream, tls: rustls::Connection, timeouts: Timeouts, pace: Arc<Pace>) -> Shared {
        let out = Out { records: Vec::new(), broken: false, last_sent: Instant::now(), fitted: None };
        Shared { stream, tls: Mutex::new(tls), out: Mutex::new(out), timeouts, pace }
    }

    /// Sends one frame; waits while another frame is being sent.
    pub fn send(&self, kind: Kind, payload: &[u8]) -> Result<(), Error> {
        let mut out = self.out.lock().map_err(|_| broken())?;
        self.send_locked(&mut out, kind, payload)
    }

    fn send_locked(&self, out: &mut Out, kind: Kind, payload: &[u8]) -> Result<(), Error> {
        if out.broken {
            return Err(broken());
        }
        let sent = self.write_frame(out, kind, payload);
        if sent.is_err() {
            // Half a frame may have left; nothing sensible can follow it.
            out.broken = true;
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        sent
    }

    fn write_frame(&self, out: &mut Out, kind: Kind, payload: &[u8]) -> Result<(), Error> {
        let head = header(kind, payload.len());
        let first = payload.get(..PIECE_BYTES).unwrap_or(payload);
        // Header and beginning share a record, so that a small message is one packet.
        self.encrypt(out, &[&head, first])?;
        self.write_out(out)?;
        for piece in payload.get(first.len()..).unwrap_or_default().chunks(PIECE_BYTES) {
            self.encrypt(out, &[piece])?;
            self.write_out(out)?;
        }
        Ok(())
    }

    /// Turns plaintext into records in `out`, in the order in which they must leave.
    fn encrypt(&self, out: &mut Out, parts: &[&[u8]]) -> Result<(), Error> {
        let mut tls = self.tls()?;
        let lost = |source| Error::Lost { action: "encrypting", source };
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                let taken = tls.writer().write(rest).map_err(lost)?;
                rest = rest.get(taken..).unwrap_or_default();
                if !rest.is_empty() {
                    drain(&mut tls, &mut out.records).map_err(lost)?;
                }
            }
        }
        drain(&mut tls, &mut out.records).map_err(lost)
    }

    /// In slices, each when it is due. Time spent waiting for the limit is no failure of the link.
    fn write_out(&self, out: &mut Out) -> Result<(), Error> {
        self.fit_buffer(out);
        let mut rest = out.records.as_slice();
        let mut written = Ok(());
        while !rest.is_empty() && written.is_ok() {
            let (slice, behind) = rest.split_at(self.pace.wait(rest.len()).min(rest.len()));
            written = (&self.stream).write_all(slice);
            self.pace.note(slice.len());
            rest = behind;
        }
        out.records.clear();
        out.last_sent = Instant::now();
        written.map_err(|error| Error::io("sending", self.timeouts.write, error))
    }

    /// Best effort: without it the limit holds all the same, but for what the kernel has taken from us while a link was down.
    fn fit_buffer(&self, out: &mut Out) {
        let limit = self.pace.limit();
        if out.fitted != limit {
            out.fitted = limit;
            let unsent = limit.map_or(u32::MAX as usize, |limit| (2 * slice_bytes(limit)).max(UNSENT_BYTES_MIN));
            let _ = socket2::SockRef::from(&self.stream).set_tcp_notsent_lowat(u32::try_from(unsent).unwrap_or(u32::MAX));
        }
    }

    /// Sends a keep-alive if this end has been silent. Never waits: while another thread sends, or the socket is full, bytes are on
    /// their way anyhow.
    pub fn keep_alive(&self) -> Result<(), Error> {
        let mut out = match self.out.try_lock() {
            Ok(out) => out,
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Poisoned(_)) => return Err(broken()),
        };
        if out.last_sent.elapsed() < self.timeouts.keepalive || !self.has_room() {
            return Ok(());
        }
        self.send_locked(&mut out, Kind::KeepAlive, &[])
    }

    /// Whether a small write would not block: a TCP socket polls writable only while a third of its buffer is free.
    fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    pub fn tls(&self) -> Result<MutexGuard<'_, rustls::Connection>, Error> {
        self.tls.lock().map_err(|_| broken())
    }

    /// Says goodbye as far as that is possible without waiting.
    pub fn close(&self) {
        if let Ok(mut out) = self.out.try_lock()
            && !out.broken
            && self.has_room()
        {
            out.broken = true;
            if let Ok(mut tls) = self.tls() {
                tls.send_close_notify();
                let _ = drain(&mut tls, &mut out.records);
            }
            let _ = self.write_out(&mut out);
        }
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection at once; both halves wake up with an error.
    pub fn abort(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

fn drain(tls: &mut rustls::Connection, records: &mut Vec<u8>) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(records)?;
    }
    Ok(())
}

pub(super) fn broken() -> Error {
    Error::Lost { action: "using a connection that failed before", source: io::ErrorKind::NotConnected.into() }
}
