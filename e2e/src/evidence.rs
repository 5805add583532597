//! Whether the replica's volumes are the source's, file by file, and whether boot repair accounts for every difference.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::compare::{self, Difference, Log};
use crate::job::Site;
use crate::lab::Run;

/// The agent's own state, which is never replicated (see the protection summary).
const AGENT_STATE: &str = "var/lib/standin-agent";

/// The comparison of a source's disk with its replica's.
#[derive(Debug, Serialize)]
pub struct Evidence {
    pub entries: usize,
    /// What boot repair says it changed, by path.
    pub repaired: Vec<(String, String)>,
    /// Differences that boot repair or the agent's own state account for.
    pub accounted: Vec<Difference>,
    /// Everything else. There must be none.
    pub unexplained: Vec<Difference>,
}

/// Reads both disks, which no machine writes any more: the source is off, and the replica runs on an overlay.
pub fn gather(run: &Run, site: &Site) -> Result<Evidence> {
    let report = site.appliance.json(&["job", "boot-repair", &site.job])?;
    let source = site.source_disk.flatten(run.artifacts().join("source.raw"))?;
    let found = compare::disks(&source.path, &site.appliance.replica_disk(&site.job), Log::Ignored, &[])?;
    std::fs::remove_file(&source.path).ok();
    let repaired = changes(&report);
    let explained = Explained::by(&repaired);
    let (accounted, unexplained) = found.differences.into_iter().partition(|difference| explained.covers(difference));
    let evidence = Evidence { entries: found.entries, repaired, accounted, unexplained };
    let listed = serde_json::to_vec_pretty(&evidence)?;
    std::fs::write(run.artifacts().join("differences.json"), listed).context("writing the list of differences")?;
    Ok(evidence)
}

fn changes(report: &Value) -> Vec<(String, String)> {
    let changes = report["changes"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    changes.map(|change| (text(&change["path"]), text(&change["what"]))).collect()
}

/// The paths that boot repair named: itself, what it keeps beside them, and the times of the folders that hold them.
struct Explained {
    paths: BTreeSet<String>,
    folders: BTreeSet<String>,
}

impl Explained {
    fn by(repaired: &[(String, String)]) -> Explained {
        let mut explained = Explained { paths: BTreeSet::new(), folders: BTreeSet::new() };
        for path in repaired.iter().filter_map(|(path, _)| path.strip_prefix('/')).chain([AGENT_STATE]) {
            explained.paths.insert(path.to_owned());
            explained.paths.insert(format!("{path}.standin-original"));
            let folder = Path::new(path).parent().map(|folder| folder.to_string_lossy().into_owned());
            explained.folders.extend(folder);
        }
        explained
    }

    fn covers(&self, difference: &Difference) -> bool {
        let path = Path::new(&difference.path);
        let below = path.ancestors().any(|above| self.paths.contains(&*above.to_string_lossy()));
        below || (difference.what == "modified" && self.folders.contains(&difference.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_named_is_explained() {
        let explained = Explained::by(&[("/etc/fstab".into(), "nofail".into()), ("/boot/grub/i386-pc".into(), "modules".into())]);
        let check = |path: &str, what, expect| {
            let difference = Difference { volume: 2, path: path.into(), what, left: String::new(), right: String::new() };
            assert_eq!(explained.covers(&difference), expect, "{path} {what}");
        };
        check("etc/fstab", "content", true);
        check("etc/fstab.standin-original", "extra", true);
        check("boot/grub/i386-pc/normal.mod", "content", true);
        check("etc", "modified", true);
        check("var/lib/standin-agent/identity.json", "missing", true);
        check("etc", "mode", false);
        check("etc/fstab2", "content", false);
        check("etc/passwd", "content", false);
        check("boot/grub", "missing", false);
    }
}
