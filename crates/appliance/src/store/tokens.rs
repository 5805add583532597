//! Tokens, as hashes: one-time tokens for enrolment, bearer tokens for the API.
//!
//! A token has 256 random bits, so a plain SHA-256 is enough: there is nothing to guess that a slow hash would protect.

use super::Store;
use anyhow::Result;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use standin_model::{AgentId, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May look.
    Viewer,
    /// May protect and fail over.
    Operator,
    /// May also hand out tokens.
    Admin,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
    fn parse(text: &str) -> Option<Role> {
        [Role::Viewer, Role::Operator, Role::Admin].into_iter().find(|role| role.as_str() == text)
    }
}

/// 32 random bytes in hexadecimal.
pub fn new_secret() -> Result<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the system has no randomness: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn hash(secret: &str) -> String {
    standin_wire::Token::hash_of(secret)
}

impl Store {
    pub fn add_enrolment_token(&self, secret: &str, now: Timestamp, expires: Timestamp) -> Result<()> {
        let sql = "INSERT INTO enrolment_token (hash, created_at, expires_at) VALUES (?1, ?2, ?3)";
        self.lock().execute(sql, params![hash(secret), now.0, expires.0])?;
        Ok(())
    }

    /// Uses a token up for `agent`. False when it is unknown, expired or used: the caller must not say which.
    pub fn use_enrolment_token(&self, secret: &str, agent: &AgentId, now: Timestamp) -> Result<bool> {
        let sql = "UPDATE enrolment_token SET used_by = ?2 WHERE hash = ?1 AND used_by IS NULL AND expires_at > ?3";
        Ok(self.lock().execute(sql, params![hash(secret), agent.as_str(), now.0])? == 1)
    }

    /// False when the name is taken.
    pub fn add_api_token(&self, name: &str, role: Role, secret: &str, now: Timestamp) -> Result<bool> {
        let sql = "INSERT INTO api_token (hash, name, role, created_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (name) DO NOTHING";
        Ok(self.lock().execute(sql, params![hash(secret), name, role.as_str(), now.0])? == 1)
    }

    pub fn remove_api_token(&self, name: &str) -> Result<bool> {
        Ok(self.lock().execute("DELETE FROM api_token WHERE name = ?1", [name])? == 1)
    }

    pub fn api_tokens(&self) -> Result<Vec<(String, Role)>> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT name, role FROM api_token ORDER BY name")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, super::jobs::parsed(row, 1, Role::parse)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Name and role behind a bearer token. The look-up is by hash, so its time says nothing about the secret.
    pub fn authenticate(&self, secret: &str) -> Result<Option<(String, Role)>> {
        let connection = self.lock();
        let mut query = connection.prepare_cached("SELECT name, role FROM api_token WHERE hash = ?1")?;
        let found = query.query_row([hash(secret)], |row| Ok((row.get(0)?, super::jobs::parsed(row, 1, Role::parse)?)));
        Ok(found.optional()?)
    }
}
