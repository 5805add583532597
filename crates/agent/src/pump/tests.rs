//! The pump on a source of one file. What interleavings do to it is the simulator's.

use super::*;
use standin_journal::{Queue, QueueOptions};
use standin_mirror::{Chunk, Content, Exclusions, ListedEntry, NodeFacts, ReadError};
use standin_model::{Attributes, ByteLen, ByteOffset, DirectoryEntry, Name, NodeKind, VolumeId};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const ROOT: NodeId = NodeId { volume: VolumeId(0), subvolume: 0, inode: 2, generation: 0 };
const FILE: NodeId = NodeId { volume: VolumeId(0), subvolume: 0, inode: 12, generation: 1 };
const SECOND: i64 = 1_000_000_000;

#[derive(Clone, Default)]
struct Source {
    ring: Rc<RefCell<Vec<Captured>>>,
    changed: Rc<RefCell<Timestamp>>,
    /// Calls to list, look or read.
    reads: Rc<RefCell<u32>>,
}

impl Capture for Source {
    fn barrier(&mut self, sink: &mut Vec<Captured>) -> Result<()> {
        sink.append(&mut self.ring.borrow_mut());
        Ok(())
    }
    fn wait(&mut self, _: Duration) -> Result<()> {
        Ok(())
    }
}

impl PumpReader for Source {
    fn note_direct_io(&mut self, _: NodeId) {}
}

impl SourceReader for Source {
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        *self.reads.borrow_mut() += 1;
        let entry = DirectoryEntry { name: Name::new("x").unwrap(), node: FILE, kind: NodeKind::File, device: 0, target: vec![] };
        Ok((directory == ROOT).then(|| vec![ListedEntry { entry, changed: *self.changed.borrow(), links: 1, allocated: ByteLen(0) }]))
    }
    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        *self.reads.borrow_mut() += 1;
        let (kind, changed) = if node == ROOT { (NodeKind::Directory, Timestamp(0)) } else { (NodeKind::File, *self.changed.borrow()) };
        let attributes = Attributes { mode: 0o644, owner: 0, group: 0, modified: changed };
        Ok(Some(NodeFacts {
            kind,
            named: true,
            links: 1,
            attributes,
            accessed: changed,
            changed,
            flags: 0,
            project: 0,
            size: ByteLen(1),
            xattrs: vec![],
        }))
    }
    fn read(&mut self, _: NodeId, offset: u64, _: usize) -> Result<Option<Content>, ReadError> {
        *self.reads.borrow_mut() += 1;
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
    /// A pump whose replica is whole.
    fn new() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        let queue = SharedQueue::new(Queue::open(directory.path().join("queue"), QueueOptions::default()).unwrap());
        let mirror = Mirror::new(&[(ROOT, b"/".to_vec())], Scope::Everything, Exclusions::default());
        let (source, time) = (Source::default(), Arc::new(AtomicI64::new(1_000 * SECOND)));
        let of_clock = Arc::clone(&time);
        let clock = Box::new(move || Timestamp(of_clock.load(Ordering::Relaxed)));
        let sealer = Sealer::new(1, OpSeq(1), 1);
        let pump = Pump::new(source.clone(), source.clone(), mirror, vec![ROOT], sealer, queue.clone(), clock);
        let mut lab = Lab { source, pump, queue, time, _directory: directory };
        lab.settle();
        assert!(lab.pump.is_consistent());
        lab
    }

    fn settle(&mut self) {
        while self.pump.turn(Duration::ZERO).unwrap() != Turn::Idle {}
    }

    fn pass(&self, seconds: i64) {
        self.time.fetch_add(seconds * SECOND, Ordering::Relaxed);
    }

    /// A page of the file's content, which was stamped then.
    fn write(&mut self, stamped: Timestamp) {
        *self.source.changed.borrow_mut() = stamped;
        let operation = Operation::Write { node: FILE, offset: ByteOffset(0), data: vec![2] };
        self.source.ring.borrow_mut().push(Captured::Operation { operation, touched: vec![(FILE, stamped)] });
    }

    fn lose_everything(&mut self) {
        self.source.ring.borrow_mut().push(Captured::LostEverything { reason: "lost".to_owned() });
    }

    /// The file is moved away within its directory, and something that only a listing tells is left there.
    fn leave_whiteout(&mut self) {
        let (name, new_name) = (Name::new("w").unwrap(), Name::new("x").unwrap());
        let mode = standin_model::RenameMode::Whiteout;
        let operation = Operation::Rename { parent: ROOT, name, node: FILE, new_parent: ROOT, new_name, mode, victim: None };
        self.source.ring.borrow_mut().push(Captured::Operation { operation, touched: vec![(ROOT, Timestamp(1_000 * SECOND))] });
    }

    /// What the last segments say, by the names of their items.
    fn says(&self, behind: OpSeq) -> Vec<Vec<String>> {
        let (mut at, mut said) = (behind, Vec::new());
        while let Some(segment) = self.queue.next_after(at, Duration::ZERO).unwrap() {
            let name = |operation: &Operation| format!("{operation:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
            said.push(segment.items().unwrap().iter().map(|item| name(&item.operation)).collect());
            at = segment.last_seq();
        }
        said
    }

    /// How often the file's content was mirrored.
    fn contents(&self) -> usize {
        let (mut at, mut count) = (OpSeq::ZERO, 0);
        while let Some(segment) = self.queue.next_after(at, Duration::ZERO).unwrap() {
            let items = segment.items().unwrap();
            count += items.iter().filter(|item| matches!(item.operation, Operation::MirrorData { node: FILE, .. })).count();
            at = segment.last_seq();
        }
        count
    }
}

#[test]
fn what_can_be_read_at_once_is_no_gap() {
    let mut lab = Lab::new();
    let behind = lab.pump.captured();
    lab.leave_whiteout();
    lab.settle();
    assert!(lab.pump.is_consistent());
    assert_eq!(lab.pump.figures().gaps, 0);
    let said = lab.says(behind);
    assert_eq!(said, [vec!["Rename", "MirrorNode", "MirrorDirectory", "Marker(Consistent)"]]);
}

#[test]
fn what_a_barrier_brings_behind_the_reason_is_no_gap() {
    let limits = Limits::default();
    let mut lab = Lab::new();
    lab.leave_whiteout();
    for _ in 0..2 {
        let operation = Operation::Write { node: FILE, offset: ByteOffset(0), data: vec![2; limits.segment_bytes] };
        lab.source.ring.borrow_mut().push(Captured::Operation { operation, touched: vec![] });
    }
    let behind = lab.pump.captured();
    lab.settle();
    assert_eq!((lab.pump.is_consistent(), lab.pump.figures().gaps), (true, 0));
    assert_eq!(lab.says(behind).len(), 1);
    // There is an end to it.
    lab.leave_whiteout();
    for _ in 0..MENDING_SEGMENTS {
        let operation = Operation::Write { node: FILE, offset: ByteOffset(0), data: vec![2; limits.segment_bytes] };
        lab.source.ring.borrow_mut().push(Captured::Operation { operation, touched: vec![] });
    }
    lab.settle();
    assert_eq!((lab.pump.is_consistent(), lab.pump.figures().gaps), (true, 1));
}

#[test]
fn what_is_not_read_before_its_segment_ends_is_a_gap() {
    let mut lab = Lab::new();
    let behind = lab.pump.captured();
    lab.leave_whiteout();
    let reads = *lab.source.reads.borrow();
    assert_eq!(lab.pump.quiesced().unwrap(), None);
    assert_eq!(*lab.source.reads.borrow(), reads);
    assert!(!lab.pump.is_consistent());
    assert_eq!(lab.pump.figures().gaps, 1);
    lab.settle();
    assert!(lab.pump.is_consistent());
    assert_eq!(lab.says(behind)[0], ["Rename", "Marker(Gap", "Marker(ResyncStarted)", "SetTimes"]);
}

#[test]
fn a_frozen_source_is_drained_and_not_read() {
    let mut lab = Lab::new();
    lab.write(Timestamp(1_000 * SECOND));
    let reads = *lab.source.reads.borrow();
    assert_eq!(lab.pump.quiesced().unwrap(), Some(lab.pump.captured()));
    lab.lose_everything();
    assert_eq!(lab.pump.quiesced().unwrap(), None);
    assert_eq!(lab.pump.quiesced().unwrap(), None);
    assert_eq!(*lab.source.reads.borrow(), reads);
}

#[test]
fn nothing_follows_what_is_said_to_be_settled_at_last() {
    let mut lab = Lab::new();
    lab.write(Timestamp(1_000 * SECOND));
    let mut settling = crate::settle::Settling::new(Arc::new(vec![crate::nodes::Root::open("/dev/shm").unwrap()]));
    assert!(settling.settle_now(&mut lab.pump, Duration::from_secs(60)).unwrap());
    let (mut at, mut items) = (OpSeq::ZERO, Vec::new());
    while let Some(segment) = lab.queue.next_after(at, Duration::ZERO).unwrap() {
        items.extend(segment.items().unwrap());
        at = segment.last_seq();
    }
    let last = items.pop().unwrap();
    assert_eq!(last.operation, Operation::Marker(Marker::Settled { through: OpSeq(last.seq.0 - 1) }));
    assert!(items.iter().any(|item| matches!(item.operation, Operation::Write { node: FILE, .. })));
    assert_eq!(lab.pump.captured(), last.seq);
}

/// The file is stamped once, and a page comes every ten seconds. After a loss without names nobody knows whether a page was among what was lost.
#[test]
fn a_loss_in_the_middle_of_a_long_write_has_its_file_mirrored_again() {
    for seconds in [5, 50, 100, 600] {
        let mut lab = Lab::new();
        let stamped = Timestamp(lab.time.load(Ordering::Relaxed));
        for _ in 0..=seconds / 10 {
            lab.write(stamped);
            lab.settle();
            lab.pass(10);
        }
        let before = lab.contents();
        lab.lose_everything();
        lab.settle();
        assert!(lab.pump.is_consistent());
        assert_eq!(lab.contents(), before + 1, "after {seconds} s");
        // What the appliance gives back to the agent after this one.
        assert!(lab.pump.known_until().0 - CHANGE_SLACK_NS < stamped.0);
    }
}

#[test]
fn a_loss_long_after_a_write_concerns_it_no_more() {
    let mut lab = Lab::new();
    lab.write(Timestamp(lab.time.load(Ordering::Relaxed)));
    lab.settle();
    lab.pass(300);
    lab.settle();
    let before = lab.contents();
    lab.lose_everything();
    lab.settle();
    assert_eq!(lab.contents(), before);
}
