//! From records to operations: a pure state machine that pairs what one task said in several records, and holds what is not certain yet.
//!
//! Output is in ring order with two exceptions that no observer can tell: a direct write appears when it completes, and an operation
//! that waits for its call's result (`fallocate`, clone, copy) holds back the later operations of its own nodes only. Everything held has a bound;
//! beyond it the node is declared lost.

use crate::{
    CaptureEvent, LossReason, Sink, Touched,
    record::{FLAG_UNREAD, Kind, NAME_BYTES, RawNode, Record},
};
use standin_model::{Attributes, ByteLen, ByteOffset, Name, NodeId, NodeKind, Operation, RenameMode, Timestamp, VolumeId};
use std::collections::{BTreeMap, HashMap};

/// One operation carries at most this much content; larger ones delay the stream behind them.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// Direct writes in flight and held operations together.
const HELD_BYTES_MAX: u64 = 64 << 20;
/// A call that has not ended by then has lost its exit, or blocks: its nodes are read again.
const HELD_NS_MAX: u64 = 5_000_000_000;
/// Tasks with something remembered; those are swept that were quiet for longer than a call can reasonably take between two records.
const TASKS_MAX: usize = 8_192;
const TASK_NS_MAX: u64 = 60_000_000_000;

#[derive(Debug, Default)]
struct Task {
    time: u64,
    rename: Option<Rename>,
    /// The other directory of a rename, whose new time is told right after it.
    moved_to: Option<NodeId>,
    /// An exchange is announced twice.
    second_rename: bool,
    symlink: Option<(RawNode, Vec<u8>)>,
    xattr: Option<(RawNode, Vec<u8>, Option<Vec<u8>>)>,
    accessed: Option<(RawNode, Timestamp)>,
    gone: Option<NodeId>,
    call: Option<Call>,
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
    Fallocate { mode: u64 },
    Copy,
    Clone,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    kind: CallKind,
    node: NodeId,
    origin: Option<NodeId>,
    origin_offset: u64,
    offset: u64,
    length: u64,
    /// It turned out to copy through the page cache: its data comes as writes.
    is_spliced: bool,
}

/// An operation whose place in the order is known and whose result is not, with what waits behind it.
struct Hold {
    tid: u32,
    since: u64,
    call: Call,
    queue: Vec<CaptureEvent>,
}

struct DirectWrite {
    node: NodeId,
    since: u64,
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
    holds: Vec<Hold>,
    direct: BTreeMap<u64, DirectWrite>,
    held_bytes: u64,
    write: Option<PendingWrite>,
    /// The last time told of recently touched nodes, by a hash of the node: saves saying at a close what is known already.
    times: Vec<Option<(NodeId, Timestamp)>>,
}

/// 4,096 slots of 40 bytes. A collision costs one operation too many.
const TIMES: usize = 4_096;

impl Assembler {
    pub fn new(volumes: impl IntoIterator<Item = (u32, VolumeId)>) -> Assembler {
        Assembler { volumes: volumes.into_iter().collect(), tasks: HashMap::new(), holds: Vec::new(), direct: BTreeMap::new(), held_bytes: 0, write: None, times: vec![None; TIMES] }
    }

    pub fn volume(&self, device: u32) -> Option<VolumeId> {
        self.volumes.get(&device).copied()
    }
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
    /// Whether an operation waits for its call's result.
    pub fn is_holding(&self) -> bool {
        !self.holds.is_empty()
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
            Kind::Data | Kind::Mapped => self.data(&record, id(record.node), sink),
            Kind::Direct => self.direct(&record, id(record.node), sink),
            Kind::DirectEnd => self.direct_end(&record, id(record.node), sink),
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
            Kind::Gone => self.task(&record).gone = Some(id(record.node)),
            Kind::Flags => self.emit(Operation::SetFlags { node: id(record.node), flags: record.extra as u32 }, [None; 2], sink),
            Kind::Dirty => sink(CaptureEvent::Lost { node: id(record.node), range: (0, u64::MAX), reason: LossReason::Unpaired }),
            Kind::Close => {
                let node = id(record.node);
                if self.times[slot(&node)] != Some((node, record.node.mtime)) {
                    self.touch(&record, node, sink);
                }
            }
            Kind::MovedTo => {
                let directory = id(record.node);
                if self.task(&record).moved_to.take() == Some(directory) {
                    self.touch(&record, directory, sink);
                }
            }
            Kind::Order => self.order(&record, id(record.node)),
            Kind::CallExit => self.call_exit(&record, id(record.node), sink),
            Kind::RenameEnter | Kind::SymlinkEnter | Kind::XattrEnter | Kind::XattrRemoveEnter | Kind::AtimeEnter => self.stash(&record),
            Kind::FallocateEnter | Kind::CopyEnter | Kind::CloneEnter => {
                let kind = match record.kind {
                    Kind::FallocateEnter => CallKind::Fallocate { mode: record.extra },
                    Kind::CopyEnter => CallKind::Copy,
                    _ => CallKind::Clone,
                };
                let origin = (record.parent.inode != 0).then(|| id(record.parent));
                let call = Call { kind, node: id(record.node), origin, origin_offset: record.extra, offset: record.offset, length: record.length, is_spliced: false };
                self.task(&record).call = Some(call);
            }
        }
    }

    /// To be called when nothing more is there for now: hands out what was only waiting for more of the same, and ends what is overdue.
    pub fn settle(&mut self, now: u64, sink: Sink<'_>) {
        self.flush_write(sink);
        for task in self.tasks.values_mut() {
            if task.gone.is_some() && now.saturating_sub(task.time) > 1_000_000_000 {
                let node = task.gone.take();
                sink(CaptureEvent::Operation { operation: Operation::Forget { node: node.expect("just seen") }, touched: [None; 2] });
            }
        }
        while let Some(at) = self.holds.iter().position(|hold| now.saturating_sub(hold.since) > HELD_NS_MAX) {
            self.release(at, None, Some(LossReason::HeldTooLong), sink);
        }
        let overdue = |write: &DirectWrite| now.saturating_sub(write.since) > 12 * HELD_NS_MAX;
        while let Some(dio) = self.direct.iter().find(|(_, write)| overdue(write)).map(|(dio, _)| *dio) {
            // The device may still be at it: the node must be read again.
            self.drop_direct(dio, sink);
        }
        if self.tasks.len() > TASKS_MAX {
            self.tasks.retain(|_, task| task.gone.is_some() || now.saturating_sub(task.time) < TASK_NS_MAX);
        }
    }

    /// Ends every hold now; the nodes are declared lost.
    pub fn give_up_held(&mut self, sink: Sink<'_>) {
        while !self.holds.is_empty() {
            self.release(0, None, Some(LossReason::HeldTooLong), sink);
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
        self.emit(Operation::SetTimes { node, accessed: None, modified: Some(record.node.mtime) }, [Some((node, record.node.mtime)), None], sink);
    }

    /// Sends an event on, or behind the hold that its node waits for.
    fn pass(&mut self, event: CaptureEvent, sink: Sink<'_>) {
        let nodes = match &event {
            CaptureEvent::Operation { operation: Operation::CloneRange { origin, node, .. }, .. } => [Some(*origin), Some(*node)],
            CaptureEvent::Operation { operation, .. } => [operation.node(), None],
            _ => [None, None],
        };
        let waits = |hold: &Hold| nodes.iter().flatten().any(|node| *node == hold.call.node || Some(*node) == hold.call.origin);
        let Some(hold) = self.holds.iter_mut().rev().find(|hold| waits(hold)) else { return sink(event) };
        self.held_bytes += event_bytes(&event);
        hold.queue.push(event);
        if self.held_bytes > HELD_BYTES_MAX {
            self.give_up_held(sink);
        }
    }

    fn release(&mut self, at: usize, operation: Option<CaptureEvent>, lost: Option<LossReason>, sink: Sink<'_>) {
        let hold = self.holds.remove(at);
        if let Some(reason) = lost {
            sink(CaptureEvent::Lost { node: hold.call.node, range: (0, u64::MAX), reason });
            if let Some(task) = self.tasks.get_mut(&hold.tid) {
                task.call = None;
            }
        }
        if let Some(event) = operation {
            self.pass(event, sink);
        }
        for event in hold.queue {
            self.held_bytes = self.held_bytes.saturating_sub(event_bytes(&event));
            self.pass(event, sink);
        }
    }

    // Content.

    fn data(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        if record.flags & FLAG_UNREAD != 0 {
            return self.lost(record, node, LossReason::Unread, sink);
        }
        self.notice_splice(record, node, sink);
        let follows = |write: &PendingWrite| {
            write.node == node && write.offset.checked_add(write.data.len() as u64) == Some(record.offset) && write.data.len() + record.payload.len() <= WRITE_BYTES_MAX
        };
        match &mut self.write {
            Some(write) if follows(write) => {
                write.data.extend_from_slice(record.payload);
                write.modified = record.node.mtime;
            }
            _ => {
                self.flush_write(sink);
                self.write = Some(PendingWrite { node, offset: record.offset, data: record.payload.to_vec(), modified: record.node.mtime });
            }
        }
    }

    fn flush_write(&mut self, sink: Sink<'_>) {
        if let Some(PendingWrite { node, offset, data, modified }) = self.write.take() {
            self.emit(Operation::Write { node, offset: ByteOffset(offset), data }, [Some((node, modified)), None], sink);
        }
    }

    fn lost(&mut self, record: &Record<'_>, node: NodeId, reason: LossReason, sink: Sink<'_>) {
        sink(CaptureEvent::Lost { node, range: (record.offset, record.offset.saturating_add(record.length)), reason });
    }

    fn direct(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        if record.flags & FLAG_UNREAD != 0 || self.held_bytes > HELD_BYTES_MAX {
            return self.lost(record, node, if record.flags & FLAG_UNREAD != 0 { LossReason::Unread } else { LossReason::HeldTooLong }, sink);
        }
        if self.direct.get(&record.extra).is_some_and(|write| write.node != node) {
            // The address was used again, so the end of the first was missed.
            self.drop_direct(record.extra, sink);
        }
        let write = self.direct.entry(record.extra).or_insert_with(|| DirectWrite { node, since: record.time, chunks: Vec::new() });
        self.held_bytes += record.payload.len() as u64;
        match write.chunks.last_mut() {
            Some((start, data)) if start.checked_add(data.len() as u64) == Some(record.offset) && data.len() < WRITE_BYTES_MAX => data.extend_from_slice(record.payload),
            _ => write.chunks.push((record.offset, record.payload.to_vec())),
        }
    }

    fn take_direct(&mut self, dio: u64) -> Option<DirectWrite> {
        let write = self.direct.remove(&dio)?;
        let bytes: usize = write.chunks.iter().map(|(_, data)| data.len()).sum();
        self.held_bytes = self.held_bytes.saturating_sub(bytes as u64);
        Some(write)
    }

    fn drop_direct(&mut self, dio: u64, sink: Sink<'_>) {
        if let Some(write) = self.take_direct(dio) {
            let start = write.chunks.iter().map(|(start, _)| *start).min().unwrap_or(0);
            let end = write.chunks.iter().map(|(start, data)| start.saturating_add(data.len() as u64)).max().unwrap_or(u64::MAX);
            sink(CaptureEvent::Lost { node: write.node, range: (start, end), reason: LossReason::HeldTooLong });
        }
    }

    fn direct_end(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        let Some(write) = self.take_direct(record.extra) else { return };
        sink(CaptureEvent::DirectIo { node });
        let start = write.chunks.iter().map(|(start, _)| *start).min().unwrap_or(0);
        let total: u64 = write.chunks.iter().map(|(_, data)| data.len() as u64).sum();
        let done = record.length as i64;
        if done < total as i64 {
            // What reached the disk of a failed write is anybody's guess.
            sink(CaptureEvent::Lost { node, range: (start, start.saturating_add(total)), reason: LossReason::DirectWriteFailed });
        }
        // A bio is filled up to whole blocks; only `done` bytes are file content.
        let end = start.saturating_add(done.max(0) as u64);
        for (offset, mut data) in write.chunks {
            data.truncate(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX));
            if !data.is_empty() {
                self.emit(Operation::Write { node, offset: ByteOffset(offset), data }, [Some((node, record.node.mtime)), None], sink);
            }
        }
    }

    // Names and attributes.

    fn stash(&mut self, record: &Record<'_>) {
        let task = self.task(record);
        match record.kind {
            Kind::RenameEnter => {
                let rename = || {
                    Some(Rename {
                        node: record.node,
                        parent: record.parent,
                        new_parent: record.payload_node(0)?,
                        victim: record.payload_node(32).filter(|victim| victim.inode != 0),
                        flags: record.extra,
                        name: record.text(64, NAME_BYTES)?.to_vec(),
                        new_name: record.text(64 + NAME_BYTES, NAME_BYTES)?.to_vec(),
                    })
                };
                task.rename = rename();
                task.second_rename = false;
            }
            Kind::SymlinkEnter => task.symlink = record.text(0, record.payload.len()).map(|target| (record.parent, target.to_vec())),
            Kind::XattrEnter => {
                let value = usize::try_from(record.length).ok().and_then(|length| record.payload.get(NAME_BYTES..NAME_BYTES.checked_add(length)?));
                let name = record.text(0, NAME_BYTES).filter(|_| record.flags & FLAG_UNREAD == 0);
                task.xattr = name.zip(value).map(|(name, value)| (record.node, name.to_vec(), Some(value.to_vec())));
            }
            Kind::XattrRemoveEnter => task.xattr = record.text(0, NAME_BYTES).map(|name| (record.node, name.to_vec(), None)),
            _ => task.accessed = Some((record.node, Timestamp(record.extra as i64))),
        }
    }

    fn name(&mut self, record: &Record<'_>, id: impl Fn(RawNode) -> NodeId, sink: Sink<'_>) {
        let (parent, node) = (id(record.parent), id(record.node));
        let attributes = attributes_of(record);
        let touched = [Some((parent, record.parent.mtime)), Some((node, record.node.mtime))];
        if record.kind == Kind::Unnamed {
            return self.emit(Operation::CreateUnnamed { node, attributes }, [touched[1], None], sink);
        }
        let lost = |node, reason| CaptureEvent::Lost { node, range: (0, u64::MAX), reason };
        let (Some(name), Some(kind)) = (record.text(0, NAME_BYTES).and_then(|text| Name::new(text).ok()), record.node.kind()) else {
            sink(lost(parent, LossReason::BadRecord));
            return sink(lost(node, LossReason::BadRecord));
        };
        let device = u64::from(record.rdev >> 20) << 32 | u64::from(record.rdev & 0xf_ffff);
        let operation = match (record.kind, kind) {
            (Kind::Link, _) => Operation::Link { parent, name, node },
            (Kind::Delete, NodeKind::Directory) => Operation::Rmdir { parent, name, node },
            (Kind::Delete, _) => Operation::Unlink { parent, name, node },
            (_, NodeKind::File) => Operation::Create { parent, name, node, attributes },
            (_, NodeKind::Directory) => Operation::Mkdir { parent, name, node, attributes },
            (_, NodeKind::Symlink) => match self.task(record).symlink.take() {
                Some((entered, target)) if same(&entered, &record.parent) && !target.is_empty() => Operation::Symlink { parent, name, node, target, attributes },
                _ => return sink(lost(parent, LossReason::Unpaired)),
            },
            (_, kind) => Operation::Mknod { parent, name, node, kind, device, attributes },
        };
        let early = record.kind == Kind::Create && kind == NodeKind::File && record.size != 0;
        self.emit(operation, touched, sink);
        if early {
            // Visible to others before it was announced, and written to: those writes came to a node that nobody knew.
            sink(lost(node, LossReason::UsedBeforeCreation));
        }
    }

    fn rename(&mut self, record: &Record<'_>, id: impl Fn(RawNode) -> NodeId, sink: Sink<'_>) {
        let task = self.task(record);
        if std::mem::take(&mut task.second_rename) {
            return;
        }
        let entered = task.rename.take().filter(|rename| same(&rename.node, &record.node) && same(&rename.parent, &record.parent));
        let operation = entered.as_ref().and_then(|rename| {
            let mode = match rename.flags & 7 {
                0 => RenameMode::Replace,
                1 => RenameMode::NoReplace,
                2 => RenameMode::Exchange,
                _ => RenameMode::Whiteout,
            };
            Some(Operation::Rename {
                parent: id(rename.parent),
                name: Name::new(rename.name.clone()).ok()?,
                node: id(rename.node),
                new_parent: id(rename.new_parent),
                new_name: Name::new(rename.new_name.clone()).ok()?,
                mode,
                victim: rename.victim.map(&id),
            })
        });
        let (Some(rename), Some(operation)) = (entered, operation) else {
            // The new place is unknown: the old directory, and the node wherever it is now.
            sink(CaptureEvent::Lost { node: id(record.parent), range: (0, u64::MAX), reason: LossReason::Unpaired });
            return sink(CaptureEvent::LostEverything { reason: LossReason::Unpaired });
        };
        task.second_rename = rename.flags & 2 != 0;
        task.moved_to = (!same(&rename.new_parent, &rename.parent)).then(|| id(rename.new_parent));
        self.emit(operation, [Some((id(record.parent), record.parent.mtime)), None], sink);
        if rename.flags & 4 != 0 {
            // The whiteout is a new node without an announcement of its own.
            sink(CaptureEvent::Lost { node: id(rename.parent), range: (0, u64::MAX), reason: LossReason::Unpaired });
        }
    }

    fn attributes(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        let task = self.task(record);
        let xattr = task.xattr.take().filter(|(entered, ..)| same(entered, &record.node));
        let accessed = task.accessed.take().filter(|(entered, _)| same(entered, &record.node)).map(|(_, time)| time);
        let touched = [Some((node, record.node.mtime)), None];
        if let Some((_, name, value)) = xattr {
            let operation = match value {
                Some(value) => Operation::SetXattr { node, name, value },
                None => Operation::RemoveXattr { node, name },
            };
            self.emit(operation, touched, sink);
        }
        // Always all of it: an ACL changes the mode, and a change of owner clears set-id bits. Owner first for the same reason.
        self.emit(Operation::SetOwner { node, owner: record.uid, group: record.gid }, [None; 2], sink);
        if record.node.kind() != Some(NodeKind::Symlink) {
            self.emit(Operation::SetMode { node, mode: record.node.mode & 0o7777 }, touched, sink);
        }
        if accessed.is_some() {
            self.emit(Operation::SetTimes { node, accessed, modified: Some(record.node.mtime) }, touched, sink);
        }
    }

    // Calls whose effect is not in the page cache.

    fn order(&mut self, record: &Record<'_>, node: NodeId) {
        let Some(call) = self.tasks.get(&record.tid).and_then(|task| task.call) else { return };
        let is_held = self.holds.iter().any(|hold| hold.tid == record.tid);
        if call.node == node && !call.is_spliced && !is_held {
            self.holds.push(Hold { tid: record.tid, since: record.time, call, queue: Vec::new() });
        }
    }

    /// copy_file_range without reflink writes through the page cache; then its own data says it all.
    fn notice_splice(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        if record.kind != Kind::Data || (self.holds.is_empty() && self.tasks.is_empty()) {
            return;
        }
        let Some(call) = self.tasks.get_mut(&record.tid).and_then(|task| task.call.as_mut()) else { return };
        // Data below the target range is the zeroing behind the old end of the file, which a clone does too.
        if call.kind == CallKind::Copy && call.node == node && record.offset >= call.offset {
            call.is_spliced = true;
            if let Some(at) = self.holds.iter().position(|hold| hold.tid == record.tid) {
                self.release(at, None, None, sink);
            }
        }
    }

    fn call_exit(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        let Some(call) = self.task(record).call.take() else { return };
        let result = record.extra as i64;
        let touched = [Some((node, record.node.mtime)), None];
        let (offset, len) = (ByteOffset(call.offset), ByteLen(call.length));
        let operation = match call.kind {
            _ if call.is_spliced || result < 0 => None,
            CallKind::Fallocate { mode } => Some(match mode & !1 {
                0 => Operation::Allocate { node, offset, len, keep_size: mode & 1 != 0 },
                2 => Operation::Punch { node, offset, len },
                0x8 => Operation::Collapse { node, offset, len },
                0x10 => Operation::Zero { node, offset, len, keep_size: mode & 1 != 0 },
                0x20 => Operation::Insert { node, offset, len },
                // Unsharing moves blocks and changes no content.
                _ => Operation::Allocate { node, offset, len, keep_size: true },
            }),
            CallKind::Copy | CallKind::Clone if result == 0 => None,
            CallKind::Copy | CallKind::Clone => match call.origin {
                Some(origin) => Some(Operation::CloneRange { origin, origin_offset: ByteOffset(call.origin_offset), node, offset, len: ByteLen(result as u64) }),
                None => {
                    sink(CaptureEvent::Lost { node, range: (call.offset, u64::MAX), reason: LossReason::Unpaired });
                    None
                }
            },
        };
        if result < 0 && matches!(call.kind, CallKind::Fallocate { .. }) && self.holds.iter().any(|hold| hold.tid == record.tid) {
            // It failed after it had begun (no space, a signal): part of it may stand.
            sink(CaptureEvent::Lost { node, range: (0, u64::MAX), reason: LossReason::Unpaired });
        }
        let event = operation.map(|operation| CaptureEvent::Operation { operation, touched });
        match (self.holds.iter().position(|hold| hold.tid == record.tid), event) {
            (Some(at), event) => self.release(at, event, None, sink),
            (None, Some(event)) => self.pass(event, sink),
            (None, None) => {}
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
