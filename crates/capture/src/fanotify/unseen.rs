//! What changes without an event, and where it is looked for.
//!
//! fanotify tells of calls on open files, and of those on names. It does not tell of stores through a mapping, of asynchronous I/O (io_submit), of
//! what a loop device writes into its file, and before Linux 6.5 of what is written through overlayfs. All of these stamp the file's change time. So what
//! may change in such a way now is looked at, and told of where its time is not old. What has ended is told of by the file's close.
//!
//! A store stamps only the first time since its page was clean. So the pages of mapped files are written back with every look: what is stored after one look
//! is stamped after it.

use super::{Watched, group};
use crate::{handles, mounts, processes, writers};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use standin_model::{NodeId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Direct writes are stamped when they are submitted, and the clock behind the stamps is up to 10 ms late: a disk that takes longer is broken.
const SLACK_NS: i64 = 5_000_000_000;
/// A long write(2) through overlayfs is stamped at its beginning and told of nowhere.
const OVERLAY_SLACK_NS: i64 = 60_000_000_000;
/// Entries of overlay file systems in one look, about two seconds; beyond it everything is looked at by its change time.
const OVERLAY_ENTRIES_MAX: usize = 400_000;

/// Nodes, each with the directory through which it was found, where that is known.
pub type Found = BTreeMap<NodeId, Option<NodeId>>;

/// More changed than can be told one by one.
pub struct TooMuch;

/// Nodes that may have changed unseen since then.
pub fn find(volumes: &[Watched], since: Timestamp) -> Result<Found, TooMuch> {
    let mut found = Found::new();
    let since = |slack: i64| Timestamp(since.0.saturating_sub(slack));
    for process in writers::others() {
        let mappings = writers::Mappings::of(&process);
        for link in mappings.files() {
            note(volumes, &link, since(SLACK_NS), true, &mut found);
        }
        if mappings.has_aio() {
            for link in writers::open_files(&process) {
                note(volumes, &link, since(SLACK_NS), false, &mut found);
            }
        }
    }
    for file in behind_loop_devices() {
        note(volumes, &file, since(SLACK_NS), false, &mut found);
    }
    let mut left = OVERLAY_ENTRIES_MAX;
    for upper in overlay_uppers() {
        let Some(top) = open(&upper) else { continue };
        let Some((volume, _)) = on(volumes, top.as_fd()) else { continue };
        below(top.as_fd(), volume, since(OVERLAY_SLACK_NS), &mut left, &mut found)?;
    }
    Ok(found)
}

fn open(path: &Path) -> Option<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
}

fn changed(stat: &Stat) -> Timestamp {
    Timestamp(stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(stat.st_ctime_nsec as i64))
}

/// The volume that an open node is on, and its id there.
fn on<'v>(volumes: &'v [Watched], file: BorrowedFd<'_>) -> Option<(&'v Watched, NodeId)> {
    let stat = fstat(file).ok()?;
    volumes.iter().find_map(|volume| {
        let node = handles::node_id_of(file, volume.id).ok().filter(|node| node.subvolume == volume.subvolume)?;
        let own = handles::open_node(volume.root.as_fd(), &node, volume.file_system, libc::O_PATH).ok()?;
        let own = fstat(own).ok()?;
        ((own.st_dev, own.st_ino) == (stat.st_dev, stat.st_ino)).then_some((volume, node))
    })
}

fn note(volumes: &[Watched], path: &Path, since: Timestamp, mapped: bool, found: &mut Found) {
    let Some(file) = open(path) else { return };
    let is_file = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !fstat(&file).is_ok_and(|stat| is_file(&stat)) {
        return;
    }
    let Some((volume, node)) = on(volumes, file.as_fd()) else { return };
    if mapped {
        let flags = libc::O_RDONLY | libc::O_NOATIME | libc::O_NONBLOCK;
        if let Ok(own) = handles::open_node(volume.root.as_fd(), &node, volume.file_system, flags) {
            group::clean(own.as_fd());
        }
    }
    // Behind the cleaning, so that a store before it is in what is read, and one after it has a stamp that the next look sees.
    if fstat(&file).is_ok_and(|stat| changed(&stat) >= since) {
        found.insert(node, directory_of(volume, node, &file));
    }
}

/// By the path that the kernel knows for an open file, if that leads to it here: another process may see other mounts.
fn directory_of(volume: &Watched, node: NodeId, file: &OwnedFd) -> Option<NodeId> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let directory = open(path.parent()?)?;
    let leads_here = handles::node_id_at(&directory, Path::new(path.file_name()?), volume.id).is_ok_and(|found| found == node);
    leads_here.then(|| handles::node_id_of(&directory, volume.id).ok()).flatten()
}

fn behind_loop_devices() -> Vec<PathBuf> {
    let file = |device: PathBuf| std::fs::read_to_string(device.join("loop/backing_file")).ok();
    let paths = processes::entries(Path::new("/sys/block")).filter_map(file);
    paths.map(|path| PathBuf::from(path.trim_end_matches('\n'))).collect()
}

fn overlay_uppers() -> Vec<PathBuf> {
    let mounts = mounts::read().unwrap_or_default().into_iter();
    let uppers: BTreeSet<String> =
        mounts.filter(|mount| mount.file_system == "overlay").filter_map(|mount| mount.option("upperdir")).collect();
    uppers.into_iter().map(PathBuf::from).collect()
}

/// Everything below a directory that was changed since; a directory that cannot be read is one that is gone.
fn below(directory: BorrowedFd<'_>, volume: &Watched, since: Timestamp, left: &mut usize, found: &mut Found) -> Result<(), TooMuch> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
    let Ok(directory) = openat(directory, ".", flags, Mode::empty()) else { return Ok(()) };
    let Ok(mut entries) = Dir::read_from(&directory) else { return Ok(()) };
    let own = handles::node_id_of(&directory, volume.id).ok();
    while let Some(Ok(entry)) = entries.read() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        *left = left.checked_sub(1).ok_or(TooMuch)?;
        let Ok(stat) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if changed(&stat) >= since {
            let name = Path::new(OsStr::from_bytes(name.to_bytes()));
            let node = handles::node_id_at(&directory, name, volume.id).ok().filter(|node| node.subvolume == volume.subvolume);
            found.extend(node.map(|node| (node, own)));
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && let Ok(below_it) = openat(&directory, name, flags, Mode::empty())
        {
            below(below_it.as_fd(), volume, since, left, found)?;
        }
    }
    Ok(())
}
