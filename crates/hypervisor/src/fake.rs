//! A hypervisor in memory: keeps the contract, runs nothing. For the simulator and for tests of the failover runbook.

use crate::machine::check_name;
use crate::{DiskAttachment, HostInfo, Hypervisor, HypervisorError, VmDefinition, VmState};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug)]
struct Machine {
    definition: VmDefinition,
    disk: Option<DiskAttachment>,
    state: VmState,
}

/// The fake. Memory is the only resource that it runs out of.
#[derive(Debug)]
pub struct FakeHypervisor {
    memory_bytes: u64,
    machines: Mutex<BTreeMap<String, Machine>>,
}

impl FakeHypervisor {
    /// A host with this much memory and no machines.
    pub fn new(memory_bytes: u64) -> FakeHypervisor {
        FakeHypervisor { memory_bytes, machines: Mutex::default() }
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<String, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, name: &str, work: impl FnOnce(&mut Machine) -> Result<T, HypervisorError>) -> Result<T, HypervisorError> {
        check_name(name)?;
        match self.machines().get_mut(name) {
            Some(machine) => work(machine),
            None => Err(HypervisorError::NoSuchMachine { name: name.into() }),
        }
    }
}

impl Hypervisor for FakeHypervisor {
    fn host(&self) -> Result<HostInfo, HypervisorError> {
        let used: u64 = self.machines().values().filter(|m| m.state == VmState::Running).map(|m| m.definition.memory_bytes).sum();
        Ok(HostInfo {
            cpus: 4,
            memory_bytes: self.memory_bytes,
            memory_available_bytes: self.memory_bytes.saturating_sub(used),
            datastore_free_bytes: 1 << 40,
            hardware_virtualization: false,
        })
    }

    fn validate(&self, vm: &VmDefinition) -> Result<(), HypervisorError> {
        vm.check()?;
        let available = self.host()?.memory_available_bytes;
        if vm.memory_bytes > available {
            return Err(HypervisorError::NoMemory { name: vm.name.clone(), needed: vm.memory_bytes, available });
        }
        Ok(())
    }

    fn define(&self, vm: &VmDefinition) -> Result<(), HypervisorError> {
        vm.check()?;
        let mut machines = self.machines();
        let Some(known) = machines.get_mut(&vm.name) else {
            machines.insert(vm.name.clone(), Machine { definition: vm.clone(), disk: None, state: VmState::Off });
            return Ok(());
        };
        if known.definition.owner != vm.owner {
            return Err(HypervisorError::NameInUse { name: vm.name.clone(), owner: known.definition.owner.clone() });
        }
        if known.definition != *vm && known.state != VmState::Off {
            return Err(HypervisorError::Running { name: vm.name.clone() });
        }
        known.definition = vm.clone();
        Ok(())
    }

    fn attach_disk(&self, name: &str, disk: &DiskAttachment) -> Result<(), HypervisorError> {
        self.with(name, |machine| {
            if machine.disk.as_ref() != Some(disk) && machine.state != VmState::Off {
                return Err(HypervisorError::Running { name: name.into() });
            }
            machine.disk = Some(disk.clone());
            Ok(())
        })
    }

    fn power_on(&self, name: &str) -> Result<(), HypervisorError> {
        let definition = self.with(name, |machine| match (&machine.disk, machine.state) {
            (_, VmState::Running) => Ok(None),
            (None, _) => Err(HypervisorError::NoDisk { name: name.into() }),
            (Some(_), _) => Ok(Some(machine.definition.clone())),
        })?;
        let Some(definition) = definition else { return Ok(()) };
        self.validate(&definition)?;
        self.with(name, |machine| {
            machine.state = VmState::Running;
            Ok(())
        })
    }

    fn power_off(&self, name: &str, _graceful: Option<Duration>) -> Result<(), HypervisorError> {
        self.with(name, |machine| {
            machine.state = VmState::Off;
            Ok(())
        })
    }

    fn state(&self, name: &str) -> Result<VmState, HypervisorError> {
        self.with(name, |machine| Ok(machine.state))
    }

    fn console_log(&self, name: &str) -> Result<PathBuf, HypervisorError> {
        self.with(name, |_| Ok(PathBuf::from(format!("/nonexistent/{name}/console.log"))))
    }

    fn list(&self) -> Result<Vec<String>, HypervisorError> {
        Ok(self.machines().keys().cloned().collect())
    }

    fn destroy(&self, name: &str) -> Result<(), HypervisorError> {
        check_name(name)?;
        self.machines().remove(name);
        Ok(())
    }
}
