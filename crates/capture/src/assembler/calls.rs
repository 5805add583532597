//! Calls whose effect is not in the page cache: placed where `file_modified` stood, made certain by their exit. Opaque ones, which change what no record
//! tells, hold from their beginning, and end in a loss of their nodes.

use super::{Assembler, Call, CallKind, Hold, event_bytes};
use crate::{
    CaptureEvent, LossReason, Sink,
    record::{FLAG_UNREAD, Kind, Record},
};
use standin_model::{ByteLen, ByteOffset, NodeId, Operation};

/// EPERM, EBADF, EACCES, EXDEV, EINVAL, EOPNOTSUPP: an opaque call that ends so was refused before it had begun. Anybody can be refused as often as he
/// likes, and need not have a file read again by that.
const REFUSALS: [i64; 6] = [-1, -9, -13, -18, -22, -95];

/// The unit in which page caches are kept: a call's effect on a range is one on its pages.
const PAGE_BYTES: u64 = 4096;

/// EINVAL.
const INVALID: i64 = -22;

/// Whether a collapse or an insert was refused because the range does not lie inside of the file. An insert that fails later has made the file longer.
fn is_out_of_place(mode: u64, call: &Call, exit: &Record<'_>) -> bool {
    let border = match mode & !1 {
        0x8 => call.offset.saturating_add(call.length),
        0x20 => call.offset,
        _ => return false,
    };
    exit.extra as i64 == INVALID && border >= exit.size
}

impl Call {
    /// Whether the call changes these bytes, moves them, or reads them.
    fn affects(&self, node: NodeId, start: u64, end: u64) -> bool {
        if matches!(self.kind, CallKind::Direct { .. }) {
            // A store to the same bytes meanwhile may win or lose.
            return false;
        }
        let within = |from: u64, length: u64| {
            let (first, last) = (from / PAGE_BYTES * PAGE_BYTES, from.saturating_add(length).saturating_add(PAGE_BYTES - 1));
            start < last && first < end
        };
        let length = match self.kind {
            // Everything behind is moved.
            CallKind::Fallocate { mode } if mode & (0x8 | 0x20) != 0 => u64::MAX,
            // To the end of the origin.
            CallKind::Clone if self.length == 0 => u64::MAX,
            CallKind::Opaque => u64::MAX,
            _ => self.length,
        };
        node == self.node && within(self.offset, length) || Some(node) == self.origin && within(self.origin_offset, length)
    }

    /// Of a page that the call itself writes back, what was content before it: an insert has made the file longer by then.
    fn content_before<'r>(&self, node: NodeId, record: &Record<'r>) -> &'r [u8] {
        let is_shifted = node == self.node && matches!(self.kind, CallKind::Fallocate { .. });
        let room = if is_shifted { self.size.saturating_sub(record.offset) } else { u64::MAX };
        &record.payload[..record.payload.len().min(usize::try_from(room).unwrap_or(usize::MAX))]
    }
}

impl Assembler {
    pub(super) fn order(&mut self, record: &Record<'_>, node: NodeId) {
        let Some(call) = self.tasks.get(&record.tid).and_then(|task| task.call) else { return };
        let is_held = self.holds.iter().any(|hold| hold.tid == record.tid);
        if call.node == node && !call.is_spliced && !is_held {
            self.hold(record.tid, record.time, Call { size: record.size, ..call });
        }
    }

    /// xfs zeroes through the page cache what `fallocate` leaves of a block: behind the old end before it inserts, behind the new one after it has
    /// collapsed. The operation says as much, and the zeros would come behind it, to where there is something else by then.
    pub(super) fn is_part_of_call(&self, record: &Record<'_>, node: NodeId) -> bool {
        let is_its = |hold: &Hold| hold.tid == record.tid && hold.call.node == node && matches!(hold.call.kind, CallKind::Fallocate { .. });
        record.kind == Kind::Data && self.holds.iter().any(is_its)
    }

    pub(super) fn hold_opaque(&mut self, record: &Record<'_>, call: Call, sink: Sink<'_>) {
        // A hold of the same task has lost its end.
        if let Some(at) = self.holds.iter().position(|hold| hold.tid == record.tid) {
            self.give_up(at, sink);
        }
        self.hold(record.tid, record.time, call);
    }

    /// copy_file_range without reflink writes through the page cache; then its own data says it all.
    pub(super) fn notice_splice(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        if record.kind != Kind::Data || (self.holds.is_empty() && self.tasks.is_empty()) {
            return;
        }
        let Some(call) = self.tasks.get_mut(&record.tid).and_then(|task| task.call.as_mut()) else { return };
        // Data below the target range is the zeroing behind the old end of the file, which a clone does too.
        if call.kind == CallKind::Copy && call.node == node && record.offset >= call.offset {
            call.is_spliced = true;
            if let Some(at) = self.holds.iter().position(|hold| hold.tid == record.tid) {
                self.release(at, None, sink);
            }
        }
    }

    /// What was stored through a mapping, at its writeback. A call that moves or frees a range has its pages written back first, behind its
    /// own place in the order, but before its effect.
    pub(super) fn mapped(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        let end = record.offset.saturating_add(record.payload.len() as u64);
        let affected = |hold: &Hold| record.flags & FLAG_UNREAD == 0 && hold.call.affects(node, record.offset, end);
        let own = self.holds.iter().position(|hold| hold.tid == record.tid && affected(hold));
        let Some(number) = own.or_else(|| self.holds.iter().position(affected)) else {
            return self.data(record, node, sink);
        };
        self.flush_write(sink);
        if own.is_some() {
            let data = self.holds[number].call.content_before(node, record);
            if data.is_empty() {
                return;
            }
            let operation = Operation::Write { node, offset: ByteOffset(record.offset), data: data.to_vec() };
            let touched = [Some((node, record.node.mtime)), None];
            return self.pass_before(number, CaptureEvent::Operation { operation, touched }, sink);
        }
        // Somebody else writes the same pages back: before the effect, or after it and before the exit.
        let lost = CaptureEvent::Lost { node, range: (record.offset, end), reason: LossReason::Unpaired };
        self.held_bytes += event_bytes(&lost);
        self.holds[number].queue.push(lost);
    }

    pub(super) fn call_exit(&mut self, record: &Record<'_>, node: NodeId, other: Option<NodeId>, sink: Sink<'_>) {
        let result = record.extra as i64;
        let lost = |node, reason| CaptureEvent::Lost { node, range: (0, u64::MAX), reason };
        let both = [Some(node), other].into_iter().flatten();
        let Some(call) = self.task(record).call.take() else {
            // Its beginning was lost, or it was given up: whoever has read the node since may have come before its effect.
            self.abandoned.retain(|call| call.tid != record.tid);
            return both.map(|node| lost(node, LossReason::Unpaired)).for_each(sink);
        };
        if call.kind == CallKind::Opaque && !REFUSALS.contains(&result) {
            both.map(|node| lost(node, LossReason::Untold)).for_each(&mut *sink);
        }
        let touched = [Some((node, record.node.mtime)), None];
        let (offset, len) = (ByteOffset(call.offset), ByteLen(call.length));
        let operation = match call.kind {
            CallKind::Fallocate { mode } if is_out_of_place(mode, &call, record) => {
                // The file system had got as far as its times.
                Some(Operation::SetTimes { node, accessed: None, modified: Some(record.node.mtime) })
            }
            _ if call.is_spliced || result < 0 => None,
            CallKind::Opaque | CallKind::Direct { .. } => None,
            CallKind::Fallocate { mode } => Some(match mode & !1 {
                0 => Operation::Allocate { node, offset, len, keep_size: mode & 1 != 0 },
                2 => Operation::Punch { node, offset, len },
                0x8 => Operation::Collapse { node, offset, len },
                0x10 => Operation::Zero { node, offset, len, keep_size: mode & 1 != 0 },
                0x20 => Operation::Insert { node, offset, len },
                // Unsharing moves blocks and changes no content; the size it changes as allocating does.
                _ => Operation::Allocate { node, offset, len, keep_size: mode & 1 != 0 },
            }),
            CallKind::Copy | CallKind::Clone if result == 0 => None,
            CallKind::Copy | CallKind::Clone => match call.origin {
                Some(origin) => Some(Operation::CloneRange {
                    origin,
                    origin_offset: ByteOffset(call.origin_offset),
                    node,
                    offset,
                    len: ByteLen(result as u64),
                }),
                None => {
                    sink(CaptureEvent::Lost { node, range: (call.offset, u64::MAX), reason: LossReason::Unpaired });
                    None
                }
            },
        };
        if result < 0
            && operation.is_none()
            && matches!(call.kind, CallKind::Fallocate { .. } | CallKind::Clone)
            && self.holds.iter().any(|hold| hold.tid == record.tid)
        {
            // It failed after it had begun (no space, a signal): part of it may stand.
            sink(lost(node, LossReason::CallFailed));
        }
        let event = operation.map(|operation| CaptureEvent::Operation { operation, touched });
        let event = event.and_then(|event| self.without_nameless(event));
        match (self.holds.iter().position(|hold| hold.tid == record.tid), event) {
            (Some(at), event) => self.release(at, event, sink),
            (None, Some(event)) => self.pass(event, sink),
            (None, None) => {}
        }
    }
}
