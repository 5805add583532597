//! Times come last. Our own work (a write, a new entry in a directory) changes times on the replica, and the source's times arrive as
//! `SetTimes` or with a node's attributes. Both only note what is due here; each node's times are set once, at a segment's end, before
//! a mark, or just before its descriptor is closed.
//!
//! Invariant: after `set_due_times` every known node that we touched has the last modification time that the source said. The table
//! keeps that time, so that redo from a mark can set it again.

use super::fds::Fd;
use super::{Applier, Done, sys};
use rustix::io::Errno;
use standin_model::{NodeId, Timestamp};

/// What is due on a touched node, besides the modification time in its table entry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Touch {
    pub accessed: Option<Timestamp>,
}

impl Applier {
    /// Our own work has changed this node's modification time.
    pub(super) fn touch(&mut self, node: NodeId) {
        self.touched.entry(node).or_default();
    }

    /// The source's times for a node.
    pub(super) fn note_times(&mut self, node: NodeId, accessed: Option<Timestamp>, modified: Option<Timestamp>) {
        let touch = self.touched.entry(node).or_default();
        touch.accessed = accessed.or(touch.accessed);
        if modified.is_some() {
            self.table.update(node, |entry| entry.modified = modified);
        }
    }

    pub(super) fn set_due_times(&mut self) -> Done {
        // Nodes whose descriptors are open first would be nicer to the cache; order does not matter to the result.
        while let Some(node) = self.touched.keys().next().copied() {
            let due = std::mem::take(&mut self.touched);
            for (node, touch) in due {
                self.set_times(node, touch)?;
            }
            debug_assert!(!self.touched.contains_key(&node), "setting times touches nothing");
        }
        Ok(())
    }

    fn set_times(&mut self, node: NodeId, touch: Touch) -> Done {
        let Some(modified) = self.table.get(node).map(|entry| entry.modified) else { return Ok(()) };
        if modified.is_none() && touch.accessed.is_none() {
            return Ok(());
        }
        match self.alive(node)? {
            Some(fd) => self.set_times_of(node, &fd, touch, modified),
            None => Ok(()),
        }
    }

    fn set_times_of(&mut self, node: NodeId, fd: &Fd, touch: Touch, modified: Option<Timestamp>) -> Done {
        match sys::set_times(fd, touch.accessed, modified) {
            // A file system without room for such a time says so; the node is as good as this file system can hold it.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                self.counters.attributes_refused += 1;
                Ok(())
            }
            other => self.settle(node, "setting times", other).map(drop),
        }
    }

    pub(super) fn set_times_before_close(&mut self, node: NodeId, fd: &Fd) -> Done {
        let Some(touch) = self.touched.remove(&node) else { return Ok(()) };
        match self.table.get(node).map(|entry| entry.modified) {
            Some(modified) if modified.is_some() || touch.accessed.is_some() => self.set_times_of(node, fd, touch, modified),
            _ => Ok(()),
        }
    }
}
