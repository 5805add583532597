//! Which program goes onto which kernel function, and the prototypes for which it was written.
//!
//! A kernel that declares anything else is refused: the programs read arguments by position, and a kprobe checks nothing. Where kernels differ, the
//! same function stands here more than once, with a program for each of its forms: the kernel has to declare one of them exactly. The fields that
//! they read are listed in `facts`, which also does the comparing.

use standin_model::FileSystem;

/// Must equal DEVICES_MAX in bpf/emit.h.
pub const DEVICES_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    Probe,
    Exit,
    /// A probe on its return, which has the result and no arguments.
    Return,
}

#[derive(Debug)]
pub struct Hook {
    pub program: &'static str,
    pub function: &'static str,
    pub attach: Attach,
    /// Argument types as [`Btf::prototype`] prints them; any of these.
    pub prototypes: &'static [&'static str],
    /// The type of the result, for a program that reads it or depends on the kernels which have it.
    pub returns: Option<&'static str>,
    /// Needed for these only; empty: for all.
    pub file_systems: &'static [FileSystem],
    /// Needed only where the kernel has, or has not, this function.
    pub only: Only,
}

/// A function whose presence tells how this kernel does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    Always,
    With(&'static str),
    Without(&'static str),
}

impl Only {
    pub fn function(self) -> Option<&'static str> {
        match self {
            Only::Always => None,
            Only::With(function) | Only::Without(function) => Some(function),
        }
    }
}

const EXT4: &[FileSystem] = &[FileSystem::Ext4];
const XFS: &[FileSystem] = &[FileSystem::Xfs];
const BTRFS: &[FileSystem] = &[FileSystem::Btrfs];
const ALL: &[FileSystem] = &[];
const WRITE_END: &[&str] = &[
    "file*,address_space*,loff_t,unsigned int,unsigned int,page*,void*",
    "file*,address_space*,loff_t,unsigned int,unsigned int,folio*,void*",
];
const IOMAP_WRITE_END: &[&str] = &["iomap_iter*,loff_t,size_t,size_t,folio*"];
/// Of each file system, and not `vfs_fallocate`: a loop device goes around that.
const FALLOCATE: &[&str] = &["file*,int,loff_t,loff_t"];
const TWO_FILES: &[&str] = &["file*,loff_t,file*,loff_t,loff_t,unsigned int", "file*,loff_t,file*,loff_t,size_t,unsigned int"];

/// What `bpf/opaque.h` is about.
const MOVE_EXTENTS: &[&str] = &["file*,file*,__u64,__u64,__u64,__u64*"];
const SWAP_EXTENTS: &[&str] = &["xfs_inode*,xfs_inode*,xfs_swapext*"];
const ATTRMULTI: &[&str] = &["file*,inode*,uint32_t,void*,void*,uint32_t*,uint32_t"];
const ENCODED_WRITE: &[&str] = &["kiocb*,iov_iter*,btrfs_ioctl_encoded_io_args*"];
/// Since 6.10.
pub const EXCHANGE: &str = "xfs_exchange_range";
const WITH_EXCHANGE: Only = Only::With(EXCHANGE);
const EXCHANGE_RANGE: &[&str] = &["xfs_exchrange*"];
/// Where the kernel was built with it (CONFIG_FS_VERITY).
const VERITY: &str = "fsverity_ioctl_enable";
const WITH_VERITY: Only = Only::With(VERITY);
const ENABLE_VERITY: &[&str] = &["file*,void*"];

/// Until 6.9 some callers (a copy-up of overlayfs) come here directly, and the others through `vfs_clone_file_range`; later kernels have only that.
const INNER: &str = "do_clone_file_range";
const INNER_CLONE: Only = Only::With(INNER);
const OUTER_CLONE: Only = Only::Without(INNER);
/// Until 6.1, and since 6.2. An ACL comes here from wherever it is set; since 6.2 the setting of extended attributes is none of these places.
const ACL_OF_INODE: &[&str] = &["user_namespace*,inode*,int,posix_acl*"];
const ACL_OF_DENTRY: &[&str] = &["mnt_idmap*,dentry*,int,posix_acl*", "user_namespace*,dentry*,int,posix_acl*"];

const fn probe(
    program: &'static str,
    function: &'static str,
    file_systems: &'static [FileSystem],
    prototypes: &'static [&'static str],
) -> Hook {
    Hook { program, function, attach: Attach::Probe, prototypes, returns: None, file_systems, only: Only::Always }
}
const fn exit(program: &'static str, function: &'static str, returns: &'static str, prototypes: &'static [&'static str]) -> Hook {
    Hook { program, function, attach: Attach::Exit, prototypes, returns: Some(returns), file_systems: ALL, only: Only::Always }
}
const fn returned(
    program: &'static str,
    function: &'static str,
    file_systems: &'static [FileSystem],
    returns: &'static str,
    prototypes: &'static [&'static str],
) -> Hook {
    Hook { program, function, attach: Attach::Return, prototypes, returns: Some(returns), file_systems, only: Only::Always }
}
const fn only(only: Only, hook: Hook) -> Hook {
    Hook { only, ..hook }
}

/// Attached in this order: exits before entries, so that no entry waits for an exit that cannot come.
pub const HOOKS: &[Hook] = &[
    returned("return_ext4_fallocate", "ext4_fallocate", EXT4, "long int", FALLOCATE),
    returned("return_xfs_file_fallocate", "xfs_file_fallocate", XFS, "long int", FALLOCATE),
    returned("return_btrfs_fallocate", "btrfs_fallocate", BTRFS, "long int", FALLOCATE),
    exit("exit_vfs_copy_file_range", "vfs_copy_file_range", "ssize_t", TWO_FILES),
    only(INNER_CLONE, exit("exit_do_clone_file_range", INNER, "loff_t", TWO_FILES)),
    only(OUTER_CLONE, exit("exit_clone_file_range", "vfs_clone_file_range", "loff_t", TWO_FILES)),
    exit("exit_iomap_dio_complete", "iomap_dio_complete", "ssize_t", &["iomap_dio*"]),
    exit("exit_set_posix_acl_inode", "set_posix_acl", "int", ACL_OF_INODE),
    exit("exit_set_posix_acl_dentry", "set_posix_acl", "int", ACL_OF_DENTRY),
    exit("exit_vfs_fileattr_set", "vfs_fileattr_set", "int", &["user_namespace*,dentry*,fileattr*", "mnt_idmap*,dentry*,fileattr*"]),
    returned("return_ext4_move_extents", "ext4_move_extents", EXT4, "int", MOVE_EXTENTS),
    returned("return_xfs_swap_extents", "xfs_swap_extents", XFS, "int", SWAP_EXTENTS),
    only(WITH_EXCHANGE, returned("return_xfs_exchange_range", EXCHANGE, XFS, "int", EXCHANGE_RANGE)),
    returned("return_xfs_ioc_attrmulti_one", "xfs_ioc_attrmulti_one", XFS, "int", ATTRMULTI),
    returned("return_btrfs_do_encoded_write", "btrfs_do_encoded_write", BTRFS, "ssize_t", ENCODED_WRITE),
    only(WITH_VERITY, returned("return_fsverity_ioctl_enable", VERITY, ALL, "int", ENABLE_VERITY)),
    probe("call_file_modified", "file_modified", ALL, &["file*"]),
    probe("call_ext4_fallocate", "ext4_fallocate", EXT4, FALLOCATE),
    probe("call_xfs_file_fallocate", "xfs_file_fallocate", XFS, FALLOCATE),
    probe("call_btrfs_fallocate", "btrfs_fallocate", BTRFS, FALLOCATE),
    probe("call_ext4_move_extents", "ext4_move_extents", EXT4, MOVE_EXTENTS),
    probe("call_xfs_swap_extents", "xfs_swap_extents", XFS, SWAP_EXTENTS),
    only(WITH_EXCHANGE, probe("call_xfs_exchange_range", EXCHANGE, XFS, EXCHANGE_RANGE)),
    probe("call_xfs_ioc_attrmulti_one", "xfs_ioc_attrmulti_one", XFS, ATTRMULTI),
    probe("call_btrfs_do_encoded_write", "btrfs_do_encoded_write", BTRFS, ENCODED_WRITE),
    only(WITH_VERITY, probe("call_fsverity_ioctl_enable", VERITY, ALL, ENABLE_VERITY)),
    probe("call_vfs_copy_file_range", "vfs_copy_file_range", ALL, TWO_FILES),
    only(INNER_CLONE, probe("call_do_clone_file_range", INNER, ALL, TWO_FILES)),
    only(OUTER_CLONE, probe("call_clone_file_range", "vfs_clone_file_range", ALL, TWO_FILES)),
    probe("mapped_folio_start_writeback", "__folio_start_writeback", ALL, &["folio*,bool"]),
    probe("mark_folio_cancel_dirty", "__folio_cancel_dirty", ALL, &["folio*"]),
    probe("mark_fault_dirty_shared_page", "fault_dirty_shared_page", ALL, &["vm_fault*"]),
    probe("data_iomap_dio_complete", "iomap_dio_complete", ALL, &["iomap_dio*"]),
    probe("data_iomap_dio_submit_bio", "iomap_dio_submit_bio", ALL, &["iomap_iter*,iomap_dio*,bio*,loff_t"]),
    probe("data_ext4_da_write_end", "ext4_da_write_end", EXT4, WRITE_END),
    probe("data_ext4_write_end", "ext4_write_end", EXT4, WRITE_END),
    probe("data_ext4_journalled_write_end", "ext4_journalled_write_end", EXT4, WRITE_END),
    Hook { returns: Some("size_t"), ..probe("data_iomap_write_end", "iomap_write_end", XFS, IOMAP_WRITE_END) },
    Hook { returns: Some("bool"), ..probe("data_iomap_write_end_bool", "iomap_write_end", XFS, IOMAP_WRITE_END) },
    probe("data_btrfs_dirty_pages", "btrfs_dirty_pages", BTRFS, &["btrfs_inode*,page**,size_t,loff_t,size_t,extent_state**,bool"]),
    probe("name_notify_change", "notify_change", ALL, &["user_namespace*,dentry*,iattr*,inode**", "mnt_idmap*,dentry*,iattr*,inode**"]),
    probe(
        "name_vfs_setxattr",
        "__vfs_setxattr_noperm",
        ALL,
        &["user_namespace*,dentry*,char*,void*,size_t,int", "mnt_idmap*,dentry*,char*,void*,size_t,int"],
    ),
    probe(
        "name_vfs_removexattr",
        "__vfs_removexattr_locked",
        ALL,
        &["user_namespace*,dentry*,char*,inode**", "mnt_idmap*,dentry*,char*,inode**"],
    ),
    probe("name_set_posix_acl_inode", "set_posix_acl", ALL, ACL_OF_INODE),
    probe("name_set_posix_acl_dentry", "set_posix_acl", ALL, ACL_OF_DENTRY),
    probe("name_vfs_symlink", "vfs_symlink", ALL, &["user_namespace*,inode*,dentry*,char*", "mnt_idmap*,inode*,dentry*,char*"]),
    probe("name_vfs_rename", "vfs_rename", ALL, &["renamedata*"]),
    probe("name_d_tmpfile", "d_tmpfile", ALL, &["file*,inode*"]),
    probe("name_fsnotify_parent", "__fsnotify_parent", ALL, &["dentry*,__u32,void*,int"]),
    probe("name_fsnotify", "fsnotify", ALL, &["__u32,void*,int,inode*,qstr*,inode*,u32"]),
];

impl Hook {
    pub fn is_needed(&self, protected: &[FileSystem]) -> bool {
        self.file_systems.is_empty() || self.file_systems.iter().any(|kind| protected.contains(kind))
    }
}
