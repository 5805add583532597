//! Tests of the disk plan: layout, sizes, and every refusal.

use super::*;
use crate::disk::fixture::{self, all, plan, source, swap, volume};
use standin_model::ByteLen;

const GIB: u64 = 1 << 30;

#[track_caller]
fn refused(inventory: &Inventory, free: u64, code: &str) {
    assert_eq!(DiskPlan::make(inventory, &all(inventory), free).unwrap_err().code(), code);
}

fn changed(change: impl FnOnce(&mut Volume)) -> Inventory {
    let mut volume = volume(1, "/", "btrfs", GIB, 0);
    change(&mut volume);
    source(vec![volume])
}

#[test]
fn partitions_are_aligned_disjoint_and_inside() {
    let mut inventory = source(vec![volume(2, "/srv", "xfs", 3 * GIB + 7, GIB), volume(1, "/", "ext4", 4 * GIB, GIB)]);
    inventory.swaps.push(swap("/dev/sda5", "00000000-0000-4000-8000-0000000000ff"));
    let plan = plan(&inventory);
    assert_eq!(plan.partitions.len(), 5);
    let mut end = ALIGNMENT;
    for part in &plan.partitions {
        assert_eq!(part.offset, end);
        assert_eq!(part.size % ALIGNMENT, 0);
        end += part.size;
    }
    assert_eq!(plan.size, end + ALIGNMENT);
    assert_eq!(plan.volume_of_path("/srv/www").unwrap().1.id, VolumeId(0));
    assert_eq!(plan.volume_of_path("/srvx").unwrap().1.id, VolumeId(1));
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<DiskPlan>(&text).unwrap(), plan);
    assert_eq!(fixture::plan(&inventory), plan);
}

#[test]
fn what_does_not_fit_is_refused() {
    let inventory = source(vec![volume(1, "/", "ext4", 4 * GIB, 3 * GIB)]);
    let mut wanted = all(&inventory);
    wanted[0].size = ByteLen(3 * GIB);
    assert_eq!(DiskPlan::make(&inventory, &wanted, 100 * GIB).unwrap_err().code(), "STANDIN-E3002");
    wanted[0].size = ByteLen(8 * GIB);
    let plan = DiskPlan::make(&inventory, &wanted, 100 * GIB).unwrap();
    assert_eq!(plan.volume(VolumeId(0)).unwrap().size, 8 * GIB);
    assert_eq!(DiskPlan::make(&inventory, &wanted, 3 * GIB).unwrap_err().code(), "STANDIN-E3003");
}

#[test]
fn partitions_keep_the_guids_that_a_gpt_can_hold() {
    let guid = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
    let mut inventory = source(vec![volume(1, "/", "ext4", GIB, 0), volume(2, "/a", "ext4", GIB, 0), volume(3, "/b", "ext4", GIB, 0)]);
    for (volume, text) in inventory.volumes.iter_mut().zip([guid, "deadbeef-01", guid]) {
        volume.partition_uuid = Some(text.into());
    }
    let plan = plan(&inventory);
    let guids: Vec<_> = plan.partitions.iter().map(|part| part.guid.as_str()).collect();
    assert_eq!(guids.iter().filter(|found| found.eq_ignore_ascii_case(guid)).count(), 1, "{guids:?}");
    assert!(guids.iter().all(|text| parse_uuid(text).is_some()), "{guids:?}");
}

#[test]
fn debians_subvolume_is_planned_and_further_ones_are_refused() {
    let rootfs = |extra| changed(|volume| (volume.subvolume, volume.extra_subvolumes) = (Some("/@rootfs".into()), extra));
    assert_eq!(plan(&rootfs(1)).volume_of_path("/").unwrap().1.subvolume(), "@rootfs");
    refused(&rootfs(2), 10 * GIB, "STANDIN-E3004");
    refused(&changed(|volume| (volume.subvolume, volume.extra_subvolumes) = (Some("/".into()), 1)), 10 * GIB, "STANDIN-E3004");
}

#[test]
fn unsupported_and_hostile_inventories_are_refused() {
    refused(&source(vec![volume(1, "/", "zfs", GIB, 0)]), 10 * GIB, "STANDIN-E3001");
    refused(&changed(|volume| volume.label = "--help".into()), 10 * GIB, "STANDIN-E3005");
    for subvolume in ["/../x", "/a,ro", "/-x", "/a\nb", "/a//b"] {
        refused(&changed(|volume| volume.subvolume = Some(subvolume.into())), 10 * GIB, "STANDIN-E3005");
    }
    let mut twice = source(vec![volume(1, "/", "ext4", GIB, 0), volume(2, "/a", "ext4", GIB, 0)]);
    twice.volumes[1].uuid = twice.volumes[0].uuid.clone();
    refused(&twice, 10 * GIB, "STANDIN-E3005");
    refused(&source(Vec::new()), 10 * GIB, "STANDIN-E3005");
    refused(&source(vec![volume(1, "/", "ext4", u64::MAX, 0)]), 10 * GIB, "STANDIN-E3005");
    let wanted = all(&source(vec![volume(1, "/", "ext4", GIB, 0)]));
    assert_eq!(DiskPlan::make(&source(Vec::new()), &wanted, 10 * GIB).unwrap_err().code(), "STANDIN-E3005");
}
