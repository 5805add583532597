//! What a virtual machine is, independent of the hypervisor. Plain data, stored as JSON by drivers that have no store of their own.

use crate::HypervisorError;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmFirmware {
    Bios,
    Uefi,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskController {
    /// The default: disks can be plugged and unplugged without the guest's help.
    #[default]
    VirtioScsi,
    VirtioBlk,
}

/// What a network card is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Network {
    /// A card without a cable: the safe choice for a test failover.
    Isolated,
    Bridge {
        bridge: String,
    },
    Tap {
        interface: String,
    },
    /// User-mode network that reaches nothing outside; `forward_ssh` is a port on 127.0.0.1 that leads to the guest's port 22.
    User {
        forward_ssh: Option<u16>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCard {
    /// Hardware address as `52:54:00:12:34:56`.
    pub mac: String,
    pub network: Network,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDefinition {
    /// Lower-case letters, digits, `-`, `_` and `.`; at most 63 bytes.
    pub name: String,
    /// Who the machine belongs to, normally the job's id. Guards a name against another job.
    pub owner: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    pub firmware: VmFirmware,
    #[serde(default)]
    pub controller: DiskController,
    #[serde(default)]
    pub cards: Vec<NetworkCard>,
}

/// The disk that a machine starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAttachment {
    /// The replica's raw disk; the guest's writes go to an overlay, so that this file stays the recovery point.
    pub base: PathBuf,
    /// Where the overlay lies; beside the definition when absent.
    #[serde(default)]
    pub overlay: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    Off,
    Running,
    Paused,
    /// The hypervisor's process lives but the machine cannot go on, for example after an error of its disk.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    pub cpus: u32,
    pub memory_bytes: u64,
    pub memory_available_bytes: u64,
    pub datastore_free_bytes: u64,
    /// False when guests are emulated, which is some twenty times slower.
    pub hardware_virtualization: bool,
}

impl VmDefinition {
    /// Checks everything that does not need the host.
    pub fn check(&self) -> Result<(), HypervisorError> {
        check_name(&self.name)?;
        let bad = |field, reason: String| Err(HypervisorError::BadDefinition { field, reason });
        if self.cpus == 0 || self.cpus > 255 {
            return bad("cpus", format!("is {}, and 1 to 255 are possible", self.cpus));
        }
        if self.memory_bytes < 64 << 20 {
            return bad("memory", format!("is {} bytes, and no guest starts below 64 MiB", self.memory_bytes));
        }
        for card in &self.cards {
            let groups: Vec<&str> = card.mac.split(':').collect();
            let hex = |group: &&str| group.len() == 2 && group.bytes().all(|byte| byte.is_ascii_hexdigit());
            if groups.len() != 6 || !groups.iter().all(hex) {
                return bad("mac", format!("`{}` is no hardware address", card.mac));
            }
            let interface = match &card.network {
                Network::Bridge { bridge } => bridge,
                Network::Tap { interface } => interface,
                Network::Isolated | Network::User { .. } => continue,
            };
            if interface.is_empty() || interface.len() > 15 || !interface.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            {
                return bad("network", format!("`{interface}` is no interface name"));
            }
        }
        Ok(())
    }
}

/// Names become file names and command arguments, so only a narrow alphabet passes.
pub(crate) fn check_name(name: &str) -> Result<(), HypervisorError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 63 || !name.bytes().all(allowed) || !name.as_bytes()[0].is_ascii_alphanumeric() {
        let reason = format!("`{}` is not 1 to 63 of a-z, 0-9, -, _ and .", name.escape_default());
        return Err(HypervisorError::BadDefinition { field: "name", reason });
    }
    Ok(())
}
