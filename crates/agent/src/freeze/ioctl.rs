//! The three system calls of a fence, which no safe wrapper offers.
#![allow(unsafe_code)] // FIFREEZE, FITHAW and reboot(2) have no safe binding.

use std::io;
use std::os::fd::RawFd;

/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)` of linux/fs.h.
const FIFREEZE: libc::c_ulong = 0xC004_5877;
const FITHAW: libc::c_ulong = 0xC004_5878;

fn call(fd: RawFd, request: libc::c_ulong) -> io::Result<()> {
    // SAFETY: both requests ignore their argument and touch no memory of this process.
    let result = unsafe { libc::ioctl(fd, request as _, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn freeze(fd: RawFd) -> io::Result<()> {
    call(fd, FIFREEZE)
}

pub fn thaw(fd: RawFd) -> io::Result<()> {
    call(fd, FITHAW)
}

pub fn power_off() -> io::Result<()> {
    // SAFETY: reboot(2) takes no pointer; with this command it does not return on success.
    let result = unsafe { libc::reboot(libc::RB_POWER_OFF) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
