//! The seam to what runs replicas: the [`Hypervisor`] trait, its QEMU driver, and an in-memory fake for tests and the simulator.
//!
//! Invariants: every call is idempotent (defining the same machine twice, powering on what runs, destroying what is gone all
//! succeed); machines outlive the process that launched them; a call either reaches the state it names or returns an
//! error with a code and the next command. Nothing here decides whether a launch is allowed: that is `protection`'s token.

mod error;
pub mod fake;
mod machine;
pub mod qemu;

pub use error::HypervisorError;
pub use machine::{DiskAttachment, DiskController, HostInfo, Network, NetworkCard, VmDefinition, VmFirmware, VmState};

use std::path::PathBuf;

/// A host that runs virtual machines. One contract suite (`tests/contract.rs`) runs against every implementation.
pub trait Hypervisor: Send + Sync {
    /// Processors, memory and free bytes of the datastore.
    fn host(&self) -> Result<HostInfo, HypervisorError>;

    /// Checks that the host could run this machine; changes nothing.
    fn validate(&self, vm: &VmDefinition) -> Result<(), HypervisorError>;

    /// Stores the definition. The same owner may redefine a machine that is off; another owner's name is refused.
    fn define(&self, vm: &VmDefinition) -> Result<(), HypervisorError>;

    /// Attaches the disk that the machine starts from. Attaching the same disk again keeps what is there.
    fn attach_disk(&self, name: &str, disk: &DiskAttachment) -> Result<(), HypervisorError>;

    /// Starts the machine and returns when it runs (which is before the guest has booted).
    fn power_on(&self, name: &str) -> Result<(), HypervisorError>;

    /// Stops the machine. `graceful` is how long the guest may take to shut down by itself before the power is cut.
    fn power_off(&self, name: &str, graceful: Option<std::time::Duration>) -> Result<(), HypervisorError>;

    /// What the machine does now, as the hypervisor says, not as was asked.
    fn state(&self, name: &str) -> Result<VmState, HypervisorError>;

    /// File that receives the serial console.
    fn console_log(&self, name: &str) -> Result<PathBuf, HypervisorError>;

    /// Names of all machines defined here.
    fn list(&self) -> Result<Vec<String>, HypervisorError>;

    /// Cuts the power and removes definition, overlay and logs. The attached replica disk is never removed.
    fn destroy(&self, name: &str) -> Result<(), HypervisorError>;
}
