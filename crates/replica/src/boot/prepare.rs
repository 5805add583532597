//! The first half of boot repair, done while replication goes on: what takes long, into a staging directory only.

use super::initrd::{self, INITRD_BYTES_MAX};
use super::kernel::{Drivers, Kernel, distribution, kernels};
use super::profile::TargetProfile;
use super::{BootError, GuestRoot, loader};
use crate::disk::DiskPlan;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Kernels that are made ready: the default and what an administrator falls back to.
const KERNELS_MAX: usize = 3;

/// An archive that will be appended to an initrd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supplement {
    /// Path of the initrd in the replica.
    pub initrd: String,
    /// File in the staging directory.
    pub staged: String,
    /// Length of the initrd before it.
    pub original_bytes: u64,
    pub drivers: Vec<String>,
}

/// The result of `prepare`, kept as `prepared.json` in the staging directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// State of the boot files that this was prepared for; see [`fingerprint`].
    pub fingerprint: u64,
    pub distribution: String,
    pub kernels: Vec<String>,
    pub supplements: Vec<Supplement>,
    pub warnings: Vec<String>,
}

impl Prepared {
    /// Reads what an earlier `prepare` left in the staging directory.
    pub fn load(staging: &Path) -> Option<Prepared> {
        serde_json::from_slice(&std::fs::read(staging.join("prepared.json")).ok()?).ok()
    }
}

/// A number that changes when anything changes that `prepare` depends on: kernels, initrds, module lists, plan or profile.
/// Cheap (a few dozen stat calls), so that it may be asked every minute.
pub fn fingerprint(guest: &GuestRoot, plan: &DiskPlan, profile: &TargetProfile) -> u64 {
    // FNV-1a: stable between releases, unlike the standard library's hasher.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |text: String| {
        for byte in text.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    add(serde_json::to_string(plan).unwrap_or_default());
    add(serde_json::to_string(profile).unwrap_or_default());
    for name in guest.list("/boot") {
        if name.starts_with("vmlinuz") || name.starts_with("initr") {
            add(format!("{name} {:?}", guest.stamp(&format!("/boot/{name}"))));
        }
    }
    for version in guest.list("/lib/modules") {
        add(format!("{version} {:?}", guest.stamp(&format!("/lib/modules/{version}/modules.dep"))));
    }
    hash
}

/// Prepares everything; the staging directory is emptied first.
pub fn prepare(root: &Path, plan: &DiskPlan, profile: &TargetProfile, staging: &Path) -> Result<Prepared, BootError> {
    let guest = GuestRoot::open(root)?;
    let _ = std::fs::remove_dir_all(staging);
    std::fs::create_dir_all(staging).map_err(BootError::host("making", staging))?;
    let found = bootable(&guest)?;
    let mut prepared = Prepared {
        fingerprint: fingerprint(&guest, plan, profile),
        distribution: distribution(&guest),
        kernels: found.iter().map(|kernel| kernel.version.clone()).collect(),
        supplements: Vec::new(),
        warnings: Vec::new(),
    };
    for (index, kernel) in found.iter().take(KERNELS_MAX).enumerate() {
        match prepare_kernel(&guest, kernel, profile, staging) {
            Ok(supplement) => prepared.supplements.extend(supplement),
            // Only the default kernel has to start; the others are for emergencies.
            Err(error) if index > 0 => prepared.warnings.push(format!("kernel {}: {error}", kernel.version)),
            Err(error) => return Err(error),
        }
    }
    let drivers = Drivers::read(&guest, &found[0].version);
    if drivers.files(&profile.nic_driver).is_none() {
        prepared.warnings.push(format!("kernel {} has no driver `{}`: no network", found[0].version, profile.nic_driver));
    }
    loader::build(plan, profile.firmware, staging)?;
    save(&prepared, staging)?;
    Ok(prepared)
}

fn save(prepared: &Prepared, staging: &Path) -> Result<(), BootError> {
    let path = staging.join("prepared.json");
    let text = serde_json::to_vec_pretty(prepared).map_err(|error| BootError::host("encoding", &path)(error.into()))?;
    std::fs::write(&path, text).map_err(BootError::host("writing", &path))
}

/// The kernels to make ready, the default (newest with an initrd) first.
pub(super) fn bootable(guest: &GuestRoot) -> Result<Vec<Kernel>, BootError> {
    let (with, without): (Vec<Kernel>, Vec<Kernel>) = kernels(guest).into_iter().partition(|kernel| kernel.initrd.is_some());
    if with.is_empty() {
        let found = without.iter().map(|kernel| kernel.version.as_str()).collect::<Vec<_>>().join(", ");
        return Err(BootError::NoKernel { found: if found.is_empty() { "none".into() } else { format!("{found} without an initrd") } });
    }
    Ok(with)
}

fn prepare_kernel(guest: &GuestRoot, kernel: &Kernel, profile: &TargetProfile, staging: &Path) -> Result<Option<Supplement>, BootError> {
    let Some(path) = &kernel.initrd else { return Ok(None) };
    let bytes = guest.read(path, INITRD_BYTES_MAX)?;
    let initrd = initrd::unpack(path, &bytes)?;
    drop(bytes);
    let (inside, drivers) = (initrd.modules(), Drivers::read(guest, &kernel.version));
    let mut missing: Vec<String> = Vec::new();
    let mut names = Vec::new();
    for driver in profile.controller.drivers() {
        let absent = || BootError::NoDriver { kernel: kernel.version.clone(), driver: (*driver).into() };
        let files = drivers.files(driver).ok_or_else(absent)?;
        let lacking = files.into_iter().filter(|file| initrd::module_name(file).is_some_and(|name| !inside.contains(&name)));
        let lacking: Vec<String> = lacking.filter(|file| !missing.contains(file)).collect();
        if !lacking.is_empty() {
            names.push((*driver).to_owned());
        }
        // Dependencies come after their module in modules.dep and have to be loaded before it.
        missing.extend(lacking.into_iter().rev());
    }
    if missing.is_empty() {
        return Ok(None);
    }
    let scratch = staging.join(format!("tree-{}", kernel.version));
    let archive = initrd::supplement(guest, &initrd, &kernel.version, &missing, &scratch)?;
    let _ = std::fs::remove_dir_all(&scratch);
    let staged = format!("supplement-{}", kernel.version);
    std::fs::write(staging.join(&staged), archive).map_err(BootError::host("writing", staging))?;
    Ok(Some(Supplement { initrd: path.clone(), staged, original_bytes: initrd.original_bytes as u64, drivers: names }))
}
