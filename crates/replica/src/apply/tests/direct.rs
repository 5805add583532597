//! Single rules, each shown by the shortest stream that needs it.

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn node(inode: u64) -> NodeId {
    NodeId { inode, generation: 1, ..ROOT }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

const PLAIN: Attributes = Attributes { mode: 0o755, owner: 0, group: 0, modified: Timestamp(1_000_000_007) };

fn mkdir(parent: NodeId, text: &str, inode: u64) -> Operation {
    Operation::Mkdir { parent, name: name(text), node: node(inode), attributes: PLAIN }
}

fn create(parent: NodeId, text: &str, inode: u64) -> Operation {
    Operation::Create { parent, name: name(text), node: node(inode), attributes: PLAIN }
}

fn rename(parent: NodeId, text: &str, inode: u64, new_parent: NodeId, new_text: &str) -> Operation {
    let (name, new_name) = (name(text), name(new_text));
    Operation::Rename { parent, name, node: node(inode), new_parent, new_name, mode: RenameMode::Replace, victim: None }
}

fn write(inode: u64, data: &[u8]) -> Operation {
    Operation::Write { node: node(inode), offset: ByteOffset(0), data: data.to_vec() }
}

/// Applies operations behind what was applied before.
fn feed(applier: &mut Applier, operations: &[Operation]) {
    for operation in operations {
        applier.apply(&Item { seq: applier.applied().next(), operation: operation.clone() }).unwrap();
    }
    applier.set_due_times().unwrap();
}

fn opened(lab: &Lab) -> Applier {
    let mut applier = lab.open();
    applier.redo_through(OpSeq::ZERO).unwrap();
    applier
}

#[test]
fn redo_cuts_the_link_that_the_stream_has_not_made() {
    let Some(lab) = Lab::new("loop") else { return };
    let mut applier = opened(&lab);
    // /a/x and /b, which are durable.
    feed(&mut applier, &[mkdir(ROOT, "a", 10), mkdir(node(10), "x", 11), mkdir(ROOT, "b", 12), create(node(12), "f", 13)]);
    applier.mark().unwrap();
    // a goes below b and comes back; then b goes below a/x. Redo meets the first with b below a.
    let dance = [rename(ROOT, "a", 10, node(12), "a"), rename(node(12), "a", 10, ROOT, "a"), rename(ROOT, "b", 12, node(11), "b")];
    feed(&mut applier, &dance);
    drop(applier);
    let mut applier = lab.open();
    assert_eq!(applier.applied(), OpSeq(4));
    applier.redo_through(OpSeq(7)).unwrap();
    feed(&mut applier, &dance);
    assert!(lab.volume().join("a/x/b/f").is_file());
    assert_eq!(applier.take_wants(), []);
    assert!(limbo_is_empty(&lab));
    assert_eq!(applier.counters().operations_failed, 0);
}

#[test]
fn unknown_nodes_are_wanted_and_do_not_stop() {
    let Some(lab) = Lab::new("unknown") else { return };
    let mut applier = opened(&lab);
    feed(&mut applier, &[Operation::Marker(Marker::ResyncStarted), Operation::Marker(Marker::Consistent)]);
    assert!(applier.state().is_consistent());
    feed(&mut applier, &[write(77, b"lost"), create(node(78), "child", 79), write(79, b"kept")]);
    assert_eq!(applier.take_wants(), [node(77), node(78)]);
    assert!(!applier.state().is_consistent());
    applier.mark().unwrap();
    drop(applier);
    let mut applier = opened(&lab);
    assert_eq!(applier.take_wants(), [node(77), node(78)], "wants outlive a restart");
    // The child that was made in limbo finds its place when its parent is listed.
    let answer = [
        Operation::Marker(Marker::ResyncStarted),
        listing(ROOT, &[("d", 78, NodeKind::Directory)]),
        shown(78, NodeKind::Directory),
        listing(node(78), &[("child", 79, NodeKind::File)]),
        Operation::Forget { node: node(77) },
        Operation::Marker(Marker::Consistent),
    ];
    feed(&mut applier, &answer);
    assert!(applier.state().is_consistent(), "{:?}", applier.state());
    assert_eq!(std::fs::read(lab.volume().join("d/child")).unwrap(), b"kept");
    assert!(limbo_is_empty(&lab));
}

fn listing(directory: NodeId, entries: &[(&str, u64, NodeKind)]) -> Operation {
    let entry = |(text, inode, kind): &(&str, u64, NodeKind)| DirectoryEntry {
        name: name(text),
        node: node(*inode),
        kind: *kind,
        device: 0,
        target: Vec::new(),
    };
    Operation::MirrorDirectory { node: directory, entries: entries.iter().map(entry).collect(), first: true, last: true }
}

fn shown(inode: u64, kind: NodeKind) -> Operation {
    let (node, size) = (node(inode), ByteLen(0));
    Operation::MirrorNode { node, kind, attributes: PLAIN, accessed: Timestamp(5), flags: 0, project: 0, size, xattrs: Vec::new() }
}

const STARTED: Operation = Operation::Marker(Marker::ResyncStarted);
const CONSISTENT: Operation = Operation::Marker(Marker::Consistent);

#[test]
fn a_node_that_is_shown_before_its_name_waits_for_it() {
    let Some(lab) = Lab::new("early") else { return };
    let mut applier = opened(&lab);
    feed(&mut applier, &[STARTED, shown(30, NodeKind::File), write(30, b"early")]);
    feed(&mut applier, &[listing(ROOT, &[("late", 30, NodeKind::File)]), CONSISTENT]);
    assert!(applier.state().is_consistent(), "{:?}", applier.state());
    assert_eq!(std::fs::read(lab.volume().join("late")).unwrap(), b"early");
}

#[test]
fn a_name_that_could_not_be_given_wants_its_directory() {
    let Some(lab) = Lab::new("unplaced") else { return };
    let mut applier = opened(&lab);
    feed(&mut applier, &[mkdir(ROOT, "d", 10), STARTED, CONSISTENT]);
    feed(&mut applier, &[Operation::Link { parent: node(10), name: name("f"), node: node(31) }]);
    assert_eq!(applier.take_wants(), [node(31), node(10)]);
    feed(&mut applier, &[rename(ROOT, "gone", 32, node(10), "g")]);
    assert_eq!(applier.take_wants(), [node(32)], "the directory is wanted already");
}

#[test]
fn a_copy_of_what_is_wanted_is_wanted_too() {
    let Some(lab) = Lab::new("copy") else { return };
    let mut applier = opened(&lab);
    feed(&mut applier, &[create(ROOT, "a", 10), create(ROOT, "b", 11), write(10, b"aaaa"), STARTED, CONSISTENT]);
    let clone = |origin, to| Operation::CloneRange {
        origin: node(origin),
        origin_offset: ByteOffset(0),
        node: node(to),
        offset: ByteOffset(0),
        len: ByteLen(4),
    };
    // The origin is missing, so that the first copy is wanted; and a copy of the copy.
    feed(&mut applier, &[create(ROOT, "c", 12), clone(77, 10), clone(10, 12)]);
    assert_eq!(applier.take_wants(), [node(77), node(10), node(12)]);
}

#[test]
fn a_lost_name_excuses_no_node_that_has_others() {
    let Some(lab) = Lab::new("twin") else { return };
    let mut applier = opened(&lab);
    let link = Operation::Link { parent: ROOT, name: name("twin"), node: node(10) };
    let unlink = Operation::Unlink { parent: ROOT, name: name("f"), node: node(10) };
    feed(&mut applier, &[create(ROOT, "f", 10), link, unlink, STARTED, CONSISTENT]);
    let clone =
        Operation::CloneRange { origin: node(77), origin_offset: ByteOffset(0), node: node(10), offset: ByteOffset(0), len: ByteLen(4) };
    feed(&mut applier, &[clone]);
    assert_eq!(applier.take_wants(), [node(77), node(10)]);
}

#[test]
fn a_want_that_the_source_forgets_needs_no_marker() {
    let Some(lab) = Lab::new("forgotten") else { return };
    let mut applier = opened(&lab);
    feed(&mut applier, &[STARTED, CONSISTENT, write(77, b"lost")]);
    assert!(!applier.state().is_consistent());
    feed(&mut applier, &[Operation::Forget { node: node(77) }]);
    assert!(applier.state().is_consistent(), "{:?}", applier.state());
    assert_eq!(applier.take_wants(), []);
}

/// Its content is no newer than the resync that the next agent is asked for, so that nothing but the want brings it.
#[test]
fn a_want_whose_answer_was_cut_off_is_open_again_with_the_next_stream() {
    let Some(lab) = Lab::new("answered") else { return };
    let started = |everything| Operation::Marker(Marker::StreamStarted { boot: 1, everything });
    let mut applier = opened(&lab);
    feed(&mut applier, &[started(true), STARTED, CONSISTENT, write(77, b"lost"), write(78, b"too")]);
    assert_eq!(applier.take_wants(), [node(77), node(78)]);
    feed(&mut applier, &[STARTED, shown(77, NodeKind::File)]);
    assert_eq!(applier.state().wanted, 1);
    applier.mark().unwrap();
    drop(applier);
    let mut applier = opened(&lab);
    assert_eq!(applier.take_wants(), [node(78)]);
    feed(&mut applier, &[started(false)]);
    assert_eq!(applier.take_wants(), [node(77)]);
    feed(&mut applier, &[STARTED, shown(77, NodeKind::File), shown(78, NodeKind::File), CONSISTENT, started(false)]);
    assert_eq!(applier.take_wants(), [], "all of it has come");
    feed(&mut applier, &[write(79, b"lost"), STARTED, shown(79, NodeKind::File), started(true)]);
    assert_eq!(applier.take_wants(), [], "all of it comes");
}

#[test]
fn a_resync_forgets_files_without_a_name() {
    let Some(lab) = Lab::new("unnamed") else { return };
    let mut applier = opened(&lab);
    let unnamed = Operation::CreateUnnamed { node: node(40), attributes: PLAIN };
    feed(&mut applier, &[STARTED, CONSISTENT, unnamed, write(40, b"old"), STARTED, CONSISTENT]);
    feed(&mut applier, &[Operation::Link { parent: ROOT, name: name("f"), node: node(40) }]);
    assert_eq!(applier.take_wants(), [node(40), ROOT], "what it missed in the gap nobody knows");
    applier.mark().unwrap();
}

#[test]
fn a_loop_that_a_resync_meets_is_cut() {
    let Some(lab) = Lab::new("swap") else { return };
    let mut applier = opened(&lab);
    feed(&mut applier, &[mkdir(ROOT, "a", 10), mkdir(node(10), "b", 11), create(node(10), "f", 12), STARTED, CONSISTENT]);
    // On the source, b has come out of a, and a has gone below b. The listing of b comes first.
    feed(&mut applier, &[STARTED, listing(node(11), &[("a", 10, NodeKind::Directory)])]);
    assert_eq!(applier.take_wants(), [node(10)], "it held the link that was cut");
    feed(&mut applier, &[listing(ROOT, &[("b", 11, NodeKind::Directory)]), listing(node(10), &[("f", 12, NodeKind::File)]), CONSISTENT]);
    assert_eq!(applier.take_wants(), [node(10)], "a listing that came by itself answers nothing");
    feed(&mut applier, &[STARTED, shown(10, NodeKind::Directory), listing(node(10), &[("f", 12, NodeKind::File)]), CONSISTENT]);
    assert!(lab.volume().join("b/a/f").is_file());
    assert!(applier.state().is_consistent(), "{:?}", applier.state());
    assert!(limbo_is_empty(&lab));
    assert_eq!(applier.counters().operations_failed, 0);
}

#[test]
fn a_loop_below_what_lies_in_limbo_is_cut() {
    let Some(lab) = Lab::new("limbo-loop") else { return };
    let mut applier = opened(&lab);
    feed(&mut applier, &[mkdir(ROOT, "q", 9), mkdir(node(9), "a", 10), mkdir(node(10), "b", 11), STARTED, CONSISTENT]);
    // On the source a file has taken the name of q, and a has gone below b.
    feed(&mut applier, &[STARTED, listing(ROOT, &[("q", 20, NodeKind::File), ("b", 11, NodeKind::Directory)])]);
    feed(&mut applier, &[rename(ROOT, "b", 11, node(10), "b"), listing(node(11), &[("a", 10, NodeKind::Directory)])]);
    assert_eq!(applier.counters().operations_failed, 0);
    assert_eq!(applier.take_wants(), [node(10)], "it held the link that was cut");
}

#[test]
fn capabilities_and_set_id_bits_change_only_by_the_stream() {
    let Some(lab) = Lab::new("capabilities") else { return };
    let mut applier = opened(&lab);
    // A version 2 capability: CAP_NET_RAW, permitted and effective.
    let value = [1u32 | 0x0200_0000, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let capability = Operation::SetXattr { node: node(5), name: b"security.capability".to_vec(), value: value.clone() };
    feed(&mut applier, &[create(ROOT, "ping", 5), Operation::SetMode { node: node(5), mode: 0o6755 }, capability]);
    feed(&mut applier, &[write(5, b"new"), Operation::SetOwner { node: node(5), owner: 7, group: 8 }]);
    feed(&mut applier, &[Operation::Truncate { node: node(5), size: ByteLen(1) }]);
    let entry = &read_tree(&lab.volume(), &[LIMBO_NAME]).unwrap()["ping"];
    assert!(matches!(entry.kind, Kind::File { len: 1, .. }));
    assert_eq!((entry.mode, entry.owner, entry.group), (0o6755, 7, 8));
    assert_eq!(entry.attributes.get("security.capability"), Some(&oracle::hexadecimal(&value)));
    assert_eq!(entry.modified, oracle::seconds(PLAIN.modified), "our own writes leave no trace");
}

#[test]
fn immutable_nodes_are_guarded_only_while_finished() {
    let Some(lab) = Lab::new("immutable") else { return };
    let mut applier = opened(&lab);
    let immutable = rustix::fs::IFlags::IMMUTABLE.bits();
    feed(&mut applier, &[create(ROOT, "f", 5), Operation::SetFlags { node: node(5), flags: immutable }, write(5, b"1")]);
    assert_eq!(applier.counters().attributes_refused, 0);
    let path = lab.volume().join("f");
    let flags = || rustix::fs::ioctl_getflags(std::fs::File::open(&path).unwrap()).unwrap();
    assert!(!flags().contains(rustix::fs::IFlags::IMMUTABLE));
    applier.finish().unwrap();
    assert!(flags().contains(rustix::fs::IFlags::IMMUTABLE));
    assert!(matches!(applier.apply(&Item { seq: applier.applied().next(), operation: write(5, b"2") }), Err(ApplyError::Finished)));
    drop(applier);
    let mut applier = opened(&lab);
    feed(&mut applier, &[write(5, b"2")]);
    assert_eq!(std::fs::read(&path).unwrap(), b"2");
    assert!(!flags().contains(rustix::fs::IFlags::IMMUTABLE));
}

#[test]
fn names_below_a_mount_point_and_our_own_name_are_safe() {
    let Some(lab) = Lab::new("reserved") else { return };
    let mut applier = opened(&lab);
    feed(&mut applier, &[mkdir(ROOT, ".standin-limbo", 5), create(node(5), "f", 6)]);
    assert!(!lab.volume().join(".standin-limbo/f").exists());
    let outside = NodeId { volume: VolumeId(9), ..node(7) };
    let foreign = Item { seq: applier.applied().next(), operation: Operation::Truncate { node: outside, size: ByteLen(0) } };
    assert!(matches!(applier.apply(&foreign), Err(ApplyError::UnknownVolume { .. })));
    let later = Item { seq: OpSeq(99), operation: write(6, b"x") };
    assert!(matches!(applier.apply(&later), Err(ApplyError::OutOfOrder { .. })));
}

#[test]
fn an_id_that_comes_back_is_a_new_node() {
    let Some(lab) = Lab::new("reuse") else { return };
    let mut applier = opened(&lab);
    let unlink = Operation::Unlink { parent: ROOT, name: name("f"), node: node(5) };
    // While a gap is open the unlinked file lives on in limbo.
    let gap = Operation::Marker(Marker::Gap { reason: "test".into() });
    feed(&mut applier, &[gap, create(ROOT, "f", 5), write(5, b"old"), unlink, create(ROOT, "g", 5)]);
    assert_eq!(std::fs::read(lab.volume().join("g")).unwrap(), b"");
    assert!(!lab.volume().join("f").exists());
}

#[test]
fn a_collapse_is_not_repeated_after_a_crash() {
    let Some(lab) = Lab::new("collapse") else { return };
    let mut applier = opened(&lab);
    let data: Vec<u8> = (0..4u8).flat_map(|byte| [byte; 4096]).collect();
    feed(&mut applier, &[create(ROOT, "f", 5), write(5, &data)]);
    let collapse = Item { seq: OpSeq(3), operation: Operation::Collapse { node: node(5), offset: ByteOffset(0), len: ByteLen(4096) } };
    // Without the mark that follows: as if the process died right after the call.
    applier.execute(collapse.seq, &collapse.operation).unwrap();
    drop(applier);
    let path = lab.volume().join("f");
    if std::fs::metadata(&path).unwrap().size() != 3 * 4096 {
        eprintln!("SKIP collapse: the file system of the temporary directory cannot");
        return;
    }
    let mut applier = lab.open();
    assert_eq!(applier.applied(), OpSeq(2));
    applier.redo_through(OpSeq(3)).unwrap();
    applier.apply(&collapse).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), data[4096..]);
    assert_eq!(applier.take_wants(), []);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
}

/// Prints, and asserts nothing: run with `--ignored --nocapture`, in release, and compare with `tar -x` of the same tree.
#[test]
#[ignore = "a measurement"]
fn small_files_per_second() {
    const FILES: u64 = 20_000;
    let Some(lab) = Lab::new("measurement") else { return };
    let mut applier = opened(&lab);
    let mut operations = Vec::new();
    for inode in 0..FILES {
        let parent = node(1_000_000 + inode / 100);
        if inode % 100 == 0 {
            operations.push(mkdir(ROOT, &format!("d{}", inode / 100), parent.inode));
        }
        operations.extend([create(parent, &format!("f{inode}"), inode + 10), write(inode + 10, &[7; 4096])]);
        operations.push(Operation::SetTimes { node: node(inode + 10), accessed: None, modified: Some(Timestamp(1_500_000_000)) });
    }
    let items = numbered(operations);
    let begun = std::time::Instant::now();
    items.chunks(1000).for_each(|segment| applier.apply_segment(segment).unwrap());
    let applied = begun.elapsed();
    applier.mark().unwrap();
    let marked = begun.elapsed();
    eprintln!("{FILES} files: applied in {applied:?}, marked at {marked:?}, {:.0} files/s", FILES as f64 / applied.as_secs_f64());
    let archive = lab.folder.path().join("a.tar");
    let tar = |arguments: &[&str]| std::process::Command::new("tar").args(arguments).status().unwrap();
    tar(&["-C", lab.volume().to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    let copy = lab.folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    let begun = std::time::Instant::now();
    tar(&["-C", copy.to_str().unwrap(), "-xpf", archive.to_str().unwrap()]);
    eprintln!("tar -x: {:?}", begun.elapsed());
}

#[test]
fn what_a_power_cut_of_the_source_took_back_is_asked_for() {
    let Some(lab) = Lab::new("settled") else { return };
    let started = |boot, everything| Operation::Marker(Marker::StreamStarted { boot, everything });
    let mut applier = opened(&lab);
    feed(&mut applier, &[started(1, true), mkdir(ROOT, "d", 10), create(node(10), "f", 11), create(node(10), "g", 12)]);
    feed(&mut applier, &[Operation::Marker(Marker::Settled { through: OpSeq(4) }), write(11, b"new"), write(11, b"newer")]);
    // The same kernel: an agent that was killed and came back. Nothing was taken back.
    feed(&mut applier, &[started(1, false)]);
    assert_eq!(applier.take_wants(), []);
    applier.mark().unwrap();
    let unlink = Operation::Unlink { parent: node(10), name: name("g"), node: node(12) };
    feed(&mut applier, &[unlink, Operation::Marker(Marker::Consistent)]);
    applier.mark().unwrap();
    drop(applier);
    // It is on disk; and another kernel may have lost the writes to f and the change of d.
    let mut applier = opened(&lab);
    assert!(applier.state().is_consistent());
    feed(&mut applier, &[started(2, false)]);
    assert_eq!(applier.take_wants(), [node(10), node(11), node(12)]);
    assert!(!applier.state().is_consistent());
    let power_cut = applier.state().power_cut.expect("the source lost its power");
    applier.power_cut_is_verified(OpSeq(power_cut.0 - 1));
    assert_eq!(applier.state().power_cut, Some(power_cut), "that was another one");
    feed(&mut applier, &[Operation::Marker(Marker::Consistent)]);
    assert!(!applier.state().is_consistent(), "the agent has not shown them yet");
    assert_eq!(applier.take_wants(), [node(10), node(11), node(12)], "so they are asked for again");
    assert_eq!(applier.state().power_cut, Some(power_cut));
    // A mirror of everything asks for nothing.
    feed(&mut applier, &[write(11, b"again"), started(3, true)]);
    assert_eq!(applier.state().power_cut, None);
    assert_eq!(applier.take_wants(), []);
}

#[test]
fn more_wants_than_can_be_asked_for_want_everything() {
    let Some(lab) = Lab::new("everything") else { return };
    let mut applier = opened(&lab);
    let consistent = Operation::Marker(Marker::Consistent);
    for inode in 0..=WANTED_MAX as u64 {
        applier
            .apply(&Item { seq: applier.applied().next(), operation: Operation::Truncate { node: node(100 + inode), size: ByteLen(0) } })
            .unwrap();
    }
    assert_eq!(applier.take_wants().len(), WANTED_MAX);
    assert!(applier.state().everything_wanted);
    feed(&mut applier, &[consistent.clone()]);
    assert!(!applier.state().is_consistent());
    feed(&mut applier, &[Operation::Marker(Marker::StreamStarted { boot: 1, everything: true })]);
    assert!(!applier.state().everything_wanted);
}

#[test]
fn a_directory_that_was_purged_is_missing_even_while_it_was_open() {
    let Some(lab) = Lab::new("purged") else { return };
    let mut applier = opened(&lab);
    let listing = Operation::MirrorDirectory { node: ROOT, entries: Vec::new(), first: true, last: true };
    let marker = Operation::Marker;
    feed(
        &mut applier,
        &[marker(Marker::ResyncStarted), mkdir(ROOT, "d", 10), create(node(10), "f", 11), listing, marker(Marker::Consistent)],
    );
    assert!(limbo_is_empty(&lab) && !lab.volume().join("d").exists());
    assert_eq!(applier.take_wants(), []);
    // The source goes on with it, which it cannot: whatever went wrong, the replica must not call itself consistent.
    feed(&mut applier, &[create(node(10), "g", 12), write(11, b"lost")]);
    assert!(!applier.state().is_consistent());
    let wants = applier.take_wants();
    assert!(wants.contains(&node(10)) && wants.contains(&ROOT) && wants.contains(&node(11)), "{wants:?}");
}

#[test]
fn a_node_of_a_volume_that_is_not_there_yet_can_be_forgotten_and_nothing_else() {
    let Some(lab) = Lab::new("unknown-volume") else { return };
    let mut applier = opened(&lab);
    let elsewhere = NodeId { volume: VolumeId(ROOT.volume.0 + 1), ..node(7) };
    feed(&mut applier, &[Operation::Forget { node: elsewhere }]);
    let write = Operation::Truncate { node: elsewhere, size: ByteLen(0) };
    assert!(applier.apply(&Item { seq: applier.applied().next(), operation: write }).is_err());
}

#[test]
fn a_mirrored_hole_makes_a_file_as_long_as_it_was_read() {
    let Some(lab) = Lab::new("hole") else { return };
    let mut applier = opened(&lab);
    let hole = |offset, len| Operation::MirrorHole { node: node(5), offset: ByteOffset(offset), len: ByteLen(len) };
    // The write that made it so long was left out, because the read was to show it; then it became a hole.
    feed(&mut applier, &[create(ROOT, "f", 5), STARTED, shown(5, NodeKind::File), hole(0, 4096), hole(4096, 1000), CONSISTENT]);
    assert_eq!(std::fs::metadata(lab.volume().join("f")).unwrap().len(), 5096);
    feed(&mut applier, &[hole(0, 100)]);
    assert_eq!(std::fs::metadata(lab.volume().join("f")).unwrap().len(), 5096, "a hole within leaves the end where it is");
}
