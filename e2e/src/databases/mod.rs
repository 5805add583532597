//! Three databases under load in a guest, and what they have promised: PostgreSQL, MariaDB, and SQLite with several writers on one file.
//!
//! Clients in the guest (`witness`) count transactions up, each on its own, and say before each that it begins and behind each that its commit has returned,
//! with the guest's clock. The lines stream to this machine, outside every protected volume, into a [`Record`]. What a database holds, on a replica that
//! has booted or in a recovery point (`examine`), is judged by that record: nothing may be missing that was confirmed before the cut, and nothing be
//! there that began after it.

mod engine;
mod examine;
mod record;
pub mod witness;

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::lab::{Guest, command};

pub use engine::Engine;
pub use examine::{booted, disk};
pub use record::{Cut, Found, Record, Stamp};

/// Three databases on an emulated machine that has just booted.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How long a client may be silent: a transaction beside churn and a mirror, or a link that was cut.
const SILENCE_MAX: Duration = Duration::from_secs(180);

/// What a database has kept.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    pub engine: Engine,
    pub transactions: u64,
}

/// The running clients and the record of all that have run; dropping it ends the clients.
pub struct Clients {
    program: String,
    generation: u64,
    child: Option<Child>,
    listener: Option<std::thread::JoinHandle<()>>,
    record: Arc<Mutex<Record>>,
}

impl Clients {
    /// Clients that run `program`, this one, in the guest. None runs yet.
    pub fn new(program: &str) -> Clients {
        Clients { program: program.to_owned(), generation: 0, child: None, listener: None, record: Arc::default() }
    }

    /// Starts them; again after the guest has lost its power, with numbers of their own.
    pub fn start(&mut self, guest: &mut Guest) -> Result<()> {
        self.end();
        self.generation += 1;
        self.record().begin(self.generation);
        let mut child = guest.ssh_stream(&format!("exec {} witness --generation {}", self.program, self.generation))?;
        let lines = BufReader::new(child.stdout.take().context("the clients have no output")?).lines();
        let record = Arc::clone(&self.record);
        self.listener = Some(std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                record.lock().expect("no holder of the record panics").heed(&line);
            }
        }));
        self.child = Some(child);
        self.wait_until(START_LIMIT, "every client has committed", |record| record.all_confirmed())
    }

    /// Waits until every client has said something behind that moment of the guest, so that everything before it is in the record.
    pub fn hear_beyond(&mut self, moment: Stamp) -> Result<()> {
        self.wait_until(SILENCE_MAX, "every client has been heard", |record| record.heard_beyond(moment))
    }

    /// Waits until every client has confirmed something more.
    pub fn see_progress(&mut self) -> Result<()> {
        let before = self.record().confirmed_now();
        let further =
            |record: &Record| record.confirmed_now().iter().all(|(writer, count)| *count > before.get(writer).copied().unwrap_or(0));
        self.wait_until(SILENCE_MAX, "every client has gone on", further)
    }

    fn wait_until(&mut self, limit: Duration, what: &str, done: impl Fn(&Record) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !done(&self.record()) {
            let running = self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|ended| ended.is_none()));
            ensure!(running, "the databases' clients have ended: {}", self.record().complaint());
            ensure!(Instant::now() < deadline, "not within {} s: {what}; {}", limit.as_secs(), self.record().shown());
            command::pause(Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// The clients' present generation, for a cut.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no holder of the record panics")
    }

    /// Ends the clients; what they had said is in the record when this returns.
    pub fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        if let Some(listener) = self.listener.take() {
            listener.join().ok();
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.end();
    }
}
