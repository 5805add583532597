//! The lab's test of itself, without any product of ours: what it says about a replica later is worth no more than this.
//!
//! A guest with special files and a database under load loses its power; after a second boot the witness must hold. Then the disk
//! is compared with a copy in which a few known things were changed, and exactly those must be found.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::compare::{self, Log};
use crate::lab::space::{Access, Space};
use crate::lab::vm::BOOT_LIMIT;
use crate::lab::{Combo, Image, Run, Vm, VmOptions};
use crate::{specials, workload};

/// What is changed in the copy, and what the comparison has to say about it.
const CHANGES: &[(&str, &str, &str)] = &[
    ("printf X | dd of=sparse bs=1 seek=1048576 conv=notrunc status=none && touch -r old sparse", "sparse", "content"),
    ("setfattr -n user.text -v HELLO attributes", "attributes", "attributes"),
    ("setfacl -b acl", "acl", "attributes"),
    ("setfattr -x security.capability capable", "capable", "attributes"),
    ("chattr -d flags/d", "flags/d", "flags"),
    ("setfattr -n security.selinux -v other labelled", "labelled", "attributes"),
    ("chmod 700 owned", "owned", "mode"),
    ("chown 1:1 closed", "closed", "owner"),
    ("cp -p links/one near && mv near links/two", "links/two", "links"),
    ("fallocate -p -o 0 -l 4096 allocated && touch -d 2000-01-01 allocated", "allocated", "modified"),
    ("rm fifo", "fifo", "missing"),
    ("mknod -m 600 new c 1 5", "new", "extra"),
    ("ln -sfn elsewhere links/dangling", "links/dangling", "kind"),
];

const FOLDER: &str = "srv/specials";

/// Runs all of it on one combination.
pub fn run(run: &Run, combo: Combo) -> Result<String> {
    let built = Image::build(combo)?;
    let disk = built.disk.overlay(run.artifacts().join("guest.qcow2"))?;
    let mut vm = Vm::start(run, VmOptions::new("before", combo.firmware, vec![disk.clone()]))?;
    vm.wait_for_ssh(BOOT_LIMIT)?;
    run.say(&format!("the guest answers after {:.1} s", vm.age().as_secs_f64()));
    specials::make(&mut vm, &format!("/{FOLDER}"))?;
    run.say("special files made");
    let mut load = workload::start(&mut vm, workload::Load::default())?;
    load.wait_for(100, Duration::from_secs(120))?;
    vm.kill();
    let committed = load.end();
    run.say(&format!("{} transactions were confirmed when the plug was pulled", committed.len()));

    let mut vm = Vm::start(run, VmOptions::new("after", combo.firmware, vec![disk.clone()]))?;
    vm.wait_for_ssh(BOOT_LIMIT)?;
    let verdict = workload::verify(&mut vm, &committed)?;
    ensure!(verdict.missing.is_empty(), "{} confirmed transactions are missing: {:?}", verdict.missing.len(), verdict.missing);
    run.say("all of them are there after the second boot");
    vm.shut_down(Duration::from_secs(120))?;

    let left = disk.flatten(run.artifacts().join("left.img"))?;
    let right = disk.flatten(run.artifacts().join("right.img"))?;
    let same = compare::disks(&left.path, &right.path, Log::Ignored, &[])?;
    ensure!(same.differences.is_empty(), "a copy differs from its disk: {:?}", same.differences);
    change(&right.path, &built)?;
    find(&left.path, &right.path)?;
    Ok(format!(
        "{}: {} confirmed transactions survived a power cut; of {} entries exactly the {} changed ones were found",
        combo.name(),
        verdict.confirmed,
        same.entries,
        CHANGES.len()
    ))
}

fn change(disk: &Path, built: &Image) -> Result<()> {
    let space = Space::new()?;
    let root = space.folder("root")?;
    space.mount(disk, built.layout.root, built.combo.root, &root, Access::ReadWrite)?;
    for (script, ..) in CHANGES {
        let script = format!("cd {}/{FOLDER} && {{ {script}; }}", root.display());
        space.run(&["sh", "-c", &script], Duration::from_secs(20))?;
    }
    space.unmount(&root)
}

fn find(left: &Path, right: &Path) -> Result<()> {
    let report = compare::disks(left, right, Log::Ignored, &[])?;
    for (script, path, what) in CHANGES {
        let path = format!("{FOLDER}/{path}");
        let found = report.differences.iter().any(|one| one.path == path && one.what == *what);
        ensure!(found, "`{script}` was not found as {what} of {path}");
    }
    // The folders themselves have other times now, and the second hard link of a pair that was torn is told on either name.
    let near = |path: &str| path == FOLDER || path.starts_with(&format!("{FOLDER}/"));
    let told: BTreeSet<&str> = report.differences.iter().map(|one| one.path.as_str()).collect();
    let strange: Vec<&&str> = told.iter().filter(|path| !near(path)).collect();
    ensure!(strange.is_empty(), "differences where nothing was changed: {strange:?}");
    let changed: BTreeSet<String> = CHANGES.iter().map(|(_, path, _)| format!("{FOLDER}/{path}")).collect();
    let beside = told.iter().filter(|path| !changed.contains(**path)).count();
    ensure!(beside <= 2, "more than the two folders differ beside the changed files: {told:?}");
    Ok(())
}
