//! Installs the Debian packages that building, testing and showing need.
//!
//! Only what is missing is installed, and it is named first. The package lists are fetched only if apt does not know a package, or
//! knows one that it can no longer download. Some machines carry a back-ported `qemu-utils` whose version excludes Debian's own
//! `qemu-system-x86`; then the pair is asked for at one version, which is a downgrade of the first, and that is said.

use anyhow::{Context, Result, bail, ensure};

use crate::process;

/// Package, and what it is for.
const PACKAGES: &[(&str, &str)] = &[
    ("clang-19", "compiles the capture programmes"),
    ("llvm-19", "strips the capture programmes"),
    ("qemu-system-x86", "runs guests and replicas"),
    ("qemu-utils", "makes overlays and converts disks"),
    ("ovmf", "is the firmware of UEFI guests"),
    ("mmdebstrap", "makes the guests' root file system"),
    ("mtools", "writes EFI system partitions"),
    ("dosfstools", "makes and checks EFI system partitions"),
    ("e2fsprogs", "makes ext4"),
    ("xfsprogs", "makes xfs"),
    ("btrfs-progs", "makes btrfs"),
    ("grub-common", "makes boot loaders"),
    ("grub-pc-bin", "boots BIOS guests"),
    ("grub-efi-amd64-bin", "boots UEFI guests"),
    ("openssh-client", "talks to guests"),
    ("cpio", "reads and makes initramfs images"),
    ("zstd", "reads and makes initramfs images"),
    ("iproute2", "sets up test networks"),
    ("kmod", "tells which drivers an initramfs needs"),
];

/// What the benchmarks compare us with; only they need it.
const PEERS: &[(&str, &str)] = &[
    ("rsync", "is what mirrors are measured against"),
    ("openssh-server", "takes what rsync sends over ssh"),
    ("socat", "connects tar with tar"),
    ("zstd", "compresses for tar"),
    ("iproute2", "sets up test networks"),
    ("postgresql-15", "writes what a database writes"),
    ("strace", "records it"),
];

/// One installation for what is missing, one for what that one removed, one to spare.
const ROUNDS_MAX: u32 = 3;

/// Installs what is missing. Returns what was done.
pub fn run() -> Result<String> {
    run_with(PACKAGES)
}

/// Installs what the benchmarks need besides.
pub fn run_for_bench() -> Result<String> {
    run_with(PEERS)
}

fn run_with(packages: &[(&'static str, &'static str)]) -> Result<String> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(format!("all {} packages are there", packages.len()));
    }
    for (name, purpose) in packages.iter().filter(|(name, _)| missing.contains(name)) {
        println!("setup: {name} {purpose}");
    }
    let (list, mut left) = (missing.join(" "), missing);
    let (_, user, _) = process::collect(&["id", "-u"])?;
    ensure!(user.trim() == "0", "{} packages are missing; as root, type: apt-get update && apt-get install -y {list}", left.len());
    // An installation may remove what was there: apt gives up a back-ported qemu-utils for the sake of Debian's qemu-system-x86.
    for _ in 0..ROUNDS_MAX {
        println!("setup: installing {}", left.join(" "));
        install(&left)?;
        left = self::missing(packages)?;
        if left.is_empty() {
            return Ok(format!("installed {list}"));
        }
    }
    bail!("still missing after {ROUNDS_MAX} installations: {}", left.join(" "))
}

fn missing(packages: &[(&'static str, &'static str)]) -> Result<Vec<&'static str>> {
    let mut words = vec!["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n"];
    words.extend(packages.iter().map(|(name, _)| *name));
    let (_, installed, _) = process::collect(&words)
        .context("this is not a Debian machine: install by hand what xtask/src/setup.rs lists (QEMU, clang 19, mkfs tools, GRUB, mtools, mmdebstrap)")?;
    let has = |name: &str| installed.lines().any(|line| line == format!("{name} installed"));
    Ok(packages.iter().map(|(name, _)| *name).filter(|name| !has(name)).collect())
}

/// Tries with the lists as they are, then with fresh ones, then with QEMU's two packages at one version.
fn install(missing: &[&str]) -> Result<()> {
    let mut said = String::new();
    for fresh in [false, true] {
        if fresh {
            println!("setup: fetching apt's lists");
            process::run(&["apt-get", "update", "-qq"])?;
        }
        match attempt(missing, &[])? {
            None => return Ok(()),
            Some(complaint) => said = complaint,
        }
    }
    if said.contains("qemu") {
        let version = candidate("qemu-system-x86")?;
        let pin = format!("qemu-utils={version}");
        println!("setup: the installed qemu-utils excludes Debian's qemu-system-x86; taking qemu-utils back to {version}");
        match attempt(missing, &["--allow-downgrades", &pin])? {
            None => return Ok(()),
            Some(complaint) => said = complaint,
        }
    }
    let end: Vec<&str> = said.lines().rev().take(6).collect();
    bail!("apt-get refused: {}", end.into_iter().rev().collect::<Vec<_>>().join(" | "))
}

/// One installation; `None` if it worked, else what apt said.
fn attempt(missing: &[&str], extra: &[&str]) -> Result<Option<String>> {
    let mut words = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends"];
    let pinned = extra.iter().any(|word| word.starts_with("qemu-utils="));
    words.extend(missing.iter().filter(|name| !(pinned && **name == "qemu-utils")));
    words.extend(extra);
    let (done, out, error) = process::collect(&words)?;
    Ok((!done).then(|| format!("{out}\n{error}")))
}

fn candidate(package: &str) -> Result<String> {
    let (_, policy, _) = process::collect(&["apt-cache", "policy", package])?;
    let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(line.with_context(|| format!("apt knows no version of {package}"))?.to_owned())
}
