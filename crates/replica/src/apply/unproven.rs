//! Ranges that a patch of a redo left otherwise than it says: because the disk is ahead of the redo, or because the patch is wrong. Which of the
//! two it is shows at the redo's end; see `patch` and docs/design/2026-11-28-page-delta.md.
//!
//! ```text
//!  patch that does not match ──► unproven ── written over as a whole ──► (forgotten)
//!                                   ├─────── cut by anything else ─────► broken: cannot be proven any more
//!                                   └─────── the redo's end ───────────► read, and proven or not
//! ```
//! Invariant: empty unless a redo runs. Saved with marks.

use serde::{Deserialize, Serialize};
use standin_model::{NodeId, Operation};

/// About 60 bytes each in memory and 150 in a mark: 2.5 MB. A redo is of about a second, in which a disk writes a few thousand pages.
pub const UNPROVEN_MAX: usize = 16_384;

/// What a range has to be at the redo's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    pub node: NodeId,
    pub offset: u64,
    pub len: u64,
    pub checksum: u64,
    /// Something has changed a part of it since.
    pub is_broken: bool,
}

impl Expected {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

#[derive(Default)]
pub struct Unproven(Vec<Expected>);

impl Unproven {
    pub fn load(ranges: Vec<Expected>) -> Unproven {
        Unproven(ranges)
    }
    pub fn saved(&self) -> Vec<Expected> {
        self.0.clone()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub fn is_full(&self) -> bool {
        self.0.len() >= UNPROVEN_MAX
    }
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.iter().any(|range| range.node == node)
    }

    pub fn expect(&mut self, range: Expected) {
        self.0.push(range);
    }

    /// All of them; nothing is unproven afterwards.
    pub fn take(&mut self) -> Vec<Expected> {
        std::mem::take(&mut self.0)
    }

    pub fn forget(&mut self, node: NodeId) {
        self.0.retain(|range| range.node != node);
    }

    /// The range has become what the stream says, whatever it was before.
    pub fn settled(&mut self, node: NodeId, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        self.0.retain(|range| range.node != node || range.offset < offset || range.end() > end);
        self.broken(node, offset, len);
    }

    fn broken(&mut self, node: NodeId, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        for range in self.0.iter_mut().filter(|range| range.node == node && range.offset < end && range.end() > offset) {
            range.is_broken = true;
        }
    }

    /// Nothing is behind the new end, and what comes there later is zeros.
    fn cut(&mut self, node: NodeId, size: u64) {
        self.settled(node, size, u64::MAX - size);
    }

    /// What an operation other than a patch does to what is unproven.
    pub fn note(&mut self, operation: &Operation) {
        use Operation::*;
        if self.is_empty() {
            return;
        }
        match operation {
            Write { node, offset, data } | MirrorData { node, offset, data } => self.settled(*node, offset.0, data.len() as u64),
            Zero { node, offset, len, .. } | Punch { node, offset, len } | MirrorHole { node, offset, len } => {
                self.settled(*node, offset.0, len.0);
            }
            Truncate { node, size } | MirrorNode { node, size, .. } => self.cut(*node, size.0),
            Collapse { node, offset, .. } | Insert { node, offset, .. } => self.broken(*node, offset.0, u64::MAX - offset.0),
            // It takes what its origin has, which may be less.
            CloneRange { node, offset, len, .. } => self.broken(*node, offset.0, len.0),
            Create { node, .. } | CreateUnnamed { node, .. } | Forget { node } => self.forget(*node),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_model::{ByteLen, ByteOffset, VolumeId};

    const FILE: NodeId = NodeId { volume: VolumeId(0), subvolume: 0, inode: 7, generation: 1 };
    const OTHER: NodeId = NodeId { inode: 8, ..FILE };

    /// Two neighbouring pages of one file and one of another; what is left of them, and whether it is broken.
    fn check(operation: Operation, expect: &[(NodeId, u64, bool)]) {
        let page = |node, offset| Expected { node, offset, len: 100, checksum: 1, is_broken: false };
        let mut unproven = Unproven::load(vec![page(FILE, 100), page(FILE, 200), page(OTHER, 100)]);
        unproven.note(&operation);
        let left: Vec<_> = unproven.take().into_iter().map(|range| (range.node, range.offset, range.is_broken)).collect();
        assert_eq!(left, expect, "{operation:?}");
    }

    #[test]
    fn what_covers_a_range_ends_it_and_what_cuts_it_breaks_it() {
        let (node, other) = (FILE, (OTHER, 100, false));
        let write = |offset, len| Operation::Write { node, offset: ByteOffset(offset), data: vec![1; len] };
        check(write(100, 100), &[(FILE, 200, false), other]);
        check(write(0, 1000), &[other]);
        check(write(150, 100), &[(FILE, 100, true), (FILE, 200, true), other]);
        check(write(199, 101), &[(FILE, 100, true), other]);
        check(write(0, 100), &[(FILE, 100, false), (FILE, 200, false), other]);
        check(write(300, 9), &[(FILE, 100, false), (FILE, 200, false), other]);
        let (offset, len) = (ByteOffset(100), ByteLen(100));
        check(Operation::Punch { node, offset, len }, &[(FILE, 200, false), other]);
        check(Operation::Zero { node, offset, len, keep_size: true }, &[(FILE, 200, false), other]);
        check(Operation::MirrorHole { node, offset, len }, &[(FILE, 200, false), other]);
        check(Operation::Allocate { node, offset, len, keep_size: true }, &[(FILE, 100, false), (FILE, 200, false), other]);
        check(Operation::Truncate { node, size: ByteLen(200) }, &[(FILE, 100, false), other]);
        check(Operation::Truncate { node, size: ByteLen(150) }, &[(FILE, 100, true), other]);
        check(Operation::Collapse { node, offset, len }, &[(FILE, 100, true), (FILE, 200, true), other]);
        check(Operation::Insert { node, offset: ByteOffset(200), len }, &[(FILE, 100, false), (FILE, 200, true), other]);
        let clone = Operation::CloneRange { origin: OTHER, origin_offset: ByteOffset(0), node, offset, len };
        check(clone, &[(FILE, 100, true), (FILE, 200, false), other]);
        check(Operation::Forget { node }, &[other]);
    }
}
