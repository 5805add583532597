//! Makes the planned file systems, swap areas and the EFI system partition, with the source's UUIDs and labels.

use super::plan::{Partition, PartitionRole};
use super::tool;
use super::{DiskError, FsFeatures, FsType, LoopDevice, identity};
use std::path::Path;
use std::process::Command;

/// Formats one partition of the disk at `path`. BIOS boot holds code that boot repair writes, so nothing is made there.
pub(super) fn format(path: &Path, part: &Partition) -> Result<(), DiskError> {
    if part.role == PartitionRole::BiosBoot {
        return Ok(());
    }
    if let PartitionRole::Volume { fs: FsType::Ext4, volume } = &part.role {
        // In the file itself rather than through a loop device: mke2fs knows that holes of a file read as zeroes, and then
        // need not write inode tables and journal. For 200 GiB: 0.1 s measured, instead of 13,107,200 inodes * 256 bytes of zeroes.
        let mut command = ext4(&volume.uuid, &volume.features, part.offset);
        label_option(&mut command, &volume.label);
        command.arg(path).arg(format!("{}k", part.size >> 10));
        return tool::run(&mut command, "e2fsprogs").map(drop);
    }
    let device = LoopDevice::bind(path, part.offset, part.size)?;
    match &part.role {
        PartitionRole::BiosBoot | PartitionRole::Volume { fs: FsType::Ext4, .. } => {}
        PartitionRole::Esp { volume_id, label, .. } => make_esp(&device, volume_id, label)?,
        PartitionRole::Swap { swap } => {
            let mut command = Command::new("mkswap");
            command.args(["-U", &swap.uuid]);
            label_option(&mut command, &swap.label);
            tool::run(command.arg(device.path()), "util-linux")?;
        }
        PartitionRole::Volume { fs, volume } => {
            let (mut command, package) = match fs {
                FsType::Btrfs => (btrfs(&volume.uuid, &volume.features), "btrfs-progs"),
                FsType::Xfs | FsType::Ext4 => (xfs(&volume.uuid, &volume.features), "xfsprogs"),
            };
            label_option(&mut command, &volume.label);
            tool::run(command.arg(device.path()), package)?;
            if !volume.subvolume.is_empty() {
                let scratch = path.with_extension("subvolume");
                super::btrfs::make_subvolume(&device, volume.id, &volume.subvolume, &scratch)?;
            }
        }
    }
    device.sync().map_err(DiskError::io(path, "writing down the new file system"))
}

fn label_option(command: &mut Command, label: &str) {
    if !label.is_empty() {
        command.args(["-L", label]);
    }
}

fn make_esp(device: &LoopDevice, volume_id: &str, label: &str) -> Result<(), DiskError> {
    let id = identity::fat_volume_id(volume_id)?;
    let mut command = Command::new("mkfs.vfat");
    command.args(["-F", "32", "-i", &id]);
    if !label.is_empty() {
        command.args(["-n", label]);
    }
    tool::run(command.arg(device.path()), "dosfstools").map(drop)
}

fn ext4(uuid: &str, features: &FsFeatures, offset: u64) -> Command {
    let mut command = Command::new("mkfs.ext4");
    // Without lazy initialisation, which would go on writing in the background of every mount.
    let extended = format!("offset={offset},lazy_itable_init=0,lazy_journal_init=0");
    command.args(["-q", "-F", "-E", &extended, "-U", uuid]);
    if let Some(size) = features.inode_size {
        command.args(["-I", &size.to_string()]);
    }
    if let Some(size) = features.block_size {
        command.args(["-b", &size.to_string()]);
    }
    if let Some(count) = features.inode_count {
        command.args(["-N", &count.to_string()]);
    }
    if !features.flags.is_empty() {
        command.args(["-O", &features.flags.join(",")]);
    }
    command
}

fn xfs(uuid: &str, features: &FsFeatures) -> Command {
    let mut command = Command::new("mkfs.xfs");
    command.args(["-q", "-f", "-K", "-m", &format!("uuid={uuid}")]);
    if let Some(size) = features.inode_size {
        command.args(["-i", &format!("size={size}")]);
    }
    if let Some(size) = features.block_size {
        command.args(["-b", &format!("size={size}")]);
    }
    for flag in &features.flags {
        let group = if flag.starts_with("sparse") || flag.starts_with("nrext64") { "-i" } else { "-m" };
        command.args([group, flag]);
    }
    command
}

fn btrfs(uuid: &str, features: &FsFeatures) -> Command {
    let mut command = Command::new("mkfs.btrfs");
    // Metadata once: the replica lies on the datastore's redundancy, and the source's profile is a matter of its devices.
    command.args(["-q", "-f", "-K", "-m", "single", "-U", uuid]);
    if let Some(size) = features.block_size {
        command.args(["-n", &size.to_string()]);
    }
    if !features.flags.is_empty() {
        command.args(["-O", &features.flags.join(",")]);
    }
    command
}
