//! Facts that were recorded from real kernels, and every single one of them changed.

use super::*;

const ALL: &[FileSystem] = &[FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
const DEBIAN_6_1: &str = include_str!("debian-6.1.txt");
const DEBIAN_6_12: &str = include_str!("debian-6.12.txt");
const PLAIN_6_18: &str = include_str!("plain-6.18.txt");

fn recorded(text: &str) -> Facts {
    Facts(text.lines().filter_map(|line| line.split_once(" = ")).map(|(about, fact)| (about.to_owned(), fact.to_owned())).collect())
}

#[test]
fn known_kernels_are_taken() {
    for (text, head) in [(DEBIAN_6_1, 16), (DEBIAN_6_12, 6)] {
        let layout = recorded(text).check(ALL).unwrap();
        assert_eq!((layout.event_inode, layout.event_dentry, layout.page_head_bit), (2, 3, head));
        assert!(layout.btrfs_inode_vfs > 0);
    }
}

/// Where kernels differ, each gets the program for its own form, and only that.
#[test]
fn each_kernel_gets_its_own_programs() {
    let programs = |text: &str| recorded(text).hooks(ALL).unwrap().iter().map(|hook| hook.program).collect::<Vec<_>>();
    let (old, new) = (programs(DEBIAN_6_1), programs(DEBIAN_6_12));
    let differ = |one: &[&'static str], other: &[&str]| one.iter().copied().filter(|name| !other.contains(name)).collect::<Vec<_>>();
    let of_old = [
        "exit_do_clone_file_range",
        "exit_set_posix_acl_inode",
        "call_do_clone_file_range",
        "data_iomap_write_end",
        "name_set_posix_acl_inode",
    ];
    assert_eq!(differ(&old, &new), of_old);
    let of_new = [
        "exit_clone_file_range",
        "exit_set_posix_acl_dentry",
        "return_xfs_exchange_range",
        "call_xfs_exchange_range",
        "call_clone_file_range",
        "data_iomap_write_end_bool",
        "name_set_posix_acl_dentry",
    ];
    assert_eq!(differ(&new, &old), of_new);
}

#[test]
fn an_offer_names_all_that_is_missing() {
    let offer = recorded(DEBIAN_6_12).offer(FileSystem::Xfs);
    assert!(offer.missing.is_empty() && offer.obstacle.is_none(), "{offer}");
    let offer = recorded(PLAIN_6_18).offer(FileSystem::Xfs);
    let missing: Vec<&str> = offer.missing.iter().map(|(function, _)| *function).collect();
    // Of those of `bpf/opaque.h` it is not known: its facts were recorded before they were asked for.
    let asked_later = ["xfs_swap_extents", "xfs_ioc_attrmulti_one"];
    assert_eq!(
        missing.iter().copied().filter(|function| !asked_later.contains(function)).collect::<Vec<_>>(),
        ["vfs_fileattr_set", "iomap_write_end"]
    );
    assert!(offer.to_string().starts_with("xfs: 23 of 29 hooks; "), "{offer}");
    // Something that is no function.
    let mut facts = recorded(DEBIAN_6_12);
    facts.0.insert("folio.flags".into(), "memdesc_flags_t".into());
    assert!(facts.offer(FileSystem::Ext4).to_string().contains("folio.flags"));
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
    [DEBIAN_6_1, DEBIAN_6_12].into_iter().for_each(|text| refuse_each_change(&recorded(text)));
}

fn refuse_each_change(sound: &Facts) {
    let free = |about: &str| TOLD.contains(&about) || about.starts_with("offset ");
    // Without it the kernel is one of those that have only the other function, whose prototype is known; or that cannot do such a thing.
    let optional = ["do_clone_file_range()", "xfs_exchange_range()", "fsverity_ioctl_enable()"];
    for about in sound.0.keys() {
        let bare = about.trim_end_matches("()").trim_start_matches("return ").to_owned();
        for changed in [Some("another*,unsigned int".to_owned()), None] {
            let mut facts = sound.clone();
            let gone = changed.is_none();
            if gone && optional.contains(&about.as_str()) {
                continue;
            }
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
