//! Boot loader images: built ahead with the appliance's own GRUB, put into place at failover.
//!
//! The image embeds every module that a grub.cfg normally needs, and a first script that finds `/boot` by file system UUID, so
//! nothing depends on the source's loader version, on disk order, or on the disk controller.
//!
//! BIOS: `boot.img` goes into the first sector, without the bytes of disk signature and partition table; `core.img` into the
//! BIOS boot partition. Offsets: GRUB 2.06, include/grub/i386/pc/boot.h and util/setup.c.

use super::BootError;
use super::grubcfg::boot_prefix;
use crate::disk::{DiskPlan, tool};
use standin_model::Firmware;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SECTOR: usize = 512;
/// Where the sector number of the core image stands in boot.img (`GRUB_BOOT_MACHINE_KERNEL_SECTOR`, 8 bytes).
const KERNEL_SECTOR: usize = 0x5c;
/// A jump that is replaced by two NOPs so that the BIOS's drive number is believed to be a hard disk (`…_DRIVE_CHECK`).
const DRIVE_CHECK: usize = 0x66;
/// From here on the first sector holds disk signature and partition table (`GRUB_BOOT_MACHINE_WINDOWS_NT_MAGIC`).
const CODE_END: usize = 0x1b8;
/// The block list at the end of the core image's first sector: start (8), length (2), segment (2).
const BLOCK_LIST: usize = SECTOR - 12;

const MODULES: &str = "part_gpt part_msdos ext2 xfs btrfs fat search search_fs_uuid search_fs_file search_label normal configfile \
    linux echo test true loadenv minicmd gzio regexp sleep reboot halt ls cat serial terminal probe extcmd all_video gfxterm font \
    gettext keystatus";

/// GRUB's name of the platform, which is also the name of its module directory.
pub fn platform(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Bios => "i386-pc",
        Firmware::Uefi => "x86_64-efi",
    }
}

/// Where the appliance keeps GRUB's modules.
pub fn module_directory(firmware: Firmware) -> PathBuf {
    Path::new("/usr/lib/grub").join(platform(firmware))
}

/// File name of the prepared image in the staging directory.
pub fn image_name(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Bios => "core.img",
        Firmware::Uefi => "bootx64.efi",
    }
}

/// Builds the image into the staging directory.
pub fn build(plan: &DiskPlan, firmware: Firmware, staging: &Path) -> Result<(), BootError> {
    let (_, boot) = plan.volume_of_path("/boot").ok_or(BootError::NotInPlan { what: "volume with /boot" })?;
    let prefix = boot_prefix(plan).ok_or(BootError::NotInPlan { what: "volume with /boot" })?;
    let script = format!("search.fs_uuid {} root\nset prefix=($root){prefix}/grub\n", boot.source.uuid);
    let script_path = staging.join("early.cfg");
    std::fs::write(&script_path, script).map_err(BootError::host("writing", &script_path))?;
    let mut command = Command::new("grub-mkimage");
    command.arg("-d").arg(module_directory(firmware)).args(["-O", platform(firmware), "-p", "/boot/grub", "-c"]);
    command.arg(&script_path).arg("-o").arg(staging.join(image_name(firmware)));
    command.args(MODULES.split_whitespace());
    match firmware {
        Firmware::Bios => command.arg("biosdisk"),
        Firmware::Uefi => command.args(["efi_gop", "efifwsetup"]),
    };
    tool::run(&mut command, "grub-common")?;
    Ok(())
}

/// Puts the prepared image where the firmware looks for it; gives what was written, for the report.
pub fn install(disk: &Path, plan: &DiskPlan, firmware: Firmware, staging: &Path) -> Result<Vec<(String, String)>, BootError> {
    match firmware {
        Firmware::Bios => install_bios(disk, plan, staging),
        Firmware::Uefi => install_uefi(disk, plan, staging),
    }
}

fn install_bios(disk: &Path, plan: &DiskPlan, staging: &Path) -> Result<Vec<(String, String)>, BootError> {
    let part = plan.bios_boot().ok_or(BootError::NotInPlan { what: "BIOS boot partition" })?;
    let (boot_path, core_path) = (module_directory(Firmware::Bios).join("boot.img"), staging.join(image_name(Firmware::Bios)));
    let boot = std::fs::read(&boot_path).map_err(BootError::host("reading", &boot_path))?;
    let core = std::fs::read(&core_path).map_err(BootError::host("reading", &core_path))?;
    if core.len() as u64 > part.size {
        return Err(BootError::LoaderTooLarge { bytes: core.len() as u64, room: part.size });
    }
    let first_sector = part.offset / SECTOR as u64;
    let core = patched_core(core, first_sector).ok_or(BootError::BadLoader { path: core_path, reason: "no block list" })?;
    let file = OpenOptions::new().read(true).write(true).open(disk).map_err(BootError::host("opening", disk))?;
    let mut sector = [0u8; SECTOR];
    file.read_exact_at(&mut sector, 0).map_err(BootError::host("reading", disk))?;
    let sector = patched_boot(&boot, sector, first_sector).ok_or(BootError::BadLoader { path: boot_path, reason: "not 512 bytes" })?;
    let written = file.write_all_at(&core, part.offset).and_then(|()| file.write_all_at(&sector, 0));
    written.map_err(BootError::host("writing", disk))?;
    Ok(vec![
        ("disk: BIOS boot partition".into(), format!("GRUB core image, {} bytes", core.len())),
        ("disk: first sector".into(), "GRUB boot code".into()),
    ])
}

/// Boot code around the signature and partition table that the sector already holds.
fn patched_boot(image: &[u8], mut sector: [u8; SECTOR], core_sector: u64) -> Option<[u8; SECTOR]> {
    if image.len() != SECTOR {
        return None;
    }
    sector[..CODE_END].copy_from_slice(&image[..CODE_END]);
    sector[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&core_sector.to_le_bytes());
    sector[DRIVE_CHECK..DRIVE_CHECK + 2].fill(0x90);
    sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
    Some(sector)
}

/// The core image lies in one piece, so its single block list entry is right but for the start, which becomes absolute.
fn patched_core(mut core: Vec<u8>, first_sector: u64) -> Option<Vec<u8>> {
    let length = core.len().checked_sub(SECTOR)?.div_ceil(SECTOR);
    let list = core.get_mut(BLOCK_LIST..SECTOR)?;
    list[..8].copy_from_slice(&(first_sector + 1).to_le_bytes());
    list[8..10].copy_from_slice(&u16::try_from(length).ok()?.to_le_bytes());
    // GRUB_BOOT_MACHINE_KERNEL_SEG (0x800) plus the first sector's 0x20 paragraphs.
    list[10..12].copy_from_slice(&0x820u16.to_le_bytes());
    core.resize(core.len().next_multiple_of(SECTOR), 0);
    Some(core)
}

fn install_uefi(disk: &Path, plan: &DiskPlan, staging: &Path) -> Result<Vec<(String, String)>, BootError> {
    let part = plan.esp().ok_or(BootError::NotInPlan { what: "EFI system partition" })?;
    let image = format!("{}@@{}", disk.display(), part.offset);
    for directory in ["::/EFI", "::/EFI/BOOT", "::/EFI/debian"] {
        // A directory that is there already is an error of mmd and none of ours; a real one shows at the copy.
        let _ = tool::run(Command::new("mmd").args(["-D", "s", "-i", &image, directory]), "mtools");
    }
    let source = staging.join(image_name(Firmware::Uefi));
    let mut written = Vec::new();
    for target in ["EFI/BOOT/BOOTX64.EFI", "EFI/debian/grubx64.efi"] {
        tool::run(Command::new("mcopy").args(["-o", "-i", &image]).arg(&source).arg(format!("::/{target}")), "mtools")?;
        written.push((format!("EFI system partition: {target}"), "GRUB image".into()));
    }
    File::open(disk).and_then(|file| file.sync_data()).map_err(BootError::host("syncing", disk))?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_keep_the_partition_table() {
        let mut sector = [7u8; SECTOR];
        sector[0] = 1;
        let patched = patched_boot(&[0xeb; SECTOR], sector, 2048).unwrap();
        assert_eq!(&patched[CODE_END..SECTOR - 2], &[7u8; SECTOR - 2 - CODE_END]);
        assert_eq!(patched[KERNEL_SECTOR..KERNEL_SECTOR + 8], 2048u64.to_le_bytes());
        assert!(patched_boot(&[0; 10], sector, 1).is_none());
    }

    #[test]
    fn the_block_list_covers_the_core() {
        let core = patched_core(vec![1; 5 * SECTOR + 3], 2048).unwrap();
        assert_eq!(core.len(), 6 * SECTOR);
        assert_eq!(core[BLOCK_LIST..BLOCK_LIST + 8], 2049u64.to_le_bytes());
        assert_eq!(core[BLOCK_LIST + 8..BLOCK_LIST + 10], 5u16.to_le_bytes());
        assert!(patched_core(vec![0; 100], 1).is_none());
    }
}
