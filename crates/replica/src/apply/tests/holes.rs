//! Holes on btrfs, which has its own ways with a block that is freed in part.

use super::project::{Mounted, feed, made, node, opened};
use super::*;

#[test]
fn a_hole_up_to_the_end_is_none_of_btrfs_zeros() {
    let Some(lab) = Lab::new("holes") else { return };
    let _mounted = match Mounted::on(&lab, &["mkfs.btrfs", "-q"]) {
        Ok(mounted) => mounted,
        Err(reason) => return eprintln!("SKIP holes: no btrfs can be mounted here: {reason}"),
    };
    let mut applier = opened(&lab);
    let (offset, len) = (ByteOffset(925_696), ByteLen(24_577));
    let data = |offset| Operation::Write { node: node(5), offset: ByteOffset(offset), data: vec![7; 4096] };
    let allocate = Operation::Allocate { node: node(5), offset, len, keep_size: false };
    feed(&mut applier, &[made(ROOT, "file", 5, false), data(0), allocate]);
    // As a mirror shows it again, and then as somebody frees a part of a hole.
    let shown = Operation::MirrorHole { node: node(5), offset, len };
    let punch = Operation::Punch { node: node(5), offset: ByteOffset(272_489), len: ByteLen(61_224) };
    feed(&mut applier, &[shown, data(536_576), punch]);
    assert_eq!(applier.counters().operations_failed, 0);
    applier.finish().unwrap();
    let tree = read_tree(&lab.volume(), &[]).unwrap();
    let Kind::File { len, data, .. } = &tree["file"].kind else { panic!("{:?}", tree["file"]) };
    assert_eq!((*len, data.as_deref()), (950_273, Some(&[(0, 4096), (536_576, 540_672)][..])));
}
