//! Access to the files of a mounted replica that cannot be led outside of it.
//!
//! Every path is resolved by the kernel with `RESOLVE_IN_ROOT`: absolute links and `..` end at the replica's root. Only regular
//! files are read, and without waiting, so that a named pipe in the place of a file does no harm.

use super::BootError;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Longest chain of links that a write follows; the kernel's own limit is 40.
const LINKS_MAX: u32 = 16;
/// Largest file that is read as text.
const TEXT_BYTES_MAX: u64 = 4 << 20;

/// The root of a mounted replica.
#[derive(Debug)]
pub struct GuestRoot {
    root: File,
}

impl GuestRoot {
    /// Opens the directory that is the guest's `/`.
    pub fn open(root: &Path) -> Result<GuestRoot, BootError> {
        File::open(root).map(|root| GuestRoot { root }).map_err(BootError::host("opening", root))
    }

    fn resolve(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let path = path.trim_start_matches('/');
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, resolve)?)
    }

    fn open_regular(&self, path: &str, flags: OFlags) -> io::Result<File> {
        let file = File::from(self.resolve(path, flags | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
    }

    /// Reads a file of at most `limit` bytes.
    pub fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, BootError> {
        let read = || {
            let mut bytes = Vec::new();
            self.open_regular(path, OFlags::RDONLY)?.take(limit + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > limit { Err(io::Error::other("too large")) } else { Ok(bytes) }
        };
        read().map_err(BootError::guest("reading", path))
    }

    /// Reads a text file; `None` where there is none. Bytes that are no UTF-8 make it unreadable, so that no edit damages them.
    pub fn text(&self, path: &str) -> Option<String> {
        self.read(path, TEXT_BYTES_MAX).ok().and_then(|bytes| String::from_utf8(bytes).ok())
    }

    /// Size and modification time (seconds) of a regular file.
    pub fn stamp(&self, path: &str) -> Option<(u64, i64)> {
        let data = self.open_regular(path, OFlags::RDONLY).ok()?.metadata().ok()?;
        Some((data.len(), std::os::unix::fs::MetadataExt::mtime(&data)))
    }

    /// True when the path leads to anything.
    pub fn exists(&self, path: &str) -> bool {
        self.resolve(path, OFlags::PATH, Mode::empty()).is_ok()
    }

    /// Names in a directory, sorted; empty where there is none.
    pub fn list(&self, path: &str) -> Vec<String> {
        let Ok(directory) = self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) else { return Vec::new() };
        let Ok(entries) = rustix::fs::Dir::read_from(&directory) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        let mut names: Vec<String> = names.filter(|name| name != "." && name != "..").collect();
        names.sort();
        names
    }

    /// Opens the directory that holds `path`, making directories that lack, and gives the last name. Links at the end are followed.
    fn place(&self, path: &str) -> io::Result<(OwnedFd, String)> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let (parent, name) = (parent.to_owned(), name.to_owned());
            if name.is_empty() || name == "." || name == ".." {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let directory = self.make_directories(&parent)?;
            match rustix::fs::readlinkat(&directory, name.as_str(), Vec::new()) {
                Ok(target) => {
                    let target = target.into_string().map_err(|_| io::Error::other("a link that is not text"))?;
                    path = if target.starts_with('/') { target } else { format!("{parent}/{target}") };
                }
                Err(_) => return Ok((directory, name)),
            }
        }
        Err(rustix::io::Errno::LOOP.into())
    }

    fn make_directories(&self, path: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        if let Ok(directory) = self.resolve(path, flags, Mode::empty()) {
            return Ok(directory);
        }
        let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
        let directory = self.make_directories(parent)?;
        rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
        self.resolve(path, flags, Mode::empty())
    }

    /// Replaces or makes a file in one step. Mode and owner of a replaced file are kept.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<(), BootError> {
        let write = || {
            let (directory, name) = self.place(path)?;
            let draft = format!("{name}.standin-draft");
            let old = rustix::fs::statat(&directory, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).ok();
            let _ = rustix::fs::unlinkat(&directory, draft.as_str(), AtFlags::empty());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::openat(&directory, draft.as_str(), flags, Mode::from_raw_mode(0o644))?);
            file.write_all(bytes)?;
            if let Some(old) = old.filter(|old| FileType::from_raw_mode(old.st_mode) == FileType::RegularFile) {
                std::os::unix::fs::fchown(&file, Some(old.st_uid), Some(old.st_gid))?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(old.st_mode & 0o7777))?;
            }
            rustix::fs::renameat(&directory, draft.as_str(), &directory, name.as_str())?;
            Ok(())
        };
        write().map_err(BootError::guest("writing", path))
    }

    /// Makes a file of that size for its owner only, without holes and, where the file system copies on write, exempt from that.
    pub fn make_reserved(&self, path: &str, bytes: u64, head: &[u8]) -> Result<(), BootError> {
        let make = || {
            let (directory, name) = self.place(path)?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::openat(&directory, name.as_str(), flags, Mode::from_raw_mode(0o600))?);
            let reserved = || {
                if let Ok(old) = rustix::fs::ioctl_getflags(&file) {
                    // Only btrfs knows it; others refuse or ignore it.
                    let _ = rustix::fs::ioctl_setflags(&file, old | rustix::fs::IFlags::NOCOW);
                }
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
                std::os::unix::fs::FileExt::write_all_at(&file, head, 0)
            };
            // Half a file would be taken for a whole one by the next run.
            reserved().inspect_err(|_: &io::Error| {
                let _ = rustix::fs::unlinkat(&directory, name.as_str(), AtFlags::empty());
            })
        };
        make().map_err(BootError::guest("making", path))
    }

    /// Like `write`, with a copy of what was there beside it. A copy made by an earlier run is the true original and stays.
    pub fn replace(&self, path: &str, old: &[u8], new: &[u8]) -> Result<(), BootError> {
        let copy = format!("{path}.standin-original");
        if !self.exists(&copy) {
            self.write(&copy, old)?;
        }
        self.write(path, new)
    }

    /// Cuts a file to `length` and writes `tail` behind it.
    pub fn append_at(&self, path: &str, length: u64, tail: &[u8]) -> Result<(), BootError> {
        let write = || {
            let file = self.open_regular(path, OFlags::WRONLY)?;
            file.set_len(length)?;
            std::os::unix::fs::FileExt::write_all_at(&file, tail, length)
        };
        write().map_err(BootError::guest("appending to", path))
    }

    /// Renames within one directory; `to` is a bare name.
    pub fn rename(&self, path: &str, to: &str) -> Result<(), BootError> {
        let rename = || {
            let (directory, name) = self.place(path)?;
            rustix::fs::renameat(&directory, name.as_str(), &directory, to).map_err(io::Error::from)
        };
        rename().map_err(BootError::guest("renaming", path))
    }

    /// Removes a name, itself and not what it may lead to; false where there was none, or a directory.
    pub fn unlink(&self, path: &str) -> Result<bool, BootError> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let Ok(directory) = self.resolve(parent, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) else { return Ok(false) };
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::ISDIR) => Ok(false),
            Err(errno) => Err(BootError::guest("removing", path)(errno.into())),
        }
    }

    /// Makes a link at `path`, unless something is there.
    pub fn link_if_absent(&self, path: &str, target: &str) -> Result<bool, BootError> {
        let link = || {
            let (parent, name) = path.rsplit_once('/').ok_or(io::ErrorKind::InvalidInput)?;
            let directory = self.make_directories(parent)?;
            match rustix::fs::symlinkat(target, &directory, name) {
                Ok(()) => Ok(true),
                Err(rustix::io::Errno::EXIST) => Ok(false),
                Err(errno) => Err(io::Error::from(errno)),
            }
        };
        link().map_err(BootError::guest("linking", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_parents_end_at_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("root");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(outside.path().join("victim"), "untouched").unwrap();
        std::os::unix::fs::symlink("../victim", inside.join("a")).unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.join("d")).unwrap();
        let guest = GuestRoot::open(&inside).unwrap();
        assert!(guest.text("/a").is_none());
        guest.write("/a", b"x").unwrap();
        let _ = guest.write("/d/victim", b"x");
        assert_eq!(std::fs::read_to_string(outside.path().join("victim")).unwrap(), "untouched");
        guest.replace("/etc/x/y", b"old", b"new").unwrap();
        assert_eq!(guest.text("etc/x/y.standin-original").unwrap(), "old");
        assert!(guest.write("/etc/..", b"x").is_err());
    }
}
