//! The project that a file or directory belongs to, by which its file system counts space.
#![allow(unsafe_code)] // FS_IOC_FSGETXATTR has no safe wrapper in the crates we use.

use rustix::ioctl::{Getter, Opcode, ioctl, opcode};
use std::os::fd::BorrowedFd;

/// `struct fsxattr` of <linux/fs.h>; the project is its fourth word, padding the last two.
type ExtendedFlags = [u32; 7];
const GET: Opcode = opcode::read::<ExtendedFlags>(b'X', 31);

/// 0 is none, and what a file system says that knows of none.
pub fn of(fd: BorrowedFd<'_>) -> u32 {
    // SAFETY: FS_IOC_FSGETXATTR writes one `struct fsxattr`, which is seven words.
    let flags = unsafe { ioctl(fd, Getter::<GET, ExtendedFlags>::new()) };
    flags.map_or(0, |[_, _, _, project, ..]: ExtendedFlags| project)
}
