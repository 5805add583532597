//! Errors of the hypervisor seam, with codes and next commands for the operator.

use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a machine could not be defined, launched, stopped or removed.
#[derive(Debug, Error)]
pub enum HypervisorError {
    #[error("STANDIN-E3201: the machine name `{name}` is in use by {owner}. Choose another: standin protect <source> --name <name>")]
    NameInUse { name: String, owner: String },
    #[error("STANDIN-E3202: there is no machine `{name}`. List them: standin jobs")]
    NoSuchMachine { name: String },
    #[error("STANDIN-E3203: the disk {path} of `{name}` is locked by another process. Find it: fuser {path}")]
    DiskLocked { name: String, path: PathBuf },
    #[error(
        "STANDIN-E3204: the host has {available} bytes of memory available, and `{name}` needs {needed}. Give it less: standin protect <source> --memory <size>"
    )]
    NoMemory { name: String, needed: u64, available: u64 },
    #[error("STANDIN-E3205: `{program}` is not installed on the appliance. Install it: apt-get install {package}")]
    ProgramMissing { program: String, package: &'static str },
    #[error("STANDIN-E3206: launching `{name}` failed: {stderr}. Look at its log: journalctl -u standin-appliance")]
    LaunchFailed { name: String, stderr: String },
    #[error("STANDIN-E3207: `{name}` runs, which this operation does not allow. Shut it down from inside, then: standin failover <job>")]
    Running { name: String },
    #[error("STANDIN-E3208: `{name}` did not answer within {waited_ms} ms ({operation}). Look: journalctl -u standin-appliance")]
    NoAnswer { name: String, operation: &'static str, waited_ms: u64 },
    #[error("STANDIN-E3209: the definition is not usable: {field} {reason}. Change it: standin protect <source>")]
    BadDefinition { field: &'static str, reason: String },
    #[error("STANDIN-E3210: {operation} of {path} failed. Check the datastore: standin host list")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("STANDIN-E3211: `{name}` has no disk attached. Attach the replica: standin failover <job>")]
    NoDisk { name: String },
    #[error(
        "STANDIN-E3212: the replica's disk {path} was written after `{name}` had run on it, so that machine's own changes no longer fit. See: standin job show <job>"
    )]
    BaseChanged { name: String, path: PathBuf },
}

impl HypervisorError {
    /// The code of the page that explains this error.
    pub fn code(&self) -> &'static str {
        match self {
            HypervisorError::NameInUse { .. } => "STANDIN-E3201",
            HypervisorError::NoSuchMachine { .. } => "STANDIN-E3202",
            HypervisorError::DiskLocked { .. } => "STANDIN-E3203",
            HypervisorError::NoMemory { .. } => "STANDIN-E3204",
            HypervisorError::ProgramMissing { .. } => "STANDIN-E3205",
            HypervisorError::LaunchFailed { .. } => "STANDIN-E3206",
            HypervisorError::Running { .. } => "STANDIN-E3207",
            HypervisorError::NoAnswer { .. } => "STANDIN-E3208",
            HypervisorError::BadDefinition { .. } => "STANDIN-E3209",
            HypervisorError::Io { .. } => "STANDIN-E3210",
            HypervisorError::NoDisk { .. } => "STANDIN-E3211",
            HypervisorError::BaseChanged { .. } => "STANDIN-E3212",
        }
    }

    /// True when the same call may succeed later without a change of the definition.
    pub fn retryable(&self) -> bool {
        use HypervisorError::*;
        matches!(self, DiskLocked { .. } | NoMemory { .. } | NoAnswer { .. } | LaunchFailed { .. } | Io { .. })
    }

    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> HypervisorError {
        let path = path.to_path_buf();
        move |source| HypervisorError::Io { operation, path, source }
    }
}
