//! Tells whether two disks hold the same files.
//!
//! Each disk is mounted read-only in a private mount namespace and read into a manifest, one after the other: a source and its
//! replica have the same file system UUIDs, and a kernel would take two mounted at once for one. Nothing is replayed or written:
//! ext4 is mounted with `noload`, xfs with `norecovery`, btrfs with `rescue=nologreplay`. A disk that was not unmounted or frozen
//! shows its state without the log; use `replayed` for those, which mounts a sparse copy and lets the log be applied there.
//!
//! What is compared is said in `standin_replica::diff`, which compares.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::lab::command;
use crate::lab::disk::{self, ByteRange};
use crate::lab::image::FileSystem;
use crate::lab::space::{Access, Space};

pub use standin_replica::diff::{Difference, Kind, Manifest, allowed, differences, read_tree};

/// What a comparison found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Entries compared, over all volumes.
    pub entries: usize,
    pub differences: Vec<Difference>,
    /// Differences on paths that the allow-list names.
    pub allowed: usize,
    /// UUIDs of the volumes by their numbers.
    pub volumes: BTreeMap<u32, String>,
}

/// How a disk's log is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// The disk is as it is; a log with content is not read.
    Ignored,
    /// The log is applied to a sparse copy of the disk.
    Replayed,
}

/// A disk's volume: its partition's number, its file system's UUID as hexadecimal, and what is on it.
pub struct Volume {
    pub number: u32,
    pub uuid: String,
    pub manifest: Manifest,
}

/// Compares every Linux volume of two raw disks; volumes with the same UUID belong together, wherever they lie. `allow` are patterns with
/// `*` over whole paths. A difference carries the partition's number on the left disk, or on the right one where the left has none.
pub fn disks(left: &Path, right: &Path, log: Log, allow: &[String]) -> Result<Report> {
    let mut left = by_uuid(volumes(left, log).with_context(|| format!("reading {}", left.display()))?);
    let mut right = by_uuid(volumes(right, log).with_context(|| format!("reading {}", right.display()))?);
    let mut report = Report { entries: 0, differences: Vec::new(), allowed: 0, volumes: BTreeMap::new() };
    let uuids: BTreeSet<String> = left.keys().chain(right.keys()).cloned().collect();
    for uuid in uuids {
        let (left, right) = (left.remove(&uuid), right.remove(&uuid));
        let number = left.as_ref().or(right.as_ref()).map_or(0, |volume| volume.number);
        report.volumes.insert(number, uuid);
        let manifest = |side: Option<Volume>| side.map(|volume| volume.manifest).unwrap_or_default();
        let (left, right) = (manifest(left), manifest(right));
        report.entries += left.len().max(right.len());
        for difference in differences(&left, &right) {
            if allowed(&difference.path, allow) {
                report.allowed += 1;
            } else {
                report.differences.push(Difference { volume: number, ..difference });
            }
        }
    }
    Ok(report)
}

fn by_uuid(volumes: Vec<Volume>) -> BTreeMap<String, Volume> {
    volumes.into_iter().map(|volume| (volume.uuid.clone(), volume)).collect()
}

/// A disk's ext4, xfs and btrfs volumes.
pub fn volumes(disk: &Path, log: Log) -> Result<Vec<Volume>> {
    let copy = (log == Log::Replayed).then(|| sparse_copy(disk)).transpose()?;
    let read = copy.as_deref().unwrap_or(disk);
    let found = read_volumes(read, log);
    if let Some(copy) = copy {
        fs::remove_file(copy).ok();
    }
    found
}

fn read_volumes(disk: &Path, log: Log) -> Result<Vec<Volume>> {
    let mut found = Vec::new();
    for (number, range) in disk::partitions(disk)? {
        let Some(kind) = probe(disk, range)? else { continue };
        // One namespace for each volume, so that a volume is gone before the next one with its UUID is mounted.
        let space = Space::new()?;
        let on = space.folder("volume")?;
        let access = if log == Log::Replayed { Access::ReadWrite } else { Access::ReadOnly };
        space.mount(disk, range, kind, &on, access)?;
        let manifest = read_tree(&space.seen(&on), &[]).with_context(|| format!("reading partition {number}"))?;
        space.unmount(&on)?;
        found.push(Volume { number, uuid: uuid(disk, range, kind)?, manifest });
    }
    Ok(found)
}

/// The UUID in a file system's superblock (ext4: s_uuid, xfs: sb_uuid, btrfs: fsid).
fn uuid(disk: &Path, range: ByteRange, kind: FileSystem) -> Result<String> {
    use std::os::unix::fs::FileExt;
    let offset = match kind {
        FileSystem::Ext4 => 1024 + 0x68,
        FileSystem::Xfs => 32,
        FileSystem::Btrfs => 0x10000 + 0x20,
    };
    let mut bytes = [0; 16];
    fs::File::open(disk)?.read_exact_at(&mut bytes, range.start + offset).context("reading a superblock")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The kind of file system in a range, by its magic number; `None` for what is none of ours (swap, FAT, nothing).
pub fn probe(disk: &Path, range: ByteRange) -> Result<Option<FileSystem>> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::open(disk)?;
    let at = |offset: u64, expect: &[u8]| {
        let mut bytes = vec![0; expect.len()];
        offset + expect.len() as u64 <= range.len && file.read_exact_at(&mut bytes, range.start + offset).is_ok() && bytes == expect
    };
    // ext4: the superblock lies at 1024 and its magic at 0x38 of it. btrfs: the superblock lies at 64 KiB.
    Ok(if at(1024 + 0x38, &[0x53, 0xef]) {
        Some(FileSystem::Ext4)
    } else if at(0, b"XFSB") {
        Some(FileSystem::Xfs)
    } else if at(0x10040, b"_BHRfS_M") {
        Some(FileSystem::Btrfs)
    } else {
        None
    })
}

fn sparse_copy(disk: &Path) -> Result<PathBuf> {
    let copy = std::env::temp_dir().join(format!(
        "standin-compare-{}-{}",
        std::process::id(),
        disk.file_name().map_or("disk".into(), |name| name.to_string_lossy())
    ));
    if copy.exists() {
        bail!("{} is in the way", copy.display());
    }
    let mut command = command::command(&["cp", "--sparse=always", "--reflink=auto"]);
    command::checked(command.arg(disk).arg(&copy), Duration::from_secs(300))?;
    Ok(copy)
}
