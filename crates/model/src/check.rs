//! Checks: what a verification reads of the source, as digests, in the ordered stream.
//!
//! Source and replica compute the same digests from what they have; here is what goes into them, and in which order. Covered are kind, mode, owner,
//! size, modification time, extended attributes, names with the nodes that they lead to (so hard links too), symlink targets, device numbers and
//! content. Not covered: access and change times, inode flags, and where content lies on the disk.
//!
//! A digest is 128 bits of BLAKE3: enough that no accident makes two things equal. One check of many small nodes carries one digest for all of them, which
//! keeps a verification far below a thousandth of what it reads.

use crate::{Attributes, ByteLen, ByteOffset, DirectoryEntry, NodeId, NodeKind, VolumeId};
use serde::{Deserialize, Serialize};

/// A file up to this size is checked as one, together with its attributes; a larger one in blocks of this size besides.
pub const BLOCK_BYTES: u64 = 1 << 20;
/// One check of zeros covers at most this: where the replica has data instead, it has to read it.
pub const ZEROS_BYTES_MAX: u64 = 256 << 20;
/// Nodes in one check: keeps its work on the replica in the order of milliseconds.
pub const NODES_MAX: usize = 128;
/// Busy nodes that an end names; the others are counted.
pub const BUSY_NAMED_MAX: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

/// A node in three parts, so that a difference has a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeDigest {
    pub attributes: Digest,
    pub xattrs: Digest,
    /// Content of a small file, names of a directory; nothing for others.
    pub content: Digest,
}

/// One item of verification `run`. Only a later `pass` confirms what an earlier one suspects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub run: u64,
    pub pass: u8,
    pub of: CheckOf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckOf {
    /// Whole nodes of one volume, by ascending inode number, with one digest. The generations are in the digest.
    Nodes { volume: VolumeId, subvolume: u64, inodes: Vec<u64>, digest: Digest },
    /// One node by itself.
    Node { node: NodeId, digest: NodeDigest },
    /// A range of a file's content.
    Range { node: NodeId, offset: ByteOffset, len: ByteLen, digest: Digest },
    /// A range that reads as zeros.
    Zeros { node: NodeId, offset: ByteOffset, len: ByteLen },
    /// The pass is through.
    End(PassEnd),
}

/// What did not match, or was not compared: a node, or a range of a larger file's content. The next pass reads it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Suspect {
    pub node: NodeId,
    #[serde(default)]
    pub range: Option<(ByteOffset, ByteLen)>,
}

/// What a pass came to on the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassEnd {
    /// Checks of this pass before this one. Fewer on the appliance mean that some were lost.
    pub checks: u64,
    pub nodes: u64,
    /// Content that was read.
    pub bytes: u64,
    /// Nodes that never stood still for long enough, in all, and how much content of theirs was not compared.
    pub busy_nodes: u64,
    pub busy_bytes: u64,
    /// The first of them with their bytes.
    pub busy: Vec<(NodeId, ByteLen)>,
    /// Nodes that could not be read.
    pub unread_nodes: u64,
}

struct Sum(blake3::Hasher);

impl Sum {
    fn new() -> Sum {
        Sum(blake3::Hasher::new())
    }
    fn number(&mut self, value: u64) -> &mut Sum {
        self.0.update(&value.to_le_bytes());
        self
    }
    /// With its length in front, so that no two lists look alike.
    fn bytes(&mut self, bytes: &[u8]) -> &mut Sum {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
        self
    }
    fn node(&mut self, node: NodeId) -> &mut Sum {
        self.number(node.volume.0.into()).number(node.subvolume).number(node.inode).number(node.generation.into())
    }
    fn end(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes().first_chunk().expect("a hash is longer"))
    }
}

fn kind_number(kind: NodeKind) -> u64 {
    match kind {
        NodeKind::File => 0,
        NodeKind::Directory => 1,
        NodeKind::Symlink => 2,
        NodeKind::CharDevice => 3,
        NodeKind::BlockDevice => 4,
        NodeKind::Fifo => 5,
        NodeKind::Socket => 6,
    }
}

impl Digest {
    pub fn of_content(bytes: &[u8]) -> Digest {
        Sum::new().bytes(bytes).end()
    }

    /// `size` counts for files only. Nobody reads the mode of a symlink.
    pub fn of_attributes(kind: NodeKind, attributes: &Attributes, size: ByteLen) -> Digest {
        let mode = if kind == NodeKind::Symlink { 0 } else { attributes.mode };
        let size = if kind == NodeKind::File { size.0 } else { 0 };
        let mut sum = Sum::new();
        sum.number(kind_number(kind)).number(mode.into()).number(attributes.owner.into()).number(attributes.group.into());
        sum.number(attributes.modified.0 as u64).number(size).end()
    }

    /// Sorts them first.
    pub fn of_xattrs(xattrs: &mut [(Vec<u8>, Vec<u8>)]) -> Digest {
        xattrs.sort();
        let mut sum = Sum::new();
        for (name, value) in xattrs.iter() {
            sum.bytes(name).bytes(value);
        }
        sum.end()
    }

    /// All names of a directory; sorts them first.
    pub fn of_names(entries: &mut [DirectoryEntry]) -> Digest {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let mut sum = Sum::new();
        for DirectoryEntry { name, node, kind, device, target } in entries.iter() {
            sum.bytes(name.as_bytes()).node(*node).number(kind_number(*kind)).number(*device).bytes(target);
        }
        sum.end()
    }

    /// Of nodes by ascending inode number.
    pub fn of_nodes<'a>(nodes: impl IntoIterator<Item = (NodeId, &'a NodeDigest)>) -> Digest {
        let mut sum = Sum::new();
        for (node, digest) in nodes {
            sum.node(node);
            for part in [digest.attributes, digest.xattrs, digest.content] {
                sum.0.update(&part.0);
            }
        }
        sum.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Name, Timestamp};

    fn node(inode: u64) -> NodeId {
        NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 7 }
    }

    fn entry(name: &str, inode: u64) -> DirectoryEntry {
        DirectoryEntry { name: Name::new(name).unwrap(), node: node(inode), kind: NodeKind::File, device: 0, target: vec![] }
    }

    #[test]
    fn order_does_not_matter_and_everything_else_does() {
        let names = |entries: &[(&str, u64)]| Digest::of_names(&mut entries.iter().map(|(n, i)| entry(n, *i)).collect::<Vec<_>>());
        let both = names(&[("a", 1), ("b", 2)]);
        assert_eq!(both, names(&[("b", 2), ("a", 1)]));
        for other in [names(&[("a", 1)]), names(&[("a", 1), ("b", 3)]), names(&[("a", 1), ("c", 2)]), names(&[("a", 2), ("b", 1)])] {
            assert_ne!(both, other);
        }
        let xattr = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        assert_ne!(Digest::of_xattrs(&mut [xattr("ab", "c")]), Digest::of_xattrs(&mut [xattr("a", "bc")]));
        let good = Attributes { mode: 0o644, owner: 1, group: 2, modified: Timestamp(-5) };
        let of = |kind, attributes| Digest::of_attributes(kind, &attributes, ByteLen(9));
        let first = of(NodeKind::File, good);
        for other in [
            Attributes { mode: 0o600, ..good },
            Attributes { owner: 2, ..good },
            Attributes { group: 1, ..good },
            Attributes { modified: Timestamp(-4), ..good },
        ] {
            assert_ne!(first, of(NodeKind::File, other));
        }
        assert_eq!(of(NodeKind::Symlink, good), of(NodeKind::Symlink, Attributes { mode: 0o777, ..good }));
    }

    #[test]
    fn digests_stay_what_they_are() {
        // Source and appliance may be of different versions.
        let hex = |digest: Digest| digest.0.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let of = NodeDigest { content: Digest::of_content(b"content"), ..NodeDigest::default() };
        assert_eq!(hex(Digest::of_nodes([(node(5), &of)])), DOCUMENTED);
    }

    const DOCUMENTED: &str = "656b4e55ec62667d8cc361f5bcb9e271";
}
