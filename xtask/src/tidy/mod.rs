//! The rules that the compiler does not check. All are checked before the suite fails, and each finding names its place.

mod errors;
mod files;
mod layers;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// More packages than this in Cargo.lock is a decision: each costs build time and trust. It was 239 when the bound was set.
const LOCKED_PACKAGES_MAX: usize = 300;

/// Checks everything under the workspace's root.
pub fn run(root: &Path) -> Result<String> {
    let sources = rust_files(root)?;
    let mut findings = layers::check(root)?;
    for path in &sources {
        let text = fs::read_to_string(path)?;
        let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
        findings.extend(files::check(&shown, &text));
    }
    findings.extend(errors::check(root, &sources)?);
    let locked = fs::read_to_string(root.join("Cargo.lock"))?.matches("[[package]]").count();
    if locked > LOCKED_PACKAGES_MAX {
        findings.push(format!("Cargo.lock: {locked} packages, more than {LOCKED_PACKAGES_MAX}"));
    }
    if findings.is_empty() {
        return Ok(format!("{} files, {locked} locked packages", sources.len()));
    }
    findings.iter().for_each(|finding| println!("tidy: {finding}"));
    bail!("{} findings", findings.len())
}

/// Every Rust file of ours.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> =
        ["crates", "e2e", "xtask", "fuzz"].iter().map(|name| root.join(name)).filter(|path| path.is_dir()).collect();
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                waiting.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
