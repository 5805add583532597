//! File content as data and holes, by SEEK_DATA and SEEK_HOLE.

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use standin_mirror::{Chunk, Content};
use std::os::fd::BorrowedFd;

/// Holes are worth telling only in whole blocks.
const ALIGNMENT: u64 = 4096;
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
            content.chunks.push(Chunk::Hole { offset: content.next, len: data - content.next });
            content.next = data;
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
        content.chunks.push(Chunk::Data { offset: content.next, data: target[..got].to_vec() });
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
        content.chunks.push(Chunk::Hole { offset: content.next, len: size - content.next });
        content.next = size;
    }
    content.end = true;
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
                    Chunk::Hole { offset, len } => {
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
    fn an_empty_file_ends_at_once() {
        assert_eq!(all(&tempfile::tempfile().unwrap(), 4096), (vec![], 0));
    }
}
