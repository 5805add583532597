//! Recovery points, what each job wants of them, and the job's history: what lies at which position of its stream.

use super::Store;
use super::jobs::parsed;
use anyhow::Result;
use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use standin_model::{JobId, MarkName, OpSeq, RecoveryPoint, Timestamp};
use standin_protection::PointPolicy;

/// Entries that are kept of each job; older ones go. A marker a minute for a week.
const HISTORY_ROWS_MAX: i64 = 10_000;

/// One entry of a job's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryRow {
    pub at: Timestamp,
    /// By the source's clock, where known.
    pub captured_at: Option<Timestamp>,
    pub seq: OpSeq,
    /// `marker`, `point`, `point-removed`, `point-failed`, `resync`, `consistent`, `verification`.
    pub kind: String,
    pub name: Option<MarkName>,
    /// The cut that several jobs have in common, where this is a part of one. Reserved.
    pub cut: Option<String>,
    pub note: String,
}

impl HistoryRow {
    pub fn new(kind: &str, seq: OpSeq, name: Option<MarkName>, note: &str) -> HistoryRow {
        HistoryRow { at: Timestamp(0), captured_at: None, seq, kind: kind.into(), name, cut: None, note: note.into() }
    }
    pub fn captured(self, captured_at: Option<Timestamp>) -> HistoryRow {
        HistoryRow { captured_at, ..self }
    }
}

fn signed(seq: OpSeq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

impl Store {
    pub fn add_point(&self, job: &JobId, point: &RecoveryPoint) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO point (job, id, body) VALUES (?1, ?2, ?3)";
        self.lock().execute(sql, params![job.as_str(), point.id(), serde_json::to_string(point)?])?;
        Ok(())
    }

    pub fn remove_point(&self, job: &JobId, id: &str) -> Result<()> {
        self.lock().execute("DELETE FROM point WHERE job = ?1 AND id = ?2", params![job.as_str(), id])?;
        Ok(())
    }

    pub fn points(&self, job: &JobId) -> Result<Vec<RecoveryPoint>> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT body FROM point WHERE job = ?1")?;
        let rows = query.query_map([job.as_str()], |row| parsed(row, 0, |text| serde_json::from_str(text).ok()))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub fn point_policy(&self, job: &JobId) -> Result<Option<PointPolicy>> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT body FROM point_policy WHERE job = ?1")?;
        Ok(query.query_row([job.as_str()], |row| parsed(row, 0, |text| serde_json::from_str(text).ok())).optional()?)
    }

    pub fn save_point_policy(&self, job: &JobId, policy: &PointPolicy) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO point_policy (job, body) VALUES (?1, ?2)";
        self.lock().execute(sql, params![job.as_str(), serde_json::to_string(policy)?])?;
        Ok(())
    }

    /// A marker or a consistent position that is there already is not added again.
    pub fn add_history(&self, job: &JobId, now: Timestamp, row: &HistoryRow) -> Result<()> {
        let connection = self.lock();
        let sql =
            "INSERT OR IGNORE INTO history (job, at, captured_at, seq, kind, name, cut, note) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let (captured_at, name) = (row.captured_at.map(|at| at.0), row.name.as_ref().map(MarkName::as_str));
        let added =
            connection.execute(sql, params![job.as_str(), now.0, captured_at, signed(row.seq), row.kind, name, row.cut, row.note])?;
        if added > 0 {
            let old =
                "DELETE FROM history WHERE job = ?1 AND id <= (SELECT id FROM history WHERE job = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)";
            connection.execute(old, params![job.as_str(), HISTORY_ROWS_MAX])?;
        }
        Ok(())
    }

    /// The newest entries of a job, oldest of them first.
    pub fn history(&self, job: &JobId, count_max: u32) -> Result<Vec<HistoryRow>> {
        let connection = self.lock();
        let sql = "SELECT at, captured_at, seq, kind, name, cut, note FROM history WHERE job = ?1 ORDER BY id DESC LIMIT ?2";
        let mut query = connection.prepare_cached(sql)?;
        let rows = query.query_map(params![job.as_str(), count_max], |row| {
            Ok(HistoryRow {
                at: Timestamp(row.get(0)?),
                captured_at: row.get::<_, Option<i64>>(1)?.map(Timestamp),
                seq: OpSeq(u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0)),
                kind: row.get(3)?,
                name: row.get::<_, Option<String>>(4)?.and_then(|text| MarkName::parse(&text)),
                cut: row.get(5)?,
                note: row.get(6)?,
            })
        })?;
        let mut rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        rows.reverse();
        Ok(rows)
    }
}
