//! Puts the attached volumes together into one tree as the guest sees it, for boot repair.
//!
//! The mount points are directories inside file systems that a hostile source wrote: they are opened beneath the tree's root without
//! following any link out of it, and mounted through the opened descriptor.

use super::{Attachment, DiskError};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::UnmountFlags;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The guest's view of its volumes; unmounted when dropped.
#[derive(Debug)]
pub struct Assembled {
    root: PathBuf,
    mounts: usize,
}

impl Assembled {
    /// Directory that is the guest's `/`.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Assembled {
    fn drop(&mut self) {
        // A recursive, lazy unmount takes the mounts below with it; `Attachment::detach` checks that the devices are gone.
        if self.mounts > 0
            && let Err(error) = rustix::mount::unmount(&self.root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        {
            tracing::warn!(path = %self.root.display(), %error, "the assembled replica tree stays mounted");
        }
    }
}

/// Bind-mounts the root volume at `<run directory>/root` and the other volumes below it. A volume whose mount point does not
/// exist in the replica is left out: the guest could not have mounted it either.
pub fn assemble(attachment: &Attachment) -> Result<Assembled, DiskError> {
    if !attachment.plan().volumes().any(|(_, volume)| volume.source.mount_point == "/") {
        let reason = "which are without the root volume, so there is nothing to boot";
        return Err(DiskError::BadInventory { field: "volumes", value: attachment.plan().volumes().count().to_string(), reason });
    }
    let root = attachment.run_directory().join("root");
    std::fs::create_dir_all(&root).map_err(DiskError::io(&root, "making a directory"))?;
    let mut assembled = Assembled { root: root.clone(), mounts: 0 };
    for (_, volume) in attachment.plan().volumes() {
        let from = attachment.volume_path(volume.id);
        let failed = |errno: rustix::io::Errno| DiskError::Mount { volume: volume.id, path: from.clone(), source: errno.into() };
        let at = volume.source.mount_point.trim_matches('/');
        if at.is_empty() {
            rustix::mount::mount_bind(&from, &root).map_err(failed)?;
            assembled.mounts += 1;
            continue;
        }
        let base = File::open(&root).map_err(DiskError::io(&root, "opening"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&base, at, flags, Mode::empty(), resolve) {
            Ok(target) => {
                rustix::mount::mount_bind(&from, format!("/proc/thread-self/fd/{}", target.as_raw_fd())).map_err(failed)?;
                assembled.mounts += 1;
            }
            Err(error) => tracing::warn!(volume = %volume.id, mount_point = at, %error, "no mount point in the replica"),
        }
    }
    Ok(assembled)
}
