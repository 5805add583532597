//! The protected volumes as the mirror sees them: nodes are opened by id, names give ids, no path is ever resolved.

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use standin_capture::handles;
use standin_model::{FileSystem, Name, NodeId, VolumeId};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

struct OpenVolume {
    mount_point: String,
    root: OwnedFd,
    file_system: FileSystem,
    root_id: NodeId,
}

/// Open at their mount points for as long as a job runs.
#[derive(Clone)]
pub struct Nodes(Arc<HashMap<VolumeId, OpenVolume>>);

/// A protected file system by its root, whatever its mount point shows by now.
pub struct Root {
    pub mount_point: String,
    pub directory: OwnedFd,
}

impl Root {
    pub fn open(mount_point: &str) -> io::Result<Root> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root { mount_point: mount_point.to_owned(), directory: rustix::fs::open(mount_point, flags, Mode::empty())? })
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// The volume's root on a mount of its own, which nobody else sees: what is mounted on the volume's directories (/proc, other volumes) is not
/// there, so a name below always leads to the volume's own node.
fn private_root(mount_point: &str) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, mount_point, flags)?;
    rustix::fs::openat(&tree, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

impl Nodes {
    pub fn open_volumes(volumes: &[(VolumeId, String, FileSystem)]) -> Result<Nodes, Errno> {
        let mut open = HashMap::new();
        for (id, mount_point, file_system) in volumes {
            let root = private_root(mount_point)?;
            let root_id = handles::node_id_of(&root, *id).map_err(errno)?;
            open.insert(*id, OpenVolume { mount_point: mount_point.clone(), root, file_system: *file_system, root_id });
        }
        Ok(Nodes(Arc::new(open)))
    }

    /// All of them, to be frozen or synced in this order: what lies below another one first.
    pub fn roots(&self) -> io::Result<Vec<Root>> {
        let mut volumes: Vec<_> = self.0.iter().collect();
        volumes.sort_unstable_by_key(|(id, _)| std::cmp::Reverse(**id));
        let root = |volume: &OpenVolume| Ok(Root { mount_point: volume.mount_point.clone(), directory: volume.root.try_clone()? });
        volumes.into_iter().map(|(_, volume)| root(volume)).collect()
    }

    pub fn root(&self, volume: VolumeId) -> Option<NodeId> {
        self.0.get(&volume).map(|v| v.root_id)
    }

    /// Opens a node; ESTALE when it is gone, EXDEV when its volume is not protected.
    pub fn open(&self, node: NodeId, flags: OFlags) -> Result<OwnedFd, Errno> {
        let volume = self.0.get(&node.volume).ok_or(Errno::XDEV)?;
        handles::open_node(volume.root.as_fd(), &node, volume.file_system, flags.bits() as i32).map_err(errno)
    }

    /// The id of an open file, if it is on a protected volume. Device numbers do not tell that: on btrfs each subvolume has its own.
    pub fn find(&self, file: BorrowedFd<'_>) -> Option<NodeId> {
        let stat = rustix::fs::fstat(file).ok()?;
        let is_same = |node: &NodeId| {
            let found = self.open(*node, OFlags::PATH).and_then(rustix::fs::fstat);
            found.is_ok_and(|found| (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino))
        };
        self.0.keys().filter_map(|volume| handles::node_id_of(file, *volume).ok()).find(is_same)
    }

    /// The id of an open node of this volume.
    pub fn find_in(&self, node: BorrowedFd<'_>, volume: VolumeId) -> Result<NodeId, Errno> {
        handles::node_id_of(&node, volume).map_err(errno)
    }

    /// The id of what a name leads to now.
    pub fn id_at(&self, parent: NodeId, directory: BorrowedFd<'_>, name: &Name) -> Result<NodeId, Errno> {
        handles::node_id_at(directory, Path::new(OsStr::from_bytes(name.as_bytes())), parent.volume).map_err(errno)
    }
}
