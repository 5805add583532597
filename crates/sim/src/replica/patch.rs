//! Patches in their shortest form: written, read back, and wanted where they do not hold; in a redo only at its end.

use super::Replica;
use crate::tree::write_at;
use standin_model::*;

/// What a range has to be at the redo's end.
#[derive(Clone, Copy, Debug)]
pub struct Unproven {
    node: NodeId,
    from: usize,
    to: usize,
    checksum: u64,
    /// A part of it has changed since.
    broken: bool,
}

impl Replica {
    pub(super) fn patch(&mut self, operation: &Operation) {
        let Operation::Patch { node, offset, len, parts, checksum } = operation else { return };
        let Some(inode) = self.need_kind(*node, NodeKind::File) else { return };
        self.guard_clone_origin(*node);
        let (from, to) = (offset.0 as usize, (offset.0 + len.0) as usize);
        let content = &mut self.disk.modify(inode).content;
        parts.iter().for_each(|part| write_at(content, from + part.at as usize, &part.data));
        self.patches += 1;
        let range = Unproven { node: *node, from, to, checksum: *checksum, broken: false };
        let holds = self.trusts_patches || self.holds(&range);
        match (holds, self.is_redoing()) {
            (true, _) => self.write_over(*node, from, to),
            (false, false) => self.refuse(*node),
            (false, true) => {
                self.write_over(*node, from, to);
                self.table.unproven.push(range);
            }
        }
    }

    fn holds(&self, range: &Unproven) -> bool {
        let inode = self.alive(range.node);
        let content = inode.and_then(|inode| self.disk.look(inode)).map_or(&[][..], |body| &body.content);
        content.get(range.from..range.to).map(patch::checksum_of) == Some(range.checksum)
    }

    fn refuse(&mut self, node: NodeId) {
        if !self.table.wanted.contains(&node) {
            self.refused += 1;
            self.want(node);
        }
    }

    /// All of the range is what the stream says.
    fn write_over(&mut self, node: NodeId, from: usize, to: usize) {
        self.table.unproven.retain(|range| range.node != node || range.from < from || range.to > to);
        self.cut_into(node, from, to);
    }

    fn cut_into(&mut self, node: NodeId, from: usize, to: usize) {
        for range in &mut self.table.unproven {
            range.broken |= range.node == node && range.from < to && range.to > from;
        }
    }

    pub(super) fn note_for_unproven(&mut self, operation: &Operation) {
        use Operation::*;
        let end = |offset: &ByteOffset, len: u64| (offset.0 + len) as usize;
        match operation {
            Write { node, offset, data } | MirrorData { node, offset, data } => {
                self.write_over(*node, offset.0 as usize, end(offset, data.len() as u64));
            }
            Zero { node, offset, len, .. } | Punch { node, offset, len } | MirrorHole { node, offset, len } => {
                self.write_over(*node, offset.0 as usize, end(offset, len.0));
            }
            Truncate { node, size } | MirrorNode { node, size, .. } => self.write_over(*node, size.0 as usize, usize::MAX),
            CloneRange { node, offset, len, .. } => self.cut_into(*node, offset.0 as usize, end(offset, len.0)),
            Collapse { node, offset, .. } | Insert { node, offset, .. } => self.cut_into(*node, offset.0 as usize, usize::MAX),
            Create { node, .. } | CreateUnnamed { node, .. } | Forget { node } => self.table.unproven.retain(|range| range.node != *node),
            _ => {}
        }
    }

    pub(super) fn is_unproven(&self, node: NodeId) -> bool {
        self.table.unproven.iter().any(|range| range.node == node)
    }

    pub(super) fn prove(&mut self) {
        for range in std::mem::take(&mut self.table.unproven) {
            if self.forgets_unproven || self.alive(range.node).is_none() {
                continue;
            }
            if range.broken {
                self.unproven += u64::from(!self.table.wanted.contains(&range.node));
                self.want(range.node);
            } else if !self.holds(&range) {
                self.refuse(range.node);
            }
        }
    }
}
