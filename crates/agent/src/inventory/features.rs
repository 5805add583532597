//! The features that a file system was made with, from its superblock: a replica whose file system has others may be one that the source's kernel
//! cannot mount.
//!
//! The words are those of the tools that make them: `mkfs.ext4 -O` (as dumpe2fs prints them), `mkfs.xfs` (as xfs_info prints them) and
//! `mkfs.btrfs -O` (before version 6.3 of its tools `free-space-tree` goes to `-R`). Offsets: fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h, include/uapi/linux/btrfs_tree.h. A superblock that cannot be read gives
//! no words, never wrong ones.

use standin_model::FileSystem;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Of a mounted device; empty when it cannot be read.
pub fn of_device(device: &str, file_system: FileSystem) -> Vec<String> {
    let start = match file_system {
        FileSystem::Ext4 => 1024,
        FileSystem::Xfs => 0,
        FileSystem::Btrfs => 64 * 1024,
    };
    let mut block = [0; 1024];
    let read = File::open(device).and_then(|file| file.read_exact_at(&mut block, start));
    if read.is_err() { Vec::new() } else { of_block(&block, file_system) }
}

/// From the block that the superblock begins.
pub(crate) fn of_block(block: &[u8; 1024], file_system: FileSystem) -> Vec<String> {
    match file_system {
        FileSystem::Ext4 => ext4(block),
        FileSystem::Xfs => xfs(block),
        FileSystem::Btrfs => btrfs(block),
    }
}

/// Names by bit number.
type Bits = &'static [(u32, &'static str)];

fn names(bits: u64, known: Bits) -> impl Iterator<Item = String> {
    known.iter().filter(move |(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| (*name).to_owned())
}

fn little(block: &[u8; 1024], at: usize) -> u64 {
    block.get(at..at + 4).map_or(0, |bytes| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

fn big(block: &[u8; 1024], at: usize, len: usize) -> u64 {
    block.get(at..at + len).map_or(0, |bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

const EXT4_COMPATIBLE: Bits = &[
    (0, "dir_prealloc"),
    (1, "imagic_inodes"),
    (2, "has_journal"),
    (3, "ext_attr"),
    (4, "resize_inode"),
    (5, "dir_index"),
    (9, "sparse_super2"),
    (10, "fast_commit"),
    (11, "stable_inodes"),
    (12, "orphan_file"),
];
const EXT4_INCOMPATIBLE: Bits = &[
    (0, "compression"),
    (1, "filetype"),
    (2, "needs_recovery"),
    (3, "journal_dev"),
    (4, "meta_bg"),
    (6, "extent"),
    (7, "64bit"),
    (8, "mmp"),
    (9, "flex_bg"),
    (10, "ea_inode"),
    (12, "dirdata"),
    (13, "metadata_csum_seed"),
    (14, "large_dir"),
    (15, "inline_data"),
    (16, "encrypt"),
    (17, "casefold"),
];
const EXT4_READ_COMPATIBLE: Bits = &[
    (0, "sparse_super"),
    (1, "large_file"),
    (3, "huge_file"),
    (4, "uninit_bg"),
    (5, "dir_nlink"),
    (6, "extra_isize"),
    (8, "quota"),
    (9, "bigalloc"),
    (10, "metadata_csum"),
    (12, "read-only"),
    (13, "project"),
    (14, "shared_blocks"),
    (15, "verity"),
    (16, "orphan_present"),
];

/// In dumpe2fs's order. A bit without a name is written as it writes it: `FEATURE_I5`.
fn ext4(block: &[u8; 1024]) -> Vec<String> {
    if block[0x38..0x3a] != [0x53, 0xef] {
        return Vec::new();
    }
    let words = [(0x5c, 'C', EXT4_COMPATIBLE), (0x60, 'I', EXT4_INCOMPATIBLE), (0x64, 'R', EXT4_READ_COMPATIBLE)];
    let mut found = Vec::new();
    for (at, letter, known) in words {
        let bits = little(block, at);
        found.extend(names(bits, known));
        let unknown = (0..32).filter(|bit| bits >> bit & 1 == 1 && !known.iter().any(|(k, _)| k == bit));
        found.extend(unknown.map(|bit| format!("FEATURE_{letter}{bit}")));
    }
    found
}

fn xfs(block: &[u8; 1024]) -> Vec<String> {
    if &block[..4] != b"XFSB" {
        return Vec::new();
    }
    // Version 5 is what mkfs calls crc; the words of features exist only there.
    if big(block, 100, 2) & 0xf != 5 {
        return Vec::new();
    }
    let mut found = vec!["crc".to_owned()];
    found.extend(names(big(block, 212, 4), &[(0, "finobt"), (1, "rmapbt"), (2, "reflink"), (3, "inobtcount")]));
    let incompatible = &[(0, "ftype"), (1, "sparse"), (3, "bigtime"), (5, "nrext64"), (6, "exchange"), (7, "parent"), (8, "metadir")];
    found.extend(names(big(block, 216, 4), incompatible));
    found
}

fn btrfs(block: &[u8; 1024]) -> Vec<String> {
    if &block[0x40..0x48] != b"_BHRfS_M" {
        return Vec::new();
    }
    let incompatible = &[
        (2, "mixed-bg"),
        (6, "extref"),
        (7, "raid56"),
        (8, "skinny-metadata"),
        (9, "no-holes"),
        (11, "raid1c34"),
        (12, "zoned"),
        (13, "extent-tree-v2"),
        (14, "raid-stripe-tree"),
        (16, "squota"),
    ];
    let mut found: Vec<String> = names(little(block, 0xbc), incompatible).collect();
    found.extend(names(little(block, 0xb4), &[(0, "free-space-tree"), (2, "verity"), (3, "block-group-tree")]));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What the real tool wrote is read back; skipped, with the reason, where the tool is not installed.
    fn made(tool: &str, arguments: &[&str], file_system: FileSystem) -> Option<Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        match Command::new(tool).args(arguments).arg(&image).output() {
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                println!("skipped: {tool}: {error}");
                return None;
            }
        }
        Some(of_device(image.to_str().unwrap(), file_system))
    }

    #[test]
    fn ext4_features_are_those_of_dumpe2fs() {
        let words = ["-q", "-F", "-O", "^metadata_csum,^orphan_file,project"];
        let Some(found) = made("mkfs.ext4", &words, FileSystem::Ext4) else { return };
        assert!(["has_journal", "extent", "64bit", "project"].iter().all(|name| found.iter().any(|f| f == name)), "{found:?}");
        assert!(!found.iter().any(|f| f == "metadata_csum" || f == "orphan_file"), "{found:?}");
    }

    #[test]
    fn xfs_features_are_those_of_mkfs() {
        let words = ["-q", "-f", "-m", "reflink=0,bigtime=0,finobt=1", "-i", "sparse=1"];
        let Some(found) = made("mkfs.xfs", &words, FileSystem::Xfs) else { return };
        assert!(["crc", "finobt", "sparse", "ftype"].iter().all(|name| found.iter().any(|f| f == name)), "{found:?}");
        assert!(!found.iter().any(|f| f == "reflink" || f == "bigtime"), "{found:?}");
    }

    #[test]
    fn btrfs_features_are_those_of_mkfs() {
        let words = ["-q", "-f", "-O", "^no-holes"];
        let Some(found) = made("mkfs.btrfs", &words, FileSystem::Btrfs) else { return };
        assert!(["free-space-tree", "extref", "skinny-metadata"].iter().all(|name| found.iter().any(|f| f == name)), "{found:?}");
        assert!(!found.iter().any(|f| f == "no-holes"), "{found:?}");
    }

    #[test]
    fn what_is_no_superblock_has_no_features() {
        let block = [0xff; 1024];
        assert!(ext4(&block).is_empty() && xfs(&block).is_empty() && btrfs(&block).is_empty());
    }
}
