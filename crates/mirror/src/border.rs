//! The border of what is excluded: a node is excluded only if every name that it has is.
//!
//! A directory has one name. Another node may have names on both sides, and what one says about it is not enough: of a node that has several links
//! its excluded names are remembered, and it is excluded while they are as many as its links. So much for a moment at which both were read; what
//! happened around that moment comes as operations, and each that gives or takes an excluded name while a walk is under way has the node
//! looked at again. In doubt a node counts as protected: that costs bytes and loses nothing, and a name outside always brings a node in.
//!
//! Why an excluded node has no name outside when a walk is over: it was excluded where it was new, or where its only link was seen to be an
//! excluded name, or where its excluded names were as many as its links. In the first two cases that was true at that moment, in the third it
//! was true but for names taken since the last barrier, whose operations come and have it looked at. A name outside that it gets later comes
//! as an operation or in a listing, and both bring it in.

use crate::places::join;
use crate::walk::{Mirror, Task};
use crate::{ListedEntry, ReadError, SourceReader};
use standin_model::{Name, NodeId, NodeKind};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Stands for names of which operations were lost, and counts as none.
const LOST: u64 = 0;

/// What is excluded: of most nodes one name is all there is to know, as a hash of directory and name. Of a directory even that is of no use.
#[derive(Default)]
pub(crate) struct ExcludedNodes(HashMap<NodeId, u64>);

impl ExcludedNodes {
    pub fn contains(&self, node: &NodeId) -> bool {
        self.0.contains_key(node)
    }
    pub fn insert(&mut self, node: NodeId, name: u64) -> bool {
        self.0.insert(node, name).is_none()
    }
    pub fn remove(&mut self, node: &NodeId) -> bool {
        self.0.remove(node).is_some()
    }
    pub fn drain(&mut self) -> impl Iterator<Item = NodeId> {
        self.0.drain().map(|(node, _)| node)
    }
}

/// Excluded names by node: of nodes with several links, and of those that came in. They stand for the one name of an excluded node that is here. Two
/// names of one hash count as one, which makes the node protected.
#[derive(Default)]
pub(crate) struct ExcludedNames(HashMap<NodeId, Vec<u64>>);

fn hash(parent: NodeId, name: &Name) -> u64 {
    let mut hasher = DefaultHasher::new();
    (parent, name.as_bytes()).hash(&mut hasher);
    hasher.finish().max(LOST + 1)
}

fn count(names: &[u64]) -> u64 {
    names.iter().filter(|name| **name != LOST).count() as u64
}

impl ExcludedNames {
    pub fn remove(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl Mirror {
    /// Whether what is in this directory is excluded.
    pub(crate) fn hides_below(&self, directory: NodeId) -> bool {
        self.hollow.contains(&directory) || self.excluded.contains(&directory)
    }

    /// Whether a rule of its own, or the directory, leaves out this name of anything but a directory.
    pub(crate) fn is_left_out(&self, parent: NodeId, name: &Name) -> bool {
        self.hides_below(parent) || self.is_named_by_a_rule(parent, name)
    }

    pub(crate) fn is_named_by_a_rule(&self, parent: NodeId, name: &Name) -> bool {
        !self.exclusions.is_empty() && self.path_of(parent).is_some_and(|path| self.exclusions.matches(&join(&path, name)))
    }

    /// Whether it is known to be a directory.
    pub(crate) fn is_directory(&self, node: NodeId) -> bool {
        self.places.contains_key(&node) || self.hollow.contains(&node)
    }

    fn names_of(&mut self, node: NodeId) -> &mut Vec<u64> {
        let sole = self.excluded.0.get(&node);
        self.excluded_names.0.entry(node).or_insert_with(|| sole.copied().into_iter().collect())
    }

    /// A node whose only name is excluded.
    pub(crate) fn exclude(&mut self, node: NodeId, (parent, name): (NodeId, &Name)) {
        self.excluded_names.remove(node);
        self.excluded.insert(node, hash(parent, name));
    }

    /// A node whose only name is excluded, and not known.
    pub(crate) fn exclude_nameless(&mut self, node: NodeId) {
        self.excluded_names.remove(node);
        self.excluded.insert(node, LOST);
    }

    /// A directory below one that is excluded.
    pub(crate) fn exclude_directory(&mut self, node: NodeId) -> bool {
        self.excluded_names.remove(node);
        self.reconsidered.remove(&node);
        self.excluded.insert(node, LOST);
        self.hollow.insert(node)
    }

    /// A listing has an excluded name of something that is no directory.
    pub(crate) fn meet_excluded_name(&mut self, parent: NodeId, listed: &ListedEntry) {
        let counted = self.excluded.contains(&listed.entry.node);
        self.note_excluded_name(parent, listed);
        if !counted && self.excluded.contains(&listed.entry.node) {
            self.left_out.nodes += 1;
            self.left_out.bytes += listed.allocated.0;
        }
    }

    fn note_excluded_name(&mut self, parent: NodeId, listed: &ListedEntry) {
        let node = listed.entry.node;
        if listed.links <= 1 {
            return self.exclude(node, (parent, &listed.entry.name));
        }
        let name = hash(parent, &listed.entry.name);
        let names = self.names_of(node);
        if !names.contains(&name) {
            names.push(name);
        }
        self.settle_border(node, listed.links);
    }

    /// A listing has this name outside of what is excluded.
    pub(crate) fn meet_shown_name(&mut self, parent: NodeId, listed: &ListedEntry) {
        let node = listed.entry.node;
        self.unmet.remove(&node);
        if self.excluded.contains(&node) {
            if !self.surface(node) {
                self.names_of(node);
            }
            self.excluded.remove(&node);
            self.make_stale(node);
        }
        let name = hash(parent, &listed.entry.name);
        if let Some(names) = self.excluded_names.0.get_mut(&node)
            && names.contains(&name)
        {
            // Its directory came out of what is excluded.
            names.retain(|known| *known != name);
            self.make_stale(node);
        }
    }

    /// Nothing below this directory is excluded for being there any more; false if it is no such directory.
    pub(crate) fn surface(&mut self, directory: NodeId) -> bool {
        let was_hollow = self.hollow.remove(&directory);
        if was_hollow {
            self.reconsidered.insert(directory);
        }
        was_hollow
    }

    /// An operation gives an excluded name to something that is no directory.
    pub(crate) fn give_excluded_name(&mut self, node: NodeId, (parent, name): (NodeId, &Name)) {
        let name = hash(parent, name);
        if !self.excluded_names.0.contains_key(&node) && self.excluded.0.get(&node) == Some(&name) {
            return;
        }
        let names = self.names_of(node);
        if !names.contains(&name) {
            names.push(name);
        }
        if self.excluded.contains(&node) {
            self.doubt(node);
        }
    }

    /// An operation takes a name from something that may have excluded ones.
    pub(crate) fn take_excluded_name(&mut self, node: NodeId, (parent, name): (NodeId, &Name)) {
        if self.exclusions.is_empty() || self.is_directory(node) {
            return;
        }
        let name = hash(parent, name);
        let excluded = self.excluded.contains(&node);
        if let Some(names) = self.excluded_names.0.get_mut(&node) {
            names.retain(|known| *known != name);
            if names.is_empty() && !excluded {
                self.excluded_names.remove(node);
            }
            if excluded || !self.is_shown(node) {
                self.doubt(node);
            }
        } else if self.excluded.0.get(&node) == Some(&name) {
            self.excluded_names.0.insert(node, vec![]);
        }
    }

    /// While a walk is under way, what was counted need not have been true at one moment. Outside of one it is exact.
    fn doubt(&mut self, node: NodeId) {
        if !self.whole {
            self.names_of(node);
            self.excluded.remove(&node);
            self.revisit(node);
        }
    }

    /// A rename within what is excluded changes nothing for a node that has no other name; false if it may have others.
    pub(crate) fn move_sole_name(&mut self, node: NodeId, old: (NodeId, &Name), new: (NodeId, &Name)) -> bool {
        let old = hash(old.0, old.1);
        let sole = !self.excluded_names.0.contains_key(&node) && self.excluded.0.get(&node) == Some(&old);
        if sole {
            self.exclude(node, new);
        }
        sole
    }

    /// Whether all names of a node with so many links are known to be excluded.
    pub(crate) fn is_all_excluded(&self, node: NodeId, links: u64) -> bool {
        self.excluded_names.0.get(&node).is_some_and(|names| count(names) > 0 && count(names) >= links)
    }

    /// Takes the node for excluded if all its names are.
    pub(crate) fn settle_border(&mut self, node: NodeId, links: u64) -> bool {
        let all = self.is_all_excluded(node, links);
        if all && self.excluded.insert(node, LOST) {
            self.unsure.insert(node);
        }
        all
    }

    /// A node with excluded names is asked for, and not all its names are known to be excluded. Had it another, the replica would have it since it was
    /// asked for the last time: so names are missing from the count, as after a loss, and everything is listed once. True if that begins.
    pub(crate) fn lists_all(&mut self, node: NodeId) -> bool {
        let nameless = self.live && self.may_be_adrift(node) && !self.announced.contains(&node);
        if !nameless || self.offered.insert(node) {
            return false;
        }
        let mut roots: Vec<NodeId> = self.places.iter().filter(|(_, place)| place.parent.is_none()).map(|(root, _)| *root).collect();
        roots.sort_unstable();
        self.restart(self.scope, roots.into_iter());
        true
    }

    /// A node that was excluded gets a name that is not.
    pub(crate) fn come_in(&mut self, node: NodeId) {
        self.unmet.remove(&node);
        if !self.excluded.contains(&node) {
            return;
        }
        if !self.surface(node) {
            self.names_of(node);
        }
        self.excluded.remove(&node);
        self.revisit(node);
    }

    /// A node moves to where everything is excluded, a directory with all that is below it. `met` says that it is known whether it is a directory; one
    /// that the walk has not met, as it moved from one excluded directory to another while they were listed, may be.
    pub(crate) fn seclude(&mut self, node: NodeId, name: (NodeId, &Name), met: bool) {
        if self.is_directory(node) {
            if self.exclude_directory(node) {
                self.tasks.push_back(Task::Hollow { node });
            }
            return;
        }
        let met = met || self.excluded.contains(&node) || self.excluded_names.0.contains_key(&node);
        self.give_excluded_name(node, name);
        if !met && self.unmet.insert(node) {
            self.tasks.push_back(Task::Hollow { node });
        }
    }

    /// Whether it has excluded names and perhaps no other: then the replica need not have it any more.
    pub(crate) fn may_be_adrift(&self, node: NodeId) -> bool {
        self.excluded_names.0.contains_key(&node)
    }

    /// Operations on these nodes were lost, and with them names that they got or lost.
    pub(crate) fn lose_names(&mut self, nodes: &[NodeId]) {
        if nodes.iter().any(|node| self.hides_below(*node) && self.is_directory(*node)) {
            // Any node may have lost a name in there.
            self.excluded_names.0.values_mut().for_each(|names| *names = vec![LOST]);
        }
        for node in nodes {
            let known = self.excluded_names.0.contains_key(node) || self.excluded.contains(node) && !self.hollow.contains(node);
            if known {
                self.excluded_names.0.insert(*node, vec![LOST]);
            }
        }
    }

    /// Remembers every node below an excluded directory, so that later operations on them are recognised.
    pub(crate) fn hollow_out(&mut self, node: NodeId, reader: &mut impl SourceReader) -> Result<(), ReadError> {
        if self.unmet.remove(&node) {
            let Some(facts) = reader.look(node)? else { return Ok(()) };
            if facts.kind != NodeKind::Directory {
                if !self.settle_border(node, facts.links) && !self.is_shown(node) {
                    self.revisit(node);
                }
                return Ok(());
            }
            self.exclude_directory(node);
        }
        if !self.hollow.contains(&node) {
            // It came out again before its turn.
            return Ok(());
        }
        for listed in reader.list(node)?.unwrap_or_default() {
            let child = listed.entry.node;
            if listed.entry.kind == NodeKind::Directory {
                self.exclude_directory(child);
                self.tasks.push_front(Task::Hollow { node: child });
            } else {
                self.meet_excluded_name(node, &listed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
