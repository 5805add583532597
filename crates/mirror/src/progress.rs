//! How far a mirror or resync has come, for people.

use standin_model::VolumeId;
use std::collections::BTreeMap;

/// Counts only grow within one run; totals are estimates from the file systems' own statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub volumes: BTreeMap<VolumeId, Done>,
    pub nodes_sent: u64,
    pub tasks_left: u64,
}

/// What a walk has been through: nodes that were looked at, and content that was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub nodes: u64,
    pub bytes: u64,
}

impl Progress {
    pub(crate) fn of(&mut self, volume: VolumeId) -> &mut Done {
        self.volumes.entry(volume).or_default()
    }

    /// Of all volumes.
    pub fn done(&self) -> Done {
        self.volumes.values().fold(Done::default(), |sum, one| Done { nodes: sum.nodes + one.nodes, bytes: sum.bytes + one.bytes })
    }
}

/// What exclusion rules kept out of a walk. Exact when the walk is over; what happens later is not counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Nodes that are no directories, all of whose names are excluded.
    pub nodes: u64,
    /// What their content takes on the source's disks.
    pub bytes: u64,
}
