//! A guest that lives in memory: a kernel, and an initramfs with a small Debian and the programs under test. It has no network and nobody logs in; what
//! it finds goes to the serial console, and then it switches itself off.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::kernel::{self, Files};
use crate::lab::{Run, accel, cache, command, emulator};

const PACKAGES: &[&str] = &[
    "kmod",
    "util-linux",
    "mount",
    "procps",
    "iproute2",
    "e2fsprogs",
    "xfsprogs",
    "btrfs-progs",
    "acl",
    "attr",
    "libcap2-bin",
    "nfs-kernel-server",
];
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);
/// Each of the three disks, sparse: the smallest with which every mkfs makes what it would make on a server.
const DISK_BYTES: u64 = 1 << 30;
const DISKS: usize = 3;
/// The root file system takes 350 MiB of it.
const MEMORY_MIB: u32 = 2048;

const INIT: &str = include_str!("guest/init.sh");
const WRITERS: &str = include_str!("guest/writers.sh");
const HOUSEKEEPING: &str = include_str!("guest/housekeeping.sh");

/// The guests' programs as a part of an initramfs, made once.
fn base() -> Result<PathBuf> {
    let key = cache::key(&format!("1 {PACKAGES:?}"));
    cache::entry(&format!("memory-guest-{key}.cpio.zst"), |partial| {
        eprintln!("lab: building the small guest (once, 1 to 3 minutes)");
        let tree = std::env::temp_dir().join(format!("standin-memory-guest-{}", std::process::id()));
        let include = format!("--include={}", PACKAGES.join(","));
        let mut build = command::command(&["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", &include, "bookworm"]);
        let made = command::checked(build.arg(&tree), BUILD_LIMIT).context("building the root file system with mmdebstrap");
        let done = made.and_then(|_| {
            for useless in ["usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists"] {
                fs::remove_dir_all(tree.join(useless)).ok();
            }
            kernel::archive(&tree, partial)
        });
        fs::remove_dir_all(&tree).ok();
        done
    })
}

/// The parts one after the other, as the kernel takes them.
pub fn initramfs(run: &Run, files: &Files, probe: &Path) -> Result<PathBuf> {
    let folder = run.scratch().join("programs");
    fs::create_dir_all(folder.join("standin"))?;
    for (name, text) in [("init", INIT), ("standin/writers.sh", WRITERS), ("standin/housekeeping.sh", HOUSEKEEPING)] {
        fs::write(folder.join(name), text)?;
    }
    fs::copy(probe, folder.join("standin/standin-capture-probe")).with_context(|| format!("there is no {}", probe.display()))?;
    command::checked(command::command(&["chmod", "-R", "755"]).arg(&folder), Duration::from_secs(10))?;
    let programs = run.scratch().join("programs.cpio.zst");
    kernel::archive(&folder, &programs)?;
    let whole = run.scratch().join("initramfs");
    let mut out = fs::File::create(&whole)?;
    for part in [base()?, files.modules.clone(), programs] {
        let mut bytes = fs::read(&part)?;
        // The kernel looks for the next part at a multiple of four.
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        out.write_all(&bytes)?;
    }
    Ok(whole)
}

/// Runs the guest to its end. Returns what its console said.
pub fn boot(run: &Run, name: &str, files: &Files, initramfs: &Path, arguments: &str, limit: Duration) -> Result<String> {
    let serial = run.artifacts().join(format!("{name}-serial.log"));
    let said = run.artifacts().join(format!("{name}-qemu.log"));
    let log = fs::File::create(&said)?;
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "--", emulator::program()?]).args(accel::choose()?.options());
    qemu.args(["-display", "none", "-nodefaults", "-no-reboot", "-smp", "2", "-m", &MEMORY_MIB.to_string()]);
    qemu.arg("-kernel").arg(&files.image).arg("-initrd").arg(initramfs);
    qemu.arg("-append").arg(format!("console=ttyS0 panic=-1 loglevel=4 {arguments}"));
    qemu.arg("-serial").arg(format!("file:{}", serial.display()));
    for number in 0..DISKS {
        let disk = run.scratch().join(format!("{name}-{number}.raw"));
        fs::File::create(&disk)?.set_len(DISK_BYTES)?;
        qemu.arg("-drive").arg(format!("if=virtio,format=raw,cache=unsafe,discard=unmap,file={}", disk.display()));
    }
    let mut child = qemu.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("starting QEMU")?;
    let ended = command::wait(&mut child, limit);
    if !matches!(ended, Ok(Some(_))) {
        child.kill().ok();
        child.wait().ok();
    }
    let console = String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).replace('\r', "");
    match ended? {
        Some(status) if status.success() => Ok(console),
        Some(status) => bail!("QEMU ended with {status}: {}", fs::read_to_string(&said).unwrap_or_default().trim()),
        None => bail!("{name} was not done within {} s; its console ends with: {}", limit.as_secs(), last_line(&console)),
    }
}

fn last_line(console: &str) -> &str {
    console.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default()
}
