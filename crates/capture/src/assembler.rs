//! From records to operations: a pure state machine that pairs what one task said in several records, and holds what is not certain yet.
//!
//! Output is in ring order with two exceptions that no observer can tell: a direct write appears when it completes, and an operation
//! that waits for its call's result (`fallocate`, clone, copy) holds back the later operations of its own nodes only. Everything held has a bound;
//! beyond it the node is declared lost: then, whenever something more is told of it, and once more when the call ends, because whoever reads it
//! meanwhile may come before the call's effect.

mod calls;
mod content;
mod nameless;
mod names;

use crate::{
    CaptureEvent, LossReason, Sink, Touched,
    record::{Kind, RawNode, Record},
};
use standin_model::{Attributes, ByteLen, NodeId, NodeKind, Operation, Timestamp, VolumeId};
use std::collections::{BTreeMap, HashMap, HashSet};

/// One operation carries at most this much content; larger ones delay the stream behind them.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Direct writes in flight and held operations together.
const HELD_BYTES_MAX: u64 = 64 << 20;
/// A call that has not ended by then has lost its exit, or blocks: its nodes are read again.
const HELD_NS_MAX: u64 = 5_000_000_000;
/// A call that was given up has ended by then, and its exit was lost.
const ABANDONED_NS_MAX: u64 = 3_600_000_000_000;
/// Most calls that can be remembered as given up; beyond it everything counts as lost.
const ABANDONED_MAX: usize = 1_024;
/// Tasks with something remembered: so many would have to be in the middle of a call at once.
const TASKS_MAX: usize = 8_192;
/// Those are swept that were quiet for longer than a call can reasonably take between two records. Mostly their call has failed, of which nothing
/// is told.
const TASK_NS_MAX: u64 = 60_000_000_000;
/// How often they are looked for.
const SWEEP_NS: u64 = 10_000_000_000;
/// The removal of a node's last name follows its end within this time.
const GONE_NS_MAX: u64 = 1_000_000_000;

/// A name and its new value; without one it is removed.
type XattrChange = (Vec<u8>, Option<Vec<u8>>);

#[derive(Debug, Default)]
struct Task {
    time: u64,
    rename: Option<Rename>,
    /// The other directory of a rename, whose new time is told right after it.
    moved_to: Option<NodeId>,
    /// A rename was announced that could not be told; its new directory is about to be named.
    rename_lost: bool,
    /// An exchange is announced twice.
    second_rename: bool,
    symlink: Option<(RawNode, Vec<u8>)>,
    /// Of which node; no change where that could not be read.
    xattr: Option<(RawNode, Option<XattrChange>)>,
    accessed: Option<(RawNode, Timestamp)>,
    gone: Option<NodeId>,
    call: Option<Call>,
}

impl Task {
    fn is_done(&self) -> bool {
        let Task { time: _, rename, moved_to, rename_lost, second_rename, symlink, xattr, accessed, gone, call } = self;
        let waits = rename.is_some() || symlink.is_some() || xattr.is_some() || accessed.is_some() || gone.is_some() || call.is_some();
        !waits && moved_to.is_none() && !rename_lost && !second_rename
    }
}

#[derive(Debug)]
struct Rename {
    node: RawNode,
    parent: RawNode,
    new_parent: RawNode,
    victim: Option<RawNode>,
    flags: u64,
    name: Vec<u8>,
    new_name: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallKind {
    Fallocate {
        mode: u64,
    },
    Copy,
    Clone,
    /// Changes its node, and its origin, in a way that no record tells.
    Opaque,
    /// A direct write between its completion and the moment from which readers see it. Its writes wait in the hold's own queue.
    Direct {
        dio: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Call {
    kind: CallKind,
    node: NodeId,
    origin: Option<NodeId>,
    origin_offset: u64,
    offset: u64,
    length: u64,
    /// The size of its file when it got its place in the order.
    size: u64,
    /// It turned out to copy through the page cache: its data comes as writes.
    is_spliced: bool,
}

/// An operation whose place in the order is known and whose result is not, with what waits behind it.
struct Hold {
    /// The task inside the call; [`NO_TASK`] for a direct write, which is not a call's.
    tid: u32,
    /// Holds are numbered as they come.
    number: u64,
    since: u64,
    call: Call,
    queue: Vec<CaptureEvent>,
}

const NO_TASK: u32 = u32::MAX;

struct Abandoned {
    tid: u32,
    since: u64,
    node: NodeId,
}

struct DirectWrite {
    node: NodeId,
    since: u64,
    /// Its part of what is held.
    held_bytes: u64,
    chunks: Vec<(u64, Vec<u8>)>,
}

struct PendingWrite {
    node: NodeId,
    offset: u64,
    data: Vec<u8>,
    modified: Timestamp,
}

pub struct Assembler {
    volumes: HashMap<u32, VolumeId>,
    tasks: HashMap<u32, Task>,
    /// Tasks whose `gone` was set lately.
    going: HashSet<u32>,
    swept: u64,
    /// In the order of what they hold.
    holds: Vec<Hold>,
    held: u64,
    /// Calls whose hold was given up, and that may still take effect.
    abandoned: Vec<Abandoned>,
    direct: BTreeMap<u64, DirectWrite>,
    held_bytes: u64,
    write: Option<PendingWrite>,
    nameless: HashSet<NodeId>,
    /// The last time told of recently touched nodes, by a hash of the node: saves saying at a close what is known already.
    times: Vec<Option<(NodeId, Timestamp)>>,
}

/// 4,096 slots of 40 bytes. A collision costs one operation too many.
const TIMES: usize = 4_096;

impl Assembler {
    pub fn new(volumes: impl IntoIterator<Item = (u32, VolumeId)>) -> Assembler {
        Assembler {
            volumes: volumes.into_iter().collect(),
            tasks: HashMap::new(),
            going: HashSet::new(),
            swept: 0,
            holds: Vec::new(),
            held: 0,
            abandoned: Vec::new(),
            direct: BTreeMap::new(),
            held_bytes: 0,
            write: None,
            nameless: HashSet::new(),
            times: vec![None; TIMES],
        }
    }

    pub fn volume(&self, device: u32) -> Option<VolumeId> {
        self.volumes.get(&device).copied()
    }
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
    /// Number of the newest hold.
    pub fn last_hold(&self) -> u64 {
        self.held
    }
    /// Whether an operation up to this hold waits for its call's result.
    pub fn is_holding(&self, through: u64) -> bool {
        self.holds.iter().any(|hold| hold.number <= through)
    }

    fn hold(&mut self, tid: u32, since: u64, call: Call) {
        self.held += 1;
        self.holds.push(Hold { tid, number: self.held, since, call, queue: Vec::new() });
    }

    /// Takes one record as it came from the ring.
    pub fn feed(&mut self, bytes: &[u8], sink: Sink<'_>) {
        let Some(record) = Record::decode(bytes) else {
            return sink(CaptureEvent::LostEverything { reason: LossReason::BadRecord });
        };
        let Some(volume) = self.volume(record.device) else { return };
        let id = |raw: RawNode| NodeId { volume, subvolume: raw.root, inode: raw.inode, generation: raw.generation };
        if !matches!(record.kind, Kind::Data | Kind::Mapped) {
            self.flush_write(sink);
        }
        self.forget_gone(&record, id, sink);
        match record.kind {
            Kind::Data => self.data(&record, id(record.node), sink),
            Kind::Mapped => self.mapped(&record, id(record.node), sink),
            Kind::Direct => self.direct(&record, id(record.node), sink),
            Kind::DirectEnd => self.direct_end(&record, id(record.node), sink),
            Kind::DirectDone => self.direct_done(&record, id(record.node), sink),
            Kind::Mark => {
                sink(CaptureEvent::Mapped { node: id(record.node) });
                self.touch(&record, id(record.node), sink);
            }
            Kind::Create | Kind::Link | Kind::Delete | Kind::Unnamed => self.name(&record, id, sink),
            Kind::Rename => self.rename(&record, id, sink),
            Kind::Attributes => self.attributes(&record, id(record.node), sink),
            Kind::Modify => {
                let node = id(record.node);
                // Only a file has a size to set; on other nodes this is a time change.
                let operation = if record.node.kind() == Some(NodeKind::File) {
                    Operation::Truncate { node, size: ByteLen(record.size) }
                } else {
                    Operation::SetTimes { node, accessed: None, modified: Some(record.node.mtime) }
                };
                self.emit(operation, [Some((node, record.node.mtime)), None], sink);
            }
            Kind::Gone => {
                self.task(&record).gone = Some(id(record.node));
                self.going.insert(record.tid);
            }
            Kind::Flags => {
                let (node, flags, project) = (id(record.node), record.extra as u32, (record.extra >> 32) as u32);
                self.emit(Operation::SetFlags { node, flags }, [None; 2], sink);
                self.emit(Operation::SetProject { node, project }, [None; 2], sink);
            }
            Kind::Dirty => sink(CaptureEvent::Lost { node: id(record.node), range: (0, u64::MAX), reason: LossReason::Untold }),
            Kind::Close => {
                let node = id(record.node);
                if self.times[slot(&node)] != Some((node, record.node.mtime)) {
                    self.touch(&record, node, sink);
                }
            }
            Kind::MovedTo => self.moved_to(&record, id(record.node), sink),
            Kind::Order => self.order(&record, id(record.node)),
            Kind::CallExit => {
                let other = (record.parent.inode != 0).then(|| id(record.parent));
                self.call_exit(&record, id(record.node), other, sink);
            }
            Kind::RenameEnter | Kind::SymlinkEnter | Kind::XattrEnter | Kind::XattrRemoveEnter | Kind::AtimeEnter => self.stash(&record),
            Kind::FallocateEnter | Kind::CopyEnter | Kind::CloneEnter | Kind::OpaqueEnter => {
                let kind = match record.kind {
                    Kind::FallocateEnter => CallKind::Fallocate { mode: record.extra },
                    Kind::CopyEnter => CallKind::Copy,
                    Kind::OpaqueEnter => CallKind::Opaque,
                    _ => CallKind::Clone,
                };
                // What it did before has ended.
                self.abandoned.retain(|call| call.tid != record.tid);
                let origin = (record.parent.inode != 0).then(|| id(record.parent));
                let call = Call {
                    kind,
                    node: id(record.node),
                    origin,
                    origin_offset: record.extra,
                    offset: record.offset,
                    length: record.length,
                    size: record.size,
                    is_spliced: false,
                };
                if kind == CallKind::Opaque {
                    self.hold_opaque(&record, call, sink);
                }
                self.task(&record).call = Some(call);
            }
        }
        // What nobody waits for any more is not kept: on a server that forks a lot, each process is a task of its own.
        if !matches!(record.kind, Kind::Data | Kind::Mapped) && self.tasks.get(&record.tid).is_some_and(Task::is_done) {
            self.tasks.remove(&record.tid);
        }
    }

    /// To be called when nothing more is there for now: hands out what was only waiting for more of the same, and ends what is overdue.
    pub fn settle(&mut self, now: u64, sink: Sink<'_>) {
        self.flush_write(sink);
        self.settle_gone(now, sink);
        while let Some(at) = self.holds.iter().position(|hold| now.saturating_sub(hold.since) > HELD_NS_MAX) {
            self.give_up(at, sink);
        }
        let overdue = |write: &DirectWrite| now.saturating_sub(write.since) > 12 * HELD_NS_MAX;
        while let Some(dio) = self.direct.iter().find(|(_, write)| overdue(write)).map(|(dio, _)| *dio) {
            // The device may still be at it: the node must be read again.
            self.drop_direct(dio, sink);
        }
        self.sweep(now, sink);
    }

    fn settle_gone(&mut self, now: u64, sink: Sink<'_>) {
        let (tasks, nameless) = (&mut self.tasks, &mut self.nameless);
        self.going.retain(|tid| {
            let Some(task) = tasks.get_mut(tid) else { return false };
            let waits = task.gone.is_some() && now.saturating_sub(task.time) <= GONE_NS_MAX;
            if !waits && let Some(node) = task.gone.take() {
                nameless.remove(&node);
                sink(CaptureEvent::Operation { operation: Operation::Forget { node }, touched: [None; 2] });
            }
            if task.is_done() {
                tasks.remove(tid);
            }
            waits
        });
    }

    fn sweep(&mut self, now: u64, sink: Sink<'_>) {
        if now.saturating_sub(self.swept) > SWEEP_NS {
            self.swept = now;
            self.abandoned.retain(|call| now.saturating_sub(call.since) < ABANDONED_NS_MAX);
            let is_held = |tid| self.holds.iter().any(|hold| hold.tid == tid);
            let mut overdue = Vec::new();
            self.tasks.retain(|tid, task| {
                let stays = task.gone.is_some() || now.saturating_sub(task.time) < TASK_NS_MAX;
                // A call tells of its end even when it fails. One that is held was or will be given up by itself.
                if let Some(call) = task.call.filter(|call| !stays && !call.is_spliced && !is_held(*tid)) {
                    overdue.push(Abandoned { tid: *tid, since: task.time, node: call.node });
                }
                stays
            });
            overdue.into_iter().for_each(|call| self.abandon(call, sink));
        }
        if self.tasks.len() > TASKS_MAX {
            self.tasks.clear();
            self.going.clear();
            sink(CaptureEvent::LostEverything { reason: LossReason::HeldTooLong });
        }
    }

    /// Ends every hold up to this one now; the nodes are declared lost.
    pub fn give_up_held(&mut self, through: u64, sink: Sink<'_>) {
        while let Some(at) = self.holds.iter().position(|hold| hold.number <= through) {
            self.give_up(at, sink);
        }
    }

    fn task(&mut self, record: &Record<'_>) -> &mut Task {
        let task = self.tasks.entry(record.tid).or_default();
        task.time = record.time;
        task
    }

    /// The end of a node may be announced just before the removal of its last name; it is passed on after it.
    fn forget_gone(&mut self, record: &Record<'_>, id: impl Fn(RawNode) -> NodeId, sink: Sink<'_>) {
        let Some(task) = self.tasks.get_mut(&record.tid) else { return };
        let Some(node) = task.gone else { return };
        if record.kind == Kind::Delete && id(record.node) == node {
            return;
        }
        task.gone = None;
        self.emit(Operation::Forget { node }, [None; 2], sink);
    }

    fn emit(&mut self, operation: Operation, touched: Touched, sink: Sink<'_>) {
        for (node, time) in touched.iter().flatten() {
            self.times[slot(node)] = Some((*node, *time));
        }
        self.pass(CaptureEvent::Operation { operation, touched }, sink);
    }

    fn touch(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        self.emit(
            Operation::SetTimes { node, accessed: None, modified: Some(record.node.mtime) },
            [Some((node, record.node.mtime)), None],
            sink,
        );
    }

    /// Sends an event on, or behind the hold that its node waits for.
    fn pass(&mut self, event: CaptureEvent, sink: Sink<'_>) {
        if let Some(event) = self.without_nameless(event) {
            self.pass_before(self.holds.len(), event, sink);
        }
    }

    /// Sends on what stands in the order before the hold of this number: only earlier holds can hold it back.
    fn pass_before(&mut self, number: usize, event: CaptureEvent, sink: Sink<'_>) {
        let event = match event {
            // A record of wrong numbers; in the stream it would be refused by everybody who reads it, with all that is behind it.
            CaptureEvent::Operation { operation, .. } if !operation.is_possible() => match operation.node() {
                Some(node) => CaptureEvent::Lost { node, range: (0, u64::MAX), reason: LossReason::BadRecord },
                None => CaptureEvent::LostEverything { reason: LossReason::BadRecord },
            },
            event => event,
        };
        let (changed, read) = match &event {
            CaptureEvent::Operation { operation: Operation::CloneRange { origin, node, .. }, .. } => (Some(*node), Some(*origin)),
            CaptureEvent::Operation { operation, .. } => (operation.node(), None),
            _ => (None, None),
        };
        let concerns = |node: NodeId| changed == Some(node) || read == Some(node);
        let waits = |hold: &&mut Hold| concerns(hold.call.node) || hold.call.origin.is_some_and(concerns);
        if let Some(hold) = self.holds.iter_mut().take(number).rev().find(waits) {
            self.held_bytes += event_bytes(&event);
            hold.queue.push(event);
            if self.held_bytes > HELD_BYTES_MAX {
                self.give_up_held(u64::MAX, sink);
            }
            return;
        }
        let abandoned = self.abandoned.iter().any(|call| concerns(call.node));
        match changed.filter(|_| abandoned) {
            // Whether the call's effect is before or after this, nobody knows.
            Some(node) => sink(CaptureEvent::Lost { node, range: (0, u64::MAX), reason: LossReason::HeldTooLong }),
            None => sink(event),
        }
    }

    fn release(&mut self, number: usize, operation: Option<CaptureEvent>, sink: Sink<'_>) {
        let hold = self.holds.remove(number);
        if let Some(event) = operation {
            self.pass_before(number, event, sink);
        }
        for event in hold.queue {
            self.held_bytes = self.held_bytes.saturating_sub(event_bytes(&event));
            self.pass_before(number, event, sink);
        }
    }

    fn give_up(&mut self, number: usize, sink: Sink<'_>) {
        let Some(Hold { tid, call, since, .. }) = self.holds.get(number) else { return };
        let (tid, since) = (*tid, *since);
        if matches!(call.kind, CallKind::Direct { .. }) {
            // Readers may not see it yet. When they do, it is declared lost once more, if that is told.
            sink(CaptureEvent::Lost { node: call.node, range: (0, u64::MAX), reason: LossReason::HeldTooLong });
            return self.release(number, None, sink);
        }
        let both = [Some(call.node), call.origin.filter(|_| call.kind == CallKind::Opaque)];
        if let Some(task) = self.tasks.get_mut(&tid) {
            task.call = None;
        }
        both.into_iter().flatten().for_each(|node| self.abandon(Abandoned { tid, since, node }, sink));
        self.release(number, None, sink);
    }

    fn abandon(&mut self, call: Abandoned, sink: Sink<'_>) {
        sink(CaptureEvent::Lost { node: call.node, range: (0, u64::MAX), reason: LossReason::HeldTooLong });
        self.abandoned.push(call);
        if self.abandoned.len() > ABANDONED_MAX {
            self.abandoned.clear();
            sink(CaptureEvent::LostEverything { reason: LossReason::HeldTooLong });
        }
    }
}

fn slot(node: &NodeId) -> usize {
    ((node.inode ^ node.subvolume << 20 ^ u64::from(node.generation) << 7).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % TIMES
}

fn same(a: &RawNode, b: &RawNode) -> bool {
    (a.inode, a.root, a.generation) == (b.inode, b.root, b.generation)
}

fn attributes_of(record: &Record<'_>) -> Attributes {
    Attributes { mode: record.node.mode & 0o7777, owner: record.uid, group: record.gid, modified: record.node.mtime }
}

fn event_bytes(event: &CaptureEvent) -> u64 {
    match event {
        CaptureEvent::Operation { operation, .. } => operation.content_len() + 128,
        _ => 128,
    }
}

#[cfg(test)]
#[path = "assembler_tests.rs"]
mod tests;
