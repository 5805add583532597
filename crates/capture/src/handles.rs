//! Nodes by file handle: from a `NodeId` to a descriptor and back, without any path.
//!
//! Handle types and layouts are those of the kernel's `struct fid` (include/linux/exportfs.h), xfs (fs/xfs/xfs_export.h) and btrfs
//! (fs/btrfs/export.h). They are stable: NFS clients keep them across reboots.
#![allow(unsafe_code)] // name_to_handle_at and open_by_handle_at take a variable-size structure

use standin_model::{FileSystem, NodeId, VolumeId};
use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

const FILEID_INO32_GEN: i32 = 1;
const FILEID_INO32_GEN_PARENT: i32 = 2;
const FILEID_BTRFS_WITHOUT_PARENT: i32 = 0x4d;
const XFS_FILEID_64: i32 = 0x81;
const HANDLE_BYTES_MAX: usize = 128;

#[repr(C, align(8))]
struct Handle {
    bytes: u32,
    kind: i32,
    body: [u8; HANDLE_BYTES_MAX],
}

fn handle_of(node: &NodeId, file_system: FileSystem) -> Handle {
    let mut handle = Handle { bytes: 8, kind: FILEID_INO32_GEN, body: [0; HANDLE_BYTES_MAX] };
    let generation = node.generation.to_le_bytes();
    match file_system {
        FileSystem::Btrfs => {
            (handle.bytes, handle.kind) = (20, FILEID_BTRFS_WITHOUT_PARENT);
            handle.body[0..8].copy_from_slice(&node.inode.to_le_bytes());
            handle.body[8..16].copy_from_slice(&node.subvolume.to_le_bytes());
            handle.body[16..20].copy_from_slice(&generation);
        }
        FileSystem::Xfs if node.inode > u64::from(u32::MAX) => {
            (handle.bytes, handle.kind) = (12, XFS_FILEID_64);
            handle.body[0..8].copy_from_slice(&node.inode.to_le_bytes());
            handle.body[8..12].copy_from_slice(&generation);
        }
        _ => {
            handle.body[0..4].copy_from_slice(&(node.inode as u32).to_le_bytes());
            handle.body[4..8].copy_from_slice(&generation);
        }
    }
    handle
}

/// Opens a node of the file system that is mounted where `mount` points. ESTALE: the node is gone. `flags` as for open(2).
///
/// `mount` may be any descriptor on the file system but not an O_PATH one.
pub fn open_node(mount: impl AsFd, node: &NodeId, file_system: FileSystem, flags: i32) -> io::Result<OwnedFd> {
    let mut handle = handle_of(node, file_system);
    // SAFETY: the structure is as large as its `bytes` says, and the call only reads it.
    let fd = unsafe { libc::open_by_handle_at(mount.as_fd().as_raw_fd(), (&raw mut handle).cast(), flags | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The id of what `path` leads to below `directory`; symlinks are not followed. An empty path means `directory` itself.
pub fn node_id_at(directory: impl AsFd, path: &Path, volume: VolumeId) -> io::Result<NodeId> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut handle = Handle { bytes: HANDLE_BYTES_MAX as u32, kind: 0, body: [0; HANDLE_BYTES_MAX] };
    let mut mount_id = 0;
    // SAFETY: `bytes` tells the kernel how much room there is; the path is NUL-terminated.
    let failed = unsafe {
        libc::name_to_handle_at(directory.as_fd().as_raw_fd(), path.as_ptr(), (&raw mut handle).cast(), &mut mount_id, libc::AT_EMPTY_PATH)
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    let body = handle.body.get(..handle.bytes as usize).unwrap_or_default();
    node_of_handle(handle.kind, body, volume)
        .ok_or_else(|| io::Error::other(format!("unknown file handle type {:#x} of {} bytes", handle.kind, handle.bytes)))
}

/// The id behind a handle as the kernel gives it out; `None` for a kind of handle that is not known.
pub(crate) fn node_of_handle(kind: i32, body: &[u8], volume: VolumeId) -> Option<NodeId> {
    let word = |at: usize| Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from(word(at)?) | u64::from(word(at + 4)?) << 32);
    let (subvolume, inode, generation) = match kind & 0xff {
        FILEID_INO32_GEN | FILEID_INO32_GEN_PARENT => (0, word(0)?.into(), word(4)?),
        XFS_FILEID_64 | 0x82 => (0, long(0)?, word(8)?),
        FILEID_BTRFS_WITHOUT_PARENT..=0x4f => (long(8)?, long(0)?, word(16)?),
        _ => return None,
    };
    Some(NodeId { volume, subvolume, inode, generation })
}

/// The id of an open file.
pub fn node_id_of(file: impl AsFd, volume: VolumeId) -> io::Result<NodeId> {
    node_id_at(file, Path::new(""), volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_opens_by_the_id_it_has() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"content").unwrap();
        let mount = std::fs::File::open(dir.path()).unwrap();
        let id = match node_id_at(&mount, Path::new("x"), VolumeId(3)) {
            Ok(id) => id,
            Err(error) => return println!("skipped: no handles here: {error}"),
        };
        assert_eq!(node_id_of(std::fs::File::open(&path).unwrap(), VolumeId(3)).unwrap(), id);
        match open_node(&mount, &id, FileSystem::Ext4, libc::O_RDONLY) {
            Ok(fd) => {
                use std::io::Read;
                let mut text = String::new();
                std::fs::File::from(fd).read_to_string(&mut text).unwrap();
                assert_eq!(text, "content");
            }
            Err(error) => println!("skipped: not allowed to open by handle, or not ext4: {error}"),
        }
    }

    #[test]
    fn a_handle_that_is_short_or_strange_is_no_node() {
        let body: Vec<u8> = (0..24).collect();
        let node = |kind, bytes: usize| node_of_handle(kind, &body[..bytes], VolumeId(1));
        assert_eq!(node(1, 8), Some(NodeId { volume: VolumeId(1), subvolume: 0, inode: 0x0302_0100, generation: 0x0706_0504 }));
        assert!(node(XFS_FILEID_64, 12).is_some() && node(FILEID_BTRFS_WITHOUT_PARENT, 20).is_some());
        for (kind, bytes) in [(1, 7), (XFS_FILEID_64, 11), (FILEID_BTRFS_WITHOUT_PARENT, 19), (0, 24), (0xff, 24), (1, 0)] {
            assert_eq!(node(kind, bytes), None, "{kind:#x} {bytes}");
        }
    }

    #[test]
    fn each_file_system_has_its_own_handle() {
        let node = NodeId { volume: VolumeId(0), subvolume: 256, inode: 1 << 33, generation: 7 };
        assert_eq!((handle_of(&node, FileSystem::Btrfs).bytes, handle_of(&node, FileSystem::Xfs).kind), (20, XFS_FILEID_64));
    }
}
