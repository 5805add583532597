//! Whether this kernel writes to an ext4 that has room for projects. One that was built without quotas, or without their second format
//! (CONFIG_QFMT_V2), mounts it for reading only, and a replica on it would be none. It is tried, because nothing tells.

use super::attach::in_private_namespace;
use super::{DiskError, LoopDevice, tool};
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The smallest with which mkfs.ext4 is content.
const IMAGE_BYTES: u64 = 4 << 20;

/// Tries it with a small file beside `disk`, of which nothing is left. Where that cannot be done, they are not possible.
pub(super) fn are_possible(disk: &Path) -> bool {
    let (image, point) = (disk.with_extension("projects"), disk.with_extension("projects-mount"));
    let tried = mount(&image, &point);
    fs::remove_dir(&point).ok();
    fs::remove_file(&image).ok();
    if let Err(error) = &tried {
        tracing::warn!(%error, "this kernel does not write to an ext4 with projects: the replica will have none");
    }
    tried.is_ok()
}

fn mount(image: &Path, point: &Path) -> Result<(), DiskError> {
    let made = fs::File::create(image).and_then(|file| file.set_len(IMAGE_BYTES)).and_then(|()| fs::create_dir_all(point));
    made.map_err(DiskError::io(image, "making a file to try projects with"))?;
    tool::run(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "none,extent,project"]).arg(image), "e2fsprogs")?;
    let device = LoopDevice::bind(image, 0, IMAGE_BYTES)?;
    in_private_namespace(|| {
        rustix::mount::mount(device.path(), point, "ext4", MountFlags::NOSUID | MountFlags::NODEV, None)
            .map_err(|errno| DiskError::io(point, "mounting a file system with projects")(errno.into()))?;
        rustix::mount::unmount(point, UnmountFlags::empty()).map_err(|errno| DiskError::io(point, "unmounting")(errno.into()))
    })
}
