//! A virtual replica: the rules of apply in their shortest form, on inodes in memory.
//!
//! It keeps the contract of the real one (crates/replica), room by room: a disk with inodes and a limbo; a node table that is as old as the last
//! durable mark after a crash, while the disk may be ahead; names are "make it so"; unknown nodes are wanted and never an error; nothing is
//! destroyed while redo or a resync runs. Where this file and the real one differ, one of them has a bug.

mod check;
mod content;
mod disk;
mod names;
mod patch;
mod redo;

use crate::tree::{Body, Nodes};
use disk::Disk;
use standin_model::*;
use std::collections::{BTreeMap, BTreeSet};

/// An inode of the replica's own file system.
type Inode = u64;

/// A row of the node table; the facts are those of the real one.
#[derive(Clone, Copy, Debug)]
struct Entry {
    inode: Inode,
    kind: NodeKind,
    unlinked: bool,
    hollow: bool,
    unnamed: bool,
    /// The last modification as the stream told it.
    modified: Option<Timestamp>,
}

impl Entry {
    fn new(inode: Inode, kind: NodeKind) -> Entry {
        Entry { inode, kind, unlinked: false, hollow: false, unnamed: false, modified: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Redo {
    Through(OpSeq),
    Done,
}

/// What a durable mark saves.
#[derive(Clone)]
struct Table {
    entries: BTreeMap<NodeId, Entry>,
    /// Where the stream put each directory.
    parents: BTreeMap<NodeId, NodeId>,
    applied: OpSeq,
    wanted: BTreeSet<NodeId>,
    /// Wanted nodes that have come since the last `Consistent`, with or without all of their content.
    answered: BTreeSet<NodeId>,
    suspects: BTreeSet<NodeId>,
    consistent_at: Option<OpSeq>,
    gap_open: bool,
    resync_running: bool,
    /// A shift that is about to happen, and the size before it.
    intent: Option<(OpSeq, usize)>,
    /// Names that redo could not give because their node is missing: the node, and the directory.
    unplaced: Vec<(NodeId, NodeId)>,
    /// What a power cut of the source could take back: nodes with the number of their last change.
    unsettled: BTreeMap<NodeId, OpSeq>,
    source_boot: Option<u64>,
    /// Nodes that redo took for gone because a `Consistent` left them without a name, and whether the stream had taken it.
    buried: BTreeMap<NodeId, bool>,
    /// Of a redo: ranges that are not as their patches say.
    unproven: Vec<patch::Unproven>,
}

pub struct Replica {
    roots: Vec<NodeId>,
    disk: Disk,
    table: Table,
    /// The last mark: the table, and the disk as it was then.
    marked: (Table, Disk),
    redo: Redo,
    fresh_wants: Vec<NodeId>,
    /// Wanted directories that have come since, but for their listing.
    half_wanted: BTreeSet<NodeId>,
    listings: BTreeMap<NodeId, BTreeSet<Vec<u8>>>,
    clone_origins: BTreeSet<NodeId>,
    /// What checks came to, until somebody takes it.
    compared: Option<standin_protection::Compared>,
    /// Answers to digests, until somebody takes them.
    differs: Vec<Differs>,
    /// A bug on purpose: nothing tells after a crash whether a shift was done.
    pub forgets_intents: bool,
    /// Another: nobody reads back what was patched.
    pub trusts_patches: bool,
    /// And one more: what a redo could not prove is not looked at again.
    pub forgets_unproven: bool,
    pub patches: u64,
    /// Patches that did not give what the source has.
    pub refused: u64,
    /// Patches that a redo could not prove.
    pub unproven: u64,
}

impl Replica {
    pub fn new(roots: &[NodeId]) -> Replica {
        let disk = Disk::new(roots.len());
        let entries = roots.iter().zip(disk.roots()).map(|(node, inode)| (*node, Entry::new(inode, NodeKind::Directory)));
        let table = Table {
            entries: entries.collect(),
            parents: BTreeMap::new(),
            applied: OpSeq::ZERO,
            wanted: BTreeSet::new(),
            answered: BTreeSet::new(),
            suspects: BTreeSet::new(),
            consistent_at: None,
            gap_open: false,
            resync_running: false,
            intent: None,
            unplaced: Vec::new(),
            unsettled: BTreeMap::new(),
            source_boot: None,
            buried: BTreeMap::new(),
            unproven: Vec::new(),
        };
        Replica {
            roots: roots.to_vec(),
            marked: (table.clone(), disk.clone()),
            disk,
            table,
            redo: Redo::Done,
            fresh_wants: Vec::new(),
            half_wanted: BTreeSet::new(),
            listings: BTreeMap::new(),
            clone_origins: BTreeSet::new(),
            compared: None,
            differs: Vec::new(),
            forgets_intents: false,
            trusts_patches: false,
            forgets_unproven: false,
            patches: 0,
            refused: 0,
            unproven: 0,
        }
    }

    pub fn applied(&self) -> OpSeq {
        self.table.applied
    }
    pub fn is_consistent(&self) -> bool {
        let t = &self.table;
        t.consistent_at.is_some() && !t.gap_open && !t.resync_running && t.wanted.is_empty()
    }
    /// In words, for a failure.
    pub fn worth(&self) -> String {
        let Table { applied, consistent_at, gap_open, resync_running, wanted, .. } = &self.table;
        let wanted = crate::trace::short(wanted);
        format!(
            "applied {applied}, consistent at {consistent_at:?}, gap {gap_open}, resync {resync_running}, wanted {wanted}, {:?}",
            self.redo
        )
    }
    pub fn is_redoing(&self) -> bool {
        self.redo != Redo::Done
    }
    pub fn take_wants(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.fresh_wants)
    }

    pub fn take_differs(&mut self) -> Vec<Differs> {
        std::mem::take(&mut self.differs)
    }

    fn careful(&self) -> bool {
        self.is_redoing() || self.table.resync_running || self.table.gap_open || !self.table.wanted.is_empty()
    }

    pub fn apply(&mut self, item: &Item) {
        if item.seq <= self.table.applied {
            return;
        }
        assert_eq!(item.seq, self.table.applied.next(), "the stream has a hole");
        self.execute(&item.operation, item.seq);
        self.table.unsettled.extend(item.operation.changed_nodes().map(|node| (node, item.seq)));
        self.table.applied = item.seq;
        if matches!(item.operation, Operation::Collapse { .. } | Operation::Insert { .. }) {
            self.mark();
        }
        self.end_redo_if_reached();
    }

    fn execute(&mut self, operation: &Operation, seq: OpSeq) {
        use Operation::*;
        self.note_for_unproven(operation);
        match operation {
            Patch { .. } => self.patch(operation),
            Write { .. } | Zero { .. } | Punch { .. } | Allocate { .. } | Truncate { .. } | MirrorData { .. } | MirrorHole { .. } => {
                self.change_content(operation);
            }
            MirrorDigests { .. } => self.compare_digests(seq, operation),
            Collapse { node, .. } | Insert { node, .. } => self.shift(seq, *node, operation),
            CloneRange { origin, origin_offset, node, offset, len } => {
                self.clone_range(*origin, origin_offset.0 as usize, *node, offset.0 as usize, len.0 as usize);
            }
            SetMode { node, mode } => self.attribute(*node, |body| body.mode = *mode),
            SetXattr { node, name, value } => self.attribute(*node, |body| drop(body.xattrs.insert(name.clone(), value.clone()))),
            RemoveXattr { node, name } => self.attribute(*node, |body| drop(body.xattrs.remove(name))),
            SetOwner { node, owner, group } => self.attribute(*node, |body| (body.owner, body.group) = (*owner, *group)),
            SetTimes { node, modified, .. } => {
                self.attribute(*node, |_| {});
                self.note_time(*node, *modified);
            }
            SetFlags { node, .. } | SetProject { node, .. } => self.attribute(*node, |_| {}),
            MirrorNode { .. } => self.mirror_node(operation),
            Marker(marker) => self.mark_state(marker, seq),
            Check(check) => self.check(check),
            Forget { node } => self.forget(*node),
            name => self.execute_name(name),
        }
    }

    fn attribute(&mut self, node: NodeId, change: impl FnOnce(&mut Body)) {
        if let Some(inode) = self.need(node) {
            change(self.disk.body(inode));
        }
    }

    /// Times are set at the end of a segment, when our own work does not change them any more.
    fn note_time(&mut self, node: NodeId, modified: Option<Timestamp>) {
        if let Some(entry) = self.table.entries.get_mut(&node) {
            entry.modified = modified.or(entry.modified);
            self.disk.touched.insert(entry.inode);
        }
    }

    pub fn set_due_times(&mut self) {
        if self.disk.touched.is_empty() {
            return;
        }
        let due = std::mem::take(&mut self.disk.touched);
        for entry in self.table.entries.values() {
            if let Some(modified) = entry.modified
                && due.contains(&entry.inode)
                && self.disk.has(entry.inode)
            {
                self.disk.body(entry.inode).modified = modified;
            }
        }
    }

    fn alive(&self, node: NodeId) -> Option<Inode> {
        self.table.entries.get(&node).map(|entry| entry.inode).filter(|inode| self.disk.has(*inode))
    }

    fn need(&mut self, node: NodeId) -> Option<Inode> {
        let inode = self.alive(node);
        if inode.is_none() {
            self.missing(node);
        }
        inode
    }

    fn need_kind(&mut self, node: NodeId, kind: NodeKind) -> Option<Inode> {
        if self.table.entries.get(&node).is_some_and(|entry| entry.kind != kind) {
            self.want(node);
            return None;
        }
        self.need(node)
    }

    fn want(&mut self, node: NodeId) {
        if self.table.wanted.insert(node) {
            self.half_wanted.remove(&node);
            self.table.answered.remove(&node);
            self.fresh_wants.push(node);
        }
    }

    fn answered(&mut self, node: NodeId) {
        let was_suspect = self.table.suspects.contains(&node);
        if self.satisfied(node) || was_suspect {
            self.table.answered.insert(node);
        }
    }

    fn satisfied(&mut self, node: NodeId) -> bool {
        self.table.suspects.remove(&node);
        let was_wanted = self.table.wanted.remove(&node);
        if was_wanted {
            self.fresh_wants.retain(|fresh| *fresh != node);
        }
        was_wanted
    }

    /// A node that lost a name may be gone, as it should be; but it may as well have others.
    fn is_rightly_gone(&self, node: NodeId) -> bool {
        self.table.entries.get(&node).is_some_and(|entry| entry.unlinked) && self.alive(node).is_none()
    }

    fn lies_in_limbo_only(&self, inode: Inode) -> bool {
        self.disk.limbo.contains(&inode) && self.disk.links(inode).is_empty()
    }

    fn missing(&mut self, node: NodeId) {
        if self.is_rightly_gone(node) {
            return;
        }
        if self.is_redoing() {
            self.table.suspects.insert(node);
        } else {
            self.want(node);
        }
    }

    fn lost_a_name(&mut self, node: NodeId) {
        if let Some(entry) = self.table.entries.get_mut(&node) {
            entry.unlinked = true;
        }
    }

    fn insert(&mut self, node: NodeId, inode: Inode, kind: NodeKind, unnamed: bool) {
        self.table.entries.insert(node, Entry { unnamed, ..Entry::new(inode, kind) });
    }
}

impl Nodes for Replica {
    type Id = Inode;
    fn roots(&self) -> Vec<Inode> {
        self.disk.roots()
    }
    fn body(&self, inode: Inode) -> Option<&Body> {
        self.disk.look(inode)
    }
    fn entries(&self, inode: Inode) -> Option<&BTreeMap<Vec<u8>, Inode>> {
        self.disk.names(inode)
    }
}
