//! Writes the plan's partition table and checks that a disk carries it.
//!
//! The table is written by `gptman`; the host's kernel need not understand it, because partitions are reached by offset.

use super::DiskError;
use super::identity::{guid_on_disk, parse_uuid};
use super::plan::{DiskPlan, PartitionRole, SECTOR_BYTES};
use gptman::{GPT, GPTHeader, GPTPartitionEntry};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

// Type GUIDs: UEFI 2.10 table 5.7, the GRUB manual, and the UAPI group's discoverable partitions specification.
const TYPE_BIOS_BOOT: &str = "21686148-6449-6e6f-744e-656564454649";
const TYPE_ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const TYPE_LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
const TYPE_SWAP: &str = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f";

/// A table of standard size, as `write` makes it.
const ENTRIES: u32 = 128;
const ENTRY_BYTES: u32 = 128;

/// Writes protective MBR, both headers and both entry arrays.
pub(super) fn write(disk: &mut File, path: &Path, plan: &DiskPlan) -> Result<(), DiskError> {
    let damaged = |error: gptman::Error| DiskError::PartitionTable { path: path.into(), reason: error.to_string() };
    let mut gpt = GPT::new_from(disk, SECTOR_BYTES, guid(&plan.disk_guid)).map_err(damaged)?;
    for (number, entry) in entries(plan) {
        gpt[number] = entry;
    }
    gpt.write_into(disk).map_err(damaged)?;
    GPT::write_protective_mbr_into(disk, SECTOR_BYTES).map_err(damaged)
}

/// Compares the table on the disk with the plan.
pub(super) fn verify(disk: &mut File, path: &Path, plan: &DiskPlan) -> Result<(), DiskError> {
    let damaged = |reason: String| DiskError::PartitionTable { path: path.into(), reason };
    let (header, partitions) = read(disk).map_err(damaged)?;
    if header.disk_guid != guid(&plan.disk_guid) {
        return Err(damaged("another disk's GUID".into()));
    }
    let wanted: Vec<(u32, GPTPartitionEntry)> = entries(plan).collect();
    let found: Vec<(u32, GPTPartitionEntry)> = (1..).zip(partitions).filter(|(_, entry)| entry.is_used()).collect();
    if wanted != found {
        return Err(damaged("the partitions are not the planned ones".into()));
    }
    Ok(())
}

/// The table in front, or its copy at the end where that cannot be read.
///
/// The disk may have been written by a guest, and `GPT::read_from` takes too much of a header on trust whose checksum is right: it reserves
/// memory for as many entries as the header says, multiplies with their place, and fails on partitions without an alignment in common.
fn read(disk: &mut File) -> Result<(GPTHeader, Vec<GPTPartitionEntry>), String> {
    let len = disk.seek(SeekFrom::End(0)).map_err(|error| error.to_string())?;
    let last = (len / SECTOR_BYTES).saturating_sub(1);
    read_at(disk, 1, last).or_else(|front| read_at(disk, last, last).map_err(|back| format!("{front}; its copy at the end: {back}")))
}

fn read_at(disk: &mut File, sector: u64, last: u64) -> Result<(GPTHeader, Vec<GPTPartitionEntry>), String> {
    disk.seek(SeekFrom::Start(sector * SECTOR_BYTES)).map_err(|error| error.to_string())?;
    let header = GPTHeader::read_from(disk).map_err(|error| error.to_string())?;
    let (count, size) = (header.number_of_partition_entries, header.size_of_partition_entry);
    if (count, size) != (ENTRIES, ENTRY_BYTES) {
        return Err(format!("{count} entries of {size} bytes instead of {ENTRIES} of {ENTRY_BYTES}"));
    }
    if header.partition_entry_lba >= last {
        return Err(format!("its entries begin at sector {}, behind the end of the disk", header.partition_entry_lba));
    }
    let partitions = header.read_partitions(disk, SECTOR_BYTES).map_err(|error| error.to_string())?;
    Ok((header, partitions))
}

fn entries(plan: &DiskPlan) -> impl Iterator<Item = (u32, GPTPartitionEntry)> {
    plan.partitions.iter().map(|part| {
        let entry = GPTPartitionEntry {
            partition_type_guid: guid(type_guid(&part.role)),
            unique_partition_guid: guid(&part.guid),
            starting_lba: part.offset / SECTOR_BYTES,
            ending_lba: (part.offset + part.size) / SECTOR_BYTES - 1,
            attribute_bits: 0,
            partition_name: name(&part.role).as_str().into(),
        };
        (part.number, entry)
    })
}

fn type_guid(role: &PartitionRole) -> &'static str {
    match role {
        PartitionRole::BiosBoot => TYPE_BIOS_BOOT,
        PartitionRole::Esp { .. } => TYPE_ESP,
        PartitionRole::Volume { .. } => TYPE_LINUX,
        PartitionRole::Swap { .. } => TYPE_SWAP,
    }
}

fn name(role: &PartitionRole) -> String {
    match role {
        PartitionRole::BiosBoot => "bios boot".into(),
        PartitionRole::Esp { .. } => "efi system".into(),
        PartitionRole::Volume { volume } => format!("volume {}", volume.id.0),
        PartitionRole::Swap { .. } => "swap".into(),
    }
}

/// A plan that was checked carries only well-formed GUIDs; a stored plan that was damaged yields the nil GUID and fails `verify`.
fn guid(text: &str) -> [u8; 16] {
    parse_uuid(text).map(guid_on_disk).unwrap_or_default()
}
