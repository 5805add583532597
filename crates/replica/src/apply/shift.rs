//! Collapse and insert: the only operations that redo must not repeat. A mark before them carries the intent, a mark after them ends it.
//!
//! After a crash in between, the size tells whether it happened: it always changes by the range's length. Where the machine itself went
//! down, an unchanged size may also hide a shift that was half done, so that the node is wanted.

use super::record::Intent;
use super::{Applier, Done};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use standin_model::{ByteLen, ByteOffset, NodeId, OpSeq};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Collapse,
    Insert,
}

enum Verdict {
    Happened,
    DidNot,
    CannotTell,
}

impl Applier {
    pub(super) fn shift(&mut self, seq: OpSeq, node: NodeId, direction: Direction, offset: ByteOffset, len: ByteLen) -> Done {
        let Some(fd) = self.need_file(node)? else { return Ok(()) };
        let size = rustix::fs::fstat(&fd).map(|stat| u64::try_from(stat.st_size).unwrap_or(0));
        let Some(size) = self.settle(node, "reading a size", size)? else { return Ok(()) };
        if let Some(intent) = self.intent.filter(|intent| intent.seq == seq) {
            match judge(&intent, direction, size, len.0) {
                Verdict::Happened => return Ok(()),
                Verdict::DidNot => {}
                Verdict::CannotTell => {
                    self.want(node);
                    return Ok(());
                }
            }
        } else {
            self.mark_with_intent(Some(Intent { seq, node, size_before: size, boot: boot_id() }))?;
        }
        let mode = match direction {
            Direction::Collapse => FallocateFlags::COLLAPSE_RANGE,
            Direction::Insert => FallocateFlags::INSERT_RANGE,
        };
        self.keeping_capability(node, &fd, |fd| rustix::fs::fallocate(fd, mode, offset.0, len.0))
    }
}

fn judge(intent: &Intent, direction: Direction, size: u64, len: u64) -> Verdict {
    let after = match direction {
        Direction::Collapse => intent.size_before.checked_sub(len),
        Direction::Insert => intent.size_before.checked_add(len),
    };
    match size {
        _ if Some(size) == after => Verdict::Happened,
        // The kernel finishes the call even if the process is killed.
        _ if size == intent.size_before && intent.boot != 0 && intent.boot == boot_id() => Verdict::DidNot,
        _ => Verdict::CannotTell,
    }
}

/// Tells boots of the appliance apart; 0 where the kernel does not say.
fn boot_id() -> u64 {
    let read = || -> Result<String, Errno> {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    let digits: String = read().unwrap_or_default().chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_model::VolumeId;

    #[test]
    fn the_size_tells_what_happened() {
        let node = NodeId { volume: VolumeId(0), subvolume: 0, inode: 9, generation: 1 };
        let intent = Intent { seq: OpSeq(7), node, size_before: 8192, boot: boot_id() };
        let other_boot = Intent { boot: !boot_id(), ..intent };
        assert!(matches!(judge(&intent, Direction::Collapse, 4096, 4096), Verdict::Happened));
        assert!(matches!(judge(&intent, Direction::Insert, 12288, 4096), Verdict::Happened));
        assert!(matches!(judge(&intent, Direction::Insert, 8192, 4096), Verdict::DidNot));
        assert!(matches!(judge(&other_boot, Direction::Insert, 8192, 4096), Verdict::CannotTell));
        assert!(matches!(judge(&intent, Direction::Collapse, 100, 4096), Verdict::CannotTell));
    }
}
