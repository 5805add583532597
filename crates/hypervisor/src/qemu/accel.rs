//! Decides whether guests may use KVM: by really starting a machine, because a device node alone proves nothing.
//!
//! On a nested host the node may exist and guests may hang on it. The probe starts a machine of two instructions' worth of
//! firmware: SeaBIOS without a disk prints to its debug port; it must do so within the limit. The result is cached in the state
//! directory for one boot of the host.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// SeaBIOS reaches "No bootable device" after about a second of emulation; KVM is faster.
const PROBE_TIME_MAX: Duration = Duration::from_secs(8);

/// True when KVM really runs guests here.
pub fn hardware_works(qemu: &Path, state: &Path) -> bool {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let cache = state.join("kvm-probe");
    if let Ok(text) = std::fs::read_to_string(&cache)
        && let Some(result) = text.strip_prefix(boot.trim())
    {
        return result.trim() == "works";
    }
    let works = Path::new("/dev/kvm").exists() && probe(qemu, state);
    let answer = if works { "works" } else { "fails" };
    if let Err(error) = std::fs::write(&cache, format!("{} {answer}", boot.trim())) {
        tracing::warn!(%error, "the result of the KVM probe is not kept");
    }
    tracing::info!(answer, "probed KVM");
    works
}

fn probe(qemu: &Path, state: &Path) -> bool {
    let log = state.join("kvm-probe.log");
    let _ = std::fs::remove_file(&log);
    let mut command = Command::new(qemu);
    command.args(["-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "64", "-nodefaults", "-display", "none"]);
    command.arg("-chardev").arg(format!("file,id=log,path={}", log.display()));
    command.args(["-device", "isa-debugcon,iobase=0x402,chardev=log"]);
    let Ok(mut child) = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() else { return false };
    let deadline = Instant::now() + PROBE_TIME_MAX;
    let mut works = false;
    while !works && Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        works = std::fs::read_to_string(&log).is_ok_and(|text| text.contains("No bootable device"));
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    works
}
