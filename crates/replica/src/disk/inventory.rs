//! What the agent tells about a source's volumes, as far as the replica's disk depends on it.
//!
//! Everything here comes over the wire from a host that may be hostile: these types carry text only, and
//! [`DiskPlan::make`](super::DiskPlan::make) checks every field before it reaches a command line.

use serde::{Deserialize, Serialize};

/// The firmware that starts a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    Bios,
    Uefi,
}

/// A file system that can be protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    Ext4,
    Xfs,
    Btrfs,
}

impl FsType {
    /// The kernel's name of the file system, as it stands in fstab.
    pub fn name(self) -> &'static str {
        match self {
            FsType::Ext4 => "ext4",
            FsType::Xfs => "xfs",
            FsType::Btrfs => "btrfs",
        }
    }

    /// Reads the kernel's name; ext2 and ext3 are not offered because the ext4 driver would change their features.
    pub fn from_name(name: &str) -> Option<FsType> {
        [FsType::Ext4, FsType::Xfs, FsType::Btrfs].into_iter().find(|fs| fs.name() == name)
    }
}

/// Format-time features that have to match the source so that every node fits. All optional: absent means the tool's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FsFeatures {
    /// Bytes of one inode (ext4: 128 to 4096; xfs: 256 to 2048).
    pub inode_size: Option<u32>,
    /// Block size in bytes (ext4 and xfs), node size (btrfs) where it is not the default.
    pub block_size: Option<u32>,
    /// Number of inodes of an ext4 volume, so that the replica holds as many files as the source.
    pub inode_count: Option<u64>,
    /// Names of features to switch on or off, in the syntax of the file system's own mkfs (`^metadata_csum`, `reflink=1`).
    pub flags: Vec<String>,
}

/// One mounted file system of the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceVolume {
    /// Number of the volume within the job; names the mount directory below the run directory.
    pub id: u32,
    pub mount_point: String,
    /// The kernel's name of the file system; text, so that an unknown one can be named in the error.
    pub fs_type: String,
    pub uuid: String,
    #[serde(default)]
    pub label: String,
    pub size: u64,
    pub used: u64,
    /// The subvolume that is mounted (btrfs), without leading slash; empty for the top level.
    #[serde(default)]
    pub subvolume: String,
    /// Further subvolumes and snapshots below the volume; they cannot be carried yet.
    #[serde(default)]
    pub other_subvolumes: Vec<String>,
    /// Every name under which the source knows the block device (`/dev/sda1`, `/dev/mapper/vg-root`, …).
    #[serde(default)]
    pub device_names: Vec<String>,
    /// The partition's GUID on the source, kept so that `PARTUUID=` references stay valid.
    #[serde(default)]
    pub partition_uuid: Option<String>,
    #[serde(default)]
    pub features: FsFeatures,
}

/// A swap area of the source; re-created empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapVolume {
    pub uuid: String,
    #[serde(default)]
    pub label: String,
    pub size: u64,
    #[serde(default)]
    pub device_names: Vec<String>,
    #[serde(default)]
    pub partition_uuid: Option<String>,
}

/// The source's EFI system partition; rebuilt, not replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EspVolume {
    /// FAT volume id as `ABCD-1234`.
    pub volume_id: String,
    #[serde(default)]
    pub label: String,
    pub mount_point: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    pub device_names: Vec<String>,
    #[serde(default)]
    pub partition_uuid: Option<String>,
}

/// Everything the plan needs to know of the source. `volumes` holds the protected ones only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInventory {
    pub firmware: Firmware,
    pub volumes: Vec<SourceVolume>,
    #[serde(default)]
    pub swaps: Vec<SwapVolume>,
    #[serde(default)]
    pub esp: Option<EspVolume>,
}

/// What the operator wants of the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WantedDisk {
    /// Size in bytes per volume id; the source's size where absent.
    pub volume_sizes: std::collections::BTreeMap<u32, u64>,
    /// Leave swap areas out of the replica.
    pub without_swap: bool,
}
