//! Names: link, unlink, rmdir, rename in all its modes, and forgetting a node.
//!
//! "Make it so": afterwards the name leads to the node that the stream says, or to nothing. Where a name leads to an unexpected node, that
//! goes to limbo, in redo as well: if a later item put it there, that item comes again and finds it in limbo. Leaving it alone would be
//! wrong where redo itself put it there and the node that took its place on the source is gone by now.

use super::fds::Fd;
use super::place::remove_flags;
use super::table::fact;
use super::{Applier, Done, LIMBO_NAME};
use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;
use standin_model::{Name, NodeId, NodeKind, Operation, RenameMode};

/// The fields of a rename, so that its steps need not pass seven arguments.
#[derive(Clone, Copy)]
struct Move<'a> {
    parent: NodeId,
    name: &'a Name,
    node: NodeId,
    new_parent: NodeId,
    new_name: &'a Name,
    victim: Option<NodeId>,
}

impl Applier {
    /// Our own directory in a volume's root is no business of the stream.
    pub(super) fn is_reserved(&mut self, parent: NodeId, name: &Name) -> bool {
        let reserved = name.as_bytes() == LIMBO_NAME && self.volumes.root_of(parent.volume) == Some(parent);
        self.counters.conflicts += u64::from(reserved);
        reserved
    }

    pub(super) fn link(&mut self, parent: NodeId, name: &Name, node: NodeId) -> Done {
        let directory = self.need_directory(parent)?;
        let fd = self.need(node)?;
        if self.is_reserved(parent, name) {
            return Ok(());
        }
        match (directory, fd) {
            (Some(directory), Some(fd)) => self.place(parent, &directory, name, node, &fd),
            (_, None) => {
                self.unplaced(node, parent);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn unlink(&mut self, parent: NodeId, name: &Name, node: NodeId, directory_expected: bool) -> Done {
        if let Some(directory) = self.need_directory(parent)?
            && !self.is_reserved(parent, name)
        {
            self.remove_name(parent, &directory, name, node, directory_expected)?;
        }
        self.guard_clone_origin(node)?;
        self.lost_a_name(node);
        Ok(())
    }

    fn remove_name(&mut self, parent: NodeId, directory: &Fd, name: &Name, node: NodeId, directory_expected: bool) -> Done {
        self.guard_clone_origin(node)?;
        let Some(found) = self.lookup(parent, directory, name.as_bytes())? else { return Ok(()) };
        let expected = self.table.get(node).map(|entry| entry.handle) == Some(found);
        if !expected {
            self.counters.conflicts += 1;
            // The name is free after this item, whoever has it now. If a later item of the redo gave it, it will do so again.
            return self.to_limbo(parent, directory, name.as_bytes(), &found);
        }
        if self.careful() {
            return self.to_limbo(parent, directory, name.as_bytes(), &found);
        }
        match rustix::fs::unlinkat(directory, name.as_bytes(), remove_flags(directory_expected)) {
            // The replica has more in this directory than the source had: none of it exists any more.
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.to_limbo(parent, directory, name.as_bytes(), &found),
            result => {
                self.touch(parent);
                self.settle(parent, "removing a name", result).map(drop)
            }
        }
    }

    pub(super) fn forget(&mut self, node: NodeId) -> Done {
        self.guard_clone_origin(node)?;
        self.satisfied(node);
        self.answered.remove(&node);
        self.unplaced.retain(|(missing, _)| *missing != node);
        self.open.remove(node);
        self.touched.remove(&node);
        self.listings.remove(&node);
        if let Some(entry) = self.table.get(node).copied()
            && entry.has(fact::UNNAMED)
            && !self.redoing()
            && let Some(volume) = self.volumes.find(node.volume)
        {
            let name = super::place::limbo_name('u', &entry.handle);
            let removed = rustix::fs::unlinkat(volume.limbo()?, name.as_str(), AtFlags::empty());
            tracing::trace!(%node, ?removed, "unnamed file forgotten");
        }
        self.table.remove(node);
        Ok(())
    }

    pub(super) fn rename(&mut self, operation: &Operation) -> Done {
        let Operation::Rename { parent, name, node, new_parent, new_name, mode, victim } = operation else { return Ok(()) };
        let step = Move { parent: *parent, name, node: *node, new_parent: *new_parent, new_name, victim: *victim };
        if self.is_reserved(step.parent, step.name) || self.is_reserved(step.new_parent, step.new_name) {
            return Ok(());
        }
        match (mode, victim) {
            (RenameMode::Exchange, Some(victim)) => self.exchange(step, *victim),
            (RenameMode::Exchange, None) => {
                // Without the other node this cannot be done; the listings will tell.
                self.want(step.parent);
                self.want(step.new_parent);
                Ok(())
            }
            (RenameMode::Replace | RenameMode::NoReplace, _) => self.replace(step),
            (RenameMode::Whiteout, _) => {
                self.replace(step)?;
                self.leave_whiteout(step.parent, step.name)
            }
        }
    }

    fn replace(&mut self, step: Move) -> Done {
        if let Some(victim) = step.victim {
            self.guard_clone_origin(victim)?;
        }
        let old_directory = self.need_directory(step.parent)?;
        let new_directory = self.need_directory(step.new_parent)?;
        let fd = self.need(step.node)?;
        let old = self.lookup_in(step.parent, &old_directory, step.name)?;
        let handle = self.table.get(step.node).map(|entry| entry.handle);
        let at_old = old.is_some() && old == handle;
        match (fd, new_directory) {
            (Some(fd), Some(new_directory)) => {
                let new = self.lookup(step.new_parent, &new_directory, step.new_name.as_bytes())?;
                let new_is_node = new.is_some() && new == handle;
                if let Some(found) = new
                    && !new_is_node
                {
                    self.clear_target(step, &new_directory, &found)?;
                }
                if let (Some(old_directory), Some(found), false) = (&old_directory, old, at_old) {
                    self.counters.conflicts += 1;
                    self.to_limbo(step.parent, old_directory, step.name.as_bytes(), &found)?;
                }
                match old_directory {
                    Some(old_directory) if at_old => self.move_name(step, &old_directory, &new_directory, new_is_node)?,
                    _ => self.place(step.new_parent, &new_directory, step.new_name, step.node, &fd)?,
                }
            }
            // Nowhere to go to, or nothing to go there: both names are taken from whoever has them, for neither leads there on the source.
            (fd, new_directory) => {
                if fd.is_none() {
                    self.unplaced(step.node, step.new_parent);
                }
                if let (Some(directory), Some(found)) = (&old_directory, old) {
                    self.to_limbo(step.parent, directory, step.name.as_bytes(), &found)?;
                }
                if let Some(directory) = &new_directory
                    && let Some(found) = self.lookup(step.new_parent, directory, step.new_name.as_bytes())?
                {
                    self.to_limbo(step.new_parent, directory, step.new_name.as_bytes(), &found)?;
                }
            }
        }
        if let Some(victim) = step.victim.filter(|victim| *victim != step.node) {
            self.lost_a_name(victim);
        }
        Ok(())
    }

    fn lookup_in(
        &mut self,
        parent: NodeId,
        directory: &Option<Fd>,
        name: &Name,
    ) -> Result<Option<super::handle::Handle>, super::ApplyError> {
        match directory {
            Some(directory) => self.lookup(parent, directory, name.as_bytes()),
            None => Ok(None),
        }
    }

    /// Takes away what stands at the new name, unless the rename itself may destroy it.
    fn clear_target(&mut self, step: Move, directory: &Fd, found: &super::handle::Handle) -> Done {
        let victim = step.victim.and_then(|victim| self.table.get(victim)).map(|entry| entry.handle);
        let as_expected = victim.as_ref() == Some(found);
        self.counters.conflicts += u64::from(!as_expected);
        if as_expected && !self.careful() {
            return Ok(());
        }
        self.to_limbo(step.new_parent, directory, step.new_name.as_bytes(), found)
    }

    fn move_name(&mut self, step: Move, old_directory: &Fd, new_directory: &Fd, new_is_node: bool) -> Done {
        self.touch(step.parent);
        if new_is_node {
            let same_name = step.parent == step.new_parent && step.name == step.new_name;
            // To rename(2) two names of one inode are nothing to do; here the old one has to go.
            if !same_name {
                let removed = rustix::fs::unlinkat(old_directory, step.name.as_bytes(), AtFlags::empty());
                self.settle(step.parent, "removing a renamed name", removed)?;
            }
            return self.placed(step.new_parent, step.new_name, step.node);
        }
        let old_name = step.name.as_bytes();
        let mut result =
            self.rename_breaking_loops(old_directory, old_name, step.new_parent, new_directory, step.new_name, RenameFlags::empty())?;
        if matches!(result, Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR)) {
            if let Some(found) = self.lookup(step.new_parent, new_directory, step.new_name.as_bytes())? {
                self.to_limbo(step.new_parent, new_directory, step.new_name.as_bytes(), &found)?;
            }
            result = rustix::fs::renameat_with(old_directory, old_name, new_directory, step.new_name.as_bytes(), RenameFlags::NOREPLACE);
        }
        match self.settle(step.node, "renaming", result)? {
            Some(()) => self.placed(step.new_parent, step.new_name, step.node),
            None => Ok(()),
        }
    }

    fn exchange(&mut self, step: Move, other: NodeId) -> Done {
        let old_directory = self.need_directory(step.parent)?;
        let new_directory = self.need_directory(step.new_parent)?;
        let node_fd = self.need(step.node)?;
        let other_fd = self.need(other)?;
        let at_old = self.lookup_in(step.parent, &old_directory, step.name)?;
        let at_new = self.lookup_in(step.new_parent, &new_directory, step.new_name)?;
        let node_handle = self.table.get(step.node).map(|entry| entry.handle);
        let other_handle = self.table.get(other).map(|entry| entry.handle);
        let as_before = at_old.is_some() && at_old == node_handle && at_new.is_some() && at_new == other_handle;
        if let (true, Some(old), Some(new)) = (as_before, &old_directory, &new_directory) {
            let names = (step.name.as_bytes(), step.new_name.as_bytes());
            if rustix::fs::renameat_with(old, names.0, new, names.1, RenameFlags::EXCHANGE).is_ok() {
                self.placed(step.new_parent, step.new_name, step.node)?;
                return self.placed(step.parent, step.name, other);
            }
        }
        for (fd, node, parent) in [(&node_fd, step.node, step.new_parent), (&other_fd, other, step.parent)] {
            if fd.is_none() {
                self.unplaced(node, parent);
            }
        }
        // One at a time. The first takes the place of the second, which goes to limbo and comes back from there.
        if let (Some(new), Some(fd)) = (&new_directory, &node_fd) {
            self.place(step.new_parent, new, step.new_name, step.node, fd)?;
        }
        if let (Some(old), Some(fd)) = (&old_directory, &other_fd) {
            self.place(step.parent, old, step.name, other, fd)?;
        }
        Ok(())
    }

    /// Overlayfs marks a deleted name by a character device 0:0.
    fn leave_whiteout(&mut self, parent: NodeId, name: &Name) -> Done {
        let Some(directory) = self.need_directory(parent)? else { return Ok(()) };
        let made = match rustix::fs::mknodat(&directory, name.as_bytes(), FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        };
        self.touch(parent);
        if let Some(seen) = self.listings.get_mut(&parent) {
            seen.insert(name.clone());
        }
        self.settle(parent, "leaving a whiteout", made).map(drop)
    }

    pub(super) fn kind(&self, node: NodeId) -> Option<NodeKind> {
        self.table.get(node).map(|entry| entry.kind)
    }
}
