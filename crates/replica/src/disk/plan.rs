//! The plan of a replica disk: a pure function of the source's inventory, the operator's wishes and the free space.
//!
//! One raw disk, 512-byte sectors, fresh GPT, partitions aligned to 1 MiB: BIOS boot, EFI system, one per protected volume in the
//! order of their mount points, swap last. Both firmware partitions are always there: they cost 101 MiB of sparse file, and the
//! replica may then be launched under either firmware. The plan is plain data, so that it can be shown, stored and compared.

use super::identity::{self, check_label, check_mount_point, check_uuid, derived_uuid, uuid_text};
use super::inventory::{EspVolume, FsType, SourceInventory, SourceVolume, SwapVolume, WantedDisk};
use super::{DiskError, Firmware};
use serde::{Deserialize, Serialize};

/// Bytes of one sector of the replica's disk.
pub const SECTOR_BYTES: u64 = 512;
const MIB: u64 = 1 << 20;
/// Alignment of every partition; also the room kept for the GPT at the start and at the end.
const ALIGNMENT: u64 = MIB;
const BIOS_BOOT_BYTES: u64 = MIB;
/// FAT32 with 512-byte clusters needs 65,525 clusters = 32 MiB; 100 MiB leaves room for several loaders.
const ESP_BYTES_MIN: u64 = 100 * MIB;
/// mkfs.btrfs refuses less than 109 MiB, mkfs.xfs 300 MiB.
const BTRFS_BYTES_MIN: u64 = 128 * MIB;
const XFS_BYTES_MIN: u64 = 300 * MIB;
const EXT4_BYTES_MIN: u64 = 16 * MIB;
/// A GPT of standard size has 128 entries; two are ours.
const VOLUMES_MAX: usize = 100;

/// What a partition of the replica's disk is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PartitionRole {
    BiosBoot,
    Esp { volume_id: String, label: String, mount_point: Option<String>, device_names: Vec<String> },
    Volume { fs: FsType, volume: SourceVolume },
    Swap { swap: SwapVolume },
}

/// One partition: where it lies and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// 1-based number in the table.
    pub number: u32,
    pub offset: u64,
    pub size: u64,
    /// The partition's own GUID as text.
    pub guid: String,
    pub role: PartitionRole,
}

/// The whole disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPlan {
    pub disk_guid: String,
    pub size: u64,
    /// Firmware of the source; the replica starts under it unless the operator chooses the other.
    pub firmware: Firmware,
    pub partitions: Vec<Partition>,
    /// Bytes that the used data needs at least on the datastore, for the space check.
    pub needed: u64,
}

impl DiskPlan {
    /// Plans the disk. `datastore_free` is in bytes; the disk is sparse, so the used bytes have to fit, not the sizes.
    pub fn make(source: &SourceInventory, wanted: &WantedDisk, datastore_free: u64) -> Result<DiskPlan, DiskError> {
        let mut volumes: Vec<&SourceVolume> = source.volumes.iter().collect();
        volumes.sort_by(|a, b| a.mount_point.cmp(&b.mount_point));
        check_set(&volumes, source.swaps.len())?;
        let seed: String = volumes.iter().map(|volume| volume.uuid.as_str()).collect();
        let mut builder = Builder { seed, next: ALIGNMENT, partitions: Vec::new() };
        builder.push(BIOS_BOOT_BYTES, None, PartitionRole::BiosBoot)?;
        builder.push_esp(source.esp.as_ref())?;
        for volume in &volumes {
            builder.push_volume(volume, wanted)?;
        }
        if !wanted.without_swap {
            for swap in &source.swaps {
                builder.push_swap(swap)?;
            }
        }
        let used = volumes.iter().fold(0u64, |sum, volume| sum.saturating_add(volume.used));
        // Metadata of the empty file systems and the firmware partitions take about 1 % and a few MiB.
        let needed = used.saturating_add(used / 100).saturating_add(64 * MIB);
        if needed > datastore_free {
            return Err(DiskError::NoSpace { free: datastore_free, needed });
        }
        Ok(builder.finish(source.firmware, needed))
    }

    /// The partition of a volume.
    pub fn volume(&self, id: u32) -> Option<&Partition> {
        self.partitions.iter().find(|part| matches!(&part.role, PartitionRole::Volume { volume, .. } if volume.id == id))
    }

    /// All volumes with their partitions, shallow mount points first.
    pub fn volumes(&self) -> impl Iterator<Item = (&Partition, FsType, &SourceVolume)> {
        self.partitions.iter().filter_map(|part| match &part.role {
            PartitionRole::Volume { fs, volume } => Some((part, *fs, volume)),
            _ => None,
        })
    }

    /// All swap areas.
    pub fn swaps(&self) -> impl Iterator<Item = (&Partition, &SwapVolume)> {
        self.partitions.iter().filter_map(|part| match &part.role {
            PartitionRole::Swap { swap } => Some((part, swap)),
            _ => None,
        })
    }

    /// The volume that holds `path`, by the longest mount point that is a prefix of it.
    pub fn volume_of_path(&self, path: &str) -> Option<(&Partition, FsType, &SourceVolume)> {
        self.volumes().filter(|(_, _, volume)| is_below(path, &volume.mount_point)).max_by_key(|(_, _, volume)| volume.mount_point.len())
    }

    /// The BIOS boot partition.
    pub fn bios_boot(&self) -> Option<&Partition> {
        self.partitions.iter().find(|part| part.role == PartitionRole::BiosBoot)
    }

    /// The EFI system partition.
    pub fn esp(&self) -> Option<&Partition> {
        self.partitions.iter().find(|part| matches!(part.role, PartitionRole::Esp { .. }))
    }
}

/// True when `path` is `mount_point` or lies below it.
pub(crate) fn is_below(path: &str, mount_point: &str) -> bool {
    let base = mount_point.trim_end_matches('/');
    base.is_empty() || path == base || path.strip_prefix(base).is_some_and(|rest| rest.starts_with('/'))
}

/// Bytes that an unprivileged writer may still use on the file system that holds `directory`.
pub fn datastore_free(directory: &std::path::Path) -> Result<u64, DiskError> {
    let stat = rustix::fs::statvfs(directory).map_err(|errno| DiskError::io(directory, "reading the free space")(errno.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn check_set(volumes: &[&SourceVolume], swaps: usize) -> Result<(), DiskError> {
    let bad = |field, value: String, reason| Err(DiskError::BadInventory { field, value, reason });
    if volumes.is_empty() || volumes.len() + swaps > VOLUMES_MAX {
        return bad("volumes", volumes.len().to_string(), "which is none, or more than one disk can hold");
    }
    for (index, volume) in volumes.iter().enumerate() {
        for other in &volumes[index + 1..] {
            if other.id == volume.id {
                return bad("volume.id", volume.id.to_string(), "which two volumes claim");
            }
            if other.uuid == volume.uuid {
                return bad("volume.uuid", volume.uuid.clone(), "which two volumes claim; protect one of them");
            }
            if other.mount_point == volume.mount_point {
                return bad("volume.mount_point", volume.mount_point.clone(), "which two volumes claim");
            }
        }
    }
    Ok(())
}

struct Builder {
    seed: String,
    next: u64,
    partitions: Vec<Partition>,
}

impl Builder {
    fn push(&mut self, size: u64, guid: Option<&str>, role: PartitionRole) -> Result<(), DiskError> {
        let number = self.partitions.len() as u32 + 1;
        let too_large = || DiskError::BadInventory { field: "size", value: size.to_string(), reason: "which no disk can hold" };
        // 8 EiB is the end of a file offset; a petabyte is far beyond any volume that one appliance takes.
        let size = Some(size).filter(|size| *size < 1 << 50).ok_or_else(too_large)?.next_multiple_of(ALIGNMENT);
        let guid = match guid {
            Some(guid) => {
                check_uuid("partition_uuid", guid)?;
                guid.to_ascii_lowercase()
            }
            None => uuid_text(&derived_uuid(&format!("{}#{number}", self.seed))),
        };
        self.partitions.push(Partition { number, offset: self.next, size, guid, role });
        self.next += size;
        Ok(())
    }

    fn push_esp(&mut self, esp: Option<&EspVolume>) -> Result<(), DiskError> {
        let Some(esp) = esp else {
            let id = derived_uuid(&format!("{}#esp", self.seed));
            let volume_id = format!("{:02X}{:02X}-{:02X}{:02X}", id[0], id[1], id[2], id[3]);
            let role = PartitionRole::Esp { volume_id, label: String::new(), mount_point: None, device_names: Vec::new() };
            return self.push(ESP_BYTES_MIN, None, role);
        };
        identity::fat_volume_id(&esp.volume_id)?;
        check_label("esp.label", &esp.label, 11)?;
        check_mount_point("esp.mount_point", &esp.mount_point)?;
        let role = PartitionRole::Esp {
            volume_id: esp.volume_id.clone(),
            label: esp.label.clone(),
            mount_point: Some(esp.mount_point.clone()),
            device_names: esp.device_names.clone(),
        };
        self.push(esp.size.clamp(ESP_BYTES_MIN, 4096 * MIB), esp.partition_uuid.as_deref(), role)
    }

    fn push_volume(&mut self, volume: &SourceVolume, wanted: &WantedDisk) -> Result<(), DiskError> {
        let fs = FsType::from_name(&volume.fs_type)
            .ok_or_else(|| DiskError::UnsupportedFileSystem { mount_point: volume.mount_point.clone(), fs_type: volume.fs_type.clone() })?;
        check_volume(volume, fs)?;
        let size = wanted.volume_sizes.get(&volume.id).copied().unwrap_or(volume.size);
        let least = least_size(fs, volume, size);
        // The source's own size is trusted to hold its own data, however full it is.
        let roomy = if wanted.volume_sizes.contains_key(&volume.id) { size >= least } else { volume.used <= size };
        if !roomy {
            let (mount_point, used) = (volume.mount_point.clone(), volume.used);
            return Err(DiskError::VolumeTooSmall { mount_point, used, size, least });
        }
        let role = PartitionRole::Volume { fs, volume: volume.clone() };
        self.push(size.max(smallest(fs)), volume.partition_uuid.as_deref(), role)
    }

    fn push_swap(&mut self, swap: &SwapVolume) -> Result<(), DiskError> {
        check_uuid("swap.uuid", &swap.uuid)?;
        check_label("swap.label", &swap.label, 15)?;
        self.push(swap.size.max(MIB), swap.partition_uuid.as_deref(), PartitionRole::Swap { swap: swap.clone() })
    }

    fn finish(self, firmware: Firmware, needed: u64) -> DiskPlan {
        DiskPlan {
            disk_guid: uuid_text(&derived_uuid(&format!("{}#disk", self.seed))),
            size: self.next + ALIGNMENT,
            firmware,
            partitions: self.partitions,
            needed,
        }
    }
}

fn check_volume(volume: &SourceVolume, fs: FsType) -> Result<(), DiskError> {
    check_mount_point("volume.mount_point", &volume.mount_point)?;
    check_uuid("volume.uuid", &volume.uuid)?;
    // Limits of the on-disk formats: s_volume_name[16], sb_fname[12], label[256] with its final zero.
    let limit = match fs {
        FsType::Ext4 => 16,
        FsType::Xfs => 12,
        FsType::Btrfs => 255,
    };
    check_label("volume.label", &volume.label, limit)?;
    let flag_ok =
        |flag: &String| !flag.is_empty() && flag.chars().all(|c| c.is_ascii_alphanumeric() || "_^=-".contains(c)) && !flag.starts_with('-');
    if let Some(flag) = volume.features.flags.iter().find(|flag| !flag_ok(flag)) {
        return Err(DiskError::BadInventory { field: "features.flags", value: flag.clone(), reason: "which is no feature name" });
    }
    if !volume.other_subvolumes.is_empty() {
        let (mount_point, subvolumes) = (volume.mount_point.clone(), volume.other_subvolumes.join(", "));
        return Err(DiskError::FurtherSubvolumes { mount_point, subvolumes });
    }
    let subvolume = &volume.subvolume;
    let nested = subvolume.starts_with('/') || subvolume.split('/').any(|part| part == "..") || subvolume.contains(',');
    if !subvolume.is_empty() && (fs != FsType::Btrfs || nested || subvolume.chars().any(char::is_control) || subvolume.starts_with('-')) {
        return Err(DiskError::BadInventory { field: "volume.subvolume", value: subvolume.clone(), reason: "which is no subvolume path" });
    }
    Ok(())
}

fn smallest(fs: FsType) -> u64 {
    match fs {
        FsType::Ext4 => EXT4_BYTES_MIN,
        FsType::Xfs => XFS_BYTES_MIN,
        FsType::Btrfs => BTRFS_BYTES_MIN,
    }
}

/// The least size that holds the used bytes: inode tables and journal take up to 4 % plus a few MiB, and 5 % stay reserved.
fn least_size(fs: FsType, volume: &SourceVolume, size: u64) -> u64 {
    let metadata = volume.used / 25 + size.min(volume.used) / 50 + 32 * MIB;
    volume.used.saturating_add(metadata).max(smallest(fs)).next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
