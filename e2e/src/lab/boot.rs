//! Boot loaders written straight into an image, without a partition-scanning kernel and without a mounted FAT.
//!
//! BIOS: GRUB's boot sector goes to sector 0 and its core image to the BIOS boot partition, with the two block pointers patched as
//! `grub-bios-setup` does it (GRUB 2.06, util/setup.c and include/grub/i386/pc/boot.h). UEFI: one EFI programme that looks for
//! the root by UUID, at the removable path and at Debian's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::command;
use super::customise::Uuids;
use super::disk::{self, ByteRange, Layout};
use super::image::{Combo, Firmware};

const LIMIT: Duration = Duration::from_secs(60);
const SECTOR: usize = 512;

/// In the boot sector: the sector of the core image, 8 bytes (`GRUB_BOOT_MACHINE_KERNEL_SECTOR`).
const KERNEL_SECTOR: usize = 0x5c;
/// In the boot sector: a jump that hard disks replace by two NOPs (`GRUB_BOOT_MACHINE_DRIVE_CHECK`).
const DRIVE_CHECK: usize = 0x66;
/// The boot sector's code ends where the partition table's signature field begins.
const BOOT_CODE_END: usize = 0x1b8;
/// In the core image's first sector: start (8 bytes), length (2) and segment (2) of the rest.
const BLOCK_LIST: usize = SECTOR - 12;
/// `GRUB_BOOT_MACHINE_KERNEL_SEG` 0x800 and one sector of 0x20 paragraphs.
const REST_SEGMENT: u16 = 0x820;

/// Modules that find and read the root on either firmware.
const MODULES: &[&str] = &[
    "part_gpt",
    "part_msdos",
    "ext2",
    "xfs",
    "btrfs",
    "search",
    "search_fs_uuid",
    "normal",
    "configfile",
    "linux",
    "serial",
    "terminal",
    "echo",
    "test",
    "minicmd",
    "ls",
];

/// Makes the image bootable; the root's `/boot/grub` is there already.
pub fn install(disk: &Path, combo: Combo, layout: &Layout, uuids: &Uuids) -> Result<()> {
    let scratch = disk.with_extension("grub");
    std::fs::create_dir_all(&scratch)?;
    let done = match combo.firmware {
        Firmware::Bios => install_bios(disk, layout, uuids, &scratch),
        Firmware::Uefi => install_uefi(disk, layout.boot, uuids, &scratch),
    };
    std::fs::remove_dir_all(&scratch).ok();
    done.context("installing the boot loader")
}

fn early_config(uuids: &Uuids, scratch: &Path) -> Result<PathBuf> {
    let path = scratch.join("early.cfg");
    let text = format!("search.fs_uuid {} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n", uuids.root);
    std::fs::write(&path, text)?;
    Ok(path)
}

fn mkimage(target: &str, extra: &[&str], uuids: &Uuids, scratch: &Path) -> Result<PathBuf> {
    let core = scratch.join("core.img");
    let config = early_config(uuids, scratch)?;
    let mut command = command::command(&["grub-mkimage", "-O", target, "-p", "/boot/grub", "-o"]);
    command.arg(&core).arg("-c").arg(config).args(MODULES).args(extra);
    command::checked(&mut command, LIMIT)?;
    Ok(core)
}

fn install_bios(disk: &Path, layout: &Layout, uuids: &Uuids, scratch: &Path) -> Result<()> {
    let mut core = std::fs::read(mkimage("i386-pc", &["biosdisk"], uuids, scratch)?)?;
    ensure!(core.len() as u64 <= layout.boot.len, "GRUB's core image of {} bytes is larger than its partition", core.len());
    let mut boot = std::fs::read("/usr/lib/grub/i386-pc/boot.img").context("package grub-pc-bin is missing")?;
    ensure!(boot.len() == SECTOR && core.len() > SECTOR, "GRUB's images have an unexpected size");
    let first = layout.boot.start / SECTOR as u64;
    boot[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&first.to_le_bytes());
    boot[DRIVE_CHECK..DRIVE_CHECK + 2].copy_from_slice(&[0x90, 0x90]);
    let rest = u16::try_from(core.len().div_ceil(SECTOR) - 1)?;
    core[BLOCK_LIST..BLOCK_LIST + 8].copy_from_slice(&(first + 1).to_le_bytes());
    core[BLOCK_LIST + 8..BLOCK_LIST + 10].copy_from_slice(&rest.to_le_bytes());
    core[BLOCK_LIST + 10..SECTOR].copy_from_slice(&REST_SEGMENT.to_le_bytes());
    disk::patch(disk, 0, &boot[..BOOT_CODE_END])?;
    disk::patch(disk, layout.boot.start, &core)
}

fn install_uefi(disk: &Path, esp: ByteRange, uuids: &Uuids, scratch: &Path) -> Result<()> {
    let core = mkimage("x86_64-efi", &["fat", "efi_gop", "all_video", "gfxterm"], uuids, scratch)?;
    let image = format!("{}@@{}", disk.display(), esp.start);
    let serial = uuids.esp.replace('-', "");
    let sectors = (esp.len / SECTOR as u64).to_string();
    command::run(&["mformat", "-i", &image, "-T", &sectors, "-h", "255", "-s", "63", "-F", "-N", &serial, "-v", "ESP", "::"], LIMIT)?;
    command::run(&["mmd", "-i", &image, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"], LIMIT)?;
    for target in ["::/EFI/BOOT/BOOTX64.EFI", "::/EFI/debian/grubx64.efi"] {
        let mut command = command::command(&["mcopy", "-i", &image]);
        command::checked(command.arg(&core).arg(target), LIMIT)?;
    }
    Ok(())
}
