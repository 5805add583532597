//! How far a mirror or resync has come, for people.

/// Counts only grow within one run; totals are estimates from the file systems' own statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub nodes_done: u64,
    pub nodes_sent: u64,
    pub bytes_done: u64,
    pub tasks_left: u64,
}

/// What exclusion rules kept out of a walk. Exact when the walk is over; what happens later is not counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Nodes that are no directories, all of whose names are excluded.
    pub nodes: u64,
    /// What their content takes on the source's disks.
    pub bytes: u64,
}
