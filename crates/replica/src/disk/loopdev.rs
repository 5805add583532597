//! Loop devices over a byte range of a raw disk file.
//!
//! The host's kernel may lack a partition scanner, and a container may lack the device nodes, so the range is given to the kernel by
//! `LOOP_CONFIGURE` (Linux 5.8) and a missing node is made. Every device is bound with `LO_FLAGS_AUTOCLEAR`: it disappears with its
//! last user, also when the process is killed. [`LoopDevice::gone`] tells when the kernel has really let go.
//!
//! This module opts in to `unsafe` because loop devices are driven by ioctls that no safe wrapper offers.
#![allow(unsafe_code)]

use super::DiskError;
use rustix::fs::{FileType, Mode};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

// include/uapi/linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Block major number of loop devices (Documentation/admin-guide/devices.txt).
const LOOP_MAJOR: u32 = 7;
/// Attempts to win the race for a free device against other processes.
const BIND_ATTEMPTS_MAX: u32 = 64;

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// A bound loop device; unbound by the kernel when this handle and every mount of it are gone.
#[derive(Debug)]
pub struct LoopDevice {
    number: u32,
    path: PathBuf,
    device: File,
}

impl LoopDevice {
    /// Binds a free loop device to `size` bytes of `backing` from `offset` on.
    pub fn bind(backing: &Path, offset: u64, size: u64) -> Result<LoopDevice, DiskError> {
        let failed = |operation| {
            let path = backing.to_path_buf();
            move |source| DiskError::Loop { path, operation, source }
        };
        let file = OpenOptions::new().read(true).write(true).open(backing).map_err(failed("opening the disk"))?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").map_err(failed("opening /dev/loop-control"))?;
        for _ in 0..BIND_ATTEMPTS_MAX {
            let number = free_number(&control).map_err(failed("LOOP_CTL_GET_FREE"))?;
            let (path, device) = open_node(number).map_err(failed("opening the device node"))?;
            match configure(&device, &file, offset, size) {
                Ok(()) => return Ok(LoopDevice { number, path, device }),
                // Somebody else took the device between the two calls.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(failed("LOOP_CONFIGURE")(error)),
            }
        }
        Err(failed("LOOP_CONFIGURE")(io::Error::from_raw_os_error(libc::EBUSY)))
    }

    /// Path of the device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of the device, for [`LoopDevice::gone`] after the handle is closed.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Writes what the device's page cache holds down to the disk file.
    pub fn sync(&self) -> io::Result<()> {
        self.device.sync_all()
    }

    /// Every loop device that is bound to `backing`, opened so that it stays, and the offset at which it begins.
    pub fn bound_to(backing: &Path) -> Vec<(LoopDevice, u64)> {
        let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let numbers = devices.filter_map(|device| device.file_name().to_string_lossy().strip_prefix("loop")?.parse::<u32>().ok());
        let opened = numbers.filter(|number| !Self::gone(*number, backing)).filter_map(|number| {
            let (path, device) = open_node(number).ok()?;
            // Asked again, because it may have gone over to another file before it was opened.
            let offset = std::fs::read_to_string(format!("/sys/block/loop{number}/loop/offset")).ok()?.trim().parse().ok()?;
            (!Self::gone(number, backing)).then_some((LoopDevice { number, path, device }, offset))
        });
        opened.collect()
    }

    /// True when loop device `number` no longer is bound to `backing`.
    pub fn gone(number: u32, backing: &Path) -> bool {
        let bound = std::fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file"));
        match (bound, std::fs::canonicalize(backing)) {
            (Ok(text), Ok(path)) => Path::new(text.trim_end()) != path,
            (Ok(_), Err(_)) => false,
            (Err(_), _) => true,
        }
    }
}

fn free_number(control: &File) -> io::Result<u32> {
    // SAFETY: the request takes no argument and returns a device number or -1.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

fn open_node(number: u32) -> io::Result<(PathBuf, File)> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    if !path.exists() {
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            FileType::BlockDevice,
            Mode::RUSR | Mode::WUSR,
            rustix::fs::makedev(LOOP_MAJOR, number),
        );
        // Another process may have made it meanwhile, which is as good.
        if let Err(errno) = made
            && errno != rustix::io::Errno::EXIST
        {
            return Err(errno.into());
        }
    }
    let device = OpenOptions::new().read(true).write(true).open(&path)?;
    Ok((path, device))
}

fn configure(device: &File, file: &File, offset: u64, size: u64) -> io::Result<()> {
    let info = LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset,
        size_limit: size,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let config = LoopConfig { fd: file.as_raw_fd() as u32, block_size: 512, info, reserved: [0; 8] };
    // SAFETY: `config` has the layout of `struct loop_config` and outlives the call; both descriptors are open.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(std::mem::size_of::<LoopInfo64>(), 232);
        assert_eq!(std::mem::size_of::<LoopConfig>(), 304);
    }
}
