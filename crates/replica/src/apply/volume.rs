//! The replica's mounted file systems, each with its limbo directory.
//!
//! A volume is used through a private copy of its mount without anything mounted below it, so that a name that happens to be a mount
//! point leads to the directory of this file system and not to what covers it.

use super::error::ApplyError;
use super::handle::Handle;
use super::table::Entry;
use super::{Applier, VolumeConfig};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use standin_model::{NodeId, NodeKind, VolumeId};
use std::path::Path;

/// Directory in the volume's root for nodes that have no name now. Removed by `finish`; a source must not use this name.
pub const LIMBO_NAME: &[u8] = b".standin-limbo";

pub(super) struct Volume {
    pub id: VolumeId,
    pub root: NodeId,
    pub root_handle: Handle,
    /// The root directory, opened for reading: handles are opened relative to it.
    pub mount: OwnedFd,
    pub limbo: Option<OwnedFd>,
}

pub(super) struct Volumes(Vec<Volume>);

/// How a node of this kind is opened. Devices, fifos, sockets and symlinks are only pointed at, never opened.
pub(super) fn open_flags(kind: NodeKind) -> OFlags {
    let common = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind {
        NodeKind::File => common | OFlags::RDWR | OFlags::NOATIME | OFlags::LARGEFILE,
        NodeKind::Directory => common | OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME,
        _ => common | OFlags::PATH,
    }
}

impl Volumes {
    pub fn open(configs: &[VolumeConfig]) -> Result<Volumes, ApplyError> {
        configs.iter().map(Volume::open).collect::<Result<_, _>>().map(Volumes)
    }

    pub fn find(&self, id: VolumeId) -> Option<&Volume> {
        self.0.iter().find(|volume| volume.id == id)
    }

    pub fn root_of(&self, id: VolumeId) -> Option<NodeId> {
        self.find(id).map(|volume| volume.root)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Volume> {
        self.0.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Volume> {
        self.0.iter_mut()
    }

    pub fn sync(&self) -> Result<(), ApplyError> {
        for volume in &self.0 {
            rustix::fs::syncfs(&volume.mount).map_err(|source| ApplyError::Volume { volume: volume.id, doing: "syncing", source })?;
        }
        Ok(())
    }
}

impl Volume {
    fn open(config: &VolumeConfig) -> Result<Volume, ApplyError> {
        let failed = |source| ApplyError::OpenVolume { volume: config.id, mount: config.mount.clone(), source };
        let mount = open_alone(&config.mount).map_err(failed)?;
        let root_handle = match Handle::of(&mount) {
            Err(Errno::OVERFLOW | Errno::OPNOTSUPP) => {
                let reason = "its file system has no file handles that we know";
                return Err(ApplyError::UnsupportedVolume { volume: config.id, reason });
            }
            other => other.map_err(failed)?,
        };
        // Tells a missing capability now rather than at the first operation.
        root_handle.open(&mount, open_flags(NodeKind::Directory)).map_err(failed)?;
        let mut volume = Volume { id: config.id, root: config.root, root_handle, mount, limbo: None };
        volume.make_limbo().map_err(failed)?;
        Ok(volume)
    }

    /// Makes the limbo directory where it is not there yet.
    pub fn make_limbo(&mut self) -> Result<(), Errno> {
        match rustix::fs::mkdirat(&self.mount, LIMBO_NAME, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.limbo = Some(rustix::fs::openat(&self.mount, LIMBO_NAME, open_flags(NodeKind::Directory), Mode::empty())?);
        Ok(())
    }

    pub fn limbo(&self) -> Result<&OwnedFd, ApplyError> {
        self.limbo.as_ref().ok_or(ApplyError::Finished)
    }
}

/// Opens a file system's root through a mount of its own. Falls back to the plain mount where the kernel refuses a copy.
fn open_alone(mount: &Path) -> Result<OwnedFd, Errno> {
    let flags = open_flags(NodeKind::Directory) - OFlags::NOFOLLOW;
    match rustix::mount::open_tree(CWD, mount, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC) {
        Ok(tree) => rustix::fs::openat(tree.as_fd(), ".", flags, Mode::empty()),
        Err(_) => rustix::fs::openat(CWD, mount, flags, Mode::empty()),
    }
}

impl Applier {
    /// Makes the roots known, which no listing names.
    pub(super) fn register_roots(&mut self, configs: &[VolumeConfig]) {
        for config in configs {
            let Some(handle) = self.volumes.find(config.id).map(|volume| volume.root_handle) else { continue };
            let old = self.table.get(config.root).copied();
            let fresh = Entry { handle, kind: NodeKind::Directory, facts: 0, guard: 0, modified: None };
            let entry = Entry { handle, ..old.unwrap_or(fresh) };
            if old != Some(entry) {
                self.table.insert(config.root, entry);
            }
        }
    }
}
