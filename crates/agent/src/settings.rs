//! What the agent keeps in its state directory besides its identity: where its appliance is.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// `host:port` of the appliance's agent listener, as seen from here.
    pub appliance: String,
}

const FILE: &str = "settings.json";

impl Settings {
    pub fn load(directory: &Path) -> Result<Settings> {
        let path = directory.join(FILE);
        let text = std::fs::read(&path).with_context(|| {
            format!("cannot read {}; enrol first: standin-agent enrol --appliance HOST:PORT --token TOKEN", path.display())
        })?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged; enrol again", path.display()))
    }

    pub fn save(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        standin_journal::durable::write_atomically(&directory.join(FILE), &text).context("cannot save the agent's settings")
    }
}
