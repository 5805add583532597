//! Proves disk, boot repair and launch together: makes a replica disk, fills it from a root file system archive, repairs, detaches, and
//! launches it until the login prompt is on the serial console.
//!
//! `replica_boot ROOTFS.tar bios|uefi ext4|xfs|btrfs[+subvolume] scsi|blk WORK_DIRECTORY [seconds]` (as root). Prints one line of JSON; the
//! serial console stays in the work directory when it fails.

use standin_hypervisor::qemu::{Acceleration, QemuHypervisor};
use standin_hypervisor::{DiskAttachment, DiskController as VmDisk, Hypervisor, Network, NetworkCard, VmDefinition, VmFirmware};
use standin_replica::boot::{BootRepairReport, DiskController, NicMap, TargetProfile, inject, prepare};
use standin_replica::disk::{self, Attachment, Created, DiskPlan, Firmware, SourceInventory, WantedDisk};
use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const MAC: &str = "52:54:00:12:34:56";
const NIC: &str = "lan7";
const PROOF: &str = "[Unit]\nDescription=proof\n[Service]\nType=oneshot\nStandardOutput=journal+console\n\
    ExecStart=/bin/sh -c 'echo PROOF link $(ip -br link | tr -s \" \\n\" \" \"); echo PROOF root $(findmnt -no SOURCE,FSTYPE,OPTIONS /); echo PROOF boot $(findmnt -no FSTYPE /boot) swap $(wc -l < /proc/swaps) failed $(systemctl --failed --plain --no-legend | tr \"\\n\" \" \")'\n\
    [Install]\nWantedBy=multi-user.target\n";

struct Case {
    rootfs: String,
    firmware: Firmware,
    fs: String,
    subvolume: &'static str,
    controller: DiskController,
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [rootfs, firmware, fs, controller, work, rest @ ..] = words.as_slice() else {
        return Err("usage: replica_boot ROOTFS.tar bios|uefi ext4|xfs|btrfs[+subvolume] scsi|blk WORK_DIRECTORY [seconds]".into());
    };
    let case = Case {
        rootfs: rootfs.clone(),
        firmware: if firmware == "uefi" { Firmware::Uefi } else { Firmware::Bios },
        fs: fs.trim_end_matches("+subvolume").into(),
        subvolume: if fs.ends_with("+subvolume") { "@rootfs" } else { "" },
        controller: if controller == "blk" { DiskController::VirtioBlk } else { DiskController::VirtioScsi },
    };
    let limit = Duration::from_secs(rest.first().and_then(|text| text.parse().ok()).unwrap_or(300));
    // First of all, before any thread exists.
    disk::enter_private_namespace()?;
    run(&case, Path::new(work), limit)
}

fn inventory(case: &Case) -> Result<SourceInventory, Box<dyn Error>> {
    // /boot is a volume of its own on all but the subvolume layout, so that both ways of finding it are proven.
    let mut volumes = vec![serde_json::json!({
        "id": 1, "mount_point": "/", "fs_type": case.fs, "uuid": "6a1c7a3e-0001-4c6e-9d5f-51a4d1e00001", "label": "root",
        "size": 3u64 << 30, "used": 1u64 << 30, "subvolume": case.subvolume, "device_names": ["/dev/sda1"]
    })];
    if case.subvolume.is_empty() && case.controller == DiskController::VirtioBlk {
        volumes.push(serde_json::json!({
            "id": 2, "mount_point": "/boot", "fs_type": "ext4", "uuid": "6a1c7a3e-0002-4c6e-9d5f-51a4d1e00002",
            "size": 512u64 << 20, "used": 100u64 << 20, "device_names": ["/dev/sda2"]
        }));
    }
    Ok(serde_json::from_value(serde_json::json!({
        "firmware": case.firmware, "volumes": volumes,
        "swaps": [{"uuid": "6a1c7a3e-0003-4c6e-9d5f-51a4d1e00003", "size": 64u64 << 20, "device_names": ["/dev/sda5"]}],
        "esp": {"volume_id": "ABCD-1234", "mount_point": "/boot/efi"}
    }))?)
}

fn profile(case: &Case) -> TargetProfile {
    TargetProfile {
        firmware: case.firmware,
        controller: case.controller,
        nic_driver: "virtio_net".into(),
        nics: vec![NicMap { name: NIC.into(), old_mac: MAC.into(), new_mac: MAC.into() }],
        kernel_arguments: vec!["console=ttyS0".into()],
        platform_changed: true,
    }
}

fn run(case: &Case, work: &Path, limit: Duration) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(work)?;
    let image = work.join("replica.raw");
    disk::remove(&image)?;
    let plan = DiskPlan::make(&inventory(case)?, &WantedDisk::default(), disk::datastore_free(work)?)?;
    let started = Instant::now();
    disk::create(&image, &plan)?;
    let made_ms = started.elapsed().as_millis();
    assert_eq!(disk::create(&image, &plan)?, Created::Reused);
    let attachment = Attachment::attach(&image, &work.join("run"))?;
    fill(case, &attachment)?;
    let repaired = repair(case, &attachment, &plan, work)?;
    let started = Instant::now();
    attachment.detach().map_err(|(_, error)| error)?;
    let detached_ms = started.elapsed().as_millis();
    let (prompt_s, proof) = launch(case, &image, work, limit)?;
    println!(
        "{}",
        serde_json::json!({
            "firmware": case.firmware, "fs": case.fs, "subvolume": case.subvolume, "controller": case.controller,
            "disk_made_ms": made_ms, "prepare_ms": repaired.0, "inject_ms": repaired.1.milliseconds, "detach_ms": detached_ms,
            "login_prompt_s": prompt_s, "changes": repaired.1.changes.len(), "proof": proof,
        })
    );
    Ok(())
}

/// Stands for replication: a plain copy of the source's tree.
fn fill(case: &Case, attachment: &Attachment) -> Result<(), Box<dyn Error>> {
    let root = attachment.volume_path(1);
    std::fs::create_dir_all(root.join("boot"))?;
    std::fs::create_dir_all(root.join("boot/efi"))?;
    let assembled = disk::assemble(attachment)?;
    let target = assembled.root();
    let status = Command::new("tar").args(["--numeric-owner", "--xattrs", "-xf", &case.rootfs, "-C"]).arg(target).status()?;
    if !status.success() {
        return Err("tar failed".into());
    }
    let fstab = format!(
        "/dev/sda1 / {} defaults{} 0 1\n{}/dev/sda5 none swap sw 0 0\n/dev/sdb1 /data xfs defaults 0 2\n",
        case.fs,
        if case.subvolume.is_empty() { "" } else { ",subvol=@rootfs" },
        if attachment.plan().volume(2).is_some() { "/dev/sda2 /boot ext4 defaults 0 2\n" } else { "" },
    );
    std::fs::write(target.join("etc/fstab"), fstab)?;
    std::fs::write(target.join("etc/systemd/system/proof.service"), PROOF)?;
    let wants = target.join("etc/systemd/system/multi-user.target.wants");
    std::fs::create_dir_all(&wants)?;
    std::os::unix::fs::symlink("../proof.service", wants.join("proof.service"))?;
    Ok(())
}

fn repair(case: &Case, attachment: &Attachment, plan: &DiskPlan, work: &Path) -> Result<(u128, BootRepairReport), Box<dyn Error>> {
    let assembled = disk::assemble(attachment)?;
    let (profile, staging) = (profile(case), work.join("staging"));
    let started = Instant::now();
    prepare(assembled.root(), plan, &profile, &staging)?;
    let prepared_ms = started.elapsed().as_millis();
    let report = inject(assembled.root(), attachment.disk(), plan, &profile, &staging)?;
    for change in &report.changes {
        eprintln!("  {}: {} ({})", change.path, change.what, change.why);
    }
    for warning in &report.warnings {
        eprintln!("  warning: {warning}");
    }
    // What a resumed failover does: the second run must find nothing left to do but the copies.
    let again = inject(assembled.root(), attachment.disk(), plan, &profile, &staging)?;
    assert!(again.changes.len() <= report.changes.len());
    Ok((prepared_ms, report))
}

fn launch(case: &Case, image: &Path, work: &Path, limit: Duration) -> Result<(f64, Vec<String>), Box<dyn Error>> {
    let host = QemuHypervisor::open(&work.join("vm"), Acceleration::Emulate)?;
    let vm = VmDefinition {
        name: "replica".into(),
        owner: "proof".into(),
        cpus: 2,
        memory_bytes: 1 << 30,
        firmware: if case.firmware == Firmware::Uefi { VmFirmware::Uefi } else { VmFirmware::Bios },
        controller: if case.controller == DiskController::VirtioBlk { VmDisk::VirtioBlk } else { VmDisk::VirtioScsi },
        cards: vec![NetworkCard { mac: MAC.into(), network: Network::User { forward_ssh: None } }],
    };
    host.destroy("replica")?;
    host.define(&vm)?;
    host.attach_disk("replica", &DiskAttachment { base: image.into(), overlay: None })?;
    let started = Instant::now();
    host.power_on("replica")?;
    let console = host.console_log("replica")?;
    loop {
        let text = String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
        let proof: Vec<String> = text.lines().filter_map(|line| line.split_once("PROOF ")).map(|(_, rest)| rest.trim().into()).collect();
        if text.contains("login:") && proof.len() >= 3 {
            let seconds = started.elapsed().as_secs_f64();
            host.destroy("replica")?;
            return Ok((seconds, proof));
        }
        if started.elapsed() > limit {
            std::fs::copy(&console, work.join("console.log"))?;
            host.destroy("replica")?;
            return Err(format!("no login prompt; see {}", work.join("console.log").display()).into());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
