//! Makes the source's swap files anew: their content was left out, and a guest whose fstab names one would start without swap.
//!
//! The header is that of mkswap, version 1 (include/linux/swap.h). The space is reserved, because swapping into a hole is refused by the kernel; on btrfs
//! the file also has to be exempt from copy-on-write, which has to be said while it is empty.

use super::profile::BootRepairReport;
use super::{BootError, GuestRoot};
use crate::disk::DiskPlan;

const PAGE_BYTES: u64 = 4096;
/// mkswap refuses less than ten pages.
const SWAP_BYTES_MIN: u64 = 10 * PAGE_BYTES;

/// What is there already is left alone: it was wanted in the replica, or made by an earlier run. A file that cannot be made is only warned of.
pub fn make(guest: &GuestRoot, plan: &DiskPlan, report: &mut BootRepairReport) -> Result<(), BootError> {
    for swap in &plan.swap_files {
        let bytes = swap.size.0 / PAGE_BYTES * PAGE_BYTES;
        let odd = !swap.device.starts_with('/') || swap.device.chars().any(char::is_control) || bytes < SWAP_BYTES_MIN;
        if odd || guest.exists(&swap.device) {
            continue;
        }
        match guest.make_reserved(&swap.device, bytes, &header(bytes)) {
            Ok(()) => report.change(&swap.device, format!("made anew, {bytes} bytes"), "the content of swap files is not replicated"),
            Err(error) => report.warnings.push(format!("the swap file {} could not be made anew: {error}", swap.device)),
        }
    }
    Ok(())
}

fn header(bytes: u64) -> Vec<u8> {
    let mut page = vec![0u8; PAGE_BYTES as usize];
    let last = u32::try_from(bytes / PAGE_BYTES - 1).unwrap_or(u32::MAX);
    page[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    page[1028..1032].copy_from_slice(&last.to_le_bytes());
    let at = page.len() - 10;
    page[at..].copy_from_slice(b"SWAPSPACE2");
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fixture;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_swap_file_is_made_once_and_only_inside() {
        let dir = tempfile::tempdir().unwrap();
        let guest = GuestRoot::open(dir.path()).unwrap();
        let mut source = fixture::source(vec![fixture::volume(1, "/", "ext4", 1 << 30, 0)]);
        source.swaps = vec![fixture::swap("/var/swap.img", ""), fixture::swap("/dev/sda5", "22222222-2222-4222-8222-222222222222")];
        let plan = fixture::plan(&source);
        assert_eq!((plan.swap_files.len(), plan.swaps().count()), (1, 1));
        let mut report = BootRepairReport::default();
        make(&guest, &plan, &mut report).unwrap();
        assert_eq!(report.changes.len(), 1, "{:?}", report.warnings);
        let file = dir.path().join("var/swap.img");
        let data = std::fs::metadata(&file).unwrap();
        assert_eq!((data.len(), data.mode() & 0o777), (1 << 20, 0o600));
        assert!(data.blocks() * 512 >= 1 << 20, "no holes");
        let said = std::process::Command::new("blkid").args(["-p", "-o", "value", "-s", "TYPE"]).arg(&file).output();
        if let Ok(said) = said {
            assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "swap");
        }
        let mut again = BootRepairReport::default();
        make(&guest, &plan, &mut again).unwrap();
        assert!(again.changes.is_empty());
    }
}
