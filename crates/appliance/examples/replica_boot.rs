//! Proves disk, boot repair and launch together: makes a replica disk, fills it from a root file system archive, repairs, detaches, and
//! launches it until the login prompt is on the serial console.
//!
//! `replica_boot ROOTFS.tar bios|uefi ext4|xfs|btrfs[+subvolume] scsi|blk WORK_DIRECTORY [seconds]` (as root). Prints one line of JSON; the
//! serial console stays in the work directory when it fails.

use standin_hypervisor::qemu::{Acceleration, QemuHypervisor};
use standin_hypervisor::{DiskAttachment, DiskController as VmDisk, Hypervisor, Network, NetworkCard, VmDefinition, VmFirmware};
use standin_model::{Firmware, Inventory, VolumeId, VolumeSpec};
use standin_replica::boot::{BootRepairReport, DiskController, NicMap, TargetProfile, inject, prepare};
use standin_replica::disk::{self, Attachment, Created, DiskPlan};
use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const MAC: &str = "52:54:00:12:34:56";
const NIC: &str = "lan7";
const PROOF: &str = "[Unit]\nDescription=proof\n[Service]\nType=oneshot\nStandardOutput=journal+console\n\
    ExecStart=/bin/sh -c 'echo PROOF link $(ip -br link | tr -s \" \\n\" \" \"); echo PROOF root $(findmnt -no SOURCE,FSTYPE,OPTIONS /); echo PROOF agent $(systemctl is-enabled standin-agent) $(systemctl is-active standin-agent) $(ls /var/lib | grep standin); echo PROOF boot $(findmnt -no FSTYPE /boot) swap $(wc -l < /proc/swaps) failed $(systemctl --failed --plain --no-legend | tr \"\\n\" \" \")'\n\
    [Install]\nWantedBy=multi-user.target\n";
/// The unit that `standin source add` installs.
const AGENT: &str = include_str!("../../cli/src/command/standin-agent.service");

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

fn inventory(case: &Case) -> Result<Inventory, Box<dyn Error>> {
    // /boot is a volume of its own on all but the subvolume layout, so that both ways of finding it are proven.
    let volume = |number: u8, mount_point: &str, file_system: &str, mib: u64, features: &[&str]| {
        serde_json::json!({
            "mount_point": mount_point, "file_system": file_system, "file_system_name": file_system, "device": format!("/dev/sda{number}"),
            "uuid": format!("6a1c7a3e-000{number}-4c6e-9d5f-51a4d1e0000{number}"), "label": "", "size": mib << 20, "used": mib << 18,
            "nodes_used": 30_000, "extra_subvolumes": 0, "features": features,
        })
    };
    let mut root = volume(1, "/", &case.fs, 3072, features(&case.fs));
    if !case.subvolume.is_empty() {
        (root["subvolume"], root["extra_subvolumes"]) = (format!("/{}", case.subvolume).into(), 1.into());
    }
    let mut volumes = vec![root];
    if case.subvolume.is_empty() && case.controller == DiskController::VirtioBlk {
        volumes.push(volume(2, "/boot", "ext4", 512, features("ext4")));
    }
    Ok(serde_json::from_value(serde_json::json!({
        "hostname": "source", "os_name": "", "kernel_release": "", "architecture": "x86_64", "firmware": case.firmware, "cpus": 1,
        "memory": 1u64 << 30, "volumes": volumes, "network_cards": [], "capture_obstacles": [],
        "swaps": [{"device": "/dev/sda5", "uuid": "6a1c7a3e-0003-4c6e-9d5f-51a4d1e00003", "label": "", "size": 64u64 << 20},
            {"device": "/swapfile", "uuid": "", "label": "", "size": 32u64 << 20}],
        "system_partition": {"uuid": "ABCD-1234", "mount_point": "/boot/efi", "label": "", "size": 100u64 << 20},
    }))?)
}

/// What an installation of some years ago had.
fn features(file_system: &str) -> &'static [&'static str] {
    match file_system {
        "ext4" => &[
            "has_journal",
            "ext_attr",
            "resize_inode",
            "dir_index",
            "filetype",
            "extent",
            "64bit",
            "flex_bg",
            "sparse_super",
            "large_file",
            "huge_file",
            "dir_nlink",
            "extra_isize",
        ],
        "xfs" => &["crc", "finobt", "sparse", "ftype"],
        _ => &["extref", "skinny-metadata"],
    }
}

fn specs(source: &Inventory) -> Vec<VolumeSpec> {
    let spec = |(number, volume): (usize, &standin_model::Volume)| {
        Some(VolumeSpec {
            id: VolumeId(number as u16),
            mount_point: volume.mount_point.clone(),
            file_system: volume.file_system?,
            uuid: volume.uuid.clone(),
            label: volume.label.clone(),
            size: volume.size,
        })
    };
    source.volumes.iter().enumerate().filter_map(spec).collect()
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
    let source = inventory(case)?;
    let plan = DiskPlan::make(&source, &specs(&source), disk::datastore_free(work)?)?;
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
    let root = attachment.volume_path(VolumeId(0));
    std::fs::create_dir_all(root.join("boot"))?;
    std::fs::create_dir_all(root.join("boot/efi"))?;
    let assembled = disk::assemble(attachment)?;
    let target = assembled.root();
    let status = Command::new("tar").args(["--numeric-owner", "--xattrs", "-xf", &case.rootfs, "-C"]).arg(target).status()?;
    if !status.success() {
        return Err("tar failed".into());
    }
    let fstab = format!(
        "/dev/sda1 / {} defaults{} 0 1\n{}/dev/sda5 none swap sw 0 0\n/swapfile none swap sw 0 0\n/dev/sdb1 /data xfs defaults 0 2\n",
        case.fs,
        if case.subvolume.is_empty() { "" } else { ",subvol=@rootfs" },
        if attachment.plan().volume(VolumeId(1)).is_some() { "/dev/sda2 /boot ext4 defaults 0 2\n" } else { "" },
    );
    std::fs::write(target.join("etc/fstab"), fstab)?;
    std::fs::write(target.join("etc/systemd/system/proof.service"), PROOF)?;
    let wants = target.join("etc/systemd/system/multi-user.target.wants");
    std::fs::create_dir_all(&wants)?;
    std::os::unix::fs::symlink("../proof.service", wants.join("proof.service"))?;
    std::fs::write(target.join("etc/systemd/system/standin-agent.service"), AGENT)?;
    std::os::unix::fs::symlink("/etc/systemd/system/standin-agent.service", wants.join("standin-agent.service"))?;
    std::fs::create_dir_all(target.join("var/lib/standin-agent"))?;
    std::fs::write(target.join("var/lib/standin-agent/agent.pem"), "identity")?;
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
        if text.contains("login:") && proof.len() >= 4 {
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
