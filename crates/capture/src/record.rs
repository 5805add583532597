//! Decoding of one ring record (see `docs/formats/capture-ring.md`) into values, without trust in a single byte.
//!
//! The layout is `bpf/record.h`. A record that is shorter than its header, or whose payload says more than is there, is an error; it never
//! panics.

use standin_model::{NodeKind, Timestamp};

pub const HEAD_BYTES: usize = 136;
pub const NAME_BYTES: usize = 256;
pub const FLAG_UNREAD: u16 = 1;

/// Generates the record kinds once, with their numbers of `bpf/record.h`.
macro_rules! kinds {
    ($($name:ident = $number:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($name = $number,)* }
        impl Kind {
            pub fn from_number(number: u16) -> Option<Kind> {
                match number { $($number => Some(Kind::$name),)* _ => None }
            }
        }
    };
}
kinds! {
    Data = 1, Direct = 2, DirectEnd = 3, Mapped = 4, Mark = 5, Create = 6, Link = 7, Delete = 8, Rename = 9, RenameEnter = 10,
    SymlinkEnter = 11, Attributes = 12, Modify = 13, Gone = 14, XattrEnter = 15, XattrRemoveEnter = 16, Unnamed = 17,
    FallocateEnter = 18, Order = 19, CallExit = 20, CopyEnter = 21, CloneEnter = 22, Flags = 23, AtimeEnter = 24, Dirty = 25,
    MovedTo = 26, Close = 27, OpaqueEnter = 28, DirectDone = 29,
}

/// A node as the kernel named it; the volume is not known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawNode {
    pub inode: u64,
    pub root: u64,
    pub generation: u32,
    pub mode: u32,
    pub mtime: Timestamp,
}

impl RawNode {
    pub fn kind(&self) -> Option<NodeKind> {
        Some(match self.mode & 0o170000 {
            0o100000 => NodeKind::File,
            0o040000 => NodeKind::Directory,
            0o120000 => NodeKind::Symlink,
            0o020000 => NodeKind::CharDevice,
            0o060000 => NodeKind::BlockDevice,
            0o010000 => NodeKind::Fifo,
            0o140000 => NodeKind::Socket,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub kind: Kind,
    pub flags: u16,
    pub device: u32,
    pub tid: u32,
    /// Nanoseconds of the kernel's monotonic clock.
    pub time: u64,
    pub node: RawNode,
    pub parent: RawNode,
    pub size: u64,
    pub nlink: u32,
    pub rdev: u32,
    pub uid: u32,
    pub gid: u32,
    pub offset: u64,
    pub length: u64,
    pub extra: u64,
    pub payload: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
fn node_at(bytes: &[u8], at: usize) -> Option<RawNode> {
    Some(RawNode {
        inode: u64_at(bytes, at)?,
        root: u64_at(bytes, at.checked_add(8)?)?,
        generation: u32_at(bytes, at.checked_add(16)?)?,
        mode: u32_at(bytes, at.checked_add(20)?)?,
        mtime: Timestamp(u64_at(bytes, at.checked_add(24)?)? as i64),
    })
}

impl<'a> Record<'a> {
    /// `None` when the bytes are no record of a known kind.
    pub fn decode(bytes: &'a [u8]) -> Option<Record<'a>> {
        let payload_bytes = usize::try_from(u32_at(bytes, 4)?).ok()?;
        Some(Record {
            kind: Kind::from_number(u16_at(bytes, 0)?)?,
            flags: u16_at(bytes, 2)?,
            device: u32_at(bytes, 8)?,
            tid: u32_at(bytes, 12)?,
            time: u64_at(bytes, 16)?,
            node: node_at(bytes, 24)?,
            parent: node_at(bytes, 56)?,
            size: u64_at(bytes, 88)?,
            nlink: u32_at(bytes, 96)?,
            rdev: u32_at(bytes, 100)?,
            uid: u32_at(bytes, 104)?,
            gid: u32_at(bytes, 108)?,
            offset: u64_at(bytes, 112)?,
            length: u64_at(bytes, 120)?,
            extra: u64_at(bytes, 128)?,
            payload: bytes.get(HEAD_BYTES..HEAD_BYTES.checked_add(payload_bytes)?)?,
        })
    }

    /// The NUL-terminated text that starts at byte `at` of the payload and has at most `room` bytes.
    pub fn text(&self, at: usize, room: usize) -> Option<&'a [u8]> {
        let field = self.payload.get(at..at.checked_add(room)?)?;
        field.split(|byte| *byte == 0).next()
    }

    /// The node at byte `at` of the payload.
    pub fn payload_node(&self, at: usize) -> Option<RawNode> {
        node_at(self.payload, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(record) = Record::decode(&bytes) {
                let _ = record.text(0, NAME_BYTES);
                let _ = record.text(usize::MAX, 2);
                let _ = record.payload_node(usize::MAX);
            }
        }
    }

    #[test]
    fn a_payload_that_is_not_there_is_refused() {
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[0] = 1;
        assert!(Record::decode(&bytes).is_some());
        bytes[4] = 1;
        assert!(Record::decode(&bytes).is_none());
    }
}
