//! Rounds, passes and standstills on a source of two files that tells only that they changed.

use super::*;
use standin_journal::{Queue, QueueOptions};
use standin_mirror::{Chunk, Content, Exclusions, ListedEntry, NodeFacts, ReadError};
use standin_model::{Attributes, ByteLen, DirectoryEntry, Name, NodeKind, VolumeId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const SECOND: i64 = 1_000_000_000;
const ROOT: NodeId = id(2);
const HOT: NodeId = id(12);
const COLD: NodeId = id(13);

const fn id(inode: u64) -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 1 }
}

/// What has been told and what has not; every read of the hot file changes it as often as it says.
#[derive(Clone, Default)]
struct Source {
    told: Rc<RefCell<Vec<Captured>>>,
    unseen: Rc<RefCell<Vec<NodeId>>>,
    sweeps: Rc<Cell<u32>>,
    heat: Rc<Cell<u32>>,
    reads: Rc<RefCell<Vec<NodeId>>>,
    changed: Rc<Cell<i64>>,
}

impl Source {
    fn change(&self, node: NodeId) {
        self.told.borrow_mut().push(Captured::Changed { node, directory: Some(ROOT), names: false });
    }
}

impl Capture for Source {
    fn barrier(&mut self, sink: &mut Vec<Captured>) -> Result<()> {
        sink.append(&mut self.told.borrow_mut());
        Ok(())
    }
    fn wait(&mut self, _: Duration) -> Result<()> {
        Ok(())
    }
    fn is_periodic(&self) -> bool {
        true
    }
    fn sweep(&mut self, _: Timestamp, sink: &mut Vec<Captured>) {
        self.sweeps.set(self.sweeps.get() + 1);
        let unseen = std::mem::take(&mut *self.unseen.borrow_mut());
        sink.extend(unseen.into_iter().map(|node| Captured::Changed { node, directory: None, names: false }));
    }
}

impl PumpReader for Source {
    fn note_direct_io(&mut self, _: NodeId) {}
}

impl SourceReader for Source {
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        let listed = |name: &str, node| {
            let entry = DirectoryEntry { name: Name::new(name).unwrap(), node, kind: NodeKind::File, device: 0, target: vec![] };
            ListedEntry { entry, changed: Timestamp(self.changed.get()), links: 1, allocated: ByteLen(0) }
        };
        Ok((directory == ROOT).then(|| vec![listed("hot", HOT), listed("cold", COLD)]))
    }
    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        let kind = if node == ROOT { NodeKind::Directory } else { NodeKind::File };
        let at = Timestamp(self.changed.get());
        let attributes = Attributes { mode: 0o644, owner: 0, group: 0, modified: at };
        let (accessed, changed, flags, size, xattrs) = (at, at, 0, ByteLen(1), vec![]);
        let facts = NodeFacts { kind, named: true, links: 1, attributes, accessed, changed, flags, size, project: 0, xattrs };
        Ok([ROOT, HOT, COLD].contains(&node).then_some(facts))
    }
    fn read(&mut self, node: NodeId, offset: u64, _: usize) -> Result<Option<Content>, ReadError> {
        self.reads.borrow_mut().push(node);
        if node == HOT && self.heat.get() > 0 {
            self.heat.set(self.heat.get() - 1);
            self.change(HOT);
        }
        Ok(Some(Content { chunks: vec![Chunk::Data { offset, data: vec![1] }], next: offset + 1, end: true }))
    }
}

struct Lab {
    source: Source,
    pump: Pump<Source, Source>,
    queue: SharedQueue,
    time: Arc<AtomicI64>,
    _directory: tempfile::TempDir,
}

impl Lab {
    fn fresh() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        let queue = SharedQueue::new(Queue::open(directory.path().join("queue"), QueueOptions::default()).unwrap());
        let mirror = Mirror::new(&[(ROOT, b"/".to_vec())], Scope::Everything, Exclusions::default());
        let (source, time) = (Source::default(), Arc::new(AtomicI64::new(10_000 * SECOND)));
        let of_clock = Arc::clone(&time);
        let clock = Box::new(move || Timestamp(of_clock.load(Ordering::Relaxed)));
        let pump = Pump::new(source.clone(), source.clone(), mirror, vec![ROOT], Sealer::new(1, OpSeq(1), 1), queue.clone(), clock);
        Lab { source, pump, queue, time, _directory: directory }
    }

    /// A replica that is whole.
    fn new() -> Lab {
        let mut lab = Lab::fresh();
        lab.turn(8);
        assert!(lab.pump.is_current());
        lab.source.reads.borrow_mut().clear();
        lab
    }

    fn turn(&mut self, turns: u32) {
        for _ in 0..turns {
            self.pump.turn(Duration::ZERO).unwrap();
        }
    }

    /// In steps that are shorter than any pause.
    fn pass(&mut self, milliseconds: i64) {
        for _ in 0..milliseconds.div_euclid(100) {
            self.time.fetch_add(SECOND / 10, Ordering::Relaxed);
            self.turn(4);
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.time.load(Ordering::Relaxed))
    }

    fn reads(&self) -> Vec<NodeId> {
        std::mem::take(&mut *self.source.reads.borrow_mut())
    }

    fn markers(&self) -> (usize, usize) {
        let (mut at, mut gaps, mut consistent) = (OpSeq::ZERO, 0, 0);
        while let Some(segment) = self.queue.next_after(at, Duration::ZERO).unwrap() {
            for item in segment.items().unwrap() {
                gaps += usize::from(matches!(item.operation, Operation::Marker(Marker::Gap { .. })));
                consistent += usize::from(matches!(item.operation, Operation::Marker(Marker::Consistent)));
            }
            at = segment.last_seq();
        }
        (gaps, consistent)
    }
}

#[test]
fn changes_wait_for_their_round_and_the_known_time_with_them() {
    let mut lab = Lab::new();
    let known = lab.pump.known_until();
    lab.source.change(COLD);
    lab.source.change(COLD);
    lab.pass(200 * 1000);
    assert!(lab.pump.is_consistent() && !lab.pump.is_current());
    assert_eq!((lab.reads(), lab.markers(), lab.pump.known_until()), (vec![], (0, 1), known));
    assert_eq!(lab.pump.standing().map(|standing| standing.changed), Some(1));
    assert_eq!(lab.pump.mark(&MarkName::parse("x").unwrap()).unwrap(), None, "the replica is not what the source is");
    assert_eq!(lab.pump.quiesced().unwrap(), None);
    lab.pass(101 * 1000);
    assert!(lab.pump.is_current());
    assert_eq!((lab.reads(), lab.markers()), (vec![COLD], (1, 2)), "once, however often it changed");
    assert!(lab.pump.known_until() > known && lab.pump.known_until() <= lab.now());
    assert!(lab.pump.mark(&MarkName::parse("x").unwrap()).unwrap().is_some());
}

#[test]
fn what_changes_meanwhile_is_the_next_passes_and_a_hot_file_keeps_nobody() {
    let mut lab = Lab::new();
    lab.source.heat.set(2);
    [HOT, COLD].iter().for_each(|node| lab.source.change(*node));
    lab.pass(302 * 1000);
    assert!(lab.pump.is_current());
    let reads = lab.reads();
    assert_eq!(reads.iter().filter(|node| **node == HOT).count(), 3, "{reads:?}");
    assert_eq!(reads.iter().filter(|node| **node == COLD).count(), 1, "{reads:?}");
    assert_eq!(lab.markers(), (1, 2));
}

#[test]
fn a_source_that_is_never_quiet_is_left_alone_between_its_passes_and_wants_to_stand_still() {
    let mut lab = Lab::new();
    lab.source.heat.set(u32::MAX);
    lab.source.change(HOT);
    lab.pass(305 * 1000);
    assert!(!lab.pump.is_consistent() && lab.pump.wants_stillness().is_some());
    assert_eq!(lab.reads().len(), PASSES as usize);
    lab.pass(200 * 1000);
    assert_eq!(lab.reads(), []);
    // Nothing changes while it stands still.
    let (heat, source) = (lab.source.heat.replace(0), lab.source.clone());
    source.unseen.borrow_mut().push(COLD);
    let sweeps = source.sweeps.get();
    lab.pump.stand_still(Some(Box::new(|| true)));
    lab.turn(8);
    assert!(lab.pump.is_settled() && lab.pump.is_consistent());
    let mut reads = lab.reads();
    reads.sort_unstable();
    assert_eq!((reads, source.sweeps.get()), (vec![HOT, COLD], sweeps + 1));
    lab.pump.stand_still(None);
    source.heat.set(heat);
    assert!(!lab.pump.is_settled());
}

#[test]
fn a_source_that_was_thawed_while_it_was_read_is_not_called_consistent() {
    let mut lab = Lab::new();
    lab.source.heat.set(u32::MAX);
    lab.source.change(HOT);
    lab.pass(305 * 1000);
    lab.source.heat.set(0);
    lab.pump.stand_still(Some(Box::new(|| false)));
    lab.turn(8);
    assert!(!lab.pump.is_consistent() && !lab.pump.is_settled());
    lab.pump.stand_still(None);
    lab.pass(301 * 1000);
    assert!(lab.pump.is_current(), "by itself it may become so");
}

/// Consistent already, and nobody was told of what changed since.
#[test]
fn a_standstill_looks_for_what_changed_unseen_even_if_all_seems_well() {
    let mut lab = Lab::new();
    lab.source.unseen.borrow_mut().push(COLD);
    assert!(lab.pump.is_current());
    lab.pump.stand_still(Some(Box::new(|| true)));
    assert!(!lab.pump.is_settled());
    lab.turn(8);
    assert!(lab.pump.is_settled());
    assert_eq!(lab.reads(), [COLD]);
}

#[test]
fn unseen_changes_are_looked_for_every_period_and_before_each_consistency() {
    let mut lab = Lab::new();
    let sweeps = lab.source.sweeps.get();
    lab.source.unseen.borrow_mut().push(COLD);
    lab.pass(302 * 1000);
    assert!(lab.pump.is_current());
    assert_eq!(lab.reads(), [COLD]);
    assert!((sweeps + 2..=sweeps + 3).contains(&lab.source.sweeps.get()), "{}", lab.source.sweeps.get());
}

#[test]
fn a_full_queue_of_events_is_answered_by_change_times_of_since_then() {
    let mut lab = Lab::new();
    lab.source.changed.set(lab.now().0);
    lab.source.told.borrow_mut().push(Captured::LostEverything { reason: "full".into() });
    lab.pass(302 * 1000);
    assert!(lab.pump.is_current());
    let mut reads = lab.reads();
    reads.sort_unstable();
    assert_eq!(reads, [HOT, COLD]);
    // And once an hour in any case; nothing has changed since then.
    lab.pass(3600 * 1000);
    assert!(lab.pump.is_current());
    assert_eq!((lab.reads(), lab.markers()), (vec![], (2, 3)));
}

#[test]
fn somebody_in_a_hurry_waits_for_no_period() {
    let mut lab = Lab::new();
    lab.source.change(COLD);
    lab.source.unseen.borrow_mut().push(HOT);
    lab.pump.hurry(true);
    lab.pass(2000);
    assert!(lab.pump.is_current());
    let mut reads = lab.reads();
    reads.sort_unstable();
    assert_eq!(reads, [HOT, COLD]);
}

#[test]
fn a_node_that_is_gone_is_told_of_once_and_forgotten() {
    let mut lab = Lab::new();
    let gone = id(99);
    lab.source.told.borrow_mut().push(Captured::Changed { node: gone, directory: None, names: false });
    lab.pass(302 * 1000);
    assert!(lab.pump.is_current() && !lab.pump.mirror().is_owed(gone));
}
