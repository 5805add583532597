//! The writing half of the operation codec; tags are part of the format and never change their meaning.

use crate::operation::*;
use crate::{ByteLen, ByteOffset, NodeId};

/// Index in this list is the byte on the wire.
pub(super) const KINDS: [NodeKind; 7] =
    [NodeKind::File, NodeKind::Directory, NodeKind::Symlink, NodeKind::CharDevice, NodeKind::BlockDevice, NodeKind::Fifo, NodeKind::Socket];
pub(super) const RENAME_MODES: [RenameMode; 4] = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange, RenameMode::Whiteout];

pub(super) struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    pub fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }
    fn flag(&mut self, value: bool) -> &mut Self {
        self.0.push(value.into());
        self
    }
    fn blob(&mut self, bytes: &[u8]) -> &mut Self {
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }
    pub fn node(&mut self, node: NodeId) -> &mut Self {
        self.varint(node.volume.0.into()).varint(node.subvolume).varint(node.inode).varint(node.generation.into())
    }
    fn time(&mut self, time: Timestamp) -> &mut Self {
        self.varint(((time.0 << 1) ^ (time.0 >> 63)) as u64)
    }
    fn optional_time(&mut self, time: Option<Timestamp>) -> &mut Self {
        self.flag(time.is_some());
        if let Some(time) = time {
            self.time(time);
        }
        self
    }
    fn attributes(&mut self, a: &Attributes) -> &mut Self {
        self.varint(a.mode.into()).varint(a.owner.into()).varint(a.group.into()).time(a.modified)
    }
    fn kind(&mut self, kind: NodeKind) -> &mut Self {
        self.0.push(KINDS.iter().position(|k| *k == kind).expect("every kind is listed") as u8);
        self
    }
    fn tag(&mut self, tag: u8, node: NodeId) -> &mut Self {
        self.0.push(tag);
        self.node(node)
    }
    pub fn range(&mut self, offset: ByteOffset, len: ByteLen) -> &mut Self {
        self.varint(offset.0).varint(len.0)
    }
    fn name(&mut self, tag: u8, node: NodeId, parent: NodeId, name: &Name) -> &mut Self {
        self.tag(tag, node).node(parent).blob(name.as_bytes())
    }
}

/// Appends the operation's bytes to `out`.
pub fn encode(operation: &Operation, out: &mut Vec<u8>) {
    use Operation::*;
    let w = &mut Writer(out);
    match operation {
        Write { node, offset, data } => w.tag(1, *node).varint(offset.0).blob(data),
        Patch { node, offset, len, parts, checksum } => {
            w.tag(34, *node).range(*offset, *len).0.extend_from_slice(&checksum.to_le_bytes());
            w.varint(parts.len() as u64);
            let mut end = 0;
            for part in parts {
                w.varint(u64::from(part.at).saturating_sub(end)).blob(&part.data);
                end = part.end();
            }
            w
        }
        Zero { node, offset, len, keep_size } => w.tag(2, *node).range(*offset, *len).flag(*keep_size),
        Punch { node, offset, len } => w.tag(3, *node).range(*offset, *len),
        Allocate { node, offset, len, keep_size } => w.tag(4, *node).range(*offset, *len).flag(*keep_size),
        Collapse { node, offset, len } => w.tag(5, *node).range(*offset, *len),
        Insert { node, offset, len } => w.tag(6, *node).range(*offset, *len),
        Truncate { node, size } => w.tag(7, *node).varint(size.0),
        Create { parent, name, node, attributes } => w.name(8, *node, *parent, name).attributes(attributes),
        CreateUnnamed { node, attributes } => w.tag(9, *node).attributes(attributes),
        Mkdir { parent, name, node, attributes } => w.name(10, *node, *parent, name).attributes(attributes),
        Symlink { parent, name, node, target, attributes } => w.name(11, *node, *parent, name).blob(target).attributes(attributes),
        Mknod { parent, name, node, kind, device, attributes } => {
            w.name(12, *node, *parent, name).kind(*kind).varint(*device).attributes(attributes)
        }
        Link { parent, name, node } => w.name(13, *node, *parent, name),
        Unlink { parent, name, node } => w.name(14, *node, *parent, name),
        Rmdir { parent, name, node } => w.name(15, *node, *parent, name),
        Rename { .. } => encode_rename(operation, w),
        SetMode { node, mode } => w.tag(17, *node).varint((*mode).into()),
        SetOwner { node, owner, group } => w.tag(18, *node).varint((*owner).into()).varint((*group).into()),
        SetTimes { node, accessed, modified } => w.tag(19, *node).optional_time(*accessed).optional_time(*modified),
        SetXattr { node, name, value } => w.tag(20, *node).blob(name).blob(value),
        RemoveXattr { node, name } => w.tag(21, *node).blob(name),
        SetFlags { node, flags } => w.tag(22, *node).varint((*flags).into()),
        SetProject { node, project } => w.tag(32, *node).varint((*project).into()),
        CloneRange { origin, origin_offset, node, offset, len } => {
            w.tag(23, *node).range(*offset, *len).node(*origin).varint(origin_offset.0)
        }
        MirrorDirectory { .. } | MirrorNode { .. } => encode_listing(operation, w),
        MirrorData { node, offset, data } => w.tag(26, *node).varint(offset.0).blob(data),
        MirrorHole { node, offset, len } => w.tag(27, *node).range(*offset, *len),
        MirrorDigests { node, offset, len, block, digests } => {
            w.tag(31, *node).range(*offset, *len).varint((*block).into());
            digests.iter().for_each(|digest| w.0.extend_from_slice(&digest.0));
            w
        }
        Marker(marker) => encode_marker(marker, w),
        Forget { node } => w.tag(29, *node),
        Check(check) => super::check::write(check, w),
    };
}

fn encode_rename<'a, 'b>(operation: &Operation, w: &'a mut Writer<'b>) -> &'a mut Writer<'b> {
    let Operation::Rename { parent, name, node, new_parent, new_name, mode, victim } = operation else {
        unreachable!("called for renames only")
    };
    w.name(16, *node, *parent, name).node(*new_parent).blob(new_name.as_bytes());
    w.0.push(RENAME_MODES.iter().position(|m| m == mode).expect("every mode is listed") as u8);
    w.flag(victim.is_some());
    if let Some(victim) = victim {
        w.node(*victim);
    }
    w
}

fn encode_listing<'a, 'b>(operation: &Operation, w: &'a mut Writer<'b>) -> &'a mut Writer<'b> {
    match operation {
        Operation::MirrorDirectory { node, entries, first, last } => {
            w.tag(24, *node).flag(*first).flag(*last).varint(entries.len() as u64);
            for entry in entries {
                w.blob(entry.name.as_bytes()).node(entry.node).kind(entry.kind).varint(entry.device).blob(&entry.target);
            }
        }
        Operation::MirrorNode { node, kind, attributes, accessed, flags, project, size, xattrs } => {
            // Hardly any node belongs to a project; those that do have a tag of their own.
            w.tag(if *project == 0 { 25 } else { 33 }, *node).kind(*kind).attributes(attributes).time(*accessed).varint((*flags).into());
            if *project != 0 {
                w.varint((*project).into());
            }
            w.varint(size.0);
            w.varint(xattrs.len() as u64);
            for (name, value) in xattrs {
                w.blob(name).blob(value);
            }
        }
        _ => unreachable!("called for listings and nodes only"),
    }
    w
}

fn encode_marker<'a, 'b>(marker: &Marker, w: &'a mut Writer<'b>) -> &'a mut Writer<'b> {
    w.0.push(28);
    match marker {
        Marker::Gap { reason } => {
            w.0.push(0);
            w.blob(reason.as_bytes());
        }
        Marker::ResyncStarted => w.0.push(1),
        Marker::Consistent => w.0.push(2),
        Marker::Quiesced => w.0.push(3),
        Marker::Named(name) => {
            w.0.push(4);
            w.blob(name.as_bytes());
        }
        Marker::StreamStarted { boot, everything } => {
            w.0.push(5);
            w.varint(*boot).flag(*everything);
        }
        Marker::Settled { through } => {
            w.0.push(6);
            w.varint(through.0);
        }
    }
    w
}
