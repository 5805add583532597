//! What a replica does without unless the operator wants it: only what the source's own programmes make anew.

use serde::{Deserialize, Serialize};
use standin_model::{Inventory, SwapArea};

/// One exclusion by default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub pattern: String,
    pub reason: String,
}

/// A swap area in a file; devices are partitions of their own on the replica.
pub(super) fn is_file(swap: &SwapArea) -> bool {
    swap.device.starts_with('/') && !swap.device.starts_with("/dev/")
}

pub(super) fn left_out(inventory: &Inventory) -> Vec<LeftOut> {
    let new = |pattern: &str, reason: &str| LeftOut { pattern: pattern.into(), reason: reason.into() };
    // A path with the characters of a glob would leave out more than itself.
    let plain = |swap: &&SwapArea| is_file(swap) && !swap.device.contains(['*', '?']) && !swap.device.chars().any(char::is_control);
    let mut all: Vec<LeftOut> = inventory
        .swaps
        .iter()
        .filter(plain)
        .map(|swap| new(&swap.device, "swap file in use: its content means nothing after a start; boot repair makes it anew"))
        .collect();
    all.push(new("/**/pgsql_tmp", "PostgreSQL's sort files: removed whenever it starts"));
    all.push(new("/var/lib/standin-agent", "the agent's own state and identity: a replica must not act as the source's agent"));
    all
}
