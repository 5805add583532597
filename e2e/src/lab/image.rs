//! Disk images of the guest, one per combination of firmware and file systems, built from the tarball and kept in the cache.
//!
//! An image is a raw sparse file that is never written after it is built: every VM gets an overlay on it, or a copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::command;
use super::customise::{self, Uuids};
use super::disk::{self, ByteRange, Disk, Layout};
use super::recipe::Content;
use super::space::{Access, Space};
use super::{boot, cache, recipe};

/// Part of the images' key: raise it when this module or `boot` changes what it writes.
const VERSION: u32 = 1;

const LIMIT: Duration = Duration::from_secs(300);

/// What starts the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Firmware {
    Bios,
    Uefi,
}

/// The file systems that a guest's volumes can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

impl FileSystem {
    /// The name that mount(8) and mkfs know.
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
        }
    }
}

/// One kind of source server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combo {
    pub firmware: Firmware,
    pub root: FileSystem,
    /// The file system of a second volume at `customise::DATA_POINT`; without it the database lives on the root.
    pub data: Option<FileSystem>,
}

impl Combo {
    /// Those whose name begins with `only`, where it is given; the short form of a suite takes the first.
    pub fn chosen(all: &[Combo], only: Option<&str>, short: bool) -> Result<Vec<Combo>> {
        let named = |combo: &&Combo| only.is_none_or(|only| combo.name().starts_with(only));
        let chosen: Vec<Combo> = all.iter().filter(named).copied().take(if short { 1 } else { all.len() }).collect();
        ensure!(!chosen.is_empty(), "no combination begins with {:?}", only.unwrap_or_default());
        Ok(chosen)
    }

    /// A name for files and messages, such as `bios-ext4-xfs`.
    pub fn name(self) -> String {
        let firmware = if self.firmware == Firmware::Uefi { "uefi" } else { "bios" };
        let data = self.data.map_or("none", FileSystem::name);
        format!("{firmware}-{}-{data}", self.root.name())
    }
}

/// A built image.
#[derive(Clone, Debug)]
pub struct Image {
    pub combo: Combo,
    pub disk: Disk,
    pub layout: Layout,
}

impl Image {
    /// The image of that combination, built if the cache does not have it (about 20 s once the tarball is there).
    pub fn build(combo: Combo) -> Result<Image> {
        Image::build_with(combo, Content::Server)
    }

    /// The image of that combination with that content.
    pub fn build_with(combo: Combo, content: Content) -> Result<Image> {
        let public_key = fs::read_to_string(cache::ssh_key()?.with_extension("pub"))?;
        let blank = Uuids { root: String::new(), swap: String::new(), data: String::new(), esp: String::new() };
        let script = customise::script(combo, content, &blank, &public_key);
        let key = cache::key(&format!("{VERSION} {} {} {script}", recipe::key(content), combo.name()));
        let path = cache::entry(&format!("{}-{key}.img", combo.name()), |partial| {
            let tarball = recipe::tarball(content)?;
            eprintln!("lab: building the disk image {}", combo.name());
            make(partial, combo, content, &tarball, &public_key).with_context(|| format!("building the image {}", combo.name()))
        })?;
        Ok(Image { combo, disk: Disk::raw(path), layout: Layout::of(combo) })
    }
}

fn make(path: &Path, combo: Combo, content: Content, tarball: &Path, public_key: &str) -> Result<()> {
    let layout = disk::create(path, combo)?;
    let uuids = fresh_uuids()?;
    format_partition(path, layout.root, combo.root, &uuids.root)?;
    if let (Some(range), Some(kind)) = (layout.data, combo.data) {
        format_partition(path, range, kind, &uuids.data)?;
    }
    on_loop(path, layout.swap, |device| command::run(&["mkswap", "-q", "-U", &uuids.swap, device], LIMIT))?;

    let space = Space::new()?;
    let root = space.folder("root")?;
    space.mount(path, layout.root, combo.root, &root, Access::ReadWrite)?;
    let data = root.join(customise::DATA_POINT.trim_start_matches('/'));
    if let (Some(range), Some(kind)) = (layout.data, combo.data) {
        space.run(&["mkdir", "-p", &data.to_string_lossy()], LIMIT)?;
        space.mount(path, range, kind, &data, Access::ReadWrite)?;
    }
    unpack(&space, tarball, &root)?;
    customise_root(&space, &customise::script(combo, content, &uuids, public_key), &uuids.root, &root)?;
    if combo.data.is_some() {
        space.unmount(&data)?;
    }
    space.unmount(&root)?;
    boot::install(path, combo, &layout, &uuids)
}

fn fresh_uuids() -> Result<Uuids> {
    let esp = disk::random_uuid()?[..8].to_uppercase();
    Ok(Uuids {
        root: disk::random_uuid()?,
        swap: disk::random_uuid()?,
        data: disk::random_uuid()?,
        esp: format!("{}-{}", &esp[..4], &esp[4..]),
    })
}

fn format_partition(path: &Path, range: ByteRange, kind: FileSystem, uuid: &str) -> Result<()> {
    on_loop(path, range, |device| match kind {
        FileSystem::Ext4 => command::run(&["mkfs.ext4", "-q", "-F", "-U", uuid, device], LIMIT),
        FileSystem::Xfs => command::run(&["mkfs.xfs", "-q", "-f", "-m", &format!("uuid={uuid}"), device], LIMIT),
        FileSystem::Btrfs => command::run(&["mkfs.btrfs", "-q", "-f", "-U", uuid, device], LIMIT),
    })
}

/// Shows a range of the image as a block device while `with` runs.
fn on_loop(path: &Path, range: ByteRange, with: impl FnOnce(&str) -> Result<String>) -> Result<()> {
    let (start, len) = (range.start.to_string(), range.len.to_string());
    let mut attach = command::command(&["losetup", "--find", "--show", "--offset", &start, "--sizelimit", &len]);
    let device = command::checked(attach.arg(path), LIMIT)?;
    let done = with(device.trim());
    command::run(&["losetup", "--detach", device.trim()], LIMIT)?;
    done.map(drop)
}

fn unpack(space: &Space, tarball: &Path, root: &Path) -> Result<()> {
    let words = ["tar", "--extract", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*", "--file"];
    let mut command = space.command(&words);
    command.arg(tarball).arg("--directory").arg(root);
    command::checked(&mut command, LIMIT).context("unpacking the root file system")?;
    Ok(())
}

/// Runs the customising script in the root. It gets its own small `/dev`: with the host's, `update-grub` would not find the root
/// device by UUID and would write the loop device's name into grub.cfg.
fn customise_root(space: &Space, script: &str, uuid: &str, root: &Path) -> Result<()> {
    fs::write(space.seen(&root.join("lab-script")), script)?;
    let around = format!(
        "set -eu; cd {root}\n\
         mount -t tmpfs dev dev; mount -t proc proc proc; mount -t sysfs sys sys\n\
         mknod -m 666 dev/null c 1 3; mknod -m 666 dev/zero c 1 5; mknod -m 666 dev/urandom c 1 9; mknod -m 666 dev/random c 1 8\n\
         device=$(findmnt -n -o SOURCE {root}); cp -a $device dev/; mkdir -p dev/disk/by-uuid; ln -s $device dev/disk/by-uuid/{uuid}\n\
         chroot . sh /lab-script; rm lab-script\n\
         umount dev proc sys",
        root = root.display(),
    );
    space.run(&["sh", "-c", &around], LIMIT).context("setting the guest up")?;
    Ok(())
}

/// The image file's size on disk, for messages.
pub fn stored_mib(path: &PathBuf) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or(0, |meta| (meta.blocks() * 512) >> 20)
}
