//! Fuzz targets of a replica's disk: the partition table that a guest may have written, and the plan made from what a source says of itself.

use super::{DiskError, DiskPlan, fixture, gpt};
use standin_fuzz::{Script, TIME, check, edited, is_guided, within};
use standin_model::{Inventory, VolumeSpec};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/disk");
const SECTOR: usize = 512;
/// Protective MBR, header, and 128 entries of 128 bytes.
const TABLE: usize = 34 * SECTOR;

/// A sparse disk in memory.
fn disk(plan: &DiskPlan) -> File {
    let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).expect("memory"));
    file.set_len(plan.size).expect("sparse");
    file
}

fn read_at(file: &File, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).expect("inside the disk");
    bytes
}

/// CRC-32 of the entries and of the header, as they should be for what the header now says.
fn forge(table: &mut [u8]) {
    let Some((head, entries)) = table.split_at_mut_checked(2 * SECTOR) else { return };
    let header = &mut head[SECTOR..SECTOR + 92];
    let (count, size) = (u32_at(header, 80) as usize, u32_at(header, 84) as usize);
    let mut crc = crc32fast::Hasher::new();
    for at in (0..count.min(200)).map(|number| number.saturating_mul(size)) {
        crc.update(entries.get(at..at.saturating_add(128)).unwrap_or_default());
    }
    header[88..92].copy_from_slice(&crc.finalize().to_le_bytes());
    header[16..20].fill(0);
    let crc = crc32fast::hash(header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[test]
fn partition_table() {
    let plan = fixture::installed("/dev/sda1");
    let mut file = disk(&plan);
    let path = Path::new("disk");
    gpt::write(&mut file, path, &plan).expect("the plan fits");
    let (front, end) = (read_at(&file, 0, TABLE), plan.size - TABLE as u64 + SECTOR as u64);
    let back = read_at(&file, end, TABLE - SECTOR);
    check!(name = "partition_table").with_test_time(TIME).for_each(|bytes| {
        let mut script = Script::new(bytes);
        let choice = script.byte();
        let mut changed = if choice.is_multiple_of(16) { bytes.to_vec() } else { edited(&front, &mut script) };
        changed.resize(TABLE, 0);
        let is_forged = choice % 2 == 1;
        if is_forged {
            forge(&mut changed);
        }
        // Without its copy at the end, the table in front is all there is.
        let is_alone = choice % 4 < 2;
        file.write_all_at(&changed, 0).expect("memory");
        file.write_all_at(if is_alone { &[0; TABLE - SECTOR] } else { &back }, end).expect("memory");
        match within(256 << 10, || gpt::verify(&mut file, path, &plan)) {
            Ok(()) if is_alone && !is_forged => {
                assert!(is_guided() || changed[2 * SECTOR..] == front[2 * SECTOR..], "the planned partitions, or none")
            }
            Ok(()) => {}
            Err(error) => assert_eq!(error.code(), "STANDIN-E3014", "{error}"),
        }
    });
}

/// What a source says of itself: a plan whose partitions lie apart and inside, or a refusal with its code.
#[test]
fn inventory() {
    let sample = inventory_sample();
    check!(name = "inventory").with_test_time(TIME).for_each(|bytes| {
        let mut script = Script::new(bytes);
        for json in [bytes.to_vec(), scripted_inventory(&sample, &mut script), edited(&sample, &mut script)] {
            let Ok((source, wanted)) = serde_json::from_slice::<(Inventory, Vec<VolumeSpec>)>(&json) else { continue };
            match within(64 << 10, || DiskPlan::make(&source, &wanted, 1 << 40)) {
                Ok(plan) => take_plan(&plan, wanted.len()),
                Err(error) => assert!(error.code().starts_with("STANDIN-E30"), "{error}"),
            }
        }
    });
}

/// The sample with some of its numbers at their edges.
fn scripted_inventory(sample: &[u8], script: &mut Script) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(sample).into_owned();
    for _ in 0..script.byte() % 4 {
        let places: Vec<usize> = text.match_indices("1073741824").map(|(at, _)| at).collect();
        if let Some(at) = places.get(script.below(places.len())) {
            text.replace_range(at..&(at + 10), &script.edge().to_string());
        }
    }
    text.into_bytes()
}

fn take_plan(plan: &DiskPlan, volumes: usize) {
    let mut end = 1 << 20;
    for (at, part) in plan.partitions.iter().enumerate() {
        assert_eq!((part.number as usize, part.offset), (at + 1, end), "one behind the other");
        assert!(part.size > 0 && part.offset % (1 << 20) == 0);
        end = part.offset.checked_add(part.size).expect("a place on a disk");
    }
    assert!(end < plan.size && plan.volumes().count() == volumes);
    let again: DiskPlan = serde_json::from_slice(&serde_json::to_vec(plan).expect("plain data")).expect("plain data");
    assert_eq!(again, *plan, "it is stored and compared");
}

fn inventory_sample() -> Vec<u8> {
    let mut source = fixture::source(vec![
        fixture::volume(1, "/", "btrfs", 1 << 30, 1 << 20),
        fixture::volume(2, "/srv", "xfs", 1 << 30, 1 << 30),
        fixture::volume(3, "/var", "ext4", 1 << 30, 1 << 30),
    ]);
    source.volumes[0].subvolume = Some("/@rootfs".into());
    source.volumes[0].extra_subvolumes = 1;
    source.swaps = vec![fixture::swap("/dev/sda5", "22222222-2222-4222-8222-222222222222"), fixture::swap("/swap", "")];
    source.system_partition = Some(standin_model::SystemPartition {
        mount_point: "/boot/efi".into(),
        uuid: "ABCD-1234".into(),
        label: "EFI".into(),
        size: standin_model::ByteLen(1 << 30),
    });
    let wanted = fixture::all(&source);
    serde_json::to_vec(&(source, wanted)).expect("plain data")
}

#[test]
fn the_samples_are_good() {
    let committed = standin_fuzz::seeds(FOLDER, "inventory", &[("debian", inventory_sample())]);
    let (source, wanted) = serde_json::from_slice::<(Inventory, Vec<VolumeSpec>)>(&committed[0].1).expect("an inventory");
    take_plan(&DiskPlan::make(&source, &wanted, 1 << 40).expect("it can be protected"), 3);
}

/// A header that asks for memory or for a place beyond every disk is refused before anything is done for it.
#[test]
fn a_partition_table_beyond_all_bounds_is_refused() {
    let plan = fixture::installed("/dev/sda1");
    for (at, number) in [(80, u32::MAX), (80, 129), (84, u32::MAX), (84, 0), (76, u32::MAX)] {
        let mut file = disk(&plan);
        gpt::write(&mut file, Path::new("disk"), &plan).unwrap();
        // Without its copy, which would be taken instead.
        file.write_all_at(&[0; TABLE - SECTOR], plan.size - (TABLE - SECTOR) as u64).unwrap();
        let mut front = read_at(&file, 0, TABLE);
        front[SECTOR + at..SECTOR + at + 4].copy_from_slice(&number.to_le_bytes());
        forge(&mut front);
        file.write_all_at(&front, 0).unwrap();
        let refused = within(64 << 10, || gpt::verify(&mut file, Path::new("disk"), &plan));
        assert!(matches!(refused, Err(DiskError::PartitionTable { .. })), "{at} {number}");
    }
}
