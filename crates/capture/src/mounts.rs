//! /proc/self/mountinfo: what is mounted where, from which device, and which part of it. The one reader of that file.
//!
//! A line that cannot be read is left out. Names that are not UTF-8 are shown with replacement characters; no job can name such a mount
//! point, so it is never opened by what is read here.

use std::{fs, io, path::Path};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number of the file system (`major << 20 | minor`). On btrfs stat(2) tells another one.
    pub device: u32,
    /// Directory of the file system that is mounted; `/` unless a bind mount or subvolume.
    pub root: String,
    pub mount_point: String,
    pub file_system: String,
    pub source: String,
    /// Of the file system, not of this mount: `rw,subvolid=256,subvol=/@`.
    pub options: String,
}

impl Mount {
    /// Value of an option `name=value`; the kernel writes commas in values as octal digits.
    pub fn option(&self, name: &str) -> Option<String> {
        self.options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('=')).map(unescape)
    }
}

/// All mounts of this process's namespace, in mount order: the last one on a point is the visible one.
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// What is seen at a mount point: the last mount on it.
pub fn visible<'a>(mounts: &'a [Mount], mount_point: &Path) -> Option<&'a Mount> {
    mounts.iter().rfind(|mount| Path::new(&mount.mount_point) == mount_point)
}

pub(crate) fn parse(table: &[u8]) -> Vec<Mount> {
    String::from_utf8_lossy(table).split('\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda1 rw`
fn parse_line(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(2);
    let (major, minor) = head.next()?.split_once(':')?;
    let (major, minor) = (major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?);
    let (root, mount_point) = (unescape(head.next()?), unescape(head.next()?));
    let mut tail = tail.split(' ');
    Some(Mount {
        device: (major & 0xfff) << 20 | minor & 0xf_ffff,
        root,
        mount_point,
        file_system: tail.next()?.to_owned(),
        source: unescape(tail.next()?),
        options: tail.next().unwrap_or_default().to_owned(),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits in its lists of mounts and swap areas.
pub fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
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
        let line = r"36 35 254:1 /@home /srv/a\040b rw,noatime shared:1 - btrfs /dev/vda1 rw,subvolid=256,subvol=/@\054home";
        let mount = parse_line(line).unwrap();
        assert_eq!((mount.mount_point.as_str(), mount.root.as_str(), mount.source.as_str()), ("/srv/a b", "/@home", "/dev/vda1"));
        assert_eq!((mount.device, mount.option("subvol").as_deref(), mount.option("sub")), (254 << 20 | 1, Some("/@,home"), None));
        assert_eq!(parse_line("nonsense"), None);
    }

    #[test]
    fn escapes_are_three_octal_digits() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\04"), r"/a\04");
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(read().unwrap().iter().any(|mount| mount.mount_point == "/"));
    }
}
