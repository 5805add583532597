//! Checks as bytes: `docs/formats/operation.md`, tag 30.

use super::write::Writer;
use super::{DecodeError, Reader, Result};
use crate::check::{BUSY_NAMED_MAX, Check, CheckOf, Digest, NODES_MAX, NodeDigest, PassEnd};
use crate::{ByteLen, VolumeId};

impl Reader<'_> {
    pub(super) fn digest(&mut self) -> Result<Digest> {
        let (head, rest) = self.bytes.split_first_chunk().ok_or(DecodeError::Short { field: "digest" })?;
        self.bytes = rest;
        Ok(Digest(*head))
    }

    /// A count within what a check may hold.
    fn few(&mut self, field: &'static str, most: usize) -> Result<usize> {
        let value = self.varint(field)?;
        usize::try_from(value).ok().filter(|count| *count <= most).ok_or(DecodeError::BadValue { field, value })
    }
}

pub(super) fn read(r: &mut Reader<'_>) -> Result<Check> {
    let (run, pass) = (r.varint("run")?, r.byte("pass")?);
    let kind = r.byte("check")?;
    let of = match kind {
        0 => read_nodes(r)?,
        1 => CheckOf::Node { node: r.node()?, digest: NodeDigest { attributes: r.digest()?, xattrs: r.digest()?, content: r.digest()? } },
        2 | 3 => {
            let node = r.node()?;
            let (offset, len) = r.range()?;
            if kind == 2 { CheckOf::Range { node, offset, len, digest: r.digest()? } } else { CheckOf::Zeros { node, offset, len } }
        }
        4 => CheckOf::End(read_end(r)?),
        value => return Err(DecodeError::BadValue { field: "check", value: value.into() }),
    };
    Ok(Check { run, pass, of })
}

fn read_nodes(r: &mut Reader<'_>) -> Result<CheckOf> {
    let volume = r.varint("volume")?;
    let volume = VolumeId(u16::try_from(volume).map_err(|_| DecodeError::BadValue { field: "volume", value: volume })?);
    let subvolume = r.varint("subvolume")?;
    let count = r.few("nodes", NODES_MAX)?;
    let (mut inodes, mut last) = (Vec::with_capacity(count), 0u64);
    for _ in 0..count {
        let step = r.varint("inode")?;
        last = last.checked_add(step).ok_or(DecodeError::BadValue { field: "inode", value: step })?;
        inodes.push(last);
    }
    Ok(CheckOf::Nodes { volume, subvolume, inodes, digest: r.digest()? })
}

fn read_end(r: &mut Reader<'_>) -> Result<PassEnd> {
    let mut end = PassEnd {
        checks: r.varint("checks")?,
        nodes: r.varint("nodes")?,
        bytes: r.varint("bytes")?,
        busy_nodes: r.varint("busy nodes")?,
        busy_bytes: r.varint("busy bytes")?,
        unread_nodes: r.varint("unread nodes")?,
        busy: Vec::new(),
    };
    for _ in 0..r.few("busy", BUSY_NAMED_MAX)? {
        end.busy.push((r.node()?, ByteLen(r.varint("busy bytes")?)));
    }
    Ok(end)
}

pub(super) fn write<'a, 'b>(check: &Check, w: &'a mut Writer<'b>) -> &'a mut Writer<'b> {
    w.0.push(30);
    w.varint(check.run);
    w.0.push(check.pass);
    w.0.push(match &check.of {
        CheckOf::Nodes { .. } => 0,
        CheckOf::Node { .. } => 1,
        CheckOf::Range { .. } => 2,
        CheckOf::Zeros { .. } => 3,
        CheckOf::End(_) => 4,
    });
    match &check.of {
        CheckOf::Nodes { volume, subvolume, inodes, digest } => {
            w.varint(volume.0.into()).varint(*subvolume).varint(inodes.len() as u64);
            let mut last = 0;
            for inode in inodes {
                w.varint(inode.saturating_sub(last));
                last = *inode;
            }
            w.0.extend_from_slice(&digest.0);
        }
        CheckOf::Node { node, digest } => {
            w.node(*node);
            for part in [digest.attributes, digest.xattrs, digest.content] {
                w.0.extend_from_slice(&part.0);
            }
        }
        CheckOf::Range { node, offset, len, digest } => {
            w.node(*node).range(*offset, *len);
            w.0.extend_from_slice(&digest.0);
        }
        CheckOf::Zeros { node, offset, len } => drop(w.node(*node).range(*offset, *len)),
        CheckOf::End(end) => {
            w.varint(end.checks).varint(end.nodes).varint(end.bytes).varint(end.busy_nodes).varint(end.busy_bytes).varint(end.unread_nodes);
            w.varint(end.busy.len() as u64);
            for (node, len) in &end.busy {
                w.node(*node).varint(len.0);
            }
        }
    }
    w
}
