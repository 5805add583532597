//! Node ids ↔ file handles: how the agent opens a node without knowing its path.
//!
//! A handle holds inode number and generation, so a reused inode answers ESTALE. Handles are built from a template that the kernel itself gave
//! for the volume's root: type and layout then match the file system whatever its options.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use standin_model::{FileSystem, Name, NodeId, VolumeId};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

mod handle;
use handle::Handle;

struct OpenVolume {
    root: OwnedFd,
    file_system: FileSystem,
    root_id: NodeId,
}

/// The protected volumes, opened at their mount points.
#[derive(Clone)]
pub struct Nodes(Arc<HashMap<VolumeId, OpenVolume>>);

impl Nodes {
    pub fn open_volumes(volumes: &[(VolumeId, String, FileSystem)]) -> Result<Nodes, Errno> {
        let mut open = HashMap::new();
        for (id, mount_point, file_system) in volumes {
            let root = rustix::fs::open(mount_point.as_str(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let root_id = decode(*id, *file_system, &handle::of(root.as_fd(), b"")?)?;
            open.insert(*id, OpenVolume { root, file_system: *file_system, root_id });
        }
        Ok(Nodes(Arc::new(open)))
    }

    pub fn root(&self, volume: VolumeId) -> Option<NodeId> {
        self.0.get(&volume).map(|v| v.root_id)
    }

    /// Opens a node; ESTALE when it is gone, EXDEV when its volume is not protected.
    pub fn open(&self, node: NodeId, flags: OFlags) -> Result<OwnedFd, Errno> {
        let volume = self.0.get(&node.volume).ok_or(Errno::XDEV)?;
        handle::open(volume.root.as_fd(), &encode(volume.file_system, node), flags)
    }

    /// The id of what a name leads to now.
    pub fn id_at(&self, parent: NodeId, directory: BorrowedFd<'_>, name: &Name) -> Result<NodeId, Errno> {
        let volume = self.0.get(&parent.volume).ok_or(Errno::XDEV)?;
        decode(parent.volume, volume.file_system, &handle::of(directory, name.as_bytes())?)
    }
}

/// FILEID_INO32_GEN: inode and generation, 32 bits each (linux/exportfs.h).
const INO32_GENERATION: i32 = 1;
/// XFS_FILEID_INO64FLAG | FILEID_INO32_GEN: inode 64 bits, generation 32 bits (fs/xfs/xfs_export.h).
const XFS_INO64_GENERATION: i32 = 0x81;
/// FILEID_BTRFS_WITHOUT_PARENT: object id, root id, generation: 8 + 8 + 4 bytes (fs/btrfs/export.h).
const BTRFS_WITHOUT_PARENT: i32 = 0x4d;

fn encode(file_system: FileSystem, node: NodeId) -> Handle {
    let generation = node.generation.to_ne_bytes();
    let short = |inode: u32| [inode.to_ne_bytes(), generation].concat();
    match (file_system, u32::try_from(node.inode)) {
        (FileSystem::Btrfs, _) => {
            let bytes = [&node.inode.to_ne_bytes()[..], &node.subvolume.to_ne_bytes(), &generation].concat();
            Handle { kind: BTRFS_WITHOUT_PARENT, bytes }
        }
        (FileSystem::Xfs, Err(_)) => Handle { kind: XFS_INO64_GENERATION, bytes: [&node.inode.to_ne_bytes()[..], &generation].concat() },
        (_, Ok(inode)) => Handle { kind: INO32_GENERATION, bytes: short(inode) },
        // ext4 inode numbers have 32 bits; a larger one names nothing and answers ESTALE.
        (FileSystem::Ext4, Err(_)) => Handle { kind: INO32_GENERATION, bytes: short(u32::MAX) },
    }
}

fn decode(volume: VolumeId, file_system: FileSystem, handle: &Handle) -> Result<NodeId, Errno> {
    let u32_at = |at: usize| handle.bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes).ok_or(Errno::PROTO);
    let u64_at = |at: usize| handle.bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes).ok_or(Errno::PROTO);
    Ok(match (file_system, handle.kind) {
        (FileSystem::Btrfs, BTRFS_WITHOUT_PARENT) => NodeId { volume, inode: u64_at(0)?, subvolume: u64_at(8)?, generation: u32_at(16)? },
        (FileSystem::Xfs, XFS_INO64_GENERATION) => NodeId { volume, subvolume: 0, inode: u64_at(0)?, generation: u32_at(8)? },
        (_, INO32_GENERATION) => NodeId { volume, subvolume: 0, inode: u32_at(0)?.into(), generation: u32_at(4)? },
        _ => return Err(Errno::PROTO),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_keep_the_whole_id() {
        let check = |file_system, inode, subvolume| {
            let node = NodeId { volume: VolumeId(3), subvolume, inode, generation: 0xdead_beef };
            assert_eq!(decode(node.volume, file_system, &encode(file_system, node)), Ok(node));
        };
        check(FileSystem::Ext4, 12, 0);
        check(FileSystem::Xfs, 128, 0);
        check(FileSystem::Xfs, 1 << 40, 0);
        check(FileSystem::Btrfs, 1 << 40, 256);
        assert!(decode(VolumeId(0), FileSystem::Ext4, &Handle { kind: 1, bytes: vec![1, 2] }).is_err());
    }
}
