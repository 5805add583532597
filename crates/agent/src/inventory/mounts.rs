//! /proc/self/mountinfo: what is mounted where, from which device, and which part of it.

use anyhow::{Context, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Directory of the file system that is mounted; `/` unless a bind mount or subvolume.
    pub root: String,
    pub mount_point: String,
    pub file_system: String,
    pub source: String,
}

/// All mounts of this process's namespace, in mount order.
pub fn mounts() -> Result<Vec<Mount>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(text.lines().filter_map(parse).collect())
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda1 rw`
fn parse(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(3);
    let (root, mount_point) = (octal(head.next()?), octal(head.next()?));
    let mut tail = tail.split(' ');
    Some(Mount { root, mount_point, file_system: tail.next()?.to_owned(), source: octal(tail.next()?) })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn octal(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 4).filter(|_| *byte == b'\\');
        match code.and_then(|c| std::str::from_utf8(c).ok()).and_then(|c| u8::from_str_radix(c, 8).ok()) {
            Some(code) => {
                out.push(code);
                at += 4;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let mount = parse(r"36 35 254:1 /@home /srv/a\040b rw,noatime shared:1 - btrfs /dev/vda1 rw,subvolid=5").unwrap();
        assert_eq!((mount.mount_point.as_str(), mount.root.as_str(), mount.source.as_str()), ("/srv/a b", "/@home", "/dev/vda1"));
        assert_eq!(parse("nonsense"), None);
    }
}
