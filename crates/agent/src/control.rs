//! The agent's local socket: a user or an application's script on this server names a point of the stream.
//!
//! What a marker means: every operation that had ended before the request was received is before the marker in the stream, and every operation that
//! begins after the answer is behind it. What goes on between the two may be on either side, but the state at the marker is one that the file
//! systems really were in, because the marker is one position of their only order. A write into a mapping counts from its writeback
//! (`msync`); a program that buffers has to flush its own buffers first.
//!
//! One JSON line each way, one request a connection. Who may connect is decided by the socket's mode: root, and the members of one group if the
//! settings name one. A socket that cannot be opened costs the markers and nothing else.

use crate::queue::SharedQueue;
use crate::runner::Order;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use standin_model::{JobId, MarkName, OpSeq};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Where `run` listens and `mark` connects unless told otherwise.
pub const SOCKET: &str = "/run/standin-agent/socket";
/// A request is a name and a number.
const LINE_BYTES_MAX: u64 = 4096;
/// Requests at the same time; each is a thread and a place in the pump's orders.
const REQUESTS_MAX: usize = 16;
const IO_MAX: Duration = Duration::from_secs(5);
/// The pump reads from the source's disk between two orders.
const PUMP_MAX: Duration = Duration::from_secs(30);
pub const WAIT_SECONDS_MAX: u64 = 3600;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
enum Ask {
    Mark {
        name: String,
        /// Answer when the marker survives a power cut of the appliance, or after this long.
        #[serde(default)]
        wait_seconds: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
enum Answer {
    Marked(Marked),
    Refused(Refused),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marked {
    pub job: JobId,
    pub seq: OpSeq,
    /// The appliance has it for certain.
    pub durable: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{code}: {cause}. Next: {next}")]
pub struct Refused {
    pub code: String,
    pub cause: String,
    pub next: String,
}

fn refused(code: &str, cause: impl Into<String>, next: &str) -> Refused {
    Refused { code: code.to_owned(), cause: cause.into(), next: next.to_owned() }
}

/// What a request needs of the job that runs. Holds nothing that would keep the job's pump alive.
#[derive(Clone)]
pub struct LiveJob {
    pub job: JobId,
    pub orders: SyncSender<Order>,
    pub queue: SharedQueue,
}

/// The job that runs now, if one does.
#[derive(Clone, Default)]
pub struct Current(Arc<Mutex<Option<LiveJob>>>);

impl Current {
    fn lock(&self) -> MutexGuard<'_, Option<LiveJob>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    pub fn set(&self, live: Option<LiveJob>) {
        *self.lock() = live;
    }
    pub fn get(&self) -> Option<LiveJob> {
        self.lock().clone()
    }
}

/// Listens until the process ends. `group` names who may ask besides root.
pub fn serve(socket: &Path, group: Option<&str>, current: Current) -> Result<()> {
    let listener = listen(socket, group)?;
    std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        let busy = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors, most likely; the server's own programs need them more.
                std::thread::sleep(Duration::from_millis(500));
                continue;
            };
            let (current, busy) = (current.clone(), Arc::clone(&busy));
            if busy.fetch_add(1, Ordering::AcqRel) >= REQUESTS_MAX {
                let refusal = refused("STANDIN-E6025", format!("{REQUESTS_MAX} requests are waiting already"), "try again");
                let _ = reply(&stream, &Answer::Refused(refusal));
                busy.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let spawned = std::thread::Builder::new().name("mark".to_owned()).spawn({
                let busy = Arc::clone(&busy);
                move || {
                    if let Err(error) = answer(&stream, &current) {
                        tracing::debug!(error = format!("{error:#}"), "a request on the local socket came to nothing");
                    }
                    busy.fetch_sub(1, Ordering::AcqRel);
                }
            });
            if spawned.is_err() {
                busy.fetch_sub(1, Ordering::AcqRel);
            }
        }
    })?;
    Ok(())
}

fn listen(socket: &Path, group: Option<&str>) -> Result<UnixListener> {
    let directory = socket.parent().context("the socket's path has no directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    if UnixStream::connect(socket).is_ok() {
        anyhow::bail!("another agent listens on {}", socket.display());
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove the old {}", socket.display()));
        }
        _ => {}
    }
    // Bound under another name, so that nobody finds it before its mode is right.
    let draft = socket.with_extension("draft");
    let _ = std::fs::remove_file(&draft);
    let listener = UnixListener::bind(&draft).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let mode = match group {
        Some(group) => {
            std::os::unix::fs::chown(&draft, None, Some(group_id(group)?)).context("cannot give the socket to its group")?;
            0o660
        }
        None => 0o600,
    };
    std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(mode)).context("cannot set the socket's mode")?;
    std::fs::rename(&draft, socket).with_context(|| format!("cannot name {}", socket.display()))?;
    Ok(listener)
}

/// A group by number, or by name in `/etc/group`.
fn group_id(group: &str) -> Result<u32> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let text = std::fs::read_to_string("/etc/group").context("cannot read /etc/group")?;
    let id = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1).and_then(|id| id.parse().ok())).flatten()
    });
    id.with_context(|| format!("there is no group {group:?} in /etc/group"))
}

fn reply(mut stream: &UnixStream, answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

fn answer(stream: &UnixStream, current: &Current) -> Result<()> {
    stream.set_read_timeout(Some(IO_MAX))?;
    stream.set_write_timeout(Some(IO_MAX))?;
    let mut line = Vec::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_until(b'\n', &mut line)?;
    let result = match serde_json::from_slice(&line) {
        Ok(Ask::Mark { name, wait_seconds }) => mark(current, &name, wait_seconds),
        Err(error) => Err(refused("STANDIN-E6026", format!("the request is not readable: {error}"), "standin-agent mark --help")),
    };
    let user = rustix::net::sockopt::socket_peercred(stream).map(|peer| peer.uid.as_raw()).ok();
    match &result {
        Ok(marked) => tracing::info!(seq = %marked.seq, user, "marked"),
        Err(refusal) => tracing::info!(%refusal, user, "not marked"),
    }
    reply(stream, &result.map_or_else(Answer::Refused, Answer::Marked))
}

fn mark(current: &Current, name: &str, wait_seconds: u64) -> Result<Marked, Refused> {
    let rule = "a name has 1 to 64 letters, digits, '.', '_' and '-', and begins with a letter or digit";
    let name = MarkName::parse(name).ok_or_else(|| refused("STANDIN-E6023", rule, "standin-agent mark before-upgrade"))?;
    let look = "standin jobs   (at the appliance)";
    let none = || refused("STANDIN-E6021", "no job of this server runs now, so there is no stream to mark", look);
    let live = current.lock().clone().ok_or_else(none)?;
    let (answer, answered) = sync_channel(1);
    match live.orders.try_send(Order::Mark { name, answer }) {
        Ok(()) => {}
        Err(TrySendError::Disconnected(_)) => return Err(none()),
        Err(TrySendError::Full(_)) => return Err(refused("STANDIN-E6025", "the agent has too much to do", "journalctl -u standin-agent")),
    }
    let seq = match answered.recv_timeout(PUMP_MAX) {
        Ok(Some(seq)) => seq,
        Ok(None) => {
            let cause = "the replica is being mirrored or resynced, so that it equals no state of this server now";
            return Err(refused("STANDIN-E6022", cause, "standin watch JOB --until protected   (at the appliance)"));
        }
        Err(_) => {
            let cause = format!("the agent did not answer within {} s; the marker may come all the same", PUMP_MAX.as_secs());
            return Err(refused("STANDIN-E6025", cause, "standin job history JOB   (at the appliance)"));
        }
    };
    let wait = Duration::from_secs(wait_seconds.min(WAIT_SECONDS_MAX));
    let durable = live.queue.wait_durable(seq, wait);
    if wait_seconds > 0 && !durable {
        let cause = format!("the marker is item {seq}, and the appliance did not have it for certain within {} s", wait.as_secs());
        return Err(refused("STANDIN-E6027", cause, "standin job history JOB   (at the appliance)"));
    }
    Ok(Marked { job: live.job, seq, durable })
}

/// Asks the agent of this server.
pub fn ask_mark(socket: &Path, name: &str, wait_seconds: u64) -> Result<Marked, Refused> {
    let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => {
            let cause = format!("{} is for root and the agent's group only", socket.display());
            refused("STANDIN-E6024", cause, "run it as root, or: standin-agent enrol --mark-group GROUP")
        }
        _ => refused("STANDIN-E6020", format!("no agent listens on {}: {error}", socket.display()), "systemctl status standin-agent"),
    })?;
    let broken = |error: &dyn std::fmt::Display| {
        refused("STANDIN-E6020", format!("the agent did not answer: {error}"), "systemctl status standin-agent")
    };
    let limit = PUMP_MAX + IO_MAX + Duration::from_secs(wait_seconds.min(WAIT_SECONDS_MAX));
    stream.set_read_timeout(Some(limit)).map_err(|error| broken(&error))?;
    let mut line = serde_json::to_vec(&Ask::Mark { name: name.to_owned(), wait_seconds }).map_err(|error| broken(&error))?;
    line.push(b'\n');
    (&stream).write_all(&line).map_err(|error| broken(&error))?;
    let mut line = Vec::new();
    BufReader::new((&stream).take(LINE_BYTES_MAX)).read_until(b'\n', &mut line).map_err(|error| broken(&error))?;
    match serde_json::from_slice(&line) {
        Ok(Answer::Marked(marked)) => Ok(marked),
        Ok(Answer::Refused(refusal)) => Err(refusal),
        Err(error) => Err(broken(&error)),
    }
}

#[cfg(test)]
mod tests;
