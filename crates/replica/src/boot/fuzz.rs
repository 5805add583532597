//! Fuzz targets of boot repair's parsers: whatever a hostile source left in its files is read or refused, and edits settle after one round.

use super::fstab::{resume_is_absent, rewrite_crypttab, rewrite_fstab};
use super::grubcfg::{Wishes, rewrite};
use super::kernel::{Drivers, compare_versions, is_release};
use super::profile::BootRepairReport;
use super::{agent, cpio, initrd, network};
use crate::disk::{DiskPlan, fixture};
use standin_fuzz::{Script, TIME, check, edited, within};
use std::collections::BTreeMap;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/boot");

fn plan() -> DiskPlan {
    fixture::installed("/dev/sda1")
}

/// Lines made of words that matter, so that most of them get far into the parsers; now and then bytes as they come.
fn scripted_lines(script: &mut Script) -> String {
    const WORDS: [&str; 24] = [
        "UUID=11111111-1111-4111-8111-111111111111",
        "UUID=\"22222222-2222-4222-8222-222222222222\"",
        "/dev/sda1",
        "/dev/sda5",
        "/dev/mapper/x",
        "/dev/disk/by-uuid/ABCD-1234",
        "PARTUUID=",
        "LABEL=swap",
        "/",
        "/boot/efi",
        "none",
        "swap",
        "ext4",
        "defaults,nofail",
        "bind",
        "#",
        "linux",
        "\tlinuxefi",
        "/vmlinuz",
        "root=/dev/sda1",
        "root=",
        "resume=/dev/sda5",
        "rootflags=subvolid=256,subvol=@",
        "RESUME=UUID=22222222-2222-4222-8222-222222222222",
    ];
    let mut text = String::new();
    while !script.is_over() && text.len() < 2000 {
        match script.byte() {
            0..=15 => text.push('\n'),
            16..=23 => text.push_str("\r\n"),
            24..=39 => text.push_str(&String::from_utf8_lossy(script.bytes(6))),
            byte => text.push_str(WORDS[usize::from(byte) % WORDS.len()]),
        }
        text.push(if script.byte().is_multiple_of(8) { '\t' } else { ' ' });
    }
    text
}

/// Both as text: the input itself, and lines that it makes.
fn texts(bytes: &[u8]) -> [String; 2] {
    [String::from_utf8_lossy(bytes).into_owned(), scripted_lines(&mut Script::new(bytes))]
}

/// Lines that nobody may touch, in their order.
fn untouchable(text: &str, first: impl Fn(&str) -> bool) -> Vec<&str> {
    text.split_inclusive('\n').filter(|line| first(line.split_whitespace().next().unwrap_or("#"))).collect()
}

#[test]
fn tables() {
    let plan = plan();
    check!(name = "tables").with_test_time(TIME).for_each(|bytes| {
        for text in texts(bytes) {
            // Every line may get its reason above it, 200 bytes for a line of six.
            let (once, changes) = within(4096 + text.len() * 128, || rewrite_fstab(&text, &plan));
            assert_eq!(once == text, changes.is_empty(), "what changes is told");
            assert_eq!(rewrite_fstab(&once, &plan), (once.clone(), vec![]), "and settles");
            let comment = |word: &str| word.starts_with('#');
            let ours = |line: &&str| !line.starts_with("# Standin: ");
            let kept: Vec<_> = untouchable(&once, comment).into_iter().filter(ours).collect();
            assert_eq!(kept, untouchable(&text, comment).into_iter().filter(ours).collect::<Vec<_>>(), "comments stay");
            let (once, _) = rewrite_crypttab(&text);
            assert!(rewrite_crypttab(&once).1.is_empty());
            assert!(once.lines().all(|line| line.trim_start().is_empty() || line.trim_start().starts_with('#')));
            let _ = resume_is_absent(&text, &plan);
        }
    });
}

#[test]
fn command_lines() {
    let plan = plan();
    let arguments = ["console=ttyS0".to_owned()];
    check!(name = "command_lines").with_test_time(TIME).for_each(|bytes| {
        let wishes = Wishes { plan: &plan, arguments: &arguments, without_resume: bytes.first().is_some_and(|byte| byte % 2 == 1) };
        for text in texts(bytes) {
            let (once, changes) = within(4096 + text.len() * 128, || rewrite(&text, &wishes));
            assert_eq!(once == text, changes.is_empty(), "what changes is told");
            assert_eq!(rewrite(&once, &wishes), (once.clone(), vec![]), "and settles");
            let other = |word: &str| !word.starts_with("linux");
            assert_eq!(untouchable(&once, other), untouchable(&text, other), "other lines stay byte for byte");
            let kernels = once.lines().filter(|line| matches!(line.split_whitespace().next(), Some("linux" | "linux16" | "linuxefi")));
            let foreign = |line: &str| line.split_whitespace().any(|word| word == "root=/dev/sda1");
            assert!(!kernels.into_iter().any(foreign), "no name of the source's device is left");
        }
    });
}

#[test]
fn archive() {
    let samples = archive_samples();
    check!(name = "archive").with_test_time(TIME).for_each(|bytes| {
        take_archive(bytes);
        let mut script = Script::new(bytes);
        let (_, valid) = &samples[script.below(samples.len())];
        let changed = edited(valid, &mut script);
        take_archive(&changed);
        // Whatever the initrd is: a supplement of ours behind it is found again, and one that an earlier run appended is replaced.
        let initrd = initrd::Initrd { original_bytes: initrd::original_length(&changed), ..Default::default() };
        let files = BTreeMap::from([("lib/modules/6.1/a.ko".to_owned(), b"A".to_vec())]);
        let mut whole = changed[..initrd.original_bytes].to_vec();
        whole.extend(initrd::archive(&initrd, &files));
        assert_eq!(initrd::original_length(&whole), initrd.original_bytes, "a supplement is found again");
    });
}

fn take_archive(bytes: &[u8]) {
    // An entry of 112 bytes becomes 60 and its name; a name that is no text grows threefold.
    let heap_bytes_max = 4096 + bytes.len() * 8;
    if let Some((entries, end)) = within(heap_bytes_max, || cpio::read(bytes, 0)) {
        assert!(end <= bytes.len());
        let mut at = 0;
        for entry in &entries {
            assert!(entry.data.start >= at && entry.data.start <= entry.data.end && entry.data.end <= bytes.len(), "content lies in order");
            at = entry.data.end;
        }
        let mut writer = cpio::Writer::default();
        entries.iter().for_each(|entry| writer.file(&entry.name, &bytes[entry.data.clone()]));
        let written = writer.finish();
        let (again, _) = cpio::read(&written, 0).expect("what is written is read");
        assert!(
            again.iter().zip(&entries).all(|(one, other)| one.name == other.name && written[one.data.clone()] == bytes[other.data.clone()])
        );
        assert_eq!(again.len(), entries.len());
    }
    assert!(within(heap_bytes_max, || initrd::original_length(bytes)) <= bytes.len());
    let mut unpacked = initrd::Initrd::default();
    let taken = within(heap_bytes_max, || initrd::take_archives(bytes, 0, &mut unpacked));
    assert!(taken.is_none_or(|end| end <= bytes.len()));
    assert!(unpacked.modules().iter().all(|name| !name.contains('/')));
}

fn archive_samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut plain = cpio::Writer::default();
    plain.directory("conf");
    plain.file("conf/modules", b"virtio_blk\n");
    plain.file("usr/lib/modules/6.1/kernel/virtio_blk.ko.xz", &[7; 50]);
    let plain = plain.finish();
    let initrd = initrd::Initrd { original_bytes: plain.len(), ..Default::default() };
    let supplement = initrd::archive(&initrd, &BTreeMap::from([("lib/modules/6.1/a.ko".to_owned(), b"A".to_vec())]));
    vec![("plain", plain.clone()), ("supplemented", [plain, supplement].concat())]
}

#[test]
fn names_and_lists() {
    check!(name = "names").with_test_time(TIME).for_each(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let words: Vec<&str> = text.splitn(3, '|').collect();
        let [a, b, c] = [0, 1, 2].map(|at| words.get(at).copied().unwrap_or_default());
        assert_eq!(compare_versions(a, b), compare_versions(b, a).reverse());
        if compare_versions(a, b).is_le() && compare_versions(b, c).is_le() {
            assert!(compare_versions(a, c).is_le(), "an order");
        }
        assert!(!is_release(a) || (a.starts_with(|first: char| first.is_ascii_digit()) && !a.contains(['/', ' ', '\'', '\n'])));
        let _ = initrd::module_name(&text);
        // Module files stay below the kernel's own directory.
        let files = Drivers::from_lists("", &text).files("virtio_scsi").unwrap_or_default();
        assert!(files.iter().all(|path| !path.starts_with('/') && path.split('/').all(|part| part != "..")), "{files:?}");
        let state = within(4096 + text.len() * 64, || agent::state_directories(&text));
        assert!(state.iter().all(|path| path.starts_with('/') && path.split('/').all(|part| part != "..")), "{state:?}");
        let (old, new) = ("52:54:00:aa:bb:cc", "52:54:00:00:00:01");
        let mixed = format!("{a}{}{b}", old.to_uppercase());
        let replaced = network::replace_mac(&mixed, old, new).expect("it is in there");
        assert!(!replaced.to_ascii_lowercase().contains(old) && network::replace_mac(&replaced, old, new).is_none());
        let mut report = BootRepairReport::default();
        report.change(a, b, c);
        assert!(report.changes.iter().all(|change| !format!("{}{}{}", change.path, change.what, change.why).contains(char::is_control)));
    });
}

#[test]
fn the_samples_are_good() {
    let fstab = "# /etc/fstab\nUUID=11111111-1111-4111-8111-111111111111 / ext4 errors=remount-ro 0 1\n/dev/sda5 none swap sw 0 0\n/dev/sdb1\t/srv xfs defaults 0 2\n";
    standin_fuzz::seeds(FOLDER, "tables", &[("fstab", fstab.into())]);
    let grub = "set timeout=5\nmenuentry 'Debian' {\n\tlinux\t/boot/vmlinuz-6.1 root=/dev/sda1 ro quiet resume=/dev/sda5\n\tinitrd /boot/initrd.img-6.1\n}\n";
    standin_fuzz::seeds(FOLDER, "command_lines", &[("grub", grub.into())]);
    let dep = "6.1.0-9|6.1.0-13|kernel/drivers/scsi/virtio_scsi.ko: kernel/drivers/scsi/scsi_mod.ko\nExecStart=/usr/bin/standin-agent --state-dir /var/lib/x\n";
    standin_fuzz::seeds(FOLDER, "names", &[("lists", dep.into())]);
    for (name, bytes) in standin_fuzz::seeds(FOLDER, "archive", &archive_samples()) {
        assert_eq!(cpio::read(&bytes, 0).expect("an archive").0.len(), 3, "{name}");
    }
}
