//! Fuzz target of the operation codec: bytes from a source, before anything is applied.

use super::*;
use crate::check::{CheckOf, Digest, NodeDigest, PassEnd};
use standin_fuzz::{Script, TIME, check, edited, within};

/// Heap for decoding so many bytes. The worst is a listing: an entry of 9 bytes becomes 120 (name and target on the heap beside it), in a vector
/// that doubles, with the old half still there while it grows.
fn heap_bytes_max(len: usize) -> usize {
    assert!(size_of::<DirectoryEntry>() <= 120);
    4096 + len * 64
}

fn take(bytes: &[u8]) {
    let Ok((operation, rest)) = within(heap_bytes_max(bytes.len()), || decode(bytes)) else { return };
    assert!(bytes.ends_with(rest) && rest.len() < bytes.len());
    assert!(operation.is_possible(), "{operation:?}");
    let mut again = Vec::new();
    encode(&operation, &mut again);
    assert_eq!(decode(&again), Ok((operation, &[][..])), "what is decoded is encoded and decoded to the same");
    // Nothing that was cut short is taken for whole.
    let taken = &bytes[..bytes.len() - rest.len()];
    for cut in (0..taken.len()).rev().take(40) {
        assert!(decode(&taken[..cut]).is_err(), "{cut} of {} bytes", taken.len());
    }
}

#[test]
fn operation() {
    let samples = samples();
    check!(name = "operation").with_test_time(TIME).for_each(|bytes| {
        take(bytes);
        let mut script = Script::new(bytes);
        let (_, valid) = &samples[script.below(samples.len())];
        take(&edited(valid, &mut script));
    });
}

/// Every kind of operation as it was first written down: tags and fields keep their meaning.
#[test]
fn operations_of_every_version_are_read() {
    let committed = standin_fuzz::seeds(concat!(env!("CARGO_MANIFEST_DIR"), "/src/codec"), "operation", &samples());
    for ((name, bytes), (_, now)) in committed.into_iter().zip(samples()) {
        let (operation, rest) = decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((rest, Ok((operation, &[][..]))), (&[][..], decode(&now)), "{name}");
    }
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    use Operation::*;
    let node = |inode| NodeId { volume: VolumeId(1), subvolume: 256, inode, generation: 0xdead_beef };
    let name = |text: &str| Name::new(text).expect("a name");
    let (parent, origin) = (node(2), node(77));
    let attributes = Attributes { mode: 0o6755, owner: 1000, group: u32::MAX, modified: Timestamp(-1) };
    let (offset, len) = (ByteOffset(1 << 40), ByteLen(4096));
    let entry = |text: &str, kind| DirectoryEntry { name: name(text), node: origin, kind, device: 5 << 32 | 1, target: b"../x".to_vec() };
    let entries = vec![entry("a", NodeKind::Symlink), entry("b", NodeKind::BlockDevice)];
    let xattrs = vec![(b"user.a".to_vec(), vec![]), (b"security.capability".to_vec(), vec![1, 0, 0, 2])];
    let (kind, accessed, node) = (NodeKind::File, Timestamp(i64::MAX), node(u64::MAX));
    let rename = |mode, victim| Rename { parent, name: name("old"), node, new_parent: origin, new_name: name("new"), mode, victim };
    let digest = Digest([7; 16]);
    let part = |at, len: usize| PatchPart { at, data: vec![at as u8; len] };
    let check = |of| Check(crate::Check { run: 1, pass: 2, of });
    let operations = vec![
        ("write", Write { node, offset, data: b"content".to_vec() }),
        ("patch", Patch { node, offset, len, parts: vec![part(0, 3), part(9, 1), part(4090, 6)], checksum: 0x0123_4567_89ab_cdef }),
        ("patch-of-nothing", Patch { node, offset, len, parts: vec![], checksum: 0 }),
        ("zero", Zero { node, offset, len, keep_size: true }),
        ("punch", Punch { node, offset, len }),
        ("allocate", Allocate { node, offset, len, keep_size: false }),
        ("collapse", Collapse { node, offset, len }),
        ("insert", Insert { node, offset, len }),
        ("truncate", Truncate { node, size: ByteLen(0) }),
        ("clone", CloneRange { origin, origin_offset: ByteOffset(0), node, offset, len }),
        ("create", Create { parent, name: name("é"), node, attributes }),
        ("create-unnamed", CreateUnnamed { node, attributes }),
        ("mkdir", Mkdir { parent, name: name("d"), node, attributes }),
        ("symlink", Symlink { parent, name: name("l"), node, target: b"/etc/passwd".to_vec(), attributes }),
        ("mknod", Mknod { parent, name: name("null"), node, kind: NodeKind::CharDevice, device: 1 << 32 | 3, attributes }),
        ("link", Link { parent, name: name("again"), node }),
        ("unlink", Unlink { parent, name: name("gone"), node }),
        ("rmdir", Rmdir { parent, name: name("gone"), node }),
        ("rename", rename(RenameMode::Replace, Some(parent))),
        ("exchange", rename(RenameMode::Exchange, None)),
        ("forget", Forget { node }),
        ("mode", SetMode { node, mode: 0o7777 }),
        ("owner", SetOwner { node, owner: 0, group: 0 }),
        ("times", SetTimes { node, accessed: Some(accessed), modified: None }),
        ("xattr", SetXattr { node, name: b"user.x".to_vec(), value: vec![0; 20] }),
        ("no-xattr", RemoveXattr { node, name: b"user.x".to_vec() }),
        ("flags", SetFlags { node, flags: 0x10 }),
        ("project", SetProject { node, project: 42 }),
        ("listing", MirrorDirectory { node, entries, first: true, last: false }),
        ("node-of-project", MirrorNode { node, kind, attributes, accessed, flags: 0, project: 7, size: ByteLen(1), xattrs: vec![] }),
        ("node", MirrorNode { node, kind, attributes, accessed, flags: 0x20, project: 0, size: ByteLen(1), xattrs }),
        ("data", MirrorData { node, offset, data: vec![7; 40] }),
        ("hole", MirrorHole { node, offset, len }),
        ("digests", MirrorDigests { node, offset, len: ByteLen(9000), block: 4096, digests: vec![digest, Digest([0; 16]), digest] }),
        ("gap", Marker(crate::operation::Marker::Gap { reason: "ring full".into() })),
        ("consistent", Marker(crate::operation::Marker::Consistent)),
        ("started", Marker(crate::operation::Marker::StreamStarted { boot: u64::MAX, everything: true })),
        ("settled", Marker(crate::operation::Marker::Settled { through: OpSeq(7) })),
        ("check-nodes", check(CheckOf::Nodes { volume: VolumeId(1), subvolume: 256, inodes: vec![257, 258, u64::MAX], digest })),
        ("check-node", check(CheckOf::Node { node, digest: NodeDigest { attributes: digest, xattrs: digest, content: digest } })),
        ("check-range", check(CheckOf::Range { node, offset, len, digest })),
        ("check-zeros", check(CheckOf::Zeros { node, offset, len })),
        ("check-end", check(CheckOf::End(PassEnd { checks: 5, busy: vec![(node, len)], ..PassEnd::default() }))),
        ("named", Marker(crate::operation::Marker::Named("before the update".into()))),
    ];
    let encoded = |(name, operation): (&'static str, Operation)| {
        let mut bytes = Vec::new();
        encode(&operation, &mut bytes);
        (name, bytes)
    };
    operations.into_iter().map(encoded).collect()
}
