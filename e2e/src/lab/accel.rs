//! Which accelerator QEMU gets: KVM only where it has really booted something, emulation otherwise.
//!
//! A `/dev/kvm` can be there and still hang a stock guest kernel, so its existence proves nothing. The probe starts the guest's own
//! kernel without a disk and waits until it has come far enough to panic for want of one. The answer is kept per boot of the host.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{cache, command};

/// A kernel under KVM panics within 3 s; this is generous for a loaded host.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// What QEMU is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Emulation,
}

impl Accelerator {
    /// QEMU's options. Five-level paging is off because QEMU 7.2's emulation double-faults newer kernels with it, and cmpxchg16b
    /// with it for the same reason.
    pub fn options(self) -> [&'static str; 4] {
        match self {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accelerator::Emulation => ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off,cx16=off"],
        }
    }
}

/// The accelerator of this machine; `STANDIN_ACCEL=kvm|tcg` decides it without a probe.
pub fn choose() -> Result<Accelerator> {
    match std::env::var("STANDIN_ACCEL").as_deref() {
        Ok("kvm") => return Ok(Accelerator::Kvm),
        Ok("tcg") => return Ok(Accelerator::Emulation),
        _ => {}
    }
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accelerator::Emulation);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let note = cache::root()?.join("accelerator");
    let kept = fs::read_to_string(&note).unwrap_or_default();
    let works = match kept.strip_prefix(boot.trim()).map(str::trim) {
        Some("kvm") => true,
        Some("tcg") => false,
        _ => {
            let works = probe()?;
            fs::write(&note, format!("{} {}\n", boot.trim(), if works { "kvm" } else { "tcg" }))?;
            works
        }
    };
    Ok(if works { Accelerator::Kvm } else { Accelerator::Emulation })
}

/// Boots the guest's kernel under KVM; `false` if it does not come to its panic in time.
fn probe() -> Result<bool> {
    let folder = std::env::temp_dir().join(format!("standin-kvm-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let works = probe_in(&folder);
    fs::remove_dir_all(&folder).ok();
    works
}

fn probe_in(folder: &Path) -> Result<bool> {
    let mut unpack = command::command(&["tar", "--extract", "--wildcards", "--strip-components=2", "--file"]);
    unpack.arg(super::recipe::tarball(super::recipe::Content::Server)?).arg("--directory").arg(folder).arg("./boot/vmlinuz-*");
    command::checked(&mut unpack, Duration::from_secs(60))?;
    let Some(kernel) = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).next() else { return Ok(false) };
    let serial = folder.join("serial");
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "kvm", "-cpu", "host", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", "console=ttyS0 panic=-1", "-serial"])
        .arg(format!("file:{}", serial.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + PROBE_LIMIT;
    let mut works = false;
    while !works && Instant::now() < deadline && qemu.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(100));
        works = fs::read(&serial).is_ok_and(|text| String::from_utf8_lossy(&text).contains("Unable to mount root"));
    }
    works |= fs::read(&serial).is_ok_and(|text| String::from_utf8_lossy(&text).contains("Unable to mount root"));
    qemu.kill().ok();
    qemu.wait().ok();
    Ok(works)
}
