//! Bytes ↔ operations, as `docs/formats/operation.md` describes them: one tag byte, then fields in order; integers as LEB128
//! varints (zigzag where negative), byte strings with their length in front.
//!
//! Decoding trusts nothing: every length is checked against what is there before memory is reserved, and a value that the model does
//! not allow is an error. An unknown tag is an error too; new kinds need a new segment format version.

use crate::difference::{DIGEST_BLOCK_BYTES_MAX, DIGESTS_MAX, blocks_of};
use crate::operation::*;
use crate::patch::{PATCH_BYTES_MAX, PatchPart};
use crate::{ByteLen, ByteOffset, NodeId, OpSeq, VolumeId};
use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("operation ends in the middle of {field}")]
    Short { field: &'static str },
    #[error("operation has an unknown tag {tag}")]
    UnknownTag { tag: u8 },
    #[error("operation field {field} has a value that is not allowed: {value}")]
    BadValue { field: &'static str, value: u64 },
    #[error("operation has a bad name: {0}")]
    BadName(NameError),
}

type Result<T> = std::result::Result<T, DecodeError>;

/// No single operation is larger: 1 MiB of data, or a listing page, with room for its fields.
pub const OPERATION_BYTES_MAX: usize = 2 * 1024 * 1024;

mod check;
mod write;
pub use write::encode;

/// A cursor over bytes from outside.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self, field: &'static str) -> Result<u8> {
        let (first, rest) = self.bytes.split_first().ok_or(DecodeError::Short { field })?;
        self.bytes = rest;
        Ok(*first)
    }

    fn varint(&mut self, field: &'static str) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(field)?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return Err(DecodeError::BadValue { field, value: part });
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::BadValue { field, value })
    }

    fn u32(&mut self, field: &'static str) -> Result<u32> {
        let value = self.varint(field)?;
        u32::try_from(value).map_err(|_| DecodeError::BadValue { field, value })
    }

    /// Eight bytes as they are.
    fn word(&mut self, field: &'static str) -> Result<u64> {
        let (head, rest) = self.bytes.split_first_chunk().ok_or(DecodeError::Short { field })?;
        self.bytes = rest;
        Ok(u64::from_le_bytes(*head))
    }

    fn flag(&mut self, field: &'static str) -> Result<bool> {
        match self.byte(field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::BadValue { field, value: value.into() }),
        }
    }

    fn blob(&mut self, field: &'static str) -> Result<Vec<u8>> {
        let len = self.varint(field)?;
        let len = usize::try_from(len).map_err(|_| DecodeError::BadValue { field, value: len })?;
        let (head, rest) = self.bytes.split_at_checked(len).ok_or(DecodeError::Short { field })?;
        self.bytes = rest;
        Ok(head.to_vec())
    }

    fn text(&mut self, field: &'static str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.blob(field)?).into_owned())
    }

    fn name(&mut self) -> Result<Name> {
        Name::new(self.blob("name")?).map_err(DecodeError::BadName)
    }

    fn node(&mut self) -> Result<NodeId> {
        let volume = self.varint("volume")?;
        let volume = u16::try_from(volume).map_err(|_| DecodeError::BadValue { field: "volume", value: volume })?;
        Ok(NodeId {
            volume: VolumeId(volume),
            subvolume: self.varint("subvolume")?,
            inode: self.varint("inode")?,
            generation: self.u32("generation")?,
        })
    }

    fn time(&mut self) -> Result<Timestamp> {
        let zigzag = self.varint("time")?;
        Ok(Timestamp(((zigzag >> 1) as i64) ^ -((zigzag & 1) as i64)))
    }

    fn optional_time(&mut self) -> Result<Option<Timestamp>> {
        if self.flag("time present")? { self.time().map(Some) } else { Ok(None) }
    }

    fn mode(&mut self) -> Result<u32> {
        let mode = self.u32("mode")?;
        if mode > 0o7777 { Err(DecodeError::BadValue { field: "mode", value: mode.into() }) } else { Ok(mode) }
    }

    fn attributes(&mut self) -> Result<Attributes> {
        Ok(Attributes { mode: self.mode()?, owner: self.u32("owner")?, group: self.u32("group")?, modified: self.time()? })
    }

    /// Offset and length whose sum stays a valid file position.
    fn range(&mut self) -> Result<(ByteOffset, ByteLen)> {
        let offset = self.offset()?;
        let len = ByteLen(self.varint("length")?);
        match offset.checked_add(len) {
            Some(end) if end.0 <= i64::MAX as u64 => Ok((offset, len)),
            _ => Err(DecodeError::BadValue { field: "length", value: len.0 }),
        }
    }

    fn offset(&mut self) -> Result<ByteOffset> {
        let value = self.varint("offset")?;
        if value > i64::MAX as u64 { Err(DecodeError::BadValue { field: "offset", value }) } else { Ok(ByteOffset(value)) }
    }

    fn kind(&mut self) -> Result<NodeKind> {
        let value = self.byte("kind")?;
        write::KINDS.get(usize::from(value)).copied().ok_or(DecodeError::BadValue { field: "kind", value: value.into() })
    }

    fn rename_mode(&mut self) -> Result<RenameMode> {
        let value = self.byte("rename mode")?;
        write::RENAME_MODES.get(usize::from(value)).copied().ok_or(DecodeError::BadValue { field: "rename mode", value: value.into() })
    }

    /// One that is told, so that it is not none: every operation has one written form.
    fn project(&mut self) -> Result<u32> {
        match self.u32("project")? {
            0 => Err(DecodeError::BadValue { field: "project", value: 0 }),
            project => Ok(project),
        }
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, field: &'static str, least: usize) -> Result<usize> {
        let value = self.varint(field)?;
        let fits = usize::try_from(value).ok().filter(|n| n.checked_mul(least).is_some_and(|bytes| bytes <= self.bytes.len()));
        fits.ok_or(DecodeError::BadValue { field, value })
    }

    fn marker(&mut self) -> Result<Marker> {
        Ok(match self.byte("marker")? {
            0 => Marker::Gap { reason: self.text("reason")? },
            1 => Marker::ResyncStarted,
            2 => Marker::Consistent,
            3 => Marker::Quiesced,
            4 => Marker::Named(self.text("marker name")?),
            5 => Marker::StreamStarted { boot: self.varint("boot")?, everything: self.flag("everything")? },
            6 => Marker::Settled { through: OpSeq(self.varint("through")?) },
            value => return Err(DecodeError::BadValue { field: "marker", value: value.into() }),
        })
    }

    fn entry(&mut self) -> Result<DirectoryEntry> {
        Ok(DirectoryEntry {
            name: self.name()?,
            node: self.node()?,
            kind: self.kind()?,
            device: self.varint("device")?,
            target: self.blob("target")?,
        })
    }
}

/// Reads one operation and returns it with the bytes behind it. One that is longer than [`OPERATION_BYTES_MAX`] counts as cut off there.
pub fn decode(bytes: &[u8]) -> Result<(Operation, &[u8])> {
    let (head, _) = bytes.split_at(bytes.len().min(OPERATION_BYTES_MAX));
    let mut reader = Reader { bytes: head };
    let operation = read_operation(&mut reader)?;
    let taken = head.len() - reader.bytes.len();
    Ok((operation, bytes.get(taken..).unwrap_or_default()))
}

fn read_operation(r: &mut Reader) -> Result<Operation> {
    let tag = r.byte("tag")?;
    match tag {
        1..=7 | 23 => read_content(tag, r),
        34 => read_patch(r),
        8..=16 => read_name(tag, r),
        17..=22 | 32 => read_attribute(tag, r),
        24..=28 | 31 | 33 => read_mirror(tag, r),
        29 => Ok(Operation::Forget { node: r.node()? }),
        30 => Ok(Operation::Check(check::read(r)?)),
        _ => Err(DecodeError::UnknownTag { tag }),
    }
}

fn read_content(tag: u8, r: &mut Reader) -> Result<Operation> {
    use Operation::*;
    let node = r.node()?;
    Ok(match tag {
        1 => Write { node, offset: r.offset()?, data: r.blob("data")? },
        7 => Truncate { node, size: ByteLen(r.offset()?.0) },
        23 => {
            let (offset, len) = r.range()?;
            CloneRange { node, offset, len, origin: r.node()?, origin_offset: r.offset()? }
        }
        _ => {
            let (offset, len) = r.range()?;
            match tag {
                2 => Zero { node, offset, len, keep_size: r.flag("keep size")? },
                3 => Punch { node, offset, len },
                4 => Allocate { node, offset, len, keep_size: r.flag("keep size")? },
                5 => Collapse { node, offset, len },
                6 => Insert { node, offset, len },
                _ => return Err(DecodeError::UnknownTag { tag }),
            }
        }
    })
}

fn read_patch(r: &mut Reader) -> Result<Operation> {
    let node = r.node()?;
    let (offset, len) = r.range()?;
    if len.0 > PATCH_BYTES_MAX {
        return Err(DecodeError::BadValue { field: "length", value: len.0 });
    }
    let checksum = r.word("checksum")?;
    // A part takes at least 3 bytes: where it is, its length, and a byte.
    let count = r.count("parts", 3)?;
    let mut parts = Vec::new();
    let mut end = 0u64;
    for index in 0..count {
        let apart = r.varint("part")?;
        let data = r.blob("part")?;
        let at = end.saturating_add(apart);
        end = at.saturating_add(data.len() as u64);
        // One behind another would be one part.
        let is_good = !data.is_empty() && (index == 0 || apart > 0) && end <= len.0;
        let at = u32::try_from(at).ok().filter(|_| is_good).ok_or(DecodeError::BadValue { field: "part", value: apart })?;
        parts.push(PatchPart { at, data });
    }
    Ok(Operation::Patch { node, offset, len, parts, checksum })
}

fn read_name(tag: u8, r: &mut Reader) -> Result<Operation> {
    use Operation::*;
    let node = r.node()?;
    if tag == 9 {
        return Ok(CreateUnnamed { node, attributes: r.attributes()? });
    }
    let parent = r.node()?;
    let name = r.name()?;
    Ok(match tag {
        8 => Create { parent, name, node, attributes: r.attributes()? },
        10 => Mkdir { parent, name, node, attributes: r.attributes()? },
        11 => Symlink { parent, name, node, target: r.blob("target")?, attributes: r.attributes()? },
        12 => Mknod { parent, name, node, kind: r.kind()?, device: r.varint("device")?, attributes: r.attributes()? },
        13 => Link { parent, name, node },
        14 => Unlink { parent, name, node },
        15 => Rmdir { parent, name, node },
        16 => {
            let (new_parent, new_name, mode) = (r.node()?, r.name()?, r.rename_mode()?);
            let victim = if r.flag("victim present")? { Some(r.node()?) } else { None };
            Rename { parent, name, node, new_parent, new_name, mode, victim }
        }
        _ => return Err(DecodeError::UnknownTag { tag }),
    })
}

fn read_attribute(tag: u8, r: &mut Reader) -> Result<Operation> {
    use Operation::*;
    let node = r.node()?;
    Ok(match tag {
        17 => SetMode { node, mode: r.mode()? },
        18 => SetOwner { node, owner: r.u32("owner")?, group: r.u32("group")? },
        19 => SetTimes { node, accessed: r.optional_time()?, modified: r.optional_time()? },
        20 => SetXattr { node, name: r.blob("xattr name")?, value: r.blob("xattr value")? },
        21 => RemoveXattr { node, name: r.blob("xattr name")? },
        22 => SetFlags { node, flags: r.u32("flags")? },
        32 => SetProject { node, project: r.u32("project")? },
        _ => return Err(DecodeError::UnknownTag { tag }),
    })
}

fn read_mirror(tag: u8, r: &mut Reader) -> Result<Operation> {
    use Operation::*;
    if tag == 28 {
        return Ok(Marker(r.marker()?));
    }
    let node = r.node()?;
    Ok(match tag {
        24 => {
            let (first, last) = (r.flag("first")?, r.flag("last")?);
            // An entry takes at least 9 bytes: name of one byte, node of four, kind, device, target length.
            let count = r.count("entries", 9)?;
            MirrorDirectory { node, first, last, entries: (0..count).map(|_| r.entry()).collect::<Result<_>>()? }
        }
        25 | 33 => {
            let (kind, attributes, accessed) = (r.kind()?, r.attributes()?, r.time()?);
            let flags = r.u32("flags")?;
            let project = if tag == 33 { r.project()? } else { 0 };
            let size = ByteLen(r.offset()?.0);
            let count = r.count("xattrs", 2)?;
            let xattrs = (0..count).map(|_| Ok((r.blob("xattr name")?, r.blob("xattr value")?))).collect::<Result<_>>()?;
            MirrorNode { node, kind, attributes, accessed, flags, project, size, xattrs }
        }
        26 => MirrorData { node, offset: r.offset()?, data: r.blob("data")? },
        27 => {
            let (offset, len) = r.range()?;
            MirrorHole { node, offset, len }
        }
        31 => {
            let (offset, len) = r.range()?;
            let block = r.u32("block")?;
            if block == 0 || block > DIGEST_BLOCK_BYTES_MAX {
                return Err(DecodeError::BadValue { field: "block", value: block.into() });
            }
            let count = blocks_of(len.0, block);
            if count > DIGESTS_MAX as u64 {
                return Err(DecodeError::BadValue { field: "length", value: len.0 });
            }
            MirrorDigests { node, offset, len, block, digests: (0..count).map(|_| r.digest()).collect::<Result<_>>()? }
        }
        _ => return Err(DecodeError::UnknownTag { tag }),
    })
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
