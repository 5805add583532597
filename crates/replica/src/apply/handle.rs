//! File handles: the replica's own inode number and generation, as the kernel encodes them.
//!
//! A handle names an inode for as long as it exists and never its successor at the same number, so that comparing handles compares
//! nodes. Handles of ext4 (8 bytes), xfs (12) and btrfs (20) fit; a file system with longer ones is refused when the volume opens.
#![allow(unsafe_code)] // Neither call has a safe wrapper in the crates we use.

use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::ffi::CStr;

/// 20 bytes for btrfs, rounded up to the 4-byte steps that the kernel uses.
pub const HANDLE_BYTES_MAX: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    kind: i32,
    len: u8,
    /// Zero behind `len`, so that derived equality is right.
    bytes: [u8; HANDLE_BYTES_MAX],
}

/// `struct file_handle` of `<linux/fs.h>` with room for the bytes that follow it.
#[repr(C)]
struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

impl Handle {
    /// The handle of `name` in `dir`, without following a symlink. An empty name means `dir` itself.
    pub fn of_name(dir: impl AsFd, name: &[u8]) -> Result<Handle, Errno> {
        let mut buffer = [0u8; 256];
        let text = buffer.get_mut(..name.len()).ok_or(Errno::NAMETOOLONG)?;
        text.copy_from_slice(name);
        let name = CStr::from_bytes_until_nul(&buffer).map_err(|_| Errno::NAMETOOLONG)?;
        let mut raw = RawHandle { len: HANDLE_BYTES_MAX as u32, kind: 0, bytes: [0; HANDLE_BYTES_MAX] };
        let mut mount_id = 0;
        let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
        // SAFETY: `raw` has the layout of `struct file_handle` with `len` bytes behind its header, `name` ends with NUL, and both
        // outlive the call.
        let result =
            unsafe { libc::name_to_handle_at(dir.as_fd().as_raw_fd(), name.as_ptr(), (&raw mut raw).cast(), &raw mut mount_id, flags) };
        if result != 0 {
            return Err(last_errno());
        }
        Handle::from_parts(raw.kind, raw.bytes.get(..raw.len as usize).ok_or(Errno::OVERFLOW)?).ok_or(Errno::OVERFLOW)
    }

    pub fn of(fd: impl AsFd) -> Result<Handle, Errno> {
        Handle::of_name(fd, b"")
    }

    pub fn from_parts(kind: i32, bytes: &[u8]) -> Option<Handle> {
        let mut copy = [0; HANDLE_BYTES_MAX];
        copy.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Handle { kind, len: bytes.len() as u8, bytes: copy })
    }

    pub fn kind(&self) -> i32 {
        self.kind
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Opens the inode on the file system that `mount` lies on. `ESTALE` means that it does not exist any more.
    pub fn open(&self, mount: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut raw = RawHandle { len: u32::from(self.len), kind: self.kind, bytes: self.bytes };
        // SAFETY: `raw` has the layout of `struct file_handle` and outlives the call.
        let fd = unsafe { libc::open_by_handle_at(mount.as_fd().as_raw_fd(), (&raw mut raw).cast(), flags.bits() as i32) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: the kernel has just given this descriptor to us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
