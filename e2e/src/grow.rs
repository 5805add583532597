//! A volume of a live guest grows: its disk, its partition, its file system. What an administrator does with a hypervisor's console and two commands.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gptman::GPT;
use serde_json::{Value, json};

use crate::job::Site;
use crate::lab::{FileSystem, command};

const SECTOR: u64 = 512;
const LIMIT: Duration = Duration::from_secs(60);
/// Left free of what is filled, for those who work on the volume.
const LEFT_MIB: u64 = 200;
/// The data partition of the lab's disks (`lab/disk.rs`), the last one.
const PARTITION: u32 = 4;
pub const MOUNT_POINT: &str = "/var/lib/postgresql";
const PROGRAM: &str = "/usr/local/bin/standin-e2e";
const FILLER: &str = "/var/lib/postgresql/filler";

/// Makes a partition reach to the end of its disk, in the table on the disk.
pub fn partition(device: &Path, number: u32) -> Result<()> {
    let mut disk = File::options().read(true).write(true).open(device).with_context(|| format!("opening {}", device.display()))?;
    let mut table = GPT::find_from(&mut disk).context("reading the partition table")?;
    table.header.update_from(&mut disk, SECTOR).context("measuring the disk")?;
    let end = table.header.last_usable_lba;
    let last = (1..=table.header.number_of_partition_entries).filter(|other| table[*other].is_used() && *other != number);
    let behind = last.map(|other| table[other].ending_lba).max().unwrap_or(0);
    ensure!(behind < table[number].starting_lba, "partition {number} is not the last one");
    // To whole MiB, as everything else is.
    table[number].ending_lba = (end + 1) / 2048 * 2048 - 1;
    table.write_into(&mut disk).context("writing the partition table")?;
    disk.sync_all()?;
    println!("{}", table[number].ending_lba + 1 - table[number].starting_lba);
    Ok(())
}

/// Grows the data volume by `mib` while it is used, and allocates more in it than it had before.
pub fn volume(site: &mut Site, mib: u64) -> Result<()> {
    let kind = site.combo.data.context("this source has no second volume")?;
    let size = disk_size(site)? + (mib << 20);
    site.source.qmp()?.command("block_resize", json!({"device": "disk0", "size": size}))?;
    let device = site.source.ssh(&format!("findmnt -n -o SOURCE {MOUNT_POINT} | head -n 1"))?;
    let device = device.trim().split('[').next().unwrap_or_default().to_owned();
    let disk = device.trim_end_matches(|digit: char| digit.is_ascii_digit()).to_owned();
    let name = disk.trim_start_matches("/dev/");
    let deadline = Instant::now() + LIMIT;
    loop {
        let sectors = site.source.ssh(&format!("echo 1 > /sys/block/{name}/device/rescan; cat /sys/block/{name}/size"))?;
        if sectors.trim().parse() == Ok(size / SECTOR) {
            break;
        }
        ensure!(Instant::now() < deadline, "the guest sees {} sectors and not {}", sectors.trim(), size / SECTOR);
        command::pause(Duration::from_secs(1))?;
    }
    let sectors = site.source.ssh(&format!("{PROGRAM} grow-partition {disk} {PARTITION}"))?;
    site.source.ssh(&format!("resizepart {disk} {PARTITION} {}", sectors.trim()))?;
    let resize = match kind {
        FileSystem::Ext4 => format!("resize2fs {device}"),
        FileSystem::Xfs => format!("xfs_growfs -d {MOUNT_POINT}"),
        FileSystem::Btrfs => format!("btrfs filesystem resize max {MOUNT_POINT}"),
    };
    site.source.ssh_within(&format!("{resize} 2>&1"), LIMIT)?;
    let room = format!("$(($(df --output=avail -B1 {MOUNT_POINT} | tail -n 1) - ({LEFT_MIB} << 20)))");
    site.source.ssh_within(&format!("rm -f {FILLER}; fallocate -l {room} {FILLER} && sync -f {FILLER}"), LIMIT)?;
    Ok(())
}

/// Gives the volume's users their room back.
pub fn end_filling(site: &mut Site) -> Result<()> {
    site.source.ssh(&format!("rm -f {FILLER}")).map(drop)
}

fn disk_size(site: &Site) -> Result<u64> {
    let blocks = site.source.qmp()?.command("query-block", json!({}))?;
    let ours = blocks.as_array().into_iter().flatten().find(|block: &&Value| block["device"] == "disk0");
    ours.and_then(|block| block["inserted"]["image"]["virtual-size"].as_u64()).context("QEMU does not tell the disk's size")
}
