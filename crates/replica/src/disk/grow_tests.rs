//! Growth of real disks. Needs root and loop devices; where they lack, the tests say so and pass.

use super::*;
use crate::disk::{Attachment, allocated_bytes, create, fixture, in_private_namespace};

const MIB: u64 = 1 << 20;

fn plan(test: u8) -> DiskPlan {
    let volume = |number, mount_point, kind, size| {
        let uuid = format!("6a1c7a3e-7{test}0{number}-4c6e-9d5f-51a4d1e0000{number}");
        standin_model::Volume { uuid, ..fixture::volume(number, mount_point, kind, size, 0) }
    };
    let mut source = fixture::source(vec![
        volume(1, "/", "ext4", 64 * MIB),
        volume(2, "/a", "xfs", 320 * MIB),
        volume(3, "/b", "btrfs", 256 * MIB),
        volume(4, "/c", "ext4", 64 * MIB),
    ]);
    source.swaps = vec![fixture::swap("/dev/sda5", "6a1c7a3e-1004-4c6e-9d5f-51a4d1e00007")];
    fixture::plan(&source)
}

fn wish(volume: u16, size: u64) -> VolumeSize {
    VolumeSize { volume: VolumeId(volume), size }
}

#[test]
fn a_volume_moves_behind_all_others_once_and_then_grows_where_it_is() {
    let plan = plan(0);
    let end = plan.size - MIB;
    assert_eq!(planned(&plan, &[wish(0, 64 * MIB), wish(9, 1 << 40), wish(1, VOLUME_BYTES_MAX)]), (plan.clone(), Vec::new()));
    let (once, growths) = planned(&plan, &[wish(0, 100 * MIB + 1)]);
    let expected =
        Growth { volume: VolumeId(0), from: plan.volume(VolumeId(0)).unwrap().offset, to: end, before: 64 * MIB, after: 101 * MIB };
    assert_eq!(growths, [expected]);
    assert_eq!((once.size, once.partitions.len()), (end + 102 * MIB, plan.partitions.len()));
    let (twice, growths) = planned(&once, &[wish(0, 200 * MIB)]);
    assert_eq!(growths, [Growth { volume: VolumeId(0), from: end, to: end, before: 101 * MIB, after: 200 * MIB }]);
    assert_eq!(twice.size, end + 201 * MIB);
    let (both, growths) = planned(&plan, &[wish(0, 100 * MIB), wish(1, 400 * MIB)]);
    let places: Vec<_> = growths.iter().map(|growth| growth.to).collect();
    assert_eq!((places, both.size), (vec![end, end + 100 * MIB], end + 501 * MIB));
    for (one, other) in both.partitions.iter().flat_map(|one| both.partitions.iter().map(move |other| (one, other))) {
        let apart = one.offset + one.size <= other.offset || other.offset + other.size <= one.offset;
        assert!(one.number == other.number || apart, "{one:?} and {other:?}");
    }
}

fn obstacle(directory: &Path) -> Option<&'static str> {
    let probe = directory.join("probe");
    File::create(&probe).and_then(|file| file.set_len(1 << 20)).ok()?;
    if !rustix::process::geteuid().is_root() {
        return Some("not root");
    }
    LoopDevice::bind(&probe, 0, 1 << 20).is_err().then_some("no loop devices")
}

fn size_of(attachment: &Attachment, volume: u16) -> u64 {
    let stat = rustix::fs::statvfs(&attachment.volume_path(VolumeId(volume))).unwrap();
    stat.f_blocks * stat.f_frsize
}

/// Every kind of file system grows with its content, by moving and then in place; a crash in the middle changes nothing.
#[test]
fn file_systems_grow_with_their_disk_and_keep_their_files() {
    let dir = tempfile::tempdir().unwrap();
    if let Some(why) = obstacle(dir.path()) {
        return println!("skipped: {why}");
    }
    let (disk, run) = (dir.path().join("disk.raw"), dir.path().join("run"));
    let plan = plan(1);
    create(&disk, &plan).unwrap();
    let content = |volume: u16| vec![volume as u8 + 1; 3 << 20];
    let before = in_private_namespace(|| {
        let attachment = Attachment::attach(&disk, &run)?;
        for volume in 0..4 {
            std::fs::write(attachment.volume_path(VolumeId(volume)).join("file"), content(volume)).unwrap();
        }
        let sizes: Vec<u64> = (0..4).map(|volume| size_of(&attachment, volume)).collect();
        attachment.detach().map(|_| sizes).map_err(|(_, error)| error)
    })
    .unwrap();
    // What a crash before the commit leaves: a longer file with something at its end.
    let file = File::options().write(true).open(&disk).unwrap();
    file.set_len(plan.size + 64 * MIB).unwrap();
    file.write_all_at(&[0xee; 4096], plan.size + 10 * MIB).unwrap();
    assert_eq!(grow(&disk, &[]).unwrap(), []);
    assert_eq!(file.metadata().unwrap().len(), plan.size);
    let wanted = [wish(0, 96 * MIB), wish(1, 512 * MIB), wish(2, 400 * MIB), wish(3, 80 * MIB)];
    assert_eq!(grow(&disk, &wanted).unwrap(), [0, 1, 2, 3].map(VolumeId));
    // The same again is nothing; a table that was not written yet is made up for.
    file.write_all_at(&[0; 4096], 512).unwrap();
    assert_eq!(grow(&disk, &wanted).unwrap(), []);
    let grown = finished_plan(&disk).unwrap().unwrap();
    gpt::verify(&mut file_to_read(&disk), &disk, &grown).unwrap();
    in_private_namespace(|| {
        let attachment = Attachment::attach(&disk, &run)?;
        assert_eq!(attachment.grown().len(), 4);
        for (volume, before) in (0..4).zip(&before) {
            assert_eq!(std::fs::read(attachment.volume_path(VolumeId(volume)).join("file")).unwrap(), content(volume));
            assert!(size_of(&attachment, volume) > before + 12 * MIB, "volume {volume}");
        }
        assert!(attachment.grown().iter().all(|(_, done)| done.is_ok()), "{:?}", attachment.grown());
        attachment.detach().map(drop).map_err(|(_, error)| error)?;
        let again = Attachment::attach(&disk, &run)?;
        assert!(again.grown().is_empty(), "{:?}", again.grown());
        again.detach().map(drop).map_err(|(_, error)| error)?;
        // Behind all others by now.
        assert_eq!(grow(&disk, &[wish(3, 160 * MIB)])?, [VolumeId(3)]);
        let longer = Attachment::attach(&disk, &run)?;
        assert!(size_of(&longer, 3) > 140 * MIB);
        assert_eq!(std::fs::read(longer.volume_path(VolumeId(3)).join("file")).unwrap(), content(3));
        longer.detach().map(drop).map_err(|(_, error)| error)
    })
    .unwrap();
    let moved = plan.volume(VolumeId(1)).unwrap();
    let left = duplicate::data_bytes(&file_to_read(&disk), moved.offset, moved.offset + moved.size).unwrap();
    assert_eq!(left, 0, "the old place still takes space");
    assert!(allocated_bytes(&disk).unwrap() < grown.size / 2);
}

fn file_to_read(disk: &Path) -> File {
    File::open(disk).unwrap()
}
