//! Makes, attaches and detaches real disks. Needs root and loop devices; where they lack, the tests say so and pass.

use super::*;
use crate::disk::{Created, SourceInventory, WantedDisk, assemble, create, plan_path};
use std::process::Command;

/// mkfs.btrfs refuses a UUID that any device of the host carries, so tests that run at once need different ones.
fn plan(test: u8, subvolume: &str) -> DiskPlan {
    let text = format!(
        r#"{{"firmware":"bios","volumes":[
        {{"id":1,"mount_point":"/","fs_type":"btrfs","uuid":"6a1c7a3e-1{test}01-4c6e-9d5f-51a4d1e00001","label":"root","size":268435456,"used":0,"subvolume":"{subvolume}"}},
        {{"id":2,"mount_point":"/srv","fs_type":"xfs","uuid":"6a1c7a3e-1002-4c6e-9d5f-51a4d1e00002","label":"srv","size":335544320,"used":0}},
        {{"id":3,"mount_point":"/boot","fs_type":"ext4","uuid":"6a1c7a3e-1003-4c6e-9d5f-51a4d1e00003","size":67108864,"used":0,"features":{{"inode_size":256,"inode_count":20000}}}}],
        "swaps":[{{"uuid":"6a1c7a3e-1004-4c6e-9d5f-51a4d1e00004","label":"swap","size":1048576}}],
        "esp":{{"volume_id":"ABCD-1234","label":"EFI","mount_point":"/boot/efi"}}}}"#
    );
    let source: SourceInventory = serde_json::from_str(&text).unwrap();
    DiskPlan::make(&source, &WantedDisk::default(), 1 << 40).unwrap()
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
    for (part, _, volume) in plan.volumes() {
        assert!(identity_of(&disk, part.offset).contains(&format!("UUID={}", volume.uuid)), "{}", volume.mount_point);
    }
    assert!(identity_of(&disk, plan.esp().unwrap().offset).contains("UUID=ABCD-1234"));
    in_private_namespace(|| {
        let attachment = Attachment::attach(&disk, &run)?;
        for mount_point in ["srv", "boot"] {
            std::fs::create_dir(attachment.volume_path(1).join(mount_point)).unwrap();
        }
        let tree = assemble(&attachment)?;
        std::fs::write(tree.root().join("srv/file"), b"content").unwrap();
        drop(tree);
        assert_eq!(std::fs::read(attachment.volume_path(2).join("file")).unwrap(), b"content");
        let detached = attachment.detach().map_err(|(_, error)| error)?;
        assert_eq!(detached.disk(), disk);
        Ok(())
    })
    .unwrap();
    assert_eq!(create(&disk, &plan).unwrap(), Created::Reused);
    assert_eq!(create(&disk, &self::plan(0, "")).unwrap_err().code(), "STANDIN-E3008");
    assert!(!run.join("2/file").exists(), "the mounts were private");
    // A truncated disk is not taken for a finished one.
    File::options().write(true).open(&disk).unwrap().set_len(plan.size - 512).unwrap();
    assert_eq!(create(&disk, &plan).unwrap_err().code(), "STANDIN-E3009");
    crate::disk::remove(&disk).unwrap();
    assert!(!plan_path(&disk).exists());
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
        let held = File::create(attachment.volume_path(3).join("held")).unwrap();
        let mut attachment = attachment;
        attachment.wait = Duration::from_millis(50);
        let (attachment, error) = attachment.detach().unwrap_err();
        assert_eq!(error.code(), "STANDIN-E3012");
        drop(held);
        attachment.detach().map(drop).map_err(|(_, error)| error)
    })
    .unwrap();
}
