//! Two manifests laid side by side.

use serde::Serialize;

use super::manifest::{Entry, Kind, Manifest};

/// Characters shown of each side.
const SHOWN_MAX: usize = 300;

/// One thing that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// For who compares several volumes; 0 otherwise.
    pub volume: u32,
    pub path: String,
    /// What differs: `missing`, `extra`, `kind`, `content`, `holes`, `mode`, `owner`, `modified`, `attributes`, `project`, `flags`, `links`; or `unreadable`, where
    /// nobody knows.
    pub what: &'static str,
    pub left: String,
    pub right: String,
}

/// Everything in which `right` is not `left`, in the order of paths. The volume's number is left at 0.
pub fn differences(left: &Manifest, right: &Manifest) -> Vec<Difference> {
    let mut found = Vec::new();
    for (path, entry) in left {
        match right.get(path) {
            Some(other) => compare(path, entry, other, &mut found),
            None => found.push(difference(path, "missing", summary(entry), String::new())),
        }
    }
    for (path, entry) in right {
        if !left.contains_key(path) {
            found.push(difference(path, "extra", String::new(), summary(entry)));
        }
    }
    found
}

fn difference(path: &str, what: &'static str, left: String, right: String) -> Difference {
    Difference { volume: 0, path: path.to_owned(), what, left: short(left), right: short(right) }
}

/// A list of attributes or holes can fill screens; where it begins to differ is rarely that far in.
fn short(text: String) -> String {
    if text.chars().count() <= SHOWN_MAX { text } else { text.chars().take(SHOWN_MAX).chain("…".chars()).collect() }
}

fn compare(path: &str, left: &Entry, right: &Entry, found: &mut Vec<Difference>) {
    let mut check = |what, same: bool, left: String, right: String| {
        if !same {
            found.push(difference(path, what, left, right));
        }
    };
    match (&left.kind, &right.kind) {
        (Kind::File { len, content, data }, Kind::File { len: other_len, content: other_content, data: other_data }) => {
            let same = len == other_len && content == other_content;
            check("content", same, format!("{len} bytes {content}"), format!("{other_len} bytes {other_content}"));
            if let (Some(data), Some(other_data)) = (data, other_data) {
                check("holes", data == other_data, format!("data at {data:?}"), format!("data at {other_data:?}"));
            }
        }
        (one, other) if is_unreadable(one) || is_unreadable(other) => {
            check("unreadable", false, summary(left), summary(right));
        }
        (one, other) => check("kind", one == other, format!("{one:?}"), format!("{other:?}")),
    }
    check("mode", left.mode == right.mode, format!("{:o}", left.mode), format!("{:o}", right.mode));
    let owners = ((left.owner, left.group), (right.owner, right.group));
    check("owner", owners.0 == owners.1, format!("{:?}", owners.0), format!("{:?}", owners.1));
    check("modified", left.modified == right.modified, format!("{:?}", left.modified), format!("{:?}", right.modified));
    // Only the attributes that differ are shown.
    let only = |own: &Entry, other: &Entry| {
        let differing = own.attributes.iter().filter(|(name, value)| other.attributes.get(*name) != Some(value));
        format!("{:?}", differing.collect::<Vec<_>>())
    };
    check("attributes", left.attributes == right.attributes, only(left, right), only(right, left));
    check("project", left.project == right.project, left.project.to_string(), right.project.to_string());
    check("flags", left.flags == right.flags, format!("{:#x}", left.flags), format!("{:#x}", right.flags));
    check("links", left.first_name == right.first_name, left.first_name.clone(), right.first_name.clone());
}

fn is_unreadable(kind: &Kind) -> bool {
    matches!(kind, Kind::Unreadable { .. })
}

fn summary(entry: &Entry) -> String {
    match &entry.kind {
        Kind::File { len, .. } => format!("file of {len} bytes"),
        Kind::Unreadable { why } => format!("unreadable: {why}"),
        other => format!("{other:?}"),
    }
}

/// Whether a pattern of the allow-list matches the whole path; `*` stands for any characters, also for `/`.
pub fn allowed(path: &str, patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| matches(path, pattern))
}

fn matches(path: &str, pattern: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return path == pattern };
    let Some(rest) = path.strip_prefix(before) else { return false };
    let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    starts.into_iter().any(|at| matches(&rest[at..], after))
}

#[cfg(test)]
mod tests {
    use super::super::manifest::read_tree;
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("standin-difference-{name}-{}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn an_untouched_tree_equals_itself() {
        let path = folder("same");
        fs::write(path.join("one"), "text").unwrap();
        let manifest = read_tree(&path, &[]).unwrap();
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(manifest.len(), 2);
        assert_eq!(differences(&manifest, &manifest), []);
    }

    #[test]
    fn every_kind_of_change_is_told() {
        let path = folder("changes");
        for name in ["a", "b", "c", "d"] {
            fs::write(path.join(name), "text").unwrap();
        }
        fs::hard_link(path.join("a"), path.join("a2")).unwrap();
        let before = read_tree(&path, &[]).unwrap();
        fs::write(path.join("b"), "TEXT").unwrap();
        fs::remove_file(path.join("c")).unwrap();
        fs::remove_file(path.join("a2")).unwrap();
        fs::write(path.join("a2"), "text").unwrap();
        fs::File::create(path.join("d")).unwrap().set_len(1 << 20).unwrap();
        let mut after = read_tree(&path, &[]).unwrap();
        // Not every file system that holds temporary files has flags.
        after.values_mut().take(1).for_each(|root| root.flags ^= rustix::fs::IFlags::NODUMP.bits());
        fs::remove_dir_all(&path).unwrap();
        let found: Vec<(String, &str)> = differences(&before, &after).into_iter().map(|one| (one.path, one.what)).collect();
        for expect in [("b", "content"), ("c", "missing"), ("a2", "links"), ("d", "holes"), ("d", "content"), ("", "flags")] {
            assert!(found.contains(&(expect.0.to_owned(), expect.1)), "{expect:?} is not in {found:?}");
        }
    }

    /// A root that a test cannot take the rights from: a directory that is a file to the walk, a name that ends in nothing.
    #[test]
    fn what_cannot_be_read_is_told_and_the_rest_is_compared() {
        let path = folder("unreadable");
        fs::write(path.join("fine"), "text").unwrap();
        symlink("nowhere", path.join("link")).unwrap();
        let sound = read_tree(&path, &[]).unwrap();
        let mut damaged = sound.clone();
        for entry in damaged.iter_mut().filter(|(path, _)| *path == "fine").map(|(_, entry)| entry) {
            entry.kind = Kind::Unreadable { why: "Input/output error (os error 5)".into() };
        }
        fs::remove_dir_all(&path).unwrap();
        let told = |left: &Manifest, right: &Manifest| differences(left, right).into_iter().map(|d| (d.path, d.what)).collect::<Vec<_>>();
        let expect = [("fine".to_owned(), "unreadable")];
        assert_eq!(
            (told(&sound, &damaged), told(&damaged, &sound), told(&damaged, &damaged)),
            (expect.to_vec(), expect.to_vec(), expect.to_vec())
        );
        assert_eq!(read_tree(&path, &[]).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn names_at_the_root_are_skipped_there_only() {
        let path = folder("skip");
        fs::create_dir_all(path.join("a/.limbo")).unwrap();
        fs::create_dir_all(path.join(".limbo/x")).unwrap();
        let read: Vec<String> = read_tree(&path, &[b".limbo"]).unwrap().into_keys().collect();
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(read, ["", "a", "a/.limbo"]);
    }

    #[test]
    fn patterns_match_whole_paths() {
        let check = |path, pattern: &str, expect| assert_eq!(allowed(path, &[pattern.to_owned()]), expect, "{path} {pattern}");
        check("var/log/journal/x", "var/log/*", true);
        check("var/log", "var/log/*", false);
        check("etc/adjtime", "etc/adjtime", true);
        check("srv/a/pgsql_tmp/b", "*/pgsql_tmp/*", true);
        check("etc/adjtime2", "etc/adjtime", false);
    }
}
