//! What can stop the applier. Everything else (a node nobody knows, a name that leads elsewhere, an attribute that the replica's file
//! system refuses) is counted, reported as wanted, and healed by a resync.
//!
//! Every error here leaves the replica as it was at some item of the stream; redo from the last durable mark is always safe.

use rustix::io::Errno;
use standin_model::{NodeId, OpSeq, VolumeId};
use std::path::PathBuf;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum ApplyError {
    #[error("cannot open replica volume {volume} at {}", mount.display())]
    OpenVolume {
        volume: VolumeId,
        mount: PathBuf,
        #[source]
        source: Errno,
    },
    #[error("replica volume {volume} cannot be used: {reason}")]
    UnsupportedVolume { volume: VolumeId, reason: &'static str },
    /// The disk itself fails or is full; no other node would fare better.
    #[error("replica volume {volume} fails while {doing}")]
    Volume {
        volume: VolumeId,
        doing: &'static str,
        #[source]
        source: Errno,
    },
    #[error("node table {}", path.display())]
    Table {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("node table is corrupt: {field}")]
    TableCorrupt { field: &'static str },
    #[error("item {got} follows item {last}: the stream has a hole")]
    OutOfOrder { last: OpSeq, got: OpSeq },
    #[error("node {node} is on a volume that this job does not have")]
    UnknownVolume { node: NodeId },
    #[error("replica is finished; open it again to go on")]
    Finished,
}

impl ApplyError {
    /// Whether a later attempt may succeed without anybody repairing anything but free space.
    pub fn is_retryable(&self) -> bool {
        matches!(self, ApplyError::Volume { source, .. } if matches!(*source, Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::MFILE | Errno::NFILE))
    }

    /// Whether the appliance's own records can no longer be trusted.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, ApplyError::TableCorrupt { .. } | ApplyError::OutOfOrder { .. })
    }
}

/// Whether an error number speaks of the disk or the process rather than of one node.
pub(super) fn is_fatal(errno: Errno) -> bool {
    // EUCLEAN is what ext4, xfs and btrfs return for metadata that fails its own checks.
    const CORRUPT_METADATA: i32 = 117;
    matches!(errno, Errno::IO | Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::NODEV)
        || errno.raw_os_error() == CORRUPT_METADATA
}
