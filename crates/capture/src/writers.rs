//! Which files processes may write to without a call that capture sees: those that they hold open for writing, and those that they have mapped to be
//! written. As `/proc` tells; a process may end at any moment, and then there is nothing to tell.

use crate::processes;
use std::fs;
use std::path::{Path, PathBuf};

/// All processes but this one.
pub fn others() -> impl Iterator<Item = PathBuf> {
    let own = std::process::id().to_string();
    processes::all().filter(move |process| process.file_name().is_none_or(|name| *name != *own))
}

/// Links to what a process has open for writing.
pub fn open_files(process: &Path) -> Vec<PathBuf> {
    let writable = |info: &PathBuf| fs::read_to_string(info).is_ok_and(|text| may_write(&text));
    let link = |info: PathBuf| Some(process.join("fd").join(info.file_name()?));
    processes::entries(&process.join("fdinfo")).filter(writable).filter_map(link).collect()
}

/// The flags are octal, as for open(2).
fn may_write(info: &str) -> bool {
    let flags = info.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| matches!((flags & 3) as i32, libc::O_WRONLY | libc::O_RDWR))
}

/// What a process has mapped.
pub struct Mappings {
    process: PathBuf,
    text: String,
}

impl Mappings {
    pub fn of(process: &Path) -> Mappings {
        Mappings { process: process.to_owned(), text: fs::read_to_string(process.join("maps")).unwrap_or_default() }
    }

    /// Links to files whose content its stores change.
    pub fn files(&self) -> Vec<PathBuf> {
        self.text.lines().filter_map(shared_range).map(|range| self.process.join("map_files").join(range)).collect()
    }

    /// Whether it has set up asynchronous I/O (io_setup), whose ring is mapped under this name.
    pub fn has_aio(&self) -> bool {
        self.text.lines().any(|line| line.contains(" /[aio]"))
    }
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
        let maps = |text: &str| Mappings { process: PathBuf::from("/proc/7"), text: text.to_owned() };
        assert!(maps("7fdfee73d000-7fdfee73e000 rw-s 00000000 00:13 298426   /[aio] (deleted)\n").has_aio());
        assert!(!maps(&line("rw-s", "12")).has_aio());
        assert_eq!(maps(&line("rw-s", "12")).files(), [PathBuf::from("/proc/7/map_files/7f0000000000-7f0000001000")]);
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
}
