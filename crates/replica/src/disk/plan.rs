//! The plan of a replica disk: a pure function of the source's inventory, the operator's wishes and the free space.
//!
//! One raw disk, 512-byte sectors, fresh GPT, partitions aligned to 1 MiB: BIOS boot, EFI system, one per protected volume in the
//! order of their mount points, swap last. Both firmware partitions are always there: they cost 101 MiB of sparse file, and the
//! replica may then be launched under either firmware. The plan is plain data, so that it can be shown, stored and compared.

use super::DiskError;
use super::identity::{self, check_label, check_mount_point, check_uuid, derived_uuid, parse_uuid, uuid_text};
use serde::{Deserialize, Serialize};
use standin_model::{FileSystem, Firmware, Inventory, SwapArea, SystemPartition, Volume, VolumeId, VolumeSpec};

/// Bytes of one sector of the replica's disk.
pub const SECTOR_BYTES: u64 = 512;
const MIB: u64 = 1 << 20;
/// Alignment of every partition; also the room kept for the GPT at the start and at the end.
pub(super) const ALIGNMENT: u64 = MIB;
/// 8 EiB is the end of a file offset; a petabyte is far beyond any volume that one appliance takes.
pub(super) const VOLUME_BYTES_MAX: u64 = 1 << 50;
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
    Esp { volume_id: String, label: String, mount_point: Option<String> },
    Volume { volume: ReplicaVolume },
    Swap { swap: SwapArea },
}

/// A protected volume: its number within the job, and what the source has there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaVolume {
    pub id: VolumeId,
    pub fs: FileSystem,
    pub source: Volume,
}

impl ReplicaVolume {
    /// The subvolume that is mounted (btrfs), without leading slash; empty for the top level.
    pub fn subvolume(&self) -> &str {
        subvolume(&self.source)
    }
}

fn subvolume(volume: &Volume) -> &str {
    volume.subvolume.as_deref().unwrap_or_default().trim_matches('/')
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
    /// Swap files of the source: `device` is the path.
    #[serde(default)]
    pub swap_files: Vec<SwapArea>,
    /// Bytes that the used data needs at least on the datastore, for the space check.
    pub needed: u64,
}

impl DiskPlan {
    /// Plans the disk for the `wanted` volumes of a source. Everything in the inventory comes over the wire from a host that may be hostile, so
    /// every field is checked before it reaches a command line. `datastore_free` is in bytes; the disk is sparse, so the used bytes have to
    /// fit, not the sizes.
    pub fn make(source: &Inventory, wanted: &[VolumeSpec], datastore_free: u64) -> Result<DiskPlan, DiskError> {
        let mut volumes = wanted.iter().map(|spec| found(source, spec)).collect::<Result<Vec<_>, _>>()?;
        volumes.sort_by(|(_, a), (_, b)| a.mount_point.cmp(&b.mount_point));
        check_set(&volumes, source.swaps.len())?;
        let seed: String = volumes.iter().map(|(_, volume)| volume.uuid.as_str()).collect();
        let mut builder = Builder { seed, next: ALIGNMENT, partitions: Vec::new(), swap_files: Vec::new() };
        builder.push(BIOS_BOOT_BYTES, None, PartitionRole::BiosBoot)?;
        builder.push_esp(source.system_partition.as_ref())?;
        for (spec, volume) in &volumes {
            builder.push_volume(spec, volume)?;
        }
        // A swap file lies on a volume; boot repair makes it anew.
        let (swaps, swap_files): (Vec<&SwapArea>, Vec<&SwapArea>) = source.swaps.iter().partition(|swap| swap.device.starts_with("/dev/"));
        for swap in swaps {
            builder.push_swap(swap)?;
        }
        builder.swap_files = swap_files.into_iter().cloned().collect();
        let used = volumes.iter().fold(0u64, |sum, (_, volume)| sum.saturating_add(volume.used.0));
        // Metadata of the empty file systems and the firmware partitions take about 1 % and a few MiB.
        let needed = used.saturating_add(used / 100).saturating_add(64 * MIB);
        if needed > datastore_free {
            return Err(DiskError::NoSpace { free: datastore_free, needed });
        }
        Ok(builder.finish(source.firmware, needed))
    }

    /// The partition of a volume.
    pub fn volume(&self, id: VolumeId) -> Option<&Partition> {
        self.volumes().find(|(_, volume)| volume.id == id).map(|(part, _)| part)
    }

    /// All volumes with their partitions, shallow mount points first.
    pub fn volumes(&self) -> impl Iterator<Item = (&Partition, &ReplicaVolume)> {
        self.partitions.iter().filter_map(|part| match &part.role {
            PartitionRole::Volume { volume } => Some((part, volume)),
            _ => None,
        })
    }

    /// All swap areas.
    pub fn swaps(&self) -> impl Iterator<Item = (&Partition, &SwapArea)> {
        self.partitions.iter().filter_map(|part| match &part.role {
            PartitionRole::Swap { swap } => Some((part, swap)),
            _ => None,
        })
    }

    /// The volume that holds `path`, by the longest mount point that is a prefix of it.
    pub fn volume_of_path(&self, path: &str) -> Option<(&Partition, &ReplicaVolume)> {
        let holding = self.volumes().filter(|(_, volume)| is_below(path, &volume.source.mount_point));
        holding.max_by_key(|(_, volume)| volume.source.mount_point.len())
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

fn found<'a>(source: &'a Inventory, spec: &'a VolumeSpec) -> Result<(&'a VolumeSpec, &'a Volume), DiskError> {
    let volume = source.volumes.iter().find(|volume| volume.mount_point == spec.mount_point);
    let absent = || DiskError::BadInventory { field: "volumes", value: spec.mount_point.clone(), reason: "which the source does not have" };
    volume.map(|volume| (spec, volume)).ok_or_else(absent)
}

fn check_set(volumes: &[(&VolumeSpec, &Volume)], swaps: usize) -> Result<(), DiskError> {
    let bad = |field, value: String, reason| Err(DiskError::BadInventory { field, value, reason });
    if volumes.is_empty() || volumes.len() + swaps > VOLUMES_MAX {
        return bad("volumes", volumes.len().to_string(), "which is none, or more than one disk can hold");
    }
    for (index, (spec, volume)) in volumes.iter().enumerate() {
        for (other_spec, other) in &volumes[index + 1..] {
            if other_spec.id == spec.id {
                return bad("volume.id", spec.id.to_string(), "which two volumes claim");
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
    swap_files: Vec<SwapArea>,
}

impl Builder {
    fn push(&mut self, size: u64, guid: Option<&str>, role: PartitionRole) -> Result<(), DiskError> {
        let number = self.partitions.len() as u32 + 1;
        let too_large = || DiskError::BadInventory { field: "size", value: size.to_string(), reason: "which no disk can hold" };
        let size = Some(size).filter(|size| *size < VOLUME_BYTES_MAX).ok_or_else(too_large)?.next_multiple_of(ALIGNMENT);
        // A DOS label's `XXXXXXXX-NN` cannot be kept in a GPT; boot repair turns what refers to it into file system UUIDs.
        let kept =
            guid.and_then(parse_uuid).map(|bytes| uuid_text(&bytes)).filter(|guid| self.partitions.iter().all(|part| &part.guid != guid));
        let guid = kept.unwrap_or_else(|| uuid_text(&derived_uuid(&format!("{}#{number}", self.seed))));
        self.partitions.push(Partition { number, offset: self.next, size, guid, role });
        self.next += size;
        Ok(())
    }

    fn push_esp(&mut self, esp: Option<&SystemPartition>) -> Result<(), DiskError> {
        let Some(esp) = esp else {
            let id = derived_uuid(&format!("{}#esp", self.seed));
            let volume_id = format!("{:02X}{:02X}-{:02X}{:02X}", id[0], id[1], id[2], id[3]);
            let role = PartitionRole::Esp { volume_id, label: String::new(), mount_point: None };
            return self.push(ESP_BYTES_MIN, None, role);
        };
        identity::fat_volume_id(&esp.uuid)?;
        check_label("esp.label", &esp.label, 11)?;
        check_mount_point("esp.mount_point", &esp.mount_point)?;
        let role = PartitionRole::Esp { volume_id: esp.uuid.clone(), label: esp.label.clone(), mount_point: Some(esp.mount_point.clone()) };
        self.push(esp.size.0.clamp(ESP_BYTES_MIN, 4096 * MIB), None, role)
    }

    fn push_volume(&mut self, spec: &VolumeSpec, volume: &Volume) -> Result<(), DiskError> {
        let fs = volume.file_system.filter(|fs| *fs == spec.file_system).ok_or_else(|| DiskError::UnsupportedFileSystem {
            mount_point: volume.mount_point.clone(),
            fs_type: volume.file_system_name.clone(),
        })?;
        check_volume(volume, fs)?;
        let (size, used) = (spec.size.0, volume.used.0);
        let least = least_size(fs, used, size);
        // The source's own size is trusted to hold its own data, however full it is.
        let roomy = if spec.size != volume.size { size >= least } else { used <= size };
        if !roomy {
            return Err(DiskError::VolumeTooSmall { mount_point: volume.mount_point.clone(), used, size, least });
        }
        let role = PartitionRole::Volume { volume: ReplicaVolume { id: spec.id, fs, source: volume.clone() } };
        self.push(size.max(smallest(fs)), volume.partition_uuid.as_deref(), role)
    }

    fn push_swap(&mut self, swap: &SwapArea) -> Result<(), DiskError> {
        check_uuid("swap.uuid", &swap.uuid)?;
        check_label("swap.label", &swap.label, 15)?;
        self.push(swap.size.0.max(MIB), None, PartitionRole::Swap { swap: swap.clone() })
    }

    fn finish(self, firmware: Firmware, needed: u64) -> DiskPlan {
        DiskPlan {
            disk_guid: uuid_text(&derived_uuid(&format!("{}#disk", self.seed))),
            size: self.next + ALIGNMENT,
            firmware,
            partitions: self.partitions,
            swap_files: self.swap_files,
            needed,
        }
    }
}

fn check_volume(volume: &Volume, fs: FileSystem) -> Result<(), DiskError> {
    check_mount_point("volume.mount_point", &volume.mount_point)?;
    check_uuid("volume.uuid", &volume.uuid)?;
    // Limits of the on-disk formats: s_volume_name[16], sb_fname[12], label[256] with its final zero.
    let limit = match fs {
        FileSystem::Ext4 => 16,
        FileSystem::Xfs => 12,
        FileSystem::Btrfs => 255,
    };
    check_label("volume.label", &volume.label, limit)?;
    let subvolume = subvolume(volume);
    // The mounted subvolume is among those that the source counts.
    let further = volume.extra_subvolumes.saturating_sub(u32::from(!subvolume.is_empty()));
    if further > 0 {
        return Err(DiskError::FurtherSubvolumes { mount_point: volume.mount_point.clone(), further });
    }
    let odd = subvolume.split('/').any(|part| matches!(part, ".." | "." | "")) || subvolume.contains(',') || subvolume.starts_with('-');
    if !subvolume.is_empty() && (fs != FileSystem::Btrfs || odd || subvolume.chars().any(char::is_control)) {
        return Err(DiskError::BadInventory { field: "volume.subvolume", value: subvolume.into(), reason: "which is no subvolume path" });
    }
    Ok(())
}

fn smallest(fs: FileSystem) -> u64 {
    match fs {
        FileSystem::Ext4 => EXT4_BYTES_MIN,
        FileSystem::Xfs => XFS_BYTES_MIN,
        FileSystem::Btrfs => BTRFS_BYTES_MIN,
    }
}

/// The least size that holds the used bytes: inode tables and journal take up to 4 % plus a few MiB, and 5 % stay reserved.
fn least_size(fs: FileSystem, used: u64, size: u64) -> u64 {
    let metadata = used / 25 + size.min(used) / 50 + 32 * MIB;
    // A source may say that it uses more than any disk has; rounding that up must not end at 0.
    used.saturating_add(metadata).max(smallest(fs)).checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
