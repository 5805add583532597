//! A dumb file system in memory: the oracle of the property tests. It makes random operations that are valid in its present state,
//! executes them on itself in the plainest way, and hands them out as the agent would: times of touched nodes last in each segment.
//!
//! Everything derives from one seed, so that a failure is repeated by its number.

use crate::diff::{Entry, Kind, Manifest, content_of};
use standin_model::*;
use std::collections::{BTreeMap, BTreeSet};

mod nodes;

pub const ROOT: NodeId = NodeId { volume: VolumeId(0), subvolume: 0, inode: 2, generation: 0 };
/// Block size of every file system that the tests make or run on.
const BLOCK: u64 = 4096;
const FILE_BYTES_MAX: u64 = 6 * BLOCK;

/// xorshift64*, enough to choose with.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end
    }
    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len() as u64) as usize].clone()) }
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: NodeKind,
    pub attributes: Attributes,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub content: Vec<u8>,
    pub device: u64,
    pub names: BTreeMap<Name, NodeId>,
    /// Made by a rename; the stream never names it but to remove it.
    pub whiteout: bool,
}

pub struct Oracle {
    pub nodes: BTreeMap<NodeId, Node>,
    pub random: Random,
    next_inode: u64,
    clock: i64,
    touched: BTreeSet<NodeId>,
    unnamed: Vec<NodeId>,
    /// Whether the file system knows collapse and insert.
    pub can_shift: bool,
    pub makes_whiteouts: bool,
    /// Some writes are of what is there, with little changed, and go as patches.
    pub makes_patches: bool,
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn seconds(time: Timestamp) -> (i64, i64) {
    (time.0.div_euclid(1_000_000_000), time.0.rem_euclid(1_000_000_000))
}

impl Oracle {
    pub fn new(seed: u64) -> Oracle {
        let mut oracle = Oracle {
            nodes: BTreeMap::new(),
            random: Random::new(seed),
            next_inode: 100,
            clock: 1_600_000_000_000_000_000,
            touched: BTreeSet::new(),
            unnamed: Vec::new(),
            can_shift: !super::is_btrfs(),
            makes_whiteouts: true,
            makes_patches: false,
        };
        let root = oracle.fresh(NodeKind::Directory, 0o755);
        oracle.nodes.insert(ROOT, root);
        oracle.touched.insert(ROOT);
        oracle
    }

    fn fresh(&mut self, kind: NodeKind, mode: u32) -> Node {
        self.clock += 1_000_001;
        let attributes = Attributes { mode, owner: 0, group: 0, modified: Timestamp(self.clock) };
        let (xattrs, names) = (BTreeMap::new(), BTreeMap::new());
        Node { kind, attributes, xattrs, content: Vec::new(), device: 0, names, whiteout: false }
    }

    fn new_id(&mut self) -> NodeId {
        self.next_inode += 1;
        NodeId { inode: self.next_inode, generation: self.next_inode as u32 ^ 0xabcd, ..ROOT }
    }

    fn touch(&mut self, node: NodeId) {
        self.clock += 1_000_001;
        let now = Timestamp(self.clock);
        if let Some(found) = self.nodes.get_mut(&node) {
            found.attributes.modified = now;
            self.touched.insert(node);
        }
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("the oracle knows its nodes")
    }

    fn of_kind(&mut self, accept: impl Fn(&Node) -> bool) -> Option<NodeId> {
        let all: Vec<NodeId> = self.nodes.iter().filter(|(_, node)| accept(node)).map(|(id, _)| *id).collect();
        self.random.pick(&all)
    }

    fn directory(&mut self) -> NodeId {
        self.of_kind(|node| node.kind == NodeKind::Directory).expect("the root is always there")
    }

    /// A name of few, so that they collide often.
    fn name(&mut self) -> Name {
        let number = self.random.below(14);
        Name::new(format!("n{number}")).expect("a valid name")
    }

    fn free_place(&mut self) -> Option<(NodeId, Name)> {
        let (directory, name) = (self.directory(), self.name());
        (!self.node(directory).names.contains_key(&name)).then_some((directory, name))
    }

    fn taken_place(&mut self) -> Option<(NodeId, Name, NodeId)> {
        let places: Vec<_> = self.nodes.iter().flat_map(|(id, node)| node.names.iter().map(|(n, t)| (*id, n.clone(), *t))).collect();
        self.random.pick(&places)
    }

    fn has_name(&self, id: NodeId) -> bool {
        self.nodes.values().any(|node| node.names.values().any(|target| *target == id))
    }

    fn is_below(&self, id: NodeId, above: NodeId) -> bool {
        id == above
            || self.nodes[&above].names.values().any(|child| self.nodes[child].kind == NodeKind::Directory && self.is_below(id, *child))
    }

    /// Drops a node without names; the agent says so.
    fn lost_name(&mut self, id: NodeId, out: &mut Vec<Operation>) {
        if !self.has_name(id) {
            let whiteout = self.nodes.remove(&id).is_some_and(|node| node.whiteout);
            self.touched.remove(&id);
            if !whiteout && self.random.below(3) > 0 {
                out.push(Operation::Forget { node: id });
            }
        }
    }

    /// One random operation, or nothing where the dice asked for what cannot be done now.
    pub fn step(&mut self, out: &mut Vec<Operation>) {
        let done = match self.random.below(100) {
            0..20 => self.create(out),
            20..28 => self.link(out),
            28..40 => self.unlink(out),
            40..58 => self.rename(out),
            58..62 => self.unnamed(out),
            62..88 => self.content(out),
            _ => self.attribute(out),
        };
        let _ = done;
    }

    /// Times of what was touched, as the agent sends them at a segment's end.
    pub fn end_segment(&mut self, out: &mut Vec<Operation>) {
        for node in std::mem::take(&mut self.touched) {
            if let Some(found) = self.nodes.get(&node) {
                out.push(Operation::SetTimes { node, accessed: None, modified: Some(found.attributes.modified) });
            }
        }
    }

    fn create(&mut self, out: &mut Vec<Operation>) -> Option<()> {
        let (parent, name) = self.free_place()?;
        let node = self.new_id();
        let mode = [0o644, 0o600, 0o755, 0o4755, 0o2711, 0o1777][self.random.below(6) as usize];
        let kinds = [NodeKind::File, NodeKind::Directory, NodeKind::Symlink, NodeKind::CharDevice, NodeKind::Fifo, NodeKind::Socket];
        let kind = kinds[(self.random.below(12) as usize).saturating_sub(6).min(5)];
        let kind = if self.random.below(3) == 0 { NodeKind::Directory } else { kind };
        let mut made = self.fresh(kind, if kind == NodeKind::Symlink { 0o777 } else { mode });
        made.attributes.owner = self.random.below(3) as u32 * 1000;
        let attributes = made.attributes;
        let n = name.clone();
        out.push(match kind {
            NodeKind::File => Operation::Create { parent, name, node, attributes },
            NodeKind::Directory => Operation::Mkdir { parent, name, node, attributes },
            NodeKind::Symlink => {
                made.content = format!("to/{}", node.inode).into_bytes();
                Operation::Symlink { parent, name, node, target: made.content.clone(), attributes }
            }
            _ => {
                made.device = if kind == NodeKind::CharDevice { 5 << 32 | self.random.below(9) } else { 0 };
                Operation::Mknod { parent, name, node, kind, device: made.device, attributes }
            }
        });
        self.nodes.insert(node, made);
        self.node(parent).names.insert(n, node);
        self.touch(parent);
        Some(())
    }

    fn link(&mut self, out: &mut Vec<Operation>) -> Option<()> {
        let (parent, name) = self.free_place()?;
        let unnamed = self.unnamed.pop().filter(|node| self.nodes.contains_key(node));
        let node = unnamed.or_else(|| self.of_kind(|node| node.kind != NodeKind::Directory && !node.whiteout))?;
        if unnamed.is_none() && !self.has_name(node) {
            return None;
        }
        self.node(parent).names.insert(name.clone(), node);
        self.touch(parent);
        out.push(Operation::Link { parent, name, node });
        Some(())
    }

    fn unnamed(&mut self, out: &mut Vec<Operation>) -> Option<()> {
        let node = self.new_id();
        let made = self.fresh(NodeKind::File, 0o600);
        out.push(Operation::CreateUnnamed { node, attributes: made.attributes });
        self.nodes.insert(node, made);
        self.unnamed.push(node);
        Some(())
    }

    /// Forgets the files without a name, and tells which they were.
    pub fn drop_unnamed(&mut self) -> Vec<NodeId> {
        self.unnamed.clear();
        let nodes = self.without_name();
        nodes.iter().for_each(|id| drop(self.nodes.remove(id)));
        nodes
    }

    pub fn without_name(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|id| *id != ROOT && !self.has_name(*id)).collect()
    }

    fn unlink(&mut self, out: &mut Vec<Operation>) -> Option<()> {
        let (parent, name, node) = self.taken_place()?;
        let found = self.node(node);
        let is_directory = found.kind == NodeKind::Directory;
        if !found.names.is_empty() {
            return None;
        }
        self.node(parent).names.remove(&name);
        self.touch(parent);
        out.push(if is_directory { Operation::Rmdir { parent, name, node } } else { Operation::Unlink { parent, name, node } });
        self.lost_name(node, out);
        Some(())
    }

    fn rename(&mut self, out: &mut Vec<Operation>) -> Option<()> {
        let (parent, name, node) = self.taken_place()?;
        let (new_parent, new_name) = (self.directory(), self.name());
        let victim = self.node(new_parent).names.get(&new_name).copied();
        let is_directory = self.node(node).kind == NodeKind::Directory;
        if self.node(node).whiteout || (is_directory && self.is_below(new_parent, node)) || victim == Some(node) {
            return None;
        }
        let exchange = victim.is_some() && self.random.below(3) == 0;
        if let Some(victim) = victim {
            let other = self.nodes[&victim].clone();
            let other_is_directory = other.kind == NodeKind::Directory;
            if exchange && (other.whiteout || (other_is_directory && self.is_below(parent, victim))) {
                return None;
            }
            if !exchange && (other_is_directory != is_directory || !other.names.is_empty()) {
                return None;
            }
        }
        let whiteout = !exchange && self.random.below(12) == 0 && self.makes_whiteouts;
        let mode = match (exchange, whiteout, victim) {
            (true, ..) => RenameMode::Exchange,
            (_, true, _) => RenameMode::Whiteout,
            (_, _, None) if self.random.below(2) == 0 => RenameMode::NoReplace,
            _ => RenameMode::Replace,
        };
        self.node(parent).names.remove(&name);
        self.node(new_parent).names.insert(new_name.clone(), node);
        out.push(Operation::Rename { parent, name: name.clone(), node, new_parent, new_name, mode, victim });
        self.touch(parent);
        self.touch(new_parent);
        match victim {
            Some(victim) if exchange => drop(self.node(parent).names.insert(name.clone(), victim)),
            Some(victim) => self.lost_name(victim, out),
            None => {}
        }
        if whiteout {
            let id = self.new_id();
            let made = Node { whiteout: true, ..self.fresh(NodeKind::CharDevice, 0) };
            self.nodes.insert(id, made);
            self.node(parent).names.insert(name, id);
        }
        Some(())
    }

    /// The tree as a reader of the disk would see it; the oracle does not know where a file system makes holes.
    pub fn tree(&self) -> Manifest {
        let mut tree = Manifest::new();
        let mut first_names = BTreeMap::new();
        self.collect(ROOT, String::new(), &mut tree, &mut first_names);
        tree
    }

    fn collect(&self, id: NodeId, path: String, tree: &mut Manifest, first_names: &mut BTreeMap<NodeId, String>) {
        let node = &self.nodes[&id];
        let device = rustix::fs::makedev((node.device >> 32) as u32, node.device as u32);
        let kind = match node.kind {
            NodeKind::File => Kind::File { len: node.content.len() as u64, content: content_of(&node.content), data: None },
            NodeKind::Directory => Kind::Directory,
            NodeKind::Symlink => Kind::Symlink { target: text(&node.content) },
            NodeKind::CharDevice => Kind::CharDevice { device },
            NodeKind::BlockDevice => Kind::BlockDevice { device },
            NodeKind::Fifo => Kind::Fifo,
            NodeKind::Socket => Kind::Socket,
        };
        let entry = Entry {
            kind,
            mode: node.attributes.mode,
            owner: node.attributes.owner,
            group: node.attributes.group,
            // A whiteout's times are nobody's; both sides say 0.
            modified: if node.whiteout { (0, 0) } else { seconds(node.attributes.modified) },
            attributes: node.xattrs.iter().map(|(name, value)| (text(name), hexadecimal(value))).collect(),
            project: 0,
            flags: 0,
            first_name: first_names.entry(id).or_insert_with(|| path.clone()).clone(),
        };
        tree.insert(path.clone(), entry);
        for (name, child) in &node.names {
            let name = text(name.as_bytes());
            let below = if path.is_empty() { name } else { format!("{path}/{name}") };
            self.collect(*child, below, tree, first_names);
        }
    }
}

/// The oracle's names are plain text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the oracle makes text only")
}
