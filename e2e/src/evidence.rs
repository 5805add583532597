//! Whether the replica's volumes are the source's, file by file, and whether boot repair or the job's exclusions account for every difference.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use standin_mirror::Exclusions;

use crate::compare::{self, Difference, Log};
use crate::job::Site;
use crate::lab::Run;

/// The agent's own state, which is never replicated, and which it writes until its machine is off.
const AGENT_STATE: &str = "var/lib/standin-agent";

/// The comparison of a source's disk with its replica's.
#[derive(Debug, Serialize)]
pub struct Evidence {
    pub entries: usize,
    /// What boot repair says it changed, by path.
    pub repaired: Vec<(String, String)>,
    /// The rules of what the job leaves out.
    pub exclusions: Vec<String>,
    /// Differences that boot repair or a rule accounts for.
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
    let exclusions = exclusions(site)?;
    let left_out = LeftOut { rules: Exclusions::new(&exclusions)?, mount_points: mount_points(site, &found.volumes)? };
    let accounts = |difference: &Difference| explained.covers(difference) || left_out.covers(difference);
    let (accounted, unexplained) = found.differences.into_iter().partition(accounts);
    let evidence = Evidence { entries: found.entries, repaired, exclusions, accounted, unexplained };
    let listed = serde_json::to_vec_pretty(&evidence)?;
    std::fs::write(run.artifacts().join("differences.json"), listed).context("writing the list of differences")?;
    Ok(evidence)
}

fn changes(report: &Value) -> Vec<(String, String)> {
    let changes = report["changes"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    changes.map(|change| (text(&change["path"]), text(&change["what"]))).collect()
}

/// The job's own rules, as it shows them.
fn exclusions(site: &Site) -> Result<Vec<String>> {
    let job = site.appliance.json(&["job", "show", &site.job])?;
    let patterns = job["summary"]["exclusions"].as_array().into_iter().flatten();
    Ok(patterns.filter_map(|pattern| pattern.as_str().map(str::to_owned)).collect())
}

/// Where the volumes are mounted, by their numbers.
fn mount_points(site: &Site, volumes: &BTreeMap<u32, String>) -> Result<BTreeMap<u32, String>> {
    let agents = site.appliance.json(&["agent", "list"])?;
    let known = agents.as_array().into_iter().flatten().flat_map(|agent| agent["inventory"]["volumes"].as_array().into_iter().flatten());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let known: BTreeMap<String, String> =
        known.map(|volume| (text(&volume["uuid"]).replace('-', "").to_lowercase(), text(&volume["mount_point"]))).collect();
    Ok(volumes.iter().filter_map(|(number, uuid)| Some((*number, known.get(uuid)?.clone()))).collect())
}

/// What the job's rules leave out: all below a directory that a rule matches, and anything else that one matches.
struct LeftOut {
    rules: Exclusions,
    mount_points: BTreeMap<u32, String>,
}

impl LeftOut {
    fn covers(&self, difference: &Difference) -> bool {
        let Some(mount_point) = self.mount_points.get(&difference.volume) else { return false };
        let absolute = |path: &str| format!("{}/{path}", mount_point.trim_end_matches('/'));
        let matches = |path: &str| self.rules.matches(absolute(path).as_bytes());
        let is_below = |path: &str| path.match_indices('/').any(|(end, _)| path.get(..end).is_some_and(matches));
        let is_out = |path: &str| is_below(path) || matches(path);
        match difference.what {
            _ if is_below(&difference.path) => true,
            // A directory stays, without what is in it.
            "missing" => matches(&difference.path) && !difference.left.starts_with("Directory"),
            // The name by which hard links are compared is the first, which may be one that is left out.
            "links" => is_out(&difference.left),
            _ => false,
        }
    }
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

    #[test]
    fn only_what_a_rule_leaves_out_is_accounted_for() {
        let rules = Exclusions::new(&["/var/cache/apt", "/srv/**/*.tmp", "/swapfile"]).unwrap();
        let left_out = LeftOut { rules, mount_points: [(1, "/".to_owned()), (2, "/srv".to_owned())].into() };
        let check = |volume, path: &str, what, left: &str, expect| {
            let difference = Difference { volume, path: path.into(), what, left: left.into(), right: String::new() };
            assert_eq!(left_out.covers(&difference), expect, "{path} {what}");
        };
        check(1, "var/cache/apt/archives/x.deb", "missing", "file of 3 bytes", true);
        check(1, "var/cache/apt", "missing", "Directory", false);
        check(1, "var/cache/apt", "mode", "755", false);
        check(1, "swapfile", "missing", "file of 9 bytes", true);
        check(1, "swapfile", "content", "9 bytes", false);
        check(1, "var/cache", "modified", "1", false);
        check(1, "etc/passwd", "missing", "file of 3 bytes", false);
        check(2, "a/b/x.tmp", "missing", "file of 3 bytes", true);
        check(2, "a/b/x.tmp/y", "extra", "", true);
        check(1, "a/b/x.tmp", "missing", "file of 3 bytes", false);
        check(2, "z", "links", "a/x.tmp", true);
        check(2, "z", "links", "a/x", false);
        check(3, "var/cache/apt/archives/x.deb", "missing", "file of 3 bytes", false);
    }
}
