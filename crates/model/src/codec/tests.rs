//! The codec against every kind of operation, against random operations, and against random bytes.

use super::*;
use crate::{Check, CheckOf, Digest, NodeDigest, PassEnd};
use proptest::prelude::*;

fn node() -> impl Strategy<Value = NodeId> {
    (any::<u16>(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(v, subvolume, inode, generation)| NodeId {
        volume: VolumeId(v),
        subvolume,
        inode,
        generation,
    })
}

fn name() -> impl Strategy<Value = Name> {
    prop::collection::vec(any::<u8>().prop_filter("byte", |b| *b != 0 && *b != b'/'), 1..=255)
        .prop_filter_map("dots", |b| Name::new(b).ok())
}

fn blob() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..300)
}

fn attributes() -> impl Strategy<Value = Attributes> {
    (0..=0o7777u32, any::<u32>(), any::<u32>(), any::<i64>()).prop_map(|(mode, owner, group, t)| Attributes {
        mode,
        owner,
        group,
        modified: Timestamp(t),
    })
}

fn range() -> impl Strategy<Value = (ByteOffset, ByteLen)> {
    (0..i64::MAX as u64 / 2, 0..i64::MAX as u64 / 2).prop_map(|(o, l)| (ByteOffset(o), ByteLen(l)))
}

fn content() -> impl Strategy<Value = Operation> {
    use Operation::*;
    (0..8u8, node(), node(), range(), any::<bool>(), blob()).prop_map(|(pick, node, origin, (offset, len), keep_size, data)| match pick {
        0 => Write { node, offset, data },
        1 => Zero { node, offset, len, keep_size },
        2 => Punch { node, offset, len },
        3 => Allocate { node, offset, len, keep_size },
        4 => Collapse { node, offset, len },
        5 => Insert { node, offset, len },
        6 => Truncate { node, size: len },
        _ => CloneRange { origin, origin_offset: ByteOffset(len.0), node, offset, len },
    })
}

fn naming() -> impl Strategy<Value = Operation> {
    use Operation::*;
    (0..13u8, node(), node(), node(), name(), name(), attributes(), blob()).prop_map(
        |(pick, node, parent, other, name, new_name, attributes, target)| match pick {
            0 => Create { parent, name, node, attributes },
            1 => CreateUnnamed { node, attributes },
            2 => Mkdir { parent, name, node, attributes },
            3 => Symlink { parent, name, node, target, attributes },
            4 => Mknod { parent, name, node, kind: NodeKind::Fifo, device: 77, attributes },
            5 => Link { parent, name, node },
            6 => Unlink { parent, name, node },
            7 => Rmdir { parent, name, node },
            8 => Forget { node },
            p => Rename {
                parent,
                name,
                node,
                new_parent: other,
                new_name,
                mode: write::RENAME_MODES[usize::from(p) - 9],
                victim: (p > 9).then_some(other),
            },
        },
    )
}

fn rest() -> impl Strategy<Value = Operation> {
    use Operation::*;
    (0..17u8, node(), attributes(), blob(), blob(), name(), range()).prop_map(|(pick, node, a, x, y, name, (offset, len))| match pick {
        0 => SetMode { node, mode: a.mode },
        1 => SetOwner { node, owner: a.owner, group: a.group },
        2 => SetTimes { node, accessed: None, modified: Some(a.modified) },
        3 => SetXattr { node, name: x, value: y },
        4 => RemoveXattr { node, name: x },
        5 if a.group % 2 == 0 => SetFlags { node, flags: a.owner },
        5 => SetProject { node, project: a.owner },
        6 => MirrorDirectory {
            node,
            first: true,
            last: false,
            entries: vec![DirectoryEntry { name, node, kind: NodeKind::Symlink, device: 0, target: x }],
        },
        7 => MirrorNode {
            node,
            kind: NodeKind::File,
            attributes: a,
            accessed: a.modified,
            flags: 4,
            project: a.group % 3,
            size: len,
            xattrs: vec![(x, y)],
        },
        8 => MirrorData { node, offset, data: x },
        9 => MirrorHole { node, offset, len },
        10 => Marker(super::Marker::Gap { reason: "ring full".into() }),
        11 => Marker(super::Marker::Named("before upgrade".into())),
        12 => Marker(super::Marker::Consistent),
        13 => Marker(super::Marker::Quiesced),
        14 => Marker(super::Marker::StreamStarted { boot: u64::MAX, everything: true }),
        15 => Marker(super::Marker::Settled { through: OpSeq(7) }),
        _ => Marker(super::Marker::ResyncStarted),
    })
}

fn check() -> impl Strategy<Value = Operation> {
    let inodes = prop::collection::btree_set(any::<u64>(), 0..=crate::check::NODES_MAX);
    (0..5u8, any::<(u64, u8)>(), node(), range(), any::<[[u8; 16]; 3]>(), inodes).prop_map(
        |(pick, (run, pass), node, (offset, len), digests, inodes)| {
            let [digest, xattrs, content] = digests.map(Digest);
            let of = match pick {
                0 => CheckOf::Nodes { volume: node.volume, subvolume: node.subvolume, inodes: inodes.into_iter().collect(), digest },
                1 => CheckOf::Node { node, digest: NodeDigest { attributes: digest, xattrs, content } },
                2 => CheckOf::Range { node, offset, len, digest },
                3 => CheckOf::Zeros { node, offset, len },
                _ => CheckOf::End(PassEnd { checks: run, busy_nodes: 1, busy: vec![(node, len)], ..PassEnd::default() }),
            };
            Operation::Check(Check { run, pass, of })
        },
    )
}

fn digests() -> impl Strategy<Value = Operation> {
    let digests = prop::collection::vec(any::<[u8; 16]>().prop_map(Digest), 0..=DIGESTS_MAX);
    (node(), range(), 1..=DIGEST_BLOCK_BYTES_MAX, any::<prop::sample::Index>(), digests).prop_map(
        |(node, (offset, _), block, short, digests)| {
            let len = (digests.len() as u64 * u64::from(block)).saturating_sub(short.index(block as usize) as u64);
            Operation::MirrorDigests { node, offset, len: ByteLen(len), block, digests }
        },
    )
}

fn patch() -> impl Strategy<Value = Operation> {
    let parts = prop::collection::vec((1..300u32, prop::collection::vec(any::<u8>(), 1..40)), 0..12);
    (node(), range(), parts, any::<u64>(), 0..99u64).prop_map(|(node, (offset, _), parts, checksum, behind)| {
        let mut end = 0;
        let part = |(apart, data): (u32, Vec<u8>)| {
            let part = PatchPart { at: end + apart, data };
            end = part.end() as u32;
            part
        };
        let parts: Vec<PatchPart> = parts.into_iter().map(part).collect();
        let len = ByteLen(parts.last().map_or(0, PatchPart::end) + behind);
        Operation::Patch { node, offset, len, parts, checksum }
    })
}

proptest! {
    #[test]
    fn every_operation_survives(operation in prop_oneof![content(), naming(), rest(), check(), digests(), patch()], tail in blob()) {
        let mut bytes = Vec::new();
        encode(&operation, &mut bytes);
        bytes.extend_from_slice(&tail);
        let (back, rest) = decode(&bytes).unwrap();
        prop_assert_eq!(back, operation);
        prop_assert_eq!(rest, &tail[..]);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn a_cut_operation_is_refused(operation in prop_oneof![content(), naming(), rest(), check(), digests(), patch()], at in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        encode(&operation, &mut bytes);
        bytes.truncate(at.index(bytes.len()));
        prop_assert!(decode(&bytes).is_err());
    }
}

#[test]
fn hostile_values_are_refused() {
    // A write at an offset beyond the largest file position.
    let mut bytes = vec![1, 0, 0, 5, 0];
    bytes.extend([0xff; 9]);
    bytes.push(0x01);
    assert!(matches!(decode(&bytes), Err(DecodeError::BadValue { field: "offset", .. })));
    // A listing that claims 2^40 entries.
    assert!(decode(&[24, 0, 0, 5, 0, 1, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20]).is_err());
    // A check of more nodes than one may have.
    assert!(matches!(decode(&[30, 1, 1, 0, 0, 0, 0xff, 0x01]), Err(DecodeError::BadValue { field: "nodes", .. })));
    // Digests of more than one item may have read, of blocks that are too large, and of no size.
    let blocks_of = |len: &[u8], block: &[u8]| decode(&[&[31, 0, 0, 5, 0, 0], len, block, &[7; 5000]].concat()).map(|(_, rest)| rest.len());
    assert_eq!(blocks_of(&[0x80, 0x02], &[1]), Ok(5000 - 256 * 16));
    assert!(matches!(blocks_of(&[0x81, 0x02], &[1]), Err(DecodeError::BadValue { field: "length", .. })));
    assert!(matches!(blocks_of(&[1], &[0x81, 0x80, 0x04]), Err(DecodeError::BadValue { field: "block", .. })));
    assert!(matches!(blocks_of(&[1], &[0]), Err(DecodeError::BadValue { field: "block", .. })));
    // Patches with parts that touch, that lie outside, that are empty; and one that would have too much read back.
    let patch_of = |len: &[u8], parts: &[u8]| decode(&[&[34, 0, 0, 5, 0, 0], len, &[0; 8], parts].concat()).map(|(_, rest)| rest.len());
    assert_eq!(patch_of(&[9], &[2, 0, 1, 7, 1, 1, 7]), Ok(0));
    for bad in [&[2, 0, 1, 7, 0, 1, 7][..], &[1, 9, 1, 7], &[1, 0, 0, 7], &[1, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 7]] {
        assert!(matches!(patch_of(&[9], bad), Err(DecodeError::BadValue { field: "part", .. })), "{bad:?}");
    }
    assert!(matches!(patch_of(&[0x81, 0x80, 0x80, 1], &[0]), Err(DecodeError::BadValue { field: "length", .. })));
    assert!(matches!(patch_of(&[9], &[0x80, 0x80, 1]), Err(DecodeError::BadValue { field: "parts", .. })));
    assert_eq!(decode(&[0]), Err(DecodeError::UnknownTag { tag: 0 }));
    assert!(Name::new(*b"..").is_err() && Name::new(*b"a/b").is_err() && Name::new(vec![b'x'; 256]).is_err());
}

#[test]
fn an_operation_has_a_bound_that_reading_keeps() {
    let node = NodeId { volume: VolumeId(0), subvolume: 0, inode: 1, generation: 1 };
    let written = |len| {
        let mut bytes = Vec::new();
        write::encode(&Operation::MirrorData { node, offset: ByteOffset(0), data: vec![7; len] }, &mut bytes);
        bytes
    };
    let most = written(OPERATION_BYTES_MAX - 9);
    assert_eq!(most.len(), OPERATION_BYTES_MAX);
    assert!(decode(&[&most[..], b"rest"].concat()).is_ok_and(|(_, rest)| rest == b"rest"));
    assert_eq!(decode(&written(OPERATION_BYTES_MAX - 8)), Err(DecodeError::Short { field: "data" }));
}
