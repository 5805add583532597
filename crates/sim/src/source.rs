//! A virtual source: a tree of nodes that a random workload changes, one whole operation at a time, and a ring that tells of each.
//!
//! It is deliberately simple and shares no code with the product: it is the oracle. It remembers a hash of its tree after every operation, so
//! that the checker can tell whether a replica is at some prefix of its history.

mod content;
mod exclusion;
mod names;
mod outage;

use crate::random::Random;
use crate::trace;
use crate::tree::{self, Body, Hashes, Nodes};
use standin_agent::pump::Captured;
use standin_model::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

#[derive(Clone, Debug)]
pub struct Node {
    pub body: Body,
    pub directory: Option<BTreeMap<Vec<u8>, NodeId>>,
    /// Last change of anything, which nobody can set.
    pub changed: Timestamp,
}

/// What the disks hold: all that a power cut leaves.
#[derive(Clone)]
struct Disks {
    nodes: BTreeMap<NodeId, Node>,
    /// Files that have had no name yet (O_TMPFILE); only these may still get one.
    unnamed: BTreeSet<NodeId>,
    /// Per volume, the last inode number given.
    next_inode: Vec<u64>,
    /// Freed inode numbers come back with a new generation, as on a real file system.
    free: Vec<Vec<(u64, u32)>>,
}

pub struct Source {
    disks: Disks,
    /// The disks when everything was last written back.
    written: Disks,
    pub roots: Vec<NodeId>,
    pub ring: Vec<Captured>,
    pub clock: Timestamp,
    /// The same time, for those on the other side of a thread-safe border.
    pub time: Arc<AtomicI64>,
    /// Hash of the tree after each operation.
    pub history: Vec<Hashes>,
    /// What those trees looked like, where somebody is going to read it.
    pub pictures: Vec<BTreeMap<String, String>>,
    /// Files that some process holds open; one that loses its last name lives on.
    open: BTreeSet<NodeId>,
    /// A write(2) that takes long.
    long: Option<content::LongWrite>,
    /// An announcement that comes late: what others did to the new node is told before it.
    late: Option<Captured>,
    pub counts_generations: bool,
    /// Beyond what a power cut has taken back.
    generation_min: u32,
    /// The directory whose contents are excluded, where this seed excludes anything. It stays where it is.
    secluded: Option<NodeId>,
}

const SECOND: i64 = 1_000_000_000;

impl Source {
    pub fn new(volumes: u16) -> Source {
        let clock = Timestamp(1_000 * SECOND);
        let root = |volume| NodeId { volume: VolumeId(volume), subvolume: 0, inode: 2, generation: 0 };
        let roots: Vec<NodeId> = (0..volumes).map(root).collect();
        let attributes = Attributes { mode: 0o755, owner: 0, group: 0, modified: clock };
        let node = Node { directory: Some(BTreeMap::new()), body: Body::new(NodeKind::Directory, attributes), changed: clock };
        let disks = Disks {
            nodes: roots.iter().map(|root| (*root, node.clone())).collect(),
            unnamed: BTreeSet::new(),
            next_inode: vec![10; roots.len()],
            free: vec![Vec::new(); roots.len()],
        };
        let mut source = Source {
            written: disks.clone(),
            disks,
            roots,
            ring: Vec::new(),
            clock,
            time: Arc::new(AtomicI64::new(clock.0)),
            history: Vec::new(),
            pictures: Vec::new(),
            open: BTreeSet::new(),
            long: None,
            late: None,
            counts_generations: true,
            generation_min: 1,
            secluded: None,
        };
        source.remember();
        source
    }

    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.disks.nodes
    }

    /// Some ten operations take as long as the slack that a "changed since" has.
    pub fn tick(&mut self, random: &mut Random) {
        self.pass(random.below(10 * SECOND as u64) as i64);
    }

    pub fn pass(&mut self, nanoseconds: i64) {
        self.clock.0 += nanoseconds;
        self.time.store(self.clock.0, Ordering::Relaxed);
    }

    fn new_id(&mut self, volume: VolumeId) -> NodeId {
        let at = usize::from(volume.0);
        let (inode, generation) = match self.disks.free[at].pop() {
            Some((inode, generation)) if self.counts_generations => (inode, (generation + 1).max(self.generation_min)),
            Some((inode, generation)) => (inode, generation),
            None => {
                self.disks.next_inode[at] += 1;
                (self.disks.next_inode[at], 1)
            }
        };
        NodeId { volume, subvolume: 0, inode, generation }
    }

    /// A name that leads to the node, and its directory.
    pub fn name_of(&self, node: NodeId) -> Option<(NodeId, Vec<u8>)> {
        self.names().into_iter().find(|(_, _, n)| *n == node).map(|(parent, name, _)| (parent, name.to_vec()))
    }

    pub fn is_named(&self, node: NodeId) -> bool {
        self.roots.contains(&node) || self.names().iter().any(|(_, _, n)| *n == node)
    }

    pub fn links(&self, node: NodeId) -> u64 {
        self.names().iter().filter(|(_, _, n)| *n == node).count() as u64
    }

    pub fn directories(&self) -> Vec<NodeId> {
        self.disks.nodes.iter().filter(|(_, n)| n.directory.is_some()).map(|(id, _)| *id).collect()
    }
    fn files(&self) -> Vec<NodeId> {
        self.disks.nodes.iter().filter(|(_, n)| n.body.kind == NodeKind::File).map(|(id, _)| *id).collect()
    }
    fn all(&self) -> Vec<NodeId> {
        self.disks.nodes.keys().copied().collect()
    }

    /// Every (parent, name, node) there is.
    fn names(&self) -> Vec<(NodeId, &[u8], NodeId)> {
        let directories = self.disks.nodes.iter().filter_map(|(id, node)| Some((*id, node.directory.as_ref()?)));
        directories.flat_map(|(id, names)| names.iter().map(move |(name, child)| (id, name.as_slice(), *child))).collect()
    }

    fn pick_name(&self, random: &mut Random) -> Option<(NodeId, Vec<u8>, NodeId)> {
        let movable: Vec<_> = self.names().into_iter().filter(|(_, _, node)| Some(*node) != self.secluded).collect();
        random.pick(&movable).map(|(parent, name, node)| (parent, name.to_vec(), node))
    }

    /// Captured with the modification times of all that it changed, as they are when it is announced.
    fn tell(&mut self, operation: Operation) {
        let nodes = operation.changed_nodes();
        let touched = nodes.filter_map(|node| Some((node, self.disks.nodes.get(&node)?.body.modified))).collect();
        self.ring.push(Captured::Operation { operation, touched });
    }

    /// The announcement of a new node may reach the ring after what another process did to it.
    fn tell_late(&mut self, operation: Operation, random: &mut Random) {
        self.tell(operation);
        if random.one_in(12) {
            self.late = self.ring.pop();
        }
    }

    fn tell_what_is_late(&mut self) {
        let Some(Captured::Operation { mut operation, .. }) = self.late.take() else { return };
        // It is read from the node when it is announced.
        if let Operation::Create { node, attributes, .. } | Operation::Mkdir { node, attributes, .. } = &mut operation {
            *attributes = self.disks.nodes[node].body.attributes();
        }
        self.tell(operation);
    }

    /// Whoever lists a directory waits for its lock, which the maker of a new name holds until it is announced.
    pub fn lock_to_list(&mut self, directory: NodeId) {
        let Some(Captured::Operation { operation, .. }) = &self.late else { return };
        let parent = match operation {
            Operation::Create { parent, .. } | Operation::Mkdir { parent, .. } => Some(*parent),
            _ => None,
        };
        if parent == Some(directory) {
            self.tell_what_is_late();
        }
    }

    /// Nothing is late any more.
    pub fn settle(&mut self) {
        self.long = None;
        self.tell_what_is_late();
    }

    /// A change of anything but the content.
    fn touch(&mut self, node: NodeId) -> Option<&mut Node> {
        let clock = self.clock;
        let node = self.disks.nodes.get_mut(&node)?;
        node.changed = clock;
        Some(node)
    }

    /// A change of the content: bytes of a file, names of a directory.
    fn modify(&mut self, node: NodeId) -> Option<&mut Node> {
        let clock = self.clock;
        let node = self.touch(node)?;
        node.body.changing().modified = clock;
        Some(node)
    }

    fn change(&mut self, node: NodeId) -> Option<&mut Body> {
        Some(self.modify(node)?.body.changing())
    }

    /// One random operation of the workload.
    pub fn act(&mut self, random: &mut Random) {
        self.tick(random);
        // Whoever is late was so by one operation, on the new node or below it.
        if let Some(Captured::Operation { operation, .. }) = &self.late {
            operation.node().into_iter().for_each(|node| self.use_early(node, random));
            self.tell_what_is_late();
            return self.remember();
        }
        if self.write_on(random) {
            return self.remember();
        }
        if random.one_in(30) {
            self.write_back();
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
        self.disks.nodes[&node].body.kind == NodeKind::CharDevice
    }

    fn attribute(&mut self, random: &mut Random) {
        let Some(node) = random.pick(&self.all()).filter(|node| !self.is_whiteout(*node)) else { return };
        let clock = self.clock;
        let Some(body) = self.touch(node).map(|node| node.body.changing()) else { return };
        let name = format!("user.x{}", random.below(3)).into_bytes();
        let operation = match random.below(6) {
            0..=1 if body.kind != NodeKind::Symlink => {
                body.mode = 0o600 + random.below(64) as u32;
                Operation::SetMode { node, mode: body.mode }
            }
            2 if body.xattrs.remove(&name).is_some() => Operation::RemoveXattr { node, name },
            3 => {
                (body.owner, body.group) = (random.below(4) as u32, random.below(4) as u32);
                Operation::SetOwner { node, owner: body.owner, group: body.group }
            }
            4 => {
                // Into the past, as unpacking an archive does.
                body.modified = Timestamp(random.below(clock.0 as u64) as i64);
                Operation::SetTimes { node, accessed: None, modified: Some(body.modified) }
            }
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
        } else if !self.open.contains(&node) && self.destroy(node) {
            self.tell(Operation::Forget { node });
        }
    }

    fn destroy(&mut self, node: NodeId) -> bool {
        self.disks.unnamed.remove(&node);
        let existed = self.disks.nodes.remove(&node).is_some();
        if existed {
            self.disks.free[usize::from(node.volume.0)].push((node.inode, node.generation));
        }
        existed
    }
}

impl Nodes for Source {
    type Id = NodeId;
    fn roots(&self) -> Vec<NodeId> {
        self.roots.clone()
    }
    fn body(&self, id: NodeId) -> Option<&Body> {
        self.disks.nodes.get(&id).map(|node| &node.body)
    }
    fn entries(&self, id: NodeId) -> Option<&BTreeMap<Vec<u8>, NodeId>> {
        self.disks.nodes.get(&id)?.directory.as_ref()
    }
    fn hides(&self, directory: NodeId, name: &[u8]) -> bool {
        self.leaves_out(directory, name)
    }
}
