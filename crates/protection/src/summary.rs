//! The protection summary: what a protect request would create, shown before it is accepted, with every problem at once.

mod check;
mod defaults;

pub use defaults::LeftOut;

use crate::{PointPolicy, Problem};
use serde::{Deserialize, Serialize};
use standin_model::{AgentId, ByteLen, FileSystem, Firmware, Inventory};
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;
/// Empty file systems and firmware partitions: an EFI system partition of 100 MiB is sparse, the rest takes about this.
const OVERHEAD_BYTES: u64 = 64 * MIB;

/// What the operator asks for. Sizes are in bytes; what is left out is as on the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProtectRequest {
    /// Agent id or host name of an enrolled source.
    pub source: String,
    /// Name of job and replica VM; the source's host name if empty.
    pub name: String,
    /// Mount points; all that can be protected if empty.
    pub volumes: Vec<String>,
    /// Globs of absolute paths whose contents are left out.
    pub exclusions: Vec<String>,
    /// Replicates also what is left out by default.
    pub no_default_exclusions: bool,
    /// Globs that are left out by default and are replicated all the same.
    pub wanted: Vec<String>,
    pub cpus: Option<u32>,
    pub memory: Option<ByteLen>,
    /// Size on the replica by mount point.
    pub sizes: BTreeMap<String, ByteLen>,
    pub firmware: Option<Firmware>,
    /// Virtual network of the replica's cards; the hypervisor's default if none.
    pub network: Option<String>,
}

/// What is known about target and source when planning.
#[derive(Clone, Debug)]
pub struct HostFacts {
    pub agent: AgentId,
    pub connected: bool,
    pub inventory: Inventory,
    pub names_in_use: Vec<String>,
    /// The job that protects this agent already.
    pub protected_by: Option<String>,
    pub datastore: String,
    pub datastore_free: ByteLen,
    /// Whether files of the datastore can share blocks.
    pub shares_blocks: bool,
    pub host_cpus: u32,
    pub host_memory: ByteLen,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedVolume {
    pub mount_point: String,
    pub file_system: FileSystem,
    pub source_size: ByteLen,
    pub used: ByteLen,
    pub nodes: u64,
    pub size: ByteLen,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectionSummary {
    pub name: String,
    pub agent: AgentId,
    pub source: String,
    pub system: String,
    pub cpus: u32,
    pub memory: ByteLen,
    pub firmware: Firmware,
    pub network: Option<String>,
    pub volumes: Vec<PlannedVolume>,
    pub swap: ByteLen,
    /// All that is left out, by request and by default.
    pub exclusions: Vec<String>,
    /// What is left out by default, and why.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    pub datastore: String,
    /// Bytes that the datastore must have at least; the disk is sparse.
    pub needed: ByteLen,
    pub datastore_free: ByteLen,
    /// What will be done, in order.
    pub actions: Vec<String>,
    pub warnings: Vec<String>,
}

/// Plans the protection of one source. All problems are found, not only the first.
pub fn plan_protection(facts: &HostFacts, request: &ProtectRequest) -> Result<ProtectionSummary, Vec<Problem>> {
    let mut problems = Vec::new();
    let name = if request.name.is_empty() { short_name(&facts.inventory.hostname) } else { request.name.clone() };
    check::source(facts, &mut problems);
    check::name(facts, &name, &mut problems);
    check::exclusions(facts, request, &mut problems);
    let volumes = check::volumes(facts, request, &mut problems);
    let used: u64 = volumes.iter().fold(0, |sum, volume| sum.saturating_add(volume.used.0));
    let needed = ByteLen(used.saturating_add(used / 100).saturating_add(OVERHEAD_BYTES));
    let cpus = request.cpus.unwrap_or(facts.inventory.cpus.max(1));
    let memory = request.memory.unwrap_or(facts.inventory.memory);
    check::machine(facts, cpus, memory, &mut problems);
    check::space(facts, needed, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    let left_out = if request.no_default_exclusions { Vec::new() } else { defaults::left_out(&facts.inventory, &request.wanted) };
    let mut exclusions = request.exclusions.clone();
    exclusions.extend(left_out.iter().map(|left| left.pattern.clone()).filter(|pattern| !request.exclusions.contains(pattern)));
    let mut summary = ProtectionSummary {
        name,
        agent: facts.agent.clone(),
        source: facts.inventory.hostname.clone(),
        system: format!("{} (kernel {})", facts.inventory.os_name, facts.inventory.kernel_release),
        cpus,
        memory,
        firmware: request.firmware.unwrap_or(facts.inventory.firmware),
        network: request.network.clone(),
        volumes,
        swap: ByteLen(
            facts.inventory.swaps.iter().filter(|swap| !defaults::is_file(swap)).fold(0, |sum, swap| sum.saturating_add(swap.size.0)),
        ),
        exclusions,
        left_out,
        datastore: facts.datastore.clone(),
        needed,
        datastore_free: facts.datastore_free,
        actions: Vec::new(),
        warnings: Vec::new(),
    };
    summary.actions = actions(&summary);
    summary.warnings = warnings(facts, request, &summary);
    Ok(summary)
}

/// The first label of a host name, in the characters that a VM name may have.
fn short_name(hostname: &str) -> String {
    let label = hostname.split('.').next().unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c.to_ascii_lowercase() } else { '-' };
    label.chars().map(plain).take(check::NAME_BYTES_MAX).collect()
}

fn actions(summary: &ProtectionSummary) -> Vec<String> {
    let mut actions = vec![format!("create one virtual disk in {} with a fresh partition table", summary.datastore)];
    for volume in &summary.volumes {
        let fs = volume.file_system.as_str();
        actions.push(format!("make {fs} of {} for {} under the source's UUID", human(volume.size), volume.mount_point));
    }
    if summary.swap.0 > 0 {
        actions.push(format!("make swap of {} anew under the source's UUID; its content is not copied", human(summary.swap)));
    }
    actions.push("start capturing changes on the source; no reboot, no kernel module".into());
    actions.push(format!("mirror {} while changes are replicated", human(ByteLen(summary.volumes.iter().map(|v| v.used.0).sum()))));
    actions.push(format!("keep the replica VM {} powered off until failover", summary.name));
    actions
}

fn warnings(facts: &HostFacts, request: &ProtectRequest, summary: &ProtectionSummary) -> Vec<String> {
    let mut warnings = Vec::new();
    for volume in &facts.inventory.volumes {
        let planned = summary.volumes.iter().any(|planned| planned.mount_point == volume.mount_point);
        let system = facts.inventory.system_partition.as_ref().is_some_and(|esp| esp.mount_point == volume.mount_point);
        if !planned && !system {
            let (mount, fs) = (&volume.mount_point, &volume.file_system_name);
            warnings.push(format!("{mount} ({fs}) is not protected; the replica boots without it"));
        }
    }
    if let Some(reason) = &facts.inventory.periodic {
        warnings.push(format!(
            "captured by fanotify (STANDIN-E6008): the replica is a state of the source only now and then, and a failover without its source loses what \
             changed since the last one; because {reason}"
        ));
    }
    if summary.firmware != facts.inventory.firmware {
        warnings.push("the replica boots with another firmware than the source".into());
    }
    let left = facts.datastore_free.0.saturating_sub(summary.needed.0);
    let sizes: u64 = summary.volumes.iter().fold(0, |sum, volume| sum.saturating_add(volume.size.0));
    if facts.datastore_free.0 < sizes {
        warnings.push(format!("the datastore could not hold full disks; {} are left after the mirror", human(ByteLen(left))));
    }
    if !facts.shares_blocks {
        let most = human(PointPolicy::default().copy_bytes_max);
        warnings.push(format!(
            "{} cannot share blocks (XFS and btrfs can), so a recovery point is a whole copy: none by time, and none of more than {most} \
             unless allowed by standin point policy",
            facts.datastore
        ));
    }
    if !request.exclusions.is_empty() {
        warnings.push(format!("what lies below {} will be missing on the replica", request.exclusions.join(", ")));
    }
    warnings
}

/// A size for people, in binary units with three digits.
pub fn human(bytes: ByteLen) -> String {
    let mut value = bytes.0 as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1000.0 || unit == "TiB" {
            let digits = if unit == "B" || value >= 100.0 { 0 } else { 1 };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    unreachable!("the last unit always returns")
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub use tests::job_of_a_test;
