//! Reads initrds, finds missing drivers, and builds the supplement that carries them.
//!
//! An initrd is a sequence of cpio archives, the last of them usually compressed; the kernel unpacks all into one tree, later files
//! replacing earlier ones. So drivers are added by *appending* an uncompressed archive, without running anything of the source. The
//! supplement's first entry names its own place, by which a later run finds and replaces it.

use super::cpio::{self, Writer};
use super::{BootError, GuestRoot};
use crate::disk::tool;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Largest initrd file and largest unpacked initrd that are read.
pub const INITRD_BYTES_MAX: u64 = 512 << 20;
const UNPACKED_BYTES_MAX: usize = 1 << 30;
const MODULE_BYTES_MAX: u64 = 64 << 20;
/// First entry of our supplement.
const MARKER: &str = "standin-supplement";

/// An unpacked initrd.
#[derive(Debug, Default)]
pub struct Initrd {
    /// Path → mode and content; a later archive's entry replaces an earlier one's.
    pub files: BTreeMap<String, (u32, Vec<u8>)>,
    /// Bytes of the file before our supplement.
    pub original_bytes: usize,
}

/// Length of the initrd without a supplement that an earlier run appended.
pub fn original_length(bytes: &[u8]) -> usize {
    let name = [MARKER.as_bytes(), b"\0"].concat();
    let mut at = bytes.len().saturating_sub(name.len());
    // The name follows its 110-byte header; supplements start at multiples of 4.
    while at >= 110 {
        if bytes.get(at..at + name.len()) == Some(name.as_slice()) && (at - 110) % 4 == 0 && cpio::begins(bytes, at - 110) {
            // Only this entry is read: a file full of them must not be read once for each. Twenty digits hold any length.
            let text = cpio::entry(bytes, at - 110, at - 110).and_then(|(entry, _)| {
                let digits = bytes.get(entry.data).filter(|digits| digits.len() <= 24)?;
                std::str::from_utf8(digits).ok()?.trim().parse::<usize>().ok()
            });
            if let Some(length) = text.filter(|length| *length <= at - 110) {
                return length;
            }
        }
        at -= 1;
    }
    bytes.len()
}

/// Unpacks an initrd.
pub fn unpack(path: &str, bytes: &[u8]) -> Result<Initrd, BootError> {
    let bad = |reason: &str| BootError::BadInitrd { path: path.into(), reason: reason.into() };
    let original = bytes.get(..original_length(bytes)).unwrap_or(bytes);
    let mut initrd = Initrd { original_bytes: original.len(), ..Initrd::default() };
    let at = take_archives(original, 0, &mut initrd).ok_or_else(|| bad("a damaged archive"))?;
    if let Some(rest) = original.get(at..).filter(|rest| !rest.is_empty()) {
        let program = decompressor(rest).ok_or_else(|| bad("an unknown compression"))?;
        let mut command = Command::new(program[0]);
        command.args(&program[1..]);
        let plain = tool::run_with_input(&mut command, program[0], rest.to_vec(), UNPACKED_BYTES_MAX)?;
        take_archives(&plain, 0, &mut initrd).ok_or_else(|| bad("a damaged compressed archive"))?;
    }
    if initrd.files.is_empty() { Err(bad("nothing in it")) } else { Ok(initrd) }
}

/// Takes archives and the zeroes between them; gives the position of the first thing that is neither.
pub(super) fn take_archives(bytes: &[u8], mut at: usize, initrd: &mut Initrd) -> Option<usize> {
    loop {
        while bytes.get(at) == Some(&0) {
            at += 1;
        }
        if !cpio::begins(bytes, at) {
            return Some(at);
        }
        let (entries, end) = cpio::read(bytes, at)?;
        for entry in entries {
            let data = bytes.get(entry.data.clone())?.to_vec();
            initrd.files.insert(entry.name.trim_start_matches("./").to_owned(), (entry.mode, data));
        }
        at = end;
    }
}

fn decompressor(bytes: &[u8]) -> Option<&'static [&'static str]> {
    // Magic numbers as in the kernel's lib/decompress.c.
    let known: [(&[u8], &'static [&'static str]); 6] = [
        (&[0x28, 0xb5, 0x2f, 0xfd], &["zstd", "-dcq"]),
        (&[0x1f, 0x8b], &["gzip", "-dcq"]),
        (&[0xfd, b'7', b'z', b'X', b'Z'], &["xz", "-dcq"]),
        (&[0x5d, 0x00, 0x00], &["xz", "-dcq", "--format=lzma"]),
        (&[0x02, 0x21, 0x4c, 0x18], &["lz4", "-dcq"]),
        (b"BZh", &["bzip2", "-dcq"]),
    ];
    known.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, program)| *program)
}

/// The module's name of a path like `…/virtio_blk.ko.xz`; `-` and `_` are the same to the kernel.
pub fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (stem, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

impl Initrd {
    /// Names of all modules in it.
    pub fn modules(&self) -> BTreeSet<String> {
        self.files.keys().filter(|path| path.contains("lib/modules/")).filter_map(|path| module_name(path)).collect()
    }

    /// Where it keeps the modules of a kernel, for example `usr/lib/modules/6.1.0`.
    fn module_directory(&self, kernel: &str) -> String {
        let tail = format!("lib/modules/{kernel}");
        let found = self.files.keys().find_map(|path| path.find(&format!("{tail}/")).map(|at| path[..at + tail.len()].to_owned()));
        let merged = matches!(self.files.get("lib"), Some((mode, _)) if mode & 0o170000 == 0o120000);
        found.unwrap_or(if merged { format!("usr/{tail}") } else { tail })
    }
}

/// Builds the supplement with `missing` (paths below the kernel's module directory). `scratch` is an empty directory of ours.
pub fn supplement(guest: &GuestRoot, initrd: &Initrd, kernel: &str, missing: &[String], scratch: &Path) -> Result<Vec<u8>, BootError> {
    let home = initrd.module_directory(kernel);
    let tree = scratch.join("lib/modules").join(kernel);
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (path, (mode, data)) in &initrd.files {
        let Some(inner) = path.strip_prefix(&format!("{home}/")) else { continue };
        let plain = mode & 0o170000 == 0o100000 && inner.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if plain && (module_name(inner).is_some() || inner.starts_with("modules.")) {
            host_write(&tree.join(inner), data)?;
        }
    }
    for inner in missing {
        let data = guest.read(&format!("/lib/modules/{kernel}/{inner}"), MODULE_BYTES_MAX)?;
        host_write(&tree.join(inner), &data)?;
        files.insert(format!("{home}/{inner}"), data);
    }
    for name in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        if let Ok(data) = guest.read(&format!("/lib/modules/{kernel}/{name}"), MODULE_BYTES_MAX) {
            host_write(&tree.join(name), &data)?;
        }
    }
    // depmod only reads the modules' tables; nothing of them is run.
    tool::run(Command::new("depmod").arg("-b").arg(scratch).arg(kernel), "kmod")?;
    for name in ["dep", "dep.bin", "alias", "alias.bin", "symbols", "symbols.bin", "softdep", "builtin.bin", "builtin.alias.bin"] {
        if let Ok(data) = std::fs::read(tree.join(format!("modules.{name}"))) {
            files.insert(format!("{home}/modules.{name}"), data);
        }
    }
    let mut list = initrd.files.get("conf/modules").map(|(_, data)| data.clone()).unwrap_or_default();
    for inner in missing {
        list.extend(module_name(inner).map(|name| format!("{name}\n")).unwrap_or_default().into_bytes());
    }
    if initrd.files.contains_key("conf") {
        files.insert("conf/modules".into(), list);
    }
    Ok(archive(initrd, &files))
}

pub(super) fn archive(initrd: &Initrd, files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.file(MARKER, format!("{}\n", initrd.original_bytes).as_bytes());
    let mut made: BTreeSet<String> = BTreeSet::new();
    for (path, data) in files {
        // A directory entry would replace a link of the same name, so only those that lack are made.
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            if !initrd.files.contains_key(parent) && made.insert(parent.into()) {
                writer.directory(parent);
            }
        }
        writer.file(path, data);
    }
    // The kernel looks for a further archive only at a multiple of four.
    let padding = initrd.original_bytes.next_multiple_of(4) - initrd.original_bytes;
    let mut bytes = vec![0; padding];
    bytes.extend(writer.finish());
    bytes
}

fn host_write(path: &Path, data: &[u8]) -> Result<(), BootError> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).map_err(BootError::host("making", parent))?;
    std::fs::write(path, data).map_err(BootError::host("writing", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supplement_is_found_again() {
        let mut plain = Writer::default();
        plain.file("usr/lib/modules/6.1/kernel/a.ko", b"A");
        let mut bytes = plain.finish();
        bytes.extend([0, 0, 0, 0]);
        let initrd = unpack("x", &bytes).unwrap();
        assert_eq!(initrd.original_bytes, bytes.len());
        assert!(initrd.modules().contains("a"));
        let files = BTreeMap::from([("usr/lib/modules/6.1/kernel/b-c.ko.xz".to_owned(), b"B".to_vec())]);
        let mut whole = bytes.clone();
        whole.extend(archive(&initrd, &files));
        assert_eq!(original_length(&whole), bytes.len());
        let mut all = Initrd::default();
        take_archives(&whole, 0, &mut all).unwrap();
        assert!(all.modules().contains("b_c"));
    }

    #[test]
    fn hostile_bytes_are_refused() {
        for bad in [&b""[..], b"\0\0\0\0", b"070701", b"junk", b"standin-supplement\0"] {
            assert!(unpack("x", bad).is_err());
        }
    }
}
