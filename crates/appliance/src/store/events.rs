//! The event log: what happened, to which job, by whom. Append-only.

use super::Store;
use anyhow::Result;
use rusqlite::params;
use serde::Serialize;
use standin_model::{JobId, Timestamp};

#[derive(Clone, Debug, Serialize)]
pub struct EventRow {
    pub id: i64,
    pub at: Timestamp,
    /// `appliance`, `agent` or the name of an API token.
    pub actor: String,
    pub job: Option<String>,
    pub code: Option<String>,
    pub text: String,
}

impl Store {
    pub fn log(&self, now: Timestamp, actor: &str, job: Option<&JobId>, code: Option<&str>, text: &str) -> Result<()> {
        let sql = "INSERT INTO event (at, actor, job, code, text) VALUES (?1, ?2, ?3, ?4, ?5)";
        self.lock().execute(sql, params![now.0, actor, job.map(JobId::as_str), code, text])?;
        Ok(())
    }

    /// Events behind `after`, oldest first; of one job or of all.
    pub fn events(&self, job: Option<&JobId>, after: i64, count_max: u32) -> Result<Vec<EventRow>> {
        let connection = self.lock();
        let sql = "SELECT id, at, actor, job, code, text FROM event WHERE id > ?1 AND (?2 IS NULL OR job = ?2) ORDER BY id LIMIT ?3";
        let mut query = connection.prepare_cached(sql)?;
        let rows = query.query_map(params![after, job.map(JobId::as_str), count_max], |row| {
            Ok(EventRow {
                id: row.get(0)?,
                at: Timestamp(row.get(1)?),
                actor: row.get(2)?,
                job: row.get(3)?,
                code: row.get(4)?,
                text: row.get(5)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
