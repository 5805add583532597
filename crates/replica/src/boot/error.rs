//! Errors of boot repair, with codes and next commands for the operator.

use crate::disk::DiskError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a replica could not be made bootable.
#[derive(Debug, Error)]
pub enum BootError {
    #[error("STANDIN-E3101: the replica has no kernel with its modules and initrd under /boot ({found}). Look: standin job show <job>")]
    NoKernel { found: String },
    #[error(
        "STANDIN-E3102: kernel {kernel} has no driver `{driver}`, neither built in nor as a module. Install a fuller kernel on the source: apt-get install linux-image-amd64"
    )]
    NoDriver { kernel: String, driver: String },
    #[error("STANDIN-E3103: {path} of the replica is not readable as an initrd ({reason}). Rebuild it on the source: update-initramfs -u")]
    BadInitrd { path: String, reason: String },
    #[error("STANDIN-E3104: {operation} of {path} in the replica failed. Look: dmesg | tail")]
    Guest {
        operation: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("STANDIN-E3105: {operation} of {path} on the appliance failed. Check its disk space: df -h")]
    Host {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "STANDIN-E3106: the boot loader image does not fit: {bytes} bytes, and there are {room}. Report this, and use UEFI: standin protect <source> --firmware uefi"
    )]
    LoaderTooLarge { bytes: u64, room: u64 },
    #[error("STANDIN-E3107: the plan of the replica's disk has no {what}. Protect the source anew: standin protect <source>")]
    NotInPlan { what: &'static str },
    #[error(
        "STANDIN-E3108: the boot loader's file {path} is not as expected ({reason}). Reinstall it: apt-get install --reinstall grub-pc-bin grub-efi-amd64-bin"
    )]
    BadLoader { path: PathBuf, reason: &'static str },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl BootError {
    /// The code of the page that explains this error.
    pub fn code(&self) -> &'static str {
        match self {
            BootError::NoKernel { .. } => "STANDIN-E3101",
            BootError::NoDriver { .. } => "STANDIN-E3102",
            BootError::BadInitrd { .. } => "STANDIN-E3103",
            BootError::Guest { .. } => "STANDIN-E3104",
            BootError::Host { .. } => "STANDIN-E3105",
            BootError::LoaderTooLarge { .. } => "STANDIN-E3106",
            BootError::NotInPlan { .. } => "STANDIN-E3107",
            BootError::BadLoader { .. } => "STANDIN-E3108",
            BootError::Disk(error) => error.code(),
        }
    }

    pub(super) fn guest(operation: &'static str, path: &str) -> impl FnOnce(std::io::Error) -> BootError {
        let path = path.to_owned();
        move |source| BootError::Guest { operation, path, source }
    }

    pub(super) fn host(operation: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> BootError {
        let path = path.to_path_buf();
        move |source| BootError::Host { operation, path, source }
    }
}
