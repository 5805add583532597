//! Placing: makes a name lead to a node, wherever the node is now, and clears what stood there.
//!
//! During redo the file system is ahead of the stream, so that a directory may lie below the very directory that the stream wants to
//! move into it. The table remembers where the stream last put each directory; the link of the chain that the file system has and the
//! stream has not yet is cut (to limbo), and a later item of the redo puts it back.

use super::fds::Fd;
use super::handle::Handle;
use super::table::fact;
use super::volume::open_flags;
use super::{Applier, Done};
use crate::apply::error::ApplyError;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, Mode, RenameFlags};
use rustix::io::Errno;
use standin_model::{Name, NodeId, NodeKind, VolumeId};

/// The inode that a name leads to, if any.
pub(super) fn lookup(directory: impl AsFd, name: &[u8]) -> Result<Option<Handle>, Errno> {
    match Handle::of_name(directory, name) {
        Ok(handle) => Ok(Some(handle)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(super) fn remove_flags(is_directory: bool) -> AtFlags {
    if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() }
}

/// Name in limbo of an inode without a name of its own: its handle, so that it is unique and tells the inode.
pub(super) fn limbo_name(prefix: char, handle: &Handle) -> String {
    let digits: String = handle.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}{:x}-{digits}", handle.kind())
}

impl Applier {
    /// Looks a name up below a directory node.
    pub(super) fn lookup(&mut self, parent: NodeId, directory: &Fd, name: &[u8]) -> Result<Option<Handle>, ApplyError> {
        let found = lookup(directory, name);
        Ok(self.settle(parent, "looking up a name", found)?.flatten())
    }

    /// Moves whatever has this name to limbo. Its inode lives on until the purge.
    #[allow(clippy::wrong_self_convention)] // "To limbo" is where the name goes; nothing is converted.
    pub(super) fn to_limbo(&mut self, parent: NodeId, directory: impl AsFd, name: &[u8], handle: &Handle) -> Done {
        let moved = self.move_to_limbo(parent.volume, directory.as_fd(), name, handle)?;
        self.settle(parent, "moving a name to limbo", moved)?;
        self.counters.moved_to_limbo += 1;
        self.limbo_used = true;
        self.touch(parent);
        Ok(())
    }

    fn move_to_limbo(
        &mut self,
        volume: VolumeId,
        directory: impl AsFd,
        name: &[u8],
        handle: &Handle,
    ) -> Result<Result<(), Errno>, ApplyError> {
        let Some(found) = self.volumes.find(volume) else { return Ok(Err(Errno::INVAL)) };
        let limbo = found.limbo()?;
        let target = limbo_name('l', handle);
        Ok(match rustix::fs::renameat_with(&directory, name, limbo, target.as_str(), RenameFlags::NOREPLACE) {
            // The same inode has a name in limbo already, so that this one is a hard link too many.
            Err(Errno::EXIST) => rustix::fs::unlinkat(&directory, name, AtFlags::empty()),
            other => other,
        })
    }

    /// Makes the name lead to the node, which exists, and leaves the node's other names alone (a directory has only one and is moved).
    pub(super) fn place(&mut self, parent: NodeId, directory: &Fd, name: &Name, node: NodeId, fd: &Fd) -> Done {
        let Some(entry) = self.table.get(node).copied() else { return Ok(()) };
        match self.lookup(parent, directory, name.as_bytes())? {
            Some(found) if found == entry.handle => return self.placed(parent, name, node),
            Some(found) => {
                self.counters.conflicts += 1;
                self.to_limbo(parent, directory, name.as_bytes(), &found)?;
            }
            None => {}
        }
        let result = if entry.kind == NodeKind::Directory {
            self.move_directory(parent, directory, name, node, fd)?
        } else {
            rustix::fs::linkat(fd, "", directory, name.as_bytes(), AtFlags::EMPTY_PATH)
        };
        match self.settle(node, "placing a node", result)? {
            Some(()) => self.placed(parent, name, node),
            None => Ok(()),
        }
    }

    /// Keeps the books after a name has come to lead to a node.
    pub(super) fn placed(&mut self, parent: NodeId, name: &Name, node: NodeId) -> Done {
        let Some(entry) = self.table.get(node).copied() else { return Ok(()) };
        if entry.has(fact::UNNAMED) {
            let limbo = self.volumes.find(node.volume).map(|volume| volume.limbo()).transpose()?;
            let removed = limbo.map(|limbo| rustix::fs::unlinkat(limbo, limbo_name('u', &entry.handle), AtFlags::empty()));
            tracing::trace!(%node, ?removed, "unnamed file got its first name");
        }
        self.table.set_fact(node, fact::UNLINKED | fact::UNNAMED, false);
        if entry.kind == NodeKind::Directory {
            self.table.set_parent(node, parent);
            // Its new `..` is a change of the directory to xfs.
            self.touch(node);
        }
        if let Some(seen) = self.listings.get_mut(&parent) {
            seen.insert(name.clone());
        }
        self.touch(parent);
        Ok(())
    }

    fn move_directory(
        &mut self,
        parent: NodeId,
        directory: &Fd,
        name: &Name,
        node: NodeId,
        fd: &Fd,
    ) -> Result<Result<(), Errno>, ApplyError> {
        if let Some(old_parent) = self.table.parent(node) {
            self.touch(old_parent);
        }
        let (above, old_name) = match whereabouts(fd) {
            Ok(found) => found,
            Err(errno) => return Ok(Err(errno)),
        };
        self.rename_breaking_loops(&above, &old_name, parent, directory, name, RenameFlags::NOREPLACE)
    }

    /// Renames, and where the new parent lies below what is renamed, first cuts the chain where the stream has it otherwise.
    pub(super) fn rename_breaking_loops(
        &mut self,
        above: impl AsFd,
        old_name: &[u8],
        parent: NodeId,
        directory: &Fd,
        name: &Name,
        flags: RenameFlags,
    ) -> Result<Result<(), Errno>, ApplyError> {
        loop {
            match rustix::fs::renameat_with(&above, old_name, directory, name.as_bytes(), flags) {
                // Each cut takes away one link of the chain, so that this ends.
                Err(Errno::INVAL) => match self.cut_chain_above(parent)? || self.cut_above(parent)? {
                    true => continue,
                    false => return Ok(Err(Errno::INVAL)),
                },
                other => return Ok(other),
            }
        }
    }

    /// In a resync the stream itself may have one link of the chain only from before. Which one is not known here: the lowest is cut, and the
    /// directory that held it is wanted, because it may have been right.
    fn cut_above(&mut self, node: NodeId) -> Result<bool, ApplyError> {
        if self.volumes.root_of(node.volume) == Some(node) {
            return Ok(false);
        }
        let (Some(fd), Some(handle)) = (self.alive(node)?, self.table.get(node).map(|entry| entry.handle)) else { return Ok(false) };
        let Ok((above, name)) = whereabouts(&fd) else { return Ok(false) };
        let holder = Handle::of(&above).ok();
        self.counters.conflicts += 1;
        let moved = self.move_to_limbo(node.volume, &above, &name, &handle)?;
        self.limbo_used = true;
        if self.settle(node, "cutting a loop", moved)?.is_none() {
            return Ok(false);
        }
        let known = self.table.iter().find(|(id, entry)| id.volume == node.volume && Some(entry.handle) == holder).map(|(id, _)| id);
        if let Some(holder) = known.or(self.volumes.root_of(node.volume)) {
            self.doubt(holder);
        }
        Ok(true)
    }

    /// Moves to limbo the first directory at or above `node` that lies elsewhere than the stream put it.
    fn cut_chain_above(&mut self, node: NodeId) -> Result<bool, ApplyError> {
        let limbo = self.volumes.find(node.volume).map(|volume| volume.limbo()).transpose()?;
        let limbo = limbo.and_then(|limbo| Handle::of(limbo).ok());
        let mut below = node;
        while let Some(above) = self.table.parent(below) {
            let Some(fd) = self.alive(below)? else { return Ok(false) };
            let expected = self.table.get(above).map(|entry| entry.handle);
            let Ok(now) = open_parent(&fd) else { return Ok(false) };
            let found = Handle::of(&now).ok();
            // What lies in limbo was cut already, and no loop leads through there.
            if found.is_some() && found == limbo {
                return Ok(false);
            }
            if found != expected {
                let Ok((now, name)) = whereabouts(&fd) else { return Ok(false) };
                let Some(handle) = self.table.get(below).map(|entry| entry.handle) else { return Ok(false) };
                self.counters.conflicts += 1;
                let moved = self.move_to_limbo(below.volume, &now, &name, &handle)?;
                self.limbo_used = true;
                return Ok(self.settle(below, "cutting a loop", moved)?.is_some());
            }
            below = above;
        }
        Ok(false)
    }
}

fn open_parent(fd: &Fd) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(fd, "..", open_flags(NodeKind::Directory), Mode::empty())
}

/// The directory above an open directory, and the name that it has there.
pub(super) fn whereabouts(fd: &Fd) -> Result<(OwnedFd, Vec<u8>), Errno> {
    let above = open_parent(fd)?;
    let handle = Handle::of(fd)?;
    // The kernel knows the name; but the path may be too long for it to tell, or carry a note behind it.
    if let Ok(path) = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new()) {
        let name = path.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if !name.is_empty() && lookup(&above, name) == Ok(Some(handle)) {
            return Ok((above, name.to_vec()));
        }
    }
    let mut scan = Dir::read_from(&above)?;
    while let Some(entry) = scan.read() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." && lookup(&above, &name) == Ok(Some(handle)) {
            return Ok((above, name));
        }
    }
    Err(Errno::NOENT)
}
