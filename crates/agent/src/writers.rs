//! Which files are being written to right now, whatever their change time says: for an agent that takes up where another one ended.
//!
//! A write(2) that was under way when the last agent ended may still go on, and its file was stamped when it began. The pump holds the known time back
//! for calls of which pages keep coming; a call that stood still with its disk, for longer than the slack, is found here. Files that were
//! stamped much earlier are left alone: on a database server everything is open, and mirroring all of it again would take days.

use crate::nodes::Nodes;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use standin_capture::processes;
use standin_model::{NodeId, Timestamp};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// No call takes longer than this, and no store waits longer for its writeback.
const CALL_NS_MAX: i64 = 3_600_000_000_000;

/// Files of the protected volumes that some process holds open for writing or maps to write, and that were stamped within the hour before `since`.
pub fn writing_since(nodes: &Nodes, since: Timestamp) -> BTreeSet<NodeId> {
    let stamped = since.0.saturating_sub(CALL_NS_MAX)..since.0;
    let is_stamped = |file: &OwnedFd| {
        let stat = fstat(file).ok().filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)?;
        stamped.contains(&(stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(stat.st_ctime_nsec as i64))).then_some(())
    };
    let open = |path: PathBuf| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
    let files = others().flat_map(|process| [open_files(&process), mapped_files(&process)].concat());
    files.filter_map(open).filter(|file| is_stamped(file).is_some()).filter_map(|file| nodes.find(file.as_fd())).collect()
}

fn others() -> impl Iterator<Item = PathBuf> {
    let own = std::process::id().to_string();
    processes::all().filter(move |process| process.file_name().is_none_or(|name| *name != *own))
}

fn open_files(process: &Path) -> Vec<PathBuf> {
    let writable = |info: &PathBuf| fs::read_to_string(info).is_ok_and(|text| may_write(&text));
    let link = |info: PathBuf| Some(process.join("fd").join(info.file_name()?));
    processes::entries(&process.join("fdinfo")).filter(writable).filter_map(link).collect()
}

/// The flags are octal, as for open(2).
fn may_write(info: &str) -> bool {
    let flags = info.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| matches!((flags & 3) as i32, libc::O_WRONLY | libc::O_RDWR))
}

fn mapped_files(process: &Path) -> Vec<PathBuf> {
    let Ok(maps) = fs::read_to_string(process.join("maps")) else { return Vec::new() };
    maps.lines().filter_map(shared_range).map(|range| process.join("map_files").join(range)).collect()
}

/// `7f0000000000-7f0000001000 rw-s 00000000 fe:01 1234 /path`; anonymous memory has inode 0.
fn shared_range(line: &str) -> Option<&str> {
    let mut fields = line.split_ascii_whitespace();
    let (range, rights, inode) = (fields.next()?, fields.next()?.as_bytes(), fields.nth(2)?);
    (rights.get(1) == Some(&b'w') && rights.get(3) == Some(&b's') && inode != "0").then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_capture::handles;
    use standin_model::{FileSystem, VolumeId};

    #[test]
    fn flags_and_rights_are_read_as_the_kernel_writes_them() {
        let info = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t29\nino:\t131\n");
        assert!(may_write(&info("0102001")) && may_write(&info("0100002")));
        assert!(!may_write(&info("0100000")) && !may_write("nonsense"));
        let line = |rights: &str, inode: &str| format!("7f0000000000-7f0000001000 {rights} 00000000 fe:01 {inode}    /a b");
        assert_eq!(shared_range(&line("rw-s", "12")), Some("7f0000000000-7f0000001000"));
        for (rights, inode) in [("rw-p", "12"), ("r--s", "12"), ("rw-s", "0")] {
            assert_eq!(shared_range(&line(rights, inode)), None);
        }
        assert_eq!(shared_range(""), None);
    }

    /// Another process holds one file open for writing, reads a second, and the third is nobody's.
    #[test]
    fn files_of_other_processes_are_found_by_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        ["written", "read", "closed"].iter().for_each(|name| fs::write(path(name), b"x").unwrap());
        let mut child = std::process::Command::new("sleep");
        child.arg("60").stdout(fs::OpenOptions::new().append(true).open(path("written")).unwrap());
        let mut child = child.stdin(fs::File::open(path("read")).unwrap()).spawn().unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        let found: Vec<PathBuf> = open_files(&process).iter().filter_map(|link| fs::read_link(link).ok()).collect();
        let listed = others().any(|other| other == process);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(listed && found.contains(&fs::canonicalize(path("written")).unwrap()), "{found:?}");
        assert!(!found.iter().any(|path| path.ends_with("read") || path.ends_with("closed")), "{found:?}");
    }

    /// On a real file system, because only that has file handles.
    #[test]
    #[ignore = "needs an ext4 file system of its own; its mount point in STANDIN_FREEZE_MOUNT"]
    fn what_another_process_writes_to_is_found_on_its_volume() {
        let mount = std::env::var("STANDIN_FREEZE_MOUNT").expect("a mount point");
        let nodes = Nodes::open_volumes(&[(VolumeId(3), mount.clone(), FileSystem::Ext4)]).unwrap();
        let path = Path::new(&mount).join("written");
        fs::write(&path, b"x").unwrap();
        let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        let (stat, node) = (fstat(&file).unwrap(), handles::node_id_of(&file, VolumeId(3)).unwrap());
        let stamped = Timestamp(stat.st_ctime * 1_000_000_000 + stat.st_ctime_nsec as i64);
        let mut child = std::process::Command::new("sleep").arg("60").stdout(file).spawn().unwrap();
        let found = |since: i64| writing_since(&nodes, Timestamp(since)).contains(&node);
        let seen = [stamped.0 + 1, stamped.0 + CALL_NS_MAX, stamped.0, stamped.0 + CALL_NS_MAX + 1].map(found);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, [true, true, false, false]);
        assert!(!found(stamped.0 + 1), "nobody writes to it any more");
    }
}
