//! How far a mirror or resync has come, for people.

/// Counts only grow within one run; totals are estimates from the file systems' own statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub nodes_done: u64,
    pub nodes_sent: u64,
    pub bytes_done: u64,
    pub tasks_left: u64,
}
