//! What the workload does to content.

use super::{SECOND, Source};
use crate::random::Random;
use crate::tree::{write_at, zero_at};
use standin_agent::pump::Captured;
use standin_model::*;

/// One write(2): its file's change time is stamped when it begins, and pages come until it ends.
pub struct LongWrite {
    node: NodeId,
    /// Of its last page.
    at: Timestamp,
    end: Timestamp,
}

/// The disk lets it go on at least this often.
const STALL_NS_MAX: i64 = 20 * SECOND;

impl Source {
    pub(super) fn begin_long_write(&mut self, random: &mut Random) {
        let Some(node) = random.pick(&self.files()) else { return };
        let end = Timestamp(self.clock.0 + random.below(300 * SECOND as u64) as i64);
        self.write_to(node, random);
        self.long = Some(LongWrite { node, at: self.clock, end });
    }

    /// Goes on with a long write, if that has waited long enough.
    pub(super) fn write_on(&mut self, random: &mut Random) -> bool {
        let Some(long) = self.long.as_ref().filter(|long| self.clock.0 - long.at.0 > STALL_NS_MAX || random.one_in(5)) else {
            return false;
        };
        let (node, ends) = (long.node, long.end <= self.clock);
        let Some(stamped) = self.disks.nodes.get(&node).map(|node| node.changed) else {
            self.long = None;
            return false;
        };
        self.write_to(node, random);
        let written = self.disks.nodes.get_mut(&node).expect("just written to");
        written.changed = stamped;
        written.body.changing().modified = stamped;
        if let Some(Captured::Operation { touched, .. }) = self.ring.last_mut() {
            *touched = vec![(node, stamped)];
        }
        self.long = Some(LongWrite { at: self.clock, ..self.long.take().expect("just seen") }).filter(|_| !ends);
        true
    }

    pub(super) fn write(&mut self, random: &mut Random) {
        let Some(node) = random.pick(&self.files()) else { return };
        self.write_to(node, random);
    }

    pub(super) fn write_to(&mut self, node: NodeId, random: &mut Random) {
        let mut offset = random.below(3000) as usize;
        let mut data = vec![random.next() as u8; 1 + random.below(900) as usize];
        let Some(body) = self.change(node) else { return };
        if random.one_in(2) && !body.content.is_empty() {
            // A page that is there, with little changed in it; the same page often.
            offset = (random.below(body.content.len() as u64) / 256 * 256) as usize;
            data = body.content[offset..body.content.len().min(offset + 256 + random.below(2) as usize * 256)].to_vec();
            for _ in 0..random.below(4) {
                let at = random.below(data.len() as u64) as usize;
                data[at] = random.next() as u8;
            }
        }
        write_at(&mut body.content, offset, &data);
        self.tell(Operation::Write { node, offset: ByteOffset(offset as u64), data });
    }

    pub(super) fn resize(&mut self, random: &mut Random) {
        let Some(node) = random.pick(&self.files()) else { return };
        let size = random.below(4000);
        let Some(body) = self.change(node) else { return };
        body.content.resize(size as usize, 0);
        self.tell(Operation::Truncate { node, size: ByteLen(size) });
    }

    /// Zero, punch, allocate.
    pub(super) fn fill(&mut self, random: &mut Random) {
        let Some(node) = random.pick(&self.files()) else { return };
        let (at, length) = (random.below(3000) as usize, 1 + random.below(900) as usize);
        let keep_size = random.one_in(2);
        let kind = random.below(3);
        let Some(body) = self.change(node) else { return };
        if kind != 1 && !keep_size && body.content.len() < at + length {
            body.content.resize(at + length, 0);
        }
        if kind < 2 {
            zero_at(&mut body.content, at, length);
        }
        let (offset, len) = (ByteOffset(at as u64), ByteLen(length as u64));
        self.tell(match kind {
            0 => Operation::Zero { node, offset, len, keep_size },
            1 => Operation::Punch { node, offset, len },
            _ => Operation::Allocate { node, offset, len, keep_size },
        });
    }

    pub(super) fn shift(&mut self, random: &mut Random) {
        let Some(node) = random.pick(&self.files()) else { return };
        if self.disks.nodes[&node].body.content.len() < 64 {
            return;
        }
        let Some(body) = self.change(node) else { return };
        let content = &mut body.content;
        let at = random.below(content.len() as u64 / 2) as usize;
        let length = 1 + random.below(content.len() as u64 / 4) as usize;
        let (offset, len) = (ByteOffset(at as u64), ByteLen(length as u64));
        let operation = if random.one_in(2) {
            content.drain(at..at + length);
            Operation::Collapse { node, offset, len }
        } else {
            content.splice(at..at, vec![0; length]);
            Operation::Insert { node, offset, len }
        };
        self.tell(operation);
    }

    /// Reflink: a range of one file becomes a range of another, or of the same.
    pub(super) fn clone_range(&mut self, random: &mut Random) {
        let (Some(origin), Some(node)) = (random.pick(&self.files()), random.pick(&self.files())) else { return };
        let content = &self.disks.nodes[&origin].body.content;
        if content.is_empty() {
            return;
        }
        let from = random.below(content.len() as u64) as usize;
        let length = 1 + random.below((content.len() - from) as u64) as usize;
        let piece = content[from..from + length].to_vec();
        let to = random.below(3000) as usize;
        // The kernel refuses another volume, and ranges of one file that overlap.
        if origin.volume != node.volume || origin == node && to < from + length && from < to + length {
            return;
        }
        let Some(body) = self.change(node) else { return };
        write_at(&mut body.content, to, &piece);
        let (origin_offset, offset, len) = (ByteOffset(from as u64), ByteOffset(to as u64), ByteLen(length as u64));
        self.tell(Operation::CloneRange { origin, origin_offset, node, offset, len });
    }
}
