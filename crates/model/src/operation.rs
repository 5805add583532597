//! Operations: everything that can happen to a file system, plus mirror items and markers, in one ordered stream.
//!
//! Operations name nodes by id and never by path; a name is one component below a directory node. All kinds of a Linux file system
//! exist here from the start. Applying an operation twice in order is harmless except where said.

use crate::difference::blocks_of;
use crate::patch::{self, PatchPart};
use crate::{ByteLen, ByteOffset, Check, CheckOf, DIGEST_BLOCK_BYTES_MAX, DIGESTS_MAX, Digest, NodeId, OpSeq};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// One component of a path: 1 to 255 bytes, any byte but `/` and NUL, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<u8>);

#[derive(Debug, Error, PartialEq, Eq)]
#[error("not a file name: {} bytes, {reason}", length)]
pub struct NameError {
    pub length: usize,
    pub reason: &'static str,
}

impl Name {
    pub const LENGTH_MAX: usize = 255;

    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Name, NameError> {
        let bytes = bytes.into();
        let refuse = |reason| Err(NameError { length: bytes.len(), reason });
        if bytes.is_empty() || bytes.len() > Self::LENGTH_MAX {
            return refuse("length must be 1 to 255");
        }
        if bytes.contains(&b'/') || bytes.contains(&0) {
            return refuse("contains a slash or NUL");
        }
        if bytes == b"." || bytes == b".." {
            return refuse("is a dot name");
        }
        Ok(Name(bytes))
    }
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeKind {
    File,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// Nanoseconds since 1970-01-01 UTC, by the source's clock; negative before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// Who may do what, and when the content last changed. `mode` has permission, set-id and sticky bits only (07777).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
    pub modified: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RenameMode {
    /// Puts the node in place of whatever stands at the new name.
    Replace,
    NoReplace,
    Exchange,
    /// Leaves a whiteout (character device 0:0) at the old name.
    Whiteout,
}

/// An entry of a directory listing: a name, the node it leads to, and what never changes about that node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    pub name: Name,
    pub node: NodeId,
    pub kind: NodeKind,
    /// Device number as `major << 32 | minor`; 0 unless a device.
    pub device: u64,
    /// Target of a symlink; empty otherwise.
    pub target: Vec<u8>,
}

/// A point of the order that means something beyond its neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marker {
    /// From here on the replica may differ from every state of the source, until the next `Consistent`.
    Gap { reason: String },
    /// A mirror or resync has begun; directory listings may remove what they do not name.
    ResyncStarted,
    /// The replica after this item equals the source at this point of its order.
    Consistent,
    /// The source stands still: nothing follows until it is thawed.
    Quiesced,
    /// A point that a user or an application named.
    Named(String),
    /// An agent has begun a stream: the first 16 hex digits of its kernel's boot id, and whether everything will be mirrored. Where the kernel is another
    /// one than before, the source's file systems may have lost what was not on their disks yet.
    StreamStarted { boot: u64, everything: bool },
    /// What the source did up to there is on its disks: no power cut takes it back any more.
    Settled { through: OpSeq },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Write {
        node: NodeId,
        offset: ByteOffset,
        data: Vec<u8>,
    },
    /// A write of which only the bytes that changed are here, and the checksum (see `patch`) of all of the range as it is then. Writes its parts and nothing
    /// else, so that it is as idempotent as a write.
    Patch {
        node: NodeId,
        offset: ByteOffset,
        len: ByteLen,
        parts: Vec<PatchPart>,
        checksum: u64,
    },
    /// Makes the range read as zeros and keeps it allocated.
    Zero {
        node: NodeId,
        offset: ByteOffset,
        len: ByteLen,
        keep_size: bool,
    },
    /// Deallocates the range; the size stays.
    Punch {
        node: NodeId,
        offset: ByteOffset,
        len: ByteLen,
    },
    Allocate {
        node: NodeId,
        offset: ByteOffset,
        len: ByteLen,
        keep_size: bool,
    },
    /// Removes the range and moves what follows down. Not idempotent.
    Collapse {
        node: NodeId,
        offset: ByteOffset,
        len: ByteLen,
    },
    /// Moves what follows up and leaves a hole. Not idempotent.
    Insert {
        node: NodeId,
        offset: ByteOffset,
        len: ByteLen,
    },
    Truncate {
        node: NodeId,
        size: ByteLen,
    },

    Create {
        parent: NodeId,
        name: Name,
        node: NodeId,
        attributes: Attributes,
    },
    /// A file without a name (O_TMPFILE); a later `Link` may give it one.
    CreateUnnamed {
        node: NodeId,
        attributes: Attributes,
    },
    Mkdir {
        parent: NodeId,
        name: Name,
        node: NodeId,
        attributes: Attributes,
    },
    Symlink {
        parent: NodeId,
        name: Name,
        node: NodeId,
        target: Vec<u8>,
        attributes: Attributes,
    },
    Mknod {
        parent: NodeId,
        name: Name,
        node: NodeId,
        kind: NodeKind,
        device: u64,
        attributes: Attributes,
    },
    Link {
        parent: NodeId,
        name: Name,
        node: NodeId,
    },
    Unlink {
        parent: NodeId,
        name: Name,
        node: NodeId,
    },
    Rmdir {
        parent: NodeId,
        name: Name,
        node: NodeId,
    },
    /// `victim` is the node at the new name before: replaced, or exchanged.
    Rename {
        parent: NodeId,
        name: Name,
        node: NodeId,
        new_parent: NodeId,
        new_name: Name,
        mode: RenameMode,
        victim: Option<NodeId>,
    },
    /// The node has no name left and nobody has it open.
    Forget {
        node: NodeId,
    },

    SetMode {
        node: NodeId,
        mode: u32,
    },
    SetOwner {
        node: NodeId,
        owner: u32,
        group: u32,
    },
    /// `accessed` only where somebody set it; reading a file is no operation.
    SetTimes {
        node: NodeId,
        accessed: Option<Timestamp>,
        modified: Option<Timestamp>,
    },
    SetXattr {
        node: NodeId,
        name: Vec<u8>,
        value: Vec<u8>,
    },
    RemoveXattr {
        node: NodeId,
        name: Vec<u8>,
    },
    /// Inode flags as of FS_IOC_GETFLAGS (immutable, append-only, nocow, …).
    SetFlags {
        node: NodeId,
        flags: u32,
    },
    /// The id by which a file system counts space for a project, and limits it; 0 is none. With FS_PROJINHERIT_FL among a directory's flags, what is made
    /// in it gets the directory's, which is told as an operation of its own.
    SetProject {
        node: NodeId,
        project: u32,
    },
    /// Copies by reference. Not idempotent, since the origin may change later.
    CloneRange {
        origin: NodeId,
        origin_offset: ByteOffset,
        node: NodeId,
        offset: ByteOffset,
        len: ByteLen,
    },

    /// A page of a directory listing. Names that no page names are removed at `last`, where a resync runs.
    MirrorDirectory {
        node: NodeId,
        entries: Vec<DirectoryEntry>,
        first: bool,
        last: bool,
    },
    /// All of a node but names and content. `size` truncates or extends; `xattrs` is the whole set.
    MirrorNode {
        node: NodeId,
        kind: NodeKind,
        attributes: Attributes,
        accessed: Timestamp,
        flags: u32,
        project: u32,
        size: ByteLen,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    },
    /// Content read from the source; what lies between two chunks of a file and in none of them is a hole.
    MirrorData {
        node: NodeId,
        offset: ByteOffset,
        data: Vec<u8>,
    },
    /// A range that is a hole on the source.
    MirrorHole {
        node: NodeId,
        offset: ByteOffset,
        len: ByteLen,
    },
    /// Content read from the source as digests of blocks of `block` bytes, the last maybe shorter. Changes nothing: the replica answers which blocks it
    /// has otherwise. Where none differs, this is worth what the data would have been.
    MirrorDigests {
        node: NodeId,
        offset: ByteOffset,
        len: ByteLen,
        block: u32,
        digests: Vec<Digest>,
    },
    Marker(Marker),
    /// Changes nothing: what a verification read of the source at this point.
    Check(Check),
}

/// An operation and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub seq: OpSeq,
    pub operation: Operation,
}

impl Operation {
    /// The node whose content, attributes or name this is about; `None` for markers and checks.
    pub fn node(&self) -> Option<NodeId> {
        use Operation::*;
        match self {
            Write { node, .. }
            | Patch { node, .. }
            | Zero { node, .. }
            | Punch { node, .. }
            | Allocate { node, .. }
            | Collapse { node, .. }
            | Insert { node, .. }
            | Truncate { node, .. }
            | Create { node, .. }
            | CreateUnnamed { node, .. }
            | Mkdir { node, .. }
            | Symlink { node, .. }
            | Mknod { node, .. }
            | Link { node, .. }
            | Unlink { node, .. }
            | Rmdir { node, .. }
            | Rename { node, .. }
            | Forget { node }
            | SetMode { node, .. }
            | SetOwner { node, .. }
            | SetTimes { node, .. }
            | SetXattr { node, .. }
            | RemoveXattr { node, .. }
            | SetFlags { node, .. }
            | SetProject { node, .. }
            | CloneRange { node, .. }
            | MirrorDirectory { node, .. }
            | MirrorNode { node, .. }
            | MirrorData { node, .. }
            | MirrorHole { node, .. }
            | MirrorDigests { node, .. } => Some(*node),
            Marker(_) | Check(_) => None,
        }
    }

    /// Every node that this changes: the node itself, then the directories whose names change and what a rename replaces.
    pub fn changed_nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        use Operation::*;
        let [first, second, third] = match self {
            Create { parent, .. }
            | Mkdir { parent, .. }
            | Symlink { parent, .. }
            | Mknod { parent, .. }
            | Link { parent, .. }
            | Unlink { parent, .. }
            | Rmdir { parent, .. } => [Some(*parent), None, None],
            Rename { parent, new_parent, victim, .. } => [Some(*parent), Some(*new_parent), *victim],
            _ => [None, None, None],
        };
        [self.node(), first, second, third].into_iter().flatten()
    }

    /// Whether offsets, lengths and modes are ones that a file can have. What is not is refused by every reader of a stream.
    pub fn is_possible(&self) -> bool {
        use Operation::*;
        let position = |offset: u64| offset <= i64::MAX as u64;
        let range = |offset: &ByteOffset, len: &ByteLen| offset.checked_add(*len).is_some_and(|end| position(end.0));
        match self {
            Write { offset, .. } | MirrorData { offset, .. } => position(offset.0),
            Patch { offset, len, parts, .. } => range(offset, len) && patch::are_possible(parts, len.0),
            Zero { offset, len, .. } | Allocate { offset, len, .. } => range(offset, len),
            Punch { offset, len, .. } | Collapse { offset, len, .. } | Insert { offset, len, .. } | MirrorHole { offset, len, .. } => {
                range(offset, len)
            }
            MirrorDigests { offset, len, block, digests, .. } => {
                range(offset, len)
                    && (1..=DIGEST_BLOCK_BYTES_MAX).contains(block)
                    && digests.len() <= DIGESTS_MAX
                    && digests.len() as u64 == blocks_of(len.0, *block)
            }
            CloneRange { offset, len, origin_offset, .. } => range(offset, len) && position(origin_offset.0),
            Truncate { size, .. } => position(size.0),
            MirrorNode { size, attributes, .. } => position(size.0) && attributes.mode <= 0o7777,
            Create { attributes, .. } | CreateUnnamed { attributes, .. } | Mkdir { attributes, .. } => attributes.mode <= 0o7777,
            Symlink { attributes, .. } | Mknod { attributes, .. } => attributes.mode <= 0o7777,
            SetMode { mode, .. } => *mode <= 0o7777,
            Link { .. } | Unlink { .. } | Rmdir { .. } | Rename { .. } | Forget { .. } => true,
            SetOwner { .. } | SetTimes { .. } | SetXattr { .. } | RemoveXattr { .. } | SetFlags { .. } | SetProject { .. } => true,
            MirrorDirectory { .. } | Marker(_) => true,
            Check(check) => match &check.of {
                CheckOf::Range { offset, len, .. } | CheckOf::Zeros { offset, len, .. } => range(offset, len),
                CheckOf::Nodes { .. } | CheckOf::Node { .. } | CheckOf::End(_) => true,
            },
        }
    }

    /// Whether this came from reading the source rather than from observing it.
    pub fn is_mirror(&self) -> bool {
        use Operation::*;
        matches!(self, MirrorDirectory { .. } | MirrorNode { .. } | MirrorData { .. } | MirrorHole { .. } | MirrorDigests { .. })
    }

    /// Bytes of file content inside.
    pub fn content_len(&self) -> u64 {
        match self {
            Operation::Write { data, .. } | Operation::MirrorData { data, .. } => data.len() as u64,
            Operation::Patch { parts, .. } => parts.iter().map(|part| part.data.len() as u64).sum(),
            _ => 0,
        }
    }

    /// Whether a second application after later operations could give another result.
    pub fn is_idempotent(&self) -> bool {
        !matches!(self, Operation::Collapse { .. } | Operation::Insert { .. } | Operation::CloneRange { .. })
    }
}
