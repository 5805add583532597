//! Duplicates a file: by sharing its blocks where the datastore can (XFS, btrfs), otherwise by copying what is allocated.

use super::DiskError;
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether files below a directory can share blocks. Asks with two nameless files, so that nothing is left behind.
pub fn can_reflink(directory: &Path) -> bool {
    let nameless = || {
        let fd = rustix::fs::open(directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::ftruncate(&fd, 4096)?;
        rustix::io::write(&fd, &[1; 4096])?;
        Ok::<_, Errno>(fd)
    };
    let tried = nameless().and_then(|from| nameless().and_then(|to| rustix::fs::ioctl_ficlone(&to, &from)));
    tried.is_ok()
}

/// Bytes that a file takes on its disk.
pub fn allocated_bytes(path: &Path) -> Result<u64, DiskError> {
    let metadata = std::fs::metadata(path).map_err(DiskError::io(path, "measuring"))?;
    // In units of 512 bytes whatever the block size is (stat(2)).
    Ok(metadata.blocks().saturating_mul(512))
}

/// Makes `to`, which must not exist, equal to `from`, and durable. Returns the bytes that were copied; 0 where blocks are shared.
pub fn duplicate(from: &Path, to: &Path) -> Result<u64, DiskError> {
    let source = File::open(from).map_err(DiskError::io(from, "opening"))?;
    let target = File::options().read(true).write(true).create_new(true).open(to).map_err(DiskError::io(to, "creating"))?;
    let copied = match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => 0,
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            copy_sparse(&source, &target).map_err(|errno| DiskError::io(to, "copying the replica's disk to it")(errno.into()))?
        }
        Err(errno) => return Err(DiskError::io(to, "sharing the replica's blocks with it")(errno.into())),
    };
    target.sync_all().map_err(DiskError::io(to, "writing down"))?;
    Ok(copied)
}

/// Copies the ranges that hold data; holes stay holes.
fn copy_sparse(source: &File, target: &File) -> Result<u64, Errno> {
    let length = rustix::fs::fstat(source)?.st_size as u64;
    rustix::fs::ftruncate(target, length)?;
    copy_data(source, target, 0, length, 0)
}

/// Copies what `source` has from `begin` to `end` to the place `to` of `target`, where nothing may be, but for holes. Returns the bytes of it.
pub(super) fn copy_data(source: &File, target: &File, begin: u64, end: u64, to: u64) -> Result<u64, Errno> {
    let mut copied = 0;
    each_data(source, begin, end, |from, until| {
        copied += until - from;
        copy_range(source, target, from, until, to + (from - begin))
    })?;
    Ok(copied)
}

/// Bytes from `begin` to `end` that are no holes.
pub(super) fn data_bytes(source: &File, begin: u64, end: u64) -> Result<u64, Errno> {
    let mut bytes = 0;
    each_data(source, begin, end, |from, until| {
        bytes += until - from;
        Ok(())
    })?;
    Ok(bytes)
}

fn each_data(source: &File, begin: u64, end: u64, mut each: impl FnMut(u64, u64) -> Result<(), Errno>) -> Result<(), Errno> {
    let mut at = begin;
    while at < end {
        let from = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(from) if from < end => from,
            // Only a hole is left.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let until = rustix::fs::seek(source, SeekFrom::Hole(from))?.min(end);
        each(from, until)?;
        at = until;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, begin: u64, end: u64, to: u64) -> Result<(), Errno> {
    const PIECE_BYTES: u64 = 64 << 20;
    let (mut read_at, mut write_at) = (begin, to);
    while read_at < end {
        let piece = usize::try_from((end - read_at).min(PIECE_BYTES)).expect("a piece fits");
        match rustix::fs::copy_file_range(source, Some(&mut read_at), target, Some(&mut write_at), piece) {
            // The file became shorter: nothing may do that to a disk that is held still.
            Ok(0) => return Err(Errno::IO),
            Ok(_) | Err(Errno::INTR) => {}
            // Between file systems of different types.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                return copy_by_hand(source, target, read_at, end, write_at);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, mut at: u64, end: u64, mut to: u64) -> Result<(), Errno> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    while at < end {
        let piece = usize::try_from((end - at).min(buffer.len() as u64)).expect("a piece fits");
        let moved = source.read_exact_at(&mut buffer[..piece], at).and_then(|()| target.write_all_at(&buffer[..piece], to));
        moved.map_err(|error| errno(&error))?;
        at += piece as u64;
        to += piece as u64;
    }
    Ok(())
}

/// Zeroes for file systems that know no holes.
pub(super) fn write_zeroes(target: &File, mut at: u64, end: u64) -> Result<(), Errno> {
    use std::os::unix::fs::FileExt;
    let zeroes = vec![0; 1 << 20];
    while at < end {
        let piece = usize::try_from((end - at).min(zeroes.len() as u64)).expect("a piece fits");
        target.write_all_at(&zeroes[..piece], at).map_err(|error| errno(&error))?;
        at += piece as u64;
    }
    Ok(())
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_sparse_file_stays_sparse_and_equal() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for at in [0u64, 5 << 20, (64 << 20) - 10] {
            file.write_all_at(b"0123456789", at).unwrap();
        }
        // Not written down yet: what only the page cache has is copied too.
        let copied = duplicate(&from, &to).unwrap();
        assert!(copied <= 1 << 20, "{copied} bytes for three blocks");
        assert!(allocated_bytes(&to).unwrap() <= 1 << 20);
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert!(duplicate(&from, &to).is_err(), "nothing is overwritten");
        assert_eq!(copied == 0, can_reflink(dir.path()));
        let by_hand = dir.path().join("by-hand");
        let target = File::create(&by_hand).unwrap();
        target.set_len(64 << 20).unwrap();
        copy_by_hand(&File::open(&from).unwrap(), &target, 3, 64 << 20, 3).unwrap();
        assert_eq!(std::fs::read(&from).unwrap()[3..], std::fs::read(&by_hand).unwrap()[3..]);
    }
}
