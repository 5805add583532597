//! A replica's disk grows when a volume of its source has grown: the plan first, then the disk's file, and at the next attachment the file system.
//!
//! A partition with nothing behind it is made longer where it is. Any other one moves to the end of the disk, where it can grow again without
//! moving; what it leaves becomes a hole. The new plan is the commit: before it the old partition is untouched, and after it only the partition
//! table and the hole are missing, which every call makes up for. So the call may be repeated after a crash at any place.
//!
//! Nothing may have the disk open meanwhile.

use super::create::{finish, finished_plan};
use super::plan::{ALIGNMENT, DiskPlan, VOLUME_BYTES_MAX};
use super::{DiskError, LoopDevice, duplicate, gpt, tool};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use standin_model::{FileSystem, VolumeId};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// A file system's own records take up to 2 % of a volume (ext4's inode tables), and a larger one needs them on the datastore.
const RECORDS_SHARE: u64 = 50;
/// What a growth leaves free for replication itself.
const RESERVE_BYTES: u64 = 64 << 20;

/// A volume and the bytes that it has on the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VolumeSize {
    pub volume: VolumeId,
    pub size: u64,
}

/// A partition's old and new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Growth {
    volume: VolumeId,
    from: u64,
    to: u64,
    before: u64,
    after: u64,
}

/// Makes the partitions of a finished disk as large as `wanted`, where they are smaller. Returns the volumes that have grown.
pub fn grow(disk: &Path, wanted: &[VolumeSize]) -> Result<Vec<VolumeId>, DiskError> {
    let Some(plan) = finished_plan(disk)? else { return Ok(Vec::new()) };
    let mut file = File::options().read(true).write(true).open(disk).map_err(DiskError::io(disk, "opening"))?;
    let (grown, growths) = planned(&plan, wanted);
    if growths.is_empty() {
        settle(&mut file, disk, &plan)?;
        return Ok(Vec::new());
    }
    check_space(&file, disk, &growths)?;
    file.set_len(grown.size).map_err(DiskError::io(disk, "making longer"))?;
    for growth in &growths {
        make_room(&file, growth).map_err(|errno| DiskError::io(disk, "moving a volume")(errno.into()))?;
    }
    file.sync_all().map_err(DiskError::io(disk, "writing down"))?;
    finish(disk, &grown)?;
    settle(&mut file, disk, &grown)?;
    Ok(growths.iter().map(|growth| growth.volume).collect())
}

/// The plan with every wanted volume at its new size, and what that takes. A size that no disk can have is not believed.
fn planned(plan: &DiskPlan, wanted: &[VolumeSize]) -> (DiskPlan, Vec<Growth>) {
    let (mut grown, mut growths) = (plan.clone(), Vec::new());
    for wish in wanted.iter().filter(|wish| wish.size < VOLUME_BYTES_MAX) {
        let end = grown.partitions.iter().map(|part| part.offset + part.size).max().unwrap_or(ALIGNMENT);
        let Some(number) = grown.volume(wish.volume).map(|part| part.number) else { continue };
        let Some(part) = grown.partitions.iter_mut().find(|part| part.number == number) else { continue };
        let after = wish.size.next_multiple_of(ALIGNMENT);
        if after <= part.size {
            continue;
        }
        let to = if part.offset + part.size == end { part.offset } else { end };
        growths.push(Growth { volume: wish.volume, from: part.offset, to, before: part.size, after });
        (part.offset, part.size) = (to, after);
    }
    if let Some(end) = grown.partitions.iter().map(|part| part.offset + part.size).max() {
        grown.size = grown.size.max(end + ALIGNMENT);
    }
    (grown, growths)
}

/// The file is sparse: only what is copied and the larger file systems' own records take space.
fn check_space(file: &File, disk: &Path, growths: &[Growth]) -> Result<(), DiskError> {
    let directory = disk.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shares = super::can_reflink(directory);
    let mut needed = RESERVE_BYTES;
    for growth in growths {
        needed = needed.saturating_add((growth.after - growth.before) / RECORDS_SHARE);
        if growth.from != growth.to && !shares {
            let data = duplicate::data_bytes(file, growth.from, growth.from + growth.before);
            needed = needed.saturating_add(data.map_err(|errno| DiskError::io(disk, "measuring")(errno.into()))?);
        }
    }
    let free = super::datastore_free(directory)?;
    if free < needed { Err(DiskError::NoSpace { free, needed }) } else { Ok(()) }
}

fn make_room(file: &File, growth: &Growth) -> Result<(), Errno> {
    // The old table's copy at the end of the disk, or what a crashed attempt has left.
    let fresh = if growth.from == growth.to { growth.from + growth.before } else { growth.to };
    punch(file, fresh, growth.to + growth.after)?;
    if growth.from != growth.to {
        duplicate::copy_data(file, file, growth.from, growth.from + growth.before, growth.to)?;
    }
    Ok(())
}

/// What the plan says, on the disk: its length, its partition table, and nothing where no partition is.
fn settle(file: &mut File, disk: &Path, plan: &DiskPlan) -> Result<(), DiskError> {
    let length = file.metadata().map_err(DiskError::io(disk, "reading the size"))?.len();
    if length > plan.size {
        file.set_len(plan.size).map_err(DiskError::io(disk, "sizing"))?;
    }
    if gpt::verify(file, disk, plan).is_err() {
        gpt::write(file, disk, plan)?;
        file.sync_all().map_err(DiskError::io(disk, "writing down"))?;
    }
    let mut used: Vec<(u64, u64)> = plan.partitions.iter().map(|part| (part.offset, part.offset + part.size)).collect();
    used.sort_unstable();
    let gaps = used.windows(2).filter_map(|pair| match pair {
        [(_, end), (next, _)] if end < next => Some((*end, *next)),
        _ => None,
    });
    for (from, to) in gaps {
        punch(file, from, to).map_err(|errno| DiskError::io(disk, "letting go of a volume's old place")(errno.into()))?;
    }
    Ok(())
}

fn punch(file: &File, from: u64, to: u64) -> Result<(), Errno> {
    match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, to - from) {
        // A datastore without holes: zeroes where a file system will be, and nothing where none is.
        Err(Errno::OPNOTSUPP) => duplicate::write_zeroes(file, from, to),
        done => done,
    }
}

/// Bytes of the file system on a device, by its own superblock.
fn file_system_bytes(device: &Path, kind: FileSystem) -> std::io::Result<u64> {
    let device = File::open(device)?;
    let field = |offset: u64| -> std::io::Result<[u8; 8]> {
        let mut bytes = [0; 8];
        device.read_exact_at(&mut bytes, offset).map(|()| bytes)
    };
    let half = |offset: u64| field(offset).map(|bytes| [bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(match kind {
        // s_blocks_count_lo, s_blocks_count_hi, s_log_block_size (fs/ext4/ext4.h).
        FileSystem::Ext4 => {
            let blocks = u64::from(u32::from_le_bytes(half(1024 + 0x04)?)) | u64::from(u32::from_le_bytes(half(1024 + 0x150)?)) << 32;
            blocks.saturating_mul(1024 << u32::from_le_bytes(half(1024 + 0x18)?).min(6))
        }
        // sb_dblocks, sb_blocksize (fs/xfs/libxfs/xfs_format.h).
        FileSystem::Xfs => u64::from_be_bytes(field(8)?).saturating_mul(u64::from(u32::from_be_bytes(half(4)?))),
        // total_bytes of the superblock at 64 KiB (btrfs's on-disk format).
        FileSystem::Btrfs => u64::from_le_bytes(field((64 << 10) + 0x70)?),
    })
}

/// A file system that may be larger than it is.
pub(super) struct Smaller {
    kind: FileSystem,
}

/// Asked before a device is mounted, because a mounted file system's superblock may be written down late.
pub(super) fn smaller(device: &LoopDevice, size: u64, kind: FileSystem) -> Option<Smaller> {
    // An ext4 of 1 KiB blocks is the finest; all others leave less than one of their own blocks at the end.
    let block = 64 << 10;
    file_system_bytes(device.path(), kind).ok().filter(|bytes| bytes.saturating_add(block) <= size).map(|_| Smaller { kind })
}

impl Smaller {
    /// Where the kernel refuses a mounted ext4, such as in a container that may not use reserved resources (CAP_SYS_RESOURCE).
    pub(super) fn can_grow_unmounted(&self) -> bool {
        self.kind == FileSystem::Ext4
    }

    /// Makes the mounted file system as large as its device. All three kinds do that while they are mounted.
    pub(super) fn grow(&self, device: &LoopDevice, mount: &Path) -> Result<(), DiskError> {
        let (mut command, package) = match self.kind {
            FileSystem::Ext4 => (Command::new("resize2fs"), "e2fsprogs"),
            FileSystem::Xfs => (Command::new("xfs_growfs"), "xfsprogs"),
            FileSystem::Btrfs => (Command::new("btrfs"), "btrfs-progs"),
        };
        match self.kind {
            FileSystem::Ext4 => command.arg(device.path()),
            FileSystem::Xfs => command.arg("-d").arg(mount),
            FileSystem::Btrfs => command.args(["filesystem", "resize", "max"]).arg(mount),
        };
        tool::run(&mut command, package).map(drop)
    }
}

/// Makes an ext4 as large as its device while nobody has it mounted. It is checked first, because resize2fs asks for that.
pub(super) fn unmounted(device: &LoopDevice) -> Result<(), DiskError> {
    // Its exit code says what it mended; whether the file system is good, resize2fs judges by itself.
    tool::words(Command::new("e2fsck").args(["-f", "-p"]).arg(device.path()), "e2fsprogs")?;
    tool::run(Command::new("resize2fs").arg(device.path()), "e2fsprogs").map(drop)
}

#[cfg(test)]
#[path = "grow_tests.rs"]
mod tests;
