//! Digests of content: which blocks of a file the replica has otherwise than the source had them at this place of the stream.
//!
//! Comparing changes nothing. A match is worth what the data would have been, also in a redo, where the replica may be ahead: what is there is there, and
//! everything behind this item is in the redo as well. A block that cannot be read, or that the file does not reach, differs.

use super::fds::Fd;
use super::{Applier, Done};
use rustix::fd::AsFd;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use standin_inode::extents::never_written;
use standin_model::{BlockSet, DIGEST_BLOCK_BYTES_MAX, Differs, Digest, OpSeq, Operation};

/// Kept until somebody takes them, which happens after each segment; what does not fit is lost, and the agent sends the data.
pub const DIFFERS_MAX: usize = 64 * 1024;

impl Applier {
    /// Answers since the last call, in the order of their items. Whoever passes them on does so before he tells that the items are applied.
    pub fn take_differs(&mut self) -> Vec<Differs> {
        std::mem::take(&mut self.differs)
    }

    pub(super) fn compare_digests(&mut self, seq: OpSeq, operation: &Operation) -> Done {
        let Operation::MirrorDigests { node, offset, block, digests, len } = operation else { return Ok(()) };
        let fd = self.need_file(*node)?;
        let blocks = match &fd {
            Some(fd) => differing(fd, offset.0, len.0, *block, digests),
            None => (0..digests.len()).map(|block| block as u8).collect(),
        };
        if self.differs.len() < DIFFERS_MAX {
            self.differs.push(Differs { seq, blocks });
        }
        Ok(())
    }
}

/// Holes are of whole blocks of the file system, which no one of ours has smaller.
const HOLE_BYTES: usize = 512;

/// The codec has seen to it that there are at most 256 blocks of at most 64 KiB.
fn differing(fd: &Fd, offset: u64, len: u64, block: u32, digests: &[Digest]) -> BlockSet {
    let mut bytes = vec![0; block.min(DIGEST_BLOCK_BYTES_MAX) as usize];
    let mut is_same = |(index, digest): &(usize, &Digest)| {
        let from = *index as u64 * u64::from(block);
        let want = u64::from(block).min(len.saturating_sub(from)) as usize;
        let Some(bytes) = bytes.get_mut(..want) else { return false };
        let at = offset.saturating_add(from);
        let is_equal = read_whole(fd, at, bytes).is_ok_and(|whole| whole) && Digest::of_content(bytes) == **digest;
        // Only content that is there has a digest: zeros that were written, where here is none.
        is_equal && !(bytes.chunks(HOLE_BYTES).any(is_zero) && lacks_content(fd, at, want as u64))
    };
    digests.iter().enumerate().filter(|block| !is_same(block)).map(|(index, _)| index as u8).collect()
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Whether something in the range is a hole, or reserved and never written. The end of the file is neither.
fn lacks_content(fd: &Fd, offset: u64, len: u64) -> bool {
    let end = offset.saturating_add(len);
    let is_hole = rustix::fs::seek(fd, SeekFrom::Hole(offset)).is_ok_and(|hole| hole < end);
    is_hole || never_written(fd.as_fd(), offset..end).is_ok_and(|blanks| !blanks.is_empty())
}

/// False where the file ends before.
fn read_whole(fd: &Fd, offset: u64, bytes: &mut [u8]) -> Result<bool, Errno> {
    let mut done = 0;
    while done < bytes.len() {
        let got = rustix::io::pread(fd, &mut bytes[done..], offset.saturating_add(done as u64))?;
        if got == 0 {
            return Ok(false);
        }
        done += got;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    #[test]
    fn a_hole_is_not_zeros_that_were_written() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * 4096).unwrap();
        let fd: Fd = Arc::new(file.into());
        rustix::io::pwrite(&fd, &[0; 4096], 4096).unwrap();
        let zeros = Digest::of_content(&[0; 4096]);
        assert_eq!(differing(&fd, 0, 4 * 4096, 4096, &[zeros; 4]).iter().collect::<Vec<_>>(), [0, 2, 3]);
        rustix::io::pwrite(&fd, &[0; 4 * 4096], 0).unwrap();
        assert_eq!(differing(&fd, 0, 4 * 4096, 4096, &[zeros; 4]).iter().count(), 0);
    }

    #[test]
    fn reserved_blocks_are_not_zeros_that_were_written() {
        // The temporary folder may be a tmpfs, which has no such extents.
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 4 * 4096).unwrap();
        let fd: Fd = Arc::new(file.into());
        rustix::io::pwrite(&fd, &[0; 4096], 4096).unwrap();
        let zeros = Digest::of_content(&[0; 4096]);
        for _ in 0..2 {
            // The second time its pages are in the cache.
            assert_eq!(differing(&fd, 0, 4 * 4096, 4096, &[zeros; 4]).iter().collect::<Vec<_>>(), [0, 2, 3]);
        }
    }

    #[test]
    fn a_block_differs_by_its_bytes_or_by_the_end_of_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|at| (at % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let fd: Fd = Arc::new(file.into());
        let check = |source: &[u8], offset: usize, expect: &[u8]| {
            let source = &source[offset..];
            let digests: Vec<Digest> = source.chunks(4096).map(Digest::of_content).collect();
            let found = differing(&fd, offset as u64, source.len() as u64, 4096, &digests);
            assert_eq!(found.iter().collect::<Vec<_>>(), expect);
        };
        check(&content, 0, &[]);
        check(&content, 4096, &[]);
        check(&content[..9000], 0, &[]);
        let longer = [&content[..], b"x"].concat();
        check(&longer, 0, &[2]);
        check(&[&content[..], &[0; 5000]].concat(), 0, &[2, 3]);
        let mut other = content.clone();
        other[4096] ^= 1;
        check(&other, 0, &[1]);
        check(&other, 4096, &[0]);
    }
}
