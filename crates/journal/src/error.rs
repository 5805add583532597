//! What can go wrong with a journal, told apart by what the operator or the caller can do about it.
//!
//! Every error leaves the journal as it was before the call, except [`JournalError::SyncFailed`] (cut back to its durable end; the sender
//! resends from there) and [`JournalError::Poisoned`] (unknown; open it again).

use crate::SegmentError;
use standin_model::OpSeq;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum JournalError {
    #[error("journal is damaged at byte {offset} of {}: item {expected} and what follows cannot be read", path.display())]
    Corrupt { path: PathBuf, offset: u64, expected: OpSeq, source: DamageError },
    #[error("no space left on the disk of {}", path.display())]
    DiskFull { path: PathBuf, source: io::Error },
    #[error("journal has {bytes} bytes, {need} more would exceed its bound of {bytes_max}")]
    Full { bytes: u64, need: u64, bytes_max: u64 },
    #[error("journal {} is in use by another process", path.display())]
    Locked { path: PathBuf },
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("segment of items {first}..{last} does not follow item {after}")]
    NotContiguous { after: OpSeq, first: OpSeq, last: OpSeq },
    #[error("segment of items {first}..{last} comes from epoch {found}, the journal is already at epoch {current}")]
    StaleEpoch { found: u64, current: u64, first: OpSeq, last: OpSeq },
    #[error("item {wanted} was already discarded; the oldest that is left is {oldest}")]
    Discarded { wanted: OpSeq, oldest: OpSeq },
    #[error("journal could not be made durable beyond item {durable}; it was cut back to there")]
    SyncFailed { durable: OpSeq, path: PathBuf, source: io::Error },
    #[error("journal {} failed before and its end is not known; open it again", path.display())]
    Poisoned { path: PathBuf },
    #[error("journal file {} has format version {found}, this program reads up to {supported}", path.display())]
    FutureVersion { path: PathBuf, found: u16, supported: u16 },
}

/// Why bytes of a journal file are not what was written.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DamageError {
    #[error("file ends in the middle: {have} bytes are left of {need}")]
    Short { have: u64, need: u64 },
    #[error("file header is not one")]
    FileHeader,
    #[error("file begins behind item {base}, which is not what its name says")]
    WrongName { base: OpSeq },
    #[error("record mark has a wrong checksum")]
    RecordMark,
    #[error("record claims {len} bytes")]
    RecordLength { len: u32 },
    #[error("segment is damaged")]
    Segment(#[source] SegmentError),
    #[error("segment of items {first}..{last} stands where item {expected} belongs")]
    WrongItems { expected: OpSeq, first: OpSeq, last: OpSeq },
    #[error("files are missing between item {after} and item {before}")]
    MissingFile { after: OpSeq, before: OpSeq },
    #[error("nothing is left to read, but items up to {durable} are durable")]
    MissingItems { durable: OpSeq },
}

impl JournalError {
    pub fn code(&self) -> &'static str {
        use JournalError::*;
        match self {
            Corrupt { .. } => "STANDIN-E2001",
            DiskFull { .. } => "STANDIN-E2002",
            Full { .. } => "STANDIN-E2003",
            Locked { .. } => "STANDIN-E2004",
            FutureVersion { .. } => "STANDIN-E2005",
            Io { .. } => "STANDIN-E2006",
            NotContiguous { .. } => "STANDIN-E2007",
            Discarded { .. } => "STANDIN-E2008",
            StaleEpoch { .. } => "STANDIN-E2009",
            SyncFailed { .. } => "STANDIN-E2011",
            Poisoned { .. } => "STANDIN-E2012",
        }
    }

    /// What the operator types next.
    pub fn next_command(&self) -> &'static str {
        use JournalError::*;
        match self {
            Corrupt { .. } => "standin debug journal verify <directory>",
            DiskFull { .. } => "df -h",
            SyncFailed { .. } => "dmesg",
            Io { .. } | Poisoned { .. } => "journalctl -u standin-appliance",
            Full { .. } => "standin job show <job>",
            Locked { .. } => "systemctl status standin-appliance",
            FutureVersion { .. } => "standin --version",
            NotContiguous { .. } | Discarded { .. } | StaleEpoch { .. } => "standin job events <job>",
        }
    }

    /// The same call may succeed later (after sending again, where the journal was cut back).
    pub fn is_retryable(&self) -> bool {
        use JournalError::*;
        matches!(self, DiskFull { .. } | Full { .. } | Locked { .. } | SyncFailed { .. })
    }

    /// Bytes that were durable are wrong or gone.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, JournalError::Corrupt { .. })
    }

    /// An I/O error in its place: a full disk is told apart because it passes.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> JournalError {
        if is_disk_full(&source) {
            return JournalError::DiskFull { path: path.to_owned(), source };
        }
        JournalError::Io { action, path: path.to_owned(), source }
    }
}

pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
