//! Small things that this room's tests share: operations, and segments made of them.

use crate::segment::{Sealer, Segment};
use proptest::prelude::*;
use standin_model::{ByteLen, ByteOffset, Marker, NodeId, OpSeq, Operation, PatchPart, Timestamp, VolumeId};

pub(crate) fn node(inode: u64) -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 1 }
}

pub(crate) fn write(inode: u64, data: &[u8]) -> Operation {
    Operation::Write { node: node(inode), offset: ByteOffset(0), data: data.to_vec() }
}

/// A patch of a page in so many parts.
pub(crate) fn patch(inode: u64, count: u32) -> Operation {
    let parts = (0..count).map(|part| PatchPart { at: part * 256, data: vec![part as u8; 128] }).collect();
    Operation::Patch { node: node(inode), offset: ByteOffset(8192), len: ByteLen(8192), parts, checksum: u64::from(count) << 40 }
}

pub(crate) fn marker() -> Operation {
    Operation::Marker(Marker::Consistent)
}

/// A segment of `count` items from `first` on, each with `len` bytes that compress badly enough.
pub(crate) fn segment(epoch: u64, first: u64, count: u64, len: usize) -> Segment {
    let mut sealer = Sealer::new(epoch, OpSeq(first), 0);
    for seq in first..first + count {
        let data: Vec<u8> = (0..len).map(|i| (seq as usize * 31 + i * 7) as u8).collect();
        sealer.push(write(seq, &data), Timestamp(seq as i64));
    }
    sealer.seal().expect("count is not 0")
}

pub(crate) fn operations(count_max: usize) -> impl Strategy<Value = Vec<Operation>> {
    let one = prop_oneof![
        Just(marker()),
        (any::<u64>(), prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(inode, data)| write(inode, &data)),
        (any::<u64>(), 0..30u32).prop_map(|(inode, count)| patch(inode, count)),
        any::<u64>().prop_map(|inode| Operation::Forget { node: node(inode) }),
        (any::<u64>(), 0..0o7777u32).prop_map(|(inode, mode)| Operation::SetMode { node: node(inode), mode }),
    ];
    prop::collection::vec(one, 0..count_max)
}
