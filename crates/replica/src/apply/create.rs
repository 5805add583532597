//! New nodes: created fresh, or adopted where the node is known already.
//!
//! An inode that the table does not know is never adopted by its name: during redo the name may belong to a later node by now. What
//! stands in the way goes to limbo, and since every operation on a new node lies behind its creation, redo fills it again.
//!
//! Where the parent is missing, the node is made in limbo: the stream may move it to a directory that exists.

use super::fds::Fd;
use super::handle::Handle;
use super::place::limbo_name;
use super::table::{Entry, fact};
use super::volume::open_flags;
use super::{Applier, Done, sys};
use crate::apply::error::ApplyError;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use standin_model::{Attributes, Name, NodeId, NodeKind, Operation};

/// What never changes about a node.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    pub kind: NodeKind,
    pub device: u64,
    pub target: &'a [u8],
}

impl Shape<'_> {
    pub(super) const fn plain(kind: NodeKind) -> Shape<'static> {
        Shape { kind, device: 0, target: b"" }
    }
}

impl Applier {
    pub(super) fn create(&mut self, operation: &Operation) -> Done {
        use Operation::*;
        let (parent, name, node, attributes, shape) = match operation {
            Create { parent, name, node, attributes } => (parent, name, node, attributes, Shape::plain(NodeKind::File)),
            Mkdir { parent, name, node, attributes } => (parent, name, node, attributes, Shape::plain(NodeKind::Directory)),
            Symlink { parent, name, node, target, attributes } => {
                (parent, name, node, attributes, Shape { kind: NodeKind::Symlink, device: 0, target })
            }
            Mknod { parent, name, node, kind, device, attributes } => {
                (parent, name, node, attributes, Shape { kind: *kind, device: *device, target: b"" })
            }
            CreateUnnamed { node, attributes } => return self.create_unnamed(*node, attributes),
            _ => return Ok(()),
        };
        self.retire_reused(*node);
        if let Some(fd) = self.named(*parent, name, *node, shape)? {
            self.set_first_attributes(*node, &fd, shape.kind, attributes)?;
        }
        Ok(())
    }

    /// A file system that does not count generations gives an id again: a node that lost its names before is another one.
    fn retire_reused(&mut self, node: NodeId) {
        if self.table.get(node).is_some_and(|entry| entry.has(fact::UNLINKED)) {
            self.open.remove(node);
            self.touched.remove(&node);
            self.table.remove(node);
            // What was missed concerned the one before.
            self.suspects.remove(&node);
            self.unplaced.retain(|(missing, _)| *missing != node);
        }
    }

    /// Makes the name lead to the node; the node is created where it does not exist. `None` when it could not be.
    pub(super) fn named(&mut self, parent: NodeId, name: &Name, node: NodeId, shape: Shape) -> Result<Option<Fd>, ApplyError> {
        let known = self.table.get(node).is_some();
        let directory = self.need_directory(parent)?;
        if known && let Some(fd) = self.alive(node)? {
            if let Some(directory) = directory {
                self.place(parent, &directory, name, node, &fd)?;
            }
            return Ok(Some(fd));
        }
        let Some(directory) = directory else {
            return self.make_in_limbo(node, shape, 0);
        };
        let made = match make(&*directory, name.as_bytes(), shape) {
            Err(Errno::EXIST) => {
                if let Some(found) = self.lookup(parent, &directory, name.as_bytes())? {
                    self.counters.conflicts += 1;
                    self.to_limbo(parent, &directory, name.as_bytes(), &found)?;
                }
                make(&*directory, name.as_bytes(), shape)
            }
            other => other,
        };
        let Some(made) = self.settle(node, "creating a node", made)? else { return Ok(None) };
        let fd = self.register(node, made, shape.kind, 0)?;
        self.placed(parent, name, node)?;
        Ok(Some(fd))
    }

    fn register(&mut self, node: NodeId, (fd, handle): (OwnedFd, Handle), kind: NodeKind, facts: u8) -> Result<Fd, ApplyError> {
        self.table.insert(node, Entry { handle, kind, facts, guard: 0, modified: None });
        self.counters.nodes_created += 1;
        let fd = Fd::new(fd);
        self.keep_open(node, fd.clone())?;
        Ok(fd)
    }

    pub(super) fn make_in_limbo(&mut self, node: NodeId, shape: Shape, facts: u8) -> Result<Option<Fd>, ApplyError> {
        let Some(volume) = self.volumes.find(node.volume) else { return Ok(None) };
        let limbo = volume.limbo()?;
        // The final name tells the inode, which is known only once it exists.
        let made = make(limbo, b"new", shape).or_else(|errno| match errno {
            Errno::EXIST => super::purge::remove_tree(limbo, b"new").and_then(|()| make(limbo, b"new", shape)),
            other => Err(other),
        });
        let prefix = if facts & fact::UNNAMED != 0 { 'u' } else { 'l' };
        let made = made.and_then(|made| {
            rustix::fs::renameat_with(limbo, "new", limbo, limbo_name(prefix, &made.1), RenameFlags::NOREPLACE)?;
            Ok(made)
        });
        self.limbo_used = true;
        match self.settle(node, "creating a node without a name", made)? {
            Some(made) => self.register(node, made, shape.kind, facts).map(Some),
            None => Ok(None),
        }
    }

    /// A file that has no name on the source either. It needs one here, or a crash of the appliance would lose it.
    fn create_unnamed(&mut self, node: NodeId, attributes: &Attributes) -> Done {
        let shape = Shape::plain(NodeKind::File);
        let fd = match self.alive(node)? {
            Some(fd) => Some(fd),
            None => self.make_in_limbo(node, shape, fact::UNNAMED)?,
        };
        match fd {
            Some(fd) => self.set_first_attributes(node, &fd, shape.kind, attributes),
            None => Ok(()),
        }
    }

    fn set_first_attributes(&mut self, node: NodeId, fd: &Fd, kind: NodeKind, attributes: &Attributes) -> Done {
        let owned = sys::set_owner(fd, attributes.owner, attributes.group);
        self.settle(node, "setting the owner of a new node", owned)?;
        if kind != NodeKind::Symlink {
            // After the owner, because a change of owner clears set-id bits.
            let moded = sys::set_mode(fd, open_flags(kind).contains(OFlags::PATH), attributes.mode);
            self.settle(node, "setting the mode of a new node", moded)?;
        }
        self.note_times(node, None, Some(attributes.modified));
        Ok(())
    }
}

/// Device number as `mknod` takes it, from `major << 32 | minor`.
fn device_number(device: u64) -> u64 {
    rustix::fs::makedev((device >> 32) as u32, device as u32)
}

/// Creates an inode and opens it. `EXIST` when the name is taken.
fn make(directory: impl AsFd, name: &[u8], shape: Shape) -> Result<(OwnedFd, Handle), Errno> {
    let directory = directory.as_fd();
    let mode = Mode::from_raw_mode(0o600);
    let flags = open_flags(shape.kind);
    let special = |kind| rustix::fs::mknodat(directory, name, kind, mode, device_number(shape.device));
    let flags = match shape.kind {
        NodeKind::File => flags | OFlags::CREATE | OFlags::EXCL,
        NodeKind::Directory => rustix::fs::mkdirat(directory, name, Mode::RWXU).map(|()| flags)?,
        NodeKind::Symlink => rustix::fs::symlinkat(shape.target, directory, name).map(|()| flags)?,
        NodeKind::CharDevice => special(FileType::CharacterDevice).map(|()| flags)?,
        NodeKind::BlockDevice => special(FileType::BlockDevice).map(|()| flags)?,
        NodeKind::Fifo => special(FileType::Fifo).map(|()| flags)?,
        NodeKind::Socket => special(FileType::Socket).map(|()| flags)?,
    };
    let fd = rustix::fs::openat(directory, name, flags, mode)?;
    let handle = Handle::of(&fd)?;
    Ok((fd, handle))
}
