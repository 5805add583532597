//! Inventories for tests.

use super::DiskPlan;
use standin_model::*;

pub(crate) fn volume(number: u16, mount_point: &str, file_system: &str, size: u64, used: u64) -> Volume {
    let known = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
    Volume {
        mount_point: mount_point.into(),
        device: format!("/dev/sda{number}"),
        file_system: known.into_iter().find(|known| known.as_str() == file_system),
        file_system_name: file_system.into(),
        uuid: format!("{0}{0}{0}{0}{0}{0}{0}{0}-{0}{0}{0}{0}-4{0}{0}{0}-8{0}{0}{0}-{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}", number % 10),
        label: String::new(),
        size: ByteLen(size),
        used: ByteLen(used),
        nodes_used: 0,
        extra_subvolumes: 0,
        partition_uuid: None,
        subvolume: None,
        features: Vec::new(),
        capture_obstacle: None,
    }
}

pub(crate) fn swap(device: &str, uuid: &str) -> SwapArea {
    SwapArea { device: device.into(), uuid: uuid.into(), label: "swap".into(), size: ByteLen(1 << 20) }
}

pub(crate) fn source(volumes: Vec<Volume>) -> Inventory {
    Inventory {
        hostname: "web1".into(),
        os_name: "Debian".into(),
        kernel_release: "6.1".into(),
        architecture: "x86_64".into(),
        firmware: Firmware::Uefi,
        cpus: 1,
        memory: ByteLen(1 << 30),
        volumes,
        swaps: Vec::new(),
        system_partition: None,
        network_cards: Vec::new(),
        capture_obstacles: Vec::new(),
        periodic: None,
    }
}

/// Every volume of the source at its own size, numbered from 0.
pub(crate) fn all(source: &Inventory) -> Vec<VolumeSpec> {
    let spec = |(number, volume): (usize, &Volume)| VolumeSpec {
        id: VolumeId(number as u16),
        mount_point: volume.mount_point.clone(),
        file_system: volume.file_system.unwrap_or(FileSystem::Ext4),
        uuid: volume.uuid.clone(),
        label: volume.label.clone(),
        size: volume.size,
    };
    source.volumes.iter().enumerate().map(spec).collect()
}

pub(crate) fn plan(source: &Inventory) -> DiskPlan {
    DiskPlan::make(source, &all(source), 1 << 40).unwrap()
}

/// One ext4 root, one swap area, an EFI system partition: what an installer makes.
pub(crate) fn installed(root_device: &str) -> DiskPlan {
    let mut source = source(vec![volume(1, "/", "ext4", 1 << 30, 0)]);
    source.volumes[0].device = root_device.into();
    source.swaps = vec![swap("/dev/sda5", "22222222-2222-4222-8222-222222222222")];
    source.system_partition =
        Some(SystemPartition { mount_point: "/boot/efi".into(), uuid: "ABCD-1234".into(), label: "EFI".into(), size: ByteLen(0) });
    plan(&source)
}
