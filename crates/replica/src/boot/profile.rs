//! What the replica will run on, and the list of what was changed for that.

use serde::{Deserialize, Serialize};
use standin_model::Firmware;

/// The disk controller of the replica's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskController {
    VirtioScsi,
    VirtioBlk,
}

impl DiskController {
    /// Kernel modules that reach a disk behind this controller.
    pub fn drivers(self) -> &'static [&'static str] {
        match self {
            DiskController::VirtioScsi => &["virtio_pci", "virtio_scsi", "sd_mod"],
            DiskController::VirtioBlk => &["virtio_pci", "virtio_blk"],
        }
    }
}

/// One network card of the source and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicMap {
    /// The interface's name on the source.
    pub name: String,
    pub old_mac: String,
    pub new_mac: String,
}

/// The machine that the replica is prepared for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetProfile {
    pub firmware: Firmware,
    pub controller: DiskController,
    /// Kernel module of the network cards.
    pub nic_driver: String,
    #[serde(default)]
    pub nics: Vec<NicMap>,
    /// Added to every kernel command line, for example `console=ttyS0`.
    #[serde(default)]
    pub kernel_arguments: Vec<String>,
    /// True when the source runs on another virtualisation platform, so that its guest tools would find no partner.
    #[serde(default)]
    pub platform_changed: bool,
}

/// One difference between the replica and its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Path in the replica, or the area of the disk.
    pub path: String,
    pub what: String,
    pub why: String,
}

/// Everything that boot repair found and changed, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRepairReport {
    pub distribution: String,
    pub kernels: Vec<String>,
    pub default_kernel: String,
    pub changes: Vec<Change>,
    pub warnings: Vec<String>,
    pub milliseconds: u64,
}

impl BootRepairReport {
    pub(super) fn change(&mut self, path: impl Into<String>, what: impl Into<String>, why: impl Into<String>) {
        let change = Change { path: printable(path.into()), what: printable(what.into()), why: printable(why.into()) };
        tracing::info!(path = change.path, what = change.what, "boot repair");
        self.changes.push(change);
    }
}

/// The report quotes the source's files, and ends on an operator's terminal: no escape sequence may reach it.
fn printable(text: String) -> String {
    if text.contains(char::is_control) { text.replace(char::is_control, "\u{fffd}") } else { text }
}
