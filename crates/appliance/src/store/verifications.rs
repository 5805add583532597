//! Verifications of jobs: their records, newest last, and the schedules.

use super::Store;
use crate::verify::VerifySchedule;
use anyhow::Result;
use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use standin_model::{JobId, Timestamp};
use standin_protection::{Verification, VerificationState};

/// Records kept of one job: an hourly schedule for a month and a half.
const KEPT_MAX: u32 = 1000;

#[derive(Clone, Debug, Serialize)]
pub struct VerificationRow {
    pub id: i64,
    #[serde(flatten)]
    pub record: Verification,
}

impl Store {
    pub fn add_verification(&self, job: &JobId, record: &Verification) -> Result<i64> {
        let connection = self.lock();
        connection
            .execute("INSERT INTO verification (job, body) VALUES (?1, ?2)", params![job.as_str(), serde_json::to_string(record)?])?;
        let id = connection.last_insert_rowid();
        let sql =
            "DELETE FROM verification WHERE job = ?1 AND id NOT IN (SELECT id FROM verification WHERE job = ?1 ORDER BY id DESC LIMIT ?2)";
        connection.execute(sql, params![job.as_str(), KEPT_MAX])?;
        Ok(id)
    }

    pub fn save_verification(&self, id: i64, record: &Verification) -> Result<()> {
        self.lock().execute("UPDATE verification SET body = ?2 WHERE id = ?1", params![id, serde_json::to_string(record)?])?;
        Ok(())
    }

    /// Newest first.
    pub fn verifications(&self, job: &JobId, count_max: u32) -> Result<Vec<VerificationRow>> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT id, body FROM verification WHERE job = ?1 ORDER BY id DESC LIMIT ?2")?;
        let rows = query.query_map(params![job.as_str(), count_max], |row| {
            Ok(VerificationRow { id: row.get(0)?, record: super::jobs::parsed(row, 1, |text| serde_json::from_str(text).ok())? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Those that still run have nobody any more who waits for them.
    pub fn interrupt_verifications(&self, job: &JobId, now: Timestamp, reason: &str) -> Result<()> {
        for VerificationRow { id, mut record } in self.verifications(job, KEPT_MAX)? {
            if matches!(record.state, VerificationState::Running { .. }) {
                record.state = VerificationState::Interrupted { reason: reason.to_owned() };
                record.ended = Some(now);
                self.save_verification(id, &record)?;
            }
        }
        Ok(())
    }

    pub fn verify_schedule(&self, job: &JobId) -> Result<Option<VerifySchedule>> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT body FROM verify_schedule WHERE job = ?1")?;
        let found = query.query_row([job.as_str()], |row| super::jobs::parsed(row, 0, |text| serde_json::from_str(text).ok()));
        Ok(found.optional()?)
    }

    /// `None` means that the job is not verified by itself.
    pub fn save_verify_schedule(&self, job: &JobId, schedule: Option<&VerifySchedule>) -> Result<()> {
        let connection = self.lock();
        match schedule {
            Some(schedule) => {
                let sql = "INSERT OR REPLACE INTO verify_schedule (job, body) VALUES (?1, ?2)";
                connection.execute(sql, params![job.as_str(), serde_json::to_string(schedule)?])?;
            }
            None => drop(connection.execute("DELETE FROM verify_schedule WHERE job = ?1", [job.as_str()])?),
        }
        Ok(())
    }
}
