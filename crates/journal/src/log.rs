//! The journal: an append-only chain of files of segments, with one writer.
//!
//! Invariants: items are contiguous from `oldest` to `last`; `durable ≤ last`; a file is synced before the next one is begun; `durable`
//! never goes back. On failure: a refused append leaves the log as it was (a partial record is cut off); a failed sync cuts the log back to
//! its durable end, because the kernel may have dropped the dirty pages and a second fsync would lie; when even cutting fails the log is
//! poisoned and must be opened again. Opening repairs a torn tail and refuses damage before it.

use crate::error::JournalError;
use crate::segment::Segment;
use crate::{Result, durable};
use record::{FILE_HEADER_LEN, FileHeader, file_path, mark_bytes, new_salt, record_len};
use standin_model::OpSeq;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) mod record;
mod recover;
mod trim;

use recover::FileEntry;
pub use recover::Recovery;
pub(crate) use recover::{list, open_file, proves_durable, read_header};

/// 100 ms in all; starting a process takes a few.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

#[derive(Clone, Copy, Debug)]
pub struct JournalOptions {
    /// A file that would grow beyond this is closed and the next one begun; whole files are what discarding removes.
    pub file_bytes_max: u64,
    /// All files together; beyond it appends are refused with `Full`.
    pub bytes_max: u64,
}

impl Default for JournalOptions {
    /// 64 MiB is a second of a fast disk to read at recovery, and small against any disk; 16 GiB holds an hour at 36 Mbit/s.
    fn default() -> Self {
        JournalOptions { file_bytes_max: 64 << 20, bytes_max: 16 << 30 }
    }
}

#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    options: JournalOptions,
    /// Open for its lock, which a journal that takes this one's place keeps.
    lock: Arc<File>,
    /// Closed files, oldest first.
    closed: VecDeque<ClosedFile>,
    closed_bytes: u64,
    active: ActiveFile,
    last: OpSeq,
    epoch: u64,
    durable: OpSeq,
    /// Epoch of item `durable`.
    durable_epoch: u64,
    /// New items of an earlier epoch are refused, although none of this one may be here yet.
    epoch_min: u64,
    poisoned: bool,
    /// The source's queue does not outlive its agent, so its files are never synced.
    volatile: bool,
    recovery: Recovery,
}

#[derive(Debug)]
struct ClosedFile {
    path: PathBuf,
    base: OpSeq,
    len: u64,
}

#[derive(Debug)]
struct ActiveFile {
    file: File,
    path: PathBuf,
    header: FileHeader,
    len: u64,
    durable_len: u64,
}

impl Journal {
    /// Opens or makes the journal in `dir`. A torn tail is cut off, which [`Journal::recovery`] reports.
    pub fn open(dir: impl AsRef<Path>, options: JournalOptions) -> Result<Journal> {
        Self::open_as(dir.as_ref(), options, false)
    }

    pub(crate) fn open_as(dir: &Path, options: JournalOptions, volatile: bool) -> Result<Journal> {
        durable::create_directory(dir).map_err(|e| JournalError::io("make directory", dir, e))?;
        let lock = take_lock(dir)?;
        Self::open_locked(dir, options, volatile, lock)
    }

    fn open_locked(dir: &Path, options: JournalOptions, volatile: bool, lock: Arc<File>) -> Result<Journal> {
        let recovered = recover::recover(dir)?;
        let (mut closed, last, epoch) = (recovered.closed, recovered.last, recovered.epoch);
        let active = match closed.pop() {
            Some(FileEntry { path, header, len }) => {
                let file = open_file(&path, true)?;
                ActiveFile { file, path, header, len, durable_len: len }
            }
            None => create_file(dir, FileHeader { base: last, previous: None, epoch, salt: new_salt() }, volatile)?,
        };
        let closed: VecDeque<_> = closed.into_iter().map(|f| ClosedFile { path: f.path, base: f.header.base, len: f.len }).collect();
        let closed_bytes = closed.iter().map(|f| f.len).sum();
        let journal = Journal {
            dir: dir.to_owned(),
            options,
            lock,
            closed,
            closed_bytes,
            active,
            last,
            epoch,
            durable: last,
            durable_epoch: epoch,
            epoch_min: 0,
            poisoned: false,
            volatile,
            recovery: recovered.report,
        };
        // What survived the crash may lie only in the page cache; `durable = last` must be true from the start.
        if !volatile {
            journal.active.file.sync_all().map_err(|e| JournalError::io("sync", &journal.active.path, e))?;
        }
        Ok(journal)
    }

    /// What opening found and did.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }
    /// Last item appended; `OpSeq::ZERO` before the first.
    pub fn last(&self) -> OpSeq {
        self.last
    }
    /// Last item that survives a power cut.
    pub fn durable(&self) -> OpSeq {
        self.durable
    }
    /// First item that can still be read, or the next one to be appended where there is none.
    pub fn oldest(&self) -> OpSeq {
        self.closed.front().map_or(self.active.header.base, |file| file.base).next()
    }
    /// Epoch of the last item.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.closed_bytes.saturating_add(self.active.len)
    }
    pub fn options(&self) -> JournalOptions {
        self.options
    }
    pub fn set_options(&mut self, options: JournalOptions) {
        self.options = options;
    }
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// From now on only `epoch` and later ones bring new items: what an earlier one still has on its way would take the numbers that this one was given.
    pub fn begin_epoch(&mut self, epoch: u64) {
        self.epoch_min = self.epoch_min.max(epoch);
    }

    /// Appends behind the last item. A segment that is there already is a no-op, so that a sender may send again after a reconnect.
    pub fn append(&mut self, segment: &Segment) -> Result<()> {
        self.check_usable()?;
        if !self.is_next(segment)? {
            return Ok(());
        }
        let need = record_len(segment.byte_len());
        if self.bytes().saturating_add(need) > self.options.bytes_max {
            return Err(JournalError::Full { bytes: self.bytes(), need, bytes_max: self.options.bytes_max });
        }
        if self.active.len > FILE_HEADER_LEN && self.active.len.saturating_add(need) > self.options.file_bytes_max {
            self.begin_file()?;
        }
        self.write_record(segment)?;
        self.last = segment.last_seq();
        self.epoch = segment.header.epoch;
        Ok(())
    }

    /// Whether the segment has to be written; `false` when all of it is there already.
    fn is_next(&self, segment: &Segment) -> Result<bool> {
        let (first, last, epoch) = (segment.first_seq(), segment.last_seq(), segment.header.epoch);
        let follows = first == self.last.next();
        let current = self.epoch.max(self.epoch_min);
        if epoch < current && last > self.last {
            return Err(JournalError::StaleEpoch { found: epoch, current, first, last });
        }
        // A newer epoch that reuses numbers brings other operations: taking it for a repetition would lose them.
        if !follows && (last > self.last || epoch > self.epoch) {
            return Err(JournalError::NotContiguous { after: self.last, first, last });
        }
        Ok(follows)
    }

    fn write_record(&mut self, segment: &Segment) -> Result<()> {
        let active = &mut self.active;
        let mark = mark_bytes(segment.byte_len() as u32, self.durable, active.header.salt);
        let at = active.len;
        let written = active
            .file
            .write_all_at(&mark, at)
            .and_then(|()| active.file.write_all_at(&segment.bytes, at.saturating_add(mark.len() as u64)));
        match written {
            Ok(()) => {
                active.len = at.saturating_add(record_len(segment.byte_len()));
                Ok(())
            }
            Err(error) => {
                // Leave no half record: readers stop before it, but the next append must find the old end.
                self.poisoned = active.file.set_len(at).is_err();
                Err(JournalError::io("write", &active.path, error))
            }
        }
    }

    /// Makes everything appended durable, and returns how far that is.
    pub fn sync(&mut self) -> Result<OpSeq> {
        self.check_usable()?;
        if self.durable == self.last {
            return Ok(self.durable);
        }
        if !self.volatile
            && let Err(error) = self.active.file.sync_data()
        {
            return Err(self.cut_back(error));
        }
        self.active.durable_len = self.active.len;
        (self.durable, self.durable_epoch) = (self.last, self.epoch);
        Ok(self.durable)
    }

    /// After a failed fsync the pages may be clean but not on disk. Files are synced before the next begins, so the durable end lies in the
    /// active file.
    fn cut_back(&mut self, source: io::Error) -> JournalError {
        let (path, durable) = (self.active.path.clone(), self.durable);
        self.poisoned = self.active.file.set_len(self.active.durable_len).is_err();
        self.active.len = self.active.durable_len;
        (self.last, self.epoch) = (durable, self.durable_epoch);
        // Also where the disk is full: what was appended since is gone from here, and only sending again brings it back.
        JournalError::SyncFailed { durable, path, source }
    }

    /// Closes the active file, durable, and begins the next one.
    fn begin_file(&mut self) -> Result<()> {
        self.sync()?;
        let header = FileHeader { base: self.last, previous: Some(self.active.header.base), epoch: self.epoch, salt: new_salt() };
        let next = create_file(&self.dir, header, self.volatile)?;
        let full = std::mem::replace(&mut self.active, next);
        self.closed_bytes = self.closed_bytes.saturating_add(full.len);
        self.closed.push_back(ClosedFile { path: full.path, base: full.header.base, len: full.len });
        Ok(())
    }

    fn check_usable(&self) -> Result<()> {
        if self.poisoned { Err(JournalError::Poisoned { path: self.dir.clone() }) } else { Ok(()) }
    }
}

fn take_lock(dir: &Path) -> Result<Arc<File>> {
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| JournalError::io("open", &path, e))?;
    // A process that this one is just starting shares all descriptors until it executes, and a lock that was given up lives on in it.
    for attempt in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(Arc::new(file)),
            Err(fs::TryLockError::WouldBlock) if attempt + 1 < LOCK_ATTEMPTS => std::thread::sleep(LOCK_PAUSE),
            Err(fs::TryLockError::WouldBlock) => break,
            Err(fs::TryLockError::Error(e)) => return Err(JournalError::io("lock", &path, e)),
        }
    }
    Err(JournalError::Locked { path: dir.to_owned() })
}

fn create_file(dir: &Path, header: FileHeader, volatile: bool) -> Result<ActiveFile> {
    let path = file_path(dir, header.base);
    let bytes = header.to_bytes();
    let written = if volatile { fs::write(&path, bytes) } else { durable::write_atomically(&path, &bytes) };
    if let Err(error) = written {
        if volatile {
            let _ = fs::remove_file(&path);
        }
        return Err(JournalError::io("create", &path, error));
    }
    let file = open_file(&path, true)?;
    Ok(ActiveFile { file, path, header, len: FILE_HEADER_LEN, durable_len: FILE_HEADER_LEN })
}

#[cfg(test)]
mod tests;
