//! The second half of boot repair, done at failover: copies what was prepared and edits small text files.
//!
//! If the boot files changed since `prepare`, it is done again first, which takes seconds; the report then says so. Running it again
//! after a crash, or on a replica that was injected before, changes nothing further.

use super::fstab::{resume_is_absent, rewrite_crypttab, rewrite_fstab};
use super::grubcfg::{self, Wishes, boot_prefix};
use super::prepare::{Prepared, bootable, fingerprint, prepare};
use super::profile::{BootRepairReport, TargetProfile};
use super::{BootError, GuestRoot, agent, labels, loader, network, swapfile};
use crate::disk::DiskPlan;
use std::path::Path;
use std::time::Instant;

const GRUB_CONFIG: &str = "/boot/grub/grub.cfg";
const RESUME: &str = "/etc/initramfs-tools/conf.d/resume";
/// Units of other platforms' guest tools, by the platform they serve.
const FOREIGN_UNITS: [(&str, &str); 8] = [
    ("open-vm-tools.service", "VMware"),
    ("vgauth.service", "VMware"),
    ("vmtoolsd.service", "VMware"),
    ("vboxadd.service", "VirtualBox"),
    ("vboxadd-service.service", "VirtualBox"),
    ("virtualbox-guest-utils.service", "VirtualBox"),
    ("xe-daemon.service", "Xen"),
    ("prltoolsd.service", "Parallels"),
];

/// Makes the replica below `root` (all its volumes mounted) bootable on `disk`.
pub fn inject(root: &Path, disk: &Path, plan: &DiskPlan, profile: &TargetProfile, staging: &Path) -> Result<BootRepairReport, BootError> {
    let started = Instant::now();
    let guest = GuestRoot::open(root)?;
    let mut report = BootRepairReport::default();
    let current = fingerprint(&guest, plan, profile);
    let prepared = match Prepared::load(staging) {
        Some(prepared) if prepared.fingerprint == current => prepared,
        _ => {
            report.warnings.push("boot files changed since the preparation, which was done again".into());
            prepare(root, plan, profile, staging)?
        }
    };
    report.distribution = prepared.distribution.clone();
    report.kernels = prepared.kernels.clone();
    report.default_kernel = prepared.kernels.first().cloned().unwrap_or_default();
    report.warnings.extend(prepared.warnings.iter().cloned());
    supplement_initrds(&guest, &prepared, staging, &mut report)?;
    configure_grub(&guest, plan, profile, &mut report)?;
    copy_modules(&guest, profile, &mut report)?;
    edit_tables(&guest, plan, &mut report)?;
    network::repair(&guest, &profile.nics, &mut report)?;
    disable_foreign_tools(&guest, profile, &mut report)?;
    agent::disable(&guest, &mut report)?;
    labels::relabel(&guest, &mut report)?;
    swapfile::make(&guest, plan, &mut report)?;
    for (path, what) in loader::install(disk, plan, profile.firmware, staging)? {
        report.change(path, what, "the replica's disk has to start by itself");
    }
    report.milliseconds = started.elapsed().as_millis() as u64;
    Ok(report)
}

fn supplement_initrds(guest: &GuestRoot, prepared: &Prepared, staging: &Path, report: &mut BootRepairReport) -> Result<(), BootError> {
    for supplement in &prepared.supplements {
        let path = staging.join(&supplement.staged);
        let archive = std::fs::read(&path).map_err(BootError::host("reading", &path))?;
        let stamp = guest.stamp(&supplement.initrd).map(|(bytes, _)| bytes);
        // The fingerprint covers the initrd's size and time, so a shorter file cannot be here; never extend one with a hole.
        if stamp.is_none_or(|bytes| bytes < supplement.original_bytes) {
            return Err(BootError::BadInitrd { path: supplement.initrd.clone(), reason: "it shrank".into() });
        }
        guest.append_at(&supplement.initrd, supplement.original_bytes, &archive)?;
        let what = format!("drivers appended: {} ({} bytes)", supplement.drivers.join(", "), archive.len());
        report.change(&supplement.initrd, what, "the source did not need the drivers of the replica's disk controller");
    }
    Ok(())
}

fn configure_grub(guest: &GuestRoot, plan: &DiskPlan, profile: &TargetProfile, report: &mut BootRepairReport) -> Result<(), BootError> {
    let without_resume = guest.text(RESUME).is_some_and(|text| resume_is_absent(&text, plan));
    let wishes = Wishes { plan, arguments: &profile.kernel_arguments, without_resume };
    if let Some(old) = guest.text(GRUB_CONFIG) {
        let (new, changes) = grubcfg::rewrite(&old, &wishes);
        if new != old {
            guest.replace(GRUB_CONFIG, old.as_bytes(), new.as_bytes())?;
        }
        for what in changes {
            report.change(GRUB_CONFIG, what, "device names of the source do not exist on the replica");
        }
        return Ok(());
    }
    let prefix = boot_prefix(plan).ok_or(BootError::NotInPlan { what: "volume with /boot" })?;
    let text = grubcfg::minimal(&bootable(guest)?, &prefix, &wishes).ok_or(BootError::NotInPlan { what: "root volume" })?;
    guest.write(GRUB_CONFIG, text.as_bytes())?;
    report.change(GRUB_CONFIG, "made", "the source had none");
    Ok(())
}

/// Gives the guest the modules that belong to our loader image: GRUB refuses modules of another build.
fn copy_modules(guest: &GuestRoot, profile: &TargetProfile, report: &mut BootRepairReport) -> Result<(), BootError> {
    let from = loader::module_directory(profile.firmware);
    let name = loader::platform(profile.firmware);
    let target = format!("/boot/grub/{name}");
    let same = |file: &str| guest.read(&format!("{target}/{file}"), 1 << 22).ok() == std::fs::read(from.join(file)).ok();
    // Any two builds differ in the module that everything hangs on; comparing a few is enough and cheap.
    if ["normal.mod", "linux.mod", "moddep.lst"].into_iter().all(same) {
        return Ok(());
    }
    let draft = format!("{target}.standin-draft");
    for entry in std::fs::read_dir(&from).map_err(BootError::host("listing", &from))?.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.ends_with(".mod") || file.ends_with(".lst") {
            let bytes = std::fs::read(entry.path()).map_err(BootError::host("reading", &entry.path()))?;
            guest.write(&format!("{draft}/{file}"), &bytes)?;
        }
    }
    if guest.exists(&target) {
        guest.rename(&target, &format!("{name}.standin-original"))?;
    }
    guest.rename(&draft, name)?;
    report.change(target, "GRUB modules", "they have to match the loader image");
    Ok(())
}

fn edit_tables(guest: &GuestRoot, plan: &DiskPlan, report: &mut BootRepairReport) -> Result<(), BootError> {
    let tables = [("/etc/fstab", guest.text("/etc/fstab").map(|old| (rewrite_fstab(&old, plan), old)))];
    let crypt = [("/etc/crypttab", guest.text("/etc/crypttab").map(|old| (rewrite_crypttab(&old), old)))];
    for (path, found) in tables.into_iter().chain(crypt) {
        let Some(((new, changes), old)) = found else { continue };
        if changes.is_empty() {
            continue;
        }
        guest.replace(path, old.as_bytes(), new.as_bytes())?;
        for change in changes {
            report.change(path, change.what, change.why);
        }
    }
    if let Some(old) = guest.text(RESUME).filter(|text| resume_is_absent(text, plan)) {
        guest.replace(RESUME, old.as_bytes(), b"RESUME=none\n")?;
        report.change(RESUME, "RESUME=none", "its swap area is not on the replica");
    }
    Ok(())
}

fn disable_foreign_tools(guest: &GuestRoot, profile: &TargetProfile, report: &mut BootRepairReport) -> Result<(), BootError> {
    for (unit, platform) in FOREIGN_UNITS {
        let homes = ["/lib/systemd/system", "/usr/lib/systemd/system", "/etc/systemd/system"];
        if !homes.iter().any(|home| guest.exists(&format!("{home}/{unit}"))) {
            continue;
        }
        if !profile.platform_changed {
            report.warnings.push(format!("guest tools of {platform} found ({unit}); left as they are"));
            continue;
        }
        let path = format!("/etc/systemd/system/{unit}");
        if guest.link_if_absent(&path, "/dev/null")? {
            report.change(path, "masked", format!("the replica does not run on {platform}"));
        }
    }
    Ok(())
}
