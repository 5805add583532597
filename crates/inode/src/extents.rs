//! Which parts of a file were never written: holes, and what is only reserved; `fallocate` makes such extents, and they read as zeros.
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

/// A part of a file that reads as zeros because nobody has written it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blank {
    pub range: Range<u64>,
    /// It has blocks; otherwise it is a hole.
    pub is_reserved: bool,
}

/// The parts of `range` that nobody has written, not even into the page cache: where something waits for writeback, that is done first. SEEK_DATA calls such
/// a part data while its pages are cached and it is reserved, or on xfs has blocks of its own in store for what is shared around it.
pub fn never_written(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Blank>, Errno> {
    let found = blanks(fd, range.clone())?;
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
    blanks(fd, range)
}

/// The reserved parts of `range`, in order.
pub fn reserved(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Range<u64>>, Errno> {
    Ok(blanks(fd, range)?.into_iter().filter(|blank| blank.is_reserved).map(|blank| blank.range).collect())
}

/// What has no written blocks, in order; of what is not written back yet that is not known. A file system without FIEMAP has none to tell.
fn blanks(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Blank>, Errno> {
    let mut found: Vec<Blank> = Vec::new();
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
        for extent in told {
            let (start, end) = (extent.logical.clamp(at, range.end), extent.logical.saturating_add(extent.length).min(range.end));
            note(&mut found, at..start, false);
            if extent.flags & EXTENT_UNWRITTEN != 0 {
                note(&mut found, start..end, true);
            }
            at = at.max(end);
        }
        if told.len() < EXTENTS || told.last().is_some_and(|last| last.flags & EXTENT_LAST != 0) {
            note(&mut found, at..range.end, false);
            break;
        }
    }
    Ok(found)
}

fn note(found: &mut Vec<Blank>, range: Range<u64>, is_reserved: bool) {
    if range.start < range.end {
        found.push(Blank { range, is_reserved });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    struct Mounted(tempfile::TempDir);

    impl Mounted {
        fn new() -> Result<Mounted, String> {
            let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
            let (image, point) = (folder.path().join("image"), folder.path().join("point"));
            let made = File::create(&image).and_then(|file| file.set_len(320 << 20)).and_then(|()| fs::create_dir(&point));
            made.map_err(|error| error.to_string())?;
            run(&["mkfs.xfs", "-q"], &[&image])?;
            run(&["mount", "-o", "loop"], &[&image, &point])?;
            Ok(Mounted(folder))
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = run(&["umount", "-l"], &[&self.0.path().join("point")]);
        }
    }

    fn run(words: &[&str], paths: &[&Path]) -> Result<(), String> {
        match Command::new(words[0]).args(&words[1..]).args(paths).output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("{}: {}", words[0], String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => Err(format!("{}: {error}", words[0])),
        }
    }

    /// A write to a shared file has xfs set 128 KiB aside for copies of what is around it.
    #[test]
    fn a_hole_beside_shared_blocks_stays_a_hole_when_its_pages_are_cached() {
        let mounted = match Mounted::new() {
            Ok(mounted) => mounted,
            Err(reason) => return eprintln!("skipped, because no xfs can be mounted here: {reason}"),
        };
        let at = |name: &str| mounted.0.path().join("point").join(name);
        let origin = File::create_new(at("origin")).unwrap();
        origin.write_all_at(&[7; 20_480], 0).unwrap();
        origin.write_all_at(&[7; 4_096], 32_768).unwrap();
        origin.set_len(800_000).unwrap();
        let clone = File::options().read(true).write(true).create_new(true).open(at("clone")).unwrap();
        rustix::fs::ioctl_ficlone(&clone, &origin).unwrap();
        clone.write_all_at(&[8; 4_096], 0).unwrap();
        clone.read_exact_at(&mut vec![0; 800_000], 0).unwrap();
        assert_eq!(rustix::fs::seek(&clone, rustix::fs::SeekFrom::Hole(0)), Ok(131_072), "this kernel sets nothing aside");
        let hole = |range| Blank { range, is_reserved: false };
        let blanks = || never_written(clone.as_fd(), 0..131_072).unwrap();
        assert_eq!(blanks(), [hole(20_480..32_768), hole(36_864..131_072)]);
        // Zeros that somebody wrote are content, also while they wait for writeback.
        clone.write_all_at(&[0; 4_096], 24_576).unwrap();
        assert_eq!(blanks(), [hole(20_480..24_576), hole(28_672..32_768), hole(36_864..131_072)]);
        rustix::fs::fallocate(&clone, rustix::fs::FallocateFlags::empty(), 65_536, 4_096).unwrap();
        let reserved = Blank { range: 65_536..69_632, is_reserved: true };
        assert_eq!(blanks()[2..], [hole(36_864..65_536), reserved, hole(69_632..131_072)]);
    }
}
