//! Jobs, the position of their streams, and the runs of their failovers.

use super::Store;
use anyhow::Result;
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use standin_model::{AgentId, Inventory, JobId, JobSpec, OpSeq, Timestamp};
use standin_protection::{Job, ProtectRequest, ProtectionSummary, Run};

/// What never changes about a job once it was accepted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobRecord {
    pub id: JobId,
    pub name: String,
    pub agent: AgentId,
    pub created_at: Timestamp,
    pub spec: JobSpec,
    pub request: ProtectRequest,
    pub summary: ProtectionSummary,
    /// The source as it was when the job was accepted; disks and VM are made from it.
    pub inventory: Inventory,
}

/// What has to be known to take a stream up again, besides the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// The epoch of the last StartJob; 0 before the first.
    pub epoch: u64,
    /// Capture time of the last applied segment while the replica was consistent: whatever was lost since, changed after it. A newer epoch
    /// mirrors what changed since then, also what an unfinished resync still owed.
    pub captured_at: Option<Timestamp>,
    /// A `Consistent` marker was seen: what is mirrored from now on is only what changed.
    pub mirrored: bool,
    /// What agents were told to be durable, up to a second ago. A journal that ends before it has lost what nobody will send again.
    #[serde(default)]
    pub acknowledged: OpSeq,
    /// Set when the journal lost acknowledged items: the replica counts as consistent only by a marker behind this.
    #[serde(default)]
    pub lost_after: Option<OpSeq>,
}

impl StreamState {
    /// Nobody can list what the replica lacks. A new epoch makes the agent mirror everything.
    pub fn distrust(&mut self) {
        (self.captured_at, self.mirrored) = (None, false);
        self.epoch = self.epoch.saturating_add(1);
    }

    /// The journal ends at `end` although more was acknowledged. A new epoch makes the agent mirror what changed since the replica was consistent.
    pub fn lose_after(&mut self, end: OpSeq) {
        self.acknowledged = end;
        self.lost_after = Some(end);
        self.epoch = self.epoch.saturating_add(1);
    }
}

/// Reads a text column through a parser; a value that it refuses is an error of the database, not a panic.
pub(super) fn parsed<T>(row: &Row<'_>, column: usize, parse: impl Fn(&str) -> Option<T>) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    parse(&text).ok_or_else(|| {
        let error = format!("unreadable value in column {column}");
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
    })
}

impl Store {
    pub fn add_job(&self, record: &JobRecord, job: &Job) -> Result<()> {
        let sql = "INSERT INTO job (id, name, record, machine, stream) VALUES (?1, ?2, ?3, ?4, ?5)";
        let stream = serde_json::to_string(&StreamState::default())?;
        let (text, machine) = (serde_json::to_string(record)?, serde_json::to_string(job)?);
        self.lock().execute(sql, params![record.id.as_str(), record.name, text, machine, stream])?;
        Ok(())
    }

    pub fn save_machine(&self, id: &JobId, job: &Job) -> Result<()> {
        self.lock().execute("UPDATE job SET machine = ?2 WHERE id = ?1", params![id.as_str(), serde_json::to_string(job)?])?;
        Ok(())
    }

    pub fn save_stream(&self, id: &JobId, stream: &StreamState) -> Result<()> {
        self.lock().execute("UPDATE job SET stream = ?2 WHERE id = ?1", params![id.as_str(), serde_json::to_string(stream)?])?;
        Ok(())
    }

    pub fn jobs(&self) -> Result<Vec<(JobRecord, Job, StreamState)>> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT record, machine, stream FROM job ORDER BY name")?;
        let rows = query.query_map([], |row| {
            let record = parsed(row, 0, |text| serde_json::from_str(text).ok())?;
            Ok((record, parsed(row, 1, |text| serde_json::from_str(text).ok())?, parsed(row, 2, |text| serde_json::from_str(text).ok())?))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub fn add_run(&self, job: &JobId, run: &Run) -> Result<i64> {
        let connection = self.lock();
        connection.execute("INSERT INTO run (job, body) VALUES (?1, ?2)", params![job.as_str(), serde_json::to_string(run)?])?;
        Ok(connection.last_insert_rowid())
    }

    pub fn save_run(&self, id: i64, run: &Run) -> Result<()> {
        self.lock().execute("UPDATE run SET body = ?2 WHERE id = ?1", params![id, serde_json::to_string(run)?])?;
        Ok(())
    }

    /// The newest run of a job.
    pub fn last_run(&self, job: &JobId) -> Result<Option<(i64, Run)>> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT id, body FROM run WHERE job = ?1 ORDER BY id DESC LIMIT 1")?;
        let found = query.query_row([job.as_str()], |row| Ok((row.get(0)?, parsed(row, 1, |text| serde_json::from_str(text).ok())?)));
        Ok(found.optional()?)
    }
}
