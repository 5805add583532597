//! Property tests: bytes and lines that a hostile source chose never panic a parser, and edits settle after one round.

use super::fstab::{resume_is_absent, rewrite_crypttab, rewrite_fstab};
use super::grubcfg::{Wishes, rewrite};
use super::kernel::compare_versions;
use super::{cpio, initrd};
use crate::disk::{DiskPlan, fixture};
use proptest::prelude::*;

fn plan() -> DiskPlan {
    fixture::installed("/dev/sda1")
}

/// Lines made of words that matter, so that most of them get far into the parsers.
fn lines() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("UUID=11111111-1111-4111-8111-111111111111".to_owned()),
        Just("/dev/sda1".to_owned()),
        Just("/dev/sda5".to_owned()),
        Just("LABEL=".to_owned()),
        Just("/".to_owned()),
        Just("/boot/efi".to_owned()),
        Just("swap".to_owned()),
        Just("nofail,bind".to_owned()),
        Just("linux".to_owned()),
        Just("root=/dev/sda1".to_owned()),
        Just("root=".to_owned()),
        Just("resume=/dev/sdz".to_owned()),
        Just("rootflags=subvolid=256".to_owned()),
        Just("#".to_owned()),
        "\\PC{0,12}",
    ];
    let line = prop::collection::vec(word, 0..7).prop_map(|words| words.join(" "));
    prop::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn tables_settle(text in lines()) {
        let plan = plan();
        let once = rewrite_fstab(&text, &plan).0;
        let (twice, changes) = rewrite_fstab(&once, &plan);
        prop_assert!(changes.is_empty(), "{changes:?}");
        prop_assert_eq!(&twice, &once);
        let once = rewrite_crypttab(&text).0;
        prop_assert!(rewrite_crypttab(&once).1.is_empty());
        let _ = resume_is_absent(&text, &plan);
    }

    #[test]
    fn command_lines_settle(text in lines(), without_resume: bool) {
        let plan = plan();
        let arguments = ["console=ttyS0".to_owned()];
        let wishes = Wishes { plan: &plan, arguments: &arguments, without_resume };
        let once = rewrite(&text, &wishes).0;
        prop_assert_eq!(rewrite(&once, &wishes), (once, Vec::new()));
    }

    #[test]
    fn archives_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0usize..700) {
        let _ = cpio::read(&bytes, at);
        let _ = initrd::original_length(&bytes);
        let mut headed = b"070701".to_vec();
        headed.extend(bytes.iter().map(|byte| b"0123456789abcdefABCDEF\0"[usize::from(*byte) % 23]));
        let _ = cpio::read(&headed, 0);
    }

    #[test]
    fn versions_are_ordered(a in "\\PC{0,20}", b in "\\PC{0,20}") {
        prop_assert_eq!(compare_versions(&a, &b), compare_versions(&b, &a).reverse());
        let _ = initrd::module_name(&a);
    }
}
