//! Power cuts: the image of a mounted file system is copied as it is on its "disk" at some item, so that only what the kernel had written by
//! then survives. The copy recovers by its own journal, and redo from the last mark must end in the oracle's tree.
//!
//! Needs root, loop devices and mkfs; a file system that cannot be made here is skipped with its reason.

use super::random;
use super::*;
use std::path::PathBuf;
use std::process::Command;

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())) }
}

/// An image with a file system, mounted in a temporary folder until dropped.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }
    fn mount_point(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    fn make(make: &[&str]) -> Result<Disk, String> {
        let disk = Disk { folder: tempfile::tempdir().unwrap() };
        // 320 MiB: a little more than the least that mkfs.xfs accepts.
        std::fs::File::create(disk.image()).unwrap().set_len(320 << 20).unwrap();
        let (program, arguments) = make.split_first().expect("a command");
        run(program, &[arguments, &[disk.image().to_str().unwrap()]].concat())?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        std::fs::create_dir_all(self.mount_point()).unwrap();
        run("mount", &["-o", "loop", self.image().to_str().unwrap(), self.mount_point().to_str().unwrap()])
    }

    fn unmount(&self) -> Result<(), String> {
        run("umount", &[self.mount_point().to_str().unwrap()])
    }

    fn open(&self) -> Applier {
        let volumes = vec![VolumeConfig { id: VolumeId(0), mount: self.mount_point(), root: ROOT }];
        Applier::open(ApplyConfig { volumes, table: self.folder.path().join("table") }).unwrap()
    }

    /// The machine loses its power now and comes back.
    fn cut_power(self, applier: Applier) -> Result<Disk, String> {
        let after = Disk { folder: tempfile::tempdir().unwrap() };
        for file in ["image", "table"] {
            let (from, to) = (self.folder.path().join(file), after.folder.path().join(file));
            run("cp", &["--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()])?;
        }
        drop(applier);
        // Before the copy is mounted, because it has the same UUID.
        drop(self);
        after.mount()?;
        Ok(after)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}

fn survive(make: &[&str], seed: u64) {
    let mut disk = match Disk::make(make) {
        Ok(disk) => disk,
        Err(reason) => return eprintln!("SKIP power cut on {}: {reason}", make[0]),
    };
    let (items, oracle) = super::mirror::history_with(seed, make[0] != "mkfs.btrfs", seed % 2 == 0);
    let mut dice = super::oracle::Random::new(seed);
    let mut reached = 0;
    for _ in 0..3 {
        let mut applier = disk.open();
        applier.redo_through(OpSeq(reached)).unwrap();
        let cut = (applier.applied().0 + dice.below(items.len() as u64 / 2)).min(items.len() as u64);
        for item in &items[applier.applied().0 as usize..cut as usize] {
            applier.apply(item).unwrap();
            if dice.below(60) == 0 {
                applier.mark().unwrap();
            }
            if dice.below(80) == 0 {
                // The kernel writes behind our back, ahead of any mark.
                rustix::fs::syncfs(std::fs::File::open(disk.mount_point()).unwrap()).unwrap();
            }
        }
        reached = reached.max(cut);
        disk = disk.cut_power(applier).unwrap();
    }
    let mut applier = disk.open();
    applier.redo_through(OpSeq(reached)).unwrap();
    let context = format!("{} seed {seed}, last redo {}..={reached}", make[0], applier.applied());
    applier.apply_segment(&items[applier.applied().0 as usize..]).unwrap();
    applier.mark().unwrap();
    super::mirror::answer_wants(&mut applier, oracle, |applier, oracle| {
        assert_eq!(applier.counters().operations_failed, 0, "{context}");
        let differences = differences(&oracle.tree(), &tree_on_disk(&disk.mount_point()));
        assert_eq!(differences, [], "{context}");
    });
    drop(applier);
}

#[test]
fn redo_after_power_cuts_gives_the_oracles_tree() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP power cuts: needs root");
    }
    let makers: [&[&str]; 3] = [&["mkfs.ext4", "-q", "-F"], &["mkfs.xfs", "-q", "-f"], &["mkfs.btrfs", "-q", "-f"]];
    for seed in random::seeds(3) {
        for make in makers {
            survive(make, seed);
        }
    }
}
