//! Enrolled agents and what they last said about their hosts.

use super::Store;
use anyhow::Result;
use rusqlite::{OptionalExtension, Row, params};
use standin_model::{AgentId, Inventory, Timestamp};

#[derive(Clone, Debug)]
pub struct AgentRow {
    pub id: AgentId,
    pub enrolled_at: Timestamp,
    pub seen_at: Option<Timestamp>,
    pub version: Option<String>,
    pub inventory: Option<Inventory>,
}

impl Store {
    pub fn add_agent(&self, id: &AgentId, now: Timestamp) -> Result<()> {
        self.lock().execute("INSERT OR IGNORE INTO agent (id, enrolled_at) VALUES (?1, ?2)", params![id.as_str(), now.0])?;
        Ok(())
    }

    /// Notes what an agent said; false when it is not enrolled.
    pub fn agent_seen(&self, id: &AgentId, now: Timestamp, version: &str, inventory: &Inventory) -> Result<bool> {
        let inventory = serde_json::to_string(inventory)?;
        let sql = "UPDATE agent SET seen_at = ?2, version = ?3, inventory = ?4 WHERE id = ?1";
        Ok(self.lock().execute(sql, params![id.as_str(), now.0, version, inventory])? == 1)
    }

    pub fn agents(&self) -> Result<Vec<AgentRow>> {
        let connection = self.lock();
        let mut query =
            connection.prepare_cached("SELECT id, enrolled_at, seen_at, version, inventory FROM agent ORDER BY enrolled_at, id")?;
        let rows = query.query_map([], read_agent)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub fn agent(&self, id: &AgentId) -> Result<Option<AgentRow>> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT id, enrolled_at, seen_at, version, inventory FROM agent WHERE id = ?1")?;
        Ok(query.query_row([id.as_str()], read_agent).optional()?)
    }
}

fn read_agent(row: &Row<'_>) -> rusqlite::Result<AgentRow> {
    let inventory: Option<String> = row.get(4)?;
    Ok(AgentRow {
        id: super::jobs::parsed(row, 0, AgentId::parse)?,
        enrolled_at: Timestamp(row.get(1)?),
        seen_at: row.get::<_, Option<i64>>(2)?.map(Timestamp),
        version: row.get(3)?,
        // An inventory of an older shape is as good as none; the agent sends it anew with every session.
        inventory: inventory.and_then(|text| serde_json::from_str(&text).ok()),
    })
}
