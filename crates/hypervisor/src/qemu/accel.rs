//! Decides whether guests may use KVM: by really booting a kernel, because a device node alone proves nothing.
//!
//! On a nested host the node may exist, firmware may even run, and stock kernels hang. The probe starts the appliance's own kernel
//! without a disk and waits until it panics for want of one. Where there is no kernel to probe with, guests are emulated: slow and
//! right beats fast and hanging. The result is cached in the state directory for one boot of the host.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A kernel under KVM comes to its panic within 3 s; this is generous for a loaded host.
const PROBE_TIME_MAX: Duration = Duration::from_secs(20);
/// What a kernel says that finds no root file system (init/do_mounts.c).
const PANIC: &[u8] = b"Unable to mount root";

/// True when KVM really runs guests here.
pub fn hardware_works(qemu: &Path, state: &Path) -> bool {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let cache = state.join("kvm-probe");
    if let Ok(text) = std::fs::read_to_string(&cache)
        && let Some(result) = text.strip_prefix(boot.trim())
    {
        return result.trim() == "works";
    }
    let works = Path::new("/dev/kvm").exists() && kernel().is_some_and(|kernel| probe(qemu, &kernel, state));
    let answer = if works { "works" } else { "fails" };
    if let Err(error) = std::fs::write(&cache, format!("{} {answer}", boot.trim())) {
        tracing::warn!(%error, "the result of the KVM probe is not kept");
    }
    tracing::info!(answer, "probed KVM");
    works
}

/// Any kernel image of the appliance.
fn kernel() -> Option<PathBuf> {
    let entries = std::fs::read_dir("/boot").ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
}

fn probe(qemu: &Path, kernel: &Path, state: &Path) -> bool {
    let log = state.join("kvm-probe.log");
    let _ = std::fs::remove_file(&log);
    let mut command = Command::new(qemu);
    command.args(["-accel", "kvm", "-cpu", "host", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot"]);
    command.arg("-kernel").arg(kernel).args(["-append", "console=ttyS0 panic=-1"]);
    command.arg("-serial").arg(format!("file:{}", log.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return false };
    let deadline = Instant::now() + PROBE_TIME_MAX;
    let panicked = || std::fs::read(&log).is_ok_and(|text| text.windows(PANIC.len()).any(|window| window == PANIC));
    while !panicked() && Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let works = panicked();
    let _ = child.kill();
    let _ = child.wait();
    works
}
