//! Why a path of the source is on the replica or not: the job's own rules, read as the agent reads them.
//!
//! A rule that matches a directory leaves out what is in it and keeps it; of anything else it leaves out the name. Of a path alone nobody knows which it
//! is, nor whether a file has another name: the answer says what follows in either case.

use crate::{LeftOut, Problem};
use serde::{Deserialize, Serialize};
use standin_exclusion::Exclusions;
use standin_model::{Inventory, JobSpec};

/// The agent adds this to every job itself, where its state is.
const AGENT_STATE: &str = "/var/lib/standin-agent";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    Replicated,
    /// It matches a rule itself: as a directory it is replicated without its contents, as anything else it is left out.
    ContentsLeftOut,
    LeftOut,
    /// No volume of the job holds it.
    NotProtected,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub path: String,
    pub fate: Fate,
    /// The rule that says so.
    pub rule: Option<String>,
    /// Whether it came with the job by default, and the reason for it.
    pub by_default: bool,
    pub reason: Option<String>,
    /// The part of the path that the rule matches.
    pub at: Option<String>,
    pub words: String,
}

/// `defaults` are those of the job's rules that came by default.
pub fn explain(spec: &JobSpec, defaults: &[LeftOut], inventory: &Inventory, path: &str) -> Result<Explanation, Problem> {
    let path = plain(path)?;
    let new = |fate, words: String| Explanation { path: path.clone(), fate, rule: None, by_default: false, reason: None, at: None, words };
    let mounts = inventory.volumes.iter().filter(|volume| is_below(&path, &volume.mount_point));
    if let Some(volume) = mounts.max_by_key(|volume| volume.mount_point.len())
        && !spec.volumes.iter().any(|protected| protected.mount_point == volume.mount_point)
    {
        let words = format!("not replicated: {} ({}) is not protected", volume.mount_point, volume.file_system_name);
        return Ok(new(Fate::NotProtected, words));
    }
    let own = LeftOut { pattern: AGENT_STATE.into(), reason: "the agent's own state, which no job replicates".into() };
    let rules: Vec<String> = spec.exclusions.iter().cloned().chain([own.pattern.clone()]).collect();
    let broken = |error| Problem::new("E4025", format!("{error}"), "standin job show JOB");
    let exclusions = Exclusions::new(&rules).map_err(broken)?;
    let Some((at, rule)) = prefixes(&path).find_map(|prefix| Some((prefix, exclusions.find(prefix.as_bytes())?))) else {
        return Ok(new(Fate::Replicated, "replicated: no rule of the job names it or anything above it".into()));
    };
    let pattern = rules.get(rule).cloned().unwrap_or_default();
    let default = defaults.iter().chain([&own]).find(|left| left.pattern == pattern);
    let reason = default.map(|left| left.reason.clone());
    let whose = reason.as_ref().map_or("asked for when the job was made".into(), |reason| format!("by default: {reason}"));
    let (fate, what) = if at == path {
        (Fate::ContentsLeftOut, "as a directory it is replicated without its contents; anything else is not replicated".to_owned())
    } else {
        (Fate::LeftOut, format!("not replicated: it is below {at}, whose contents are left out"))
    };
    let words = format!("{what}. Rule {pattern}, {whose}. A file that also has a name elsewhere is replicated by that name");
    Ok(Explanation { rule: Some(pattern), by_default: default.is_some(), reason, at: Some(at.to_owned()), ..new(fate, words) })
}

/// Without empty and `.` parts. `..` depends on what is there.
fn plain(path: &str) -> Result<String, Problem> {
    let odd = !path.starts_with('/') || path.split('/').any(|part| part == "..") || path.chars().any(char::is_control);
    if odd {
        let cause = format!("{path:?} is not an absolute path without '..'");
        return Err(Problem::new("E4069", cause, "standin job explain JOB /path/on/the/source"));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(format!("/{}", parts.join("/")))
}

fn is_below(path: &str, mount_point: &str) -> bool {
    mount_point == "/" || path.strip_prefix(mount_point).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// From the top: of `/a/b` these are `/a` and `/a/b`.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
    ends.filter_map(|end| path.get(..end)).filter(|prefix| *prefix != "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(path: &str) -> Explanation {
        let exclusions = ["/home/*/.cache", "/swapfile", "/**/scratch"].map(str::to_owned).to_vec();
        let defaults = [LeftOut { pattern: "/swapfile".into(), reason: "made anew".into() }];
        let (mut spec, inventory) = crate::summary::job_of_a_test();
        spec.exclusions = exclusions;
        explain(&spec, &defaults, &inventory, path).unwrap()
    }

    #[test]
    fn a_path_is_explained_by_the_rule_that_decides() {
        let check = |path: &str, fate, rule: Option<&str>, at: Option<&str>| {
            let found = explained(path);
            assert_eq!((found.fate, found.rule.as_deref(), found.at.as_deref()), (fate, rule, at), "{path}");
        };
        check("/etc/fstab", Fate::Replicated, None, None);
        check("/", Fate::Replicated, None, None);
        check("/tank/x", Fate::NotProtected, None, None);
        check("/tanker", Fate::Replicated, None, None);
        check("/home/ada/.cache", Fate::ContentsLeftOut, Some("/home/*/.cache"), Some("/home/ada/.cache"));
        check("/home/ada//.cache/./x/scratch/", Fate::LeftOut, Some("/home/*/.cache"), Some("/home/ada/.cache"));
        check("/scratch/y", Fate::LeftOut, Some("/**/scratch"), Some("/scratch"));
        check("/scratchy", Fate::Replicated, None, None);
        check("/var/lib/standin-agent/key", Fate::LeftOut, Some(AGENT_STATE), Some(AGENT_STATE));
    }

    #[test]
    fn defaults_are_told_from_wishes() {
        let default = explained("/swapfile");
        assert!(default.by_default && default.words.contains("made anew"));
        let wish = explained("/scratch/x");
        assert!(!wish.by_default && wish.reason.is_none());
    }

    #[test]
    fn only_plain_paths_are_explained() {
        for path in ["", "etc", "/a/../b", "/a\nb"] {
            assert_eq!(plain(path).unwrap_err().code, "STANDIN-E4069", "{path:?}");
        }
    }
}
