//! A virtual replica: the rules of apply in their shortest form, on nodes in memory.
//!
//! It keeps the contract that the design states: names are "make it so", unknown nodes are wanted and never an error, and
//! nodes that lose their last name during a resync wait in limbo until the next consistent point.

use crate::source::{Node, Nodes, write_at};
use standin_model::*;
use std::collections::{BTreeMap, BTreeSet};

pub struct Replica {
    pub nodes: Nodes,
    pub root: NodeId,
    pub wants: BTreeSet<NodeId>,
    pub resyncing: bool,
    pub consistent_at: Option<OpSeq>,
    pub applied: OpSeq,
    listing: Option<(NodeId, BTreeSet<Vec<u8>>)>,
}

impl Replica {
    pub fn new(root: NodeId) -> Replica {
        let mut replica = Replica {
            nodes: Nodes::default(),
            root,
            wants: BTreeSet::new(),
            resyncing: false,
            consistent_at: None,
            applied: OpSeq::ZERO,
            listing: None,
        };
        replica.place(root, NodeKind::Directory);
        replica
    }

    fn place(&mut self, id: NodeId, kind: NodeKind) {
        let directory = (kind == NodeKind::Directory).then(BTreeMap::new);
        let fresh = Node { directory, mode: 0, content: vec![], xattrs: BTreeMap::new(), changed: Timestamp(0) };
        self.nodes.0.entry(id).or_insert(fresh);
    }

    fn node(&mut self, id: NodeId) -> Option<&mut Node> {
        if !self.nodes.0.contains_key(&id) {
            self.wants.insert(id);
        }
        self.nodes.0.get_mut(&id)
    }

    fn entries(&mut self, id: NodeId) -> Option<&mut BTreeMap<Vec<u8>, NodeId>> {
        self.node(id)?.directory.as_mut()
    }

    fn holders(&self, id: NodeId) -> Vec<(NodeId, Vec<u8>)> {
        let names = |(parent, node): (&NodeId, &Node)| {
            let named = node.directory.iter().flatten().filter(|(_, child)| **child == id);
            named.map(|(name, _)| (*parent, name.clone())).collect::<Vec<_>>()
        };
        self.nodes.0.iter().flat_map(names).collect()
    }

    fn unname(&mut self, parent: NodeId, name: &[u8], expected: Option<NodeId>) {
        let Some(entries) = self.nodes.0.get_mut(&parent).and_then(|n| n.directory.as_mut()) else { return };
        if expected.is_none_or(|e| entries.get(name) == Some(&e)) {
            let gone = entries.remove(name);
            gone.into_iter().for_each(|id| self.reap(id));
        }
    }

    fn reap(&mut self, id: NodeId) {
        if !self.resyncing && id != self.root && self.holders(id).is_empty() {
            self.nodes.0.remove(&id);
        }
    }

    /// Gives `id` a name; a directory loses the one it had, since it can have only one.
    fn name(&mut self, parent: NodeId, name: &Name, id: NodeId) {
        if self.nodes.0.get(&id).is_some_and(|n| n.directory.is_some()) {
            for (old, old_name) in self.holders(id) {
                self.nodes.0.get_mut(&old).and_then(|n| n.directory.as_mut()).map(|d| d.remove(&old_name));
            }
        }
        let Some(entries) = self.entries(parent) else { return };
        let before = entries.insert(name.as_bytes().to_vec(), id);
        before.filter(|b| *b != id).into_iter().for_each(|b| self.reap(b));
        if let Some((listed, seen)) = &mut self.listing {
            if *listed == parent {
                seen.insert(name.as_bytes().to_vec());
            }
        }
    }

    pub fn apply(&mut self, item: &Item) {
        assert_eq!(item.seq, self.applied.next(), "the stream has a hole");
        self.applied = item.seq;
        self.execute(&item.operation, item.seq);
    }

    fn execute(&mut self, operation: &Operation, seq: OpSeq) {
        use Operation::*;
        match operation {
            Write { node, offset, data } | MirrorData { node, offset, data } => {
                self.content(*node, |c| write_at(c, offset.0 as usize, data));
            }
            Truncate { node, size } => self.content(*node, |c| c.resize(size.0 as usize, 0)),
            Collapse { node, offset, len } => self.content(*node, |c| {
                let end = c.len().min((offset.0 + len.0) as usize);
                c.drain(end.min(offset.0 as usize)..end);
            }),
            Insert { node, offset, len } => self.content(*node, |c| {
                let at = c.len().min(offset.0 as usize);
                c.splice(at..at, vec![0; len.0 as usize]);
            }),
            MirrorHole { node, offset, len } => self.content(*node, |c| {
                let end = c.len().min((offset.0 + len.0) as usize);
                c[end.min(offset.0 as usize)..end].fill(0);
            }),
            SetMode { node, mode } => {
                self.node(*node).map(|n| n.mode = *mode);
            }
            SetXattr { node, name, value } => {
                self.node(*node).map(|n| n.xattrs.insert(name.clone(), value.clone()));
            }
            Marker(marker) => self.mark(marker, seq),
            Forget { node } => self.wants.retain(|w| w != node),
            SetTimes { .. } => {}
            MirrorNode { node, kind, attributes, size, xattrs, .. } => {
                self.place(*node, *kind);
                self.wants.remove(node);
                let Some(n) = self.node(*node) else { return };
                n.mode = attributes.mode;
                n.xattrs = xattrs.iter().cloned().collect();
                n.content.resize(size.0 as usize, 0);
            }
            other => self.execute_name(other),
        }
    }

    fn content(&mut self, id: NodeId, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(node) = self.node(id) {
            change(&mut node.content);
        }
    }

    fn execute_name(&mut self, operation: &Operation) {
        use Operation::*;
        match operation {
            Create { parent, name, node, attributes } => self.create(*parent, name, *node, NodeKind::File, attributes.mode),
            Mkdir { parent, name, node, attributes } => self.create(*parent, name, *node, NodeKind::Directory, attributes.mode),
            Link { parent, name, node } => {
                if self.node(*node).is_some() {
                    self.name(*parent, name, *node);
                }
            }
            Unlink { parent, name, node } | Rmdir { parent, name, node } => self.unname(*parent, name.as_bytes(), Some(*node)),
            Rename { parent, name, node, new_parent, new_name, mode, .. } => {
                self.rename((*parent, name), *node, (*new_parent, new_name), *mode)
            }
            MirrorDirectory { node, entries, first, last } => self.list(*node, entries, *first, *last),
            other => panic!("the workload makes no {other:?}"),
        }
    }

    fn create(&mut self, parent: NodeId, name: &Name, node: NodeId, kind: NodeKind, mode: u32) {
        self.place(node, kind);
        self.name(parent, name, node);
        if let Some(n) = self.nodes.0.get_mut(&node) {
            n.mode = mode;
        }
    }

    fn rename(&mut self, from: (NodeId, &Name), node: NodeId, to: (NodeId, &Name), mode: RenameMode) {
        let there = |s: &Self, (parent, name): (NodeId, &Name)| {
            s.nodes.0.get(&parent).and_then(|n| n.directory.as_ref()?.get(name.as_bytes()).copied())
        };
        let other = there(self, to);
        let known_target = self.nodes.0.contains_key(&to.0);
        if there(self, from) == Some(node) {
            self.nodes.0.get_mut(&from.0).and_then(|n| n.directory.as_mut()).map(|d| d.remove(from.1.as_bytes()));
        }
        if !known_target || self.node(node).is_none() {
            self.wants.insert(to.0);
            return;
        }
        if let (RenameMode::Exchange, Some(other)) = (mode, other) {
            // Its new name comes first, so that it is never without one.
            self.nodes.0.get_mut(&to.0).and_then(|n| n.directory.as_mut()).map(|d| d.remove(to.1.as_bytes()));
            self.name(from.0, from.1, other);
        }
        self.name(to.0, to.1, node);
    }

    fn list(&mut self, id: NodeId, entries: &[DirectoryEntry], first: bool, last: bool) {
        if first {
            self.listing = Some((id, BTreeSet::new()));
        }
        for entry in entries {
            self.place(entry.node, entry.kind);
            self.name(id, &entry.name, entry.node);
        }
        let Some((_, seen)) = self.listing.take_if(|_| last) else { return };
        let stale: Vec<Vec<u8>> = self.entries(id).map(|d| d.keys().filter(|k| !seen.contains(*k)).cloned().collect()).unwrap_or_default();
        stale.iter().for_each(|name| self.unname(id, name, None));
    }

    fn mark(&mut self, marker: &Marker, seq: OpSeq) {
        match marker {
            Marker::Gap { .. } => self.consistent_at = None,
            Marker::ResyncStarted => self.resyncing = true,
            Marker::Consistent => {
                self.resyncing = false;
                let ids: Vec<NodeId> = self.nodes.0.keys().copied().collect();
                // Purging a directory frees its children, so go on until nothing changes.
                let mut before = 0;
                while before != self.nodes.0.len() {
                    before = self.nodes.0.len();
                    ids.iter().for_each(|id| {
                        if self.nodes.0.contains_key(id) {
                            self.reap(*id)
                        }
                    });
                }
                self.consistent_at = self.wants.is_empty().then_some(seq);
            }
            _ => {}
        }
    }
}
