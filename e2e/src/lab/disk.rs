//! Raw disk images: a GPT with a boot partition, a root, a swap and, if asked for, a data partition; and overlays on them.
//!
//! The lab's host may have no partition-table scanning on loop devices, so partitions are addressed as byte ranges of the file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use gptman::{GPT, GPTPartitionEntry};

use super::command;
use super::image::{Combo, Firmware};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

const TYPE_BIOS_BOOT: &str = "21686148-6449-6e6f-744e-656564454649";
const TYPE_ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const TYPE_LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
const TYPE_SWAP: &str = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f";

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pub start: u64,
    pub len: u64,
}

/// Where the partitions of a lab disk lie. Partition numbers are 1 boot, 2 root, 3 swap, 4 data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub boot: ByteRange,
    pub root: ByteRange,
    pub swap: ByteRange,
    pub data: Option<ByteRange>,
}

impl Layout {
    /// Sizes are those of a small server: 4 GiB of root, 256 MiB of swap, 2 GiB of data. The file is sparse.
    pub fn of(combo: Combo) -> Self {
        let mut next = MIB;
        let mut take = |mib: u64| {
            let range = ByteRange { start: next, len: mib * MIB };
            next += range.len;
            range
        };
        Layout {
            boot: take(if combo.firmware == Firmware::Uefi { 64 } else { 1 }),
            root: take(4096),
            swap: take(256),
            data: combo.data.map(|_| take(2048)),
        }
    }

    /// The disk's size: the partitions and one MiB for the second table.
    pub fn disk_len(&self) -> u64 {
        let last = self.data.unwrap_or(self.swap);
        last.start + last.len + MIB
    }
}

/// Makes a sparse file with the table of `layout`.
pub fn create(path: &Path, combo: Combo) -> Result<Layout> {
    let layout = Layout::of(combo);
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(layout.disk_len())?;
    let mut table = GPT::new_from(&mut file, SECTOR, guid(&random_uuid()?)).context("making a partition table")?;
    let boot_type = if combo.firmware == Firmware::Uefi { TYPE_ESP } else { TYPE_BIOS_BOOT };
    table[1] = partition(layout.boot, boot_type, "boot")?;
    table[2] = partition(layout.root, TYPE_LINUX, "root")?;
    table[3] = partition(layout.swap, TYPE_SWAP, "swap")?;
    if let Some(data) = layout.data {
        table[4] = partition(data, TYPE_LINUX, "data")?;
    }
    table.write_into(&mut file).context("writing the partition table")?;
    GPT::write_protective_mbr_into(&mut file, SECTOR).context("writing the protective MBR")?;
    Ok(layout)
}

fn partition(range: ByteRange, kind: &str, name: &str) -> Result<GPTPartitionEntry> {
    Ok(GPTPartitionEntry {
        partition_type_guid: guid(kind),
        unique_partition_guid: guid(&random_uuid()?),
        starting_lba: range.start / SECTOR,
        ending_lba: (range.start + range.len) / SECTOR - 1,
        attribute_bits: 0,
        partition_name: name.into(),
    })
}

/// The partitions of a raw image in the order of their numbers, as its table tells them.
pub fn partitions(path: &Path) -> Result<Vec<(u32, ByteRange)>> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let table = GPT::find_from(&mut file).with_context(|| format!("reading the partition table of {}", path.display()))?;
    let mut found = Vec::new();
    for (number, entry) in table.iter().filter(|(_, entry)| entry.is_used()) {
        let start = entry.starting_lba * SECTOR;
        found.push((number, ByteRange { start, len: (entry.ending_lba + 1) * SECTOR - start }));
    }
    Ok(found)
}

/// Writes bytes at a place of an image.
pub fn patch(path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(bytes, at).with_context(|| format!("writing {} bytes at {at} of {}", bytes.len(), path.display()))
}

/// A fresh random UUID from the kernel.
pub fn random_uuid() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

/// The bytes of a GUID as a GPT stores them: the first three groups little-endian (UEFI specification, appendix A).
fn guid(text: &str) -> [u8; 16] {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut bytes = [0u8; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).expect("a GUID is ASCII");
        *byte = u8::from_str_radix(pair, 16).expect("a GUID is hexadecimal");
    }
    bytes[0..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// How a disk's file is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    Raw,
    Qcow2,
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub path: PathBuf,
    pub format: DiskFormat,
}

impl Disk {
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Disk { path: path.into(), format: DiskFormat::Raw }
    }

    pub fn qcow2(path: impl Into<PathBuf>) -> Self {
        Disk { path: path.into(), format: DiskFormat::Qcow2 }
    }

    /// A new qcow2 file that holds only what differs from this disk, which must stay as it is.
    pub fn overlay(&self, path: impl Into<PathBuf>) -> Result<Disk> {
        let overlay = Disk::qcow2(path);
        let words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", self.format.name(), "-b"];
        let mut command = command::command(&words);
        command::checked(command.arg(&self.path).arg(&overlay.path), Duration::from_secs(30))?;
        Ok(overlay)
    }

    /// A raw copy with everything in it, sparse where it is zero.
    pub fn flatten(&self, path: impl Into<PathBuf>) -> Result<Disk> {
        let raw = Disk::raw(path);
        let words = ["qemu-img", "convert", "-f", self.format.name(), "-O", "raw"];
        let mut command = command::command(&words);
        command::checked(command.arg(&self.path).arg(&raw.path), Duration::from_secs(300))?;
        Ok(raw)
    }
}

impl DiskFormat {
    /// The name QEMU gives it.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_is_stored_mixed_endian() {
        // The EFI system partition's type as the UEFI specification shows it on disk.
        let expect = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        assert_eq!(guid(TYPE_ESP), expect);
    }
}
