//! Facts that were recorded from real kernels, and every single one of them changed.

use super::*;

const ALL: &[FileSystem] = &[FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
const DEBIAN_6_1: &str = include_str!("debian-6.1.txt");
const PLAIN_6_18: &str = include_str!("plain-6.18.txt");

fn recorded(text: &str) -> Facts {
    Facts(text.lines().filter_map(|line| line.split_once(" = ")).map(|(about, fact)| (about.to_owned(), fact.to_owned())).collect())
}

#[test]
fn a_known_kernel_is_taken() {
    let layout = recorded(DEBIAN_6_1).check(ALL).unwrap();
    assert_eq!((layout.event_inode, layout.event_dentry), (2, 3));
    assert!(layout.btrfs_inode_vfs > 0 && layout.page_head_bit > 0);
}

#[test]
fn a_later_kernel_is_refused_with_what_it_declares() {
    let error = recorded(PLAIN_6_18).check(&[FileSystem::Ext4]).unwrap_err();
    assert_eq!(error.code(), "STANDIN-E6006");
    let text = error.to_string();
    assert!(text.contains("vfs_fileattr_set") && text.contains("file_kattr*"), "{text}");
}

/// Whatever is taken for granted: changed or gone, it is named.
#[test]
fn every_changed_fact_is_refused_by_name() {
    let sound = recorded(DEBIAN_6_1);
    let free = |about: &str| TOLD.contains(&about) || about.starts_with("offset ");
    for about in sound.0.keys() {
        let bare = about.trim_end_matches("()").trim_start_matches("return ").to_owned();
        for changed in [Some("another*,unsigned int".to_owned()), None] {
            let mut facts = sound.clone();
            let gone = changed.is_none();
            match changed {
                Some(fact) => drop(facts.0.insert(about.clone(), fact)),
                None => drop(facts.0.remove(about)),
            }
            let error = facts.check(ALL).expect_err(about);
            assert!(error.to_string().contains(&bare), "{about}: {error}");
            assert!(!gone || free(about) || error.code() == "STANDIN-E6006", "{about}: {error}");
        }
    }
}

#[test]
fn file_systems_that_are_not_protected_are_not_asked_about() {
    let mut facts = recorded(DEBIAN_6_1);
    facts.0.retain(|about, _| !about.contains("btrfs") && !about.contains("ext4"));
    facts.check(&[FileSystem::Xfs]).unwrap();
    assert!(facts.check(ALL).is_err());
}

#[test]
fn a_kernel_without_types_has_its_own_code() {
    let error = Facts::gather(ALL, &|_, _| Err(io::ErrorKind::NotFound.into())).unwrap_err();
    assert_eq!(error.code(), "STANDIN-E6005");
}
