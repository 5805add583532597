//! Which parts of a file are reserved but never written: `fallocate` makes such extents, and they read as zeros.
//!
//! SEEK_DATA calls them data while a page of them is cached and holes otherwise, so it cannot tell; FIEMAP can.
#![allow(unsafe_code)] // FS_IOC_FIEMAP has no safe binding.

use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOWR('f', 11, struct fiemap)` of linux/fs.h; the structure's head is 32 bytes long.
const FS_IOC_FIEMAP: libc::c_ulong = 0xC020_660B;
/// linux/fiemap.h
const EXTENT_LAST: u32 = 0x1;
const EXTENT_UNWRITTEN: u32 = 0x800;
/// Extents asked for at a time: 56 bytes each.
const EXTENTS: usize = 64;
/// A file with more extents than this many questions tell in one range is taken as written from there on.
const QUESTIONS_MAX: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// The parts of `range` that nobody has written, not even into the page cache: where something waits for writeback, that is done first.
pub fn never_written(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Range<u64>>, Errno> {
    let found = unwritten(fd, range.clone())?;
    if found.is_empty() {
        return Ok(found);
    }
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let (offset, len) = (range.start as i64, (range.end - range.start) as i64);
    // SAFETY: the call takes no pointer.
    let result = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, flags) };
    if result != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    unwritten(fd, range)
}

/// The unwritten parts of `range`, in order. A file system without FIEMAP has none to tell.
pub fn unwritten(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Range<u64>>, Errno> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    for _ in 0..QUESTIONS_MAX {
        if at >= range.end {
            break;
        }
        let mut map = Map {
            start: at,
            length: range.end - at,
            flags: 0,
            mapped_extents: 0,
            extent_count: EXTENTS as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: the request reads and writes one `struct fiemap` with room for `extent_count` extents, which is what `Map` is.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP as _, &mut map) };
        if result != 0 {
            let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
            return if matches!(errno, Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) { Ok(found) } else { Err(errno) };
        }
        let told = map.extents.get(..map.mapped_extents as usize).unwrap_or_default();
        let Some(last) = told.last() else { break };
        for extent in told.iter().filter(|extent| extent.flags & EXTENT_UNWRITTEN != 0) {
            let (start, end) = (extent.logical.max(range.start), extent.logical.saturating_add(extent.length).min(range.end));
            if start < end {
                found.push(start..end);
            }
        }
        let next = last.logical.saturating_add(last.length);
        if last.flags & EXTENT_LAST != 0 || next <= at {
            break;
        }
        at = next;
    }
    Ok(found)
}
