//! Which files are being written to right now, whatever their change time says: for an agent that takes up where another one ended.
//!
//! A write(2) that was under way when the last agent ended may still go on, and its file was stamped when it began. The pump holds the known time back
//! for calls of which pages keep coming; a call that stood still with its disk, for longer than the slack, is found here. Files that were
//! stamped much earlier are left alone: on a database server everything is open, and mirroring all of it again would take days.

use crate::nodes::Nodes;
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use standin_capture::writers::{Mappings, open_files, others};
use standin_model::{NodeId, Timestamp};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

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
    let files = others().flat_map(|process| [open_files(&process), Mappings::of(&process).files()].concat());
    files.filter_map(open).filter(|file| is_stamped(file).is_some()).filter_map(|file| nodes.find(file.as_fd())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_capture::handles;
    use standin_model::{FileSystem, VolumeId};
    use std::fs;
    use std::path::Path;

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
