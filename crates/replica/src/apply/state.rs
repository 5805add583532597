//! What the replica is worth right now, as markers and wants say it. Saved with every durable mark.
//!
//! ```text
//! (nothing) ── ResyncStarted ──► resyncing ── Consistent ──► consistent ── Gap ──► gap open ── Consistent ──► consistent
//! ```
//! While a node is wanted, the replica is not consistent in any of these. A `Consistent` that arrives then closes what the agent knew of; the
//! want stays open until the node comes, or is forgotten by the source, which makes the replica whole without the agent's help.

use serde::{Deserialize, Serialize};
use standin_model::{Marker, OpSeq};

/// Named points kept for the user; older ones are forgotten first. 64 is more than a console shows.
pub const NAMED_POINTS_MAX: usize = 64;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaState {
    /// The last `Consistent` that closed every gap. While no gap is open, the replica equals the source at `applied`.
    pub consistent_at: Option<OpSeq>,
    /// Operations are known to be lost since, or nodes are wanted.
    pub gap_open: bool,
    pub gap_reason: Option<String>,
    pub resync_running: bool,
    /// The source stands still since this item; an item behind it clears this.
    pub quiesced_at: Option<OpSeq>,
    /// Newest last.
    pub named: Vec<(String, OpSeq)>,
    /// Nodes that the agent was asked for and has not sent yet.
    pub wanted: u64,
    /// More nodes are missing or doubtful than can be asked for: only a mirror of everything helps, and the stream's start says when one begins.
    #[serde(default)]
    pub everything_wanted: bool,
    /// The stream's item that told of the source's last power cut, until a verification has found the replica right since. What was wanted because of it
    /// is what the replica knew of: a block that was overwritten in place and synced without its change time, and of which nothing was sent, is not.
    #[serde(default)]
    pub power_cut: Option<OpSeq>,
}

impl ReplicaState {
    /// Whether a failover to the present state of the replica loses nothing but what the source did since.
    pub fn is_consistent(&self) -> bool {
        self.consistent_at.is_some() && !self.gap_open && !self.resync_running && self.wanted == 0 && !self.everything_wanted
    }

    /// Takes in a marker. Returns true where a `Consistent` closed everything, so that limbo may be purged.
    pub(super) fn apply(&mut self, seq: OpSeq, marker: &Marker) -> bool {
        match marker {
            Marker::Gap { reason } => {
                self.gap_open = true;
                self.gap_reason = Some(reason.clone());
            }
            Marker::ResyncStarted => self.resync_running = true,
            Marker::Consistent => {
                let Self { wanted, everything_wanted, power_cut, .. } = *self;
                let named = std::mem::take(&mut self.named);
                *self = ReplicaState { consistent_at: Some(seq), named, wanted, everything_wanted, power_cut, ..Default::default() };
                return wanted == 0 && !everything_wanted;
            }
            Marker::Quiesced => self.quiesced_at = Some(seq),
            Marker::Named(name) => {
                if self.named.len() == NAMED_POINTS_MAX {
                    self.named.remove(0);
                }
                self.named.push((name.clone(), seq));
            }
            Marker::StreamStarted { everything: true, .. } => (self.everything_wanted, self.power_cut) = (false, None),
            Marker::StreamStarted { .. } => {}
            Marker::Settled { .. } => {}
        }
        false
    }
}

/// Counts since the applier was opened; none of them is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplyCounters {
    pub items: u64,
    pub content_bytes: u64,
    pub nodes_created: u64,
    /// Names that led to another node than the stream says.
    pub conflicts: u64,
    pub moved_to_limbo: u64,
    /// Attributes that the replica's file system refused.
    pub attributes_refused: u64,
    /// Operations that failed on one node, which is wanted since.
    pub operations_failed: u64,
    pub marks: u64,
    pub patches: u64,
    /// Patches that did not give what the source has; their nodes were wanted.
    pub patches_refused: u64,
    /// Patches of a redo that could not be proven, so that their nodes were wanted.
    pub patches_unproven: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_want_outlives_a_consistent_that_did_not_know_of_it() {
        let mut state = ReplicaState::default();
        state.apply(OpSeq(1), &Marker::ResyncStarted);
        state.wanted = 1;
        assert!(!state.apply(OpSeq(2), &Marker::Consistent));
        assert!(!state.is_consistent());
        state.wanted = 0;
        assert!(state.is_consistent(), "the source forgot the node");
        assert!(state.apply(OpSeq(3), &Marker::Consistent));
        state.apply(OpSeq(4), &Marker::Gap { reason: "ring full".into() });
        assert!(!state.is_consistent());
        assert_eq!(state.consistent_at, Some(OpSeq(3)));
    }

    #[test]
    fn named_points_are_bounded() {
        let mut state = ReplicaState::default();
        for seq in 0..200 {
            state.apply(OpSeq(seq), &Marker::Named(seq.to_string()));
        }
        assert_eq!(state.named.len(), NAMED_POINTS_MAX);
        assert_eq!(state.named.last(), Some(&("199".to_owned(), OpSeq(199))));
    }
}
