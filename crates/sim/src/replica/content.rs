//! Content and the mirror's nodes.

use super::disk::OUR_TIME;
use super::names::PLACEHOLDER;
use super::{Body, Inode, Replica};
use crate::tree::{write_at, zero_at};
use standin_model::*;

impl Replica {
    pub(super) fn change_content(&mut self, operation: &Operation) {
        use Operation::*;
        let Some(node) = operation.node() else { return };
        let Some(inode) = self.need_kind(node, NodeKind::File) else { return };
        self.guard_clone_origin(node);
        let content = &mut self.disk.modify(inode).content;
        match operation {
            Write { offset, data, .. } | MirrorData { offset, data, .. } => write_at(content, offset.0 as usize, data),
            Truncate { size, .. } => content.resize(size.0 as usize, 0),
            Punch { offset, len, .. } => zero_at(content, offset.0 as usize, len.0 as usize),
            MirrorHole { offset, len, .. } => {
                grow(content, (offset.0 + len.0) as usize, false);
                zero_at(content, offset.0 as usize, len.0 as usize);
            }
            Zero { offset, len, keep_size, .. } => {
                grow(content, (offset.0 + len.0) as usize, *keep_size);
                zero_at(content, offset.0 as usize, len.0 as usize);
            }
            Allocate { offset, len, keep_size, .. } => grow(content, (offset.0 + len.0) as usize, *keep_size),
            other => panic!("{other:?} is not about content"),
        }
    }

    /// Block by block, as the item says; a block that the file does not reach differs.
    pub(super) fn compare_digests(&mut self, seq: OpSeq, operation: &Operation) {
        let Operation::MirrorDigests { node, offset, len, block, digests } = operation else { return };
        let inode = self.need_kind(*node, NodeKind::File);
        let content = inode.map_or(&[][..], |inode| &self.disk.look(inode).expect("alive").content);
        let end = (offset.0 + len.0) as usize;
        let mut blocks = BlockSet::default();
        let mut from = offset.0 as usize;
        for (index, digest) in digests.iter().enumerate() {
            let to = end.min(from + *block as usize);
            if content.get(from..to).is_none_or(|bytes| Digest::of_content(bytes) != *digest) {
                blocks.insert(index as u8);
            }
            from = to;
        }
        self.differs.push(Differs { seq, blocks });
    }

    pub(super) fn guard_clone_origin(&mut self, node: NodeId) {
        if self.clone_origins.contains(&node) {
            self.save(self.table.intent);
        }
    }

    pub(super) fn clone_range(&mut self, origin: NodeId, from: usize, node: NodeId, to: usize, len: usize) {
        let Some(inode) = self.need_kind(node, NodeKind::File) else { return };
        self.guard_clone_origin(node);
        let doubtful =
            self.table.buried.contains_key(&origin) || self.table.wanted.contains(&origin) || self.table.suspects.contains(&origin);
        let doubtful = doubtful || self.is_unproven(origin);
        // What cannot be had from here, or cannot be trusted, has to come again for the copy as well.
        let Some(source) = self.need_kind(origin, NodeKind::File).filter(|_| !doubtful) else { return self.missing(node) };
        let content = &self.disk.look(source).expect("alive").content;
        let end = content.len().min(from + len);
        let piece = content[from.min(end)..end].to_vec();
        write_at(&mut self.disk.modify(inode).content, to, &piece);
        self.clone_origins.insert(origin);
    }

    pub(super) fn shift(&mut self, seq: OpSeq, node: NodeId, operation: &Operation) {
        let Some(inode) = self.need_kind(node, NodeKind::File) else { return };
        let (size, len) = (self.disk.look(inode).expect("alive").content.len(), shifted(operation));
        match self.table.intent.filter(|(intended, _)| *intended == seq) {
            Some((_, before)) if size as i64 == before as i64 + len => return,
            // The machine went down with it, so that it may be half done.
            Some(_) => return self.want(node),
            None => self.save(Some((seq, size))),
        }
        let content = &mut self.disk.modify(inode).content;
        match operation {
            Operation::Collapse { offset, len, .. } if ((offset.0 + len.0) as usize) < size => {
                content.drain(offset.0 as usize..(offset.0 + len.0) as usize);
            }
            Operation::Insert { offset, len, .. } if (offset.0 as usize) < size => {
                content.splice(offset.0 as usize..offset.0 as usize, vec![0; len.0 as usize]);
            }
            // The kernel refuses it.
            _ => self.want(node),
        }
    }

    pub(super) fn mirror_node(&mut self, operation: &Operation) {
        let Operation::MirrorNode { node, kind, attributes, size, xattrs, .. } = operation else { return };
        let Some(inode) = self.alive(*node).or_else(|| self.come_unnamed(*node, *kind)) else { return };
        if self.table.entries.get(node).is_some_and(|entry| entry.kind != *kind) {
            return self.want(*node);
        }
        self.guard_clone_origin(*node);
        let body = self.disk.modify(inode);
        body.set_attributes(Attributes { modified: OUR_TIME, ..*attributes });
        body.xattrs = xattrs.iter().cloned().collect();
        if *kind == NodeKind::File {
            body.content.resize(size.0 as usize, 0);
        }
        self.table.entries.get_mut(node).expect("alive").hollow = false;
        self.note_time(*node, Some(attributes.modified));
        if *kind != NodeKind::Directory {
            self.answered(*node);
        } else if self.table.wanted.contains(node) {
            self.half_wanted.insert(*node);
        }
    }

    /// A node may be shown before the listing that names it: it waits in limbo. What else belongs to a symlink or a device only a listing tells.
    fn come_unnamed(&mut self, node: NodeId, kind: NodeKind) -> Option<Inode> {
        if !matches!(kind, NodeKind::File | NodeKind::Directory) {
            // Asked for again, so that it comes once more behind its name.
            self.satisfied(node);
            self.missing(node);
            return None;
        }
        let inode = self.make_in_limbo(node, Body::new(kind, PLACEHOLDER), false);
        Some(inode)
    }
}

fn grow(content: &mut Vec<u8>, end: usize, keep_size: bool) {
    if !keep_size && content.len() < end {
        content.resize(end, 0);
    }
}

fn shifted(operation: &Operation) -> i64 {
    match operation {
        Operation::Collapse { len, .. } => -(len.0 as i64),
        Operation::Insert { len, .. } => len.0 as i64,
        _ => 0,
    }
}
