//! Errors of planning, making and attaching replica disks. Each has a code with a page under `docs/errors/`.

use standin_model::VolumeId;
use std::path::PathBuf;
use thiserror::Error;

/// Why a replica disk could not be planned, made, attached or detached.
#[derive(Debug, Error)]
pub enum DiskError {
    #[error(
        "STANDIN-E3001: file system `{fs_type}` of {mount_point} cannot be replicated (only ext4, xfs and btrfs can). Name the others: standin protect <source> --volume <mount>"
    )]
    UnsupportedFileSystem { mount_point: String, fs_type: String },

    #[error(
        "STANDIN-E3002: {mount_point} uses {used} bytes, which do not fit into the requested {size} bytes with the file system's own needs (at least {least}). Ask for more: standin protect <source> --disk-size {mount_point}={least}"
    )]
    VolumeTooSmall { mount_point: String, used: u64, size: u64, least: u64 },

    #[error("STANDIN-E3003: the datastore has {free} bytes free, and the replica needs {needed}. Free some: standin host list")]
    NoSpace { free: u64, needed: u64 },

    #[error(
        "STANDIN-E3004: the btrfs volume at {mount_point} has {further} subvolumes besides the mounted one, which cannot be replicated yet. Name other volumes: standin protect <source> --volume <mount>"
    )]
    FurtherSubvolumes { mount_point: String, further: u32 },

    #[error("STANDIN-E3005: the source's inventory is not usable: {field} is `{value}`, {reason}. Look at it: standin agent list")]
    BadInventory { field: &'static str, value: String, reason: &'static str },

    #[error("STANDIN-E3006: `{program}` is not installed on the appliance. Install it: apt-get install {package}")]
    ToolMissing { program: String, package: &'static str },

    #[error(
        "STANDIN-E3007: `{command}` failed ({outcome}): {stderr}. The replica disk is unfinished and tried again: standin job show <job>"
    )]
    ToolFailed { command: String, outcome: String, stderr: String },

    #[error(
        "STANDIN-E3008: {path} holds a finished replica disk made by another plan. Move it away, then: systemctl restart standin-appliance"
    )]
    OtherPlan { path: PathBuf },

    #[error("STANDIN-E3009: {path} is not a finished replica disk ({reason}). Move it away, then: systemctl restart standin-appliance")]
    NotFinished { path: PathBuf, reason: String },

    #[error("STANDIN-E3010: no loop device could be bound to {path} ({operation}). Look for leftovers: losetup -l")]
    Loop {
        path: PathBuf,
        operation: &'static str,
        #[source]
        source: std::io::Error,
    },

    #[error("STANDIN-E3011: mounting {volume} at {path} failed. Check it: dmesg | tail")]
    Mount {
        volume: VolumeId,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error(
        "STANDIN-E3012: {what} is still busy after {waited_ms} ms; another process or mount namespace holds it. Find it: grep -l {what} /proc/*/mountinfo"
    )]
    StillBusy { what: String, waited_ms: u64 },

    #[error("STANDIN-E3013: {operation} of {path} failed. Check the datastore: standin host list")]
    Io {
        path: PathBuf,
        operation: &'static str,
        #[source]
        source: std::io::Error,
    },

    #[error("STANDIN-E3014: the partition table of {path} is damaged ({reason}). Move it away, then: systemctl restart standin-appliance")]
    PartitionTable { path: PathBuf, reason: String },
}

impl DiskError {
    /// The code of the page that explains this error.
    pub fn code(&self) -> &'static str {
        match self {
            DiskError::UnsupportedFileSystem { .. } => "STANDIN-E3001",
            DiskError::VolumeTooSmall { .. } => "STANDIN-E3002",
            DiskError::NoSpace { .. } => "STANDIN-E3003",
            DiskError::FurtherSubvolumes { .. } => "STANDIN-E3004",
            DiskError::BadInventory { .. } => "STANDIN-E3005",
            DiskError::ToolMissing { .. } => "STANDIN-E3006",
            DiskError::ToolFailed { .. } => "STANDIN-E3007",
            DiskError::OtherPlan { .. } => "STANDIN-E3008",
            DiskError::NotFinished { .. } => "STANDIN-E3009",
            DiskError::Loop { .. } => "STANDIN-E3010",
            DiskError::Mount { .. } => "STANDIN-E3011",
            DiskError::StillBusy { .. } => "STANDIN-E3012",
            DiskError::Io { .. } => "STANDIN-E3013",
            DiskError::PartitionTable { .. } => "STANDIN-E3014",
        }
    }

    /// True when the same call may succeed later without anybody changing the plan.
    pub fn retryable(&self) -> bool {
        matches!(
            self,
            DiskError::NoSpace { .. }
                | DiskError::ToolFailed { .. }
                | DiskError::Loop { .. }
                | DiskError::Mount { .. }
                | DiskError::StillBusy { .. }
                | DiskError::Io { .. }
        )
    }

    /// Builds the `Io` variant; shaped for `map_err`.
    pub(crate) fn io(path: &std::path::Path, operation: &'static str) -> impl FnOnce(std::io::Error) -> DiskError {
        let path = path.to_path_buf();
        move |source| DiskError::Io { path, operation, source }
    }
}
