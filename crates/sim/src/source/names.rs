//! What the workload does to names.

use super::{Node, Source};
use crate::random::Random;
use crate::tree::Body;
use standin_model::*;
use std::collections::BTreeMap;

fn name_of(bytes: &[u8]) -> Name {
    Name::new(bytes.to_vec()).expect("the workload makes good names")
}

impl Source {
    pub(super) fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.disks.nodes.get(&parent)?.directory.as_ref()?.get(name).copied()
    }

    fn some_name(random: &mut Random) -> Vec<u8> {
        format!("n{}", random.below(12)).into_bytes()
    }

    /// Now and then that of a temporary file, for something that has or had another.
    fn name_for(&self, random: &mut Random) -> Vec<u8> {
        if self.excludes() && random.one_in(8) { format!("t{}", random.below(3)).into_bytes() } else { Self::some_name(random) }
    }

    pub(super) fn put(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        if let Some(entries) = self.modify(parent).and_then(|p| p.directory.as_mut()) {
            entries.insert(name.to_vec(), node);
        }
    }

    fn take(&mut self, parent: NodeId, name: &[u8]) {
        if let Some(entries) = self.modify(parent).and_then(|p| p.directory.as_mut()) {
            entries.remove(name);
        }
    }

    pub(super) fn new_node(&mut self, volume: VolumeId, kind: NodeKind, attributes: Attributes) -> NodeId {
        let node = self.new_id(volume);
        let directory = (kind == NodeKind::Directory).then(BTreeMap::new);
        self.disks.nodes.insert(node, Node { directory, body: Body::new(kind, attributes), changed: self.clock });
        node
    }

    pub(super) fn create(&mut self, random: &mut Random) {
        let Some(parent) = random.pick(&self.directories()) else { return };
        if self.excludes() && random.one_in(6) {
            return self.create_temporary(parent, random);
        }
        let name = Self::some_name(random);
        if self.lookup(parent, &name).is_some() {
            return;
        }
        let (mode, owner) = (0o600 + random.below(64) as u32, random.below(4) as u32);
        let attributes = Attributes { mode, owner, group: owner, modified: self.clock };
        let volume = parent.volume;
        let wire = name_of(&name);
        match random.below(12) {
            0..=3 => {
                let node = self.new_node(volume, NodeKind::Directory, attributes);
                self.put(parent, &name, node);
                self.tell_late(Operation::Mkdir { parent, name: wire, node, attributes }, random);
            }
            4 => {
                let node = self.new_node(volume, NodeKind::Symlink, attributes);
                let target = format!("to{}", random.below(9)).into_bytes();
                self.disks.nodes.get_mut(&node).expect("new").body.target = target.clone();
                self.put(parent, &name, node);
                self.tell(Operation::Symlink { parent, name: wire, node, target, attributes });
            }
            5 => {
                let kind = if random.one_in(2) { NodeKind::Fifo } else { NodeKind::BlockDevice };
                let device = if kind == NodeKind::Fifo { 0 } else { 7 << 32 | random.below(9) };
                let node = self.new_node(volume, kind, attributes);
                self.disks.nodes.get_mut(&node).expect("new").body.device = device;
                self.put(parent, &name, node);
                self.tell(Operation::Mknod { parent, name: wire, node, kind, device, attributes });
            }
            6 => {
                let node = self.new_node(volume, NodeKind::File, attributes);
                self.open.insert(node);
                self.disks.unnamed.insert(node);
                self.tell(Operation::CreateUnnamed { node, attributes });
            }
            _ => {
                let node = self.new_node(volume, NodeKind::File, attributes);
                self.put(parent, &name, node);
                self.tell_late(Operation::Create { parent, name: wire, node, attributes }, random);
            }
        }
    }

    /// Another process finds the new node before its announcement is in the ring.
    pub(super) fn use_early(&mut self, node: NodeId, random: &mut Random) {
        if self.disks.nodes[&node].directory.is_none() {
            return self.write_to(node, random);
        }
        let name = Self::some_name(random);
        let attributes = Attributes { mode: 0o640, owner: 0, group: 0, modified: self.clock };
        let child = self.new_node(node.volume, NodeKind::File, attributes);
        self.put(node, &name, child);
        self.tell(Operation::Create { parent: node, name: name_of(&name), node: child, attributes });
    }

    pub(super) fn remove(&mut self, random: &mut Random) {
        let Some((parent, name, node)) = self.pick_name(random) else { return };
        let directory = self.disks.nodes[&node].directory.as_ref().map(|entries| entries.is_empty());
        if directory == Some(false) {
            return;
        }
        self.take(parent, &name);
        let name = name_of(&name);
        self.tell(if directory.is_some() { Operation::Rmdir { parent, name, node } } else { Operation::Unlink { parent, name, node } });
        self.reap(node);
    }

    pub(super) fn link(&mut self, random: &mut Random) {
        let linkable = |s: &Source, node: NodeId| s.disks.nodes[&node].directory.is_none() && !s.is_whiteout(node);
        let Some(parent) = random.pick(&self.directories()) else { return };
        let unnamed: Vec<NodeId> = self.disks.unnamed.iter().copied().filter(|n| self.disks.nodes.contains_key(n)).collect();
        let any = random.pick(&self.names()).map(|(_, _, node)| node);
        let Some(node) =
            random.pick(&unnamed).filter(|_| random.one_in(2)).or(any).filter(|n| n.volume == parent.volume && linkable(self, *n))
        else {
            return;
        };
        let name = self.name_for(random);
        if self.lookup(parent, &name).is_some() {
            return;
        }
        self.disks.unnamed.remove(&node);
        self.touch(node);
        self.put(parent, &name, node);
        self.tell(Operation::Link { parent, name: name_of(&name), node });
    }

    pub(super) fn is_below(&self, node: NodeId, ancestor: NodeId) -> bool {
        let mut todo = vec![ancestor];
        while let Some(at) = todo.pop() {
            if at == node {
                return true;
            }
            todo.extend(self.disks.nodes.get(&at).and_then(|n| n.directory.as_ref()).into_iter().flat_map(|d| d.values().copied()));
        }
        false
    }

    pub(super) fn rename(&mut self, random: &mut Random) {
        let Some((parent, name, node)) = self.pick_name(random) else { return };
        let Some(new_parent) = random.pick(&self.directories()) else { return };
        let mut new_name = self.name_for(random);
        if self.is_temporary(&new_name) && self.disks.nodes[&node].directory.is_some() {
            new_name = Self::some_name(random);
        }
        let victim = self.lookup(new_parent, &new_name);
        if new_parent.volume != node.volume
            || self.is_below(new_parent, node)
            || victim == Some(node)
            || (parent, &name) == (new_parent, &new_name)
        {
            return;
        }
        let mode = match (random.below(6), victim) {
            (0..=1, Some(victim)) if !self.is_below(parent, victim) => RenameMode::Exchange,
            (2, None) => RenameMode::NoReplace,
            (3, _) if self.disks.nodes[&node].directory.is_none() => RenameMode::Whiteout,
            _ => RenameMode::Replace,
        };
        let room = |n: NodeId| self.disks.nodes[&n].directory.as_ref().map(|d| d.is_empty());
        if let (Some(v), true) = (victim, mode != RenameMode::Exchange)
            // A directory replaces only an empty directory, anything else only what is no directory.
            && (room(node).is_some() != room(v).is_some() || room(v) == Some(false))
        {
            return;
        }
        // What bears the name of a temporary file is one.
        if mode == RenameMode::Exchange && self.is_temporary(&name) && victim.and_then(room).is_some() {
            return;
        }
        self.take(parent, &name);
        self.put(new_parent, &new_name, node);
        self.touch(node);
        if let (Some(v), RenameMode::Exchange) = (victim, mode) {
            self.put(parent, &name, v);
            self.touch(v);
        }
        if mode == RenameMode::Whiteout {
            let attributes = Attributes { mode: 0, owner: 0, group: 0, modified: self.clock };
            let whiteout = self.new_node(node.volume, NodeKind::CharDevice, attributes);
            self.put(parent, &name, whiteout);
        }
        let (name, new_name) = (name_of(&name), name_of(&new_name));
        self.tell(Operation::Rename { parent, name, node, new_parent, new_name, mode, victim });
        if let (Some(v), true) = (victim, mode != RenameMode::Exchange) {
            self.reap(v);
        }
    }
}
