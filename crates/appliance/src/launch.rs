//! From a job to a virtual machine: its definition, its disk, its start.

use crate::appliance::Appliance;
use crate::errors;
use crate::job::JobShell;
use standin_hypervisor::{DiskAttachment, DiskController, HypervisorError, Network, NetworkCard, VmDefinition, VmFirmware, VmState};
use standin_model::{ByteLen, Firmware, Inventory};
use standin_protection::fence::LaunchAuthority;
use standin_protection::summary::human;
use standin_protection::{JobState, Problem, ProtectionSummary, Waiver};
use standin_replica::boot::{self, NicMap, TargetProfile};
use standin_replica::point::LaunchFiles;

/// What a machine writes beside the replica's disk while it boots is tens of MiB; without room it stops in the middle.
const OVERLAY_BYTES_MIN: u64 = 256 << 20;

/// `isolated`, `user`, `user:PORT`, `bridge:NAME` or `tap:NAME`; nothing means `user`.
pub fn parse_network(text: Option<&str>) -> Result<Network, Problem> {
    let text = text.unwrap_or("user");
    let (kind, value) = text.split_once(':').map_or((text, None), |(kind, value)| (kind, Some(value)));
    let network = match (kind, value) {
        ("isolated", None) => Some(Network::Isolated),
        ("user", None) => Some(Network::User { forward_ssh: None }),
        ("user", Some(port)) => port.parse().ok().filter(|port| *port > 0).map(|port| Network::User { forward_ssh: Some(port) }),
        ("bridge", Some(name)) if !name.is_empty() => Some(Network::Bridge { bridge: name.into() }),
        ("tap", Some(name)) if !name.is_empty() => Some(Network::Tap { interface: name.into() }),
        _ => None,
    };
    network.ok_or_else(|| {
        let cause = format!("{text:?} is not a network: isolated, user, user:PORT, bridge:NAME or tap:NAME");
        Problem::new("E4035", cause, "standin protect SOURCE --network NETWORK")
    })
}

pub fn definition(owner: &str, summary: &ProtectionSummary, inventory: &Inventory) -> Result<VmDefinition, Problem> {
    let network = parse_network(summary.network.as_deref())?;
    let macs: Vec<_> = inventory.network_cards.iter().map(|card| card.mac_address.clone()).collect();
    let cards = macs.into_iter().enumerate().map(|(index, mac)| {
        // Only the first card is reachable by the forwarded port; two cards cannot share it.
        let network = match &network {
            Network::User { .. } if index > 0 => Network::User { forward_ssh: None },
            network => network.clone(),
        };
        NetworkCard { mac, network }
    });
    Ok(VmDefinition {
        name: summary.name.clone(),
        owner: owner.into(),
        cpus: summary.cpus,
        memory_bytes: summary.memory.0,
        firmware: match summary.firmware {
            Firmware::Bios => VmFirmware::Bios,
            Firmware::Uefi => VmFirmware::Uefi,
        },
        controller: DiskController::VirtioScsi,
        cards: cards.collect(),
    })
}

/// What boot repair has to prepare the replica for: the machine that `definition` defines.
pub fn profile(summary: &ProtectionSummary, inventory: &Inventory) -> TargetProfile {
    let same = |card: &standin_model::NetworkCard| NicMap {
        name: card.name.clone(),
        old_mac: card.mac_address.clone(),
        new_mac: card.mac_address.clone(),
    };
    TargetProfile {
        firmware: summary.firmware,
        controller: boot::DiskController::VirtioScsi,
        nic_driver: "virtio_net".into(),
        nics: inventory.network_cards.iter().map(same).collect(),
        kernel_arguments: Vec::new(),
        platform_changed: false,
    }
}

/// What the replica's machine does, once there is one.
pub fn machine(appliance: &Appliance, name: &str) -> Result<Option<VmState>, Problem> {
    match appliance.hypervisor.state(name) {
        Ok(state) => Ok(Some(state)),
        Err(HypervisorError::NoSuchMachine { .. }) => Ok(None),
        Err(error) => Err(errors::coded("E4050", &error, "standin host list")),
    }
}

/// Why the host could not run the replica's machine now; cheap enough to be asked while the source stands still.
pub fn obstacles(appliance: &Appliance, shell: &JobShell) -> Vec<Problem> {
    let record = &shell.record;
    let failed = |error| errors::coded("E4050", &error, "standin host list");
    let valid = definition(record.id.as_str(), &record.summary, &record.inventory)
        .and_then(|definition| appliance.hypervisor.validate(&definition).map_err(failed));
    let room = appliance.hypervisor.host().map_err(failed).and_then(|host| match host.datastore_free_bytes {
        free if free < OVERLAY_BYTES_MIN => {
            let (free, needed) = (human(ByteLen(free)), human(ByteLen(OVERLAY_BYTES_MIN)));
            let cause = format!("{} has {free} free, and a machine needs at least {needed} for what it writes", record.summary.datastore);
            Err(Problem::new("E4019", cause, "free space on the datastore, then: standin host list"))
        }
        _ => Ok(()),
    });
    valid.err().into_iter().chain(room.err()).collect()
}

/// The replica's disk belongs to its machine until that is off.
pub fn in_use(name: &str, state: Option<VmState>) -> Problem {
    let state = state.map_or("unknown".to_owned(), |state| format!("{state:?}").to_lowercase());
    Problem::new("E4057", format!("the replica's machine is {state} and has the replica's disk"), format!("standin job show {name}"))
}

pub fn attach(appliance: &Appliance, shell: &JobShell) -> Result<String, Problem> {
    let record = &shell.record;
    let definition = definition(record.id.as_str(), &record.summary, &record.inventory)?;
    let failed = |error| errors::coded("E4053", &error, &format!("standin failover {}", record.name));
    appliance.hypervisor.define(&definition).map_err(failed)?;
    let from_point = shell.live().launched_point().is_some();
    let base = match from_point {
        true => LaunchFiles::of(&appliance.layout.launch(&record.name)).disk,
        false => appliance.layout.disk(&record.name),
    };
    let disk = DiskAttachment { base, overlay: None };
    appliance.hypervisor.attach_disk(&record.name, &disk).map_err(failed)?;
    Ok(format!("{} through an overlay", disk.base.display()))
}

/// Starts the machine of a job that has failed over, after a reboot of its host or when it was switched off from inside. Whether it should run only its operator knows, so
/// the appliance never does this by itself.
pub fn start_again(appliance: &Appliance, shell: &JobShell, waiver: Option<&Waiver>, actor: &str) -> Result<String, Problem> {
    let name = &shell.record.name;
    let (over, run) = {
        let live = shell.live();
        (matches!(live.job.state, JobState::FailedOver { .. }), live.run.as_ref().map(|(_, run)| run.clone()))
    };
    let run = run.filter(|_| over).ok_or_else(|| {
        let cause = format!("{name} has not failed over, and only its failover may launch the replica");
        Problem::new("E4058", cause, format!("standin failover {name}"))
    })?;
    match machine(appliance, name)? {
        Some(VmState::Running) => return Ok(format!("{name} runs already")),
        Some(VmState::Off) | None => {}
        state => return Err(in_use(name, state)),
    }
    let authority = match waiver {
        Some(waiver) => LaunchAuthority::Waived(waiver.clone()),
        None if appliance.session(&shell.record.agent).is_some() => {
            let cause = format!("the agent on {} is connected, so the source runs again", shell.record.summary.source);
            let next = format!("switch the source off, then: standin machine start {name}");
            return Err(Problem::new("E4059", cause, next));
        }
        None => run.launch_authority()?.clone(),
    };
    if let Some(waiver) = waiver {
        appliance.log(Some(shell), actor, None, &format!("fence waived by {}: {}", waiver.name(), waiver.reason()));
    }
    let note = power_on(appliance, shell, &authority, "machine start")?;
    appliance.log(Some(shell), actor, None, &format!("starts the replica's machine: {note}"));
    Ok(note)
}

/// After a restart of the appliance: a replica that took over and does not run is nothing to be silent about.
pub fn tell_if_off(appliance: &Appliance, shell: &JobShell) {
    if let Ok(Some(VmState::Off)) = machine(appliance, &shell.record.name) {
        let text = format!("the replica's machine is off; if it should run: standin machine start {}", shell.record.name);
        appliance.log(Some(shell), "appliance", None, &text);
    }
}

/// Taking the authority by reference makes a launch without one impossible to write.
pub fn power_on(appliance: &Appliance, shell: &JobShell, authority: &LaunchAuthority, command: &str) -> Result<String, Problem> {
    let name = &shell.record.name;
    let failed = |error| errors::coded("E4054", &error, &format!("standin {command} {name}"));
    appliance.hypervisor.power_on(name).map_err(failed)?;
    let by = match authority {
        LaunchAuthority::Fenced(_) => "the source is switched off".to_owned(),
        LaunchAuthority::Waived(waiver) => format!("waived by {}", waiver.name()),
    };
    let console = appliance.hypervisor.console_log(name).map(|path| path.display().to_string()).unwrap_or_default();
    Ok(format!("{name} runs ({by}); serial console: {console}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        assert_eq!(parse_network(None).unwrap(), Network::User { forward_ssh: None });
        assert_eq!(parse_network(Some("user:2222")).unwrap(), Network::User { forward_ssh: Some(2222) });
        assert_eq!(parse_network(Some("bridge:br0")).unwrap(), Network::Bridge { bridge: "br0".into() });
        for wrong in ["", "bridge", "bridge:", "user:x", "user:0", "vlan:7"] {
            assert_eq!(parse_network(Some(wrong)).unwrap_err().code, "STANDIN-E4035", "{wrong}");
        }
    }
}
