//! Compares two directory trees as a person would check a copy: names, kinds, owners, modes, times, content, extended attributes, and
//! which names are hard links of each other.
//!
//! It opens trees by path and never crosses into another file system. It reads every byte of both sides; a node that changes meanwhile shows as a
//! difference. Content is compared by length and a 64-bit hash, which is a check of a replica and no proof.

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What one name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Kind and mode, as `st_mode` has them.
    pub mode: u32,
    pub owner: u32,
    pub group: u32,
    /// Nanoseconds since 1970.
    pub modified: i64,
    /// 0 for directories, whose size is the file system's own business.
    pub size: u64,
    pub device: u64,
    /// Hash of the content or of the symlink's target; 0 for others.
    pub content: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// First of all names that lead to the same inode.
    pub first_name: Vec<u8>,
}

/// Facts by path relative to the root; the root itself is the empty path.
pub type Tree = BTreeMap<Vec<u8>, Facts>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub path: Vec<u8>,
    pub what: &'static str,
    pub left: String,
    pub right: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}: {} {} ≠ {}", self.path.escape_ascii(), self.what, self.left, self.right)
    }
}

/// Differences between two trees on disk, without the names in `skip` at their roots.
pub fn diff(left: &Path, right: &Path, skip: &[&[u8]]) -> io::Result<Vec<Difference>> {
    Ok(compare(&read_tree(left, skip)?, &read_tree(right, skip)?))
}

pub fn compare(left: &Tree, right: &Tree) -> Vec<Difference> {
    let mut found = Vec::new();
    for (path, facts) in left {
        match right.get(path) {
            Some(other) => compare_facts(path, facts, other, &mut found),
            None => found.push(missing(path, "here", "missing")),
        }
    }
    found.extend(right.keys().filter(|path| !left.contains_key(*path)).map(|path| missing(path, "missing", "here")));
    found
}

fn missing(path: &[u8], left: &str, right: &str) -> Difference {
    Difference { path: path.to_vec(), what: "name", left: left.to_owned(), right: right.to_owned() }
}

fn compare_facts(path: &[u8], left: &Facts, right: &Facts, found: &mut Vec<Difference>) {
    let mut check = |what, left: String, right: String| {
        if left != right {
            found.push(Difference { path: path.to_vec(), what, left, right });
        }
    };
    check("mode", format!("{:o}", left.mode), format!("{:o}", right.mode));
    check("owner", format!("{}:{}", left.owner, left.group), format!("{}:{}", right.owner, right.group));
    check("modified", left.modified.to_string(), right.modified.to_string());
    check("size", left.size.to_string(), right.size.to_string());
    check("device", format!("{:x}", left.device), format!("{:x}", right.device));
    check("content", format!("{:016x}", left.content), format!("{:016x}", right.content));
    check("xattrs", xattr_text(&left.xattrs), xattr_text(&right.xattrs));
    check("links", left.first_name.escape_ascii().to_string(), right.first_name.escape_ascii().to_string());
}

fn xattr_text(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    xattrs.iter().map(|(name, value)| format!("{}={} ", name.escape_ascii(), value.escape_ascii())).collect()
}

pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Reads a whole tree, except for the names in `skip` at its root.
pub fn read_tree(root: &Path, skip: &[&[u8]]) -> io::Result<Tree> {
    let mut reader = Reader { tree: Tree::new(), first_names: HashMap::new(), device: None };
    reader.node(root, Vec::new())?;
    reader.below(root, &[], skip)?;
    Ok(reader.tree)
}

struct Reader {
    tree: Tree,
    first_names: HashMap<u64, Vec<u8>>,
    device: Option<u64>,
}

impl Reader {
    fn below(&mut self, directory: &Path, prefix: &[u8], skip: &[&[u8]]) -> io::Result<()> {
        let mut names = Vec::new();
        let fd = rustix::fs::openat(CWD, directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for entry in Dir::new(fd)? {
            names.push(entry?.file_name().to_bytes().to_vec());
        }
        names.retain(|name| name != b"." && name != b".." && !skip.contains(&name.as_slice()));
        names.sort();
        for name in names {
            let mut path = prefix.to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(&name);
            let full = directory.join(OsStr::from_bytes(&name));
            if self.node(&full, path.clone())? {
                self.below(&full, &path, &[])?;
            }
        }
        Ok(())
    }

    /// Takes in one node; returns whether it is a directory to descend into.
    fn node(&mut self, full: &Path, path: Vec<u8>) -> io::Result<bool> {
        let stat = rustix::fs::statat(CWD, full, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let content = match kind {
            FileType::RegularFile => hash_file(full)?,
            FileType::Symlink => hash(std::fs::read_link(full)?.as_os_str().as_bytes()),
            _ => 0,
        };
        let is_directory = kind == FileType::Directory;
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let first_name = self.first_names.entry(stat.st_ino).or_insert_with(|| path.clone()).clone();
        let facts = Facts {
            mode: stat.st_mode,
            owner: stat.st_uid,
            group: stat.st_gid,
            modified: (stat.st_mtime).saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec as i64),
            size: if is_directory { 0 } else { stat.st_size as u64 },
            device: if is_device { stat.st_rdev } else { 0 },
            content,
            xattrs: read_xattrs(full)?,
            first_name,
        };
        self.tree.insert(path, facts);
        Ok(is_directory && *self.device.get_or_insert(stat.st_dev) == stat.st_dev)
    }
}

fn hash_file(path: &Path) -> io::Result<u64> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = DefaultHasher::new();
    let mut piece = vec![0; 128 * 1024];
    loop {
        match io::Read::read(&mut file, &mut piece)? {
            0 => return Ok(hasher.finish()),
            len => hasher.write(&piece[..len]),
        }
    }
}

fn read_xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX of <linux/limits.h>.
    let mut buffer = vec![0u8; 65_536];
    let len = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let names: Vec<Vec<u8>> = buffer[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    let mut xattrs = BTreeMap::new();
    for name in names {
        let len = rustix::fs::lgetxattr(path, name.as_slice(), &mut buffer[..])?;
        xattrs.insert(name, buffer[..len].to_vec());
    }
    Ok(xattrs)
}
