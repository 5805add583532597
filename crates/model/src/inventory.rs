//! What a source is made of, as its agent reports it: the facts from which a job and a replica are planned.

use crate::ByteLen;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    pub hostname: String,
    pub os_name: String,
    pub kernel_release: String,
    pub architecture: String,
    pub firmware: Firmware,
    pub cpus: u32,
    pub memory: ByteLen,
    pub volumes: Vec<Volume>,
    pub swaps: Vec<SwapArea>,
    /// The EFI system partition, where the source boots by UEFI.
    pub system_partition: Option<SystemPartition>,
    pub network_cards: Vec<NetworkCard>,
    /// Why capture cannot work here, in words for the operator; empty when it can.
    pub capture_obstacles: Vec<String>,
    /// Why changes are captured by fanotify, so that the replica is consistent only now and then; `None` where every operation is captured in its order.
    #[serde(default)]
    pub periodic: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    Bios,
    Uefi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

impl FileSystem {
    pub fn as_str(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
        }
    }
}

/// A mounted file system on a block device. `file_system` is `None` for one that cannot be protected; `file_system_name` is the
/// kernel's word for it in any case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub mount_point: String,
    pub device: String,
    pub file_system: Option<FileSystem>,
    pub file_system_name: String,
    pub uuid: String,
    pub label: String,
    pub size: ByteLen,
    pub used: ByteLen,
    /// Number of files, directories and so on in use; 0 where the file system does not count them.
    pub nodes_used: u64,
    /// btrfs: subvolumes besides the top level.
    pub extra_subvolumes: u32,
    /// Of the partition's entry in a GPT, or `XXXXXXXX-NN` of a DOS label; `None` where the device is no partition.
    #[serde(default)]
    pub partition_uuid: Option<String>,
    /// btrfs: path of the mounted subvolume from the top level, as the kernel shows it in `subvol=`: `/@rootfs`, and `/` for the top level.
    #[serde(default)]
    pub subvolume: Option<String>,
    /// What the file system was made with, in the words of the tool that makes it: those that dumpe2fs prints, xfs_info's names of what is
    /// on, `mkfs.btrfs -O`. Empty when the superblock could not be read.
    #[serde(default)]
    pub features: Vec<String>,
    /// Why changes of this file system cannot be captured on this kernel, with a code, in words for the operator.
    #[serde(default)]
    pub capture_obstacle: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapArea {
    pub device: String,
    pub uuid: String,
    pub label: String,
    pub size: ByteLen,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemPartition {
    pub mount_point: String,
    /// FAT volume id as `blkid` prints it, `XXXX-XXXX`.
    pub uuid: String,
    pub label: String,
    pub size: ByteLen,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCard {
    pub name: String,
    /// Lower-case, colon-separated.
    pub mac_address: String,
    pub addresses: Vec<String>,
}
