//! Makes the subvolume that a btrfs volume of the source was mounted from.
//!
//! Debian's installer puts the root into `@rootfs`, others into `@`; the guest's fstab and kernel command line name it, so the
//! replica has to have it too.

use super::attach::in_private_namespace;
use super::tool;
use super::{DiskError, LoopDevice};
use rustix::mount::{MountFlags, UnmountFlags};
use standin_model::VolumeId;
use std::path::Path;
use std::process::Command;

/// Creates `subvolume` (and its parent directories) on the freshly made file system on `device`.
pub(super) fn make_subvolume(device: &LoopDevice, volume: VolumeId, subvolume: &str, scratch: &Path) -> Result<(), DiskError> {
    std::fs::create_dir_all(scratch).map_err(DiskError::io(scratch, "making a directory"))?;
    in_private_namespace(|| {
        rustix::mount::mount(device.path(), scratch, "btrfs", MountFlags::NOSUID | MountFlags::NODEV, None)
            .map_err(|errno| DiskError::Mount { volume, path: scratch.into(), source: errno.into() })?;
        let target = scratch.join(subvolume);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(DiskError::io(parent, "making a directory"))?;
        }
        let made = tool::run(Command::new("btrfs").args(["subvolume", "create"]).arg(&target), "btrfs-progs");
        rustix::mount::unmount(scratch, UnmountFlags::empty()).map_err(|errno| DiskError::io(scratch, "unmounting")(errno.into()))?;
        made.map(drop)
    })?;
    std::fs::remove_dir(scratch).map_err(DiskError::io(scratch, "removing a directory"))
}
