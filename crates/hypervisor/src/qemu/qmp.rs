//! A tiny client of the QEMU machine protocol: one connection per call, one command, bounded in time and bytes.
//!
//! A connection per call needs no shared state, so any process may ask, also one that did not launch the machine.

use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest answer that is read; `query-status` answers with about 100 bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Runs one command and gives its `return` value.
pub fn execute(socket: &Path, command: &str, limit: Duration) -> io::Result<Value> {
    let deadline = Instant::now() + limit;
    let mut connection = Connection { stream: connect(socket, deadline)?, buffer: Vec::new(), deadline };
    connection.next(|message| message.get("QMP").is_some())?;
    connection.call("qmp_capabilities")?;
    connection.call(command)
}

/// QEMU's socket takes one client at a time; a second one waits in the backlog, so only absence is an error at once.
fn connect(socket: &Path, deadline: Instant) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    deadline: Instant,
}

impl Connection {
    fn call(&mut self, command: &str) -> io::Result<Value> {
        let mut line = json!({ "execute": command }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes())?;
        // Events may come in between and are skipped.
        let answer = self.next(|message| message.get("return").is_some() || message.get("error").is_some())?;
        match answer.get("error") {
            Some(error) => Err(io::Error::other(format!("{command}: {error}"))),
            None => Ok(answer.get("return").cloned().unwrap_or(Value::Null)),
        }
    }

    fn next(&mut self, wanted: impl Fn(&Value) -> bool) -> io::Result<Value> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if let Ok(message) = serde_json::from_slice::<Value>(&line)
                    && wanted(&message)
                {
                    return Ok(message);
                }
            }
            self.read_more()?;
        }
    }

    fn read_more(&mut self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || self.buffer.len() > ANSWER_BYTES_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut chunk = [0u8; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}
