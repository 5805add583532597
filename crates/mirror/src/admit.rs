//! Which captured operations go into the stream while a walk is under way, and what the walk learns from them.

use crate::walk::{Mirror, Place, Task, join};
use standin_model::{Name, NodeId, Operation, RenameMode};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Append it.
    Pass,
    /// Leave it out: what it did is excluded, or a later read will show it.
    Drop,
    /// Append these: the part of it that lies in what is shown.
    Instead(Vec<Operation>),
}
use Admission::{Drop, Instead, Pass};

impl Mirror {
    /// Decides about one operation, in ring order. Must be called for every captured operation, also while live.
    pub fn admit(&mut self, operation: &Operation) -> Admission {
        use Operation::*;
        match operation {
            Create { parent, name, node, .. } | Symlink { parent, name, node, .. } | Mknod { parent, name, node, .. } => {
                self.admit_new(*parent, name, *node, false)
            }
            Mkdir { parent, name, node, .. } => self.admit_new(*parent, name, *node, true),
            CreateUnnamed { node, .. } => self.admit_unnamed(*node),
            Link { parent, node, .. } => self.admit_link(*parent, *node),
            Unlink { parent, name, node } | Rmdir { parent, name, node } => self.admit_removal(*parent, name, *node),
            Rename { .. } => self.admit_rename(operation),
            Forget { node } => self.forget(*node),
            CloneRange { origin, node, .. } => self.admit_clone(*origin, *node),
            Write { node, offset, .. } => self.admit_content(*node, Some(offset.0)),
            Collapse { node, .. } | Insert { node, .. } => self.admit_shift(*node),
            Marker(_) => Pass,
            other => match other.node() {
                Some(node) => self.admit_content(node, None),
                None => Pass,
            },
        }
    }

    /// A file without a name is under no directory, so it counts as shown as soon as its volume's root is.
    fn admit_unnamed(&mut self, node: NodeId) -> Admission {
        let root = self.places.iter().find(|(id, place)| id.volume == node.volume && place.parent.is_none()).map(|(id, _)| *id);
        if root.is_some_and(|root| self.is_shown(root)) {
            self.set_shown(node);
            self.unnamed.insert(node);
            return Pass;
        }
        self.owe(node);
        Drop
    }

    /// A resync begins. No walk meets a file without a name, so that what it missed would never come: the replica forgets such files here, and
    /// one that gets a name later is read then.
    pub fn forget_unnamed(&mut self) {
        for node in std::mem::take(&mut self.unnamed) {
            self.make_stale(node);
        }
    }

    /// Whether times and other attributes of this node belong in the stream now.
    pub fn admits_node(&self, node: NodeId) -> bool {
        !self.excluded.contains(&node) && self.is_shown(node)
    }

    /// Whether operations on the names of this directory belong in the stream now.
    fn names_shown(&self, directory: NodeId) -> bool {
        self.is_shown(directory)
            && !self.unlisted.contains(&directory)
            && !self.excluded.contains(&directory)
            && !self.hollow.contains(&directory)
    }

    /// Whether the replica has this node for certain, so that a name may be given to it.
    fn is_known(&self, node: NodeId) -> bool {
        !self.excluded.contains(&node) && (self.is_shown(node) || self.announced.contains(&node))
    }

    fn admit_content(&mut self, node: NodeId, write_at: Option<u64>) -> Admission {
        if !self.admits_node(node) {
            self.owe(node);
            return Drop;
        }
        match (self.reading.get(&node), write_at) {
            // The walk has not come to this offset yet and will read the bytes after this operation.
            (Some(frontier), Some(offset)) if offset >= *frontier => Drop,
            _ => Pass,
        }
    }

    /// Collapse and insert are not idempotent: where a read may have seen their effect already, or has still to come to the content that
    /// they move, the file is read from its beginning again.
    fn admit_shift(&mut self, node: NodeId) -> Admission {
        if !self.admits_node(node) {
            self.owe(node);
            return Drop;
        }
        if !self.is_being_read(node) {
            return Pass;
        }
        self.revisit(node);
        Drop
    }

    fn is_being_read(&self, node: NodeId) -> bool {
        self.recent.contains(&node) || self.reading.contains_key(&node)
    }

    fn admit_clone(&mut self, origin: NodeId, node: NodeId) -> Admission {
        if !self.admits_node(node) {
            self.owe(node);
            return Drop;
        }
        if self.admits_node(origin) && !self.is_being_read(origin) && !self.is_being_read(node) {
            return Pass;
        }
        self.revisit(node);
        Drop
    }

    fn admit_new(&mut self, parent: NodeId, name: &Name, node: NodeId, directory: bool) -> Admission {
        if self.hollow.contains(&parent) || self.excluded.contains(&parent) {
            self.excluded.insert(node);
            if directory {
                self.hollow.insert(node);
            }
            return Drop;
        }
        let path = if self.exclusions.is_empty() { None } else { self.path_of(parent).map(|p| join(&p, name)) };
        let excluded = path.is_some_and(|p| self.exclusions.matches(&p));
        if directory {
            self.places.insert(node, Place { parent: Some(parent), path_part: name.as_bytes().to_vec() });
            if excluded {
                self.hollow.insert(node);
            }
        } else if excluded {
            self.excluded.insert(node);
            return Drop;
        }
        // An inode number may come back with the same generation on file systems that do not count; it is a new node all the same.
        self.excluded.remove(&node);
        if !self.names_shown(parent) {
            self.owe_names(parent);
            self.make_stale(node);
            return Drop;
        }
        if self.stale.contains(&node) {
            // Somebody used it before its creation was announced, and that was left out.
            self.announced.insert(node);
            self.revisit(node);
        } else {
            self.set_shown(node);
        }
        Pass
    }

    /// Whether names like this one in that directory are excluded.
    fn is_left_out(&self, parent: NodeId, name: &Name) -> bool {
        let below = self.hollow.contains(&parent) || self.excluded.contains(&parent);
        below || self.path_of(parent).is_some_and(|path| self.exclusions.matches(&join(&path, name)))
    }

    fn admit_link(&mut self, parent: NodeId, node: NodeId) -> Admission {
        let is_first = self.unnamed.remove(&node);
        if is_first && (self.hollow.contains(&parent) || self.excluded.contains(&parent)) {
            // Its only name is excluded, and so is the node from here on.
            self.excluded.insert(node);
            return Instead(vec![Operation::Forget { node }]);
        }
        if !self.names_shown(parent) {
            self.owe_names(parent);
            return Drop;
        }
        if self.is_known(node) {
            return Pass;
        }
        self.come_in(node);
        self.relist(parent);
        Drop
    }

    /// A node that was excluded gets a name that is not.
    fn come_in(&mut self, node: NodeId) {
        if self.excluded.remove(&node) {
            self.hollow.remove(&node);
            self.revisit(node);
        }
    }

    /// A node moves to where everything is excluded, a directory with all that is below it. `met` says that it is known whether it is a directory; one
    /// that the walk has not met, as it moved from one excluded directory to another while they were listed, may be.
    fn seclude(&mut self, node: NodeId, met: bool) {
        let is_news = self.excluded.insert(node);
        if (self.places.contains_key(&node) || is_news && !met) && self.hollow.insert(node) {
            self.tasks.push_back(Task::Hollow { node });
        }
    }

    fn admit_removal(&mut self, parent: NodeId, name: &Name, node: NodeId) -> Admission {
        // A node that is excluded by now may have had this name when it was not: only a rule of the name's own says that it was never shown.
        if self.excluded.contains(&node) && self.is_left_out(parent, name) {
            return Drop;
        }
        if self.names_shown(parent) {
            return Pass;
        }
        self.owe_names(parent);
        Drop
    }

    /// A rename writes two names, each in its directory. Both go into the stream as one operation, or each by itself as far as its directory is
    /// listed.
    fn admit_rename(&mut self, operation: &Operation) -> Admission {
        let Operation::Rename { parent, name, node, new_parent, new_name, mode, victim } = operation else { return Drop };
        self.unnamed.remove(node);
        self.follow(*node, *new_parent, new_name);
        let exchanged = victim.filter(|_| *mode == RenameMode::Exchange);
        if let Some(victim) = exchanged {
            self.follow(victim, *parent, name);
        }
        let known = self.is_known(*node) && exchanged.is_none_or(|victim| self.is_known(victim));
        if known && self.names_shown(*parent) && self.names_shown(*new_parent) {
            if *mode == RenameMode::Whiteout {
                // Only a listing tells which node was left at the old name.
                self.relist(*parent);
            }
            return Pass;
        }
        // A directory that has a shown name has a place.
        let (met, victim_met) = (self.names_shown(*parent), self.names_shown(*new_parent));
        let mut instead = Vec::new();
        let (old, new) = ((*parent, name), (*new_parent, new_name));
        match (mode, exchanged) {
            // What is left there is not ours to make from here.
            (RenameMode::Whiteout, _) | (RenameMode::Exchange, None) => self.lose_name(*parent),
            (_, Some(victim)) => self.give_name(old, victim, victim_met, &mut instead),
            (_, None) => self.take_name(old, *node, &mut instead),
        }
        self.give_name(new, *node, met, &mut instead);
        if instead.is_empty() { Drop } else { Instead(instead) }
    }

    fn follow(&mut self, node: NodeId, parent: NodeId, name: &Name) {
        // A directory that was met only as excluded has no place yet, and without one no rule would hold below it.
        if self.places.contains_key(&node) || self.hollow.contains(&node) {
            self.places.insert(node, Place { parent: Some(parent), path_part: name.as_bytes().to_vec() });
        }
    }

    fn lose_name(&mut self, directory: NodeId) {
        if self.names_shown(directory) { self.relist(directory) } else { self.owe_names(directory) }
    }

    /// The name leads nowhere any more.
    fn take_name(&mut self, (parent, name): (NodeId, &Name), node: NodeId, out: &mut Vec<Operation>) {
        if self.names_shown(parent) {
            out.push(Operation::Unlink { parent, name: name.clone(), node });
        } else {
            self.owe_names(parent);
        }
    }

    /// The name leads to this node now, whatever it led to before.
    fn give_name(&mut self, (parent, name): (NodeId, &Name), node: NodeId, met: bool, out: &mut Vec<Operation>) {
        if self.hollow.contains(&parent) || self.excluded.contains(&parent) {
            self.seclude(node, met);
        } else if !self.names_shown(parent) {
            self.come_in(node);
            self.owe_names(parent);
        } else if self.is_known(node) {
            out.push(Operation::Link { parent, name: name.clone(), node });
        } else {
            self.come_in(node);
            self.relist(parent);
        }
    }

    fn forget(&mut self, node: NodeId) -> Admission {
        // Whoever waits for a read of it has to hear of its end, whatever it was.
        let excluded = self.excluded.remove(&node) && !self.stale.contains(&node);
        self.hollow.remove(&node);
        self.places.remove(&node);
        self.make_stale(node);
        self.known.remove(&node);
        self.stale.remove(&node);
        self.unlisted.remove(&node);
        self.unnamed.remove(&node);
        if excluded { Drop } else { Pass }
    }
}
