//! Tests of the assembler, with records made by hand.

use super::*;
use crate::record::{FLAG_UNREAD, HEAD_BYTES, NAME_BYTES};
use proptest::prelude::*;

const DEVICE: u32 = 7;
const TIME: i64 = 1_000;

/// A record in the making; the layout is that of `bpf/record.h`.
#[derive(Clone)]
struct Made(Vec<u8>);

impl Made {
    fn new(kind: Kind, tid: u32, inode: u64) -> Made {
        let mut made = Made(vec![0; HEAD_BYTES]);
        made.put(0, &(kind as u16).to_le_bytes()).put(8, &DEVICE.to_le_bytes()).put(12, &tid.to_le_bytes());
        made.put(24, &inode.to_le_bytes()).put(44, &0o100644u32.to_le_bytes()).put(48, &TIME.to_le_bytes());
        made
    }
    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Made {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
    fn mode(mut self, mode: u32) -> Made {
        self.put(44, &mode.to_le_bytes());
        self
    }
    fn parent(mut self, inode: u64) -> Made {
        self.put(56, &inode.to_le_bytes());
        self
    }
    fn size(mut self, size: u64) -> Made {
        self.put(88, &size.to_le_bytes());
        self
    }
    fn range(mut self, offset: u64, length: u64, extra: u64) -> Made {
        self.put(112, &offset.to_le_bytes()).put(120, &length.to_le_bytes()).put(128, &extra.to_le_bytes());
        self
    }
    fn payload(mut self, bytes: &[u8]) -> Made {
        self.0.truncate(HEAD_BYTES);
        self.0.extend_from_slice(bytes);
        self.put(4, &(bytes.len() as u32).to_le_bytes());
        self
    }
    fn name(self, name: &str) -> Made {
        let mut field = [0; NAME_BYTES];
        field[..name.len()].copy_from_slice(name.as_bytes());
        self.payload(&field)
    }
    fn data(tid: u32, inode: u64, offset: u64, text: &str) -> Made {
        Made::new(Kind::Data, tid, inode).range(offset, text.len() as u64, 0).payload(text.as_bytes())
    }
}

fn node(inode: u64) -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 0 }
}

fn run(records: &[Made]) -> Vec<CaptureEvent> {
    let mut events = Vec::new();
    let mut assembler = Assembler::new([(DEVICE, VolumeId(0))]);
    for record in records {
        assembler.feed(&record.0, &mut |event| events.push(event));
    }
    assembler.settle(0, &mut |event| events.push(event));
    events
}

/// Operations in short: what a test compares.
fn short(events: &[CaptureEvent]) -> Vec<String> {
    let line = |event: &CaptureEvent| match event {
        CaptureEvent::Operation { operation, .. } => match operation {
            Operation::Write { node, offset, data } => format!("write {} {offset} {}", node.inode, data.escape_ascii()),
            Operation::Create { parent, name, node, .. } => format!("create {} {name} {}", parent.inode, node.inode),
            Operation::Symlink { target, .. } => format!("symlink {}", target.escape_ascii()),
            Operation::Rename { name, new_name, mode, victim, .. } => {
                format!("rename {name} {new_name} {mode:?} {:?}", victim.map(|v| v.inode))
            }
            Operation::Unlink { node, .. } => format!("unlink {}", node.inode),
            Operation::Forget { node } => format!("forget {}", node.inode),
            Operation::Mknod { .. } => "mknod".into(),
            Operation::Mkdir { .. } => "mkdir".into(),
            Operation::Punch { node, .. } => format!("punch {}", node.inode),
            Operation::CloneRange { len, .. } => format!("clone {len}"),
            Operation::SetXattr { name, value, .. } => format!("xattr {} {}", name.escape_ascii(), value.len()),
            Operation::SetOwner { .. } => "owner".into(),
            Operation::SetTimes { node, accessed: None, .. } => format!("touch {}", node.inode),
            Operation::SetMode { mode, .. } => format!("mode {mode:o}"),
            other => format!("{other:?}"),
        },
        CaptureEvent::Lost { node, reason, .. } => format!("lost {} {reason:?}", node.inode),
        other => format!("{other:?}"),
    };
    events.iter().map(line).collect()
}

fn check(records: &[Made], expect: &[&str]) {
    assert_eq!(short(&run(records)), expect);
}

#[test]
fn adjacent_pages_become_one_write() {
    check(
        &[Made::data(1, 5, 0, "ab"), Made::data(1, 5, 2, "cd"), Made::data(1, 5, 9, "x"), Made::data(1, 6, 10, "y")],
        &["write 5 0 abcd", "write 5 9 x", "write 6 10 y"],
    );
}

#[test]
fn a_close_tells_a_time_only_when_it_is_news() {
    let mut later = Made::new(Kind::Close, 1, 5);
    later.put(48, &(TIME + 1).to_le_bytes());
    let told = run(&[Made::data(1, 5, 0, "a"), Made::new(Kind::Close, 1, 5), later.clone(), later]);
    assert_eq!(told.len(), 2, "{told:?}");
}

#[test]
fn an_operation_between_two_pages_keeps_its_place() {
    let create = Made::new(Kind::Create, 2, 9).parent(2).name("n");
    check(&[Made::data(1, 5, 0, "a"), create, Made::data(1, 5, 1, "b")], &["write 5 0 a", "create 2 n 9", "write 5 1 b"]);
}

#[test]
fn a_file_with_content_at_its_creation_is_read_again() {
    check(&[Made::new(Kind::Create, 2, 9).parent(2).size(3).name("n")], &["create 2 n 9", "lost 9 UsedBeforeCreation"]);
}

#[test]
fn a_snapshot_is_read_and_an_empty_subvolume_is_not() {
    let made = |size, root: u64| {
        let mut made = Made::new(Kind::Create, 2, 256).mode(0o040755).parent(2).size(size).name("n");
        made.put(32, &root.to_le_bytes());
        made
    };
    check(&[made(0, 300)], &["mkdir"]);
    check(&[made(20, 0)], &["mkdir"]);
    check(&[made(20, 300)], &["mkdir", "lost 256 UsedBeforeCreation"]);
}

#[test]
fn a_new_node_has_what_its_directory_gives_on() {
    let create = |kind| Made::new(kind, 2, 9).parent(2).range(0, 0, 7 << 32 | 0x2000_0040).name("n");
    let flags = format!("{:?}", Operation::SetFlags { node: node(9), flags: 0x2000_0040 });
    let project = format!("{:?}", Operation::SetProject { node: node(9), project: 7 });
    check(&[create(Kind::Create)], &["create 2 n 9", &flags, &project]);
    check(&[create(Kind::Create).mode(0o010644)], &["mknod"]);
    let events = short(&run(&[create(Kind::Unnamed)]));
    assert_eq!(events[1..], [flags, project]);
    // A flag of the file system's own, as ext4 has on every file.
    check(&[Made::new(Kind::Create, 2, 9).parent(2).range(0, 0, 0x8_0000).name("n")], &["create 2 n 9"]);
}

#[test]
fn an_opaque_call_holds_its_nodes_and_loses_them_at_its_end() {
    let enter = Made::new(Kind::OpaqueEnter, 1, 5).parent(6);
    let exit = |result: i64| Made::new(Kind::CallExit, 1, 5).parent(6).range(0, 0, result as u64);
    let during = [enter.clone(), Made::data(2, 5, 0, "a"), Made::data(2, 6, 0, "b"), Made::data(2, 7, 0, "c")];
    let ended = |result| run(&[&during[..], &[exit(result)]].concat());
    assert_eq!(short(&run(&during)), ["write 7 0 c"]);
    let both = ["lost 5 Untold", "lost 6 Untold"];
    let held = ["write 5 0 a", "write 6 0 b"];
    assert_eq!(short(&ended(0)), [&["write 7 0 c"], &both[..], &held].concat());
    // No room in the middle of it.
    assert_eq!(short(&ended(-28)), [&["write 7 0 c"], &both[..], &held].concat());
    // Refused: nothing has changed.
    assert_eq!(short(&ended(-22)), [&["write 7 0 c"], &held[..]].concat());
    // Its beginning was lost.
    let unpaired = ["lost 5 Unpaired", "lost 6 Unpaired"];
    check(&[exit(0)], &unpaired);
    // Given up: lost now, with whatever comes, and at its end.
    let mut events = Vec::new();
    let mut assembler = Assembler::new([(DEVICE, VolumeId(0))]);
    assembler.feed(&enter.0, &mut |event| events.push(event));
    assert!(assembler.is_holding(u64::MAX));
    assembler.give_up_held(u64::MAX, &mut |event| events.push(event));
    for record in [Made::data(2, 6, 0, "b"), exit(0)] {
        assembler.feed(&record.0, &mut |event| events.push(event));
    }
    let given_up = ["lost 5 HeldTooLong", "lost 6 HeldTooLong", "lost 6 HeldTooLong"];
    assert_eq!(short(&events), [&given_up[..], &unpaired].concat());
}

#[test]
fn direct_writes_appear_when_readers_see_them() {
    let submit = |dio, offset, text: &str| Made::new(Kind::Direct, 1, 5).range(offset, text.len() as u64, dio).payload(text.as_bytes());
    let end_at = |dio, offset, result: i64| Made::new(Kind::DirectEnd, 3, 5).range(offset, result as u64, dio);
    let end = |dio, result| end_at(dio, 0, result);
    let done = |dio| Made::new(Kind::DirectDone, 3, 5).range(0, 0, dio);
    let direct = format!("{:?}", CaptureEvent::DirectIo { node: node(5) });
    let two = [submit(10, 0, "aaaa"), submit(11, 8, "bbbb"), Made::data(1, 6, 0, "x"), end_at(11, 8, 4), end(10, 4), done(11), done(10)];
    assert_eq!(short(&run(&two)), ["write 6 0 x", &direct, &direct, "write 5 8 bbbb", "write 5 0 aaaa"]);
    // Whoever waited for the first one goes on before readers see it, and comes behind it all the same.
    let punch = [Made::new(Kind::FallocateEnter, 2, 5).range(0, 4096, 3), Made::new(Kind::Order, 2, 5), exit(2)];
    let waited = [&[submit(10, 0, "aaaa"), end(10, 4)], &punch[..], &[Made::data(1, 6, 0, "x"), done(10)]].concat();
    assert_eq!(short(&run(&waited)), [&direct, "write 6 0 x", "write 5 0 aaaa", "punch 5"]);
    // In another order than they ended.
    let crossed = [submit(10, 0, "aaaa"), submit(11, 8, "bbbb"), end(10, 4), end_at(11, 8, 4), done(11), done(10)];
    assert_eq!(short(&run(&crossed)), [&direct, &direct, "write 5 0 aaaa", "write 5 8 bbbb"]);
    let events = run(&[submit(10, 0, "aaaabbbb"), end(10, -5), done(10)]);
    assert_eq!(short(&events), [&direct, "lost 5 DirectWriteFailed"]);
    // Zeros around the content, which fill blocks up.
    let events = run(&[submit(10, 4, "aabb"), submit(10, 0, "0000"), submit(10, 8, "0000"), end_at(10, 4, 4), done(10)]);
    assert_eq!(short(&events), [&direct, "write 5 4 aabb"]);
    // Not all that was written is there.
    let events = run(&[submit(10, 4, "aabb"), end_at(10, 4, 6), done(10)]);
    assert_eq!(short(&events), [&direct, "write 5 4 aabb", "lost 5 DirectWriteFailed"]);
    // Its end was lost, or the address was used again before it came.
    let events = run(&[submit(10, 0, "aaaa"), done(10)]);
    assert_eq!(short(&events), ["lost 5 Unpaired"]);
    let again = [submit(10, 0, "aaaa"), end(10, 4), submit(10, 4, "bbbb"), end_at(10, 4, 4), done(10)];
    assert_eq!(short(&run(&again)), [&direct, "lost 5 HeldTooLong", "write 5 0 aaaa", &direct, "write 5 4 bbbb"]);
}

#[test]
fn a_barrier_waits_for_what_was_held_when_it_began_and_for_nothing_else() {
    let submit = |dio| Made::new(Kind::Direct, 1, 5).range(0, 4, dio).payload(b"aaaa");
    let end = |dio| Made::new(Kind::DirectEnd, 3, 5).range(0, 4, dio);
    let done = |dio| Made::new(Kind::DirectDone, 3, 5).range(0, 0, dio);
    let mut assembler = Assembler::new([(DEVICE, VolumeId(0))]);
    let feed = |assembler: &mut Assembler, records: &[Made]| records.iter().for_each(|record| assembler.feed(&record.0, &mut |_| ()));
    feed(&mut assembler, &[submit(10), end(10)]);
    let through = assembler.last_hold();
    feed(&mut assembler, &[submit(11), end(11)]);
    assert!(assembler.is_holding(through));
    feed(&mut assembler, &[done(10)]);
    assert!(!assembler.is_holding(through) && assembler.is_holding(u64::MAX));
    feed(&mut assembler, &[done(11)]);
    assert_eq!((assembler.is_holding(u64::MAX), assembler.held_bytes()), (false, 0));
}

#[test]
fn a_symlink_needs_its_target() {
    let enter = Made::new(Kind::SymlinkEnter, 1, 0).parent(2).payload(b"to/there\0\0\0");
    let create = |tid| Made::new(Kind::Create, tid, 9).mode(0o120777).parent(2).name("n");
    check(&[enter.clone(), create(1)], &["symlink to/there"]);
    check(&[enter, create(2)], &["lost 2 Unpaired"]);
}

fn rename_enter(flags: u64, victim: u64) -> Made {
    let mut payload = vec![0; 64 + 2 * NAME_BYTES];
    payload[0] = 3;
    payload[32..40].copy_from_slice(&victim.to_le_bytes());
    payload[64] = b'a';
    payload[64 + NAME_BYTES] = b'b';
    Made::new(Kind::RenameEnter, 1, 9).parent(2).range(0, 0, flags).payload(&payload)
}

#[test]
fn a_rename_is_announced_once_or_twice_and_told_once() {
    let done = Made::new(Kind::Rename, 1, 9).parent(2).name("a");
    check(&[rename_enter(0, 8), done.clone()], &["rename a b Replace Some(8)"]);
    check(&[rename_enter(2, 8), done.clone(), Made::new(Kind::Rename, 1, 8).parent(3).name("b")], &["rename a b Exchange Some(8)"]);
    check(&[rename_enter(4, 0), done.clone()], &["rename a b Whiteout None"]);
    check(&[done], &["lost 2 Unpaired", "lost 9 Unpaired"]);
}

#[test]
fn a_directory_that_moves_changes_itself() {
    let directory = |inode, parent, name| Made::new(Kind::Rename, 1, inode).mode(0o040755).parent(parent).name(name);
    let events = run(&[rename_enter(2, 8), directory(9, 2, "a"), directory(8, 3, "b")]);
    let touched: Vec<_> = events
        .iter()
        .filter_map(|event| if let CaptureEvent::Operation { touched, .. } = event { Some(touched) } else { None })
        .flat_map(|touched| touched.iter().flatten().map(|(node, _)| node.inode))
        .collect();
    assert_eq!(touched, [2, 9, 8]);
}

#[test]
fn a_rename_that_lost_a_part_names_all_three() {
    let moved_to = Made::new(Kind::MovedTo, 1, 3);
    let done = Made::new(Kind::Rename, 1, 9).parent(2).name("a");
    check(&[done, moved_to.clone()], &["lost 2 Unpaired", "lost 9 Unpaired", "lost 3 Unpaired"]);
    check(&[rename_enter(0, 0), moved_to], &["lost 3 Unpaired"]);
}

#[test]
fn the_end_of_a_node_comes_after_the_end_of_its_name() {
    let unlink = Made::new(Kind::Delete, 1, 9).parent(2).name("a");
    check(
        &[Made::new(Kind::Gone, 1, 9), unlink, Made::new(Kind::Gone, 1, 8), Made::data(1, 5, 0, "x")],
        &["unlink 9", "forget 9", "forget 8", "write 5 0 x"],
    );
}

#[test]
fn what_no_replica_can_show_is_not_sent() {
    let delete = |inode| Made::new(Kind::Delete, 1, inode).parent(2).name("f");
    let mut linked = delete(6);
    linked.put(96, &1u32.to_le_bytes());
    let clone = |from: u64, to: u64| {
        let enter = Made::new(Kind::CloneEnter, 3, to).parent(from).range(0, 4, 0);
        [enter, Made::new(Kind::Order, 3, to), Made::new(Kind::CallExit, 3, to).range(0, 0, 4)]
    };
    let mut records = vec![Made::data(1, 5, 0, "kept"), delete(5), linked, Made::data(1, 5, 4, "gone"), Made::data(1, 6, 0, "kept")];
    records.extend(clone(5, 7).into_iter().chain(clone(7, 5)));
    // After the end of the node its number may mean another one.
    records.extend([Made::new(Kind::Gone, 1, 5), Made::data(1, 5, 0, "another")]);
    check(
        &records,
        &["write 5 0 kept", "unlink 5", "unlink 6", "write 6 0 kept", "lost 7 CopiedFromLost", "forget 5", "write 5 0 another"],
    );
}

#[test]
fn an_acl_is_told_as_its_attribute_would_be() {
    // Version, then tag, permissions, id: of the owner, whose id means nothing, and of user 7.
    let value = [2, 0, 0, 0, 1, 0, 6, 0, 9, 9, 9, 9, 2, 0, 4, 0, 7, 0, 0, 0];
    let mut payload = [0; NAME_BYTES].to_vec();
    payload[..23].copy_from_slice(b"system.posix_acl_access");
    payload.extend(value);
    let enter = Made::new(Kind::XattrEnter, 1, 5).range(0, 20, 0).payload(&payload);
    let events = run(&[enter, Made::new(Kind::Attributes, 1, 5)]);
    let Some(CaptureEvent::Operation { operation: Operation::SetXattr { value: told, .. }, .. }) = events.first() else {
        panic!("{events:?}");
    };
    assert_eq!(told[..], [2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 2, 0, 4, 0, 7, 0, 0, 0]);
}

#[test]
fn an_xattr_call_becomes_one_only_when_it_succeeds() {
    let mut payload = [0; NAME_BYTES + 256];
    payload[..6].copy_from_slice(b"user.x");
    let enter = Made::new(Kind::XattrEnter, 1, 9).range(0, 5, 0).payload(&payload);
    let attributes = Made::new(Kind::Attributes, 1, 9).mode(0o100600);
    check(&[enter.clone(), attributes.clone()], &["xattr user.x 5", "owner", "mode 600"]);
    check(&[enter.clone()], &[]);
    check(&[attributes.clone()], &["owner", "mode 600"]);
    // Its value could not be read.
    let mut unread = enter;
    unread.put(2, &FLAG_UNREAD.to_le_bytes());
    check(&[unread, attributes], &["lost 9 Unread", "owner", "mode 600"]);
}

#[test]
fn a_fallocate_holds_its_own_node_only_and_stands_at_its_order_point() {
    let enter = Made::new(Kind::FallocateEnter, 1, 5).range(0, 4096, 3);
    let order = Made::new(Kind::Order, 1, 5);
    let exit = |result: i64| exit(1).range(0, 0, result as u64);
    let others = [Made::data(2, 5, 0, "later"), Made::data(2, 6, 0, "other")];
    let with = |result| [&[enter.clone(), order.clone()], &others[..], &[exit(result)]].concat();
    check(&with(0), &["write 6 0 other", "punch 5", "write 5 0 later"]);
    check(&with(-28), &["write 6 0 other", "lost 5 CallFailed", "write 5 0 later"]);
    check(&[enter, exit(0)], &["punch 5"]);
}

#[test]
fn a_copy_is_either_a_clone_or_its_writes() {
    let enter = Made::new(Kind::CopyEnter, 1, 5).parent(4).range(100, 4, 0);
    let order = Made::new(Kind::Order, 1, 5);
    let exit = Made::new(Kind::CallExit, 1, 5).range(0, 0, 4);
    check(&[enter.clone(), order.clone(), exit.clone()], &["clone 4"]);
    check(&[enter.clone(), order.clone(), Made::data(1, 5, 100, "data"), exit.clone()], &["write 5 100 data"]);
    // Zeroing below the target is part of a clone.
    check(&[enter, order.clone(), Made::data(1, 5, 90, "0"), exit], &["clone 4", "write 5 90 0"]);
    // It failed half way.
    let enter = Made::new(Kind::CloneEnter, 1, 5).parent(4).range(100, 4, 0);
    check(&[enter, order, Made::new(Kind::CallExit, 1, 5).range(0, 0, -28i64 as u64)], &["lost 5 CallFailed"]);
}

fn collapse(tid: u32) -> [Made; 2] {
    [Made::new(Kind::FallocateEnter, tid, 5).range(4096, 4096, 8), Made::new(Kind::Order, tid, 5).size(20_000)]
}
fn exit(tid: u32) -> Made {
    Made::new(Kind::CallExit, tid, 5)
}
/// Anybody may ask for that as often as he likes.
#[test]
fn a_range_outside_of_the_file_is_refused_and_changes_its_times_only() {
    let refused = |size| exit(1).range(0, 0, -22i64 as u64).size(size);
    let with = |size| [&collapse(1)[..], &[refused(size)]].concat();
    check(&with(8192), &["touch 5"]);
    check(&with(8193), &["lost 5 CallFailed"]);
    let insert = [Made::new(Kind::FallocateEnter, 1, 5).range(4096, 4096, 0x20), Made::new(Kind::Order, 1, 5)];
    check(&[&insert[..], &[refused(4096)]].concat(), &["touch 5"]);
    // It had made the file longer before it failed.
    check(&[&insert[..], &[refused(8192 + 4096)]].concat(), &["lost 5 CallFailed"]);
}

fn mapped(tid: u32, offset: u64, text: &str) -> Made {
    Made::new(Kind::Mapped, tid, 5).range(offset, text.len() as u64, 0).payload(text.as_bytes())
}
const COLLAPSE: &str = "Collapse { node: NodeId { volume: VolumeId(0), subvolume: 0, inode: 5, generation: 0 }, offset: ByteOffset(4096), len: ByteLen(4096) }";

#[test]
fn what_a_call_has_written_back_was_there_before_its_effect() {
    let with = |record: Made| [&collapse(1)[..], &[record, exit(1)]].concat();
    check(&with(mapped(1, 8192, "moves")), &["write 5 8192 moves", COLLAPSE]);
    // Of a range that the call leaves alone it does not matter when.
    check(&with(mapped(2, 0, "stays")), &[COLLAPSE, "write 5 0 stays"]);
    // Another task's writeback may be one of after the effect.
    check(&with(mapped(2, 8192, "when?")), &[COLLAPSE, "lost 5 Unpaired"]);
    // What the call has put behind the end of the file meanwhile is none of its content.
    check(&with(mapped(1, 19_998, "in, out")), &["write 5 19998 in", COLLAPSE]);
    check(&with(mapped(1, 20_480, "out")), &[COLLAPSE]);
}

/// As xfs does it: behind the new end, up to the end of the block.
#[test]
fn what_a_call_zeroes_itself_is_part_of_it() {
    let with = |record: Made| [&collapse(1)[..], &[record, exit(1)]].concat();
    check(&with(Made::data(1, 5, 15_904, "0")), &[COLLAPSE]);
    // Another file's, which a loop device's thread writes, and somebody else's, who waits for the lock.
    check(&with(Made::data(1, 6, 15_904, "0")), &["write 6 15904 0", COLLAPSE]);
    check(&with(Made::data(2, 5, 15_904, "0")), &[COLLAPSE, "write 5 15904 0"]);
}

/// The second call gets the lock as soon as the first lets it go, which is before the first one's exit is told.
#[test]
fn calls_on_one_node_keep_their_order_whoever_ends_first() {
    let punch = [Made::new(Kind::FallocateEnter, 2, 5).range(0, 4096, 3), Made::new(Kind::Order, 2, 5)];
    let begun = [&collapse(1)[..], &[Made::data(3, 5, 0, "a")], &punch[..], &[Made::data(3, 5, 0, "b")]].concat();
    let expect = [COLLAPSE, "write 5 0 a", "punch 5", "write 5 0 b"];
    check(&[&begun[..], &[exit(1), exit(2)]].concat(), &expect);
    check(&[&begun[..], &[exit(2), exit(1)]].concat(), &expect);
}

#[test]
fn a_call_that_never_ends_is_given_up_and_its_node_is_lost_until_it_does() {
    let mut events = Vec::new();
    let mut assembler = Assembler::new([(DEVICE, VolumeId(0))]);
    for record in [Made::new(Kind::FallocateEnter, 1, 5).range(0, 4096, 3), Made::new(Kind::Order, 1, 5), Made::data(2, 5, 0, "x")] {
        assembler.feed(&record.0, &mut |event| events.push(event));
    }
    assembler.settle(HELD_NS_MAX / 2, &mut |event| events.push(event));
    assert!(events.is_empty() && assembler.is_holding(u64::MAX));
    assembler.settle(HELD_NS_MAX + 1, &mut |event| events.push(event));
    assert_eq!((assembler.is_holding(u64::MAX), assembler.held_bytes()), (false, 0));
    // Who reads the node now may come before the effect.
    for record in [Made::data(2, 5, 0, "y"), exit(1), Made::data(2, 5, 0, "z")] {
        assembler.feed(&record.0, &mut |event| events.push(event));
    }
    assembler.settle(HELD_NS_MAX + 2, &mut |event| events.push(event));
    let expect = ["lost 5 HeldTooLong", "lost 5 HeldTooLong", "lost 5 HeldTooLong", "lost 5 Unpaired", "write 5 0 z"];
    assert_eq!(short(&events), expect);
}

#[test]
fn an_end_without_a_beginning_is_a_loss() {
    check(&[exit(1)], &["lost 5 Unpaired"]);
    let direct = format!("{:?}", CaptureEvent::DirectIo { node: node(5) });
    let ended =
        |result: i64| [Made::new(Kind::DirectEnd, 3, 5).range(0, result as u64, 10), Made::new(Kind::DirectDone, 3, 5).range(0, 0, 10)];
    check(&ended(4), &[&direct, "lost 5 Unpaired"]);
    check(&[ended(0), ended(-5)].concat(), &[]);
}

proptest! {
    /// Whatever the records say, nothing panics, and what is held is accounted for.
    #[test]
    fn any_sequence_is_survived(sequence in proptest::collection::vec((1u16..30, 1u32..3, 1u64..4, 0u64..9000, any::<u64>(), 0usize..700), 0..60)) {
        let mut assembler = Assembler::new([(DEVICE, VolumeId(0))]);
        let mut sink = |_| ();
        for (kind, tid, inode, offset, extra, payload) in sequence {
            let mut made = Made::new(Kind::Data, tid, inode).parent(inode ^ 1).range(offset, extra, extra % 5).payload(&vec![b'n'; payload]);
            made.put(0, &kind.to_le_bytes());
            assembler.feed(&made.0, &mut sink);
        }
        assembler.settle(u64::MAX, &mut sink);
        assembler.give_up_held(u64::MAX, &mut sink);
        prop_assert_eq!(assembler.held_bytes(), 0);
    }
}

/// An assembler that is fed by many tasks, and what came of it.
struct Crowd {
    assembler: Assembler,
    events: Vec<CaptureEvent>,
}

impl Crowd {
    fn new() -> Crowd {
        Crowd { assembler: Assembler::new([(DEVICE, VolumeId(0))]), events: Vec::new() }
    }
    fn feed(&mut self, mut record: Made, seconds: u64) {
        record.put(16, &(seconds * 1_000_000_000).to_le_bytes());
        self.assembler.feed(&record.0, &mut |event| self.events.push(event));
    }
    fn settle(&mut self, seconds: u64) -> Vec<CaptureEvent> {
        self.assembler.settle(seconds * 1_000_000_000, &mut |event| self.events.push(event));
        std::mem::take(&mut self.events)
    }
}

#[test]
fn a_server_that_forks_leaves_no_tasks_behind() {
    let mut crowd = Crowd::new();
    for tid in 0..5_000 {
        crowd.feed(Made::new(Kind::AtimeEnter, tid, 20).range(0, 0, 5), 100);
        crowd.feed(Made::new(Kind::Attributes, tid, 20), 100);
        crowd.feed(Made::new(Kind::Gone, tid, 21), 100);
        crowd.feed(Made::new(Kind::Delete, tid, 21).parent(2).name("x"), 100);
        crowd.feed(Made::new(Kind::Close, tid, 20), 100);
    }
    crowd.feed(Made::new(Kind::Gone, 9_999, 22), 100);
    assert_eq!((crowd.assembler.tasks.len(), crowd.assembler.going.len()), (1, 5_001));
    let forgets = |events: &[CaptureEvent]| {
        let forget = |event: &&CaptureEvent| matches!(event, CaptureEvent::Operation { operation: Operation::Forget { .. }, .. });
        events.iter().filter(forget).count()
    };
    assert_eq!(forgets(&crowd.settle(100)), 5_000);
    assert_eq!(crowd.assembler.going.len(), 1);
    assert_eq!((forgets(&crowd.settle(102)), crowd.assembler.tasks.len()), (1, 0));
}

#[test]
fn what_failed_calls_leave_is_swept_and_a_call_without_an_end_is_a_loss() {
    let mut crowd = Crowd::new();
    for tid in 0..100 {
        crowd.feed(Made::new(Kind::XattrRemoveEnter, tid, 20).name("user.x"), 100);
    }
    crowd.feed(Made::new(Kind::FallocateEnter, 7_000, 30), 100);
    assert_eq!((crowd.settle(155), crowd.assembler.tasks.len()), (vec![], 101));
    let lost = CaptureEvent::Lost { node: node(30), range: (0, u64::MAX), reason: LossReason::HeldTooLong };
    assert_eq!((crowd.settle(166), crowd.assembler.tasks.len()), (vec![lost], 0));
}

#[test]
fn more_tasks_than_can_be_are_given_up_loudly() {
    let mut crowd = Crowd::new();
    for tid in 0..=TASKS_MAX as u32 {
        crowd.feed(Made::new(Kind::XattrRemoveEnter, tid, 20).name("user.x"), 100);
    }
    let lost = CaptureEvent::LostEverything { reason: LossReason::HeldTooLong };
    assert_eq!((crowd.settle(100), crowd.assembler.tasks.len()), (vec![lost], 0));
}
