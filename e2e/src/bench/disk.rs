//! File systems of a benchmark: sparse images on one disk, mounted by loop devices, so that ours and the peers' lie on the same kind.
//!
//! The bench runs in a mount namespace of its own (see `mod`), whose end unmounts everything.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::command;

const LIMIT: Duration = Duration::from_secs(120);
/// Room for the largest set twice; sparse.
pub const DISK_BYTES: u64 = 4 << 30;

/// A mounted ext4; dropping it unmounts and removes it.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    pub fn make(folder: &Path, name: &str) -> Result<Disk> {
        Disk::of_size(folder, name, DISK_BYTES)
    }

    pub fn of_size(folder: &Path, name: &str, bytes: u64) -> Result<Disk> {
        let disk = Disk { image: folder.join(format!("{name}.img")), mount: folder.join(name) };
        fs::create_dir_all(&disk.mount)?;
        File::create(&disk.image).and_then(|file| file.set_len(bytes)).with_context(|| format!("making {}", disk.image.display()))?;
        let image = disk.image.display().to_string();
        // Everything at once: initialising inode tables later would write beside the measurement.
        command::run(&["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", &image], LIMIT)?;
        command::run(&["mount", "-o", "loop,noatime", &image, &disk.mount.display().to_string()], LIMIT)?;
        fs::remove_dir(disk.mount.join("lost+found")).ok();
        Ok(disk)
    }

    pub fn root(&self) -> &Path {
        &self.mount
    }

    pub fn uuid(&self) -> Result<String> {
        Ok(command::run(&["blkid", "-o", "value", "-s", "UUID", &self.image.display().to_string()], LIMIT)?.trim().to_owned())
    }

    /// Seconds until everything that was written is on the disk.
    pub fn sync(&self) -> Result<f64> {
        let begun = std::time::Instant::now();
        let folder = File::open(&self.mount)?;
        rustix::fs::syncfs(&folder)?;
        Ok(begun.elapsed().as_secs_f64())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        command::run(&["umount", &self.mount.display().to_string()], LIMIT).ok();
        fs::remove_file(&self.image).ok();
        fs::remove_dir(&self.mount).ok();
    }
}
