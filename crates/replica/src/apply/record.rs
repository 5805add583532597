//! The node table's records as bytes: little-endian, fixed fields first. `docs/formats/node-table.md` describes them.
//!
//! Reading trusts nothing, because a table may have been damaged on disk: a record that does not parse whole is refused, and the job
//! starts over with a new mirror.

use super::error::ApplyError;
use super::handle::Handle;
use super::state::ReplicaState;
use super::table::Entry;
use super::unproven::Expected;
use serde::{Deserialize, Serialize};
use standin_model::{NodeId, NodeKind, OpSeq, Timestamp, VolumeId};
use std::collections::BTreeSet;

pub const FORMAT_VERSION: u32 = 1;
const NODE_BYTES: usize = 22;
const KINDS: [NodeKind; 7] =
    [NodeKind::File, NodeKind::Directory, NodeKind::Symlink, NodeKind::CharDevice, NodeKind::BlockDevice, NodeKind::Fifo, NodeKind::Socket];

/// A collapse or insert that has begun: whether it happened is told by the size, if the page cache survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub seq: OpSeq,
    pub node: NodeId,
    pub size_before: u64,
    /// First 16 hex digits of the kernel's boot id.
    pub boot: u64,
}

/// Everything in a mark but the nodes. JSON, since it is small and written once a second.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub version: u32,
    pub applied: OpSeq,
    pub state: ReplicaState,
    /// Asked of the agent, and not come yet.
    pub wanted: BTreeSet<NodeId>,
    /// Wanted, and begun to come; see [`super::want`].
    #[serde(default)]
    pub answered: BTreeSet<NodeId>,
    /// Missing during redo: wanted at its end, unless the stream removes them before.
    pub suspects: BTreeSet<NodeId>,
    pub intent: Option<Intent>,
    /// Of a mark within redo: names that could not be given as yet, as node and directory.
    #[serde(default)]
    pub unplaced: Vec<(NodeId, NodeId)>,
    /// Of a mark within redo: nodes that a `Consistent` left without a name, and whether the stream had taken it.
    #[serde(default)]
    pub buried: Vec<(NodeId, bool)>,
    /// Of a mark within redo: ranges that are not as a patch says.
    #[serde(default)]
    pub unproven: Vec<Expected>,
    /// The kernel of the source that the stream comes from; see `Marker::StreamStarted`.
    #[serde(default)]
    pub source_boot: Option<u64>,
    #[serde(default)]
    pub unsettled_overflow: Option<OpSeq>,
}

impl Meta {
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data has a JSON form")
    }

    pub fn decode(bytes: &[u8]) -> Result<Meta, ApplyError> {
        let meta: Meta = serde_json::from_slice(bytes).map_err(|_| ApplyError::TableCorrupt { field: "mark" })?;
        if meta.version == FORMAT_VERSION { Ok(meta) } else { Err(ApplyError::TableCorrupt { field: "format version" }) }
    }
}

pub fn encode_node(node: NodeId) -> [u8; NODE_BYTES] {
    let mut bytes = [0; NODE_BYTES];
    // Big-endian here, and only here: keys of neighbours lie side by side in the tree.
    bytes[..2].copy_from_slice(&node.volume.0.to_be_bytes());
    bytes[2..10].copy_from_slice(&node.subvolume.to_be_bytes());
    bytes[10..18].copy_from_slice(&node.inode.to_be_bytes());
    bytes[18..].copy_from_slice(&node.generation.to_be_bytes());
    bytes
}

pub fn decode_node(bytes: &[u8]) -> Option<NodeId> {
    let bytes: &[u8; NODE_BYTES] = bytes.try_into().ok()?;
    Some(NodeId {
        volume: VolumeId(u16::from_be_bytes(bytes[..2].try_into().ok()?)),
        subvolume: u64::from_be_bytes(bytes[2..10].try_into().ok()?),
        inode: u64::from_be_bytes(bytes[10..18].try_into().ok()?),
        generation: u32::from_be_bytes(bytes[18..].try_into().ok()?),
    })
}

pub fn encode_entry(entry: &Entry, parent: Option<NodeId>) -> Vec<u8> {
    let kind = KINDS.iter().position(|kind| *kind == entry.kind).expect("every kind is listed") as u8;
    let mut bytes = Vec::with_capacity(64);
    bytes.extend([kind, entry.facts, u8::from(entry.modified.is_some()), entry.handle.bytes().len() as u8]);
    bytes.extend(entry.guard.to_le_bytes());
    bytes.extend(entry.modified.unwrap_or_default().0.to_le_bytes());
    bytes.extend(entry.handle.kind().to_le_bytes());
    bytes.extend(entry.handle.bytes());
    if let Some(parent) = parent {
        bytes.extend(encode_node(parent));
    }
    bytes
}

pub fn decode_entry(bytes: &[u8]) -> Option<(Entry, Option<NodeId>)> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let (guard, rest) = rest.split_first_chunk::<4>()?;
    let (modified, rest) = rest.split_first_chunk::<8>()?;
    let (handle_kind, rest) = rest.split_first_chunk::<4>()?;
    let (handle, parent) = rest.split_at_checked(usize::from(head[3]))?;
    let entry = Entry {
        handle: Handle::from_parts(i32::from_le_bytes(*handle_kind), handle)?,
        kind: *KINDS.get(usize::from(head[0]))?,
        facts: head[1],
        guard: u32::from_le_bytes(*guard),
        modified: (head[2] != 0).then(|| Timestamp(i64::from_le_bytes(*modified))),
    };
    let parent = if parent.is_empty() { None } else { Some(decode_node(parent)?) };
    Some((entry, parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_their_bytes_and_cut_ones_are_refused() {
        let node = NodeId { volume: VolumeId(3), subvolume: 5, inode: 1 << 40, generation: 0xfeed_beef };
        assert_eq!(decode_node(&encode_node(node)), Some(node));
        let entry = Entry {
            handle: Handle::from_parts(0x81, &[7; 12]).unwrap(),
            kind: NodeKind::Socket,
            facts: 5,
            guard: 0x30,
            modified: Some(Timestamp(-1)),
        };
        for parent in [None, Some(node)] {
            let bytes = encode_entry(&entry, parent);
            assert_eq!(decode_entry(&bytes), Some((entry, parent)));
            for cut in (0..32).chain(33..bytes.len()) {
                assert_eq!(decode_entry(&bytes[..cut]), None, "cut at {cut}");
            }
        }
    }
}
