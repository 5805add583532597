//! Tests of the disk plan: layout, sizes, and every refusal.

use super::*;
use crate::disk::FsFeatures;

const GIB: u64 = 1 << 30;

pub(crate) fn volume(id: u32, mount_point: &str, fs_type: &str, size: u64, used: u64) -> SourceVolume {
    SourceVolume {
        id,
        mount_point: mount_point.into(),
        fs_type: fs_type.into(),
        uuid: format!("00000000-0000-4000-8000-00000000000{id}"),
        label: String::new(),
        size,
        used,
        subvolume: String::new(),
        other_subvolumes: Vec::new(),
        device_names: Vec::new(),
        partition_uuid: None,
        features: FsFeatures::default(),
    }
}

fn source(volumes: Vec<SourceVolume>) -> SourceInventory {
    SourceInventory { firmware: Firmware::Bios, volumes, swaps: Vec::new(), esp: None }
}

fn refused(source: &SourceInventory, wanted: &WantedDisk, free: u64) -> &'static str {
    DiskPlan::make(source, wanted, free).unwrap_err().code()
}

#[test]
fn partitions_are_aligned_disjoint_and_inside() {
    let mut inventory = source(vec![volume(2, "/srv", "xfs", 3 * GIB + 7, GIB), volume(1, "/", "ext4", 4 * GIB, GIB)]);
    inventory.swaps.push(SwapVolume {
        uuid: "00000000-0000-4000-8000-0000000000ff".into(),
        label: "swap".into(),
        size: GIB,
        device_names: Vec::new(),
        partition_uuid: None,
    });
    let plan = DiskPlan::make(&inventory, &WantedDisk::default(), 100 * GIB).unwrap();
    assert_eq!(plan.partitions.len(), 5);
    let mut end = ALIGNMENT;
    for part in &plan.partitions {
        assert_eq!(part.offset, end);
        assert_eq!(part.size % ALIGNMENT, 0);
        end += part.size;
    }
    assert_eq!(plan.size, end + ALIGNMENT);
    assert_eq!(plan.volume_of_path("/srv/www").unwrap().2.id, 2);
    assert_eq!(plan.volume_of_path("/srvx").unwrap().2.id, 1);
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<DiskPlan>(&text).unwrap(), plan);
    assert_eq!(DiskPlan::make(&inventory, &WantedDisk::default(), 100 * GIB).unwrap(), plan);
}

#[test]
fn what_does_not_fit_is_refused() {
    let inventory = source(vec![volume(1, "/", "ext4", 4 * GIB, 3 * GIB)]);
    let mut wanted = WantedDisk::default();
    wanted.volume_sizes.insert(1, 3 * GIB);
    assert_eq!(refused(&inventory, &wanted, 100 * GIB), "STANDIN-E3002");
    wanted.volume_sizes.insert(1, 8 * GIB);
    assert_eq!(DiskPlan::make(&inventory, &wanted, 100 * GIB).unwrap().volume(1).unwrap().size, 8 * GIB);
    assert_eq!(refused(&inventory, &wanted, 3 * GIB), "STANDIN-E3003");
}

#[test]
fn unsupported_and_hostile_inventories_are_refused() {
    let plain = WantedDisk::default();
    assert_eq!(refused(&source(vec![volume(1, "/", "zfs", GIB, 0)]), &plain, 10 * GIB), "STANDIN-E3001");
    let mut snapshots = volume(1, "/", "btrfs", GIB, 0);
    snapshots.other_subvolumes.push("@home".into());
    assert_eq!(refused(&source(vec![snapshots]), &plain, 10 * GIB), "STANDIN-E3004");
    let mut label = volume(1, "/", "ext4", GIB, 0);
    label.label = "--help".into();
    assert_eq!(refused(&source(vec![label]), &plain, 10 * GIB), "STANDIN-E3005");
    let mut flags = volume(1, "/", "ext4", GIB, 0);
    flags.features.flags.push("x,journal_dev /dev/vda".into());
    assert_eq!(refused(&source(vec![flags]), &plain, 10 * GIB), "STANDIN-E3005");
    let twice = vec![volume(1, "/", "ext4", GIB, 0), volume(1, "/a", "ext4", GIB, 0)];
    assert_eq!(refused(&source(twice), &plain, 10 * GIB), "STANDIN-E3005");
    assert_eq!(refused(&source(Vec::new()), &plain, 10 * GIB), "STANDIN-E3005");
    assert_eq!(refused(&source(vec![volume(1, "/", "ext4", u64::MAX, 0)]), &plain, 10 * GIB), "STANDIN-E3005");
}
