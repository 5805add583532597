//! Checks and conversions of the identifiers that reach mkfs command lines and the partition table.
//!
//! The strings come from the source. Only shapes that a file system tool could have made itself pass: no leading dash, no white
//! space in ids, no control characters in labels.

use super::DiskError;

/// Accepts a file system UUID in its textual form, 8-4-4-4-12 hex digits.
pub(super) fn check_uuid(field: &'static str, value: &str) -> Result<(), DiskError> {
    if parse_uuid(value).is_some() {
        return Ok(());
    }
    Err(DiskError::BadInventory { field, value: printable(value), reason: "which is not a UUID" })
}

/// The sixteen bytes of a textual UUID, in the order of its digits.
pub(super) fn parse_uuid(value: &str) -> Option<[u8; 16]> {
    let groups: Vec<&str> = value.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    if lengths != [8, 4, 4, 4, 12] || !value.is_ascii() {
        return None;
    }
    let digits: String = groups.concat();
    let mut bytes = [0u8; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        if !pair.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// The mixed-endian form of a GUID as it lies in a partition table entry (UEFI 2.10, appendix A).
pub(super) fn guid_on_disk(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[0..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// Accepts a FAT volume id, `ABCD-1234`, and gives its eight digits.
pub(super) fn fat_volume_id(value: &str) -> Result<String, DiskError> {
    let digits: String = value.chars().filter(|c| *c != '-').collect();
    if digits.len() == 8 && value.len() <= 9 && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(digits.to_ascii_uppercase());
    }
    Err(DiskError::BadInventory { field: "esp.volume_id", value: printable(value), reason: "which is not a FAT volume id" })
}

/// Accepts a label of at most `limit` bytes without control characters or a leading dash.
pub(super) fn check_label(field: &'static str, value: &str, limit: usize) -> Result<(), DiskError> {
    if value.len() <= limit && !value.starts_with('-') && !value.chars().any(char::is_control) {
        return Ok(());
    }
    Err(DiskError::BadInventory { field, value: printable(value), reason: "which is no label of this file system" })
}

/// Accepts an absolute mount point without `.` and `..` components.
pub(super) fn check_mount_point(field: &'static str, value: &str) -> Result<(), DiskError> {
    let sane = value.starts_with('/')
        && value.len() < 4096
        && !value.chars().any(char::is_control)
        && !value.split('/').any(|part| part == ".." || part == ".");
    if sane {
        return Ok(());
    }
    Err(DiskError::BadInventory { field, value: printable(value), reason: "which is not an absolute mount point" })
}

/// Makes a version-8 style UUID from a seed, so that equal inventories give equal plans.
pub(super) fn derived_uuid(seed: &str) -> [u8; 16] {
    // FNV-1a with two offsets: not a secret, it only has to differ between disks.
    let half = |mut hash: u64| {
        for byte in seed.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        hash
    };
    let mut bytes = [0u8; 16];
    bytes[..8].copy_from_slice(&half(0xcbf2_9ce4_8422_2325).to_be_bytes());
    bytes[8..].copy_from_slice(&half(0x6c62_272e_07bb_0142).to_be_bytes());
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes
}

/// The textual form of a UUID.
pub(super) fn uuid_text(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(from, to)| &hex[from..to]).join("-")
}

fn printable(value: &str) -> String {
    value.chars().take(80).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_round_trip_and_hostile_ones_are_refused() {
        let text = "0fc63daf-8483-4772-8e79-3d69d8477de4";
        assert_eq!(uuid_text(&parse_uuid(text).unwrap()), text);
        for bad in [
            "",
            "-",
            "--help",
            "0fc63daf-8483-4772-8e79-3d69d8477de",
            "0fc63daf-8483-4772-8e79-3d69d8477dé4",
            "+fc63daf-8483-4772-8e79-3d69d8477de4",
        ] {
            assert!(parse_uuid(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn fat_ids_and_mount_points() {
        assert_eq!(fat_volume_id("abcd-1234").unwrap(), "ABCD1234");
        assert!(fat_volume_id("abcd-12345").is_err());
        assert!(check_mount_point("m", "/var/../etc").is_err());
        assert!(check_mount_point("m", "/var/lib").is_ok());
        assert!(check_label("l", "-x", 16).is_err());
    }
}
