//! The kernels that the suite knows, and their packages: fetched by apt from Debian's archive, checked with its keys, kept in the cache.
//!
//! The cloud flavour: the same source and the same types as the other one, with a third of the drivers. An entry is named by a hash of what was asked for;
//! which version came is told by the guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::debian::{self, Archive};
use crate::lab::{cache, command};

/// Raise it when `archive` changes what it writes, or to ask Debian for newer packages.
const VERSION: u32 = 2;
const IMAGE: &str = "vmlinuz";
const ARCHIVE: &str = "modules.cpio.zst";
const LIMIT: Duration = Duration::from_secs(300);
/// What the writers and the guest's start need; the whole tree would be unpacked into the guest's memory at each boot.
const MODULES: &[&str] = &["fs", "lib", "crypto", "arch", "net/sunrpc", "net/dns_resolver", "drivers/block", "drivers/virtio"];

/// A kernel that capture is to be exact on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: &'static str,
    /// apt's name of where it comes from.
    release: &'static str,
    package: &'static str,
}

pub const ALL: &[Kernel] = &[
    Kernel { name: "6.1", release: "bookworm-security", package: "linux-image-cloud-amd64" },
    Kernel { name: "6.12", release: "bookworm-backports", package: "linux-image-cloud-amd64" },
];

/// A kernel's files in the cache.
pub struct Files {
    pub image: PathBuf,
    /// A part of an initramfs.
    pub modules: PathBuf,
}

impl Kernel {
    pub fn files(&self) -> Result<Files> {
        let key = cache::key(&format!("{VERSION} {self:?} {:?} {MODULES:?}", debian::SOURCES));
        let folder = cache::entry(&format!("kernel-{}-{key}", self.name), |partial| {
            fs::create_dir_all(partial)?;
            self.unpacked(|root| {
                copy_image(root, &partial.join(IMAGE))?;
                archive_modules(root, &partial.join(ARCHIVE))
            })
        })?;
        Ok(Files { image: folder.join(IMAGE), modules: folder.join(ARCHIVE) })
    }

    fn unpacked(&self, with: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        eprintln!("lab: fetching {} of {}", self.package, self.release);
        let folder = std::env::temp_dir().join(format!("standin-kernel-{}-{}", self.name, std::process::id()));
        fs::create_dir_all(&folder)?;
        let done = self.unpack(&folder).and_then(|root| with(&root)).with_context(|| format!("the kernel {}", self.name));
        fs::remove_dir_all(&folder).ok();
        done
    }

    /// The meta package names the versioned one that it stands for.
    fn unpack(&self, folder: &Path) -> Result<PathBuf> {
        let archive = Archive::open(folder)?;
        let about = archive.about(self.package, self.release)?;
        let depends = about.lines().find_map(|line| line.strip_prefix("Depends: ")).context("its package depends on nothing")?;
        let versioned = depends.split([' ', ',']).find(|word| word.starts_with("linux-image-")).context("its package stands for none")?;
        let root = folder.join("root");
        archive.unpack(&[versioned], &root)?;
        Ok(root)
    }
}

fn only(folder: &Path, is_it: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let found: Vec<PathBuf> =
        fs::read_dir(folder)?.flatten().filter(|entry| is_it(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect();
    ensure!(found.len() == 1, "{} has {} files where one was expected", folder.display(), found.len());
    Ok(found[0].clone())
}

fn copy_image(root: &Path, to: &Path) -> Result<()> {
    fs::copy(only(&root.join("boot"), |name| name.starts_with("vmlinuz-"))?, to)?;
    Ok(())
}

fn archive_modules(root: &Path, to: &Path) -> Result<()> {
    let modules = only(&root.join("lib/modules"), |_| true)?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let tree = root.join("chosen");
    let target = tree.join("usr/lib/modules").join(&release);
    for part in MODULES {
        let folder = target.join("kernel").join(part);
        fs::create_dir_all(&folder)?;
        command::checked(command::command(&["cp", "-a"]).arg(modules.join("kernel").join(part).join(".")).arg(&folder), LIMIT)?;
    }
    for entry in fs::read_dir(&modules)?.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("modules.")) {
        fs::copy(entry.path(), target.join(entry.file_name()))?;
    }
    command::checked(command::command(&["depmod", "-b"]).arg(tree.join("usr")).arg(&release), LIMIT)?;
    archive(&tree, to)
}

/// A folder as a compressed part of an initramfs.
pub fn archive(tree: &Path, to: &Path) -> Result<()> {
    let mut command = command::command(&["bash", "-c"]);
    command.arg("set -o pipefail; find . -print0 | cpio --null --create --quiet --format=newc | zstd -q -3 > \"$0\"").arg(to);
    command::checked(command.current_dir(tree), LIMIT)?;
    Ok(())
}
