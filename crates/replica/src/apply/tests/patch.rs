//! Patches: what does not give what the source has is wanted, at once or when a redo is through; and redo over patches gives the oracle's tree.

use super::mirror::{answer_wants, history_with};
use super::*;
use crate::apply::unproven::UNPROVEN_MAX;
use standin_model::patch::checksum_of;

const FILE: NodeId = NodeId { inode: 50, generation: 1, ..ROOT };
const PLAIN: Attributes = Attributes { mode: 0o644, owner: 0, group: 0, modified: Timestamp(1_000_000_007) };
const PAGE: usize = 8192;

/// A durable file of two pages in a replica that is consistent, and what comes behind it.
struct Scene {
    lab: Lab,
    items: Vec<Item>,
    marked: OpSeq,
}

fn write(offset: u64, data: &[u8]) -> Operation {
    Operation::Write { node: FILE, offset: ByteOffset(offset), data: data.to_vec() }
}

/// Of the first page: these bytes changed, as the source has it then.
fn patch(parts: &[(u32, &[u8])], page: &[u8]) -> Operation {
    let parts = parts.iter().map(|(at, data)| PatchPart { at: *at, data: data.to_vec() }).collect();
    Operation::Patch { node: FILE, offset: ByteOffset(0), len: ByteLen(page.len() as u64), parts, checksum: checksum_of(page) }
}

impl Scene {
    fn new(test: &str, behind: Vec<Operation>) -> Option<(Scene, Applier)> {
        let lab = Lab::new(test)?;
        let name = Name::new("pages").unwrap();
        let before = vec![
            Operation::Marker(Marker::ResyncStarted),
            Operation::Create { parent: ROOT, name, node: FILE, attributes: PLAIN },
            write(0, &[1; 2 * PAGE]),
            Operation::Marker(Marker::Consistent),
        ];
        let marked = OpSeq(before.len() as u64);
        let items = numbered([before, behind].concat());
        let mut applier = lab.open();
        applier.redo_through(OpSeq::ZERO).unwrap();
        applier.apply_segment(&items[..marked.0 as usize]).unwrap();
        applier.mark().unwrap();
        assert!(applier.state().is_consistent());
        Some((Scene { lab, items, marked }, applier))
    }

    fn apply(&self, applier: &mut Applier, through: usize) {
        let from = applier.applied().0 as usize;
        applier.apply_segment(&self.items[from..through]).unwrap();
    }

    /// The worker is killed with everything applied and nothing marked; then all of it is a redo.
    fn crash(&self, mut applier: Applier) -> Applier {
        self.apply(&mut applier, self.items.len());
        drop(applier);
        let mut applier = self.lab.open();
        assert_eq!(applier.applied(), self.marked);
        applier.redo_through(OpSeq(self.items.len() as u64)).unwrap();
        applier
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(self.lab.volume().join("pages")).unwrap()
    }
}

fn page(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut page = vec![1; PAGE];
    changes.iter().for_each(|(at, data)| page[*at..*at + data.len()].copy_from_slice(data));
    page
}

#[test]
fn a_patch_writes_its_parts_and_proves_the_rest() {
    let whole = page(&[(0, b"head"), (8000, b"tail")]);
    let Some((scene, mut applier)) = Scene::new("patch", vec![patch(&[(0, b"head"), (8000, b"tail")], &whole), patch(&[], &whole)]) else {
        return;
    };
    scene.apply(&mut applier, scene.items.len());
    assert_eq!(scene.content(), [&whole[..], &[1; PAGE]].concat());
    assert_eq!((applier.take_wants(), applier.counters().patches, applier.counters().patches_refused), (vec![], 2, 0));
    assert!(applier.state().is_consistent());
}

#[test]
fn a_patch_that_does_not_give_what_the_source_has_is_wanted() {
    let there = page(&[(0, b"head"), (400, b"a byte that nobody sent")]);
    let Some((scene, mut applier)) = Scene::new("wrong patch", vec![patch(&[(0, b"head")], &there), patch(&[], &there)]) else { return };
    scene.apply(&mut applier, scene.items.len());
    assert_eq!((applier.take_wants(), applier.counters().patches_refused), (vec![FILE], 1));
    assert!(!applier.state().is_consistent());
    // It comes again, and the replica is whole.
    let size = ByteLen(2 * PAGE as u64);
    let again = [
        Operation::MirrorNode {
            node: FILE,
            kind: NodeKind::File,
            attributes: PLAIN,
            accessed: PLAIN.modified,
            flags: 0,
            project: 0,
            size,
            xattrs: vec![],
        },
        Operation::MirrorData { node: FILE, offset: ByteOffset(0), data: [&there[..], &[1; PAGE]].concat() },
        Operation::Marker(Marker::Consistent),
        patch(&[], &there),
    ];
    for operation in again {
        applier.apply(&Item { seq: applier.applied().next(), operation }).unwrap();
    }
    assert!(applier.state().is_consistent());
    assert_eq!(applier.counters().patches_refused, 1);
}

#[test]
fn a_patch_beyond_the_files_end_is_wanted_and_of_a_missing_file_too() {
    let Some((scene, mut applier)) = Scene::new("patch beyond", vec![]) else { return };
    let long = Operation::Patch { node: FILE, offset: ByteOffset(PAGE as u64), len: ByteLen(PATCH_BYTES_MAX), parts: vec![], checksum: 0 };
    let nobody = NodeId { inode: 51, ..FILE };
    let missing = Operation::Patch { node: nobody, offset: ByteOffset(0), len: ByteLen(0), parts: vec![], checksum: checksum_of(&[]) };
    for operation in [long, missing] {
        applier.apply(&Item { seq: applier.applied().next(), operation }).unwrap();
    }
    assert_eq!(applier.take_wants(), [FILE, nobody]);
    assert_eq!(scene.content().len(), 2 * PAGE);
}

#[test]
fn in_a_redo_later_patches_prove_earlier_ones() {
    let (first, second) = (page(&[(0, b"first")]), page(&[(0, b"secnd"), (4096, b"more")]));
    let behind = vec![patch(&[(0, b"first")], &first), patch(&[(0, b"secnd"), (4096, b"more")], &second)];
    let Some((scene, applier)) = Scene::new("redo", behind) else { return };
    let mut applier = scene.crash(applier);
    scene.apply(&mut applier, scene.items.len() - 1);
    assert_eq!(applier.unproven.saved().len(), 1, "the disk is ahead");
    scene.apply(&mut applier, scene.items.len());
    assert!(!applier.is_redoing() && applier.unproven.is_empty());
    assert_eq!((applier.take_wants(), applier.state().is_consistent()), (vec![], true));
    assert_eq!(scene.content(), [&second[..], &[1; PAGE]].concat());
}

#[test]
fn in_a_redo_a_wrong_patch_is_wanted_at_its_end_also_over_a_mark_and_another_crash() {
    let there = page(&[(400, b"a byte that nobody sent")]);
    let behind = vec![patch(&[(0, b"head")], &there), write(PAGE as u64, b"elsewhere")];
    for marks in [false, true] {
        let Some((scene, applier)) = Scene::new("wrong redo", behind.clone()) else { return };
        let mut applier = scene.crash(applier);
        scene.apply(&mut applier, scene.items.len() - 1);
        assert_eq!(applier.take_wants(), [], "it may yet turn out right");
        if marks {
            applier.mark().unwrap();
            drop(applier);
            applier = scene.lab.open();
            assert_eq!(applier.applied().0 as usize, scene.items.len() - 1);
            applier.redo_through(OpSeq(scene.items.len() as u64)).unwrap();
        }
        scene.apply(&mut applier, scene.items.len());
        assert_eq!((applier.take_wants(), applier.counters().patches_refused), (vec![FILE], 1), "marked {marks}");
        assert!(!applier.state().is_consistent());
    }
}

#[test]
fn in_a_redo_what_cannot_be_proven_is_wanted_and_nothing_is_cloned_from_it() {
    let first = page(&[(0, b"first")]);
    let copy = NodeId { inode: 52, ..FILE };
    let create = Operation::Create { parent: ROOT, name: Name::new("copy").unwrap(), node: copy, attributes: PLAIN };
    let len = ByteLen(PAGE as u64);
    let clone = Operation::CloneRange { origin: FILE, origin_offset: ByteOffset(0), node: copy, offset: ByteOffset(0), len };
    let cut = write(3, b"cut");
    let check = |behind: Vec<Operation>, expect: &[NodeId], unproven| {
        let Some((scene, applier)) = Scene::new("unproven", behind) else { return };
        let mut applier = scene.crash(applier);
        scene.apply(&mut applier, scene.items.len());
        assert_eq!((&applier.take_wants()[..], applier.counters().patches_unproven), (expect, unproven));
        assert_eq!(applier.counters().patches_refused, 0);
    };
    check(vec![patch(&[(0, b"first")], &first), cut.clone()], &[FILE], 1);
    check(vec![patch(&[(0, b"first")], &first), cut.clone(), write(0, &first)], &[], 0);
    check(vec![patch(&[(0, b"first")], &first), Operation::Truncate { node: FILE, size: ByteLen(0) }], &[], 0);
    check(vec![patch(&[(0, b"first")], &first), Operation::Truncate { node: FILE, size: ByteLen(100) }], &[FILE], 1);
    let gone = [Operation::Unlink { parent: ROOT, name: Name::new("pages").unwrap(), node: FILE }, Operation::Forget { node: FILE }];
    check([vec![patch(&[(0, b"first")], &first), cut.clone()], gone.to_vec()].concat(), &[], 0);
    // A mark comes between the clone and what changes its origin afterwards, so that the redo begins behind the clone unless the origin was ahead before.
    let Some((scene, applier)) = Scene::new("unproven origin", vec![patch(&[(0, b"first")], &first), cut, create, clone]) else { return };
    let mut applier = scene.crash(applier);
    scene.apply(&mut applier, scene.items.len());
    assert_eq!(applier.take_wants(), [copy, FILE]);
}

#[test]
fn more_than_is_remembered_has_its_node_wanted() {
    let one = |at: usize| Operation::Patch { node: FILE, offset: ByteOffset(at as u64), len: ByteLen(1), parts: vec![], checksum: 7 };
    let Some((scene, applier)) = Scene::new("full", (0..=UNPROVEN_MAX).map(|at| one(at % (2 * PAGE))).collect()) else { return };
    // Each place once: the file is as long as the bound.
    assert_eq!(UNPROVEN_MAX, 2 * PAGE);
    let mut applier = scene.crash(applier);
    scene.apply(&mut applier, scene.items.len() - 1);
    assert!(applier.unproven.is_full() || applier.suspects.contains(&FILE));
    let other = NodeId { inode: 53, ..FILE };
    applier.unproven.expect(crate::apply::unproven::Expected { node: other, offset: 0, len: 1, checksum: 7, is_broken: false });
    scene.apply(&mut applier, scene.items.len());
    assert_eq!(applier.take_wants(), [FILE]);
    assert!(applier.unproven.is_empty());
}

#[test]
fn redo_over_patches_gives_the_oracles_tree() {
    let (mut patches, mut unproven) = (0, 0);
    for seed in random::seeds(60) {
        let (items, oracle) = history_with(seed, !is_btrfs(), true);
        let Some((lab, mut applier, context)) = random::crash(seed, 1 + (seed % 5) as usize, &items) else { return };
        patches += items.iter().filter(|item| matches!(item.operation, Operation::Patch { .. })).count();
        unproven += applier.counters().patches_unproven;
        answer_wants(&mut applier, oracle, |applier, oracle| random::assert_healthy(&lab, applier, oracle, &context));
    }
    println!("{patches} patches, {unproven} unproven");
    assert!(patches > 0, "no history had a patch");
}

#[test]
fn patches_without_a_crash_are_never_refused() {
    for seed in random::seeds(30) {
        let Some(lab) = Lab::new("patches") else { return };
        let mut oracle = Oracle::new(seed);
        oracle.makes_patches = true;
        let mut operations = vec![Operation::SetOwner { node: ROOT, owner: 0, group: 0 }, Operation::SetMode { node: ROOT, mode: 0o755 }];
        (0..400).for_each(|_| oracle.step(&mut operations));
        oracle.end_segment(&mut operations);
        let mut applier = lab.open();
        applier.redo_through(OpSeq::ZERO).unwrap();
        applier.apply_segment(&numbered(operations)).unwrap();
        applier.mark().unwrap();
        assert_eq!(applier.counters().patches_refused, 0);
        random::assert_healthy(&lab, &mut applier, &oracle, &format!("seed {seed}"));
    }
}
