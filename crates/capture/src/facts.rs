//! What the running kernel declares, and whether that is what the programs were written for.
//!
//! Facts are gathered from BTF as plain text (a function's types, a field's type, a number), so that those of any kernel can be recorded in a file and
//! compared in a test. Everything that the programs take for granted is compared for equality, before anything is loaded: prototypes by argument
//! types, fields by type, sizes that they calculate with. Anything else is refused, with what was found and what is known.

use crate::{
    CaptureError,
    btf::Btf,
    hooks::{EXCHANGE, HOOKS},
};
use standin_model::FileSystem;
use std::{collections::BTreeMap, fmt, io, sync::Arc};

/// A field that the programs read (`bpf/kernel.h`), and the types for which they were written.
struct Field {
    name: &'static str,
    types: &'static [&'static str],
}

const fn field(name: &'static str, types: &'static [&'static str]) -> Field {
    Field { name, types }
}

const FIELDS: &[Field] = &[
    field("super_block.s_dev", &["dev_t"]),
    field("inode.i_mode", &["umode_t"]),
    field("inode.i_uid", &["kuid_t"]),
    field("inode.i_gid", &["kgid_t"]),
    field("inode.i_sb", &["super_block*"]),
    field("inode.i_ino", &["long unsigned int"]),
    field("inode.i_nlink", &["unsigned int"]),
    field("inode.i_rdev", &["dev_t"]),
    field("inode.i_size", &["loff_t"]),
    field("inode.i_generation", &["__u32", "u32"]),
    field("timespec64.tv_sec", &["time64_t"]),
    field("timespec64.tv_nsec", &["long int"]),
    field("qstr.name", &["unsigned char*"]),
    field("dentry.d_parent", &["dentry*"]),
    field("dentry.d_name", &["qstr"]),
    field("dentry.d_inode", &["inode*"]),
    field("address_space.host", &["inode*"]),
    field("page.flags", &["long unsigned int"]),
    field("folio.flags", &["long unsigned int"]),
    field("folio.mapping", &["address_space*"]),
    field("folio.index", &["long unsigned int"]),
    field("folio._folio_nr_pages", &["unsigned int"]),
    field("file.f_inode", &["inode*"]),
    field("kiocb.ki_filp", &["file*"]),
    field("kiocb.ki_pos", &["loff_t"]),
    field("iomap_iter.inode", &["inode*"]),
    field("iomap_iter.flags", &["unsigned int"]),
    field("iomap_dio.iocb", &["kiocb*"]),
    field("iomap_dio.size", &["loff_t"]),
    field("iomap_dio.flags", &["unsigned int"]),
    field("iomap_dio.error", &["int"]),
    field("bvec_iter.bi_size", &["unsigned int"]),
    field("bvec_iter.bi_idx", &["unsigned int"]),
    field("bvec_iter.bi_bvec_done", &["unsigned int"]),
    field("bio_vec.bv_page", &["page*"]),
    field("bio_vec.bv_len", &["unsigned int"]),
    field("bio_vec.bv_offset", &["unsigned int"]),
    field("bio.bi_opf", &["blk_opf_t"]),
    field("bio.bi_iter", &["bvec_iter"]),
    field("bio.bi_vcnt", &["short unsigned int"]),
    field("bio.bi_io_vec", &["bio_vec*"]),
    field("vm_area_struct.vm_file", &["file*"]),
    field("vm_fault.vma", &["vm_area_struct*"]),
    field("vm_fault.pgoff", &["long unsigned int"]),
    field("renamedata.old_dir", &["inode*"]),
    field("renamedata.old_dentry", &["dentry*"]),
    field("renamedata.new_dir", &["inode*"]),
    field("renamedata.new_dentry", &["dentry*"]),
    field("renamedata.flags", &["unsigned int"]),
    field("iattr.ia_valid", &["unsigned int"]),
    field("iattr.ia_atime", &["timespec64"]),
    field("fileattr.flags", &["u32"]),
    field("fileattr.fsx_projid", &["u32"]),
    field("posix_acl.a_count", &["unsigned int"]),
    field("posix_acl_entry.e_tag", &["short int"]),
    field("posix_acl_entry.e_perm", &["short unsigned int"]),
    field("posix_acl_entry.e_uid", &["kuid_t"]),
];
/// One of these groups must be there whole: until 6.5, until 6.10, since 6.11.
const CHANGE_TIMES: &[&[Field]] = &[
    &[field("inode.i_mtime", &["timespec64"])],
    &[field("inode.__i_mtime", &["timespec64"])],
    &[field("inode.i_mtime_sec", &["time64_t"]), field("inode.i_mtime_nsec", &["u32"])],
];
const EXT4_FIELDS: &[Field] = &[
    field("ext4_inode_info.vfs_inode", &["inode"]),
    field("ext4_inode_info.i_flags", &["long unsigned int"]),
    field("ext4_inode_info.i_projid", &["kprojid_t"]),
];
const XFS_FIELDS: &[Field] =
    &[field("xfs_inode.i_vnode", &["inode"]), field("xfs_inode.i_diflags", &["uint16_t"]), field("xfs_inode.i_projid", &["prid_t"])];
/// Only where the kernel has the function that takes it.
const EXCHANGE_FIELDS: &[Field] = &[field("xfs_exchrange.file1", &["file*"]), field("xfs_exchrange.file2", &["file*"])];
const BTRFS_FIELDS: &[Field] = &[
    field("btrfs_inode.flags", &["u32"]),
    field("btrfs_inode.vfs_inode", &["inode"]),
    field("btrfs_inode.root", &["btrfs_root*"]),
    field("btrfs_root.root_key", &["btrfs_key"]),
    field("btrfs_key.objectid", &["__u64", "u64"]),
];
/// Structures that the programs walk by size, and numbers that they compare with.
const SIZES: &[(&str, u32)] = &[("sizeof page", 64), ("sizeof bio_vec", 16), ("sizeof posix_acl_entry", 8), ("REQ_OP_WRITE", 1)];
/// Numbers that the programs are told.
const TOLD: &[&str] = &["FSNOTIFY_EVENT_INODE", "FSNOTIFY_EVENT_DENTRY", "PG_head", "PG_uptodate"];
/// What the programs must be told about this kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub ext4_inode_vfs: u32,
    pub ext4_inode_flags: u32,
    pub ext4_inode_project: u32,
    pub xfs_inode_vfs: u32,
    pub xfs_inode_flags: u32,
    pub xfs_inode_project: u32,
    pub xfs_exchange_file1: u32,
    pub xfs_exchange_file2: u32,
    pub btrfs_inode_flags: u32,
    pub btrfs_inode_vfs: u32,
    pub btrfs_inode_root: u32,
    pub btrfs_root_objectid: u32,
    pub event_inode: u32,
    pub event_dentry: u32,
    pub page_head_bit: u32,
    pub page_uptodate_bit: u32,
}

/// By what they are about: `vfs_rename()`, `return vfs_fallocate`, `inode.i_size`, `sizeof page`, `PG_head`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<String, String>);

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(about, fact)| writeln!(f, "{about} = {fact}"))
    }
}

impl Facts {
    /// Of the running kernel and of the modules of these file systems, which must be loaded.
    pub fn of_kernel(protected: &[FileSystem]) -> Result<Facts, CaptureError> {
        Facts::gather(protected, &|name, base| Btf::of_kernel(name, base))
    }

    /// `read` gives the type information of `vmlinux` or of a module on top of it.
    pub fn gather(protected: &[FileSystem], read: &dyn Fn(&str, Option<Arc<Btf>>) -> io::Result<Btf>) -> Result<Facts, CaptureError> {
        let kernel = Arc::new(read("vmlinux", None).map_err(|source| CaptureError::NoTypes { source })?);
        // A driver that is built in has its types in the kernel's.
        let module = |name: &str| read(name, Some(kernel.clone())).map_or_else(|_| kernel.clone(), Arc::new);
        let modules = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs]
            .map(|kind| (kind, protected.contains(&kind).then(|| module(kind.as_str()))));
        let types = |kind: Option<&FileSystem>| {
            let of = modules.iter().find(|(of, _)| Some(of) == kind).and_then(|(_, types)| types.as_ref());
            of.unwrap_or(&kernel)
        };
        let mut facts = Facts::default();
        for hook in HOOKS.iter().filter(|hook| hook.is_needed(protected)) {
            let types = types(hook.file_systems.first());
            if let Some(function) = hook.only.function() {
                facts.note(format!("{function}()"), types.prototype(function));
            }
            if !facts.does(hook.only) {
                continue;
            }
            facts.note(format!("{}()", hook.function), types.prototype(hook.function));
            if hook.returns.is_some() {
                facts.note(format!("return {}", hook.function), types.returns(hook.function));
            }
        }
        for name in FIELDS.iter().chain(CHANGE_TIMES.iter().copied().flatten()).map(|field| field.name) {
            facts.note_member(name, &kernel, false);
        }
        for (kind, fields) in [
            (FileSystem::Ext4, EXT4_FIELDS),
            (FileSystem::Xfs, XFS_FIELDS),
            (FileSystem::Xfs, EXCHANGE_FIELDS),
            (FileSystem::Btrfs, BTRFS_FIELDS),
        ] {
            if protected.contains(&kind) {
                fields.iter().for_each(|field| facts.note_member(field.name, types(Some(&kind)), true));
            }
        }
        for about in SIZES.iter().map(|(about, _)| *about).chain(TOLD.iter().copied()) {
            let number = about.strip_prefix("sizeof ").map_or_else(|| kernel.enumerator(about), |name| kernel.struct_bytes(name));
            facts.note(about.to_owned(), number.map(|number| number.to_string()));
        }
        Ok(facts)
    }

    fn note(&mut self, about: String, fact: Option<String>) {
        if let Some(fact) = fact {
            self.0.insert(about, fact);
        }
    }

    fn note_member(&mut self, name: &str, types: &Btf, offset: bool) {
        let Some((structure, member)) = name.split_once('.') else { return };
        self.note(name.to_owned(), types.member_type(structure, member));
        if offset {
            self.note(format!("offset {name}"), types.member_offset(structure, member).map(|at| at.to_string()));
        }
    }

    fn number(&self, about: &'static str) -> Result<u32, CaptureError> {
        let number = self.0.get(about).and_then(|text| text.parse().ok());
        number.ok_or(CaptureError::Field { field: about, found: "no such thing".into(), known: "a number".into() })
    }

    /// Compares them with everything that the programs for these file systems take for granted.
    pub fn check(&self, protected: &[FileSystem]) -> Result<Layout, CaptureError> {
        self.hooks(protected)?;
        FIELDS.iter().try_for_each(|field| self.check_field(field))?;
        let times = CHANGE_TIMES.iter().map(|group| group.iter().try_for_each(|field| self.check_field(field)));
        times.reduce(|one, other| one.or(other)).unwrap_or(Ok(()))?;
        for (about, size) in SIZES {
            let found = self.number(about)?;
            if found != *size {
                return Err(CaptureError::Field { field: about, found: found.to_string(), known: size.to_string() });
            }
        }
        let mut layout = Layout {
            event_inode: self.number(TOLD[0])?,
            event_dentry: self.number(TOLD[1])?,
            page_head_bit: self.number(TOLD[2])?,
            page_uptodate_bit: self.number(TOLD[3])?,
            ..Layout::default()
        };
        for kind in protected {
            match kind {
                FileSystem::Ext4 => self.check_ext4(&mut layout)?,
                FileSystem::Xfs => self.check_xfs(&mut layout)?,
                FileSystem::Btrfs => self.check_btrfs(&mut layout)?,
            }
        }
        Ok(layout)
    }

    fn check_ext4(&self, layout: &mut Layout) -> Result<(), CaptureError> {
        EXT4_FIELDS.iter().try_for_each(|field| self.check_field(field))?;
        layout.ext4_inode_vfs = self.number("offset ext4_inode_info.vfs_inode")?;
        layout.ext4_inode_flags = self.number("offset ext4_inode_info.i_flags")?;
        layout.ext4_inode_project = self.number("offset ext4_inode_info.i_projid")?;
        Ok(())
    }

    fn check_xfs(&self, layout: &mut Layout) -> Result<(), CaptureError> {
        XFS_FIELDS.iter().try_for_each(|field| self.check_field(field))?;
        layout.xfs_inode_vfs = self.number("offset xfs_inode.i_vnode")?;
        layout.xfs_inode_flags = self.number("offset xfs_inode.i_diflags")?;
        layout.xfs_inode_project = self.number("offset xfs_inode.i_projid")?;
        if self.declared(EXCHANGE).is_some() {
            EXCHANGE_FIELDS.iter().try_for_each(|field| self.check_field(field))?;
            layout.xfs_exchange_file1 = self.number("offset xfs_exchrange.file1")?;
            layout.xfs_exchange_file2 = self.number("offset xfs_exchrange.file2")?;
        }
        Ok(())
    }

    fn check_btrfs(&self, layout: &mut Layout) -> Result<(), CaptureError> {
        BTRFS_FIELDS.iter().try_for_each(|field| self.check_field(field))?;
        layout.btrfs_inode_vfs = self.number("offset btrfs_inode.vfs_inode")?;
        layout.btrfs_inode_flags = self.number("offset btrfs_inode.flags")?;
        layout.btrfs_inode_root = self.number("offset btrfs_inode.root")?;
        layout.btrfs_root_objectid = self.number("offset btrfs_root.root_key")? + self.number("offset btrfs_key.objectid")?;
        Ok(())
    }

    fn declared(&self, function: &str) -> Option<&str> {
        self.0.get(&format!("{function}()")).map(String::as_str)
    }

    fn check_field(&self, field: &Field) -> Result<(), CaptureError> {
        let found = self.0.get(field.name).map(String::as_str);
        if found.is_some_and(|found| field.types.contains(&found)) {
            return Ok(());
        }
        let found = found.map_or("no such field".to_owned(), |found| format!("the type {found}"));
        Err(CaptureError::Field { field: field.name, found, known: field.types.join(" or ") })
    }
}

/// Why each of these file systems cannot be captured on this kernel, as far as that can be told without loading anything. An error concerns them all.
pub fn obstacles(wanted: &[FileSystem]) -> Result<Vec<(FileSystem, CaptureError)>, CaptureError> {
    let facts = Facts::of_kernel(wanted)?;
    let obstacle = |kind: &FileSystem| facts.check(&[*kind]).err().map(|error| (*kind, error));
    Ok(wanted.iter().filter_map(obstacle).collect())
}

mod choice;
#[cfg(test)]
mod tests;

pub use choice::{Offer, offers};
