//! Where built root file systems and disk images are kept: outside the build tree, so that `cargo clean` costs no VM build.
//!
//! Entries are named by a hash of the recipe that made them. An entry is built under a temporary name and renamed, so a half-made
//! one is never used; a lock file makes concurrent runs wait for each other instead of building twice.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use super::command;

/// The cache folder: `$STANDIN_CACHE`, else `$XDG_CACHE_HOME/standin`, else `~/.cache/standin`.
pub fn root() -> Result<PathBuf> {
    let path = if let Some(own) = std::env::var_os("STANDIN_CACHE") {
        PathBuf::from(own)
    } else if let Some(xdg) = std::env::var_os("XDG_CACHE_HOME") {
        PathBuf::from(xdg).join("standin")
    } else {
        let home = std::env::var_os("HOME").context("neither STANDIN_CACHE nor HOME is set")?;
        PathBuf::from(home).join(".cache/standin")
    };
    fs::create_dir_all(&path).with_context(|| format!("creating the cache folder {}", path.display()))?;
    Ok(path)
}

/// A short name for a recipe: equal recipes have equal names, on every machine and compiler.
pub fn key(recipe: &str) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(recipe.as_bytes()))
}

/// The entry `name`, built by `build` into the path it is given if it is not there yet.
pub fn entry(name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let path = root()?.join(name);
    if path.exists() {
        return Ok(path);
    }
    let _lock = lock(name)?;
    if path.exists() {
        return Ok(path);
    }
    let partial = root()?.join(format!(".partial-{name}"));
    fs::remove_file(&partial).ok();
    build(&partial).inspect_err(|_| {
        fs::remove_file(&partial).ok();
    })?;
    fs::rename(&partial, &path).with_context(|| format!("naming the cache entry {}", path.display()))?;
    Ok(path)
}

/// The private key that opens every guest of this cache; made on first use.
pub fn ssh_key() -> Result<PathBuf> {
    let _lock = lock("ssh-key")?;
    let path = root()?.join("guest-key");
    if !path.exists() {
        let words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "standin-lab", "-f"];
        let mut command = command::command(&words);
        command::checked(command.arg(&path), Duration::from_secs(20)).context("making the guests' ssh key")?;
    }
    Ok(path)
}

/// Held until dropped; the kernel lets go of it when the process ends, however it ends.
fn lock(name: &str) -> Result<File> {
    let path = root()?.join(format!(".lock-{name}"));
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive).with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}
