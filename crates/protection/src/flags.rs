//! Flags of a job: what is true about it next to its state, in any combination.

use crate::Problem;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flag {
    /// No session with the agent.
    Disconnected,
    /// Something on the appliance is broken and being retried: the worker, the disks, the journal.
    Degraded,
    /// The replica lags by more than the bound; nothing is lost.
    Backlog,
    /// The operator stopped replication.
    Paused,
    /// Changes come faster than they are sent.
    NotConverging,
    Throttled,
    /// Source and replica are being compared.
    Verifying,
    /// A protected volume is not at its mount point on the source.
    Unmounted,
    /// The source tells only which nodes changed, so that the replica is consistent only now and then.
    Periodic,
}

impl Flag {
    pub fn as_str(self) -> &'static str {
        match self {
            Flag::Disconnected => "disconnected",
            Flag::Degraded => "degraded",
            Flag::Backlog => "backlog",
            Flag::Paused => "paused",
            Flag::NotConverging => "not-converging",
            Flag::Throttled => "throttled",
            Flag::Verifying => "verifying",
            Flag::Unmounted => "unmounted",
            Flag::Periodic => "periodic",
        }
    }
}

/// The set flags, each with the problem behind it where there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flags(BTreeMap<Flag, Option<Problem>>);

impl Flags {
    pub fn has(&self, flag: Flag) -> bool {
        self.0.contains_key(&flag)
    }
    /// What is behind a set flag.
    pub fn problem(&self, flag: Flag) -> Option<&Problem> {
        self.0.get(&flag)?.as_ref()
    }
    pub fn set(&mut self, flag: Flag, problem: Option<Problem>) {
        self.0.insert(flag, problem);
    }
    pub fn clear(&mut self, flag: Flag) {
        self.0.remove(&flag);
    }
    pub fn iter(&self) -> impl Iterator<Item = (Flag, Option<&Problem>)> {
        self.0.iter().map(|(flag, problem)| (*flag, problem.as_ref()))
    }
    pub fn names(&self) -> Vec<&'static str> {
        self.0.keys().map(|flag| flag.as_str()).collect()
    }
}
