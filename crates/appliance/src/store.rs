//! What the appliance must not forget, in one SQLite file: agents, tokens, jobs, runbooks, verifications and the event log.
//!
//! Everything is written with `synchronous=FULL` before it takes effect. Secrets are stored as hashes only. The event log is append-only; the
//! database itself refuses changes to it. A file of a newer schema is refused, an older one is brought up to date.

mod agents;
mod events;
mod jobs;
mod network;
mod points;
mod tokens;
mod verifications;

pub use agents::AgentRow;
pub use events::EventRow;
pub use jobs::{JobRecord, StreamState};
pub use points::HistoryRow;
pub use tokens::{Role, new_secret};
pub use verifications::VerificationRow;

use anyhow::{Context, Result, bail};
use rusqlite::Connection;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

/// One entry per schema version; never edited once released.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE agent (id TEXT PRIMARY KEY, enrolled_at INTEGER NOT NULL, seen_at INTEGER, version TEXT, inventory TEXT);
    CREATE TABLE enrolment_token (hash TEXT PRIMARY KEY, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, used_by TEXT);
    CREATE TABLE api_token (hash TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL, created_at INTEGER NOT NULL);
    CREATE TABLE job (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL, machine TEXT NOT NULL, stream TEXT NOT NULL);
    CREATE TABLE run (id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL REFERENCES job(id), body TEXT NOT NULL);
    CREATE TABLE event (id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, actor TEXT NOT NULL, job TEXT, code TEXT, text TEXT NOT NULL);
    CREATE INDEX event_of_job ON event (job, id);
    CREATE TRIGGER event_keeps BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;
    CREATE TRIGGER event_stays BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;
",
    "
    CREATE TABLE point (job TEXT NOT NULL REFERENCES job(id), id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (job, id));
    CREATE TABLE point_policy (job TEXT PRIMARY KEY REFERENCES job(id), body TEXT NOT NULL);
    CREATE TABLE history (id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL REFERENCES job(id), at INTEGER NOT NULL,
        captured_at INTEGER, seq INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT, cut TEXT, note TEXT NOT NULL);
    CREATE INDEX history_of_job ON history (job, id);
    CREATE UNIQUE INDEX history_once ON history (job, seq, kind, ifnull(name, '')) WHERE kind IN ('marker', 'consistent');
",
    "
    CREATE TABLE verification (id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL REFERENCES job(id), body TEXT NOT NULL);
    CREATE INDEX verification_of_job ON verification (job, id);
    CREATE TABLE verify_schedule (job TEXT PRIMARY KEY REFERENCES job(id), body TEXT NOT NULL);
",
    "
    CREATE TABLE network (owner TEXT PRIMARY KEY, body TEXT NOT NULL);
",
];

pub struct Store {
    connection: Mutex<Connection>,
}

impl Store {
    pub fn open(path: &Path) -> Result<Store> {
        let connection = Connection::open(path).with_context(|| format!("opening the store {}", path.display()))?;
        Self::ready(connection).with_context(|| format!("preparing the store {}", path.display()))
    }

    #[cfg(test)]
    pub fn in_memory() -> Store {
        Self::ready(Connection::open_in_memory().unwrap()).unwrap()
    }

    fn ready(mut connection: Connection) -> Result<Store> {
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let version: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let Some(missing) = MIGRATIONS.get(version..) else {
            bail!("its schema is version {version}; this program knows up to {}", MIGRATIONS.len());
        };
        for (index, migration) in missing.iter().enumerate() {
            let change = connection.transaction()?;
            change.execute_batch(migration)?;
            change.pragma_update(None, "user_version", version + index + 1)?;
            change.commit()?;
        }
        Ok(Store { connection: Mutex::new(connection) })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while holding the lock leaves SQLite itself intact: an open transaction was rolled back by its drop.
        self.connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests;
