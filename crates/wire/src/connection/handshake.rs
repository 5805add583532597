//! The TLS handshake on a blocking socket, within one deadline for all of it.
//!
//! A peer that dribbles bytes cannot hold a thread longer than the deadline. When we refuse the peer, it gets the alert that says why: the
//! socket is drained for a moment before it is closed, because closing with unread bytes makes the kernel reset the connection and the
//! alert would be lost.

use crate::error::ConnectionError as Error;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

const ACTION: &str = "setting up TLS";
/// Long enough for a round trip to anywhere; a refused peer costs no more than this, and 64 KiB.
const LINGER: Duration = Duration::from_millis(1000);
const LINGER_BYTES_MAX: usize = 64 * 1024;

pub(super) fn run(stream: &TcpStream, tls: &mut rustls::Connection, limit: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    loop {
        send(stream, tls, deadline, limit)?;
        if !tls.is_handshaking() {
            return Ok(());
        }
        let left = time_left(deadline, limit)?;
        stream.set_read_timeout(Some(left)).map_err(|e| Error::io(ACTION, limit, e))?;
        match tls.read_tls(&mut (&*stream)) {
            Ok(0) => return Err(Error::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io(ACTION, limit, error)),
        }
        if let Err(error) = tls.process_new_packets() {
            // The alert is a courtesy; the error is what counts.
            let _ = send(stream, tls, deadline, limit);
            linger(stream);
            return Err(error.into());
        }
    }
}

fn send(stream: &TcpStream, tls: &mut rustls::Connection, deadline: Instant, limit: Duration) -> Result<(), Error> {
    while tls.wants_write() {
        let left = time_left(deadline, limit)?;
        stream.set_write_timeout(Some(left)).map_err(|e| Error::io(ACTION, limit, e))?;
        match tls.write_tls(&mut (&*stream)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(ACTION, limit, error)),
            Ok(_) => {}
        }
    }
    Ok(())
}

fn time_left(deadline: Instant, limit: Duration) -> Result<Duration, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Error::TimedOut { action: ACTION, waited: limit }) } else { Ok(left) }
}

/// Ends our side and reads away what the peer still sends, for a bounded time and amount.
pub(super) fn linger(mut stream: &TcpStream) {
    let deadline = Instant::now() + LINGER;
    let _ = stream.shutdown(Shutdown::Write);
    let mut buffer = [0u8; 4096];
    let mut seen = 0usize;
    while seen < LINGER_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => seen = seen.saturating_add(count),
        }
    }
}
