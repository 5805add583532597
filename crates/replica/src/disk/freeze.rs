//! Holds a replica's file systems still while their disk is cloned, and frees those that a killed worker left frozen.
//!
//! A frozen file system survives its process, its mounts and its mount namespace: the freeze itself keeps it alive, and with it the loop
//! device. The next worker of the disk therefore looks for loop devices that nobody lets go of, mounts each once more (the kernel gives
//! back the same file system, frozen as it is), and thaws it. Nothing but a worker ever writes to these file systems, so a freeze holds up nobody else.
//!
//! This module opts in to `unsafe` because freezing is an ioctl without a safe wrapper.
#![allow(unsafe_code)]

use super::attach::{mount_volume, unmount};
use super::{Attachment, DiskError, DiskPlan, LoopDevice};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)` of linux/fs.h.
const FIFREEZE: libc::c_ulong = 0xC004_5877;
const FITHAW: libc::c_ulong = 0xC004_5878;
const UNMOUNT_WAIT_MAX: Duration = Duration::from_secs(5);

fn call(fd: &OwnedFd, request: libc::c_ulong) -> io::Result<()> {
    // SAFETY: both requests ignore their argument and touch no memory of this process.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// File systems that are frozen; thawed when dropped, in reverse order.
#[derive(Debug)]
pub struct Frozen {
    held: Vec<OwnedFd>,
}

impl Frozen {
    /// Writes down everything and freezes all volumes of an attached disk, or none.
    pub fn freeze(attachment: &Attachment) -> Result<Frozen, DiskError> {
        let mut frozen = Frozen { held: Vec::new() };
        let directories = attachment.plan().volumes().map(|(_, volume)| attachment.volume_path(volume.id));
        for directory in directories {
            let fd = OwnedFd::from(File::open(&directory).map_err(DiskError::io(&directory, "opening"))?);
            call(&fd, FIFREEZE).map_err(DiskError::io(&directory, "freezing"))?;
            frozen.held.push(fd);
        }
        Ok(frozen)
    }

    /// Thaws, and says what could not be.
    pub fn thaw(mut self) -> Result<(), DiskError> {
        let mut failed = None;
        while let Some(fd) = self.held.pop() {
            if let Err(error) = call(&fd, FITHAW) {
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), |error| Err(DiskError::io(Path::new("the replica"), "thawing")(error)))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        while let Some(fd) = self.held.pop() {
            if let Err(error) = call(&fd, FITHAW) {
                tracing::error!(%error, "a replica's file system stays frozen");
            }
        }
    }
}

/// Thaws whatever a killed worker left frozen of this disk, so that the kernel lets its loop devices go. The caller holds the disk's lock, so that
/// no living worker is meant. Returns how many file systems had been frozen.
pub fn thaw_leftover(disk: &Path, plan: &DiskPlan, scratch: &Path) -> Result<u32, DiskError> {
    std::fs::create_dir_all(scratch).map_err(DiskError::io(scratch, "making a directory"))?;
    let mut thawed = 0;
    for (device, offset) in LoopDevice::bound_to(disk) {
        let Some((_, volume)) = plan.volumes().find(|(part, _)| part.offset == offset) else { continue };
        // The open device cannot be given to another file meanwhile.
        if let Err(error) = mount_volume(device.path(), scratch, volume) {
            tracing::warn!(device = %device.path().display(), error = %error, "cannot look whether it is frozen");
            continue;
        }
        let fd = File::open(scratch).map(OwnedFd::from).map_err(DiskError::io(scratch, "opening"));
        let result = fd.map(|fd| call(&fd, FITHAW).is_ok());
        let unmounted = unmount(scratch, UNMOUNT_WAIT_MAX);
        thawed += u32::from(result?);
        unmounted?;
    }
    Ok(thawed)
}

/// Where [`thaw_leftover`] may mount.
pub fn scratch_of(run_directory: &Path) -> PathBuf {
    run_directory.join("thaw")
}
