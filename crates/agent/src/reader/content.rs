//! File content as data, holes and reserved blocks, by SEEK_DATA, SEEK_HOLE and FIEMAP.

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use standin_inode::extents::{Blank, never_written, reserved};
use standin_mirror::{Chunk, Content};
use std::os::fd::BorrowedFd;

/// Holes are worth telling only in whole blocks.
const ALIGNMENT: u64 = 4096;
/// No file reaches so far (the largest of xfs ends one byte below 2^63, and its last blocks are never ours), and O_DIRECT takes it as well.
const BEHIND_EVERY_FILE: u64 = 1 << 62;
/// One read; also the largest mirror item.
const READ_BYTES_MAX: usize = 1024 * 1024;
/// Data and hole runs per call, so that a badly fragmented file cannot keep the pump.
const RUNS_MAX: usize = 256;

/// A read buffer whose start suits O_DIRECT.
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    pub fn new() -> AlignedBuffer {
        let bytes = vec![0; READ_BYTES_MAX + ALIGNMENT as usize];
        let start = bytes.as_ptr().align_offset(ALIGNMENT as usize);
        AlignedBuffer { bytes, start }
    }
    fn slice(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

/// Reads from `offset`, which is block-aligned unless the file was read to there, until the budget is used or the file ends.
pub fn read(fd: BorrowedFd<'_>, offset: u64, budget: usize, buffer: &mut AlignedBuffer) -> Result<Content, Errno> {
    wait_for_writer(fd, buffer)?;
    let mut content = Content { chunks: Vec::new(), next: offset, end: false };
    let mut left = budget.max(ALIGNMENT as usize);
    for _ in 0..RUNS_MAX {
        let data = match rustix::fs::seek(fd, SeekFrom::Data(content.next)) {
            Ok(data) => data / ALIGNMENT * ALIGNMENT,
            Err(Errno::NXIO) => {
                hole_to_the_end(fd, &mut content)?;
                return Ok(content);
            }
            Err(errno) => return Err(errno),
        };
        if data > content.next {
            push_hole(fd, data, &mut content)?;
        }
        let run_end = rustix::fs::seek(fd, SeekFrom::Hole(content.next))?;
        if !read_run(fd, run_end, &mut left, buffer, &mut content)? {
            return Ok(content);
        }
        if left == 0 {
            return Ok(content);
        }
    }
    Ok(content)
}

/// A page of a write(2) is captured just before the file's size and its page's state tell of it. Whoever holds the file's lock after that sees both: ext4 and btrfs
/// take it for SEEK_DATA, xfs only for a read, even of nothing.
fn wait_for_writer(fd: BorrowedFd<'_>, buffer: &mut AlignedBuffer) -> Result<(), Errno> {
    rustix::io::pread(fd, buffer.slice(ALIGNMENT as usize), BEHIND_EVERY_FILE).map(drop)
}

/// Reads one run of data; `false` when the file ended.
fn read_run(fd: BorrowedFd<'_>, run_end: u64, left: &mut usize, buffer: &mut AlignedBuffer, content: &mut Content) -> Result<bool, Errno> {
    while content.next < run_end && *left > 0 {
        let whole = (run_end - content.next).next_multiple_of(ALIGNMENT);
        let want = whole.min(left.next_multiple_of(ALIGNMENT as usize) as u64).min(READ_BYTES_MAX as u64) as usize;
        let target = buffer.slice(want);
        let got = rustix::io::pread(fd, &mut *target, content.next)?;
        if got == 0 {
            content.end = true;
            return Ok(false);
        }
        push_data(fd, content.next, &target[..got], content)?;
        content.next += got as u64;
        *left = left.saturating_sub(got);
        if got < want && (content.next % ALIGNMENT != 0) {
            content.end = true;
            return Ok(false);
        }
    }
    Ok(true)
}

fn hole_to_the_end(fd: BorrowedFd<'_>, content: &mut Content) -> Result<(), Errno> {
    let size = rustix::fs::fstat(fd)?.st_size as u64;
    if size > content.next {
        push_hole(fd, size, content)?;
    }
    content.end = true;
    Ok(())
}

/// From where the read stands to `end` nothing is written; some of it may be reserved.
fn push_hole(fd: BorrowedFd<'_>, end: u64, content: &mut Content) -> Result<(), Errno> {
    let mut at = content.next;
    for range in reserved(fd, content.next..end)? {
        if range.start > at {
            content.chunks.push(Chunk::Hole { offset: at, len: range.start - at });
        }
        content.chunks.push(Chunk::Allocated { offset: range.start, len: range.end - range.start });
        at = range.end;
    }
    if end > at {
        content.chunks.push(Chunk::Hole { offset: at, len: end - at });
    }
    content.next = end;
    Ok(())
}

/// Zeros in the page cache over what was never written are not data: somebody only looked. Whatever is written there later is in the stream behind this read.
fn push_data(fd: BorrowedFd<'_>, offset: u64, data: &[u8], content: &mut Content) -> Result<(), Errno> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let has_zeros = data.chunks(ALIGNMENT as usize).any(is_zero);
    let blanks = if has_zeros { never_written(fd, offset..offset + data.len() as u64)? } else { Vec::new() };
    let kind_of = |at: usize, block: &[u8]| {
        let range = offset + at as u64..offset + (at + block.len()) as u64;
        let holds = |blank: &&Blank| blank.range.start <= range.start && range.end <= blank.range.end;
        match blanks.iter().find(holds) {
            Some(blank) if is_zero(block) => Some(blank.is_reserved),
            _ => None,
        }
    };
    // Runs of blocks of one kind become one chunk each.
    let mut push = |from: usize, to: usize, blank: Option<bool>| {
        let (at, len) = (offset + from as u64, (to - from) as u64);
        match blank {
            _ if len == 0 => {}
            Some(true) => content.chunks.push(Chunk::Allocated { offset: at, len }),
            Some(false) => content.chunks.push(Chunk::Hole { offset: at, len }),
            None => content.chunks.push(Chunk::Data { offset: at, data: data[from..to].to_vec() }),
        }
    };
    let (mut start, mut kind) = (0, None);
    for (index, block) in data.chunks(ALIGNMENT as usize).enumerate() {
        let at = index * ALIGNMENT as usize;
        let this = kind_of(at, block);
        if this != kind {
            push(start, at, kind);
            (start, kind) = (at, this);
        }
    }
    push(start, data.len(), kind);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    fn all(file: &File, budget: usize) -> (Vec<u8>, u64) {
        let (mut bytes, mut holes, mut at, mut buffer) = (Vec::new(), 0, 0, AlignedBuffer::new());
        loop {
            let content = read(file.as_fd(), at, budget, &mut buffer).unwrap();
            for chunk in content.chunks {
                match chunk {
                    Chunk::Data { offset, data } => {
                        assert_eq!(offset, bytes.len() as u64);
                        bytes.extend(data);
                    }
                    Chunk::Hole { offset, len } | Chunk::Allocated { offset, len } => {
                        assert_eq!(offset, bytes.len() as u64);
                        holes += len;
                        bytes.resize((offset + len) as usize, 0);
                    }
                }
            }
            at = content.next;
            if content.end {
                return (bytes, holes);
            }
        }
    }

    #[test]
    fn sparse_files_come_back_whole() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 5000], 0).unwrap();
        file.write_all_at(&[9; 100], 3 << 20).unwrap();
        file.set_len(5 << 20).unwrap();
        let mut expect = vec![0; 5 << 20];
        expect[..5000].fill(7);
        expect[3 << 20..(3 << 20) + 100].fill(9);
        for budget in [1, 4096, 100_000, 10 << 20] {
            let (bytes, holes) = all(&file, budget);
            assert!(bytes == expect, "budget {budget}");
            assert!(holes > 4 << 20);
        }
    }

    #[test]
    fn reserved_blocks_are_told_whether_cached_or_not() {
        // The temporary folder may be a tmpfs, which has no such extents.
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 20).unwrap();
        file.write_all_at(&[7; 4096], 8192).unwrap();
        let told = |file: &File| {
            let content = read(file.as_fd(), 0, 10 << 20, &mut AlignedBuffer::new()).unwrap();
            let mut kinds: Vec<(char, u64, u64)> = Vec::new();
            for chunk in content.chunks {
                let this = match chunk {
                    Chunk::Data { offset, data } => ('d', offset, data.len() as u64),
                    Chunk::Hole { offset, len } => ('h', offset, len),
                    Chunk::Allocated { offset, len } => ('a', offset, len),
                };
                match kinds.last_mut() {
                    Some(last) if last.0 == this.0 && last.1 + last.2 == this.1 => last.2 += this.2,
                    _ => kinds.push(this),
                }
            }
            kinds
        };
        let expect = vec![('a', 0, 8192), ('d', 8192, 4096), ('a', 12288, (1 << 20) - 12288)];
        assert_eq!(told(&file), expect);
        // Zeros that somebody wrote are data, also while they wait for writeback.
        file.write_all_at(&[0; 4096], 40960).unwrap();
        let expect = vec![('a', 0, 8192), ('d', 8192, 4096), ('a', 12288, 28672), ('d', 40960, 4096), ('a', 45056, (1 << 20) - 45056)];
        assert_eq!(told(&file), expect);
        // Reading puts zero pages in the cache, which SEEK_DATA takes for data on ext4.
        let mut all = vec![0; 1 << 20];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(told(&file), expect);
    }

    #[test]
    fn an_empty_file_ends_at_once() {
        assert_eq!(all(&tempfile::tempfile().unwrap(), 4096), (vec![], 0));
    }
}
