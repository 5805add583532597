//! What is mirrored in a benchmark: trees that the bench makes itself, the same ones from the same seed.
//!
//! Sizes, names and kinds follow a Debian server's, content follows what zstd makes of it: an operating system's files keep 0.36 of their
//! bytes at level 1, a database's 0.05, and random bytes all of them. Times are fixed, so that two sets of one seed are equal.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::random::Random;

/// Times of the files begin here: 2023-11-14.
const BEGINNING: u64 = 1_700_000_000;
const PAGE: usize = 8192;

/// A kind of tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 35,000 entries, 1 GB: programs, libraries, documentation, archives, links.
    System,
    /// 1.1 GB: a database cluster of 8 KB pages.
    Database,
    /// 0.5 GB that no compression makes smaller.
    Random,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::System => "os",
            Kind::Database => "db",
            Kind::Random => "random",
        }
    }
}

/// A tree that was made.
#[derive(Clone, Debug)]
pub struct Set {
    pub root: PathBuf,
    pub entries: u64,
    /// Content of files, each hard link counted once.
    pub bytes: u64,
}

impl Set {
    /// Makes the tree below `root`, which is an empty file system. `share` of 1.0 is the whole set.
    pub fn make(kind: Kind, root: &Path, seed: u64, share: f64) -> Result<Set> {
        let mut maker = Maker {
            random: Random(seed ^ 0x5374_616e_6469_6e00),
            set: Set { root: root.to_owned(), entries: 0, bytes: 0 },
            words: Vec::new(),
        };
        maker.words = (0..4096).map(|_| maker.random.word()).collect();
        // Where the source's process mounts /proc and keeps its state; to everybody else they are empty folders.
        for folder in ["proc", "run", "run/standin-agent"] {
            maker.folder(Path::new(folder))?;
        }
        match kind {
            Kind::System => maker.system(share)?,
            Kind::Database => maker.database(share)?,
            Kind::Random => maker.random_files(share)?,
        }
        Ok(maker.set)
    }
}

impl Random {
    /// Standard normal, near enough: the sum of twelve uniforms.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    fn word(&mut self) -> Vec<u8> {
        let len = 2 + self.below(9);
        (0..len).map(|_| b"etaoinshrdlucmfwypvbgkjqxz"[(self.unit() * self.unit() * 26.0) as usize]).collect()
    }
}

struct Maker {
    random: Random,
    set: Set,
    words: Vec<Vec<u8>>,
}

impl Maker {
    fn folder(&mut self, path: &Path) -> Result<()> {
        fs::create_dir(self.set.root.join(path)).with_context(|| format!("making {}", path.display()))?;
        self.set.entries += 1;
        Ok(())
    }

    fn file(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        let whole = self.set.root.join(path);
        let mut file = File::create(&whole).with_context(|| format!("making {}", path.display()))?;
        file.write_all(content)?;
        let mode = [0o644, 0o644, 0o644, 0o755, 0o600][self.random.below(5) as usize];
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        let modified =
            SystemTime::UNIX_EPOCH + Duration::new(BEGINNING + self.random.below(30_000_000), self.random.below(1_000_000_000) as u32);
        file.set_modified(modified)?;
        self.set.entries += 1;
        self.set.bytes += content.len() as u64;
        Ok(())
    }

    /// Folders to a depth of five, files of log-normal sizes (median 5 KB, mean 36 KB, at most 24 MB), symlinks and hard links.
    fn system(&mut self, share: f64) -> Result<()> {
        let count = |whole: f64| (whole * share) as u64;
        let mut folders = vec![PathBuf::from("usr")];
        self.folder(Path::new("usr"))?;
        for number in 0..count(3_500.0) {
            let above = &folders[(self.random.unit().powi(2) * folders.len() as f64) as usize];
            let above = if above.components().count() >= 5 { Path::new("usr") } else { above };
            let path = above.join(format!("{}{number}", self.text_word()));
            self.folder(&path)?;
            folders.push(path);
        }
        let mut files: Vec<PathBuf> = Vec::new();
        let mut content = Vec::new();
        for number in 0..count(28_000.0) {
            let size = (8.56 + 2.0 * self.random.normal()).exp() as usize;
            let kind = self.random.below(100);
            self.content(kind, size.min(24 << 20), &mut content);
            let suffix = ["so", "py", "h", "gz", "mo", "conf"][self.random.below(6) as usize];
            let path = self.anywhere(&folders).join(format!("{}-{number}.{suffix}", self.text_word()));
            self.file(&path, &content)?;
            files.push(path);
        }
        for number in 0..count(3_000.0) {
            let target = format!("../{}", self.anywhere(&files).file_name().unwrap_or_default().to_string_lossy());
            let path = self.anywhere(&folders).join(format!("link{number}"));
            symlink(target, self.set.root.join(path))?;
            self.set.entries += 1;
        }
        for number in 0..count(500.0) {
            let (from, folder) = (self.anywhere(&files).to_owned(), self.anywhere(&folders).to_owned());
            fs::hard_link(self.set.root.join(from), self.set.root.join(folder.join(format!("hard{number}"))))?;
            self.set.entries += 1;
        }
        Ok(())
    }

    fn anywhere<'a>(&mut self, paths: &'a [PathBuf]) -> &'a Path {
        &paths[self.random.below(paths.len() as u64) as usize]
    }

    fn text_word(&mut self) -> String {
        let at = self.random.below(self.words.len() as u64) as usize;
        String::from_utf8_lossy(&self.words[at]).into_owned()
    }

    /// A third is text, half is like machine code, the rest is compressed already.
    fn content(&mut self, kind: u64, size: usize, content: &mut Vec<u8>) {
        content.clear();
        match kind {
            0..=49 => self.text(size, content),
            50..=92 => self.code(size, content),
            _ => {
                content.resize(size, 0);
                self.random.fill(content);
            }
        }
    }

    /// Words by a steep rank law, with a line's end now and then, and a phrase from before every few words.
    fn text(&mut self, size: usize, content: &mut Vec<u8>) {
        while content.len() < size {
            if content.len() > 4096 && self.random.below(6) == 0 {
                let len = 12 + self.random.below(40) as usize;
                let from = content.len() - 1 - self.random.below(4000) as usize;
                let from = from.saturating_sub(len);
                content.extend_from_within(from..from + len);
            }
            let rank = (self.random.unit().powi(3) * self.words.len() as f64) as usize;
            content.extend_from_slice(&self.words[rank]);
            content.push(if self.random.below(12) == 0 { b'\n' } else { b' ' });
        }
        content.truncate(size);
    }

    /// Opcodes from a small set with operands that are mostly small, and sequences that were there before.
    fn code(&mut self, size: usize, content: &mut Vec<u8>) {
        while content.len() < size {
            if content.len() > 4096 && self.random.below(4) == 0 {
                let len = 8 + self.random.below(48) as usize;
                let from = content.len() - len - self.random.below(4000) as usize;
                content.extend_from_within(from..from + len);
            }
            let value = self.random.number();
            let opcode = (value & 0x3f) as u8 & (value >> 8) as u8 | 0x40;
            content.push(opcode);
            match value >> 16 & 3 {
                0 => content.extend_from_slice(&[(value >> 24) as u8, 0, 0]),
                1 => content.extend_from_slice(&[(value >> 24) as u8, (value >> 32) as u8 & 0xf, 0, 0]),
                2 => content.push((value >> 24) as u8),
                _ => content.extend_from_slice(&[0x48, 0x8b, (value >> 24) as u8 & 0x7f]),
            }
        }
        content.truncate(size);
    }

    /// A table and its index, a few hundred small relations, and a log of 16 MB files.
    fn database(&mut self, share: f64) -> Result<()> {
        for folder in ["base", "base/5", "pg_wal", "global"] {
            self.folder(Path::new(folder))?;
        }
        let pages = |bytes: f64| (bytes * share / PAGE as f64) as u64;
        self.relation("base/5/16384", pages(700e6), 97)?;
        self.relation("base/5/16391", pages(170e6), 16)?;
        for number in 0..300 {
            let count = 1 + self.random.below(7);
            self.relation(&format!("base/5/{}", 2600 + number), count, 60)?;
        }
        let segments = ((16.0 * share) as u64).max(1);
        for number in 0..segments {
            self.relation(&format!("pg_wal/0000000100000000000000{number:02X}"), (16 << 20) / PAGE as u64, 120)?;
        }
        Ok(())
    }

    /// Pages with a header, line pointers, and rows of `row` bytes: ascending keys, small numbers, padding.
    fn relation(&mut self, path: &str, pages: u64, row: usize) -> Result<()> {
        let mut content = vec![0u8; PAGE * pages as usize];
        let mut key: u32 = 1;
        for (number, page) in content.chunks_mut(PAGE).enumerate() {
            page[0..8].copy_from_slice(&(0x0001_5a00_0000u64 + (number as u64 * 913)).to_be_bytes());
            page[8..10].copy_from_slice(&(self.random.number() as u16).to_le_bytes());
            let rows = (PAGE - 24) / (row + 28);
            for slot in 0..rows {
                let at = PAGE - (slot + 1) * (row + 24);
                let pointer = 24 + slot * 4;
                page[pointer..pointer + 4].copy_from_slice(&((at as u32) | ((row as u32) << 17)).to_le_bytes());
                page[at..at + 4].copy_from_slice(&(700 + (key / 4096)).to_le_bytes());
                page[at + 18..at + 24].copy_from_slice(&[4, 0, 2, 9, 24, 0]);
                page[at + 24..at + 28].copy_from_slice(&key.to_le_bytes());
                page[at + 28..at + 32].copy_from_slice(&(key / 100_000 + 1).to_le_bytes());
                if row >= 40 {
                    let balance = if self.random.below(3) < 2 { self.random.number() as u32 % 1_000_000 } else { 0 };
                    page[at + 32..at + 36].copy_from_slice(&balance.to_le_bytes());
                    page[at + 40..at + row].fill(b' ');
                }
                key += 1;
            }
        }
        self.file(Path::new(path), &content)
    }

    fn random_files(&mut self, share: f64) -> Result<()> {
        let mut content = vec![0u8; 64 << 20];
        for number in 0..((8.0 * share).ceil() as u64) {
            self.random.fill(&mut content);
            self.file(Path::new(&format!("random{number}")), &content)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(root: &Path) -> u64 {
        let (mut folders, mut sum) = (vec![root.to_owned()], 0u64);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let path = entry.path();
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                let facts = entry.path().symlink_metadata().unwrap();
                let content = if facts.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                let stamp = if facts.is_file() { format!("{:?}", facts.modified().unwrap()) } else { String::new() };
                sum = sum.wrapping_add(xxhash_rust::xxh3::xxh3_64(&[name.as_bytes(), stamp.as_bytes(), &content].concat()));
                if facts.is_dir() {
                    folders.push(path);
                }
            }
        }
        sum
    }

    #[test]
    fn one_seed_makes_one_set_and_another_another() {
        for kind in [Kind::System, Kind::Database] {
            let made: Vec<u64> = [1, 1, 2]
                .iter()
                .map(|seed| {
                    let folder = tempfile::tempdir().unwrap();
                    let set = Set::make(kind, folder.path(), *seed, 0.01).unwrap();
                    assert!(set.entries > 300 && set.bytes > 1 << 20, "{set:?}");
                    digest(folder.path())
                })
                .collect();
            assert_eq!(made[0], made[1]);
            assert_ne!(made[0], made[2]);
        }
    }

    #[test]
    fn content_compresses_as_the_real_thing_does() {
        for (kind, least, most) in [(Kind::System, 0.28, 0.44), (Kind::Database, 0.02, 0.12), (Kind::Random, 0.99, 1.01)] {
            let folder = tempfile::tempdir().unwrap();
            let set = Set::make(kind, folder.path(), 7, 0.02).unwrap();
            let words = ["sh", "-c", "tar -c . | zstd -1 -c | wc -c"];
            let output = crate::lab::command::command(&words).current_dir(folder.path()).output().unwrap();
            let left: f64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
            let kept = left / set.bytes as f64;
            assert!((least..most).contains(&kept), "{kind:?} keeps {kept:.3}");
        }
    }
}
