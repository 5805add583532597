//! A tree as a list: everything of each file that a replica has to have.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

/// Holes are compared in units of this: a file system may store less than it as data, but never more as a hole.
pub const HOLE_UNIT: u64 = 4096;

/// What a path is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Kind {
    File { len: u64, content: String, data: Vec<(u64, u64)> },
    Directory,
    Symlink { target: String },
    Fifo,
    Socket,
    CharDevice { device: u64 },
    BlockDevice { device: u64 },
}

/// Everything that is compared about one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub kind: Kind,
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
    pub modified: (i64, i64),
    /// Name to value, the value as hexadecimal.
    pub attributes: BTreeMap<String, String>,
    /// The first path, in order of names, of the same file; its own for a file with one name.
    pub first_name: String,
}

/// Entries by path relative to the volume's root; names that are not UTF-8 are shown with escapes.
pub type Manifest = BTreeMap<String, Entry>;

/// Reads a mounted volume. Other volumes mounted below it are not entered.
pub fn read_tree(root: &Path) -> Result<Manifest> {
    let mut walk = Walk { device: fs::symlink_metadata(root)?.dev(), names: HashMap::new(), manifest: Manifest::new() };
    walk.visit(root, String::new())?;
    Ok(walk.manifest)
}

/// The state of a walk in the order of names.
struct Walk {
    device: u64,
    /// The first name of each inode.
    names: HashMap<u64, String>,
    manifest: Manifest,
}

impl Walk {
    /// Reads one path, and what is below it. `name` is its path from the root, as shown.
    fn visit(&mut self, path: &Path, name: String) -> Result<()> {
        let meta = fs::symlink_metadata(path).with_context(|| format!("reading {name}"))?;
        let first_name = if meta.is_dir() { name.clone() } else { self.names.entry(meta.ino()).or_insert_with(|| name.clone()).clone() };
        let entry = read_entry(path, &meta, first_name).with_context(|| format!("reading {name}"))?;
        self.manifest.insert(name.clone(), entry);
        if !meta.is_dir() || meta.dev() != self.device {
            return Ok(());
        }
        // Children are named through the open folder, because a tree may be deeper than the longest path that the kernel takes.
        let folder = fs::File::open(path).with_context(|| format!("opening {name}"))?;
        let near = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let mut children = fs::read_dir(&near)?.map(|child| child.map(|child| child.file_name())).collect::<Result<Vec<_>, _>>()?;
        children.sort();
        for child in children {
            let below = if name.is_empty() { shown(&child) } else { format!("{name}/{}", shown(&child)) };
            self.visit(&near.join(&child), below)?;
        }
        Ok(())
    }
}

fn read_entry(path: &Path, meta: &fs::Metadata, first_name: String) -> Result<Entry> {
    let of = meta.file_type();
    let kind = if of.is_file() {
        read_file(path, meta.len())?
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
    };
    Ok(Entry {
        kind,
        mode: meta.mode() & 0o7777,
        owner: meta.uid(),
        group: meta.gid(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        attributes: attributes(path)?,
        first_name,
    })
}

fn read_file(path: &Path, len: u64) -> Result<Kind> {
    let mut file = fs::File::open(path)?;
    let data = data_ranges(&file, len)?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0u8; 256 << 10];
    // Reading starts at 0 again: looking for holes has moved the file's position.
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    Ok(Kind::File { len, content: format!("{:032x}", hash.digest128()), data })
}

/// The ranges that hold data, widened to whole units and joined.
fn data_ranges(file: &fs::File, len: u64) -> Result<Vec<(u64, u64)>> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        let (first, last) = (start / HOLE_UNIT * HOLE_UNIT, end.div_ceil(HOLE_UNIT) * HOLE_UNIT);
        match ranges.last_mut() {
            Some(before) if before.1 >= first => before.1 = last,
            _ => ranges.push((first, last)),
        }
        at = end;
    }
    Ok(ranges)
}

fn attributes(path: &Path) -> Result<BTreeMap<String, String>> {
    // 64 KiB is the kernel's bound for a list and for a value (XATTR_LIST_MAX, XATTR_SIZE_MAX).
    let mut list = vec![0u8; 64 << 10];
    let count = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(count) => count,
        Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in list[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0u8; 64 << 10];
        let count = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        found.insert(shown(name), value[..count].iter().map(|byte| format!("{byte:02x}")).collect());
    }
    Ok(found)
}

/// A name as text: bytes that are not UTF-8, and control characters, become `\xNN`.
fn shown(name: &OsStr) -> String {
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
