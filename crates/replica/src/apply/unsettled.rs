//! What a power cut of the source could take back.
//!
//! Capture sees a change when the kernel makes it, which is before it is on the source's disk. When the source's power fails, its file systems lose what
//! was not written yet, and the replica has it: it is ahead of the source, and no change time on the source tells so, because the change time
//! was lost too. So every node that changed since the source was last synced is remembered here, by the number of its last change.
//!
//! ```text
//!  change of a node ──► unsettled ── Settled { through ≥ its number } ──► forgotten
//!                          └──────── StreamStarted by another kernel ───► wanted: the agent mirrors it again
//! ```
//!
//! Saved with every mark, in a table of its own, because a busy node changes in every second and the node table would be written each time.

use standin_model::{NodeId, OpSeq};
use std::collections::{HashMap, HashSet};

/// More unsettled nodes than this count as the whole volume: then everything is mirrored again after a power cut. About 16 MB.
pub const UNSETTLED_MAX: usize = 262_144;

#[derive(Default)]
pub struct Unsettled {
    /// With the number of their last change.
    nodes: HashMap<NodeId, OpSeq>,
    /// Changed or forgotten since the last commit.
    dirty: HashSet<NodeId>,
    /// Nodes that were too many to be listed; the last of their changes.
    overflow: Option<OpSeq>,
}

impl Unsettled {
    pub fn load(nodes: HashMap<NodeId, OpSeq>, overflow: Option<OpSeq>) -> Unsettled {
        Unsettled { nodes, dirty: HashSet::new(), overflow }
    }

    pub fn changed(&mut self, node: NodeId, seq: OpSeq) {
        if self.nodes.len() >= UNSETTLED_MAX && !self.nodes.contains_key(&node) {
            self.overflow = Some(OpSeq(seq.0 - 1));
            self.dirty.extend(self.nodes.drain().map(|(node, _)| node));
        }
        self.nodes.insert(node, seq);
        self.dirty.insert(node);
    }

    /// The source's disks have everything up to `through`.
    pub fn settle(&mut self, through: OpSeq) {
        let dirty = &mut self.dirty;
        self.nodes.retain(|node, seq| {
            let kept = *seq > through;
            if !kept {
                dirty.insert(*node);
            }
            kept
        });
        self.overflow = self.overflow.filter(|last| *last > through);
    }

    /// What the source may have lost: its nodes, and whether there are more that nobody listed. Nothing is unsettled afterwards.
    pub fn take(&mut self) -> (Vec<NodeId>, bool) {
        let mut nodes: Vec<NodeId> = self.nodes.drain().map(|(node, _)| node).collect();
        nodes.sort();
        self.dirty.extend(&nodes);
        (nodes, self.overflow.take().is_some())
    }

    pub fn overflow(&self) -> Option<OpSeq> {
        self.overflow
    }

    /// What the table on disk lacks: a number to put in, or a node to take out.
    pub fn changes(&self) -> impl Iterator<Item = (NodeId, Option<OpSeq>)> {
        self.dirty.iter().map(|node| (*node, self.nodes.get(node).copied()))
    }

    pub fn committed(&mut self) {
        self.dirty.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_model::VolumeId;

    fn node(inode: u64) -> NodeId {
        NodeId { volume: VolumeId(1), subvolume: 0, inode, generation: 1 }
    }

    #[test]
    fn a_node_is_settled_by_its_last_change() {
        let mut unsettled = Unsettled::default();
        unsettled.changed(node(1), OpSeq(1));
        unsettled.changed(node(2), OpSeq(2));
        unsettled.changed(node(1), OpSeq(3));
        unsettled.settle(OpSeq(2));
        let mut changes: Vec<_> = unsettled.changes().collect();
        changes.sort();
        assert_eq!(changes, [(node(1), Some(OpSeq(3))), (node(2), None)]);
        assert_eq!(unsettled.take(), (vec![node(1)], false));
        assert_eq!(unsettled.take(), (vec![], false));
    }

    #[test]
    fn too_many_are_everything_until_all_of_them_are_settled() {
        let mut unsettled = Unsettled::default();
        for number in 0..=UNSETTLED_MAX as u64 {
            unsettled.changed(node(number), OpSeq(number + 1));
        }
        assert_eq!(unsettled.overflow(), Some(OpSeq(UNSETTLED_MAX as u64)));
        unsettled.settle(OpSeq(UNSETTLED_MAX as u64 - 1));
        assert!(unsettled.overflow().is_some());
        unsettled.settle(OpSeq(UNSETTLED_MAX as u64));
        assert_eq!(unsettled.take(), (vec![node(UNSETTLED_MAX as u64)], false));
    }
}
