//! Fuzz targets of what the agent reads on its source: superblocks, labels, its own settings. (The mount table is the capture crate's.)

use crate::inventory::{features, unescape};
use crate::settings::Settings;
use standin_fuzz::{Script, TIME, check, edited, within};
use standin_model::FileSystem;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// The words become options of mkfs on the appliance, which has a list of its own; still, nothing but words comes out.
fn take_superblock(bytes: &[u8]) {
    let mut block = [0; 1024];
    block.iter_mut().zip(bytes).for_each(|(byte, new)| *byte = *new);
    for file_system in [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs] {
        let words = within(32 << 10, || features::of_block(&block, file_system));
        assert!(
            words.len() <= 96 && words.iter().all(|word| word.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))),
            "{words:?}"
        );
    }
}

#[test]
fn superblock() {
    let samples = superblock_samples();
    check!(name = "superblock").with_test_time(TIME).for_each(|bytes| {
        take_superblock(bytes);
        let mut script = Script::new(bytes);
        let (_, valid) = &samples[script.below(samples.len())];
        take_superblock(&edited(valid, &mut script));
    });
}

fn superblock_samples() -> Vec<(&'static str, Vec<u8>)> {
    let block = |parts: &[(usize, &[u8])]| {
        let mut block = vec![0; 1024];
        parts.iter().for_each(|(at, bytes)| block[*at..at + bytes.len()].copy_from_slice(bytes));
        block
    };
    vec![
        ("ext4", block(&[(0x38, &[0x53, 0xef]), (0x5c, &[0x3c, 2, 0, 0, 0xc2, 2, 0, 0, 0x6b, 4])])),
        ("xfs", block(&[(0, b"XFSB"), (100, &[0xb4, 0xa5]), (212, &[0, 0, 0, 5, 0, 0, 0, 0x0b])])),
        ("btrfs", block(&[(0x40, b"_BHRfS_M"), (0xb4, &[3, 0, 0, 0, 0, 0, 0, 0, 0x61, 3])])),
    ]
}

#[test]
fn label() {
    check!(name = "label").with_test_time(TIME / 2).for_each(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let plain = within(4096 + text.len() * 8, || unescape(&text));
        assert!(plain.chars().count() <= text.chars().count(), "an escape is longer than what it stands for");
        // As udev writes it (util_replace_chars): everything outside a small set as \x and two digits.
        let escaped: String = text
            .chars()
            .map(|c| if c.is_ascii() && !c.is_ascii_alphanumeric() { format!("\\x{:02x}", c as u32) } else { c.to_string() })
            .collect();
        assert_eq!(unescape(&escaped), text);
    });
}

#[test]
fn settings() {
    let sample = settings_sample();
    check!(name = "settings").with_test_time(TIME).for_each(|bytes| {
        for json in [bytes.to_vec(), edited(&sample, &mut Script::new(bytes))] {
            let Ok(settings) = within(4096 + json.len() * 64, || Settings::parse(&json)) else { continue };
            // What was let through can be asked of the kernel and of this process: no sum runs over, no ring is odd.
            let (queue, ring) = (settings.bounds.queue(), settings.bounds.ring_bytes());
            assert!(ring.is_power_of_two() && queue.memory_bytes_max >= 1 << 20 && queue.disk_bytes_max <= 1 << 40);
            let again = Settings::parse(&serde_json::to_vec(&settings).expect("plain data")).expect("what is saved is loaded");
            assert_eq!((again.appliance, again.bounds), (settings.appliance, settings.bounds));
        }
    });
}

fn settings_sample() -> Vec<u8> {
    br#"{"appliance":"appliance:7410","bounds":{"ring_mib":32,"queue_memory_mib":8,"queue_disk_mib":1024}}"#.to_vec()
}

#[test]
fn the_samples_are_good() {
    for (name, block) in standin_fuzz::seeds(FOLDER, "superblock", &superblock_samples()) {
        let block: [u8; 1024] = block.try_into().expect("a block");
        let kinds = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
        let read: Vec<_> = kinds.into_iter().filter(|kind| features::of_block(&block, *kind).len() > 2).map(FileSystem::as_str).collect();
        assert_eq!(read, [name.as_str()]);
    }
    let committed = standin_fuzz::seeds(FOLDER, "settings", &[("v1", settings_sample())]);
    assert_eq!(Settings::parse(&committed[0].1).expect("settings").bounds.ring_mib, 32);
}
