//! Makes, attaches and detaches real disks. Needs root and loop devices; where they lack, the tests say so and pass.

use super::*;
use crate::disk::{Created, assemble, create, fixture, plan_path};
use standin_model::{ByteLen, SystemPartition};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// mkfs.btrfs refuses a UUID that any device of the host carries, so tests that run at once need different ones.
fn plan(test: u8, subvolume: &str) -> DiskPlan {
    let volume = |number, mount_point, kind, size| {
        let uuid = format!("6a1c7a3e-1{test}0{number}-4c6e-9d5f-51a4d1e0000{number}");
        standin_model::Volume { uuid, ..fixture::volume(number, mount_point, kind, size, 0) }
    };
    let mut volumes = vec![volume(1, "/", "btrfs", 256 * MIB), volume(2, "/srv", "xfs", 320 * MIB), volume(3, "/boot", "ext4", 64 * MIB)];
    volumes[0].label = "root".into();
    volumes[0].subvolume = Some(format!("/{subvolume}"));
    volumes[0].features = ["extref", "skinny-metadata", "free-space-tree"].map(str::to_owned).into();
    volumes[1].features = ["crc", "finobt", "sparse", "ftype"].map(str::to_owned).into();
    volumes[2].features =
        ["has_journal", "ext_attr", "dir_index", "filetype", "extent", "sparse_super", "large_file", "project"].map(str::to_owned).into();
    volumes[2].nodes_used = 16_000;
    let mut source = fixture::source(volumes);
    source.swaps = vec![fixture::swap("/dev/sda5", "6a1c7a3e-1004-4c6e-9d5f-51a4d1e00004")];
    source.system_partition =
        Some(SystemPartition { mount_point: "/boot/efi".into(), uuid: "ABCD-1234".into(), label: "EFI".into(), size: ByteLen(0) });
    fixture::plan(&source)
}

/// The reason for a skip, if the machine cannot run these tests.
fn obstacle(directory: &Path) -> Option<&'static str> {
    let probe = directory.join("probe");
    File::create(&probe).and_then(|file| file.set_len(1 << 20)).ok()?;
    if !rustix::process::geteuid().is_root() {
        return Some("not root");
    }
    LoopDevice::bind(&probe, 0, 1 << 20).is_err().then_some("no loop devices")
}

fn identity_of(disk: &Path, offset: u64) -> String {
    let output = Command::new("blkid").args(["-p", "-O", &offset.to_string(), "-o", "export"]).arg(disk).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_disk_lives_through_create_attach_and_detach() {
    let directory = tempfile::tempdir().unwrap();
    if let Some(reason) = obstacle(directory.path()) {
        eprintln!("SKIPPED: {reason}");
        return;
    }
    let (disk, run) = (directory.path().join("replica.raw"), directory.path().join("run"));
    let plan = plan(0, "@rootfs");
    // An unfinished attempt is in the way.
    std::fs::write(&disk, b"half").unwrap();
    assert!(matches!(Attachment::attach(&disk, &run), Err(DiskError::NotFinished { .. })));
    assert_eq!(create(&disk, &plan).unwrap(), Created::New);
    for (part, volume) in plan.volumes() {
        assert!(identity_of(&disk, part.offset).contains(&format!("UUID={}", volume.source.uuid)), "{}", volume.source.mount_point);
    }
    assert!(identity_of(&disk, plan.esp().unwrap().offset).contains("UUID=ABCD-1234"));
    in_private_namespace(|| {
        let attachment = Attachment::attach(&disk, &run)?;
        for mount_point in ["srv", "boot"] {
            std::fs::create_dir(attachment.volume_path(VolumeId(0)).join(mount_point)).unwrap();
        }
        let tree = assemble(&attachment)?;
        std::fs::write(tree.root().join("srv/file"), b"content").unwrap();
        drop(tree);
        assert_eq!(std::fs::read(attachment.volume_path(VolumeId(1)).join("file")).unwrap(), b"content");
        let detached = attachment.detach().map_err(|(_, error)| error)?;
        assert_eq!(detached.disk(), disk);
        Ok(())
    })
    .unwrap();
    assert_eq!(create(&disk, &plan).unwrap(), Created::Reused);
    assert_eq!(create(&disk, &self::plan(0, "")).unwrap_err().code(), "STANDIN-E3008");
    assert!(!run.join("1/file").exists(), "the mounts were private");
    // A truncated disk is not taken for a finished one.
    File::options().write(true).open(&disk).unwrap().set_len(plan.size - 512).unwrap();
    assert_eq!(create(&disk, &plan).unwrap_err().code(), "STANDIN-E3009");
    crate::disk::remove(&disk).unwrap();
    assert!(!plan_path(&disk).exists());
}

/// What the tools made is read back with the tools: nothing that the source lacks, and its inodes.
#[test]
fn the_replicas_file_systems_have_no_feature_that_the_source_lacks() {
    let directory = tempfile::tempdir().unwrap();
    if let Some(reason) = obstacle(directory.path()) {
        eprintln!("SKIPPED: {reason}");
        return;
    }
    let disk = directory.path().join("replica.raw");
    let plan = plan(2, "@rootfs");
    create(&disk, &plan).unwrap();
    let said = |volume: u16, program: &str, arguments: &[&str]| {
        let part = plan.volume(VolumeId(volume)).unwrap();
        let device = LoopDevice::bind(&disk, part.offset, part.size).unwrap();
        let output = Command::new(program).args(arguments).arg(device.path()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let ext4 = said(2, "dumpe2fs", &["-h"]);
    let features = ext4.lines().find_map(|line| line.strip_prefix("Filesystem features:")).unwrap_or_else(|| panic!("{ext4}"));
    let mut features: Vec<_> = features.split_whitespace().collect();
    features.sort();
    // Only where this kernel takes them; otherwise no file system with them could be attached.
    features.retain(|name| *name != "project" || !crate::disk::projects::are_possible(&disk));
    assert_eq!(features, ["dir_index", "ext_attr", "extent", "filetype", "has_journal", "large_file", "sparse_super"]);
    let inodes = ext4.lines().find_map(|line| line.strip_prefix("Inode count:")).unwrap().trim().parse::<u64>().unwrap();
    assert!(inodes >= 19_000, "{inodes}");
    let xfs = said(1, "xfs_db", &["-r", "-c", "version"]);
    assert!(xfs.contains("FINOBT") && !xfs.contains("REFLINK") && !xfs.contains("BIGTIME"), "{xfs}");
    let btrfs = said(0, "btrfs", &["inspect-internal", "dump-super"]);
    assert!(btrfs.contains("SKINNY_METADATA") && !btrfs.contains("NO_HOLES"), "{btrfs}");
}

#[test]
fn a_busy_volume_stops_the_detach_and_can_be_repeated() {
    let directory = tempfile::tempdir().unwrap();
    if let Some(reason) = obstacle(directory.path()) {
        eprintln!("SKIPPED: {reason}");
        return;
    }
    let (disk, run) = (directory.path().join("replica.raw"), directory.path().join("run"));
    create(&disk, &plan(1, "")).unwrap();
    in_private_namespace(|| {
        let attachment = Attachment::attach(&disk, &run)?;
        let held = File::create(attachment.volume_path(VolumeId(2)).join("held")).unwrap();
        let mut attachment = attachment;
        attachment.wait = Duration::from_millis(50);
        let (attachment, error) = attachment.detach().unwrap_err();
        assert_eq!(error.code(), "STANDIN-E3012");
        drop(held);
        attachment.detach().map(drop).map_err(|(_, error)| error)
    })
    .unwrap();
}
