//! Points of real disks. Needs root and loop devices; where they lack, the tests say so and pass.

use super::*;
use crate::disk::{self, Attachment, DiskPlan, LoopDevice, fixture};
use standin_model::{MarkName, OpSeq, PointKind, Timestamp, VolumeId};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const VICTIM: &str = "STANDIN_POINT_VICTIM";

fn plan(test: u8) -> DiskPlan {
    let volume = |number, mount_point, kind, size| {
        let uuid = format!("7b1c7a3e-1{test}0{number}-4c6e-9d5f-51a4d1e0000{number}");
        standin_model::Volume { uuid, ..fixture::volume(number, mount_point, kind, size, 0) }
    };
    let volumes = vec![volume(1, "/", "ext4", 64 * MIB), volume(2, "/srv", "xfs", 320 * MIB), volume(3, "/var", "btrfs", 256 * MIB)];
    fixture::plan(&fixture::source(volumes))
}

fn can_mount(directory: &Path) -> bool {
    let probe = directory.join("probe");
    std::fs::File::create(&probe).and_then(|file| file.set_len(MIB)).unwrap();
    let able = rustix::process::geteuid().is_root() && LoopDevice::bind(&probe, 0, MIB).is_ok();
    if !able {
        eprintln!("SKIPPED: needs root and loop devices");
    }
    able
}

fn request(seq: u64) -> Draft {
    let request = PointRequest {
        kind: PointKind::Manual,
        name: MarkName::parse("before"),
        seq: OpSeq(seq),
        captured_at: None,
        taken_at: Timestamp(1),
        consistent: true,
    };
    Draft { request, tries: 0 }
}

/// A disk with one file on each volume, and a node table with its roots as files.
fn make(directory: &Path, test: u8) -> (PathBuf, PathBuf) {
    let (disk, table) = (directory.join("disk.raw"), directory.join("nodes.redb"));
    disk::create(&disk, &plan(test)).unwrap();
    std::fs::write(&table, b"table").unwrap();
    std::fs::write(roots_of(&table), b"[]").unwrap();
    (disk, table)
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_point_is_the_disk_as_it_was_and_the_disk_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    if !can_mount(directory.path()) {
        return;
    }
    let (disk, table) = make(directory.path(), 1);
    let (points, launch) = (directory.path().join("points"), directory.path().join("launch"));
    disk::in_private_namespace(|| {
        let attachment = Attachment::attach(&disk, &directory.path().join("run"))?;
        let held = Held { attachment: &attachment, table: &table, directory: &points, copy_bytes_max: u64::MAX };
        let write = |content: &str| {
            for volume in 0..3 {
                std::fs::write(attachment.volume_path(VolumeId(volume)).join("file"), content).unwrap();
            }
        };
        write("as it was");
        let refused = take(&request(7), Held { copy_bytes_max: 0, ..held });
        if !disk::can_reflink(directory.path()) {
            assert_eq!(refused.unwrap_err().code(), "STANDIN-E3021");
            assert_eq!(names(&points), [""; 0], "a refusal leaves nothing");
        }
        let point = take(&request(7), held).unwrap();
        assert_eq!(point.id(), "7-manual-before");
        // Thawed: this would hang otherwise.
        write("as it is now");
        assert_eq!(take(&request(7), held).unwrap(), point, "taken once");
        assert_eq!(list(&points).unwrap(), std::slice::from_ref(&point));
        assert_eq!(names(&points), ["7-manual-before"]);
        attachment.detach().map(drop).map_err(|(_, error)| error)
    })
    .unwrap();
    assert_eq!(make_launch(&points, "8-regular", &launch).unwrap_err().code(), "STANDIN-E3025");
    make_launch(&points, "7-manual-before", &launch).unwrap();
    disk::in_private_namespace(|| {
        let attachment = Attachment::attach(&LaunchFiles::of(&launch).disk, &directory.path().join("run"))?;
        for volume in 0..3 {
            let path = attachment.volume_path(VolumeId(volume)).join("file");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "as it was", "volume {volume}");
            std::fs::write(path, "the machine ran").unwrap();
        }
        attachment.detach().map(drop).map_err(|(_, error)| error)
    })
    .unwrap();
    // A finished duplicate is not made anew beneath its machine, and the point does not know of any of it.
    assert_eq!(make_launch(&points, "7-manual-before", &launch).unwrap(), 0);
    remove(&points, "7-manual-before").unwrap();
    remove(&points, "7-manual-before").unwrap();
    assert_eq!(names(&points), [""; 0]);
}

#[test]
fn what_a_crash_left_is_told_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let points = directory.path().join("points");
    for name in ["draft", "gone-3-regular", "foreign"] {
        std::fs::create_dir_all(points.join(name)).unwrap();
    }
    std::fs::write(points.join("gone-3-regular/disk.raw"), b"x").unwrap();
    assert!(list(&points).unwrap().is_empty());
    sweep(&points).unwrap();
    assert_eq!(names(&points), ["draft", "foreign"]);
    assert_eq!(draft_of(&points), None);
    let mut draft = request(4);
    for (tries, known) in [(2, true), (3, false)] {
        draft.tries = tries;
        std::fs::write(points.join("draft/request.json"), serde_json::to_vec(&draft).unwrap()).unwrap();
        assert_eq!(draft_of(&points).is_some(), known, "{tries}");
    }
    drop_draft(&points).unwrap();
    assert_eq!(names(&points), ["foreign"]);
}

/// The test runs itself once more; that process freezes all three kinds of file system and is gone.
#[test]
fn a_killed_worker_leaves_nothing_frozen() {
    let directory = tempfile::tempdir().unwrap();
    if let Ok(at) = std::env::var(VICTIM) {
        let at = Path::new(&at);
        disk::enter_private_namespace().unwrap();
        let attachment = Attachment::attach(&at.join("disk.raw"), &at.join("run")).unwrap();
        let _frozen = disk::Frozen::freeze(&attachment).unwrap();
        std::process::abort();
    }
    if !can_mount(directory.path()) {
        return;
    }
    let (disk, _) = make(directory.path(), 2);
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "point::tests::a_killed_worker_leaves_nothing_frozen"]);
    let status = again.env(VICTIM, directory.path()).status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "it could not freeze");
    assert_eq!(LoopDevice::bound_to(&disk).len(), 3, "a freeze outlives its process");
    let run = directory.path().join("run");
    let thawed = disk::in_private_namespace(|| disk::thaw_leftover(&disk, &plan(2), &disk::scratch_of(&run))).unwrap();
    assert_eq!(thawed, 3);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !LoopDevice::bound_to(&disk).is_empty() {
        assert!(Instant::now() < deadline, "a loop device stays");
        std::thread::sleep(Duration::from_millis(10));
    }
    disk::in_private_namespace(|| {
        let attachment = Attachment::attach(&disk, &run)?;
        for volume in 0..3 {
            std::fs::write(attachment.volume_path(VolumeId(volume)).join("file"), b"written").unwrap();
        }
        attachment.detach().map(drop).map_err(|(_, error)| error)
    })
    .unwrap();
}
