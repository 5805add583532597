//! Segments open to what was sealed, and no damaged byte gets through.

use super::*;
use crate::testing::{marker, operations, write};
use proptest::prelude::*;
use standin_model::Operation;

fn sealed(level: i32) -> (Vec<Operation>, Segment) {
    let operations: Vec<_> = (0..50).map(|i| write(i, &[i as u8; 40])).collect();
    let mut sealer = Sealer::new(3, OpSeq(100), level);
    for (index, operation) in operations.iter().enumerate() {
        assert_eq!(sealer.push(operation.clone(), Timestamp(1000 - index as i64)), OpSeq(100 + index as u64));
    }
    (operations, sealer.seal().unwrap())
}

#[test]
fn header_says_what_is_inside() {
    for (level, codec) in [(0, Codec::Raw), (1, Codec::Zstd), (9, Codec::Zstd), (-5, Codec::Zstd)] {
        let (operations, segment) = sealed(level);
        let header = segment.header;
        assert_eq!((header.epoch, header.first_seq, header.last_seq), (3, OpSeq(100), OpSeq(149)));
        assert_eq!((header.first_captured_at, header.last_captured_at), (Timestamp(951), Timestamp(1000)));
        assert_eq!(header.codec, codec);
        let parsed = Segment::parse(segment.bytes.to_vec()).unwrap();
        assert_eq!(parsed, segment);
        let items = parsed.items().unwrap();
        assert_eq!(items.iter().map(|item| item.operation.clone()).collect::<Vec<_>>(), operations);
        assert!(items.iter().zip(100..).all(|(item, seq)| item.seq == OpSeq(seq)));
    }
}

#[test]
fn numbers_go_on_across_seals() {
    let mut sealer = Sealer::new(0, OpSeq(1), 1);
    assert_eq!(sealer.seal(), None);
    sealer.push(marker(), Timestamp(0));
    assert_eq!(sealer.seal().unwrap().last_seq(), OpSeq(1));
    sealer.push(marker(), Timestamp(0));
    assert_eq!(sealer.seal().unwrap().first_seq(), OpSeq(2));
    assert!(sealer.is_empty());
}

#[test]
fn the_largest_segment_opens() {
    let mut sealer = Sealer::new(0, OpSeq(1), 0);
    for _ in 0..3 {
        sealer.push(write(1, &vec![7; 1 << 20]), Timestamp(0));
    }
    sealer.push(write(1, &vec![7; (1 << 20) - 100]), Timestamp(0));
    assert!(!sealer.is_full());
    sealer.push(write(1, &vec![7; OPERATION_BYTES_MAX - 20]), Timestamp(0));
    let segment = sealer.seal().unwrap();
    assert!(segment.byte_len() <= SEGMENT_BYTES_MAX);
    assert!(Segment::parse(segment.bytes).unwrap().items().is_ok());
}

fn long_listing(entries: u64) -> Operation {
    use standin_model::{DirectoryEntry, Name, NodeKind};
    let entry = |inode: u64| DirectoryEntry {
        name: Name::new(format!("{inode:0>255}").as_bytes()).unwrap(),
        node: crate::testing::node(inode),
        kind: NodeKind::Symlink,
        device: 0,
        target: vec![b'x'; 4095],
    };
    Operation::MirrorDirectory { node: crate::testing::node(1), entries: (0..entries).map(entry).collect(), first: true, last: true }
}

fn long_node(xattrs: usize) -> Operation {
    use standin_model::{Attributes, NodeKind};
    Operation::MirrorNode {
        node: crate::testing::node(1),
        kind: NodeKind::File,
        attributes: Attributes { mode: 0o644, owner: 0, group: 0, modified: Timestamp(0) },
        accessed: Timestamp(0),
        flags: 0,
        project: 0,
        size: standin_model::ByteLen(0),
        xattrs: (0..xattrs).map(|i| (format!("user.{i}").into_bytes(), vec![i as u8; 64 << 10])).collect(),
    }
}

/// The items that one operation became, in a sealer that is as full as the pump lets it be.
fn items_of(operation: Operation) -> Vec<Operation> {
    let mut sealer = Sealer::new(0, OpSeq(1), 0);
    sealer.push(write(1, &vec![7; 1 << 20]), Timestamp(0));
    let last = sealer.push(operation, Timestamp(0));
    let segment = Segment::parse(sealer.seal().unwrap().bytes.to_vec()).unwrap();
    assert_eq!(segment.last_seq(), last);
    segment.items().unwrap().into_iter().skip(1).map(|item| item.operation).collect()
}

#[test]
fn a_listing_that_is_too_long_becomes_pages() {
    let Operation::MirrorDirectory { entries: whole, .. } = long_listing(1024) else { panic!() };
    let items = items_of(long_listing(1024));
    let (mut gathered, count) = (Vec::new(), items.len());
    for (at, item) in items.into_iter().enumerate() {
        let Operation::MirrorDirectory { entries, first, last, .. } = item else { panic!("{item:?}") };
        assert_eq!((first, last), (at == 0, at + 1 == count));
        gathered.extend(entries);
    }
    assert!(count > 2 && gathered == whole);
}

#[test]
fn a_set_of_attributes_that_is_too_long_becomes_single_ones() {
    let Operation::MirrorNode { xattrs: whole, .. } = long_node(47) else { panic!() };
    let mut items = items_of(long_node(47)).into_iter();
    let Some(Operation::MirrorNode { xattrs: mut gathered, .. }) = items.next() else { panic!() };
    for item in items {
        let Operation::SetXattr { name, value, .. } = item else { panic!("{item:?}") };
        gathered.push((name, value));
    }
    assert!(gathered == whole);
}

#[test]
fn what_no_segment_holds_is_a_gap_that_lasts() {
    let mut sealer = Sealer::new(0, OpSeq(1), 0);
    for operation in [write(1, &vec![7; OPERATION_BYTES_MAX]), long_node(200)] {
        sealer.push(operation, Timestamp(0));
        sealer.seal();
        sealer.push(Operation::Marker(standin_model::Marker::Consistent), Timestamp(0));
        let segment = Segment::parse(sealer.seal().unwrap().bytes.to_vec()).unwrap();
        assert!(segment.byte_len() <= SEGMENT_BYTES_MAX);
        let last = segment.items().unwrap().pop().unwrap().operation;
        assert!(matches!(last, Operation::Marker(standin_model::Marker::Gap { .. })), "{last:?}");
    }
}

#[test]
#[should_panic(expected = "seal before pushing")]
fn a_full_sealer_takes_nothing() {
    let mut sealer = Sealer::new(0, OpSeq(1), 0);
    for _ in 0..5 {
        sealer.push(write(1, &vec![7; 1 << 20]), Timestamp(0));
    }
}

#[test]
fn every_single_byte_is_covered_by_a_check() {
    let (_, segment) = sealed(1);
    for index in 0..segment.bytes.len() {
        let mut bytes = segment.bytes.to_vec();
        bytes[index] ^= 0x10;
        assert!(Segment::parse(bytes).is_err(), "byte {index}");
    }
}

#[test]
fn every_cut_and_every_surplus_is_refused() {
    let (_, segment) = sealed(1);
    for len in 0..segment.bytes.len() {
        assert!(matches!(Segment::parse(&segment.bytes[..len]), Err(Error::Short { .. })), "{len}");
    }
    let mut longer = segment.bytes.to_vec();
    longer.push(0);
    assert_eq!(Segment::parse(longer), Err(Error::Trailing { extra: 1 }));
}

/// A segment whose checksums are right although its content is not, as only a hostile sender makes it.
fn forged(edit: impl FnOnce(&mut SegmentHeader), body: &[u8]) -> Result<Segment, Error> {
    let mut header = sealed(0).1.header;
    header.body_len = body.len() as u32;
    header.body_checksum = xxh3_64(body);
    edit(&mut header);
    Segment::parse([header.to_bytes().as_slice(), body].concat())
}

#[test]
fn forged_headers_are_refused() {
    let bad: [fn(&mut SegmentHeader); 7] = [
        |h| h.first_seq = OpSeq(0),
        |h| h.last_seq = OpSeq(99),
        |h| h.last_seq = OpSeq(u64::MAX),
        |h| h.raw_len = 0,
        |h| h.raw_len = u32::MAX,
        |h| (h.codec, h.raw_len) = (Codec::Zstd, 49),
        |h| h.raw_len += 1,
    ];
    for (index, edit) in bad.into_iter().enumerate() {
        assert!(matches!(forged(edit, &[0; 100]), Err(Error::BadField { .. })), "{index}");
    }
}

#[test]
fn a_decompression_bomb_stops_at_the_bound() {
    let bomb = zstd::bulk::compress(&vec![0u8; 64 << 20], 19).unwrap();
    let segment = forged(|h| (h.codec, h.raw_len) = (Codec::Zstd, SEGMENT_BODY_BYTES_MAX as u32), &bomb).unwrap();
    assert_eq!(segment.items(), Err(Error::Decompress { raw_len: SEGMENT_BODY_BYTES_MAX as u32 }));
}

#[test]
fn wrong_counts_are_refused() {
    let (_, good) = sealed(0);
    let body = &good.bytes[HEADER_LEN..];
    let raw_len = body.len() as u32;
    for last in [148, 150] {
        let segment = forged(|h| (h.raw_len, h.last_seq) = (raw_len, OpSeq(last)), body).unwrap();
        assert!(matches!(segment.items(), Err(Error::WrongCount { .. })), "{last}");
    }
}

#[test]
fn a_later_format_is_told_apart_from_damage() {
    let (_, segment) = sealed(0);
    let mut bytes = segment.bytes.to_vec();
    bytes[4] = 6;
    let error = Segment::parse(bytes).unwrap_err();
    assert_eq!((error.code(), error.is_corrupt()), ("STANDIN-E2005", false));
}

/// Version 1, as `docs/formats/segment.md` prints it.
#[test]
fn version_1_stays_readable() {
    let documented = concat!(
        "5353454701000000",
        "0200000000000000",
        "0500000000000000",
        "0500000000000000",
        "00002a36fe9c9717",
        "00002a36fe9c9717",
        "0200000002000000",
        "2ab30a912788432a",
        "402b75f7198f53bd",
        "1c02",
    );
    let bytes: Vec<u8> = (0..documented.len() / 2).map(|i| u8::from_str_radix(&documented[2 * i..2 * i + 2], 16).unwrap()).collect();
    let read = Segment::parse(bytes).unwrap();
    assert_eq!(read.items().unwrap(), [Item { seq: OpSeq(5), operation: marker() }]);
}

/// Version 5 differs from those before in its number, and in what it may contain. If this fails, the format has changed: that needs a new version.
#[test]
fn version_5_is_what_is_written() {
    let mut sealer = Sealer::new(2, OpSeq(5), 0);
    sealer.push(marker(), Timestamp(1_700_000_000_000_000_000));
    let bytes = sealer.seal().unwrap().bytes;
    let hex = |range: std::ops::Range<usize>| bytes[range].iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!((hex(0..8), hex(8..16), hex(72..74)), ("5353454705000000".into(), "0200000000000000".into(), "1c02".into()));
    assert_eq!(Segment::parse(bytes.to_vec()).unwrap().items().unwrap(), [Item { seq: OpSeq(5), operation: marker() }]);
}

proptest! {
    #[test]
    fn what_was_sealed_opens(operations in operations(60), level in -3..6, start in 1..u64::MAX / 2) {
        let mut sealer = Sealer::new(1, OpSeq(start), level);
        for operation in &operations {
            sealer.push(operation.clone(), Timestamp(0));
        }
        match sealer.seal() {
            None => prop_assert!(operations.is_empty()),
            Some(segment) => {
                let items = Segment::parse(segment.bytes).unwrap().items().unwrap();
                prop_assert_eq!(items.iter().map(|i| i.operation.clone()).collect::<Vec<_>>(), operations);
                prop_assert_eq!(items[0].seq, OpSeq(start));
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), body in prop::collection::vec(any::<u8>(), 1..200)) {
        let _ = Segment::parse(bytes);
        let raw_len = body.len() as u32;
        if let Ok(segment) = forged(|h| (h.raw_len, h.last_seq) = (raw_len, OpSeq(100)), &body) {
            let _ = segment.items();
        }
        if let Ok(segment) = forged(|h| (h.codec, h.raw_len) = (Codec::Zstd, 5000), &body) {
            let _ = segment.items();
        }
    }
}
