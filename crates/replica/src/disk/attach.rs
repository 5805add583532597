//! Holds a replica's volumes mounted for the apply worker, and lets go of them completely.
//!
//! The worker enters a private mount namespace first: a mount that is visible to another process would be copied into that process's
//! namespace and would keep the loop device busy after our unmount. `detach` therefore does not trust the unmount; it
//! waits, bounded, until the kernel says that every loop device is gone, because only then may a hypervisor open the disk.
//!
//! If the worker is killed, the namespace dies with it, the mounts with the namespace, and the loop devices (autoclear) with
//! the mounts.
//!
//! This module opts in to `unsafe` for `unshare`, which is unsafe only for the sharing of file descriptor tables.
#![allow(unsafe_code)]

use super::create::finished_plan;
use super::plan::DiskPlan;
use super::{DiskError, LoopDevice, ReplicaVolume, grow};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use standin_model::{FileSystem, VolumeId};
use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait for the kernel to let go of a mount or a loop device: closing happens in deferred work, normally within milliseconds.
const DETACH_WAIT_MAX: Duration = Duration::from_secs(20);

/// Gives the calling thread, and every thread it starts from now on, a mount namespace of its own.
///
/// A worker calls this first in `main`, before it starts other threads; threads that exist already stay outside.
pub fn enter_private_namespace() -> std::io::Result<()> {
    // SAFETY: CLONE_NEWNS (which implies CLONE_FS) leaves the descriptor table shared, so no descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// Runs `work` on a thread of its own in a private mount namespace.
pub(crate) fn in_private_namespace<T: Send>(work: impl FnOnce() -> Result<T, DiskError> + Send) -> Result<T, DiskError> {
    let entered = || {
        enter_private_namespace().map_err(DiskError::io(Path::new("/proc/self/ns/mnt"), "entering a private mount namespace"))?;
        work()
    };
    std::thread::scope(|scope| match scope.spawn(entered).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

#[derive(Debug)]
struct Mounted {
    volume: VolumeId,
    directory: PathBuf,
    device: LoopDevice,
}

/// The mounted volumes of one replica disk.
#[derive(Debug)]
pub struct Attachment {
    disk: PathBuf,
    plan: DiskPlan,
    run_directory: PathBuf,
    mounted: Vec<Mounted>,
    /// Loop devices that were unmounted but not yet seen gone; a repeated detach waits for them again.
    leaving: Vec<u32>,
    wait: Duration,
    /// File systems that were smaller than their partitions, and what came of making them larger.
    grown: Vec<(VolumeId, Result<(), DiskError>)>,
}

/// Proof that a disk is no longer held by this appliance; a launch takes it.
#[derive(Debug)]
pub struct Detached {
    disk: PathBuf,
}

impl Detached {
    /// The disk file that is free now.
    pub fn disk(&self) -> &Path {
        &self.disk
    }
}

impl Attachment {
    /// Mounts every volume of a finished disk at `<run_directory>/<volume id>`. Call it in a private mount namespace.
    pub fn attach(disk: &Path, run_directory: &Path) -> Result<Attachment, DiskError> {
        let plan =
            finished_plan(disk)?.ok_or_else(|| DiskError::NotFinished { path: disk.into(), reason: "its making did not end".into() })?;
        let (disk, run_directory) = (disk.to_path_buf(), run_directory.to_path_buf());
        let (mounted, leaving, grown) = (Vec::new(), Vec::new(), Vec::new());
        let mut attachment = Attachment { disk, plan: plan.clone(), run_directory, mounted, leaving, wait: DETACH_WAIT_MAX, grown };
        for (part, volume) in plan.volumes() {
            let device = LoopDevice::bind(&attachment.disk, part.offset, part.size)?;
            let directory = attachment.volume_path(volume.id);
            std::fs::create_dir_all(&directory).map_err(DiskError::io(&directory, "making a directory"))?;
            let smaller = grow::smaller(&device, part.size, volume.fs);
            mount_volume(device.path(), &directory, volume)?;
            if let Some(smaller) = smaller {
                let mut grown = smaller.grow(&device, &directory);
                if grown.is_err() && smaller.can_grow_unmounted() {
                    unmount(&directory, attachment.wait)?;
                    grown = grow::unmounted(&device);
                    mount_volume(device.path(), &directory, volume)?;
                }
                attachment.grown.push((volume.id, grown));
            }
            attachment.mounted.push(Mounted { volume: volume.id, directory, device });
        }
        Ok(attachment)
    }

    /// The plan of the attached disk.
    pub fn plan(&self) -> &DiskPlan {
        &self.plan
    }

    /// The file systems that this attachment made as large as their partitions. One that could not grow is mounted as it was.
    pub fn grown(&self) -> &[(VolumeId, Result<(), DiskError>)] {
        &self.grown
    }

    /// The disk file.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Directory where boot repair and the worker keep their own files and mount points.
    pub fn run_directory(&self) -> &Path {
        &self.run_directory
    }

    /// Where a volume is mounted.
    pub fn volume_path(&self, volume: VolumeId) -> PathBuf {
        self.run_directory.join(volume.0.to_string())
    }

    /// Makes everything written so far durable in the disk file.
    pub fn sync(&self) -> Result<(), DiskError> {
        for mounted in &self.mounted {
            sync_file_system(&mounted.directory)?;
        }
        File::open(&self.disk).and_then(|file| file.sync_all()).map_err(DiskError::io(&self.disk, "writing down"))
    }

    /// Writes what the loop devices' page caches hold into the disk file, without touching the file systems.
    pub fn flush_devices(&self) -> Result<(), DiskError> {
        for mounted in &self.mounted {
            mounted.device.sync().map_err(DiskError::io(&self.disk, "writing down a volume"))?;
        }
        Ok(())
    }

    /// Writes down, unmounts, and waits until no loop device is bound to the disk any more. On failure what is still mounted
    /// stays attached, and the call may be repeated.
    pub fn detach(mut self) -> Result<Detached, (Attachment, DiskError)> {
        match self.release() {
            Ok(()) => Ok(Detached { disk: self.disk.clone() }),
            Err(error) => Err((self, error)),
        }
    }

    fn release(&mut self) -> Result<(), DiskError> {
        while let Some(mounted) = self.mounted.last() {
            sync_file_system(&mounted.directory)?;
            unmount(&mounted.directory, self.wait)?;
            mounted.device.sync().map_err(DiskError::io(&self.disk, "writing down a volume"))?;
            tracing::debug!(volume = %mounted.volume, "replica volume unmounted");
            self.leaving.push(mounted.device.number());
            self.mounted.pop();
        }
        while let Some(number) = self.leaving.last().copied() {
            let gone = within(self.wait, || LoopDevice::gone(number, &self.disk));
            if !gone {
                return Err(still_busy(format!("/dev/loop{number}"), self.wait));
            }
            self.leaving.pop();
        }
        File::open(&self.disk).and_then(|file| file.sync_all()).map_err(DiskError::io(&self.disk, "writing down"))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        for mounted in self.mounted.drain(..).rev() {
            // Only reached on an error path: the namespace's end would do the same.
            let _ = rustix::mount::unmount(&mounted.directory, UnmountFlags::DETACH);
        }
    }
}

pub(super) fn mount_volume(device: &Path, directory: &Path, volume: &ReplicaVolume) -> Result<(), DiskError> {
    let options = match volume.fs {
        // Nothing in the replica expects automatic discards, and a stale journal would be an error, not an event.
        FileSystem::Ext4 => "errors=remount-ro,nodiscard".to_owned(),
        FileSystem::Xfs => "nouuid".to_owned(),
        FileSystem::Btrfs if volume.subvolume().is_empty() => "nodiscard".to_owned(),
        FileSystem::Btrfs => format!("nodiscard,subvol=/{}", volume.subvolume()),
    };
    // Device nodes can be made on a nodev mount; they just cannot be opened here, which is what we want. noatime: apply sets times.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    let mounted = CString::new(options)
        .map_err(|_| rustix::io::Errno::INVAL)
        .and_then(|options| rustix::mount::mount(device, directory, volume.fs.as_str(), flags, Some(options.as_c_str())));
    mounted.map_err(|errno| DiskError::Mount { volume: volume.id, path: directory.into(), source: errno.into() })
}

fn sync_file_system(directory: &Path) -> Result<(), DiskError> {
    let synced = File::open(directory).and_then(|handle| rustix::fs::syncfs(&handle).map_err(Into::into));
    synced.map_err(DiskError::io(directory, "writing down"))
}

pub(super) fn unmount(directory: &Path, limit: Duration) -> Result<(), DiskError> {
    let mut last = Ok(());
    let done = within(limit, || {
        last = rustix::mount::unmount(directory, UnmountFlags::NOFOLLOW);
        !matches!(last, Err(rustix::io::Errno::BUSY))
    });
    if !done {
        return Err(still_busy(directory.display().to_string(), limit));
    }
    last.map_err(|errno| DiskError::io(directory, "unmounting")(errno.into()))
}

fn still_busy(what: String, waited: Duration) -> DiskError {
    DiskError::StillBusy { what, waited_ms: waited.as_millis() as u64 }
}

fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;
