//! The guests' root file system: a stock Debian 12 server, made once by mmdebstrap and kept as a tarball.
//!
//! The recipe is the list of packages; its hash names the tarball, so changing a line here builds a new one. What only some suites need has a
//! tarball of its own, so that the others stay small.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{cache, command};

/// The release that guests run.
const SUITE: &str = "bookworm";

/// Packages beside Debian's minimal variant. `linux-image-amd64` and not the cloud kernel: a source may pretend to be a machine
/// from another hypervisor, and only the full kernel has those drivers.
const PACKAGES: &[&str] = &[
    "linux-image-amd64",
    "initramfs-tools",
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "iproute2",
    "procps",
    "less",
    "openssh-server",
    // The boot loader as an installed server has it, for either firmware.
    "grub2-common",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "efibootmgr",
    "dosfstools",
    "e2fsprogs",
    "xfsprogs",
    "btrfs-progs",
    // What the special files and the workloads need.
    "acl",
    "attr",
    "libcap2-bin",
    "sqlite3",
    "fio",
    "zstd",
    "postgresql-15",
    // For looking at probes from inside.
    "bpftool",
];

/// What a guest carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Content {
    /// A server with PostgreSQL.
    Server,
    /// Also MariaDB, and a repository of packages to install (see `lab::repository`).
    Databases,
}

/// What [`Content::Databases`] has besides.
const DATABASES: &[&str] = &["mariadb-server"];

impl Content {
    fn packages(self) -> Vec<&'static str> {
        let more: &[&str] = if self == Content::Databases { DATABASES } else { &[] };
        [PACKAGES, more].concat()
    }
}

/// A download of 250 MB and the unpacking of it; it took 70 s on two cores.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// The hash that names this recipe's tarball.
pub fn key(content: Content) -> String {
    cache::key(&format!("{SUITE} {}", content.packages().join(" ")))
}

/// The tarball, built if the cache does not have it.
pub fn tarball(content: Content) -> Result<PathBuf> {
    let name = format!("rootfs-{}.tar", key(content));
    cache::entry(&name, |partial| {
        eprintln!("lab: building the guests' root file system (once, 1 to 4 minutes)");
        let include = format!("--include={}", content.packages().join(","));
        let mut command = command::command(&["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", &include, SUITE]);
        command::checked(command.arg(partial), LIMIT).context("building the root file system with mmdebstrap")?;
        Ok(())
    })
}
