//! Comparing, against a replica that is a vector of bytes and an oracle that is nothing but "in the end both are equal".

use super::*;
use crate::*;
use proptest::prelude::*;
use standin_model::*;
use std::collections::BTreeMap;

const ROOT: NodeId = NodeId { volume: VolumeId(0), subvolume: 0, inode: 2, generation: 0 };
const FILE: NodeId = NodeId { inode: 10, ..ROOT };
const SIZES: CompareSizes = CompareSizes { file_bytes_min: 64, coarse: 32, fine: 8 };

/// One directory with one file, which changes between barriers.
#[derive(Default)]
struct OneFile {
    content: Vec<u8>,
    read_bytes: usize,
    fails: bool,
}

impl SourceReader for OneFile {
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        let entry = DirectoryEntry { name: Name::new("x").unwrap(), node: FILE, kind: NodeKind::File, device: 0, target: vec![] };
        Ok((directory == ROOT).then(|| vec![ListedEntry { entry, changed: Timestamp(500), links: 1, allocated: ByteLen(0) }]))
    }
    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        let attributes = Attributes { mode: 0o644, owner: 0, group: 0, modified: Timestamp(0) };
        let kind = if node == ROOT { NodeKind::Directory } else { NodeKind::File };
        let size = ByteLen(if node == FILE { self.content.len() as u64 } else { 0 });
        let (changed, accessed) = (Timestamp(500), Timestamp(0));
        Ok(Some(NodeFacts { kind, named: true, links: 1, attributes, accessed, changed, flags: 0, project: 0, size, xattrs: vec![] }))
    }
    fn read(&mut self, node: NodeId, offset: u64, budget: usize) -> Result<Option<Content>, ReadError> {
        if std::mem::take(&mut self.fails) {
            return Err(ReadError { action: "read", node, cause: "as told".into() });
        }
        let start = (offset as usize).min(self.content.len());
        let end = (start + budget.min(100)).min(self.content.len());
        let data = self.content[start..end].to_vec();
        self.read_bytes += data.len();
        let zero = !data.is_empty() && data.iter().all(|byte| *byte == 0);
        let offset = start as u64;
        let chunk = if zero { Chunk::Hole { offset, len: data.len() as u64 } } else { Chunk::Data { offset, data } };
        Ok(Some(Content { chunks: vec![chunk], next: end as u64, end: end == self.content.len() }))
    }
}

/// Agent, link and replica in one.
struct Lab {
    source: OneFile,
    mirror: Mirror,
    /// What the agent has not seen yet.
    ring: Vec<Operation>,
    stream: BTreeMap<OpSeq, Operation>,
    next: OpSeq,
    replica: Vec<u8>,
    applied: OpSeq,
    /// Of the replica, on their way.
    answers: Vec<Differs>,
    sent: BTreeMap<&'static str, usize>,
}

impl Lab {
    fn new(source: Vec<u8>, replica: Vec<u8>) -> Lab {
        let mirror = Mirror::new(&[(ROOT, b"/".to_vec())], Scope::ChangedSince(Timestamp(400)), Exclusions::default()).compare(SIZES);
        Lab {
            source: OneFile { content: source, ..OneFile::default() },
            mirror,
            ring: vec![],
            stream: BTreeMap::new(),
            next: OpSeq(1),
            replica,
            applied: OpSeq::ZERO,
            answers: vec![],
            sent: BTreeMap::new(),
        }
    }

    fn push(&mut self, operation: Operation) {
        self.mirror.numbered(self.next, &operation);
        let (kind, len) = match &operation {
            Operation::MirrorData { data, .. } => ("data", data.len()),
            Operation::MirrorDigests { digests, .. } => ("digests", digests.len()),
            _ => ("other", 1),
        };
        *self.sent.entry(kind).or_default() += len;
        self.stream.insert(self.next, operation);
        self.next = self.next.next();
    }

    fn sent(&self, kind: &str) -> usize {
        self.sent.get(kind).copied().unwrap_or(0)
    }

    fn barrier(&mut self) {
        for operation in std::mem::take(&mut self.ring) {
            match self.mirror.admit(&operation) {
                Admission::Pass => self.push(operation),
                Admission::Drop => {}
                Admission::Instead(parts) => parts.into_iter().for_each(|part| self.push(part)),
            }
        }
    }

    /// `between` happens after the barrier and before the read.
    fn step(&mut self, between: Option<Operation>) -> Step {
        self.barrier();
        between.into_iter().for_each(|operation| self.happen(operation));
        let mut items = vec![];
        let step = self.mirror.step(&mut self.source, 120, &mut items);
        items.into_iter().for_each(|item| self.push(item));
        let troubled: Vec<NodeId> = self.mirror.take_troubles().into_iter().map(|trouble| trouble.node).collect();
        if !troubled.is_empty() {
            self.mirror.mark_dirty(troubled, Timestamp(400));
        }
        step
    }

    fn happen(&mut self, operation: Operation) {
        change(&mut self.source.content, &operation);
        self.ring.push(operation);
    }

    fn apply(&mut self, items: usize) {
        let from = self.applied.next();
        for (seq, operation) in self.stream.range(from..).take(items) {
            if let Operation::MirrorDigests { offset, len, block, digests, .. } = operation {
                let blocks = digests.iter().enumerate().filter(|(index, digest)| {
                    let at = offset.0 as usize + index * *block as usize;
                    let end = (at + *block as usize).min((offset.0 + len.0) as usize);
                    self.replica.get(at..end).is_none_or(|bytes| Digest::of_content(bytes) != **digest)
                });
                self.answers.push(Differs { seq: *seq, blocks: blocks.map(|(index, _)| index as u8).collect() });
            } else {
                change(&mut self.replica, operation);
            }
            self.applied = *seq;
        }
    }

    /// The agent hears of what was applied, and of the answers but for those that are lost.
    fn tell(&mut self, lose: bool) {
        for differs in std::mem::take(&mut self.answers) {
            if !lose {
                self.mirror.answered(&differs);
            }
        }
        self.mirror.applied(self.applied);
    }

    fn finish(&mut self) {
        for _ in 0..500 {
            let step = self.step(None);
            self.barrier();
            if step == Step::Finished && self.mirror.is_idle() {
                self.mirror.finished();
                self.apply(usize::MAX);
                return assert!(self.replica == self.source.content, "{:?}\n{:?}", self.replica, self.source.content);
            }
            self.apply(usize::MAX);
            self.tell(false);
        }
        panic!("it does not end");
    }
}

fn change(content: &mut Vec<u8>, operation: &Operation) {
    use Operation::*;
    let grow = |content: &mut Vec<u8>, end: usize| content.resize(content.len().max(end), 0);
    match operation {
        Write { offset, data, .. } | MirrorData { offset, data, .. } => {
            let at = offset.0 as usize;
            grow(content, at + data.len());
            content[at..at + data.len()].copy_from_slice(data);
        }
        Truncate { size, .. } => content.resize(size.0 as usize, 0),
        MirrorNode { node: FILE, size, .. } => content.resize(size.0 as usize, 0),
        Punch { offset, len, .. } | MirrorHole { offset, len, .. } => {
            let (from, to) = (offset.0 as usize, (offset.0 + len.0) as usize);
            if matches!(operation, MirrorHole { .. }) {
                grow(content, to);
            }
            let size = content.len();
            content[from.min(size)..to.min(size)].fill(0);
        }
        Collapse { offset, len, .. } => drop(content.drain(offset.0 as usize..(offset.0 + len.0) as usize)),
        Insert { offset, len, .. } => {
            drop(content.splice(offset.0 as usize..offset.0 as usize, vec![0; len.0 as usize]));
        }
        MirrorDirectory { .. } | MirrorNode { .. } => {}
        other => panic!("{other:?}"),
    }
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 7 + at / 50 + seed * 31) % 250 + 1) as u8).collect()
}

fn write(offset: u64, data: &[u8]) -> Operation {
    Operation::Write { node: FILE, offset: ByteOffset(offset), data: data.to_vec() }
}

#[test]
fn of_a_file_that_is_equal_no_data_goes() {
    let mut lab = Lab::new(bytes(1000, 1), bytes(1000, 1));
    lab.finish();
    assert_eq!((lab.sent("data"), lab.source.read_bytes), (0, 1000));
}

#[test]
fn what_differs_goes_as_small_blocks_and_is_read_twice_more() {
    let mut replica = bytes(1000, 1);
    replica[500] ^= 1;
    let mut lab = Lab::new(bytes(1000, 1), replica);
    lab.finish();
    // A read is of 100 bytes, in blocks of 32, 32, 32 and 4.
    assert_eq!((lab.sent("data"), lab.sent("digests")), (8, 40 + 4));
    assert_eq!(lab.source.read_bytes, 1000 + 32 + 8);
}

#[test]
fn of_what_the_replica_has_nothing_of_only_the_beginning_is_read_twice() {
    for replica in [vec![], bytes(1000, 2)] {
        let mut lab = Lab::new(bytes(1000, 1), replica);
        lab.finish();
        assert_eq!((lab.sent("data"), lab.sent("digests"), lab.source.read_bytes), (1000, 4, 1100));
    }
}

#[test]
fn a_mirror_of_everything_and_a_small_file_ask_for_nothing() {
    let mut lab = Lab::new(bytes(63, 1), bytes(63, 1));
    lab.finish();
    assert_eq!((lab.sent("digests"), lab.sent("data")), (0, 63));
    let mut lab = Lab::new(bytes(1000, 1), bytes(1000, 1));
    lab.mirror = Mirror::new(&[(ROOT, b"/".to_vec())], Scope::Everything, Exclusions::default()).compare(SIZES);
    lab.finish();
    assert_eq!((lab.sent("digests"), lab.sent("data")), (0, 1000));
}

#[test]
fn who_may_not_ask_waits_for_nothing() {
    let mut lab = Lab::new(bytes(1000, 1), bytes(1000, 1));
    lab.mirror.ask(false);
    while lab.step(None) != Step::Finished {}
    assert_eq!((lab.sent("digests"), lab.sent("data")), (0, 1000));
}

#[test]
fn a_lost_answer_sends_the_whole_range() {
    let mut lab = Lab::new(bytes(100, 1), bytes(100, 1));
    while lab.step(None) != Step::Waiting {}
    lab.apply(usize::MAX);
    lab.tell(true);
    lab.finish();
    assert_eq!(lab.sent("data"), 100);
}

#[test]
fn nothing_is_over_before_the_last_answer() {
    let mut lab = Lab::new(bytes(100, 1), bytes(100, 1));
    while lab.step(None) == Step::More {}
    assert!(lab.step(None) == Step::Waiting && !lab.mirror.is_idle());
    // An answer to something else, and news from before the item.
    lab.mirror.answered(&Differs { seq: OpSeq(4000), blocks: BlockSet::default() });
    lab.mirror.applied(OpSeq(1));
    assert!(!lab.mirror.is_idle());
    lab.finish();
}

#[test]
fn numbers_that_are_given_again_answer_nothing_of_before() {
    let mut lab = Lab::new(bytes(100, 1), bytes(100, 2));
    while lab.step(None) != Step::Waiting {}
    let (asked, _) = lab.stream.iter().find(|(_, item)| matches!(item, Operation::MirrorDigests { .. })).expect("it asked");
    let asked = *asked;
    // The queue is full; the segment's items never left.
    lab.stream.split_off(&asked);
    lab.next = asked;
    lab.mirror.take_back(asked);
    lab.push(write(99, &[lab.source.content[99]]));
    lab.mirror.answered(&Differs { seq: asked, blocks: BlockSet::default() });
    lab.finish();
    assert_eq!(lab.sent("data"), 100);
}

/// An appliance can have each byte read twice more at most, whatever it answers and however often.
#[test]
fn no_answers_have_the_source_read_without_bound() {
    let mut lab = Lab::new(bytes(3000, 1), bytes(3000, 1));
    let everything: BlockSet = (0..=255).collect();
    let first: BlockSet = (1..=255).collect();
    for round in 0..500 {
        lab.step(None);
        // Always the same lies, about everything there ever was and ever will be.
        for seq in 0..lab.next.0 + 50 {
            lab.mirror.answered(&Differs { seq: OpSeq(seq), blocks: if round == 0 { first } else { everything } });
        }
    }
    assert!(lab.mirror.is_idle());
    assert!(lab.source.read_bytes <= 3 * 3000, "{} bytes were read", lab.source.read_bytes);
}

#[test]
fn the_walk_waits_at_its_bounds() {
    let mut replica = bytes(4000, 1);
    replica[1] ^= 1;
    let mut lab = Lab::new(bytes(4000, 1), replica);
    while lab.step(None) != Step::Waiting {}
    assert_eq!(lab.source.read_bytes, 100, "one item until the replica has something");
    lab.apply(usize::MAX);
    lab.tell(false);
    while lab.step(None) != Step::Waiting {}
    assert_eq!(lab.source.read_bytes, 100 + 32 + 15 * 100, "the smaller blocks of the first, and sixteen items in all");
    lab.finish();
    assert_eq!(lab.sent("data"), 8);
}

#[derive(Clone, Debug)]
enum Event {
    Happen(Operation),
    Step(Option<Operation>),
    Apply(usize),
    Tell { lose: bool },
    Fail,
    LoseNode,
    LoseEverything,
}

fn operation() -> impl Strategy<Value = Operation> {
    (0..10u8, 0..300u64, 1..60u64, any::<u8>()).prop_map(|(pick, at, len, byte)| {
        let (offset, len) = (ByteOffset(at), ByteLen(len));
        match pick {
            0..=4 => write(at, &vec![byte; len.0 as usize]),
            5 => Operation::Truncate { node: FILE, size: ByteLen(at) },
            6 => Operation::Punch { node: FILE, offset, len },
            7 => Operation::Insert { node: FILE, offset, len },
            _ => Operation::Collapse { node: FILE, offset, len },
        }
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => operation().prop_map(Event::Happen),
        6 => proptest::option::weighted(0.3, operation()).prop_map(Event::Step),
        4 => (1..9usize).prop_map(Event::Apply),
        4 => proptest::bool::weighted(0.2).prop_map(|lose| Event::Tell { lose }),
        1 => Just(Event::Fail),
        1 => Just(Event::LoseNode),
        1 => Just(Event::LoseEverything),
    ]
}

fn is_possible(content: &[u8], operation: &Operation) -> bool {
    match operation {
        Operation::Collapse { offset, len, .. } => offset.0 + len.0 < content.len() as u64,
        Operation::Insert { offset, .. } => offset.0 < content.len() as u64,
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    /// Whatever happens to a file between digests, answers, second reads and data: in the end the replica has it.
    #[test]
    fn whatever_comes_between_the_end_is_right(
        len in 0..400usize, edits in prop::collection::vec((0..400usize, any::<u8>()), 0..6), other in any::<bool>(),
        events in prop::collection::vec(event(), 0..80),
    ) {
        let source = bytes(len, 1);
        let mut replica = if other { bytes(len / 2, 3) } else { source.clone() };
        edits.iter().for_each(|(at, byte)| if let Some(place) = replica.get_mut(*at) { *place = *byte });
        let mut lab = Lab::new(source, replica);
        for event in events {
            match event {
                Event::Happen(operation) if is_possible(&lab.source.content, &operation) => lab.happen(operation),
                Event::Happen(_) => {}
                Event::Step(between) => drop(lab.step(between.filter(|operation| is_possible(&lab.source.content, operation)))),
                Event::Apply(items) => lab.apply(items),
                Event::Tell { lose } => lab.tell(lose),
                Event::Fail => lab.source.fails = true,
                // What is lost has happened, and nobody hears of it.
                Event::LoseNode => {
                    lab.ring.clear();
                    lab.mirror.mark_dirty([FILE], Timestamp(400));
                }
                Event::LoseEverything => {
                    lab.ring.clear();
                    lab.mirror.restart(Scope::ChangedSince(Timestamp(400)), [ROOT].into_iter());
                }
            }
        }
        lab.finish();
    }
}
