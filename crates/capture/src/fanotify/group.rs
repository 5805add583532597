//! One fanotify group that watches one whole file system.
//!
//! A group for each volume, because a file system may name itself by another id in each of its subvolumes (btrfs), and then only a group of its own takes it.
//! Before Linux 6.8 not even that: there the mark is set through the top level, by a mount that nobody sees.
#![allow(unsafe_code)] // fanotify_init and fanotify_mark have no safe binding

use super::event::ASKED;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use standin_model::FileSystem;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Whole records only are read; the longest is below 400 bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// Where the kernel says how many events wait at most in one group; its default where that cannot be read.
const QUEUE_FILE: &str = "/proc/sys/fs/fanotify/max_queued_events";
const QUEUE_DEFAULT: usize = 16_384;

pub struct Group {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// A group that watches nothing yet; fails on kernels before 5.9, and without CAP_SYS_ADMIN.
pub fn init() -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_REPORT_FID | libc::FAN_REPORT_DIR_FID;
    // SAFETY: plain numbers.
    let fd = unsafe { libc::fanotify_init(flags, libc::O_RDONLY as u32) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn mark(group: &OwnedFd, through: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    // SAFETY: without a path the descriptor itself is meant, and the call keeps neither.
    let failed = unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, ASKED, through.as_raw_fd(), std::ptr::null()) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// btrfs's top level on a mount that has no place in any tree.
fn top_level(source: &str) -> io::Result<OwnedFd> {
    let context = fsopen("btrfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    fsconfig_set_string(context.as_fd(), "subvolid", "5")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    // The mount's own descriptor is one for paths only, through which nothing can be marked.
    Ok(rustix::fs::openat(&mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The device that is mounted there.
fn source_of(mount_point: &Path) -> io::Result<String> {
    let mounts = crate::mounts::read()?;
    crate::mounts::visible(&mounts, mount_point).map(|mount| mount.source.clone()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

impl Group {
    /// Watches the file system whose root is open here.
    pub fn watch(root: BorrowedFd<'_>, mount_point: &Path, file_system: FileSystem) -> io::Result<Group> {
        let fd = init()?;
        match mark(&fd, root) {
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) && file_system == FileSystem::Btrfs => {
                mark(&fd, top_level(&source_of(mount_point)?)?.as_fd())?;
            }
            other => other?,
        }
        Ok(Group { fd, buffer: vec![0; BUFFER_BYTES] })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Some whole records; empty when none wait.
    pub fn read(&mut self) -> io::Result<&[u8]> {
        match rustix::io::read(&self.fd, &mut self.buffer[..]) {
            Ok(bytes) => Ok(self.buffer.get(..bytes).unwrap_or_default()),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(&[]),
            Err(error) => Err(error.into()),
        }
    }
}

/// How many events can wait in a group.
pub fn queue_events_max() -> usize {
    let told = std::fs::read_to_string(QUEUE_FILE).ok().and_then(|text| text.trim().parse().ok());
    told.unwrap_or(QUEUE_DEFAULT)
}

/// Starts the writeback of a file's dirty pages, behind what is under way already. From here on the next store through a mapping stamps the file anew.
pub fn clean(file: BorrowedFd<'_>) {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: a valid descriptor and plain numbers; length 0 means to the end. An error only means that the kernel does it later.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel before 6.8 needs of a subvolume works here as well.
    #[test]
    fn a_top_level_that_is_mounted_nowhere_can_be_marked() {
        let Ok(volume) = super::super::tests::mounted(FileSystem::Btrfs) else { return };
        let top = top_level(&source_of(&volume.mount_point()).unwrap()).unwrap();
        let fd = init().unwrap();
        mark(&fd, top.as_fd()).unwrap();
        let mut group = Group { fd, buffer: vec![0; BUFFER_BYTES] };
        drop(top);
        std::fs::write(volume.mount_point().join("x"), b"x").unwrap();
        assert!(!group.read().unwrap().is_empty());
    }
}
