//! The embedded hypervisor: plain QEMU processes on the appliance's own host.
//!
//! Everything known about a machine lies in `<state>/<name>/`: its definition, its disk, the pid file and the QMP socket. The driver
//! holds nothing in memory, so machines and their state survive the appliance. A pid is believed only if that process's command
//! line names our pid file, because pids are reused.

mod accel;
mod command;
mod launch;
mod qmp;

use crate::machine::check_name;
use crate::{DiskAttachment, HostInfo, Hypervisor, HypervisorError, VmDefinition, VmFirmware, VmState};
use command::Files;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long QEMU may take to answer a question; it answers within milliseconds unless the host is overloaded.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the process may take to end after its power was cut.
const END_TIME_MAX: Duration = Duration::from_secs(20);
/// Memory that QEMU itself takes on top of the guest's.
const OVERHEAD_BYTES: u64 = 128 << 20;

/// Which acceleration guests get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// KVM if a probe proves that it works.
    Probe,
    /// Emulation, always.
    Emulate,
}

/// The QEMU driver.
#[derive(Debug)]
pub struct QemuHypervisor {
    state: PathBuf,
    acceleration: Acceleration,
    qemu: PathBuf,
}

impl QemuHypervisor {
    /// A driver whose machines live below `state`, which is made if needed.
    pub fn open(state: &Path, acceleration: Acceleration) -> Result<QemuHypervisor, HypervisorError> {
        std::fs::create_dir_all(state).map_err(HypervisorError::io("making", state))?;
        let state = state.canonicalize().map_err(HypervisorError::io("resolving", state))?;
        Ok(QemuHypervisor { state, acceleration, qemu: "qemu-system-x86_64".into() })
    }

    fn files(&self, name: &str) -> Result<Files, HypervisorError> {
        check_name(name)?;
        Ok(Files { directory: self.state.join(name) })
    }

    fn known(&self, name: &str) -> Result<(Files, VmDefinition), HypervisorError> {
        let files = self.files(name)?;
        let definition = read_json(&files.definition())?.ok_or_else(|| HypervisorError::NoSuchMachine { name: name.into() })?;
        Ok((files, definition))
    }

    fn accelerated(&self) -> bool {
        self.acceleration == Acceleration::Probe && accel::hardware_works(&self.qemu, &self.state)
    }

    /// Waits until the machine's process has ended.
    fn wait_end(&self, files: &Files, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while launch::running_pid(files).is_some() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    fn require_off(&self, name: &str, files: &Files) -> Result<(), HypervisorError> {
        match launch::running_pid(files) {
            Some(_) => Err(HypervisorError::Running { name: name.into() }),
            None => Ok(()),
        }
    }
}

impl Hypervisor for QemuHypervisor {
    fn host(&self) -> Result<HostInfo, HypervisorError> {
        let path = Path::new("/proc/meminfo");
        let text = std::fs::read_to_string(path).map_err(HypervisorError::io("reading", path))?;
        let field = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().nth(1)).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
        };
        let stat = rustix::fs::statvfs(&self.state).map_err(|errno| HypervisorError::io("measuring", &self.state)(errno.into()))?;
        Ok(HostInfo {
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
            memory_bytes: field("MemTotal"),
            memory_available_bytes: field("MemAvailable"),
            datastore_free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            hardware_virtualization: self.accelerated(),
        })
    }

    fn validate(&self, vm: &VmDefinition) -> Result<(), HypervisorError> {
        vm.check()?;
        launch::require_program(&self.qemu, "qemu-system-x86")?;
        launch::require_program(Path::new("qemu-img"), "qemu-utils")?;
        if vm.firmware == VmFirmware::Uefi {
            launch::uefi_images()?;
        }
        let available = self.host()?.memory_available_bytes;
        let needed = vm.memory_bytes.saturating_add(OVERHEAD_BYTES);
        if needed > available {
            return Err(HypervisorError::NoMemory { name: vm.name.clone(), needed, available });
        }
        Ok(())
    }

    fn define(&self, vm: &VmDefinition) -> Result<(), HypervisorError> {
        vm.check()?;
        let files = self.files(&vm.name)?;
        if let Some(known) = read_json::<VmDefinition>(&files.definition())? {
            if known.owner != vm.owner {
                return Err(HypervisorError::NameInUse { name: vm.name.clone(), owner: known.owner });
            }
            if known == *vm {
                return Ok(());
            }
            self.require_off(&vm.name, &files)?;
        }
        std::fs::create_dir_all(&files.directory).map_err(HypervisorError::io("making", &files.directory))?;
        launch::write_json(&files.definition(), vm)
    }

    fn attach_disk(&self, name: &str, disk: &DiskAttachment) -> Result<(), HypervisorError> {
        let (files, _) = self.known(name)?;
        let same = read_json::<DiskAttachment>(&files.disk())?.as_ref() == Some(disk);
        // An overlay that the guest has written is kept; one that never ran is made anew over the disk as it is now.
        if same && (files.base_stamp().exists() || launch::running_pid(&files).is_some()) {
            return Ok(());
        }
        self.require_off(name, &files)?;
        let _ = std::fs::remove_file(files.base_stamp());
        launch::make_overlay(name, disk, &files)?;
        launch::write_json(&files.disk(), disk)
    }

    fn power_on(&self, name: &str) -> Result<(), HypervisorError> {
        let (files, vm) = self.known(name)?;
        if launch::running_pid(&files).is_some() {
            return Ok(());
        }
        let disk: DiskAttachment = read_json(&files.disk())?.ok_or_else(|| HypervisorError::NoDisk { name: name.into() })?;
        self.validate(&vm)?;
        let stamp = launch::BaseStamp::of(&disk.base)?;
        match read_json::<launch::BaseStamp>(&files.base_stamp())? {
            Some(known) if known != stamp => return Err(HypervisorError::BaseChanged { name: name.into(), path: disk.base }),
            Some(_) => {}
            None => launch::write_json(&files.base_stamp(), &stamp)?,
        }
        launch::launch(&self.qemu, &vm, &disk, &files, self.accelerated())?;
        match self.state(name)? {
            VmState::Running => Ok(()),
            other => Err(HypervisorError::LaunchFailed { name: name.into(), stderr: format!("the machine is {other:?}") }),
        }
    }

    fn power_off(&self, name: &str, graceful: Option<Duration>) -> Result<(), HypervisorError> {
        let (files, _) = self.known(name)?;
        if let Some(limit) = graceful
            && launch::running_pid(&files).is_some()
            && qmp::execute(&files.qmp(), "system_powerdown", ANSWER_TIME_MAX).is_ok()
            && self.wait_end(&files, limit)
        {
            return Ok(());
        }
        launch::cut_power(&files);
        if !self.wait_end(&files, END_TIME_MAX) {
            let waited_ms = END_TIME_MAX.as_millis() as u64;
            return Err(HypervisorError::NoAnswer { name: name.into(), operation: "power off", waited_ms });
        }
        Ok(())
    }

    fn state(&self, name: &str) -> Result<VmState, HypervisorError> {
        let (files, _) = self.known(name)?;
        if launch::running_pid(&files).is_none() {
            return Ok(VmState::Off);
        }
        let answer = match qmp::execute(&files.qmp(), "query-status", ANSWER_TIME_MAX) {
            Ok(answer) => answer,
            // It may have ended between the two questions.
            Err(_) if launch::running_pid(&files).is_none() => return Ok(VmState::Off),
            Err(_) => {
                let waited_ms = ANSWER_TIME_MAX.as_millis() as u64;
                return Err(HypervisorError::NoAnswer { name: name.into(), operation: "query status", waited_ms });
            }
        };
        Ok(match answer.get("status").and_then(|status| status.as_str()) {
            Some("running" | "prelaunch" | "inmigrate") => VmState::Running,
            Some("paused" | "suspended" | "postmigrate" | "debug") => VmState::Paused,
            Some("shutdown") => VmState::Off,
            _ => VmState::Failed,
        })
    }

    fn console_log(&self, name: &str) -> Result<PathBuf, HypervisorError> {
        self.known(name).map(|(files, _)| files.console())
    }

    fn list(&self) -> Result<Vec<String>, HypervisorError> {
        let entries = std::fs::read_dir(&self.state).map_err(HypervisorError::io("listing", &self.state))?;
        let named = entries.flatten().filter(|entry| entry.path().join("vm.json").is_file());
        let mut names: Vec<String> = named.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    fn destroy(&self, name: &str) -> Result<(), HypervisorError> {
        let files = self.files(name)?;
        if !files.directory.exists() {
            return Ok(());
        }
        if files.definition().exists() {
            self.power_off(name, None)?;
        }
        if let Some(DiskAttachment { overlay: Some(overlay), .. }) = read_json(&files.disk())? {
            let _ = std::fs::remove_file(overlay);
        }
        std::fs::remove_dir_all(&files.directory).map_err(HypervisorError::io("removing", &files.directory))
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, HypervisorError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| HypervisorError::io("decoding", path)(error.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(HypervisorError::io("reading", path)(error)),
    }
}
