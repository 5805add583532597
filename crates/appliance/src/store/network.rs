//! What the appliance and each job want of the network; the appliance's own row has an empty owner.

use super::Store;
use super::jobs::parsed;
use crate::network::JobNetwork;
use anyhow::Result;
use rusqlite::{OptionalExtension, params};
use standin_model::JobId;

impl Store {
    pub fn network(&self, job: Option<&JobId>) -> Result<Option<JobNetwork>> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT body FROM network WHERE owner = ?1")?;
        Ok(query.query_row([owner(job)], |row| parsed(row, 0, |text| serde_json::from_str(text).ok())).optional()?)
    }

    pub fn save_network(&self, job: Option<&JobId>, wanted: &JobNetwork) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO network (owner, body) VALUES (?1, ?2)";
        self.lock().execute(sql, params![owner(job), serde_json::to_string(wanted)?])?;
        Ok(())
    }
}

fn owner(job: Option<&JobId>) -> &str {
    job.map_or("", JobId::as_str)
}
