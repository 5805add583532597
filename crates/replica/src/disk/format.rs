//! Makes the planned file systems, swap areas and the EFI system partition, with the source's UUIDs and labels.

use super::plan::{Partition, PartitionRole, ReplicaVolume};
use super::{DiskError, LoopDevice, features, identity, projects, tool};
use standin_model::FileSystem;
use std::path::Path;
use std::process::Command;

/// Formats one partition of the disk at `path`. BIOS boot holds code that boot repair writes, so nothing is made there.
pub(super) fn format(path: &Path, part: &Partition) -> Result<(), DiskError> {
    match &part.role {
        PartitionRole::BiosBoot => Ok(()),
        PartitionRole::Volume { volume } if volume.fs == FileSystem::Ext4 => {
            // In the file itself rather than through a loop device: mke2fs knows that holes of a file read as zeroes, and then
            // need not write inode tables and journal. For 200 GiB: 0.1 s measured, instead of 13,107,200 inodes * 256 bytes of zeroes.
            let projects = volume.source.features.iter().any(|name| name == features::PROJECT) && projects::are_possible(path);
            let mut command = ext4(volume, part, projects);
            command.arg(path).arg(format!("{}k", part.size >> 10));
            tool::run(&mut command, "e2fsprogs").map(drop)
        }
        role => {
            let device = LoopDevice::bind(path, part.offset, part.size)?;
            on_device(role, &device, path)?;
            device.sync().map_err(DiskError::io(path, "writing down the new file system"))
        }
    }
}

fn on_device(role: &PartitionRole, device: &LoopDevice, path: &Path) -> Result<(), DiskError> {
    match role {
        PartitionRole::BiosBoot => {}
        PartitionRole::Esp { volume_id, label, .. } => make_esp(device, volume_id, label)?,
        PartitionRole::Swap { swap } => {
            let mut command = Command::new("mkswap");
            command.args(["-U", &swap.uuid]);
            label_option(&mut command, &swap.label);
            tool::run(command.arg(device.path()), "util-linux")?;
        }
        PartitionRole::Volume { volume } => {
            let (mut command, package) = match volume.fs {
                FileSystem::Btrfs => (btrfs(volume)?, "btrfs-progs"),
                FileSystem::Xfs | FileSystem::Ext4 => (xfs(volume)?, "xfsprogs"),
            };
            label_option(&mut command, &volume.source.label);
            tool::run(command.arg(device.path()), package)?;
            if !volume.subvolume().is_empty() {
                let scratch = path.with_extension("subvolume");
                super::btrfs::make_subvolume(device, volume.id, volume.subvolume(), &scratch)?;
            }
        }
    }
    Ok(())
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

/// Bytes per inode of mke2fs's default, below which a source with many small files needs more.
const EXT4_INODE_RATIO: u64 = 16_384;

fn ext4(volume: &ReplicaVolume, part: &Partition, projects: bool) -> Command {
    let mut command = Command::new("mkfs.ext4");
    // Without lazy initialisation, which would go on writing in the background of every mount.
    let extended = format!("offset={},lazy_itable_init=0,lazy_journal_init=0", part.offset);
    command.args(["-q", "-F", "-E", &extended, "-U", &volume.source.uuid]);
    // 25 % more than are in use, so that the replica holds as many files as the source.
    let inodes = volume.source.nodes_used.saturating_add(volume.source.nodes_used / 4);
    if inodes > part.size / EXT4_INODE_RATIO {
        command.args(["-N", &inodes.to_string()]);
    }
    if let Some(features) = features::ext4(&volume.source.features, projects) {
        command.args(["-O", &features]);
    }
    label_option(&mut command, &volume.source.label);
    command
}

fn xfs(volume: &ReplicaVolume) -> Result<Command, DiskError> {
    let usage = tool::words(&mut Command::new("mkfs.xfs"), "xfsprogs")?;
    let mut command = Command::new("mkfs.xfs");
    command.args(["-q", "-f", "-K", "-m", &format!("uuid={}", volume.source.uuid)]);
    for (group, switch) in features::xfs(&volume.source.features, &usage) {
        command.args([group, &switch]);
    }
    Ok(command)
}

fn btrfs(volume: &ReplicaVolume) -> Result<Command, DiskError> {
    let mut command = Command::new("mkfs.btrfs");
    // Metadata once: the replica lies on the datastore's redundancy, and the source's profile is a matter of its devices.
    command.args(["-q", "-f", "-K", "-m", "single", "-U", &volume.source.uuid]);
    // Up to version 6.2 some features have an option of their own; later ones take all of them with the first.
    let mut told: Vec<String> = Vec::new();
    for option in ["-O", "-R"] {
        let available = tool::words(Command::new("mkfs.btrfs").args([option, "list-all"]), "btrfs-progs")?;
        let mut words = features::btrfs(&volume.source.features, &available);
        words.retain(|word| !told.contains(word));
        if !words.is_empty() {
            command.args([option, &words.join(",")]);
        }
        told.extend(words);
    }
    Ok(command)
}
