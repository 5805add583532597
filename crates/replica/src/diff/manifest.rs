//! A tree as a list: everything of each file that a replica has to have.

use crate::apply::{GUARDS, SETTABLE};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::Serialize;
use standin_inode::extents::never_written;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Holes are compared in units of this: a file system may store less than it as data, but never more as a hole.
pub const HOLE_UNIT: u64 = 4096;

/// The zeros of a longer hole are not hashed one by one, but its length: reading terabytes of nothing takes hours.
const HOLE_HUGE: u64 = 1 << 30;

/// What a path is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// `data` is where it is not a hole; `None` where that is not known and so not compared.
    File {
        len: u64,
        content: String,
        data: Option<Vec<(u64, u64)>>,
    },
    Directory,
    Symlink {
        target: String,
    },
    Fifo,
    Socket,
    CharDevice {
        device: u64,
    },
    BlockDevice {
        device: u64,
    },
    /// It is there, and reading it failed.
    Unreadable {
        why: String,
    },
}

/// Everything that is compared about one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub kind: Kind,
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
    /// Seconds since 1970, and nanoseconds.
    pub modified: (i64, i64),
    /// Name to value, the value as hexadecimal.
    pub attributes: BTreeMap<String, String>,
    /// By which the file system counts its space; 0 is none, and what is neither file nor directory shows none.
    pub project: u32,
    /// Inode flags that a replica keeps; 0 for what is neither file nor directory.
    pub flags: u32,
    /// The first path, in order of names, of the same file; its own for a file with one name.
    pub first_name: String,
}

/// Entries by path relative to the root, which is the empty path; names that are not UTF-8 are shown with escapes.
pub type Manifest = BTreeMap<String, Entry>;

/// Reads a tree without the names in `skip` at its root. Other volumes mounted below it are not entered. Fails only where the root itself cannot be
/// looked at; whatever else cannot be read is [`Kind::Unreadable`].
pub fn read_tree(root: &Path, skip: &[&[u8]]) -> io::Result<Manifest> {
    let device = fs::symlink_metadata(root)?.dev();
    let mut walk = Walk { device, names: HashMap::new(), manifest: Manifest::new(), buffer: vec![0; BUFFER_BYTES] };
    walk.visit(root, String::new(), skip);
    Ok(walk.manifest)
}

/// Leaves out the flags that a replica gets only when it is finished, because they would be in the way of what is applied to it.
pub fn forget_guards(tree: &mut Manifest) {
    tree.values_mut().for_each(|entry| entry.flags &= !GUARDS);
}

/// The hash by which content is compared.
pub fn content_of(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

const BUFFER_BYTES: usize = 256 << 10;
/// The kernel's bound for a list of attributes and for a value (XATTR_LIST_MAX, XATTR_SIZE_MAX of <linux/limits.h>).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// The state of a walk in the order of names.
struct Walk {
    device: u64,
    /// The first name of each inode that has several.
    names: HashMap<u64, String>,
    manifest: Manifest,
    buffer: Vec<u8>,
}

impl Walk {
    /// Reads one path, and what is below it. `name` is its path from the root, as shown.
    fn visit(&mut self, path: &Path, name: String, skip: &[&[u8]]) {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(error) => return drop(self.manifest.insert(name.clone(), unreadable(name, &error))),
        };
        let first_name = if meta.is_dir() || meta.nlink() == 1 {
            name.clone()
        } else {
            self.names.entry(meta.ino()).or_insert_with(|| name.clone()).clone()
        };
        let mut entry = self.entry(path, &meta, first_name);
        let below = meta.is_dir() && meta.dev() == self.device;
        // An entry stands before what is below it, so that a deep tree that ends the walk shows where.
        if below && let Err(error) = self.children(path, &name, skip) {
            entry.kind = Kind::Unreadable { why: error.to_string() };
        }
        self.manifest.insert(name, entry);
    }

    /// Children are named through the open folder, because a tree may be deeper than the longest path that the kernel takes.
    fn children(&mut self, path: &Path, name: &str, skip: &[&[u8]]) -> io::Result<()> {
        let folder = fs::File::open(path)?;
        let near = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let mut names = Vec::new();
        let mut failed = Ok(());
        for child in fs::read_dir(&near)? {
            match child {
                Ok(child) => names.push(child.file_name()),
                // What was listed until then is compared.
                Err(error) => {
                    failed = Err(error);
                    break;
                }
            }
        }
        names.retain(|child| !skip.contains(&child.as_bytes()));
        names.sort();
        for child in names {
            let below = if name.is_empty() { shown(&child) } else { format!("{name}/{}", shown(&child)) };
            self.visit(&near.join(&child), below, &[]);
        }
        failed
    }

    fn entry(&mut self, path: &Path, meta: &fs::Metadata, first_name: String) -> Entry {
        let read = self.kind(path, meta).and_then(|kind| Ok((kind, self.attributes(path)?)));
        let (kind, attributes) = read.unwrap_or_else(|error| (Kind::Unreadable { why: error.to_string() }, BTreeMap::new()));
        let (project, flags) = if matches!(kind, Kind::File { .. } | Kind::Directory) { own_facts(path) } else { (0, 0) };
        Entry {
            kind,
            mode: meta.mode() & 0o7777,
            owner: meta.uid(),
            group: meta.gid(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            attributes,
            project,
            flags,
            first_name,
        }
    }

    fn kind(&mut self, path: &Path, meta: &fs::Metadata) -> io::Result<Kind> {
        let of = meta.file_type();
        Ok(if of.is_file() {
            self.file(path, meta.len())?
        } else if of.is_dir() {
            Kind::Directory
        } else if of.is_symlink() {
            Kind::Symlink { target: shown(fs::read_link(path)?.as_os_str()) }
        } else if of.is_fifo() {
            Kind::Fifo
        } else if of.is_socket() {
            Kind::Socket
        } else if of.is_char_device() {
            Kind::CharDevice { device: meta.rdev() }
        } else {
            Kind::BlockDevice { device: meta.rdev() }
        })
    }

    fn file(&mut self, path: &Path, len: u64) -> io::Result<Kind> {
        // A name may have become a pipe or a link meanwhile: neither is waited for nor followed.
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
        let mut file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let data = data_ranges(&file, len)?;
        let mut hash = Xxh3::new();
        let mut at = 0;
        let parts = data.iter().copied().chain([(len, u64::MAX)]).filter(|(start, _)| *start <= len);
        for (start, end) in parts {
            if start.saturating_sub(at) >= HOLE_HUGE {
                hash.update(&[b"hole".as_slice(), &(start - at).to_le_bytes()].concat());
                at = start;
            }
            at = self.hash(&mut file, &mut hash, at, end)?;
        }
        Ok(Kind::File { len, content: format!("{:032x}", hash.digest128()), data: Some(data) })
    }

    /// Returns where it ended, which is before `end` only at the file's own.
    fn hash(&mut self, file: &mut fs::File, hash: &mut Xxh3, start: u64, end: u64) -> io::Result<u64> {
        rustix::fs::seek(&*file, SeekFrom::Start(start))?;
        let (mut part, mut done) = (file.take(end - start), start);
        loop {
            let count = part.read(&mut self.buffer)?;
            if count == 0 {
                return Ok(done);
            }
            hash.update(self.buffer.get(..count).unwrap_or_default());
            done += count as u64;
        }
    }

    fn attributes(&mut self, path: &Path) -> io::Result<BTreeMap<String, String>> {
        let (list, value) = self.buffer.split_at_mut(XATTR_BYTES_MAX);
        let count = match rustix::fs::llistxattr(path, &mut *list) {
            Ok(count) => count,
            Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
            Err(error) => return Err(error.into()),
        };
        let mut found = BTreeMap::new();
        for name in list.get(..count).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let name = OsStr::from_bytes(name);
            let count = rustix::fs::lgetxattr(path, name, &mut *value)?;
            found.insert(shown(name), value.get(..count).unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        Ok(found)
    }
}

/// Project and flags.
fn own_facts(path: &Path) -> (u32, u32) {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    let Ok(file) = fs::OpenOptions::new().read(true).custom_flags(flags).open(path) else { return (0, 0) };
    let project = standin_inode::project::project(&file).unwrap_or(0);
    let flags = rustix::fs::ioctl_getflags(&file).map_or(0, |flags| flags.bits());
    (project, flags & (SETTABLE | GUARDS))
}

fn unreadable(first_name: String, error: &io::Error) -> Entry {
    let kind = Kind::Unreadable { why: error.to_string() };
    Entry { kind, mode: 0, owner: 0, group: 0, modified: (0, 0), attributes: BTreeMap::new(), project: 0, flags: 0, first_name }
}

/// The ranges that hold data, widened to whole units and joined. Blocks that are reserved and were never written are none, whether a page of them is cached
/// or not.
fn data_ranges(file: &fs::File, len: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        let blanks = never_written(file.as_fd(), start..end)?;
        let starts = std::iter::once(start).chain(blanks.iter().map(|blank| blank.range.end));
        let ends = blanks.iter().map(|blank| blank.range.start).chain([end]);
        for (start, end) in starts.zip(ends).filter(|(start, end)| start < end) {
            let (first, last) = (start / HOLE_UNIT * HOLE_UNIT, end.div_ceil(HOLE_UNIT) * HOLE_UNIT);
            match ranges.last_mut() {
                Some(before) if before.1 >= first => before.1 = last,
                _ => ranges.push((first, last)),
            }
        }
        at = end;
    }
    Ok(ranges)
}

/// A name as text: bytes that are not UTF-8, and control characters, become `\xNN`.
pub(super) fn shown(name: &OsStr) -> String {
    let mut text = String::new();
    for chunk in name.as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || character == '\\' {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn reserved_blocks_are_no_data_whether_cached_or_not() {
        // The temporary folder may be a tmpfs, which has no such extents.
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 20).unwrap();
        file.write_all_at(&[0; 4096], 40960).unwrap();
        assert_eq!(data_ranges(&file, 1 << 20).unwrap(), [(40960, 45056)]);
        file.read_exact_at(&mut vec![0; 1 << 20], 0).unwrap();
        assert_eq!(data_ranges(&file, 1 << 20).unwrap(), [(40960, 45056)]);
    }

    #[test]
    fn terabytes_of_nothing_are_compared_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for (name, at) in [("a", 1_234_567_890_123), ("b", 1_234_567_890_123), ("c", 1_234_567_890_124)] {
            let file = fs::File::create(folder.path().join(name)).unwrap();
            file.write_all_at(b"near", 5000).unwrap();
            file.write_all_at(b"far", at).unwrap();
            file.set_len(1500 << 30).unwrap();
        }
        let manifest = super::super::read_tree(folder.path(), &[]).unwrap();
        let content = |name: &str| match &manifest[name].kind {
            Kind::File { content, .. } => content.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(content("a"), content("b"));
        assert_ne!(content("a"), content("c"));
    }
}
