//! A virtual source: a tree of nodes that a random workload changes, one whole operation at a time, and a ring that tells of each.
//!
//! It is deliberately simple and shares no code with the product: it is the oracle. It remembers a hash of its tree after every operation, so
//! that the checker can tell whether a replica is at some prefix of its history.

mod content;
mod names;

use crate::random::Random;
use crate::trace;
use crate::tree::{self, Body, Nodes};
use standin_agent::pump::Captured;
use standin_model::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

#[derive(Clone, Debug)]
pub struct Node {
    pub body: Body,
    pub directory: Option<BTreeMap<Vec<u8>, NodeId>>,
    pub changed: Timestamp,
}

pub struct Source {
    pub nodes: BTreeMap<NodeId, Node>,
    pub root: NodeId,
    pub ring: Vec<Captured>,
    pub clock: Timestamp,
    /// The same time, for those on the other side of a thread-safe border.
    pub time: Arc<AtomicI64>,
    /// Hash of the tree after each operation.
    pub history: Vec<u64>,
    /// What those trees looked like, where somebody is going to read it.
    pub pictures: Vec<BTreeMap<String, String>>,
    /// Files that some process holds open; one that loses its last name lives on.
    open: BTreeSet<NodeId>,
    /// Files that have had no name yet (O_TMPFILE); only these may still get one.
    unnamed: BTreeSet<NodeId>,
    /// A write(2) that takes long.
    long: Option<content::LongWrite>,
    /// An announcement that comes late: what others did to the new node is told before it.
    late: Option<Captured>,
    next_inode: u64,
    /// Freed inode numbers come back with a new generation, as on a real file system.
    free: Vec<(u64, u32)>,
}

const SECOND: i64 = 1_000_000_000;

impl Source {
    pub fn new() -> Source {
        let root = NodeId { volume: VolumeId(0), subvolume: 0, inode: 2, generation: 0 };
        let clock = Timestamp(1_000 * SECOND);
        let node = Node { directory: Some(BTreeMap::new()), body: Body::new(NodeKind::Directory, 0o755), changed: clock };
        let mut source = Source {
            nodes: BTreeMap::from([(root, node)]),
            root,
            ring: Vec::new(),
            clock,
            time: Arc::new(AtomicI64::new(clock.0)),
            history: Vec::new(),
            pictures: Vec::new(),
            open: BTreeSet::new(),
            unnamed: BTreeSet::new(),
            long: None,
            late: None,
            next_inode: 10,
            free: Vec::new(),
        };
        source.remember();
        source
    }

    /// Some ten operations take as long as the slack that a "changed since" has.
    pub fn tick(&mut self, random: &mut Random) {
        self.pass(random.below(10 * SECOND as u64) as i64);
    }

    pub fn pass(&mut self, nanoseconds: i64) {
        self.clock.0 += nanoseconds;
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

    pub fn is_named(&self, node: NodeId) -> bool {
        node == self.root || self.names().iter().any(|(_, _, n)| *n == node)
    }

    pub fn directories(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, n)| n.directory.is_some()).map(|(id, _)| *id).collect()
    }
    fn files(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, n)| n.body.kind == NodeKind::File).map(|(id, _)| *id).collect()
    }
    fn all(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Every (parent, name, node) there is.
    fn names(&self) -> Vec<(NodeId, &[u8], NodeId)> {
        let directories = self.nodes.iter().filter_map(|(id, node)| Some((*id, node.directory.as_ref()?)));
        directories.flat_map(|(id, names)| names.iter().map(move |(name, child)| (id, name.as_slice(), *child))).collect()
    }

    fn pick_name(&self, random: &mut Random) -> Option<(NodeId, Vec<u8>, NodeId)> {
        random.pick(&self.names()).map(|(parent, name, node)| (parent, name.to_vec(), node))
    }

    fn tell(&mut self, operation: Operation) {
        let touched = operation
            .node()
            .into_iter()
            .filter(|node| self.nodes.contains_key(node))
            .map(|node| (node, self.nodes[&node].changed))
            .collect();
        self.ring.push(Captured::Operation { operation, touched });
    }

    /// The announcement of a new node may reach the ring after what another process did to it.
    fn tell_late(&mut self, operation: Operation, random: &mut Random) {
        self.tell(operation);
        if random.one_in(12) {
            self.late = self.ring.pop();
        }
    }

    /// Nothing is late any more.
    pub fn settle(&mut self) {
        self.long = None;
        self.ring.extend(self.late.take());
    }

    fn touch(&mut self, node: NodeId) -> Option<&mut Node> {
        let clock = self.clock;
        let node = self.nodes.get_mut(&node)?;
        node.changed = clock;
        Some(node)
    }

    fn change(&mut self, node: NodeId) -> Option<&mut Body> {
        Some(self.touch(node)?.body.changing())
    }

    /// One random operation of the workload.
    pub fn act(&mut self, random: &mut Random) {
        self.tick(random);
        // Whoever is late was so by one operation, on the new node or below it.
        if let Some(late) = self.late.take() {
            if let Captured::Operation { operation: Operation::Create { node, .. } | Operation::Mkdir { node, .. }, .. } = &late {
                self.use_early(*node, random);
            }
            self.ring.push(late);
            return self.remember();
        }
        if self.write_on(random) {
            return self.remember();
        }
        match random.below(25) {
            0..=3 => self.create(random),
            4..=8 => self.write(random),
            9 => self.resize(random),
            10 => self.fill(random),
            11 => self.clone_range(random),
            12..=13 => self.attribute(random),
            14..=16 => self.remove(random),
            17..=18 => self.link(random),
            19 => self.shift(random),
            20 => self.open_or_close(random),
            21 => self.begin_long_write(random),
            _ => self.rename(random),
        }
        self.remember();
    }

    pub fn remember(&mut self) {
        self.history.push(tree::hash(self));
        if trace::is_on() {
            self.pictures.push(tree::picture(self));
        }
    }

    /// What a rename leaves behind for overlayfs. Overlayfs moves and removes whiteouts, but never changes or links one of these.
    fn is_whiteout(&self, node: NodeId) -> bool {
        self.nodes[&node].body.kind == NodeKind::CharDevice
    }

    fn attribute(&mut self, random: &mut Random) {
        let Some(node) = random.pick(&self.all()).filter(|node| !self.is_whiteout(*node)) else { return };
        let Some(body) = self.change(node) else { return };
        let name = format!("user.x{}", random.below(3)).into_bytes();
        let operation = match random.below(4) {
            0..=1 if body.kind != NodeKind::Symlink => {
                body.mode = 0o600 + random.below(64) as u32;
                Operation::SetMode { node, mode: body.mode }
            }
            2 if body.xattrs.remove(&name).is_some() => Operation::RemoveXattr { node, name },
            _ => {
                let value = vec![random.next() as u8];
                body.xattrs.insert(name.clone(), value.clone());
                Operation::SetXattr { node, name, value }
            }
        };
        self.tell(operation);
    }

    /// A process opens a file, or closes one, which may be the end of it.
    fn open_or_close(&mut self, random: &mut Random) {
        let open: Vec<NodeId> = self.open.iter().copied().collect();
        match random.pick(&open).filter(|_| random.one_in(2)) {
            Some(node) => {
                self.open.remove(&node);
                self.reap(node);
            }
            None => self.open.extend(random.pick(&self.files())),
        }
    }

    fn reap(&mut self, node: NodeId) {
        if self.is_named(node) {
            self.touch(node);
        } else if !self.open.contains(&node) && self.nodes.remove(&node).is_some() {
            self.unnamed.remove(&node);
            self.free.push((node.inode, node.generation));
            self.tell(Operation::Forget { node });
        }
    }
}

impl Nodes for Source {
    type Id = NodeId;
    fn root(&self) -> NodeId {
        self.root
    }
    fn body(&self, id: NodeId) -> Option<&Body> {
        self.nodes.get(&id).map(|node| &node.body)
    }
    fn entries(&self, id: NodeId) -> Option<&BTreeMap<Vec<u8>, NodeId>> {
        self.nodes.get(&id)?.directory.as_ref()
    }
}
