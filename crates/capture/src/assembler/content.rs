//! Content: page-cache writes joined into larger ones, direct writes held until they complete.

use super::{Assembler, Call, CallKind, DirectWrite, HELD_BYTES_MAX, NO_TASK, PendingWrite, WRITE_BYTES_MAX, event_bytes};
use crate::{
    CaptureEvent, LossReason, Sink,
    record::{FLAG_UNREAD, Record},
};
use standin_model::{ByteOffset, NodeId, Operation};

/// What a chunk takes besides its content.
const CHUNK_BYTES: u64 = 64;

impl Assembler {
    pub(super) fn data(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        if self.is_part_of_call(record, node) {
            return;
        }
        if record.flags & FLAG_UNREAD != 0 {
            return self.lost(record, node, LossReason::Unread, sink);
        }
        self.notice_splice(record, node, sink);
        let follows = |write: &PendingWrite| {
            write.node == node
                && write.offset.checked_add(write.data.len() as u64) == Some(record.offset)
                && write.data.len() + record.payload.len() <= WRITE_BYTES_MAX
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

    pub(super) fn flush_write(&mut self, sink: Sink<'_>) {
        if let Some(PendingWrite { node, offset, data, modified }) = self.write.take() {
            self.emit(Operation::Write { node, offset: ByteOffset(offset), data }, [Some((node, modified)), None], sink);
        }
    }

    pub(super) fn lost(&mut self, record: &Record<'_>, node: NodeId, reason: LossReason, sink: Sink<'_>) {
        sink(CaptureEvent::Lost { node, range: (record.offset, record.offset.saturating_add(record.length)), reason });
    }

    pub(super) fn direct(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        if record.flags & FLAG_UNREAD != 0 || self.held_bytes > HELD_BYTES_MAX {
            return self.lost(
                record,
                node,
                if record.flags & FLAG_UNREAD != 0 { LossReason::Unread } else { LossReason::HeldTooLong },
                sink,
            );
        }
        if self.direct.get(&record.extra).is_some_and(|write| write.node != node) {
            // The address was used again, so the end of the first was missed.
            self.drop_direct(record.extra, sink);
        }
        let fresh = || DirectWrite { node, since: record.time, held_bytes: 0, chunks: Vec::new() };
        let write = self.direct.entry(record.extra).or_insert_with(fresh);
        // A record without content takes room as well.
        let held_bytes = record.payload.len() as u64 + CHUNK_BYTES;
        write.held_bytes += held_bytes;
        self.held_bytes += held_bytes;
        match write.chunks.last_mut() {
            Some((start, data)) if start.checked_add(data.len() as u64) == Some(record.offset) && data.len() < WRITE_BYTES_MAX => {
                data.extend_from_slice(record.payload)
            }
            _ => write.chunks.push((record.offset, record.payload.to_vec())),
        }
    }

    pub(super) fn take_direct(&mut self, dio: u64) -> Option<DirectWrite> {
        let write = self.direct.remove(&dio)?;
        self.held_bytes = self.held_bytes.saturating_sub(write.held_bytes);
        Some(write)
    }

    pub(super) fn drop_direct(&mut self, dio: u64, sink: Sink<'_>) {
        if let Some(write) = self.take_direct(dio) {
            let start = write.chunks.iter().map(|(start, _)| *start).min().unwrap_or(0);
            let end = write.chunks.iter().map(|(start, data)| start.saturating_add(data.len() as u64)).max().unwrap_or(u64::MAX);
            sink(CaptureEvent::Lost { node: write.node, range: (start, end), reason: LossReason::HeldTooLong });
        }
    }

    pub(super) fn direct_end(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        let done = record.length as i64;
        let dio = record.extra;
        if let Some(at) = self.direct_hold(dio) {
            // The address was used again, so that the end of the hold was missed.
            self.give_up(at, sink);
        }
        let call =
            Call { kind: CallKind::Direct { dio }, node, origin: None, origin_offset: 0, offset: 0, length: 0, size: 0, is_spliced: false };
        self.hold(NO_TASK, record.time, call);
        let Some(write) = self.take_direct(record.extra) else {
            if done > 0 {
                // Submitted before capture began, or given up: whoever has read the node since may have come before it.
                sink(CaptureEvent::DirectIo { node });
                self.tell_when_done(CaptureEvent::Lost { node, range: (0, u64::MAX), reason: LossReason::Unpaired });
            }
            return;
        };
        sink(CaptureEvent::DirectIo { node });
        // All bios of a write without an error are on the disk. Theirs is more than was written where the file system has blocks filled up with
        // zeros, before it and behind it; what was written is `done` bytes from the position of the call.
        let start = record.offset;
        let end = start.saturating_add(done.max(0) as u64);
        let mut missing = end.saturating_sub(start);
        let ends = |(offset, data): &(u64, Vec<u8>)| offset.saturating_add(data.len() as u64);
        let submitted = (write.chunks.iter().map(|(offset, _)| *offset).min(), write.chunks.iter().map(ends).max());
        for (offset, mut data) in write.chunks {
            data.truncate(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX));
            let before = usize::try_from(start.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
            data.drain(..before);
            missing = missing.saturating_sub(data.len() as u64);
            if !data.is_empty() {
                let offset = ByteOffset(offset.saturating_add(before as u64));
                self.emit(Operation::Write { node, offset, data }, [Some((node, record.node.mtime)), None], sink);
            }
        }
        if done < 0 || missing > 0 {
            // What reached the disk of a failed write is anybody's guess.
            let (first, last) = (submitted.0.unwrap_or(start).min(start), submitted.1.unwrap_or(end).max(end));
            self.tell_when_done(CaptureEvent::Lost { node, range: (first, last), reason: LossReason::DirectWriteFailed });
        }
    }

    /// With what the newest hold holds back: whoever reads the node before that has read too early.
    fn tell_when_done(&mut self, event: CaptureEvent) {
        if let Some(hold) = self.holds.last_mut() {
            self.held_bytes += event_bytes(&event);
            hold.queue.push(event);
        }
    }

    fn direct_hold(&self, dio: u64) -> Option<usize> {
        self.holds.iter().position(|hold| hold.call.kind == CallKind::Direct { dio })
    }

    /// Whoever reads from here on sees what was written.
    pub(super) fn direct_done(&mut self, record: &Record<'_>, node: NodeId, sink: Sink<'_>) {
        match self.direct_hold(record.extra) {
            Some(at) => self.release(at, None, sink),
            None => sink(CaptureEvent::Lost { node, range: (0, u64::MAX), reason: LossReason::Unpaired }),
        }
    }
}
