//! The `newc` cpio format of initrds (Documentation/driver-api/early-userspace/buffer-format.rst), read from hostile bytes and written.

use std::ops::Range;

const HEADER_BYTES: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// Entries of one initrd; Debian's fullest has about 4,000.
const ENTRIES_MAX: usize = 200_000;

/// One entry: where its content lies in the archive's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub mode: u32,
    pub data: Range<usize>,
}

/// True when an archive begins at `at`.
pub fn begins(bytes: &[u8], at: usize) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(b"070701") || rest.starts_with(b"070702"))
}

/// The entry at `start`, and the position of the next one; `None` if it is damaged.
pub fn entry(bytes: &[u8], archive: usize, start: usize) -> Option<(Entry, usize)> {
    if !begins(bytes, start) {
        return None;
    }
    let header = bytes.get(start..start.checked_add(HEADER_BYTES)?)?;
    let mode = field(header, 1)?;
    let size = field(header, 6)? as usize;
    let name_size = field(header, 11)? as usize;
    let name_start = start + HEADER_BYTES;
    let name_end = name_start.checked_add(name_size)?;
    let name = bytes.get(name_start..name_end)?.strip_suffix(b"\0")?;
    let name = String::from_utf8_lossy(name).into_owned();
    // Alignment counts from the archive's start, which the kernel requires to be aligned itself.
    let data_start = aligned(name_end - archive)? + archive;
    let data_end = data_start.checked_add(size)?;
    bytes.get(data_start..data_end)?;
    let next = aligned(data_end - archive)? + archive;
    Some((Entry { name, mode, data: data_start..data_end }, next))
}

/// Reads one archive; gives its entries and the position behind its trailer, or `None` if it is damaged.
pub fn read(bytes: &[u8], start: usize) -> Option<(Vec<Entry>, usize)> {
    let mut entries = Vec::new();
    let mut at = start;
    while entries.len() < ENTRIES_MAX {
        let (entry, next) = entry(bytes, start, at)?;
        at = next;
        if entry.name == TRAILER {
            return Some((entries, at.min(bytes.len())));
        }
        entries.push(entry);
    }
    None
}

fn field(header: &[u8], index: usize) -> Option<u32> {
    let digits = header.get(6 + index * 8..14 + index * 8)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn aligned(value: usize) -> Option<usize> {
    value.checked_add(3).map(|value| value & !3)
}

/// Builds an archive.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    count: u32,
}

impl Writer {
    /// Adds a directory, mode 0755.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, 0o040755, &[]);
    }

    /// Adds a regular file, mode 0644.
    pub fn file(&mut self, name: &str, data: &[u8]) {
        self.entry(name, 0o100644, data);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.count += 1;
        // Inode numbers far from small ones: the kernel pairs hard links by them within one archive.
        let fields = [0x5d00_0000 + self.count, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for value in fields {
            self.bytes.extend_from_slice(format!("{value:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.directory("conf");
        writer.file("conf/modules", b"virtio_blk\n");
        let bytes = writer.finish();
        let (entries, end) = read(&bytes, 0).unwrap();
        assert_eq!(end, bytes.len());
        assert_eq!(entries[1].name, "conf/modules");
        assert_eq!(&bytes[entries[1].data.clone()], b"virtio_blk\n");
    }

    #[test]
    fn damaged_archives_never_panic() {
        let mut writer = Writer::default();
        writer.file("a", b"content");
        let good = writer.finish();
        for length in 0..good.len() {
            let _ = read(&good[..length], 0);
        }
        for at in 0..good.len() {
            for value in [0, b'f', 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = read(&bad, 0);
            }
        }
    }
}
