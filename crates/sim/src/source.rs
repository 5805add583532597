//! A virtual source: a tree of nodes that a random workload changes, one whole operation at a time, and a ring that tells of each.
//!
//! It is deliberately simple and shares no code with the product: it is the oracle.

use standin_agent::pump::Captured;
use standin_model::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

pub type Tree = BTreeMap<String, Thing>;

/// What a path shows: comparable between source and replica, free of ids and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thing {
    pub directory: bool,
    pub mode: u32,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Number of names; tells hard links from copies.
    pub names: usize,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub directory: Option<BTreeMap<Vec<u8>, NodeId>>,
    pub mode: u32,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub changed: Timestamp,
}

/// Nodes by id; shared by the virtual source and the virtual replica.
#[derive(Clone, Debug, Default)]
pub struct Nodes(pub BTreeMap<NodeId, Node>);

impl Nodes {
    pub fn tree(&self, root: NodeId) -> Tree {
        let mut tree = Tree::new();
        let mut names: BTreeMap<NodeId, usize> = BTreeMap::new();
        self.walk(root, String::new(), &mut |_, id| *names.entry(id).or_default() += 1);
        self.walk(root, String::new(), &mut |path, id| {
            let Some(node) = self.0.get(&id) else { return };
            tree.insert(
                path.to_owned(),
                Thing {
                    directory: node.directory.is_some(),
                    mode: node.mode,
                    content: node.content.clone(),
                    xattrs: node.xattrs.clone(),
                    names: names[&id],
                },
            );
        });
        tree
    }

    fn walk(&self, id: NodeId, path: String, visit: &mut dyn FnMut(&str, NodeId)) {
        visit(&path, id);
        let Some(entries) = self.0.get(&id).and_then(|n| n.directory.as_ref()) else { return };
        for (name, child) in entries {
            self.walk(*child, format!("{path}/{}", name.escape_ascii()), visit);
        }
    }
}

/// Splitmix64: small, seedable, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { from.get(self.below(from.len() as u64) as usize) }
    }
}

pub struct Source {
    pub nodes: Nodes,
    pub root: NodeId,
    pub ring: Vec<Captured>,
    pub clock: Timestamp,
    /// The same time, for those on the other side of a thread-safe border.
    pub time: Arc<AtomicI64>,
    next_inode: u64,
    /// Freed inode numbers come back with a new generation, as on a real file system.
    free: Vec<(u64, u32)>,
}

const SECOND: i64 = 1_000_000_000;

impl Source {
    pub fn new() -> Source {
        let root = NodeId { volume: VolumeId(0), subvolume: 0, inode: 2, generation: 0 };
        let clock = Timestamp(1_000 * SECOND);
        let node = Node { directory: Some(BTreeMap::new()), mode: 0o755, content: vec![], xattrs: BTreeMap::new(), changed: clock };
        Source {
            nodes: Nodes(BTreeMap::from([(root, node)])),
            root,
            ring: Vec::new(),
            clock,
            time: Arc::new(AtomicI64::new(clock.0)),
            next_inode: 10,
            free: Vec::new(),
        }
    }

    pub fn tick(&mut self, random: &mut Random) {
        self.clock.0 += random.below(SECOND as u64) as i64;
        self.time.store(self.clock.0, Ordering::Relaxed);
    }

    fn new_id(&mut self) -> NodeId {
        let (inode, generation) = match self.free.pop() {
            Some((inode, generation)) => (inode, generation + 1),
            None => {
                self.next_inode += 1;
                (self.next_inode, 1)
            }
        };
        NodeId { volume: VolumeId(0), subvolume: 0, inode, generation }
    }

    pub fn directories(&self) -> Vec<NodeId> {
        self.nodes.0.iter().filter(|(_, n)| n.directory.is_some()).map(|(id, _)| *id).collect()
    }
    fn files(&self) -> Vec<NodeId> {
        self.nodes.0.iter().filter(|(_, n)| n.directory.is_none()).map(|(id, _)| *id).collect()
    }

    /// Every (parent, name, node) there is.
    fn names(&self) -> Vec<(NodeId, Vec<u8>, NodeId)> {
        let entries = |(id, node): (&NodeId, &Node)| {
            node.directory.iter().flatten().map(|(name, child)| (*id, name.clone(), *child)).collect::<Vec<_>>()
        };
        self.nodes.0.iter().flat_map(entries).collect()
    }

    pub fn tell(&mut self, operation: Operation) {
        let touched = operation.node().into_iter().map(|node| (node, self.clock)).collect();
        self.ring.push(Captured::Operation { operation, touched });
    }

    fn touch(&mut self, node: NodeId) -> Option<&mut Node> {
        let clock = self.clock;
        let node = self.nodes.0.get_mut(&node)?;
        node.changed = clock;
        Some(node)
    }

    /// One random operation of the workload.
    pub fn act(&mut self, random: &mut Random) {
        self.tick(random);
        match random.below(16) {
            0..=2 => self.create(random),
            3..=7 => self.write(random),
            8 => self.truncate(random),
            9 => self.attribute(random),
            10..=11 => self.remove(random),
            12 => self.link(random),
            13 => self.shift(random),
            _ => self.rename(random),
        }
    }

    fn fresh_name(&self, parent: NodeId, random: &mut Random) -> Option<Vec<u8>> {
        let name = format!("n{}", random.below(12)).into_bytes();
        let taken = self.nodes.0.get(&parent)?.directory.as_ref()?.contains_key(&name);
        (!taken).then_some(name)
    }

    fn put(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        if let Some(entries) = self.touch(parent).and_then(|p| p.directory.as_mut()) {
            entries.insert(name.to_vec(), node);
        }
    }

    fn create(&mut self, random: &mut Random) {
        let Some(parent) = random.pick(&self.directories()).copied() else { return };
        let Some(name) = self.fresh_name(parent, random) else { return };
        let node = self.new_id();
        let directory = random.one_in(3).then(BTreeMap::new);
        let mode = 0o600 + random.below(64) as u32;
        let attributes = Attributes { mode, owner: 0, group: 0, modified: self.clock };
        let wire_name = Name::new(name.clone()).expect("a good name");
        let operation = match directory {
            Some(_) => Operation::Mkdir { parent, name: wire_name, node, attributes },
            None => Operation::Create { parent, name: wire_name, node, attributes },
        };
        self.nodes.0.insert(node, Node { directory, mode, content: vec![], xattrs: BTreeMap::new(), changed: self.clock });
        self.put(parent, &name, node);
        self.tell(operation);
    }

    fn write(&mut self, random: &mut Random) {
        let Some(node) = random.pick(&self.files()).copied() else { return };
        let offset = random.below(3000) as usize;
        let data = vec![random.next() as u8; 1 + random.below(900) as usize];
        let Some(n) = self.touch(node) else { return };
        write_at(&mut n.content, offset, &data);
        self.tell(Operation::Write { node, offset: ByteOffset(offset as u64), data });
    }

    fn truncate(&mut self, random: &mut Random) {
        let Some(node) = random.pick(&self.files()).copied() else { return };
        let size = random.below(4000);
        let Some(n) = self.touch(node) else { return };
        n.content.resize(size as usize, 0);
        self.tell(Operation::Truncate { node, size: ByteLen(size) });
    }

    fn shift(&mut self, random: &mut Random) {
        let Some(node) = random.pick(&self.files()).copied() else { return };
        let Some(n) = self.touch(node) else { return };
        if n.content.len() < 64 {
            return;
        }
        let offset = random.below(n.content.len() as u64 / 2) as usize;
        let len = 1 + random.below(n.content.len() as u64 / 4) as usize;
        let (o, l) = (ByteOffset(offset as u64), ByteLen(len as u64));
        let operation = if random.one_in(2) {
            n.content.drain(offset..offset + len);
            Operation::Collapse { node, offset: o, len: l }
        } else {
            n.content.splice(offset..offset, vec![0; len]);
            Operation::Insert { node, offset: o, len: l }
        };
        self.tell(operation);
    }

    fn attribute(&mut self, random: &mut Random) {
        let all: Vec<NodeId> = self.nodes.0.keys().copied().collect();
        let Some(node) = random.pick(&all).copied() else { return };
        let Some(n) = self.touch(node) else { return };
        let operation = if random.one_in(2) {
            n.mode = 0o600 + random.below(64) as u32;
            Operation::SetMode { node, mode: n.mode }
        } else {
            let (name, value) = (format!("user.x{}", random.below(3)).into_bytes(), vec![random.next() as u8]);
            n.xattrs.insert(name.clone(), value.clone());
            Operation::SetXattr { node, name, value }
        };
        self.tell(operation);
    }

    fn remove(&mut self, random: &mut Random) {
        let Some((parent, name, node)) = random.pick(&self.names()).cloned() else { return };
        let directory = self.nodes.0[&node].directory.as_ref().map(|entries| entries.is_empty());
        if directory == Some(false) {
            return;
        }
        self.take(parent, &name);
        let name = Name::new(name).expect("a good name");
        self.tell(if directory.is_some() { Operation::Rmdir { parent, name, node } } else { Operation::Unlink { parent, name, node } });
        self.reap(node);
    }

    fn take(&mut self, parent: NodeId, name: &[u8]) {
        if let Some(entries) = self.touch(parent).and_then(|p| p.directory.as_mut()) {
            entries.remove(name);
        }
    }

    fn reap(&mut self, node: NodeId) {
        if self.names().iter().any(|(_, _, n)| *n == node) {
            self.touch(node);
            return;
        }
        self.nodes.0.remove(&node);
        self.free.push((node.inode, node.generation));
        self.tell(Operation::Forget { node });
    }

    fn link(&mut self, random: &mut Random) {
        let (Some(node), Some(parent)) = (random.pick(&self.files()).copied(), random.pick(&self.directories()).copied()) else { return };
        let Some(name) = self.fresh_name(parent, random) else { return };
        self.touch(node);
        self.put(parent, &name, node);
        self.tell(Operation::Link { parent, name: Name::new(name).expect("a good name"), node });
    }

    fn is_below(&self, node: NodeId, ancestor: NodeId) -> bool {
        let mut todo = vec![ancestor];
        while let Some(at) = todo.pop() {
            if at == node {
                return true;
            }
            todo.extend(self.nodes.0.get(&at).and_then(|n| n.directory.as_ref()).into_iter().flat_map(|d| d.values().copied()));
        }
        false
    }

    fn rename(&mut self, random: &mut Random) {
        let Some((parent, name, node)) = random.pick(&self.names()).cloned() else { return };
        let Some(new_parent) = random.pick(&self.directories()).copied() else { return };
        if self.is_below(new_parent, node) {
            return;
        }
        let new_name = format!("n{}", random.below(12)).into_bytes();
        let victim = self.nodes.0[&new_parent].directory.as_ref().and_then(|d| d.get(&new_name)).copied();
        if victim == Some(node) || (parent, &name) == (new_parent, &new_name) {
            return;
        }
        let exchange = victim.is_some() && random.one_in(3);
        if exchange && self.is_below(parent, victim.expect("checked")) {
            return;
        }
        let kind = |s: &Source, n: NodeId| s.nodes.0[&n].directory.as_ref().map(|d| d.is_empty());
        if let (Some(v), false) = (victim, exchange) {
            // A directory replaces only an empty directory, anything else only what is no directory.
            if kind(self, node).is_some() != kind(self, v).is_some() || kind(self, v) == Some(false) {
                return;
            }
        }
        let mode = if exchange { RenameMode::Exchange } else { RenameMode::Replace };
        self.take(parent, &name);
        self.put(new_parent, &new_name, node);
        self.touch(node);
        if let (Some(v), true) = (victim, exchange) {
            self.put(parent, &name, v);
            self.touch(v);
        }
        let (name, new_name) = (Name::new(name).expect("good"), Name::new(new_name).expect("good"));
        self.tell(Operation::Rename { parent, name, node, new_parent, new_name, mode, victim });
        if let (Some(v), false) = (victim, exchange) {
            self.reap(v);
        }
    }
}

pub fn write_at(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if content.len() < offset + data.len() {
        content.resize(offset + data.len(), 0);
    }
    content[offset..offset + data.len()].copy_from_slice(data);
}
