//! Starting and ending the QEMU process: overlay, firmware variables, the launch itself, and whether a recorded pid still is ours.

use super::command::{Files, arguments};
use super::qmp;
use crate::{DiskAttachment, HypervisorError, VmDefinition, VmFirmware};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Firmware images of the `ovmf` package: code and the template of the variables.
const UEFI_IMAGES: [(&str, &str); 2] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];

/// The firmware images of this host.
pub fn uefi_images() -> Result<(PathBuf, PathBuf), HypervisorError> {
    let found = UEFI_IMAGES.iter().find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists());
    found
        .map(|(code, variables)| (PathBuf::from(code), PathBuf::from(variables)))
        .ok_or_else(|| HypervisorError::ProgramMissing { program: UEFI_IMAGES[0].0.into(), package: "ovmf" })
}

/// Fails when a program is not in the search path.
pub fn require_program(program: &Path, package: &'static str) -> Result<(), HypervisorError> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&paths).any(|directory| directory.join(program).is_file()) {
        return Ok(());
    }
    Err(HypervisorError::ProgramMissing { program: program.display().to_string(), package })
}

/// Makes a fresh overlay over the replica's disk.
pub fn make_overlay(name: &str, disk: &DiskAttachment, files: &Files) -> Result<(), HypervisorError> {
    let base = disk.base.canonicalize().map_err(HypervisorError::io("resolving", &disk.base))?;
    let overlay = disk.overlay.clone().unwrap_or_else(|| files.overlay());
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&base).arg(&overlay);
    let output = output(&mut command, "qemu-utils")?;
    checked(name, &disk.base, &output)
}

/// Size and modification time of a disk; the guest never writes it, so a change means that replication went on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseStamp {
    bytes: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl BaseStamp {
    /// Takes the stamp of a disk.
    pub fn of(disk: &Path) -> Result<BaseStamp, HypervisorError> {
        let data = std::fs::metadata(disk).map_err(HypervisorError::io("examining", disk))?;
        Ok(BaseStamp { bytes: data.len(), seconds: data.mtime(), nanoseconds: data.mtime_nsec() })
    }
}

/// Launches the machine; returns when QEMU has gone to the background with its disk locked and its sockets open.
pub fn launch(qemu: &Path, vm: &VmDefinition, disk: &DiskAttachment, files: &Files, accelerated: bool) -> Result<(), HypervisorError> {
    let mut code = PathBuf::new();
    if vm.firmware == VmFirmware::Uefi {
        let (image, template) = uefi_images()?;
        if !files.variables().exists() {
            std::fs::copy(&template, files.variables()).map_err(HypervisorError::io("copying", &template))?;
        }
        code = image;
    }
    for stale in [files.pid(), files.qmp()] {
        let _ = std::fs::remove_file(stale);
    }
    let overlay = disk.overlay.clone().unwrap_or_else(|| files.overlay());
    let mut command = Command::new(qemu);
    command.args(arguments(vm, files, &overlay, accelerated, &code));
    // A process group of its own, so that a signal to the appliance's group does not end the machine.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let output = output(&mut command, "qemu-system-x86")?;
    tracing::info!(vm = vm.name, accelerated, "machine launched");
    checked(&vm.name, &disk.base, &output)
}

fn output(command: &mut Command, package: &'static str) -> Result<Output, HypervisorError> {
    command.stdin(Stdio::null()).output().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            HypervisorError::ProgramMissing { program: command.get_program().to_string_lossy().into_owned(), package }
        }
        _ => HypervisorError::io("starting", Path::new(command.get_program()))(source),
    })
}

fn checked(name: &str, disk: &Path, output: &Output) -> Result<(), HypervisorError> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
    // QEMU's wording in block/file-posix.c for a lock that another process holds.
    if stderr.contains("Failed to get") && stderr.contains("lock") {
        return Err(HypervisorError::DiskLocked { name: name.into(), path: disk.into() });
    }
    Err(HypervisorError::LaunchFailed { name: name.into(), stderr })
}

/// The pid of the machine's process, if it lives and is ours.
pub fn running_pid(files: &Files) -> Option<rustix::process::Pid> {
    let text = std::fs::read_to_string(files.pid()).ok()?;
    let number: i32 = text.trim().parse().ok()?;
    let line = std::fs::read(format!("/proc/{number}/cmdline")).ok()?;
    let pid_file = files.pid();
    let ours = line.split(|byte| *byte == 0).any(|word| word == pid_file.as_os_str().as_encoded_bytes());
    if ours { rustix::process::Pid::from_raw(number) } else { None }
}

/// Ends the process: first by QMP, so that images are closed, then by a signal.
pub fn cut_power(files: &Files) {
    if running_pid(files).is_none() {
        return;
    }
    // The connection may close before the answer comes; only the process's end counts.
    let asked = qmp::execute(&files.qmp(), "quit", Duration::from_secs(5));
    if asked.is_err()
        && let Some(pid) = running_pid(files)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Writes a small state file so that a crash leaves either the old or the new one.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), HypervisorError> {
    let draft = path.with_extension("draft");
    let text = serde_json::to_vec_pretty(value).map_err(|error| HypervisorError::io("encoding", path)(error.into()))?;
    std::fs::write(&draft, text).map_err(HypervisorError::io("writing", &draft))?;
    std::fs::File::open(&draft).and_then(|file| file.sync_all()).map_err(HypervisorError::io("syncing", &draft))?;
    std::fs::rename(&draft, path).map_err(HypervisorError::io("renaming", path))
}
