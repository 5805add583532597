//! Tests of the applier against real directories: a random history is executed by a dumb oracle and by the applier, with and without
//! crashes in between, and the trees must be the same to the last attribute.
//!
//! They need file handles, and so root; without it each test says that it is skipped.

mod check;
mod direct;
mod holes;
mod mirror;
mod oracle;
mod patch;
mod power_cut;
mod project;
mod random;

use super::*;
use crate::diff::{Kind, Manifest, differences, read_tree};
use oracle::{Oracle, ROOT};
use standin_model::*;
use std::path::Path;

/// A directory that plays the volume, and a table beside it.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new(test: &str) -> Option<Lab> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP {test}: opening by handle needs root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("volume")).unwrap();
        Some(Lab { folder })
    }

    fn volume(&self) -> std::path::PathBuf {
        self.folder.path().join("volume")
    }

    fn open(&self) -> Applier {
        let volumes = vec![VolumeConfig { id: VolumeId(0), mount: self.volume(), root: ROOT }];
        Applier::open(ApplyConfig { volumes, table: self.folder.path().join("table") }).unwrap()
    }
}

/// Whether temporary directories lie on btrfs, which lacks collapse and insert.
fn is_btrfs() -> bool {
    // BTRFS_SUPER_MAGIC of <linux/magic.h>.
    const BTRFS: u32 = 0x9123_683e;
    rustix::fs::statfs(std::env::temp_dir().as_path()).is_ok_and(|found| found.f_type as u32 == BTRFS)
}

/// The tree on disk, without what no source has.
fn tree_on_disk(path: &Path) -> Manifest {
    let mut tree = read_tree(path, &[LIMBO_NAME]).unwrap();
    for entry in tree.values_mut() {
        // Nobody reads a whiteout's times and group (of its directory, if that is set-group-id).
        if entry.kind == (Kind::CharDevice { device: 0 }) {
            (entry.modified, entry.group) = ((0, 0), 0);
        }
        // The host may label what it creates, and give it flags; the oracle knows of neither.
        entry.attributes.remove("security.selinux");
        entry.flags = 0;
    }
    tree
}

#[track_caller]
fn assert_same(lab: &Lab, oracle: &Oracle, context: &str) {
    let differences = differences(&oracle.tree(), &tree_on_disk(&lab.volume()));
    let text: Vec<String> = differences.iter().take(12).map(|difference| format!("{difference:?}")).collect();
    assert!(differences.is_empty(), "{context}: oracle ≠ disk in {} places\n{}", differences.len(), text.join("\n"));
}

fn numbered(operations: Vec<Operation>) -> Vec<Item> {
    operations.into_iter().enumerate().map(|(at, operation)| Item { seq: OpSeq(at as u64 + 1), operation }).collect()
}

fn limbo_is_empty(lab: &Lab) -> bool {
    std::fs::read_dir(lab.volume().join(".standin-limbo")).unwrap().count() == 0
}
