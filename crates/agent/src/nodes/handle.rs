//! `name_to_handle_at` and `open_by_handle_at`, which have no safe binding.
#![allow(unsafe_code)] // A variable-length C structure goes in and out of two system calls.

use rustix::fs::OFlags;
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the kernel calls a file handle, without its C header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    pub kind: i32,
    pub bytes: Vec<u8>,
}

/// MAX_HANDLE_SZ of linux/exportfs.h.
const HANDLE_BYTES_MAX: usize = 128;

#[repr(C)]
struct Raw {
    len: u32,
    kind: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

/// The handle of a name below `directory`, or of `directory` itself for an empty name. Symlinks are not followed.
pub fn of(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Handle, Errno> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    let mut raw = Raw { len: HANDLE_BYTES_MAX as u32, kind: 0, bytes: [0; HANDLE_BYTES_MAX] };
    let mut mount = 0i32;
    // SAFETY: `raw` has the layout of struct file_handle with room for `len` bytes; both pointers outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_name_to_handle_at, directory.as_raw_fd(), name.as_ptr(), &raw mut raw, &raw mut mount, flags) };
    if result != 0 {
        return Err(last_error());
    }
    let bytes = raw.bytes.get(..raw.len as usize).ok_or(Errno::PROTO)?.to_vec();
    Ok(Handle { kind: raw.kind, bytes })
}

/// Opens a handle on the file system that `mount` belongs to.
pub fn open(mount: BorrowedFd<'_>, handle: &Handle, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut raw = Raw { len: handle.bytes.len() as u32, kind: handle.kind, bytes: [0; HANDLE_BYTES_MAX] };
    raw.bytes.get_mut(..handle.bytes.len()).ok_or(Errno::INVAL)?.copy_from_slice(&handle.bytes);
    // SAFETY: `raw` is a valid struct file_handle of `len` bytes and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut raw, flags.bits() as libc::c_int) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
