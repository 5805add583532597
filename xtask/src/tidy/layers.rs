//! Which crate may use which: the architecture as a table. A new edge is a decision with its own commit and reason.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Crate, and those of ours that it may use. The source side (`capture mirror agent`) and the target side (`replica protection
/// hypervisor appliance`) meet only in `model`, `journal`, `wire` and `exclusion`; `agent` and `appliance` are the two shells.
const LAYERS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("journal", &["model"]),
    ("wire", &["model", "journal"]),
    ("capture", &["model"]),
    ("exclusion", &[]),
    ("inode", &[]),
    ("mirror", &["model", "exclusion"]),
    ("hypervisor", &["model"]),
    ("protection", &["model", "exclusion"]),
    ("replica", &["model", "journal", "inode"]),
    ("agent", &["model", "journal", "wire", "capture", "mirror", "inode"]),
    ("appliance", &["model", "journal", "wire", "replica", "protection", "hypervisor"]),
    // The offline debuggers read what lies on disk by the code that wrote it; to the appliance itself the command line speaks only by its API.
    ("cli", &["model", "journal", "replica"]),
    // The simulator and the lab see everything, and nothing uses them.
    ("sim", &["model", "journal", "wire", "capture", "mirror", "replica", "protection", "hypervisor", "agent", "appliance"]),
];

/// Names that say nothing about what is inside.
pub const BANNED: &[&str] =
    &["common", "util", "utils", "helper", "helpers", "manager", "misc", "base", "core", "shared", "service", "handler"];

/// Compares every crate's Cargo.toml with the table.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for entry in fs::read_dir(root.join("crates"))? {
        let folder = entry?.path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let manifest = folder.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
        findings.extend(check_crate(&name, &text));
    }
    findings.sort();
    Ok(findings)
}

fn check_crate(name: &str, manifest: &str) -> Vec<String> {
    if BANNED.contains(&name) {
        return vec![format!("crates/{name}: this name says nothing; name it after what it holds")];
    }
    let Some((_, may)) = LAYERS.iter().find(|(of, _)| *of == name) else {
        return vec![format!("crates/{name}: not in the layer table of xtask/src/tidy/layers.rs")];
    };
    // The tool of every fuzz target knows nothing of ours and is in no program.
    let (product, development) = manifest.split_once("[dev-dependencies]").unwrap_or((manifest, ""));
    let development = development.lines().filter(|line| !line.starts_with("standin-fuzz."));
    let uses = product.lines().chain(development).filter_map(|line| line.trim().strip_prefix("standin-"));
    let uses = uses.filter_map(|rest| rest.split(['.', ' ', '=']).next());
    uses.filter(|used| !may.contains(used)).map(|used| format!("crates/{name}: uses {used}, which its layer may not")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_across_the_sides_is_found() {
        let manifest = "[dependencies]\nstandin-model.workspace = true\nstandin-capture.workspace = true\n";
        assert_eq!(check_crate("replica", manifest), ["crates/replica: uses capture, which its layer may not"]);
        assert_eq!(check_crate("agent", manifest), [""; 0]);
        let fuzzed = "[dependencies]\nstandin-fuzz.workspace = true\n[dev-dependencies]\nstandin-fuzz.workspace = true\n";
        assert_eq!(check_crate("model", fuzzed), ["crates/model: uses fuzz, which its layer may not"]);
    }
}
