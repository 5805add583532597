//! What a replica does without unless the operator wants it: only what the source's own programmes make anew.

use serde::{Deserialize, Serialize};
use standin_model::{Inventory, SwapArea};

/// One exclusion by default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    pub pattern: String,
    pub reason: String,
}

const POSTGRESQL: &str = "PostgreSQL's sort files: removed whenever it starts";
const INNODB: &str = "InnoDB's temporary tablespaces: made anew whenever MariaDB or MySQL starts";
const SQL: &str = "internal temporary tables of MariaDB or MySQL: useless to the next server process";
const PACKAGES: &str = "downloaded packages and their lists: fetched again when they are needed";

/// Under names and paths that nobody else uses. A table that is being altered (`#sql-ib*` in a database's own directory) is not among them, nor is
/// any directory only for being called a cache.
const REMADE: [(&str, &str); 13] = [
    ("/**/base/pgsql_tmp", POSTGRESQL),
    ("/**/PG_*/pgsql_tmp", POSTGRESQL),
    ("/**/#innodb_temp", INNODB),
    ("/**/ibtmp1", INNODB),
    ("/tmp/#sql*", SQL),
    ("/tmp/systemd-private-*/tmp/#sql*", SQL),
    ("/var/tmp/#sql*", SQL),
    ("/var/tmp/systemd-private-*/tmp/#sql*", SQL),
    // A download becomes `archives/*.deb` by a rename.
    ("/var/cache/apt/archives/partial", PACKAGES),
    ("/var/cache/apt/archives/*.deb", PACKAGES),
    ("/var/cache/apt/*.bin", PACKAGES),
    ("/var/cache/dnf", PACKAGES),
    ("/var/cache/libdnf5", PACKAGES),
];

/// A swap area in a file; devices are partitions of their own on the replica.
pub(super) fn is_file(swap: &SwapArea) -> bool {
    swap.device.starts_with('/') && !swap.device.starts_with("/dev/")
}

/// All defaults for this source but those that are `wanted`.
pub(super) fn left_out(inventory: &Inventory, wanted: &[String]) -> Vec<LeftOut> {
    let all = every(inventory).into_iter();
    all.filter(|left| !wanted.contains(&left.pattern)).collect()
}

pub(super) fn every(inventory: &Inventory) -> Vec<LeftOut> {
    let new = |pattern: &str, reason: &str| LeftOut { pattern: pattern.into(), reason: reason.into() };
    // A path with the characters of a glob would leave out more than itself.
    let plain = |swap: &&SwapArea| is_file(swap) && !swap.device.contains(['*', '?']) && !swap.device.chars().any(char::is_control);
    let mut all: Vec<LeftOut> = inventory
        .swaps
        .iter()
        .filter(plain)
        .map(|swap| new(&swap.device, "swap file in use: its content means nothing after a start; boot repair makes it anew"))
        .collect();
    all.extend(REMADE.iter().map(|(pattern, reason)| new(pattern, reason)));
    all.push(new("/var/lib/standin-agent", "the agent's own state and identity: a replica must not act as the source's agent"));
    all
}
