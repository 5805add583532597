//! The contract of `Hypervisor`, run against the QEMU driver and the fake. The QEMU run launches an empty disk for real.

use standin_hypervisor::fake::FakeHypervisor;
use standin_hypervisor::qemu::{Acceleration, QemuHypervisor};
use standin_hypervisor::{DiskAttachment, Hypervisor, HypervisorError, Network, NetworkCard, VmDefinition, VmFirmware, VmState};
use std::path::Path;

fn definition(name: &str, owner: &str) -> VmDefinition {
    VmDefinition {
        name: name.into(),
        owner: owner.into(),
        cpus: 1,
        memory_bytes: 128 << 20,
        firmware: VmFirmware::Bios,
        controller: Default::default(),
        cards: vec![NetworkCard { mac: "52:54:00:00:00:01".into(), network: Network::User { forward_ssh: None } }],
    }
}

fn contract(open: impl Fn() -> Box<dyn Hypervisor>, disk: &Path) {
    let host = open();
    let vm = definition("web", "job-1");
    assert!(host.list().unwrap().is_empty());
    assert_eq!(host.state("web").unwrap_err().code(), "STANDIN-E3202");
    host.validate(&vm).unwrap();
    host.define(&vm).unwrap();
    host.define(&vm).unwrap();
    assert_eq!(host.define(&definition("web", "job-2")).unwrap_err().code(), "STANDIN-E3201");
    assert_eq!(host.power_on("web").unwrap_err().code(), "STANDIN-E3211");
    let attachment = DiskAttachment { base: disk.into(), overlay: None };
    host.attach_disk("web", &attachment).unwrap();
    host.attach_disk("web", &attachment).unwrap();
    assert_eq!(host.state("web").unwrap(), VmState::Off);
    host.power_on("web").unwrap();
    host.power_on("web").unwrap();
    drop(host);
    // Another process of the driver, after a restart of the appliance.
    let host = open();
    assert_eq!(host.state("web").unwrap(), VmState::Running);
    let mut larger = vm.clone();
    larger.memory_bytes *= 2;
    assert_eq!(host.define(&larger).unwrap_err().code(), "STANDIN-E3207");
    host.power_off("web", None).unwrap();
    host.power_off("web", None).unwrap();
    assert_eq!(host.state("web").unwrap(), VmState::Off);
    larger.memory_bytes = 1 << 60;
    assert!(matches!(host.validate(&larger), Err(HypervisorError::NoMemory { .. })));
    for hostile in ["", "../x", "-v", "A B", "x/y"] {
        assert_eq!(host.state(hostile).unwrap_err().code(), "STANDIN-E3209", "{hostile}");
    }
    host.power_on("web").unwrap();
    host.destroy("web").unwrap();
    host.destroy("web").unwrap();
    assert!(host.list().unwrap().is_empty());
    assert!(disk.exists());
}

#[test]
fn the_fake_keeps_the_contract() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    let fake = std::sync::Arc::new(FakeHypervisor::new(1 << 40));
    contract(|| Box::new(Shared(fake.clone())), disk.path());
}

#[test]
fn qemu_keeps_the_contract() {
    if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
        eprintln!("SKIPPED: qemu-system-x86_64 is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("replica.raw");
    std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let state = directory.path().join("state");
    contract(|| Box::new(QemuHypervisor::open(&state, Acceleration::Emulate).unwrap()), &disk);
    a_changed_disk_is_refused(&QemuHypervisor::open(&state, Acceleration::Emulate).unwrap(), &disk);
    a_locked_disk_is_named(&QemuHypervisor::open(&state, Acceleration::Emulate).unwrap(), &disk);
}

/// An overlay over a disk that replication wrote meanwhile would be a corrupted machine.
fn a_changed_disk_is_refused(host: &QemuHypervisor, disk: &Path) {
    let attachment = DiskAttachment { base: disk.into(), overlay: None };
    host.define(&definition("stale", "job-1")).unwrap();
    host.attach_disk("stale", &attachment).unwrap();
    std::fs::write(disk, vec![1; 1 << 20]).unwrap();
    host.attach_disk("stale", &attachment).unwrap();
    host.power_on("stale").unwrap();
    host.power_off("stale", None).unwrap();
    host.power_on("stale").unwrap();
    host.power_off("stale", None).unwrap();
    std::fs::write(disk, vec![2; 1 << 20]).unwrap();
    assert_eq!(host.power_on("stale").unwrap_err().code(), "STANDIN-E3212");
    host.destroy("stale").unwrap();
}

fn a_locked_disk_is_named(host: &QemuHypervisor, disk: &Path) {
    let overlay = disk.with_extension("overlay");
    let attachment = DiskAttachment { base: disk.into(), overlay: Some(overlay) };
    for name in ["one", "two"] {
        host.define(&definition(name, "job-1")).unwrap();
    }
    host.attach_disk("one", &attachment).unwrap();
    host.power_on("one").unwrap();
    // QEMU's own lock guards the overlay, also against making it anew.
    assert_eq!(host.attach_disk("two", &attachment).unwrap_err().code(), "STANDIN-E3203");
    host.destroy("two").unwrap();
    assert_eq!(host.state("one").unwrap(), VmState::Running);
    host.destroy("one").unwrap();
}

/// Lets two "processes" of the fake see the same machines.
struct Shared(std::sync::Arc<FakeHypervisor>);

impl Hypervisor for Shared {
    fn host(&self) -> Result<standin_hypervisor::HostInfo, HypervisorError> {
        self.0.host()
    }
    fn validate(&self, vm: &VmDefinition) -> Result<(), HypervisorError> {
        self.0.validate(vm)
    }
    fn define(&self, vm: &VmDefinition) -> Result<(), HypervisorError> {
        self.0.define(vm)
    }
    fn attach_disk(&self, name: &str, disk: &DiskAttachment) -> Result<(), HypervisorError> {
        self.0.attach_disk(name, disk)
    }
    fn power_on(&self, name: &str) -> Result<(), HypervisorError> {
        self.0.power_on(name)
    }
    fn power_off(&self, name: &str, graceful: Option<std::time::Duration>) -> Result<(), HypervisorError> {
        self.0.power_off(name, graceful)
    }
    fn state(&self, name: &str) -> Result<VmState, HypervisorError> {
        self.0.state(name)
    }
    fn console_log(&self, name: &str) -> Result<std::path::PathBuf, HypervisorError> {
        self.0.console_log(name)
    }
    fn list(&self) -> Result<Vec<String>, HypervisorError> {
        self.0.list()
    }
    fn destroy(&self, name: &str) -> Result<(), HypervisorError> {
        self.0.destroy(name)
    }
}
