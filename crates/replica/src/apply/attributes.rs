//! Attributes: owner, mode, times, extended attributes and inode flags, one by one or (`MirrorNode`) all at once.
//!
//! Each operation changes what it names and nothing else: a change of owner clears set-id bits and capabilities in the kernel, and here
//! they are put back, because on the source their loss is an operation of its own.
//!
//! Immutable and append-only would keep us from applying what comes next. So would a directory that gives its project on: what is made there without
//! belonging to it is asked for, and nothing of another project can be moved in. These flags are kept in the table and set by `finish` only;
//! opening the applier lifts them again.

use super::create::Shape;
use super::fds::Fd;
use super::table::fact;
use super::volume::open_flags;
use super::{Applier, Done, sys};
use crate::apply::error::{ApplyError, is_fatal};
use rustix::fs::{IFlags, OFlags};
use rustix::io::Errno;
use standin_model::{ByteLen, NodeId, NodeKind, Operation};

const CAPABILITY: &[u8] = b"security.capability";
const SET_ID_BITS: u32 = 0o6000;

pub(crate) const GUARDS: u32 = IFlags::IMMUTABLE.bits() | IFlags::APPEND.bits() | IFlags::PROJECT_INHERIT.bits();

/// Flags that a user may set and that mean the same on every file system that has them. Of the others, some describe the disk format
/// (extents, inline data, encryption, verity) and the rest are set by other means.
pub(crate) const SETTABLE: u32 = IFlags::SYNC.bits()
    | IFlags::NODUMP.bits()
    | IFlags::NOATIME.bits()
    | IFlags::COMPRESSED.bits()
    | IFlags::JOURNALING.bits()
    | IFlags::DIRSYNC.bits()
    | IFlags::TOPDIR.bits()
    | IFlags::NOCOW.bits();

impl Applier {
    pub(super) fn attribute(&mut self, operation: &Operation) -> Done {
        use Operation::*;
        let Some(node) = operation.node() else { return Ok(()) };
        let Some(fd) = self.need(node)? else { return Ok(()) };
        match operation {
            SetMode { mode, .. } => self.set_mode(node, &fd, *mode),
            SetOwner { owner, group, .. } => self.set_owner(node, &fd, *owner, *group),
            SetTimes { accessed, modified, .. } => {
                self.note_times(node, *accessed, *modified);
                Ok(())
            }
            SetXattr { name, value, .. } => self.set_xattr(node, &fd, name, value),
            RemoveXattr { name, .. } => self.remove_xattr(node, &fd, name),
            SetFlags { flags, .. } => self.set_flags(node, &fd, *flags),
            SetProject { project, .. } => self.set_project(node, &fd, *project),
            _ => Ok(()),
        }
    }

    fn kind_of(&self, node: NodeId) -> NodeKind {
        self.kind(node).unwrap_or(NodeKind::File)
    }

    fn set_mode(&mut self, node: NodeId, fd: &Fd, mode: u32) -> Done {
        let kind = self.kind_of(node);
        if kind == NodeKind::Symlink {
            return Ok(());
        }
        let result = sys::set_mode(fd, open_flags(kind).contains(OFlags::PATH), mode);
        self.settle(node, "setting a mode", result).map(drop)
    }

    fn set_owner(&mut self, node: NodeId, fd: &Fd, owner: u32, group: u32) -> Done {
        let kind = self.kind_of(node);
        let mode = rustix::fs::fstat(fd).map(|stat| stat.st_mode & 0o7777);
        let Some(mode) = self.settle(node, "reading a mode", mode)? else { return Ok(()) };
        self.keeping_capability(node, fd, |fd| {
            sys::set_owner(fd, owner, group)?;
            if kind != NodeKind::Symlink && mode & SET_ID_BITS != 0 {
                sys::set_mode(fd, open_flags(kind).contains(OFlags::PATH), mode)?;
            }
            Ok(())
        })
    }

    fn set_xattr(&mut self, node: NodeId, fd: &Fd, name: &[u8], value: &[u8]) -> Done {
        if name == CAPABILITY {
            self.table.set_fact(node, fact::CAPABLE, true);
        }
        let result = sys::set_xattr(fd, name, value);
        self.settle_attribute(node, name, result)
    }

    fn remove_xattr(&mut self, node: NodeId, fd: &Fd, name: &[u8]) -> Done {
        if name == CAPABILITY {
            self.table.set_fact(node, fact::CAPABLE, false);
        }
        let result = sys::remove_xattr(fd, name);
        self.settle_attribute(node, name, result)
    }

    /// Like `settle`, but what the replica's file system refuses is only counted: asking the source again would not help.
    fn settle_attribute(&mut self, node: NodeId, name: &[u8], result: Result<(), Errno>) -> Done {
        match result {
            Ok(()) => Ok(()),
            // ENOSPC here is the inode's own room for attributes, but a full disk says the same, so that it stops as well.
            Err(source) if is_fatal(source) => Err(ApplyError::Volume { volume: node.volume, doing: "setting an attribute", source }),
            Err(errno) => {
                tracing::warn!(%node, attribute = %name.escape_ascii(), %errno, "the replica's file system refuses an attribute");
                self.counters.attributes_refused += 1;
                Ok(())
            }
        }
    }

    fn set_flags(&mut self, node: NodeId, fd: &Fd, flags: u32) -> Done {
        if !matches!(self.kind_of(node), NodeKind::File | NodeKind::Directory) {
            return Ok(());
        }
        self.table.update(node, |entry| entry.guard = flags & GUARDS);
        let result = match sys::set_flags(fd, flags, SETTABLE) {
            // Some file systems refuse the whole set for one bit: then try those that are common to all.
            Err(errno) if !is_fatal(errno) && flags & SETTABLE == 0 => Ok(false),
            other => other,
        };
        self.settle_attribute(node, b"inode flags", result.map(drop))
    }

    /// The ids of nodes that can only be pointed at (symlinks, devices, sockets) can be set by no call of the kernels that we know.
    fn set_project(&mut self, node: NodeId, fd: &Fd, project: u32) -> Done {
        if !matches!(self.kind_of(node), NodeKind::File | NodeKind::Directory) {
            return Ok(());
        }
        let result = standin_inode::project::set_project(fd, project);
        self.settle_attribute(node, b"project", result.map(drop))
    }

    /// All of a node but names and content. The node exists already, from a listing or an earlier operation.
    pub(super) fn mirror_node(&mut self, operation: &Operation) -> Done {
        let Operation::MirrorNode { node, kind, attributes, accessed, flags, project, size, xattrs } = operation else { return Ok(()) };
        let node = *node;
        let Some(fd) = self.come(node, *kind)? else { return Ok(()) };
        if self.kind(node) != Some(*kind) {
            self.want(node);
            return Ok(());
        }
        self.guard_clone_origin(node)?;
        // Flags before content, because btrfs takes "no copy on write" for empty files only.
        self.set_flags(node, &fd, *flags)?;
        self.set_project(node, &fd, *project)?;
        if *kind == NodeKind::File {
            self.set_size(node, &fd, *size)?;
        }
        let owned = sys::set_owner(&fd, attributes.owner, attributes.group);
        self.settle(node, "setting an owner", owned)?;
        self.set_all_xattrs(node, &fd, xattrs)?;
        // After the owner, which clears set-id bits, and after the ACL, whose mask it is.
        self.set_mode(node, &fd, attributes.mode)?;
        self.note_times(node, Some(*accessed), Some(attributes.modified));
        self.table.set_fact(node, fact::HOLLOW, false);
        if *kind != NodeKind::Directory {
            self.answered(node);
        } else if self.wanted.contains(&node) {
            self.half_wanted.insert(node);
        }
        Ok(())
    }

    /// A node may be shown before the listing that names it: it waits in limbo. What else belongs to a symlink or a device only a listing tells;
    /// such a node is asked for again, so that it comes once more behind its name.
    fn come(&mut self, node: NodeId, kind: NodeKind) -> Result<Option<Fd>, ApplyError> {
        if let Some(fd) = self.alive(node)? {
            return Ok(Some(fd));
        }
        if matches!(kind, NodeKind::File | NodeKind::Directory) {
            return self.make_in_limbo(node, Shape::plain(kind), 0);
        }
        self.satisfied(node);
        self.missing(node);
        Ok(None)
    }

    fn set_size(&mut self, node: NodeId, fd: &Fd, size: ByteLen) -> Done {
        // A fresh placeholder of an empty file needs no call; everything else does, also to drop blocks behind the end.
        let hollow = self.table.get(node).is_some_and(|entry| entry.has(fact::HOLLOW));
        if hollow && size.0 == 0 {
            return Ok(());
        }
        let result = rustix::fs::ftruncate(fd, size.0);
        self.settle(node, "setting a size", result).map(drop)
    }

    fn set_all_xattrs(&mut self, node: NodeId, fd: &Fd, wanted: &[(Vec<u8>, Vec<u8>)]) -> Done {
        let present = sys::list_xattrs(fd);
        let Some(present) = self.settle(node, "listing attributes", present)? else { return Ok(()) };
        for name in present.iter().filter(|name| !wanted.iter().any(|(wanted, _)| wanted == *name)) {
            self.remove_xattr(node, fd, name)?;
        }
        for (name, value) in wanted {
            self.set_xattr(node, fd, name, value)?;
        }
        if !wanted.iter().any(|(name, _)| name == CAPABILITY) {
            self.table.set_fact(node, fact::CAPABLE, false);
        }
        Ok(())
    }

    /// Sets immutable and append-only flags, as the very last thing.
    pub(super) fn set_guards(&mut self) -> Done {
        self.for_each_guarded(|guard| guard)
    }

    /// Takes them away again, so that operations can go on.
    pub(super) fn lift_guards(&mut self) -> Done {
        self.for_each_guarded(|_| 0)
    }

    fn for_each_guarded(&mut self, flags: impl Fn(u32) -> u32) -> Done {
        let guarded: Vec<_> =
            self.table.iter().filter(|(_, entry)| entry.guard != 0).map(|(node, entry)| (node, entry.handle, entry.guard)).collect();
        for (node, handle, guard) in guarded {
            let Some(volume) = self.volumes.find(node.volume) else { continue };
            // Not the usual descriptor: an immutable file cannot be opened for writing.
            let fd = match handle.open(&volume.mount, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOATIME) {
                Ok(fd) => fd,
                Err(Errno::STALE | Errno::NOENT) => continue,
                Err(source) => return Err(ApplyError::Volume { volume: node.volume, doing: "opening a guarded node", source }),
            };
            let result = sys::set_flags(&fd, flags(guard), GUARDS);
            self.settle_attribute(node, b"immutable flag", result.map(drop))?;
        }
        Ok(())
    }
}
