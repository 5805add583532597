//! Names are "make it so": afterwards a name leads to the node that the stream says, or to nothing; whatever stood there goes to limbo.

use super::disk::OUR_TIME;
use super::{Body, Inode, Replica};
use standin_model::*;
use std::collections::BTreeSet;

/// Of an inode that is made for a name, until its `MirrorNode` comes.
pub(super) const PLACEHOLDER: Attributes = Attributes { mode: 0o600, owner: 0, group: 0, modified: OUR_TIME };

impl Replica {
    pub(super) fn execute_name(&mut self, operation: &Operation) {
        use Operation::*;
        match operation {
            Create { parent, name, node, attributes } => self.create(*parent, name, *node, Body::new(NodeKind::File, *attributes)),
            Mkdir { parent, name, node, attributes } => self.create(*parent, name, *node, Body::new(NodeKind::Directory, *attributes)),
            Symlink { parent, name, node, target, attributes } => {
                self.create(*parent, name, *node, Body::new(NodeKind::Symlink, *attributes).leading_to(0, target))
            }
            Mknod { parent, name, node, kind, device, attributes } => {
                self.create(*parent, name, *node, Body::new(*kind, *attributes).leading_to(*device, b""))
            }
            CreateUnnamed { node, attributes } => self.create_unnamed(*node, *attributes),
            Link { parent, name, node } => self.link(*parent, name, *node),
            Unlink { parent, name, node } | Rmdir { parent, name, node } => self.unname(*parent, name, *node),
            Rename { parent, name, node, new_parent, new_name, mode, victim } => {
                self.rename((*parent, name), *node, (*new_parent, new_name), *mode, *victim)
            }
            MirrorDirectory { node, entries, first, last } => self.list(*node, entries, *first, *last),
            other => panic!("nobody makes {other:?}"),
        }
    }

    fn create(&mut self, parent: NodeId, name: &Name, node: NodeId, body: Body) {
        let attributes = body.attributes();
        if self.table.entries.get(&node).is_some_and(|entry| entry.unlinked) {
            self.table.entries.remove(&node);
            self.table.suspects.remove(&node);
            self.table.unplaced.retain(|(missing, _)| *missing != node);
        }
        let inode = self.named(parent, name, node, body);
        self.set_attributes(node, inode, attributes);
    }

    fn create_unnamed(&mut self, node: NodeId, attributes: Attributes) {
        let inode = self.alive(node).unwrap_or_else(|| self.make_in_limbo(node, Body::new(NodeKind::File, attributes), true));
        self.set_attributes(node, inode, attributes);
    }

    fn set_attributes(&mut self, node: NodeId, inode: Inode, attributes: Attributes) {
        self.disk.modify(inode).set_attributes(Attributes { modified: OUR_TIME, ..attributes });
        self.note_time(node, Some(attributes.modified));
    }

    pub(super) fn make_in_limbo(&mut self, node: NodeId, body: Body, unnamed: bool) -> Inode {
        let kind = body.kind;
        let inode = self.disk.make(body);
        self.disk.limbo.insert(inode);
        self.insert(node, inode, kind, unnamed);
        inode
    }

    fn named(&mut self, parent: NodeId, name: &Name, node: NodeId, body: Body) -> Inode {
        let directory = self.need_kind(parent, NodeKind::Directory);
        if let Some(inode) = self.alive(node) {
            if let Some(directory) = directory {
                self.place(parent, directory, name, node, inode);
            }
            return inode;
        }
        let Some(directory) = directory else { return self.make_in_limbo(node, body, false) };
        let kind = body.kind;
        self.disk.to_limbo(directory, name.as_bytes());
        let inode = self.disk.make(body);
        self.disk.link(directory, name.as_bytes(), inode);
        self.insert(node, inode, kind, false);
        self.placed(parent, name, node);
        inode
    }

    fn place(&mut self, parent: NodeId, directory: Inode, name: &Name, node: NodeId, inode: Inode) {
        if self.disk.lookup(directory, name.as_bytes()) == Some(inode) {
            return self.placed(parent, name, node);
        }
        self.disk.to_limbo(directory, name.as_bytes());
        if self.disk.names(inode).is_some() {
            if self.disk.is_below(directory, inode) {
                self.cut_loop(parent, inode);
            }
            self.detach(inode);
        }
        self.disk.link(directory, name.as_bytes(), inode);
        self.placed(parent, name, node);
    }

    /// A directory has one name, which it loses here, in limbo or out of it.
    fn detach(&mut self, inode: Inode) {
        self.disk.limbo.remove(&inode);
        for (directory, name) in self.disk.links(inode) {
            self.disk.unlink(directory, &name);
        }
    }

    /// The new parent lies below the directory that is to move into it. One link of the chain is stale: where the disk has it otherwise than the
    /// stream, that is the one; otherwise the lowest is cut, and its directory is wanted since it may have been right.
    fn cut_loop(&mut self, parent: NodeId, inode: Inode) {
        let mut below = parent;
        while let Some(above) = self.table.parents.get(&below).copied() {
            let (Some(at), Some(expected)) = (self.alive(below), self.alive(above)) else { break };
            if at == inode {
                break;
            }
            if self.disk.above(at) != Some(expected) {
                return self.cut(at);
            }
            below = above;
        }
        let Some(at) = self.alive(parent) else { return };
        let above = self.disk.above(at).expect("it lies below");
        let holder = self.table.entries.iter().find(|(_, entry)| entry.inode == above).map(|(node, _)| *node);
        self.cut(at);
        let root = self.roots.iter().copied().find(|root| root.volume == parent.volume);
        holder.or(root).into_iter().for_each(|node| self.missing(node));
    }

    fn cut(&mut self, directory: Inode) {
        self.detach(directory);
        self.disk.limbo.insert(directory);
    }

    fn placed(&mut self, parent: NodeId, name: &Name, node: NodeId) {
        let entry = self.table.entries.get_mut(&node).expect("placed nodes are known");
        if entry.unnamed {
            self.disk.limbo.remove(&entry.inode);
        }
        (entry.unlinked, entry.unnamed) = (false, false);
        if entry.kind == NodeKind::Directory {
            self.table.parents.insert(node, parent);
        }
        if let Some(seen) = self.listings.get_mut(&parent) {
            seen.insert(name.as_bytes().to_vec());
        }
    }

    fn link(&mut self, parent: NodeId, name: &Name, node: NodeId) {
        let directory = self.need_kind(parent, NodeKind::Directory);
        match (directory, self.need(node)) {
            (Some(directory), Some(inode)) => self.place(parent, directory, name, node, inode),
            (_, None) => self.unplaced(node, parent),
            _ => {}
        }
    }

    /// A name could not be given because its node is missing: when the node comes, only a listing of the directory can name it.
    fn unplaced(&mut self, node: NodeId, parent: NodeId) {
        if self.is_redoing() {
            self.table.unplaced.push((node, parent));
        } else {
            self.want(parent);
        }
    }

    fn unname(&mut self, parent: NodeId, name: &Name, node: NodeId) {
        self.guard_clone_origin(node);
        if let Some(directory) = self.need_kind(parent, NodeKind::Directory)
            && let Some(found) = self.disk.lookup(directory, name.as_bytes())
        {
            let expected = self.table.entries.get(&node).is_some_and(|entry| entry.inode == found);
            let full = self.disk.names(found).is_some_and(|names| !names.is_empty());
            if !expected || full || self.careful() {
                self.disk.to_limbo(directory, name.as_bytes());
            } else {
                self.disk.unlink(directory, name.as_bytes());
                self.disk.reap(found);
            }
        }
        self.lost_a_name(node);
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        self.guard_clone_origin(node);
        self.satisfied(node);
        self.table.answered.remove(&node);
        self.table.unplaced.retain(|(missing, _)| *missing != node);
        self.listings.remove(&node);
        if let Some(entry) = self.table.entries.get(&node)
            && entry.unnamed
            && !self.is_redoing()
        {
            self.disk.limbo.remove(&entry.inode);
            self.disk.reap(entry.inode);
        }
        self.table.entries.remove(&node);
        self.table.parents.remove(&node);
    }

    fn rename(&mut self, from: (NodeId, &Name), node: NodeId, to: (NodeId, &Name), mode: RenameMode, victim: Option<NodeId>) {
        match (mode, victim) {
            (RenameMode::Exchange, Some(victim)) => self.exchange(from, node, to, victim),
            (RenameMode::Exchange, None) => {
                self.want(from.0);
                self.want(to.0);
            }
            (RenameMode::Whiteout, _) => {
                self.replace(from, node, to, victim);
                self.leave_whiteout(from);
            }
            _ => self.replace(from, node, to, victim),
        }
    }

    fn replace(&mut self, from: (NodeId, &Name), node: NodeId, to: (NodeId, &Name), victim: Option<NodeId>) {
        victim.into_iter().for_each(|victim| self.guard_clone_origin(victim));
        let old = self.need_kind(from.0, NodeKind::Directory);
        let new = self.need_kind(to.0, NodeKind::Directory);
        let inode = self.need(node);
        let same_name = from == to;
        match (inode, new) {
            (Some(inode), Some(new)) => {
                let target = self.disk.lookup(new, to.1.as_bytes()).filter(|found| *found != inode);
                let expected = victim.and_then(|victim| self.table.entries.get(&victim)).map(|entry| entry.inode);
                if let Some(target) = target {
                    let full = self.disk.names(target).is_some_and(|names| !names.is_empty());
                    let destroy = Some(target) == expected && !full && !self.careful();
                    self.disk.to_limbo(new, to.1.as_bytes());
                    if destroy {
                        self.disk.limbo.remove(&target);
                        self.disk.reap(target);
                    }
                }
                if let Some(old) = old.filter(|_| !same_name) {
                    match self.disk.lookup(old, from.1.as_bytes()) {
                        // A directory's only name is needed to see what it lies below; placing takes it away.
                        Some(found) if found == inode && self.disk.names(inode).is_none() => drop(self.disk.unlink(old, from.1.as_bytes())),
                        Some(found) if found == inode => {}
                        _ => self.disk.to_limbo(old, from.1.as_bytes()),
                    }
                }
                self.place(to.0, new, to.1, node, inode);
            }
            (_, new) => {
                old.into_iter().for_each(|old| self.disk.to_limbo(old, from.1.as_bytes()));
                new.into_iter().for_each(|new| self.disk.to_limbo(new, to.1.as_bytes()));
                if inode.is_none() {
                    self.unplaced(node, to.0);
                }
            }
        }
        victim.filter(|victim| *victim != node).into_iter().for_each(|victim| self.lost_a_name(victim));
    }

    fn exchange(&mut self, from: (NodeId, &Name), node: NodeId, to: (NodeId, &Name), other: NodeId) {
        let old = self.need_kind(from.0, NodeKind::Directory);
        let new = self.need_kind(to.0, NodeKind::Directory);
        let (inode, other_inode) = (self.need(node), self.need(other));
        if let (Some(old), Some(new), Some(inode), Some(other_inode)) = (old, new, inode, other_inode)
            && self.disk.lookup(old, from.1.as_bytes()) == Some(inode)
            && self.disk.lookup(new, to.1.as_bytes()) == Some(other_inode)
        {
            self.disk.unlink(old, from.1.as_bytes());
            self.disk.unlink(new, to.1.as_bytes());
            self.disk.link(new, to.1.as_bytes(), inode);
            self.disk.link(old, from.1.as_bytes(), other_inode);
            self.placed(to.0, to.1, node);
            return self.placed(from.0, from.1, other);
        }
        match (new, inode) {
            (Some(new), Some(inode)) => self.place(to.0, new, to.1, node, inode),
            (_, None) => self.unplaced(node, to.0),
            _ => {}
        }
        match (old, other_inode) {
            (Some(old), Some(inode)) => self.place(from.0, old, from.1, other, inode),
            (_, None) => self.unplaced(other, from.0),
            _ => {}
        }
    }

    fn leave_whiteout(&mut self, (parent, name): (NodeId, &Name)) {
        let Some(directory) = self.need_kind(parent, NodeKind::Directory) else { return };
        if self.disk.lookup(directory, name.as_bytes()).is_none() {
            let inode = self.disk.make(Body::new(NodeKind::CharDevice, Attributes { mode: 0, ..PLACEHOLDER }));
            self.disk.link(directory, name.as_bytes(), inode);
        }
        if let Some(seen) = self.listings.get_mut(&parent) {
            seen.insert(name.as_bytes().to_vec());
        }
    }

    fn list(&mut self, node: NodeId, entries: &[DirectoryEntry], first: bool, last: bool) {
        let Some(directory) = self.need_kind(node, NodeKind::Directory) else { return };
        if first {
            self.listings.insert(node, BTreeSet::new());
        }
        entries.iter().for_each(|entry| self.entry(node, entry));
        if !last {
            return;
        }
        let Some(listed) = self.listings.remove(&node) else {
            if self.is_redoing() {
                self.table.suspects.insert(node);
            } else {
                self.want(node);
            }
            return;
        };
        let here: Vec<Vec<u8>> = self.disk.names(directory).into_iter().flatten().map(|(name, _)| name.clone()).collect();
        here.iter().filter(|name| !listed.contains(*name)).for_each(|name| self.disk.to_limbo(directory, name));
        self.table.unplaced.retain(|(_, parent)| *parent != node);
        self.table.suspects.remove(&node);
        if self.half_wanted.remove(&node) {
            self.satisfied(node);
        }
    }

    fn entry(&mut self, parent: NodeId, entry: &DirectoryEntry) {
        if self.table.entries.get(&entry.node).is_some_and(|known| known.kind != entry.kind) {
            self.table.entries.remove(&entry.node);
        }
        let known = self.table.entries.contains_key(&entry.node);
        let existed = self.alive(entry.node).is_some();
        let body = Body::new(entry.kind, PLACEHOLDER).leading_to(entry.device, &entry.target);
        self.named(parent, &entry.name, entry.node, body);
        if let Some(listed) = self.listings.get_mut(&parent) {
            listed.insert(entry.name.as_bytes().to_vec());
        }
        if !existed {
            self.table.entries.get_mut(&entry.node).expect("named").hollow = true;
            if known {
                self.missing(entry.node);
            }
        }
    }
}
