//! Content: writes, holes, sizes, and cloned ranges.
//!
//! The stream says what every byte is, and nothing else changes with it: the kernel drops file capabilities from a file that is written,
//! so that they are put back (on the source their loss is an operation of its own). Set-id bits stay, because the appliance may keep them.
//!
//! A clone is idempotent only while its origin stays as it was. So a node that a clone has read gets a durable mark before it changes or
//! loses a name; redo then never meets a clone whose origin is ahead of it. Ranges of many clones in a row share one mark.

use super::fds::Fd;
use super::table::fact;
use super::{Applier, Done, sys};
use rustix::fd::AsFd;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use standin_inode::extents::reserved;
use standin_model::{ByteLen, ByteOffset, NodeId, NodeKind, Operation};

const CAPABILITY: &[u8] = b"security.capability";
/// Copies by reading and zeroing by writing go in pieces of this size.
const PIECE_BYTES: usize = 256 * 1024;
/// Holes are worth keeping in this unit.
const BLOCK_BYTES: u64 = 4096;

impl Applier {
    pub(super) fn content(&mut self, operation: &Operation) -> Done {
        let Some(node) = operation.node() else { return Ok(()) };
        let Some(fd) = self.need_file(node)? else { return Ok(()) };
        self.guard_clone_origin(node)?;
        self.counters.content_bytes += operation.content_len();
        self.keeping_capability(node, &fd, |fd| execute(fd, operation))
    }

    pub(super) fn need_file(&mut self, node: NodeId) -> Result<Option<Fd>, super::ApplyError> {
        match self.kind(node) {
            Some(NodeKind::File) | None => self.need(node),
            Some(_) => {
                self.want(node);
                Ok(None)
            }
        }
    }

    /// Makes a mark if a clone since the last one has read this node.
    pub(super) fn guard_clone_origin(&mut self, node: NodeId) -> Done {
        if self.clone_origins.contains(&node) { self.mark_with_intent(self.intent) } else { Ok(()) }
    }

    pub(super) fn keeping_capability(&mut self, node: NodeId, fd: &Fd, work: impl FnOnce(&Fd) -> Result<(), Errno>) -> Done {
        let capable = self.table.get(node).is_some_and(|entry| entry.has(fact::CAPABLE));
        let kept = if capable { sys::get_xattr(fd, CAPABILITY) } else { Ok(None) };
        let result = kept.and_then(|capability| {
            work(fd)?;
            capability.map_or(Ok(()), |value| sys::set_xattr(fd, CAPABILITY, &value))
        });
        self.touch(node);
        self.settle(node, "changing content", result).map(drop)
    }

    pub(super) fn clone_range(&mut self, origin: NodeId, from: ByteOffset, node: NodeId, to: ByteOffset, len: ByteLen) -> Done {
        let Some(fd) = self.need_file(node)? else { return Ok(()) };
        self.guard_clone_origin(node)?;
        let doubtful = self.wanted.contains(&origin) || self.suspects.contains(&origin) || self.buried.contains_key(&origin);
        let doubtful = doubtful || self.unproven.contains(origin);
        let Some(source) = self.need_file(origin)?.filter(|_| !doubtful) else {
            // The range cannot be had from here, or cannot be trusted, so that the whole file has to come again.
            self.doubt(node);
            return Ok(());
        };
        self.keeping_capability(node, &fd, |fd| match sys::clone_range(&source, from.0, len.0, fd, to.0) {
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::XDEV | Errno::NOTTY) => copy_range(&source, from.0, fd, to.0, len.0),
            other => other,
        })?;
        self.clone_origins.insert(origin);
        Ok(())
    }
}

fn execute(fd: &Fd, operation: &Operation) -> Result<(), Errno> {
    use Operation::*;
    match operation {
        Write { offset, data, .. } | MirrorData { offset, data, .. } => write_all(fd, data, offset.0),
        Truncate { size, .. } => rustix::fs::ftruncate(fd, size.0),
        Zero { len, .. } | Punch { len, .. } | Allocate { len, .. } | MirrorHole { len, .. } if len.0 == 0 => Ok(()),
        Zero { offset, len, keep_size, .. } => zero(fd, offset.0, len.0, *keep_size),
        Punch { offset, len, .. } => punch(fd, offset.0, len.0),
        MirrorHole { offset, len, .. } => show_hole(fd, offset.0, len.0),
        Allocate { offset, len, keep_size, .. } => allocate(fd, offset.0, len.0, *keep_size),
        _ => Ok(()),
    }
}

pub(super) fn write_all(fd: &Fd, mut data: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        let written = rustix::io::pwrite(fd, data, offset)?;
        if written == 0 {
            return Err(Errno::IO);
        }
        data = data.get(written..).unwrap_or_default();
        offset += written as u64;
    }
    Ok(())
}

fn size(fd: &Fd) -> Result<u64, Errno> {
    Ok(u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0))
}

/// Makes the file at least so long.
fn reach(fd: &Fd, end: u64) -> Result<(), Errno> {
    if size(fd)? < end { rustix::fs::ftruncate(fd, end) } else { Ok(()) }
}

/// Writes zeros where the file system cannot do better, within the size unless it may grow.
fn write_zeros(fd: &Fd, offset: u64, len: u64, keep_size: bool) -> Result<(), Errno> {
    let end = offset.saturating_add(len);
    let end = if keep_size { end.min(size(fd)?) } else { end };
    let zeros = [0u8; 64 * 1024];
    let mut at = offset;
    while at < end {
        let piece = zeros.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        write_all(fd, &zeros[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

/// Of a block that is punched in part the rest is zeroed, and btrfs does so now and then where there is a hole already, which ends that. So holes are left out.
fn punch(fd: &Fd, offset: u64, len: u64) -> Result<(), Errno> {
    let (mut start, mut end) = (offset, offset.saturating_add(len));
    if start % BLOCK_BYTES != 0 && is_hole(fd, start / BLOCK_BYTES * BLOCK_BYTES)? {
        start = start.next_multiple_of(BLOCK_BYTES);
    }
    if end % BLOCK_BYTES != 0 && is_hole(fd, end / BLOCK_BYTES * BLOCK_BYTES)? {
        end = end / BLOCK_BYTES * BLOCK_BYTES;
    }
    if start >= end {
        return Ok(());
    }
    match rustix::fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, end - start) {
        Err(Errno::OPNOTSUPP) => write_zeros(fd, start, end - start, true),
        other => other,
    }
}

/// Whether the block has neither content nor blocks in reserve.
fn is_hole(fd: &Fd, block: u64) -> Result<bool, Errno> {
    let end = block.saturating_add(BLOCK_BYTES);
    let has_data = match rustix::fs::seek(fd, SeekFrom::Data(block)) {
        Ok(data) => data < end,
        Err(Errno::NXIO) => false,
        Err(errno) => return Err(errno),
    };
    Ok(!has_data && reserved(fd.as_fd(), block..end)?.is_empty())
}

/// The hole was within the file when it was read: the write that had made the file so long may have been left out, because this read was to show it.
fn show_hole(fd: &Fd, offset: u64, len: u64) -> Result<(), Errno> {
    let end = offset.saturating_add(len);
    // The last block as a whole: of a part of one that is reserved, btrfs would write the zeros.
    let blocks_end = if end >= size(fd)? { end.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(end) } else { end };
    punch(fd, offset, blocks_end - offset)?;
    reach(fd, end)
}

fn zero(fd: &Fd, offset: u64, len: u64, keep_size: bool) -> Result<(), Errno> {
    let keep = if keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
    match rustix::fs::fallocate(fd, FallocateFlags::ZERO_RANGE | keep, offset, len) {
        Err(Errno::OPNOTSUPP) => write_zeros(fd, offset, len, keep_size),
        other => other,
    }
}

/// Allocation is a promise of space, of which only the size shows; a file system without it gets the size.
fn allocate(fd: &Fd, offset: u64, len: u64, keep_size: bool) -> Result<(), Errno> {
    let keep = if keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
    match rustix::fs::fallocate(fd, keep, offset, len) {
        Err(Errno::OPNOTSUPP) if keep_size => Ok(()),
        Err(Errno::OPNOTSUPP) => reach(fd, offset.saturating_add(len)),
        other => other,
    }
}

fn copy_range(origin: &Fd, from: u64, fd: &Fd, to: u64, len: u64) -> Result<(), Errno> {
    let mut piece = vec![0u8; PIECE_BYTES];
    let mut done = 0;
    while done < len {
        let want = piece.len().min(usize::try_from(len - done).unwrap_or(usize::MAX));
        let got = rustix::io::pread(origin, &mut piece[..want], from.saturating_add(done))?;
        if got == 0 {
            break;
        }
        write_all(fd, &piece[..got], to.saturating_add(done))?;
        done += got as u64;
    }
    Ok(())
}
