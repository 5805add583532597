//! The checks behind a protection summary. Each adds its problems and goes on, so that the operator sees all of them at once.

use super::{HostFacts, PlannedVolume, ProtectRequest, defaults, human};
use crate::Problem;
use standin_model::{ByteLen, Volume};

/// Names become file and unit names; 48 leaves room for what is added to them.
pub const NAME_BYTES_MAX: usize = 48;
const EXCLUSIONS_MAX: usize = 256;
const MEMORY_BYTES_MIN: u64 = 128 << 20;

pub fn source(facts: &HostFacts, problems: &mut Vec<Problem>) {
    let host = &facts.inventory.hostname;
    if !facts.connected {
        let next = format!("systemctl status standin-agent   (on {host})");
        problems.push(Problem::new("E4020", format!("the agent on {host} is not connected"), next));
    }
    if let Some(job) = &facts.protected_by {
        problems.push(Problem::new("E4021", format!("{host} is already protected by {job}"), format!("standin job show {job}")));
    }
    for obstacle in &facts.inventory.capture_obstacles {
        let next = "remove the obstacle on the source, then: standin agent list";
        problems.push(Problem::new("E4022", format!("changes cannot be captured on {host}: {obstacle}"), next));
    }
}

pub fn name(facts: &HostFacts, name: &str, problems: &mut Vec<Problem>) {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_' || c == '.';
    let good = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(allowed);
    if !good {
        let cause = format!("{name:?} is not a name: lower-case letters, digits, '-', '_' and '.' only, at most {NAME_BYTES_MAX}");
        problems.push(Problem::new("E4023", cause, "standin protect SOURCE --name NAME"));
    } else if facts.names_in_use.iter().any(|used| used == name) {
        let next = "standin protect SOURCE --name ANOTHER";
        problems.push(Problem::new("E4024", format!("a replica named {name} exists already"), next));
    }
}

pub fn exclusions(facts: &HostFacts, request: &ProtectRequest, problems: &mut Vec<Problem>) {
    let defaults = defaults::every(&facts.inventory);
    for wanted in request.wanted.iter().filter(|wanted| !defaults.iter().any(|left| left.pattern == **wanted)) {
        let cause = format!("{wanted:?} is not left out by default, so that it cannot be wanted");
        problems.push(Problem::new("E4025", cause, "standin protect SOURCE --plan"));
    }
    if request.exclusions.len() > EXCLUSIONS_MAX {
        let cause = format!("{} exclusions are more than {EXCLUSIONS_MAX}", request.exclusions.len());
        problems.push(Problem::new("E4025", cause, "exclude directories instead of files"));
    }
    for glob in &request.exclusions {
        let bare = glob.trim_end_matches(['*', '/']);
        if !glob.starts_with('/') || bare.is_empty() || glob.chars().any(char::is_control) {
            let cause = format!("{glob:?} is not an absolute path below the root");
            problems.push(Problem::new("E4025", cause, "standin protect SOURCE --exclude '/path/*'"));
        }
    }
}

/// The volumes to protect, root first, as far as they can be.
pub fn volumes(facts: &HostFacts, request: &ProtectRequest, problems: &mut Vec<Problem>) -> Vec<PlannedVolume> {
    let all = &facts.inventory.volumes;
    let system = facts.inventory.system_partition.as_ref().map(|esp| esp.mount_point.as_str());
    let mut chosen: Vec<&Volume> = if request.volumes.is_empty() {
        all.iter().filter(|volume| volume.file_system.is_some()).collect()
    } else {
        let mut chosen = Vec::new();
        for mount in &request.volumes {
            match all.iter().find(|volume| &volume.mount_point == mount) {
                // The EFI system partition is rebuilt, not replicated.
                Some(_) if Some(mount.as_str()) == system => {}
                Some(volume) if chosen.iter().any(|other: &&Volume| other.mount_point == volume.mount_point) => {}
                Some(volume) => chosen.push(volume),
                None => problems.push(unknown_volume(facts, mount)),
            }
        }
        chosen
    };
    for mount in request.sizes.keys() {
        if !chosen.iter().any(|volume| &volume.mount_point == mount) {
            problems.push(unknown_volume(facts, mount));
        }
    }
    chosen.sort_by(|a, b| a.mount_point.cmp(&b.mount_point));
    if chosen.first().is_none_or(|volume| volume.mount_point != "/") {
        let cause = "the volume of / is not among the protected ones, and a replica boots from it";
        problems.push(Problem::new("E4026", cause, "standin protect SOURCE --volume /"));
    }
    chosen.into_iter().filter_map(|volume| plan_volume(volume, request, problems)).collect()
}

fn unknown_volume(facts: &HostFacts, mount: &str) -> Problem {
    let known: Vec<_> = facts.inventory.volumes.iter().map(|volume| volume.mount_point.as_str()).collect();
    Problem::new("E4027", format!("{mount} is not a volume to be protected; the source has {}", known.join(", ")), "standin agent list")
}

fn plan_volume(volume: &Volume, request: &ProtectRequest, problems: &mut Vec<Problem>) -> Option<PlannedVolume> {
    let mount = &volume.mount_point;
    let Some(file_system) = volume.file_system else {
        let cause = format!("{mount} is {}; only ext4, xfs and btrfs can be protected", volume.file_system_name);
        problems.push(Problem::new("E4028", cause, "name the other volumes with --volume"));
        return None;
    };
    if let Some(obstacle) = &volume.capture_obstacle {
        let next = "boot a supported kernel on the source, or name the other volumes with --volume";
        problems.push(Problem::new("E4022", format!("changes of {mount} cannot be captured: {obstacle}"), next));
    }
    // The source counts every subvolume but the top level, so the mounted one may be among them, as `@rootfs` is.
    let mounted = volume.subvolume.as_deref().is_some_and(|path| !path.trim_matches('/').is_empty());
    let further = volume.extra_subvolumes.saturating_sub(u32::from(mounted));
    if further > 0 {
        let cause = format!("{mount} has {further} btrfs subvolumes besides the mounted one, which are not replicated yet");
        problems.push(Problem::new("E4029", cause, "remove the subvolumes, or leave the volume out"));
    }
    let size = request.sizes.get(mount).copied().unwrap_or(volume.size);
    // Tables and journal of an empty file system take up to 4 %, and what is in use has to fit beside them.
    let least = volume.used.0.saturating_add(volume.used.0 / 25).min(volume.size.0);
    if size.0 < least {
        let (used, asked) = (human(volume.used), human(size));
        let cause = format!("{mount} uses {used}, which do not fit into {asked}");
        let next = format!("standin protect SOURCE --disk-size {mount}={}", human(volume.size).replace(' ', ""));
        problems.push(Problem::new("E4030", cause, next));
    }
    Some(PlannedVolume {
        mount_point: mount.clone(),
        file_system,
        source_size: volume.size,
        used: volume.used,
        nodes: volume.nodes_used,
        size,
    })
}

pub fn machine(facts: &HostFacts, cpus: u32, memory: ByteLen, problems: &mut Vec<Problem>) {
    if cpus == 0 || cpus > facts.host_cpus {
        let cause = format!("the replica would have {cpus} CPUs and this host has {}", facts.host_cpus);
        problems.push(Problem::new("E4031", cause, "standin protect SOURCE --cpus NUMBER"));
    }
    if memory.0 < MEMORY_BYTES_MIN || memory.0 > facts.host_memory.0 {
        let cause = format!("the replica would have {} of memory and this host has {}", human(memory), human(facts.host_memory));
        problems.push(Problem::new("E4032", cause, "standin protect SOURCE --memory SIZE"));
    }
}

pub fn space(facts: &HostFacts, needed: ByteLen, problems: &mut Vec<Problem>) {
    if needed > facts.datastore_free {
        let cause = format!("the replica needs {} and {} has {} free", human(needed), facts.datastore, human(facts.datastore_free));
        problems.push(Problem::new("E4033", cause, "free space on the datastore, or exclude volumes"));
    }
}
