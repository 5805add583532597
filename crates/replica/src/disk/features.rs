//! From the features of the source's file system to the options of the tools that make the replica's. Pure.
//!
//! The replica has to be mountable by the source's kernel, so it gets no feature that the source does not have; and what programmes can see (case folding, nanoseconds, large
//! directories, …) it gets where the source has it. What only makes a file system faster is left out where the appliance's tools do
//! not know it.

/// ext4 features worth having where the source has them. Not `orphan_file`, `fast_commit` and `metadata_csum_seed`: they only help the kernel that runs
/// on them, and old tools do not know them. Not `quota`, `encrypt` and `verity`: what they keep does not travel in the stream, and the
/// appliance's kernel may refuse to mount them. `project` is room for the ids alone, which do travel.
const EXT4_KEPT: [&str; 20] = [
    "ext_attr",
    "resize_inode",
    "dir_index",
    "filetype",
    "extent",
    "64bit",
    "flex_bg",
    "ea_inode",
    "large_dir",
    "inline_data",
    "casefold",
    PROJECT,
    "sparse_super",
    "sparse_super2",
    "large_file",
    "huge_file",
    "dir_nlink",
    "extra_isize",
    "metadata_csum",
    "uninit_bg",
];

/// What a kernel may refuse to write to.
pub(super) const PROJECT: &str = "project";

/// The argument of `mkfs.ext4 -O`; `None` for the tool's own choice, where the source's features are not known. `projects`: whether this kernel writes to a
/// file system that has them.
pub(super) fn ext4(source: &[String], projects: bool) -> Option<String> {
    if source.is_empty() {
        return None;
    }
    let has = |name: &str| source.iter().any(|feature| feature == name);
    // The tool refuses the older of two kinds of checksum beside the newer. Without a journal no worker could survive a crash.
    let refused = |name: &str| name == "uninit_bg" && has("metadata_csum") || name == PROJECT && !projects;
    let kept = EXT4_KEPT.into_iter().filter(|name| has(name) && !refused(name));
    Some(["none", "has_journal"].into_iter().chain(kept).collect::<Vec<_>>().join(","))
}

/// Suboptions of `mkfs.xfs`: group and name.
const XFS_SWITCHES: [(&str, &str); 10] = [
    ("-m", "finobt"),
    ("-m", "rmapbt"),
    ("-m", "reflink"),
    ("-m", "inobtcount"),
    ("-m", "bigtime"),
    ("-m", "metadir"),
    ("-i", "sparse"),
    ("-i", "nrext64"),
    ("-i", "exchange"),
    ("-n", "parent"),
];

/// Pairs of group and `name=0|1`; `usage` is what `mkfs.xfs` prints about itself. A source without known features has the old format or an unreadable
/// superblock, and gets what every kernel reads.
pub(super) fn xfs(source: &[String], usage: &str) -> Vec<(&'static str, String)> {
    let has = |name: &str| source.iter().any(|feature| feature == name);
    let known = XFS_SWITCHES.into_iter().filter(|(_, name)| usage.contains(&format!("{name}=")));
    known.map(|(group, name)| (group, format!("{name}={}", u8::from(has(name))))).collect()
}

const BTRFS_SWITCHES: [&str; 7] =
    ["extref", "skinny-metadata", "no-holes", "free-space-tree", "block-group-tree", "raid-stripe-tree", "squota"];
/// Not for the replica: they belong to the source's devices or accounts.
const BTRFS_NEVER: [&str; 2] = ["raid-stripe-tree", "squota"];

/// `name` or `^name` for those words that `available` (what `-O list-all` prints) has at the beginning of a line.
pub(super) fn btrfs(source: &[String], available: &str) -> Vec<String> {
    if source.is_empty() {
        return Vec::new();
    }
    let listed = |name: &str| available.lines().any(|line| line.split_whitespace().next() == Some(name));
    let wanted = |name: &str| source.iter().any(|feature| feature == name) && !BTRFS_NEVER.contains(&name);
    let known = BTRFS_SWITCHES.into_iter().filter(|name| listed(name));
    known.map(|name| if wanted(name) { name.to_owned() } else { format!("^{name}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn nothing_that_the_source_lacks() {
        assert_eq!(ext4(&[], true), None);
        let old = "has_journal ext_attr dir_index filetype needs_recovery extent sparse_super large_file uninit_bg FEATURE_I5";
        assert_eq!(
            ext4(&words(old), true).unwrap(),
            "none,has_journal,ext_attr,dir_index,filetype,extent,sparse_super,large_file,uninit_bg"
        );
        assert_eq!(ext4(&words("metadata_csum uninit_bg orphan_file"), true).unwrap(), "none,has_journal,metadata_csum");
        let of_projects = |possible| ext4(&words("extent project quota"), possible).unwrap();
        assert_eq!((of_projects(true), of_projects(false)), ("none,has_journal,extent,project".into(), "none,has_journal,extent".into()));
        let usage = "[-m crc=0|1,finobt=0|1,reflink=0|1] [-i sparse=0|1]";
        let expect = [("-m", "finobt=1".to_owned()), ("-m", "reflink=0".to_owned()), ("-i", "sparse=0".to_owned())];
        assert_eq!(xfs(&words("crc finobt bigtime"), usage), expect);
        assert_eq!(btrfs(&words("extref squota"), "extref - x\nno-holes - y\nsquota - z\n"), ["extref", "^no-holes", "^squota"]);
    }

    /// Words from a hostile source reach no command line: only names of the lists above do.
    #[test]
    fn unknown_words_are_not_passed_on() {
        let hostile = words("-E journal_dev,x ^metadata_csum");
        assert_eq!(ext4(&hostile, true).unwrap(), "none,has_journal");
        assert!(btrfs(&hostile, "extref\n").iter().all(|word| word == "^extref"));
    }
}
