//! The pump: one thread that owns the order of a job's stream.
//!
//! It takes captured operations in ring order, lets the mirror read after barriers, gives every item its `OpSeq`, and puts sealed segments
//! into the queue. Nothing else may append.
//!
//! Invariants: an item is in the stream exactly once; a sequence number is used exactly once, also when a segment did not fit the queue (its
//! numbers are used again, since nobody has seen them); whatever could not be appended is remembered as dirty nodes and ends as a
//! resync. A dead connection never stops the pump: the queue takes its items up to its bound.

use crate::answers::Answers;
use crate::impact::{Impact, Yielding, cpu_time};
use crate::queue::SharedQueue;
use crate::signature::Signatures;
use anyhow::Result;
use standin_journal::{Sealer, Segment};
use standin_mirror::{Admission, Mirror, Scope, SourceReader, Step};
use standin_model::{MarkName, Marker, NodeId, OpSeq, Operation, Timestamp};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

mod level;
mod loss;
mod periodic;
mod slow;
mod turn;
mod verify;
pub use level::LEVEL_FIRST;
use level::Levels;
pub use loss::Loss;
use periodic::Periodic;
pub use periodic::{Rhythm, Standing, Still, WALK_NS};
pub use slow::CHANGE_SLACK_NS;
use slow::Slow;
pub use turn::Turn;
use verify::Verifying;

/// What capture hands to the pump, in ring order.
#[derive(Debug)]
pub enum Captured {
    /// An operation, with the nodes whose modification time it changed.
    Operation { operation: Operation, touched: Vec<(NodeId, Timestamp)> },
    /// Operations on these nodes may be missing.
    LostNodes { nodes: Vec<NodeId>, reason: String },
    /// Operations are missing and nobody knows whose.
    LostEverything { reason: String },
    /// The node is under direct I/O from now on.
    DirectIo { node: NodeId },
    /// The node is not what it was, and nobody knows how; reached through `directory`, or `names` in it came or went.
    Changed { node: NodeId, directory: Option<NodeId>, names: bool },
}

/// The source of captured operations; see the capture crate for the real one.
pub trait Capture {
    /// Takes everything that happened before this call.
    fn barrier(&mut self, sink: &mut Vec<Captured>) -> Result<()>;
    /// Waits until something is there, at most this long.
    fn wait(&mut self, bound: Duration) -> Result<()>;
    /// It tells only which nodes changed.
    fn is_periodic(&self) -> bool {
        false
    }
    /// Of a periodic source: takes what changed since then without being told of.
    fn sweep(&mut self, _since: Timestamp, _sink: &mut Vec<Captured>) {}
}

/// A reader that can be told about direct I/O.
pub trait PumpReader: SourceReader {
    fn note_direct_io(&mut self, node: NodeId);
}

/// How much the pump gathers before it acts. The defaults are the product's; the simulator draws small ones, which are reached often.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A segment is sealed at this much raw content: large enough to compress, small enough to be on its way in milliseconds.
    pub segment_bytes: usize,
    /// What the mirror shows per barrier. The ring has to absorb what the server writes while this much is read: about a millisecond from the page
    /// cache, ten from a disk.
    pub step_bytes: usize,
    /// Nodes that a full queue's loss remembers; beyond it a loss is of everything since its time.
    pub loss_nodes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        // 24 bytes a node and as much again for the table: about 6 MiB at the bound.
        Limits { segment_bytes: 1024 * 1024, step_bytes: 1024 * 1024, loss_nodes: 128 * 1024 }
    }
}

/// An item waits at most this long for company in its segment.
const SEGMENT_AGE_MAX: Duration = Duration::from_millis(15);

/// The source's clock; a parameter so that the simulator can own time.
pub type Clock = Box<dyn Fn() -> Timestamp + Send>;
/// The mirror reads on only while this fits into the queue's memory beside what waits there: over a slow link it waits for the link and does not
/// fill the source's disk. A step's items are little more than its content, and compressed.
const MIRROR_ROOM_BYTES: u64 = 2 * 1024 * 1024;
/// A segment in which something is mended is sealed at so many times what others are: what a barrier brings behind the reason is no reason for a gap.
const MENDING_SEGMENTS: usize = 3;
/// About what a node's times take in the stream.
const TIMES_BYTES: usize = 40;
/// A full queue must have so much room again before a resync begins, so that it does not end in the next loss.
const LOSS_ROOM_BYTES: u64 = 32 * 1024 * 1024;
/// A frozen source is drained in at most so many barriers; its ring is empty after one or two.
const QUIESCE_BARRIERS_MAX: u32 = 16;
/// While answers of the replica or room in the queue are all that is waited for, they are looked for this often.
const ANSWER_WAIT: Duration = Duration::from_millis(5);
/// A node that could not be read is tried again after this long.
const RETRY_AFTER_NS: i64 = 5_000_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub operations: u64,
    /// Content bytes of operations, as the server wrote them.
    pub bytes_changed: u64,
    /// Those of them that were written to excluded nodes, and not sent.
    pub bytes_left_out: u64,
    /// What patches spared of the writes that they stand for.
    pub bytes_spared: u64,
    /// Segment bytes queued.
    pub bytes_sealed: u64,
    pub gaps: u64,
    /// Times that the queue was found full.
    pub overflows: u64,
}

pub struct Pump<C, R> {
    capture: C,
    reader: R,
    mirror: Mirror,
    roots: Vec<NodeId>,
    sealer: Sealer,
    /// `None` keeps the sealer's own level.
    levels: Option<Levels>,
    level_since: Instant,
    /// `None` takes what there is.
    impact: Option<Impact>,
    begun: Instant,
    /// What the replica has behind the last item that was given a number.
    signatures: Signatures,
    queue: SharedQueue,
    touched: BTreeMap<NodeId, Timestamp>,
    /// Everything before this is in the stream but for the times in `touched`.
    touched_since: Option<Timestamp>,
    opened: Option<Timestamp>,
    clock: Clock,
    limits: Limits,
    loss: Option<Loss>,
    consistent: bool,
    /// Something has to be read for what the present segment says. Only if that does not fit into it is there a gap.
    mending: Option<&'static str>,
    /// Nodes that could not be read. While there are any, the replica is not called consistent.
    troubled: Vec<NodeId>,
    retry_at: Timestamp,
    /// When the last barrier began, or earlier while a slow write goes on. Every operation that was stamped before it is in the stream, so this is
    /// the time that items carry: a resync of what changed since then misses nothing, however late the pump was.
    known_until: Timestamp,
    slow: Slow,
    captured: Vec<Captured>,
    items: Vec<Operation>,
    figures: Figures,
    verifying: Option<Verifying>,
    answers: Answers,
    periodic: Option<Periodic>,
    /// The simulator's known bug: a walk counts as finished before its `Consistent` is in the queue.
    #[cfg(feature = "mutants")]
    pub finishes_early: bool,
}

impl<C: Capture, R: PumpReader> Pump<C, R> {
    /// Starts a walk over `roots`; `start` is the first sequence number to use.
    pub fn new(capture: C, reader: R, mirror: Mirror, roots: Vec<NodeId>, sealer: Sealer, queue: SharedQueue, clock: Clock) -> Self {
        let periodic = capture.is_periodic().then(|| Periodic::new(clock(), Rhythm::default()));
        let mirror = if periodic.is_some() { mirror.alone() } else { mirror };
        let mut pump = Pump {
            capture,
            reader,
            mirror,
            periodic,
            roots,
            sealer,
            levels: None,
            level_since: Instant::now(),
            impact: None,
            begun: Instant::now(),
            signatures: Signatures::off(),
            queue,
            touched: BTreeMap::new(),
            touched_since: None,
            opened: None,
            loss: None,
            consistent: false,
            mending: None,
            troubled: Vec::new(),
            retry_at: Timestamp(0),
            known_until: clock(),
            slow: Slow::default(),
            captured: Vec::new(),
            items: Vec::new(),
            figures: Figures::default(),
            verifying: None,
            answers: Answers::default(),
            clock,
            limits: Limits::default(),
            #[cfg(feature = "mutants")]
            finishes_early: false,
        };
        pump.push(Operation::Marker(Marker::ResyncStarted));
        pump
    }

    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
    /// The level of compression follows link and processor.
    pub fn with_levels(mut self) -> Self {
        let levels = Levels::default();
        self.sealer.set_level(levels.level());
        self.levels = Some(levels);
        self
    }
    /// Reading for mirror and verification keeps to the contract, and gives way to the server's own work.
    pub fn with_impact(mut self, impact: Impact) -> Self {
        self.impact = Some(impact);
        self
    }
    /// Of compression; 0 for none.
    pub fn level(&self) -> i32 {
        self.sealer.level()
    }
    /// Rewritten pages go as what changed in them.
    pub fn with_signatures(mut self, signatures: Signatures) -> Self {
        self.signatures = signatures;
        self
    }
    pub fn figures(&self) -> Figures {
        Figures { bytes_spared: self.signatures.spared(), ..self.figures }
    }
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }
    /// Where answers of the replica go.
    pub fn answers(&self) -> Answers {
        self.answers.clone()
    }
    pub fn is_consistent(&self) -> bool {
        self.consistent
    }
    /// The time that the next item carries.
    pub fn known_until(&self) -> Timestamp {
        self.known_until
    }
    /// Last sequence number given.
    pub fn captured(&self) -> OpSeq {
        OpSeq(self.sealer.next_seq().0 - 1)
    }

    /// Has these nodes mirrored again, because the appliance asked for them.
    pub fn want(&mut self, nodes: Vec<NodeId>) {
        self.open_gap("the replica asked for nodes");
        nodes.iter().for_each(|node| self.signatures.forget(*node));
        self.mirror.mark_dirty(nodes, Timestamp((self.clock)().0 - CHANGE_SLACK_NS));
    }

    /// Everything up to now, then the marker, sealed and queued. The caller has frozen the source, so nothing here reads it: `None` as soon as the
    /// replica lacks something.
    pub fn quiesced(&mut self) -> Result<Option<OpSeq>> {
        // Nothing may follow the marker.
        self.verifying = None;
        for _ in 0..QUIESCE_BARRIERS_MAX {
            if !self.take_barrier()? || !self.is_current() {
                break;
            }
        }
        // With the times of what was touched, which belong before the marker.
        self.seal();
        if !self.is_current() || self.loss.is_some() {
            return Ok(None);
        }
        let seq = self.push(Operation::Marker(Marker::Quiesced));
        self.seal();
        Ok(self.loss.is_none().then_some(seq))
    }

    /// Says at the stream's beginning which kernel of the source it comes from, and whether it mirrors everything.
    pub fn started(&mut self, boot: u64, everything: bool) {
        self.push(Operation::Marker(Marker::StreamStarted { boot, everything }));
    }

    /// The last item of what has happened until now; `None` where that does not fit the queue. What is synced from here on has all of it.
    pub fn position(&mut self) -> Result<Option<OpSeq>> {
        self.take_barrier()?;
        self.mend()?;
        self.seal();
        Ok(self.loss.is_none().then(|| self.captured()))
    }

    /// The source's disks have everything up to `through`, which `position` gave before they were synced.
    pub fn settled(&mut self, through: OpSeq) {
        // While there is no room, nothing is appended; the next sync will do.
        if self.loss.is_none() {
            self.push(Operation::Marker(Marker::Settled { through }));
        }
    }

    /// The same as the stream's last item, before the agent ends; `false` where it does not fit the queue. What has happened since `through` stays
    /// out: it would be unsettled, and the next agent finds it by its change time.
    pub fn settled_at_last(&mut self, through: OpSeq) -> bool {
        self.settled(through);
        self.seal();
        self.loss.is_none()
    }

    /// Puts a named marker at this point of the order: behind a barrier, and with the times of what came before it in front of it. It is the last
    /// item of its segment, so that the replica can stop exactly there. `None` while the replica equals no state of the source.
    pub fn mark(&mut self, name: &MarkName) -> Result<Option<OpSeq>> {
        self.take_barrier()?;
        self.mend()?;
        self.seal();
        if !self.is_current() || self.loss.is_some() {
            return Ok(None);
        }
        let seq = self.push(Operation::Marker(Marker::Named(name.as_str().to_owned())));
        self.seal();
        Ok(self.loss.is_none().then_some(seq))
    }

    fn push(&mut self, operation: Operation) -> OpSeq {
        let now = (self.clock)();
        self.opened.get_or_insert(now);
        let operation = self.signatures.shape(operation);
        self.sealer.push(operation, self.known_until)
    }

    fn take_captured(&mut self) {
        let captured = std::mem::take(&mut self.captured);
        for event in captured {
            match event {
                Captured::Operation { operation, touched } => self.take_operation(operation, touched),
                Captured::LostNodes { nodes, reason } => {
                    self.open_gap(&reason);
                    let since = self.since();
                    self.mirror.mark_lost(&nodes, since);
                    nodes.iter().for_each(|node| self.signatures.forget(*node));
                }
                Captured::Changed { node, directory, names } => self.take_changed(node, directory, names),
                Captured::LostEverything { .. } if self.take_lost_everything() => {}
                Captured::LostEverything { reason } => self.lost_everything(&reason),
                Captured::DirectIo { node } => {
                    self.reader.note_direct_io(node);
                    self.note_node_for_verify(node);
                }
            }
        }
    }

    fn take_operation(&mut self, operation: Operation, touched: Vec<(NodeId, Timestamp)>) {
        self.figures.operations += 1;
        self.figures.bytes_changed += operation.content_len();
        if matches!(operation, Operation::Write { .. }) {
            touched.iter().for_each(|(_, stamped)| self.slow.note(*stamped));
        }
        if let Some(loss) = &mut self.loss {
            loss.note(&operation);
        }
        self.note_for_verify(&operation, &touched);
        let owed = operation.node().filter(|node| self.mirror.is_owed(*node));
        let admission = self.mirror.admit(&operation);
        if self.loss.is_some() {
            if let (Operation::Forget { node }, true) = (&operation, owed.is_some()) {
                self.mirror.owe_end(*node);
            }
            return;
        }
        if self.consistent && !self.mirror.is_idle() {
            // It left a whiteout, crossed the border of what is excluded, or concerns a node that had no name. Reading answers it; until then the replica
            // lacks it.
            self.consistent = false;
            self.mending = Some("names have to be read: a whiteout was left, or a node crossed the border of what is replicated");
            let since = self.since();
            self.mirror.mark_dirty([], since);
        }
        if let Operation::Forget { node } = &operation {
            // Its times would come behind it, when the replica knows no such node any more.
            self.touched.remove(node);
        }
        match admission {
            Admission::Pass => {
                self.push(operation);
            }
            Admission::Instead(parts) => parts.into_iter().for_each(|part| {
                self.push(part);
            }),
            Admission::Drop => {
                if operation.node().is_some_and(|node| self.mirror.excludes(node)) {
                    self.figures.bytes_left_out += operation.content_len();
                }
            }
        }
        for (node, modified) in touched {
            if self.mirror.admits_node(node) {
                self.touched_since.get_or_insert(self.known_until);
                // Also where the operation itself was left out, its times grow old and are sealed.
                self.opened.get_or_insert_with(&self.clock);
                self.touched.insert(node, modified);
            }
        }
        self.seal_if_full(self.limits.segment_bytes);
    }

    /// Seals at so much content, the times among it that come at its end.
    fn seal_if_full(&mut self, bytes: usize) {
        let most = if self.mending.is_some() { MENDING_SEGMENTS * self.limits.segment_bytes } else { bytes };
        if self.sealer.raw_len() + self.touched.len() * TIMES_BYTES >= most {
            self.seal();
        }
    }

    fn since(&self) -> Timestamp {
        Timestamp(self.known_until.min(self.slow.known_until()).0 - CHANGE_SLACK_NS)
    }

    fn open_gap(&mut self, reason: &str) {
        if self.consistent || self.mending.is_some() {
            (self.consistent, self.mending) = (false, None);
            self.figures.gaps += 1;
            tracing::info!(seq = %self.sealer.next_seq(), reason, "a gap; what it may have hidden is read again");
            self.begin_resync(reason.to_owned());
        }
    }

    fn begin_resync(&mut self, reason: String) {
        self.push(Operation::Marker(Marker::Gap { reason }));
        self.push(Operation::Marker(Marker::ResyncStarted));
        self.mirror.forget_unnamed();
    }

    fn lost_everything(&mut self, reason: &str) {
        self.open_gap(reason);
        let scope = Scope::ChangedSince(self.since());
        let roots = self.roots.clone();
        self.mirror.restart(scope, roots.into_iter());
    }

    /// Ends the current segment with the modification times of what it touched, and queues it.
    fn seal(&mut self) {
        if let Some(reason) = self.mending {
            // The segment's end is no state of the source.
            self.open_gap(reason);
        }
        self.push_times();
        self.opened = None;
        let touched_since = self.touched_since.take();
        let (begun, raw) = (Instant::now(), self.sealer.raw_len());
        let Some(segment) = self.sealer.seal() else { return };
        self.choose_level((raw, begun.elapsed()));
        let len = segment.byte_len() as u64;
        match self.queue.push(segment.clone()) {
            Ok(()) => self.figures.bytes_sealed += len,
            Err(full) => self.lose_segment(&segment, touched_since, full.to_string()),
        }
    }

    fn choose_level(&mut self, packing: (usize, Duration)) {
        let Some(levels) = &mut self.levels else { return };
        if levels.packed(packing, self.level_since.elapsed(), self.queue.starved(), !self.consistent) {
            self.level_since = Instant::now();
            self.sealer.set_level(levels.level());
        }
    }

    fn push_times(&mut self) {
        for (node, modified) in std::mem::take(&mut self.touched) {
            self.push(Operation::SetTimes { node, accessed: None, modified: Some(modified) });
        }
    }

    /// The queue is full: the segment's numbers are free again, and its nodes are dirty.
    fn lose_segment(&mut self, segment: &Segment, touched_since: Option<Timestamp>, reason: String) {
        self.sealer = Sealer::new(self.sealer.epoch(), segment.first_seq(), self.sealer.level());
        self.signatures.clear();
        self.mirror.take_back(segment.first_seq());
        self.figures.overflows += u64::from(self.loss.is_none());
        // What touched a node may not be in the stream itself.
        let first = segment.header.first_captured_at;
        let since = Timestamp(touched_since.map_or(first, |since| since.min(first)).0.saturating_sub(CHANGE_SLACK_NS));
        let loss = self.loss.get_or_insert_with(|| Loss::new(reason, since, self.limits.loss_nodes));
        match segment.items() {
            Ok(items) => items.iter().for_each(|item| loss.note(&item.operation)),
            Err(_) => loss.note_everything(),
        }
        self.consistent = false;
        // Checks may be among what is lost, and nobody reads them again.
        self.verifying = None;
    }
}

/// The source's clock, which also stamps change times.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
