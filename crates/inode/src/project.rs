//! The project that a file or directory belongs to, by which its file system counts space.
#![allow(unsafe_code)] // FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR have no safe wrappers in the crates we use.

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

/// `struct fsxattr` of <linux/fs.h>; the project is its fourth word, padding the last two.
type ExtendedFlags = [u32; 7];
const GET: Opcode = opcode::read::<ExtendedFlags>(b'X', 31);
const SET: Opcode = opcode::write::<ExtendedFlags>(b'X', 32);
/// FS_XFLAG_PROJINHERIT: a directory gives its project on.
const INHERITS: u32 = 0x200;

fn extended_flags(fd: impl AsFd) -> Result<ExtendedFlags, Errno> {
    // SAFETY: FS_IOC_FSGETXATTR writes one `struct fsxattr`, which is seven words.
    unsafe { ioctl(fd, Getter::<GET, ExtendedFlags>::new()) }
}

/// Of an open file or directory; 0 is none, also where the file system knows of none.
pub fn project(fd: impl AsFd) -> Result<u32, Errno> {
    match extended_flags(fd) {
        Ok([_, _, _, project, ..]) => Ok(project),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// Gives an open file or directory to a project; a directory gives it on no more. Returns whether anything had to change.
pub fn set_project(fd: impl AsFd, project: u32) -> Result<bool, Errno> {
    let now = match extended_flags(&fd) {
        // Nothing belongs to any project there.
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) if project == 0 => return Ok(false),
        now => now?,
    };
    let mut then = now;
    (then[0], then[3]) = (now[0] & !INHERITS, project);
    if then != now {
        // SAFETY: FS_IOC_FSSETXATTR reads one `struct fsxattr`, which is seven words.
        unsafe { ioctl(&fd, Setter::<SET, ExtendedFlags>::new(then)) }?;
    }
    Ok(then != now)
}
