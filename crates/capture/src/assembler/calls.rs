//! Calls whose effect is not in the page cache: placed where `file_modified` stood, made certain by their exit.

use super::{Assembler, CallKind, Hold};
use crate::{
    CaptureEvent, LossReason, Sink,
    record::{Kind, Record},
};
use standin_model::{ByteLen, ByteOffset, NodeId, Operation};

impl Assembler {
    pub(super) fn order(&mut self, record: &Record<'_>, node: NodeId) {
        let Some(call) = self.tasks.get(&record.tid).and_then(|task| task.call) else { return };
        let is_held = self.holds.iter().any(|hold| hold.tid == record.tid);
        if call.node == node && !call.is_spliced && !is_held {
            self.holds.push(Hold { tid: record.tid, since: record.time, call, queue: Vec::new() });
        }
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
                self.release(at, None, None, sink);
            }
        }
    }

    pub(super) fn call_exit(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
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
