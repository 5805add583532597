//! Extended attributes of any node, ACLs and capabilities among them.

use super::descriptor_path;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// The kernel's own bound on a list and on a value.
const XATTR_BYTES_MAX: usize = 64 * 1024;
/// All of one node's together. ext4 holds 64 KiB, btrfs 16 KiB; only xfs takes more, and nothing known uses it. A sealer can split this much
/// into items of one segment.
const SET_BYTES_MAX: usize = 3 * 1024 * 1024;

/// All of them, sorted by name. A file system without xattrs has none; E2BIG beyond the bound, which keeps the node visibly in trouble.
pub fn all(fd: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Errno> {
    let path = descriptor_path(fd);
    let mut names = vec![0; 4096];
    let len = match rustix::fs::listxattr(path.as_str(), &mut names[..]) {
        Ok(len) => len,
        Err(Errno::RANGE) => {
            names.resize(XATTR_BYTES_MAX, 0);
            rustix::fs::listxattr(path.as_str(), &mut names[..])?
        }
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno),
    };
    names.truncate(len);
    let (mut found, mut bytes) = (Vec::new(), 0);
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if let Some(value) = value(&path, name)? {
            bytes += name.len() + value.len();
            if bytes > SET_BYTES_MAX {
                return Err(Errno::TOOBIG);
            }
            found.push((name.to_vec(), value));
        }
    }
    found.sort();
    Ok(found)
}

/// `None` when it went away since the list was made.
fn value(path: &str, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0; 1024];
    let len = match rustix::fs::getxattr(path, name, &mut value[..]) {
        Err(Errno::RANGE) => {
            value.resize(XATTR_BYTES_MAX, 0);
            rustix::fs::getxattr(path, name, &mut value[..])
        }
        other => other,
    };
    match len {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(errno) => Err(errno),
    }
}
