//! A mirror without operations: for a source that tells which nodes changed and not what happened to them.
//!
//! Every change is a node to be read again, a directory for its names. No `Forget` comes either, so what a read finds gone is over. What is excluded is known
//! by listing it: a change below it is none of the replica's, and opens no gap.

use crate::places::PATH_DEPTH_MAX;
use crate::walk::{Mirror, Task};
use crate::{ReadError, SourceReader};
use standin_model::{NodeId, NodeKind};

/// Nodes without a name that are remembered as such, 40 bytes each; beyond it, each is looked at once more.
const NAMELESS_MAX: usize = 65_536;

/// Whom a change concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// The node is replicated, or may be.
    Replica,
    /// It is excluded, or has no name.
    Nobody,
    /// It was reached through a directory that is excluded: with no other name, it is excluded too; see [`Mirror::exclude_unseen`].
    ItsNames,
    /// Names in a directory that is excluded: it has to be listed before anything below it is read; see [`Mirror::look_below`].
    Below,
}

impl Mirror {
    pub fn alone(mut self) -> Mirror {
        self.alone = true;
        self
    }

    /// Whom it concerns that this node changed, reached through `directory`, or that `names` in it did.
    pub fn concern(&self, node: NodeId, directory: Option<NodeId>, names: bool) -> Concern {
        if names {
            return if self.hides_below(node) { Concern::Below } else { Concern::Replica };
        }
        if self.excluded.contains(&node) || self.nameless.contains(&node) {
            return Concern::Nobody;
        }
        let hidden = directory.is_some_and(|directory| self.hides_below(directory));
        if hidden { Concern::ItsNames } else { Concern::Replica }
    }

    /// A node that nobody has met, and whose only name is in a directory that is excluded. A name outside brings it in, as it does with any other.
    pub fn exclude_unseen(&mut self, node: NodeId) {
        self.exclude_nameless(node);
    }

    /// Finds out whether a directory that nobody has met lies below one that is excluded, and takes it for excluded then. Whatever is no directory is left as
    /// it is.
    pub fn place_unseen(&mut self, directory: NodeId, reader: &mut impl SourceReader) -> Result<(), ReadError> {
        let is_met = |mirror: &Mirror, node| mirror.is_directory(node) || mirror.excluded.contains(&node);
        if self.exclusions.is_empty() || is_met(self, directory) {
            return Ok(());
        }
        let (mut at, mut chain) = (directory, Vec::new());
        while !is_met(self, at) && chain.len() < PATH_DEPTH_MAX {
            chain.push(at);
            let Some((parent, _)) = reader.parent(at)? else { return Ok(()) };
            at = parent;
        }
        if self.hides_below(at) {
            for below in chain {
                self.exclude_directory(below);
            }
        }
        Ok(())
    }

    /// Lists a directory that is excluded: what came into it is excluded from here on, and what went may have kept other names. True if the directory itself
    /// is replicated.
    pub fn look_below(&mut self, directory: NodeId, reader: &mut impl SourceReader) -> Result<bool, ReadError> {
        if !self.hides_below(directory) {
            return Ok(true);
        }
        self.lose_names(&[directory]);
        for listed in reader.list(directory)?.unwrap_or_default() {
            let child = listed.entry.node;
            if listed.entry.kind != NodeKind::Directory {
                self.meet_excluded_name(directory, &listed);
            } else if self.exclude_directory(child) {
                self.tasks.push_front(Task::Hollow { node: child });
            }
        }
        Ok(!self.excluded.contains(&directory))
    }

    /// A read found no such node, or one without a name. Nobody waits for it any more: a name that it gets later stamps it anew.
    pub(crate) fn found_no_name(&mut self, node: NodeId, is_gone: bool) {
        if !self.alone {
            return;
        }
        // What the stream says of it is in this step already.
        let _ = self.forget(node);
        if is_gone {
            return;
        }
        if self.nameless.len() >= NAMELESS_MAX {
            self.nameless.clear();
        }
        self.nameless.insert(node);
    }
}

#[cfg(test)]
mod tests;
