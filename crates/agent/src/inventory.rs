//! What this server is made of, read from /proc, /sys and the file systems themselves.
//!
//! Nothing here changes anything. A fact that cannot be read is left empty rather than guessed; what makes protection impossible becomes a
//! *capture obstacle* in words for the operator.

use anyhow::{Context, Result};
use standin_capture::CaptureError;
use standin_capture::mounts::{self, Mount};
use standin_model::{ByteLen, FileSystem, Firmware, Inventory, NetworkCard, SwapArea, SystemPartition, Volume};
use std::fs;
use std::path::{Path, PathBuf};

mod btrfs;
pub(crate) mod features;

/// Reads the whole inventory.
pub fn read() -> Result<Inventory> {
    let mounts = mounts::read().context("cannot read /proc/self/mountinfo")?;
    let links = DiskLinks::read();
    let mut volumes = volumes(&mounts, &links);
    let capture_obstacles = obstacles(&mut volumes);
    let firmware = if Path::new("/sys/firmware/efi").exists() { Firmware::Uefi } else { Firmware::Bios };
    Ok(Inventory {
        hostname: first_line("/proc/sys/kernel/hostname"),
        os_name: os_name(),
        kernel_release: first_line("/proc/sys/kernel/osrelease"),
        architecture: std::env::consts::ARCH.to_owned(),
        firmware,
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory: memory(),
        volumes,
        swaps: swaps(&links),
        system_partition: system_partition(&mounts, &links),
        network_cards: network_cards(),
        capture_obstacles,
        periodic: None,
    })
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn os_name() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    value.map(|v| v.trim_matches('"').to_owned()).unwrap_or_else(|| "Linux".to_owned())
}

fn memory() -> ByteLen {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    ByteLen(kib.unwrap_or(0) * 1024)
}

/// What concerns the whole server; what concerns a file system only is noted with its volumes.
fn obstacles(volumes: &mut [Volume]) -> Vec<String> {
    let mut found = Vec::new();
    let tell = |error: &CaptureError| format!("{}: {error}", error.code());
    let mut wanted: Vec<FileSystem> = Vec::new();
    for kind in volumes.iter().filter_map(|volume| volume.file_system) {
        if !wanted.contains(&kind) {
            wanted.push(kind);
        }
    }
    match standin_capture::facts::obstacles(&wanted) {
        Err(error) => found.push(tell(&error)),
        Ok(obstacles) => {
            for volume in volumes {
                let obstacle = obstacles.iter().find(|(kind, _)| volume.file_system == Some(*kind));
                volume.capture_obstacle = obstacle.map(|(_, error)| tell(error));
            }
        }
    }
    let lockdown = first_line("/sys/kernel/security/lockdown");
    if lockdown.contains("[confidentiality]") {
        found.push("kernel lockdown is in confidentiality mode, which forbids reading kernel memory by BPF".to_owned());
    }
    found
}

/// The udev links that lead from a device to its UUID and label.
struct DiskLinks {
    uuids: Vec<(PathBuf, String)>,
    labels: Vec<(PathBuf, String)>,
    partition_uuids: Vec<(PathBuf, String)>,
}

impl DiskLinks {
    fn read() -> DiskLinks {
        DiskLinks {
            uuids: links("/dev/disk/by-uuid"),
            labels: links("/dev/disk/by-label"),
            partition_uuids: links("/dev/disk/by-partuuid"),
        }
    }
    fn uuid(&self, device: &str) -> String {
        lookup(&self.uuids, device)
    }
    fn label(&self, device: &str) -> String {
        unescape(&lookup(&self.labels, device))
    }
    fn partition_uuid(&self, device: &str) -> Option<String> {
        Some(lookup(&self.partition_uuids, device)).filter(|uuid| !uuid.is_empty())
    }
}

fn links(directory: &str) -> Vec<(PathBuf, String)> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let link = |entry: fs::DirEntry| Some((fs::canonicalize(entry.path()).ok()?, entry.file_name().into_string().ok()?));
    entries.flatten().filter_map(link).collect()
}

fn lookup(links: &[(PathBuf, String)], device: &str) -> String {
    let target = fs::canonicalize(device).unwrap_or_else(|_| PathBuf::from(device));
    links.iter().find(|(path, _)| *path == target).map(|(_, name)| name.clone()).unwrap_or_default()
}

/// udev writes unusual bytes of a label as `\x20`.
pub(crate) fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped =
            tail.get(..3).and_then(|t| std::str::from_utf8(t.strip_prefix(b"x")?).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match (first, escaped) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn volumes(mounts: &[Mount], links: &DiskLinks) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = Vec::new();
    for mount in mounts.iter().filter(|m| m.source.starts_with("/dev/") && m.file_system != "vfat") {
        let device = fs::canonicalize(&mount.source).map(|p| p.to_string_lossy().into_owned()).unwrap_or_else(|_| mount.source.clone());
        // A bind mount or a second mount of the same file system is the same volume; its first and shortest mount point names it.
        if mount.root != "/" && mount.file_system != "btrfs" || volumes.iter().any(|v| v.device == device) {
            continue;
        }
        volumes.push(volume(mount, device, links));
    }
    volumes.sort_by(|a, b| a.mount_point.cmp(&b.mount_point));
    volumes
}

fn volume(mount: &Mount, device: String, links: &DiskLinks) -> Volume {
    let file_system = match mount.file_system.as_str() {
        "ext4" => Some(FileSystem::Ext4),
        "xfs" => Some(FileSystem::Xfs),
        "btrfs" => Some(FileSystem::Btrfs),
        _ => None,
    };
    let statistics = rustix::fs::statvfs(mount.mount_point.as_str()).ok();
    let block = statistics.as_ref().map_or(0, |s| s.f_frsize);
    let (blocks, free, nodes) = statistics.map_or((0, 0, 0), |s| (s.f_blocks, s.f_bfree, s.f_files.saturating_sub(s.f_ffree)));
    Volume {
        uuid: links.uuid(&device),
        label: links.label(&device),
        size: device_size(&device).unwrap_or(ByteLen(blocks * block)),
        used: ByteLen(blocks.saturating_sub(free) * block),
        nodes_used: nodes,
        extra_subvolumes: if mount.file_system == "btrfs" { btrfs::extra_subvolumes(&mount.mount_point).unwrap_or(0) } else { 0 },
        partition_uuid: links.partition_uuid(&device),
        subvolume: if mount.file_system == "btrfs" { mount.option("subvol") } else { None },
        capture_obstacle: None,
        features: file_system.map(|kind| features::of_device(&device, kind)).unwrap_or_default(),
        mount_point: mount.mount_point.clone(),
        file_system,
        file_system_name: mount.file_system.clone(),
        device,
    }
}

/// Size of a block device; sysfs counts sectors of 512 bytes whatever the device's own sector size.
pub(crate) fn device_size(device: &str) -> Option<ByteLen> {
    let name = Path::new(device).file_name()?.to_str()?;
    let sectors: u64 = fs::read_to_string(format!("/sys/class/block/{name}/size")).ok()?.trim().parse().ok()?;
    sectors.checked_mul(512).map(ByteLen)
}

fn swaps(links: &DiskLinks) -> Vec<SwapArea> {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let area = |(path, size): (String, ByteLen)| SwapArea {
        uuid: links.uuid(&path),
        label: links.label(&path),
        size: path.starts_with("/dev/").then(|| device_size(&path)).flatten().unwrap_or(size),
        device: path,
    };
    active_swaps(&text).map(area).collect()
}

/// Devices and files of /proc/swaps with their sizes. Compressed memory is no swap area that a replica would need.
fn active_swaps(text: &str) -> impl Iterator<Item = (String, ByteLen)> {
    text.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        let (path, _kind, kibibytes) = (mounts::unescape(words.next()?), words.next()?, words.next()?.parse::<u64>().ok()?);
        // The kernel does not count the page that holds the header.
        let size = ByteLen(kibibytes.checked_mul(1024)?.checked_add(4096)?);
        (path.starts_with('/') && !path.starts_with("/dev/zram")).then_some((path, size))
    })
}

fn system_partition(mounts: &[Mount], links: &DiskLinks) -> Option<SystemPartition> {
    let mount = mounts.iter().find(|m| m.file_system == "vfat" && matches!(m.mount_point.as_str(), "/boot/efi" | "/efi" | "/boot"))?;
    Some(SystemPartition {
        mount_point: mount.mount_point.clone(),
        uuid: links.uuid(&mount.source),
        label: links.label(&mount.source),
        size: device_size(&mount.source).unwrap_or_default(),
    })
}

/// Physical and virtual cards that have a device behind them; bridges, tunnels and loopback have none.
fn network_cards() -> Vec<NetworkCard> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let card = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        entry.path().join("device").exists().then_some(())?;
        let mac_address = fs::read_to_string(entry.path().join("address")).ok()?.trim().to_owned();
        Some(NetworkCard { addresses: addresses(&name), name, mac_address })
    };
    let mut cards: Vec<_> = entries.flatten().filter_map(card).collect();
    cards.sort_by(|a, b| a.name.cmp(&b.name));
    cards
}

/// Addresses as `ip` prints them; empty where the tool is missing.
fn addresses(card: &str) -> Vec<String> {
    let output = std::process::Command::new("ip").args(["-o", "addr", "show", "dev", card]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let address = |line: &str| line.split_whitespace().skip_while(|w| *w != "inet" && *w != "inet6").nth(1).map(str::to_owned);
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unescaped() {
        assert_eq!(unescape(r"my\x20disk"), "my disk");
        assert_eq!(unescape(r"tail\x2"), r"tail\x2");
    }

    #[test]
    fn swap_files_and_devices_are_seen_and_compressed_memory_is_not() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/sda5                               partition\t998396\t\t0\t\t-2\n\
                    /var/my\\040swap                          file\t\t1020\t\t0\t\t-3\n\
                    /dev/zram0                              partition\t999\t\t0\t\t100\n";
        let swaps: Vec<_> = active_swaps(text).collect();
        assert_eq!(swaps, [("/dev/sda5".into(), ByteLen(998_400 << 10)), ("/var/my swap".into(), ByteLen(1 << 20))]);
        assert_eq!(active_swaps("").count(), 0);
    }

    #[test]
    fn this_machine_has_an_inventory() {
        let inventory = read().unwrap();
        assert!(inventory.cpus > 0 && inventory.memory.0 > 0);
        assert!(inventory.volumes.iter().all(|v| v.mount_point.starts_with('/')));
    }
}
