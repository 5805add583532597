//! File system churn: random operations of every kind from a seed, on a small tree, by several threads at once.
//!
//! Runs inside a guest, where `standin-e2e` is copied to. What an operation meets is left to chance (names come and go under the threads), so
//! that it may fail; only a failure that no race and no file system's limits explain ends the churn.

#![allow(unsafe_code)] // a mapped file is written through memory: the file is this process's own

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::random::Random;

#[derive(clap::Args)]
pub struct ChurnArgs {
    /// An empty folder, or one that an earlier churn has left.
    folder: PathBuf,
    #[arg(long)]
    seed: u64,
    /// Operations a second, of all threads together.
    #[arg(long, default_value_t = 60)]
    rate: u32,
    #[arg(long, default_value_t = 3)]
    threads: u64,
    /// Ends after this many seconds.
    #[arg(long, default_value_t = 86_400)]
    seconds: u64,
}

/// Names in one folder, and folders: few, so that threads meet.
const NAMES: u64 = 24;
const FOLDERS: u64 = 8;
/// Offsets stay below; sparse files reach further by themselves.
const SIZE_MAX: u64 = 1 << 20;
const BLOCK: u64 = 4096;

pub fn run(arguments: &ChurnArgs) -> Result<()> {
    fs::create_dir_all(&arguments.folder).with_context(|| format!("making {}", arguments.folder.display()))?;
    let deadline = Instant::now() + Duration::from_secs(arguments.seconds);
    let pause = Duration::from_secs(1) * u32::try_from(arguments.threads)? / arguments.rate.max(1);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..arguments.threads)
            .map(|number| {
                let (folder, done) = (&arguments.folder, &done);
                let mut churn =
                    Churn { folder: folder.clone(), random: Random(arguments.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) };
                scope.spawn(move || -> Result<()> {
                    while Instant::now() < deadline {
                        churn.one()?;
                        done.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(pause);
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a churning thread panicked"))
    })?;
    println!("churn: PASS {} operations from seed {}", done.load(Ordering::Relaxed), arguments.seed);
    Ok(())
}

struct Churn {
    folder: PathBuf,
    random: Random,
}

type Tried = Result<(), Errno>;

impl Churn {
    fn one(&mut self) -> Result<()> {
        let kind = self.random.below(32);
        match self.operation(kind) {
            Ok(()) => Ok(()),
            // What a race, a wrong kind of node, or a file system without the operation answers.
            Err(
                Errno::NOENT
                | Errno::EXIST
                | Errno::NOTEMPTY
                | Errno::ISDIR
                | Errno::NOTDIR
                | Errno::LOOP
                | Errno::INVAL
                | Errno::OPNOTSUPP
                | Errno::XDEV
                | Errno::NODATA
                | Errno::MLINK
                | Errno::PERM
                | Errno::NXIO
                | Errno::BUSY
                | Errno::TXTBSY
                | Errno::NOSYS
                | Errno::STALE
                | Errno::ACCESS,
            ) => Ok(()),
            Err(errno) => bail!("operation {kind} failed: {errno}"),
        }
    }

    fn place(&mut self) -> PathBuf {
        let folder = match self.random.below(FOLDERS + 2) {
            number if number < FOLDERS => self.folder.join(format!("d{number}")),
            _ => self.folder.clone(),
        };
        folder.join(format!("n{}", self.random.below(NAMES)))
    }

    fn directory(&mut self) -> PathBuf {
        self.folder.join(format!("d{}", self.random.below(FOLDERS)))
    }

    fn data(&mut self, len: u64) -> Vec<u8> {
        let mut data = Vec::with_capacity(len as usize + 8);
        while (data.len() as u64) < len {
            data.extend(self.random.number().to_le_bytes());
        }
        data.truncate(len as usize);
        data
    }

    fn operation(&mut self, kind: u64) -> Tried {
        match kind {
            0..=3 => self.create(),
            4..=7 => self.write(OFlags::empty()),
            8 => self.write(OFlags::APPEND),
            9 => self.write_direct(),
            10 => self.write_mapped(),
            11 => self.truncate(),
            12..=14 => self.allocate(),
            15 => self.copy(),
            16 => self.unnamed(),
            17 => self.unlinked_but_open(),
            18..=20 => self.rename(),
            21 => rustix::fs::linkat(rustix::fs::CWD, self.place(), rustix::fs::CWD, self.place(), AtFlags::empty()),
            22..=24 => rustix::fs::unlink(self.place()),
            25 => self.directories(),
            26 => self.other_kinds(),
            27 => rustix::fs::chmod(&self.file_place()?, Mode::from_raw_mode(0o600 | (self.random.below(0o200) as u32))),
            28 => self.owner(),
            29 => self.times(),
            _ => self.attributes(),
        }
    }

    /// A place that holds a file now; chmod and chown follow symlinks, which may lead anywhere.
    fn file_place(&mut self) -> Result<PathBuf, Errno> {
        let place = self.place();
        let is_file = fs::symlink_metadata(&place).map(|found| found.is_file() || found.is_dir()).unwrap_or(false);
        if is_file { Ok(place) } else { Err(Errno::NOENT) }
    }

    fn open(&mut self, flags: OFlags) -> Result<File, Errno> {
        open(&self.place(), flags | OFlags::RDWR)
    }

    fn create(&mut self) -> Tried {
        let file = open(&self.place(), OFlags::RDWR | OFlags::CREATE)?;
        let len = self.random.below(20_000);
        let data = self.data(len);
        write_at(&file, &data, 0)
    }

    fn write(&mut self, flags: OFlags) -> Tried {
        let file = self.open(flags)?;
        let (len, offset) = (self.random.below(16_384), self.random.below(SIZE_MAX));
        let data = self.data(len);
        if flags.contains(OFlags::APPEND) {
            // Bounded, because nothing else makes them smaller for certain.
            let size = file.metadata().map_err(errno)?.len();
            return if size < SIZE_MAX { rustix::io::write(&file, &data).map(drop) } else { Ok(()) };
        }
        write_at(&file, &data, offset)?;
        if self.random.below(8) == 0 { rustix::fs::fdatasync(&file) } else { Ok(()) }
    }

    fn write_direct(&mut self) -> Tried {
        let file = self.open(OFlags::DIRECT)?;
        let len = (self.random.below(8) + 1) * BLOCK;
        let content = self.data(len);
        // Direct I/O wants aligned memory; a vector promises none.
        let mut room = vec![0u8; (len + BLOCK) as usize];
        let skip = room.as_ptr().align_offset(BLOCK as usize);
        let aligned = &mut room[skip..skip + len as usize];
        aligned.copy_from_slice(&content);
        write_at(&file, aligned, self.random.below(SIZE_MAX / BLOCK) * BLOCK)
    }

    fn write_mapped(&mut self) -> Tried {
        let file = self.open(OFlags::empty())?;
        let len = 4 * BLOCK;
        if file.metadata().map_err(errno)?.len() < len {
            return Ok(());
        }
        let data = self.data(3000);
        let flags = (rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE, rustix::mm::MapFlags::SHARED);
        // SAFETY: a new mapping that nothing refers to yet; `store` writes to it only where the file is long enough.
        let memory = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len as usize, flags.0, flags.1, &file, 0)? };
        let at = self.random.below(len - 3000);
        let result = self.store(&file, memory.cast(), at, &data, len);
        // SAFETY: the mapping made above; nothing refers to it any more.
        unsafe { rustix::mm::munmap(memory, len as usize)? };
        result
    }

    /// Writes through the mapping under a lock that every truncating operation of this program takes.
    fn store(&mut self, file: &File, memory: *mut u8, at: u64, data: &[u8], len: u64) -> Tried {
        let _shrinking = SHRINKING.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if file.metadata().map_err(errno)?.len() < len {
            return Ok(());
        }
        // SAFETY: `at + data.len()` is below `len`, the file is at least that long, and nothing shrinks it while the lock is held.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), memory.add(at as usize), data.len()) };
        if self.random.below(3) == 0 { rustix::fs::fdatasync(file) } else { Ok(()) }
    }

    fn truncate(&mut self) -> Tried {
        let file = self.open(OFlags::empty())?;
        let size = self.random.below(SIZE_MAX);
        let _shrinking = SHRINKING.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        rustix::fs::ftruncate(&file, size)
    }

    fn allocate(&mut self) -> Tried {
        let file = self.open(OFlags::empty())?;
        let mode = match self.random.below(6) {
            0 => FallocateFlags::empty(),
            1 => FallocateFlags::KEEP_SIZE,
            2 => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            3 => FallocateFlags::ZERO_RANGE,
            4 => FallocateFlags::COLLAPSE_RANGE,
            _ => FallocateFlags::INSERT_RANGE,
        };
        let shifting = mode.intersects(FallocateFlags::COLLAPSE_RANGE | FallocateFlags::INSERT_RANGE);
        let (mut offset, mut len) = (self.random.below(SIZE_MAX), self.random.below(65_536) + 1);
        if shifting {
            (offset, len) = (offset / BLOCK * BLOCK, (len / BLOCK + 1) * BLOCK);
            // Only so often does an insert make a file longer.
            if file.metadata().map_err(errno)?.len() > 2 * SIZE_MAX {
                return Ok(());
            }
        }
        let _shrinking = SHRINKING.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        rustix::fs::fallocate(&file, mode, offset, len)
    }

    /// By reference where the file system can, else by the kernel's own copying.
    fn copy(&mut self) -> Tried {
        let (from, to) = (self.open(OFlags::empty())?, self.open(OFlags::empty())?);
        if self.random.below(2) == 0 {
            let _shrinking = SHRINKING.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            return rustix::fs::ioctl_ficlone(&to, &from);
        }
        let (mut source, mut target) = (self.random.below(SIZE_MAX), self.random.below(SIZE_MAX));
        rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut target), 50_000).map(drop)
    }

    /// A file that is made without a name, and sometimes gets one.
    fn unnamed(&mut self) -> Tried {
        let folder = self.directory();
        let file = File::from(rustix::fs::open(&folder, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o640))?);
        let data = self.data(5_000);
        write_at(&file, &data, 100)?;
        if self.random.below(2) == 0 {
            let own = format!("/proc/self/fd/{}", rustix::fd::AsRawFd::as_raw_fd(&file.as_fd()));
            rustix::fs::linkat(rustix::fs::CWD, own.as_str(), rustix::fs::CWD, self.place(), AtFlags::SYMLINK_FOLLOW)?;
            write_at(&file, &data[..100], 9_000)?;
        }
        Ok(())
    }

    fn unlinked_but_open(&mut self) -> Tried {
        let place = self.place();
        let file = open(&place, OFlags::RDWR)?;
        rustix::fs::unlink(&place)?;
        let data = self.data(6_000);
        write_at(&file, &data, 3_000)
    }

    fn rename(&mut self) -> Tried {
        let flags = match self.random.below(8) {
            0 => RenameFlags::EXCHANGE,
            1 => RenameFlags::NOREPLACE,
            2 => RenameFlags::WHITEOUT,
            _ => RenameFlags::empty(),
        };
        let (from, to) = match self.random.below(6) {
            0 => (self.directory(), self.directory()),
            1 => (self.directory(), self.directory().join("moved")),
            _ => (self.place(), self.place()),
        };
        rustix::fs::renameat_with(rustix::fs::CWD, &from, rustix::fs::CWD, &to, flags)
    }

    fn directories(&mut self) -> Tried {
        let folder = if self.random.below(4) == 0 { self.directory().join("moved") } else { self.directory() };
        if self.random.below(3) == 0 { rustix::fs::rmdir(&folder) } else { rustix::fs::mkdir(&folder, Mode::from_raw_mode(0o755)) }
    }

    fn other_kinds(&mut self) -> Tried {
        let place = self.place();
        match self.random.below(3) {
            0 => symlink(format!("../n{}", self.random.below(NAMES)), &place).map_err(errno),
            1 => rustix::fs::mknodat(rustix::fs::CWD, &place, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0),
            _ => {
                let device = rustix::fs::makedev(1, 3);
                rustix::fs::mknodat(rustix::fs::CWD, &place, rustix::fs::FileType::CharacterDevice, Mode::from_raw_mode(0o600), device)
            }
        }
    }

    fn owner(&mut self) -> Tried {
        let place = self.place();
        let (owner, group) =
            (rustix::fs::Uid::from_raw(self.random.below(1000) as u32), rustix::fs::Gid::from_raw(self.random.below(1000) as u32));
        rustix::fs::chownat(rustix::fs::CWD, &place, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn times(&mut self) -> Tried {
        let time = Timespec { tv_sec: self.random.below(2_000_000_000) as i64, tv_nsec: self.random.below(1_000_000_000) as i64 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, self.place(), &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn attributes(&mut self) -> Tried {
        let place = self.file_place()?;
        let name = format!("user.a{}", self.random.below(4));
        if self.random.below(3) == 0 {
            return rustix::fs::removexattr(&place, name.as_str());
        }
        let len = self.random.below(300);
        let value = self.data(len);
        rustix::fs::setxattr(&place, name.as_str(), &value, XattrFlags::empty())
    }
}

/// Held for reading while a mapping is written, and for writing by whatever may shorten a file: a store behind the end of a file ends the process.
static SHRINKING: std::sync::RwLock<()> = std::sync::RwLock::new(());

fn open(place: &Path, flags: OFlags) -> Result<File, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(flags.contains(OFlags::CREATE))
        .truncate(false)
        .mode(0o644)
        .custom_flags(flags.difference(OFlags::CREATE | OFlags::RDWR).bits() as i32)
        .open(place)
        .map_err(errno)?;
    // A fifo or device of the churn's own would take what is meant for a file.
    if file.metadata().map_err(errno)?.is_file() { Ok(file) } else { Err(Errno::INVAL) }
}

fn write_at(file: &File, data: &[u8], offset: u64) -> Tried {
    file.write_all_at(data, offset).map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_churn_makes_a_tree_and_ends() {
        let folder = std::env::temp_dir().join(format!("standin-churn-{}", std::process::id()));
        let arguments = ChurnArgs { folder: folder.clone(), seed: 1, rate: 6000, threads: 3, seconds: 2 };
        let done = run(&arguments);
        let made = fs::read_dir(&folder).map(|entries| entries.count()).unwrap_or(0);
        fs::remove_dir_all(&folder).ok();
        done.unwrap();
        assert!(made > 3, "{made} entries");
    }
}
