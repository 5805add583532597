//! The QEMU command line of a machine: a pure function, so that it can be tested and shown.

use crate::{DiskController, Network, VmDefinition, VmFirmware};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Files of one machine below the driver's state directory.
#[derive(Debug, Clone)]
pub struct Files {
    pub directory: PathBuf,
}

impl Files {
    pub fn definition(&self) -> PathBuf {
        self.directory.join("vm.json")
    }
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.json")
    }
    /// What the replica's disk looked like when the machine first ran on it.
    pub fn base_stamp(&self) -> PathBuf {
        self.directory.join("base-stamp.json")
    }
    pub fn overlay(&self) -> PathBuf {
        self.directory.join("overlay.qcow2")
    }
    pub fn variables(&self) -> PathBuf {
        self.directory.join("uefi-variables.fd")
    }
    pub fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }
    pub fn pid(&self) -> PathBuf {
        self.directory.join("qemu.pid")
    }
    pub fn qmp(&self) -> PathBuf {
        self.directory.join("qmp.sock")
    }
}

/// QEMU splits option values at commas; a comma inside a value is doubled.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// All arguments after the program's name. `uefi_code` is the read-only firmware image for UEFI machines.
pub fn arguments(vm: &VmDefinition, files: &Files, overlay: &Path, accelerated: bool, uefi_code: &Path) -> Vec<OsString> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    add("-name", format!("guest={}", vm.name));
    add("-machine", "q35".into());
    // Five-level paging and cmpxchg16b are off because QEMU 7.2's emulation double-faults newer kernels with them.
    let (accel, cpu) = if accelerated { ("kvm", "host") } else { ("tcg,thread=multi", "max,la57=off,cx16=off") };
    add("-accel", accel.into());
    add("-cpu", cpu.into());
    add("-smp", vm.cpus.to_string());
    add("-m", format!("{}M", vm.memory_bytes >> 20));
    if vm.firmware == VmFirmware::Uefi {
        add("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={}", escaped(uefi_code)));
        add("-drive", format!("if=pflash,format=raw,unit=1,file={}", escaped(&files.variables())));
    }
    // Writeback honours the guest's flushes, and at failover most of the replica still lies in the host's page cache.
    add("-drive", format!("if=none,id=disk0,format=qcow2,cache=writeback,aio=threads,discard=unmap,file={}", escaped(overlay)));
    match vm.controller {
        DiskController::VirtioScsi => {
            add("-device", "virtio-scsi-pci,id=scsi0".into());
            add("-device", "scsi-hd,bus=scsi0.0,drive=disk0,bootindex=1".into());
        }
        DiskController::VirtioBlk => add("-device", "virtio-blk-pci,drive=disk0,bootindex=1".into()),
    }
    add("-nic", "none".into());
    for (index, card) in vm.cards.iter().enumerate() {
        let backend = match &card.network {
            Network::Isolated => format!("hubport,id=net{index},hubid={index}"),
            Network::Bridge { bridge } => format!("bridge,id=net{index},br={bridge}"),
            Network::Tap { interface } => format!("tap,id=net{index},ifname={interface},script=no,downscript=no"),
            Network::User { forward_ssh: None } => format!("user,id=net{index},restrict=on"),
            Network::User { forward_ssh: Some(port) } => {
                format!("user,id=net{index},restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22")
            }
        };
        add("-netdev", backend);
        // romfile= leaves out network boot, which would only delay a start whose disk is broken.
        add("-device", format!("virtio-net-pci,netdev=net{index},mac={},romfile=", card.mac));
    }
    add("-device", "virtio-rng-pci".into());
    add("-vga", "std".into());
    add("-display", "none".into());
    add("-serial", format!("file:{}", files.console().display()));
    add("-qmp", format!("unix:{},server=on,wait=off", escaped(&files.qmp())));
    add("-pidfile", files.pid().display().to_string());
    words.push("-daemonize".into());
    words.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetworkCard;

    #[test]
    fn commas_in_paths_cannot_add_options() {
        let vm = VmDefinition {
            name: "a".into(),
            owner: "b".into(),
            cpus: 2,
            memory_bytes: 1 << 30,
            firmware: VmFirmware::Uefi,
            controller: DiskController::VirtioScsi,
            cards: vec![NetworkCard { mac: "52:54:00:00:00:01".into(), network: Network::User { forward_ssh: Some(2222) } }],
        };
        let files = Files { directory: "/state/a".into() };
        let words = arguments(&vm, &files, Path::new("/x,readonly=on"), false, Path::new("/code.fd"));
        let line = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        assert!(line.contains("file=/x,,readonly=on"), "{line}");
        assert!(line.contains("hostfwd=tcp:127.0.0.1:2222-:22") && line.contains("restrict=on"));
        assert!(line.contains("unit=0,readonly=on,file=/code.fd") && line.contains("-accel tcg,thread=multi"));
    }
}
