//! System calls on nodes that may only be pointed at (O_PATH), and the few ioctls that no crate wraps.
//!
//! `/proc/self/fd/N` leads to the very inode behind a descriptor, a symlink included, and is how calls without an
//! `AT_EMPTY_PATH` form reach it.
#![allow(unsafe_code)] // FICLONERANGE has no safe wrapper in the crates we use.

use rustix::fd::{AsFd, AsRawFd};
use rustix::fs::{AtFlags, Gid, IFlags, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use standin_model::Timestamp;

fn magic_link(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

pub fn set_owner(fd: impl AsFd, owner: u32, group: u32) -> Result<(), Errno> {
    // All ones means "leave it" to the kernel and is no valid id.
    let (owner, group) = ((owner != u32::MAX).then(|| Uid::from_raw(owner)), (group != u32::MAX).then(|| Gid::from_raw(group)));
    rustix::fs::chownat(fd, "", owner, group, AtFlags::EMPTY_PATH)
}

pub fn set_mode(fd: impl AsFd, is_path: bool, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode);
    if is_path { rustix::fs::chmod(magic_link(fd), mode) } else { rustix::fs::fchmod(fd, mode) }
}

const OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };

fn timespec(time: Option<Timestamp>) -> Timespec {
    const SECOND: i64 = 1_000_000_000;
    time.map_or(OMIT, |time| Timespec { tv_sec: time.0.div_euclid(SECOND), tv_nsec: time.0.rem_euclid(SECOND) })
}

pub fn set_times(fd: impl AsFd, accessed: Option<Timestamp>, modified: Option<Timestamp>) -> Result<(), Errno> {
    let times = Timestamps { last_access: timespec(accessed), last_modification: timespec(modified) };
    match rustix::fs::utimensat(&fd, "", &times, AtFlags::EMPTY_PATH) {
        Err(Errno::INVAL) => rustix::fs::utimensat(rustix::fs::CWD, magic_link(fd), &times, AtFlags::empty()),
        other => other,
    }
}

pub fn set_xattr(fd: impl AsFd, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    match rustix::fs::fsetxattr(&fd, name, value, XattrFlags::empty()) {
        Err(Errno::BADF) => rustix::fs::setxattr(magic_link(fd), name, value, XattrFlags::empty()),
        other => other,
    }
}

/// Removing what is not there succeeds.
pub fn remove_xattr(fd: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    let result = match rustix::fs::fremovexattr(&fd, name) {
        Err(Errno::BADF) => rustix::fs::removexattr(magic_link(fd), name),
        other => other,
    };
    if matches!(result, Err(Errno::NODATA)) { Ok(()) } else { result }
}

pub fn get_xattr(fd: impl AsFd, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    // XATTR_SIZE_MAX of <linux/limits.h>.
    let mut value = vec![0u8; 65_536];
    let result = match rustix::fs::fgetxattr(&fd, name, &mut value[..]) {
        Err(Errno::BADF) => rustix::fs::getxattr(magic_link(fd), name, &mut value[..]),
        other => other,
    };
    match result {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Names of all extended attributes. A kind or file system without any has none.
pub fn list_xattrs(fd: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    // Most nodes have none or a few; 64 KiB is XATTR_LIST_MAX.
    for room in [512, 65_536] {
        let mut list = vec![0u8; room];
        let result = match rustix::fs::flistxattr(&fd, &mut list[..]) {
            Err(Errno::BADF) => rustix::fs::listxattr(magic_link(&fd), &mut list[..]),
            other => other,
        };
        match result {
            Ok(len) => {
                let names = list.get(..len).unwrap_or_default().split(|byte| *byte == 0);
                return Ok(names.filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect());
            }
            Err(Errno::RANGE) => continue,
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::RANGE)
}

/// Sets those inode flags of `mask` that differ. Returns whether anything had to change.
pub fn set_flags(fd: impl AsFd, flags: u32, mask: u32) -> Result<bool, Errno> {
    let now = rustix::fs::ioctl_getflags(&fd)?.bits();
    let then = (now & !mask) | (flags & mask);
    if then != now {
        rustix::fs::ioctl_setflags(&fd, IFlags::from_bits_retain(then))?;
    }
    Ok(then != now)
}

/// Shares `len` bytes of `origin` with `fd`.
pub fn clone_range(origin: impl AsFd, origin_offset: u64, len: u64, fd: impl AsFd, offset: u64) -> Result<(), Errno> {
    let argument = libc::file_clone_range {
        src_fd: origin.as_fd().as_raw_fd().into(),
        src_offset: origin_offset,
        src_length: len,
        dest_offset: offset,
    };
    // SAFETY: FICLONERANGE reads one `struct file_clone_range`, which outlives the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FICLONERANGE as _, &raw const argument) };
    if result == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) }
}
