//! A database under load in the guest, and a witness of what it has promised.
//!
//! The witness is a client that inserts rising numbers, one transaction each, and prints a number only after its COMMIT has
//! returned. The lines stream to this machine, outside every protected volume, so afterwards each line read here is a transaction
//! that the replica must have (after a planned failover), or that lies before the recovery point (after a crash). `pgbench` runs
//! beside it to keep files busy.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Guest, command};

/// Creating the tables takes seconds on an emulated machine.
const SETUP_LIMIT: Duration = Duration::from_secs(180);

/// How `psql` is run in the guest: without start-up files, unaligned, stopping at the first error.
const PSQL: &str = "runuser -u postgres -- psql -X -q -A -t -v ON_ERROR_STOP=1";

/// How hard the load is.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// pgbench's scale: 100,000 rows (about 15 MiB) each.
    pub scale: u32,
    /// pgbench's transactions a second at most; an emulated machine has to keep time for the rest.
    pub rate: u32,
    /// Milliseconds between the witness's transactions.
    pub pause_ms: u32,
}

impl Default for Load {
    fn default() -> Self {
        Load { scale: 1, rate: 10, pause_ms: 50 }
    }
}

/// A transaction that the database has confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub id: u64,
    /// When its line arrived here.
    pub seen: Instant,
}

/// The running load; dropping it ends the clients.
pub struct Workload {
    witness: Child,
    bench: Child,
    committed: Arc<Mutex<Vec<Committed>>>,
    listener: Option<std::thread::JoinHandle<()>>,
}

/// Waits for PostgreSQL, makes the tables, and starts the witness and pgbench.
pub fn start(guest: &mut Guest, load: Load) -> Result<Workload> {
    wait_for_database(guest, SETUP_LIMIT)?;
    let tables = "create table if not exists witness (id bigint primary key, at timestamptz default clock_timestamp())";
    guest.ssh_within(&format!("cd / && {PSQL} -c '{tables}'"), SETUP_LIMIT).context("creating the witness's table")?;
    let bench_setup = format!("cd / && runuser -u postgres -- pgbench -i -q -s {} postgres 2>&1", load.scale);
    guest.ssh_within(&bench_setup, SETUP_LIMIT).context("filling pgbench's tables")?;
    let mut witness = guest.ssh_stream(&witness_script(load))?;
    let bench = guest
        .ssh_stream(&format!("cd / && exec runuser -u postgres -- pgbench -n -c 2 -R {} -T 86400 postgres >/dev/null 2>&1", load.rate))?;
    let committed = Arc::new(Mutex::new(Vec::new()));
    let lines = BufReader::new(witness.stdout.take().context("the witness has no output")?).lines();
    let list = Arc::clone(&committed);
    let listener = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if let Ok(id) = line.trim().parse() {
                list.lock().expect("no holder of the list panics").push(Committed { id, seen: Instant::now() });
            }
        }
    });
    Ok(Workload { witness, bench, committed, listener: Some(listener) })
}

/// One psql session: an insert commits by itself (autocommit), and `\echo` runs only when it has returned without an error.
fn witness_script(load: Load) -> String {
    let pause = f64::from(load.pause_ms) / 1000.0;
    format!(
        "cd / && N=$({PSQL} -c 'select coalesce(max(id),0) from witness') && \
         while :; do N=$((N+1)); printf 'insert into witness(id) values (%d);\\n\\\\echo %d\\n' $N $N; sleep {pause}; done | exec {PSQL}"
    )
}

/// Waits until the database takes connections.
pub fn wait_for_database(guest: &mut Guest, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let asked = guest.ssh_collect(&format!("cd / && {PSQL} -c 'select 1'"), Duration::from_secs(60))?;
        if asked.status.success() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{}: PostgreSQL did not start: {}", guest.name(), asked.stderr.trim());
        }
        command::pause(Duration::from_millis(500))?;
    }
}

impl Workload {
    /// The transactions confirmed so far, in order.
    pub fn committed(&self) -> Vec<Committed> {
        self.committed.lock().expect("no holder of the list panics").clone()
    }

    /// The last confirmed number; 0 if there is none.
    pub fn last(&self) -> u64 {
        self.committed.lock().expect("no holder of the list panics").last().map_or(0, |committed| committed.id)
    }

    /// Waits until the witness has confirmed `more` further transactions.
    pub fn wait_for(&mut self, more: u64, limit: Duration) -> Result<()> {
        let (target, deadline) = (self.last() + more, Instant::now() + limit);
        while self.last() < target {
            ensure!(self.witness.try_wait()?.is_none(), "the witness has ended after transaction {}", self.last());
            ensure!(Instant::now() < deadline, "the witness is at {} and not at {target} after {} s", self.last(), limit.as_secs());
            command::pause(Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// Whether both clients still work.
    pub fn is_running(&mut self) -> bool {
        [&mut self.witness, &mut self.bench].into_iter().all(|child| child.try_wait().is_ok_and(|ended| ended.is_none()))
    }

    /// Ends the clients and returns everything that was confirmed.
    pub fn end(&mut self) -> Vec<Committed> {
        for child in [&mut self.witness, &mut self.bench] {
            child.kill().ok();
            child.wait().ok();
        }
        // What the witness had said is in the pipe; the listener ends with it.
        if let Some(listener) = self.listener.take() {
            listener.join().ok();
        }
        self.committed()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a database has of the confirmed transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub confirmed: u64,
    pub missing: Vec<u64>,
    /// The highest number in the table; it may be one above the last confirmed.
    pub highest: u64,
}

/// Asks the database in `guest` which of the confirmed transactions it lacks, and reads every pgbench table through.
pub fn verify(guest: &mut Guest, committed: &[Committed]) -> Result<Verdict> {
    wait_for_database(guest, SETUP_LIMIT)?;
    let listed = guest.ssh_within(&format!("cd / && {PSQL} -c 'select id from witness'"), SETUP_LIMIT)?;
    let present: std::collections::HashSet<u64> = listed.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let missing = committed.iter().map(|committed| committed.id).filter(|id| !present.contains(id)).collect();
    // pgbench keeps these sums equal in every transaction, so a torn one would show.
    let sums = "select (select sum(bbalance) from pgbench_branches) = (select sum(abalance) from pgbench_accounts) \
                and (select sum(bbalance) from pgbench_branches) = (select coalesce(sum(delta),0) from pgbench_history)";
    let equal = guest.ssh_within(&format!("cd / && {PSQL} -c '{sums}'"), SETUP_LIMIT)?;
    ensure!(equal.trim() == "t", "{}: pgbench's balances do not add up", guest.name());
    Ok(Verdict { confirmed: committed.len() as u64, missing, highest: present.into_iter().max().unwrap_or(0) })
}
