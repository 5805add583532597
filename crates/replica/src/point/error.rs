//! Errors of recovery points. Each has a code with a page under `docs/errors/`.

use crate::disk::DiskError;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a recovery point could not be taken, duplicated or removed.
#[derive(Debug, Error)]
pub enum PointError {
    #[error(
        "STANDIN-E3021: the datastore cannot share blocks, and copying the replica's {needed} bytes would hold replication up for longer than the job allows ({allowed} bytes). Allow it: standin point policy JOB --copy-up-to SIZE"
    )]
    CopyTooLarge { needed: u64, allowed: u64 },

    #[error(
        "STANDIN-E3022: a recovery point needs {needed} bytes, and the datastore has {free} free, of which {reserve} stay for replication. Remove another: standin point list JOB"
    )]
    NoSpace { needed: u64, free: u64, reserve: u64 },

    #[error("STANDIN-E3023: the replica could not be held still for a recovery point. Look at its worker: standin job show JOB")]
    Hold(#[source] DiskError),

    #[error("STANDIN-E3024: {operation} of {path} failed. Check the datastore: standin host list")]
    Io {
        path: PathBuf,
        operation: &'static str,
        #[source]
        source: std::io::Error,
    },

    #[error("STANDIN-E3025: there is no recovery point {id} in the datastore any more. List them: standin point list JOB")]
    Gone { id: String },

    #[error("STANDIN-E3026: the replica could not be released after a recovery point. Its worker is started again: standin job show JOB")]
    Stuck(#[source] DiskError),
}

impl PointError {
    pub fn code(&self) -> &'static str {
        match self {
            PointError::CopyTooLarge { .. } => "STANDIN-E3021",
            PointError::NoSpace { .. } => "STANDIN-E3022",
            PointError::Hold(_) => "STANDIN-E3023",
            PointError::Io { .. } => "STANDIN-E3024",
            PointError::Gone { .. } => "STANDIN-E3025",
            PointError::Stuck(_) => "STANDIN-E3026",
        }
    }

    /// True when the same call may succeed later without anybody changing anything.
    pub fn retryable(&self) -> bool {
        !matches!(self, PointError::CopyTooLarge { .. } | PointError::Gone { .. })
    }

    pub(super) fn io(path: &Path, operation: &'static str) -> impl FnOnce(std::io::Error) -> PointError {
        let path = path.to_path_buf();
        move |source| PointError::Io { path, operation, source }
    }
}
