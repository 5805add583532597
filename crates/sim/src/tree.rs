//! What source and replica are compared by: bodies of nodes, and trees free of ids.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use standin_model::{Attributes, NodeKind, Timestamp};

/// All of a node but its names: comparable between source and replica.
#[derive(Clone, Debug)]
pub struct Body {
    pub kind: NodeKind,
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
    /// Last change of the content; comes into the stream at the end of a segment.
    pub modified: Timestamp,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub device: u64,
    pub target: Vec<u8>,
    /// Hash of the above, as long as nobody changes it.
    hash: Cell<Option<u64>>,
}

impl Body {
    pub fn new(kind: NodeKind, attributes: Attributes) -> Body {
        let Attributes { mode, owner, group, modified } = attributes;
        let (content, xattrs, target) = (Vec::new(), BTreeMap::new(), Vec::new());
        Body { kind, mode, owner, group, modified, content, xattrs, device: 0, target, hash: Cell::new(None) }
    }

    pub fn attributes(&self) -> Attributes {
        Attributes { mode: self.mode, owner: self.owner, group: self.group, modified: self.modified }
    }

    pub fn set_attributes(&mut self, attributes: Attributes) {
        (self.mode, self.owner, self.group, self.modified) = (attributes.mode, attributes.owner, attributes.group, attributes.modified);
    }

    /// What a device or a symlink leads to.
    pub fn leading_to(mut self, device: u64, target: &[u8]) -> Body {
        (self.device, self.target) = (device, target.to_vec());
        self
    }

    /// Must be called by whoever is about to change it.
    pub fn changing(&mut self) -> &mut Body {
        self.hash.set(None);
        self
    }

    /// Of all but the time.
    fn hash(&self) -> u64 {
        self.hash.get().unwrap_or_else(|| {
            let mut hasher = DefaultHasher::new();
            (self.kind, self.device, &self.target, &self.xattrs, self.owner, self.group).hash(&mut hasher);
            // Nobody reads the mode of a symlink.
            (if self.kind == NodeKind::Symlink { 0 } else { self.mode }).hash(&mut hasher);
            hasher.write_u64(sum(&self.content));
            self.hash.set(Some(hasher.finish()));
            hasher.finish()
        })
    }

    /// In words, without the whole content.
    pub fn facts(&self) -> String {
        let Body { kind, mode, owner, group, modified, content, xattrs, device, target, .. } = self;
        format!(
            "{kind:?} mode {mode:o} owner {owner}:{group} modified {} device {device} target {:?} xattrs {xattrs:?} bytes {} sum {:x}",
            modified.0,
            target.escape_ascii().to_string(),
            content.len(),
            sum(content)
        )
    }
}

/// Quick to compute, and different for any two contents that the workload makes.
fn sum(content: &[u8]) -> u64 {
    let mut sum = content.len() as u64;
    for piece in content.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..piece.len()].copy_from_slice(piece);
        sum = (sum.rotate_left(5) ^ u64::from_le_bytes(bytes)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    sum
}

/// A file system as trees see it.
pub trait Nodes {
    type Id: Copy + Ord + std::fmt::Debug;
    /// In the order of their volumes.
    fn roots(&self) -> Vec<Self::Id>;
    fn body(&self, id: Self::Id) -> Option<&Body>;
    fn entries(&self, id: Self::Id) -> Option<&BTreeMap<Vec<u8>, Self::Id>>;
    /// Whether a name, with all that is below it, is excluded from what is compared.
    fn hides(&self, _directory: Self::Id, _name: &[u8]) -> bool {
        false
    }
}

/// Calls back for every name in order, with the number that its node got when it was met first; equal numbers are hard links.
fn walk<N: Nodes>(nodes: &N, visit: &mut dyn FnMut(&[u8], usize, N::Id, &Body)) {
    for (volume, root) in nodes.roots().into_iter().enumerate() {
        let mut path = format!("{volume}:").into_bytes();
        descend(nodes, root, &mut path, &mut BTreeMap::new(), visit);
    }
}

fn descend<N: Nodes>(
    nodes: &N,
    id: N::Id,
    path: &mut Vec<u8>,
    numbers: &mut BTreeMap<N::Id, usize>,
    visit: &mut dyn FnMut(&[u8], usize, N::Id, &Body),
) {
    let Some(body) = nodes.body(id) else { return };
    let next = numbers.len();
    let number = *numbers.entry(id).or_insert(next);
    visit(path, number, id, body);
    for (name, child) in nodes.entries(id).into_iter().flatten().filter(|(name, _)| !nodes.hides(id, name)) {
        let len = path.len();
        path.push(b'/');
        path.extend_from_slice(name);
        descend(nodes, *child, path, numbers, visit);
        path.truncate(len);
    }
}

/// A tree in two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// Of all but times, which the stream carries at the end of a segment.
    pub timeless: u64,
    pub whole: u64,
}

pub fn hash<N: Nodes>(nodes: &N) -> Hashes {
    let (mut timeless, mut times) = (DefaultHasher::new(), DefaultHasher::new());
    walk(nodes, &mut |path, number, _, body| {
        (path, number, body.hash()).hash(&mut timeless);
        body.modified.hash(&mut times);
    });
    let timeless = timeless.finish();
    times.write_u64(timeless);
    Hashes { timeless, whole: times.finish() }
}

/// Every path with what it shows, in words.
pub fn picture<N: Nodes>(nodes: &N) -> BTreeMap<String, String> {
    let mut picture = BTreeMap::new();
    walk(nodes, &mut |path, number, id, body| {
        let shown = if body.kind == NodeKind::Symlink { Body { mode: 0, ..body.clone() }.facts() } else { body.facts() };
        picture.insert(path.escape_ascii().to_string(), format!("inode {number} ({}) {shown}", crate::trace::short(&id)));
    });
    picture
}

/// The first differences between two trees.
pub fn differences(source: &BTreeMap<String, String>, replica: &BTreeMap<String, String>) -> Vec<String> {
    // Ids are of different kinds on the two sides.
    let facts = |text: &str| -> Vec<String> { text.split(['(', ')']).step_by(2).map(str::to_owned).collect() };
    let same = |a: &str, b: &str| facts(a) == facts(b);
    let mut found = Vec::new();
    for (path, thing) in source {
        match replica.get(path) {
            None => found.push(format!("{path:?} is missing on the replica")),
            Some(other) if !same(other, thing) => found.push(format!("{path:?}: source {thing}, replica {other}")),
            Some(_) => {}
        }
    }
    found.extend(replica.keys().filter(|path| !source.contains_key(*path)).map(|path| format!("{path:?} is only on the replica")));
    found
}

pub fn write_at(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if content.len() < offset + data.len() {
        content.resize(offset + data.len(), 0);
    }
    content[offset..offset + data.len()].copy_from_slice(data);
}

/// Zeros within the size.
pub fn zero_at(content: &mut [u8], offset: usize, len: usize) {
    let end = content.len().min(offset + len);
    content[offset.min(end)..end].fill(0);
}
