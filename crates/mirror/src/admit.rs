//! Which captured operations go into the stream while a walk is under way, and what the walk learns from them.

use crate::places::{Place, join};
use crate::walk::Mirror;
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
            Link { parent, name, node } => self.admit_link(*parent, name, *node),
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
        self.excluded.remove(&node);
        self.excluded_names.remove(node);
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
        self.is_shown(directory) && !self.unlisted.contains(&directory) && !self.hides_below(directory)
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
        self.recent.contains(&node) || self.reading.contains_key(&node) || self.comparing.contains(node)
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
        if self.hides_below(parent) {
            if directory {
                self.exclude_directory(node);
            } else {
                self.exclude(node, (parent, name));
            }
            return Drop;
        }
        let path = if self.exclusions.is_empty() { None } else { self.path_of(parent).map(|p| join(&p, name)) };
        let excluded = path.is_some_and(|p| self.exclusions.matches(&p));
        if directory {
            self.places.insert(node, Place { parent: Some(parent), path_part: name.as_bytes().to_vec() });
            self.hollow.remove(&node);
            if excluded {
                self.hollow.insert(node);
            }
        } else if excluded {
            self.exclude(node, (parent, name));
            return Drop;
        }
        // An inode number may come back with the same generation on file systems that do not count; it is a new node all the same.
        self.reconsidered.remove(&node);
        self.excluded.remove(&node);
        self.excluded_names.remove(node);
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

    fn admit_link(&mut self, parent: NodeId, name: &Name, node: NodeId) -> Admission {
        let is_first = self.unnamed.remove(&node);
        if self.is_left_out(parent, name) {
            if is_first {
                // Its only name is excluded, and so is the node from here on.
                self.exclude(node, (parent, name));
                return Instead(vec![Operation::Forget { node }]);
            }
            self.give_excluded_name(node, (parent, name));
            return Drop;
        }
        if !self.names_shown(parent) {
            self.come_in(node);
            self.owe_names(parent);
            return Drop;
        }
        if self.is_known(node) && !self.may_be_adrift(node) {
            return Pass;
        }
        self.have_read(node);
        self.relist(parent);
        Drop
    }

    /// It gets a name that is not excluded while it has others that are: what became of it on the replica is not known.
    fn have_read(&mut self, node: NodeId) {
        self.come_in(node);
        if self.is_known(node) {
            self.revisit(node);
        }
    }

    /// The rules may say otherwise below a directory that has moved.
    pub(crate) fn reconsider(&mut self, directory: NodeId) {
        self.reconsidered.insert(directory);
        self.make_stale(directory);
    }

    fn admit_removal(&mut self, parent: NodeId, name: &Name, node: NodeId) -> Admission {
        // A node that is excluded by now may have had this name when it was not: only a rule of the name's own says that it was never shown.
        let excluded = self.excluded.contains(&node) && self.is_left_out(parent, name);
        self.take_excluded_name(node, (parent, name));
        if excluded {
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
        let (old, new) = ((*parent, name), (*new_parent, new_name));
        self.unnamed.remove(node);
        let exchanged = victim.filter(|_| *mode == RenameMode::Exchange);
        self.move_border(*node, old, new);
        match exchanged {
            Some(victim) => self.move_border(victim, new, old),
            None => victim.iter().for_each(|victim| self.take_excluded_name(*victim, new)),
        }
        let moved = [Some((*node, new)), exchanged.map(|victim| (victim, old))].into_iter().flatten();
        let moved: Vec<NodeId> = moved.filter(|(node, place)| self.follow(*node, *place)).map(|(node, _)| node).collect();
        let admission = self.admit_names(old, new, *node, exchanged, *mode);
        for directory in moved {
            if !self.excluded.contains(&directory) {
                self.reconsider(directory);
                self.owed.push_back(directory);
            }
        }
        admission
    }

    fn admit_names(
        &mut self,
        old: (NodeId, &Name),
        new: (NodeId, &Name),
        node: NodeId,
        exchanged: Option<NodeId>,
        mode: RenameMode,
    ) -> Admission {
        let known = self.is_known(node) && exchanged.is_none_or(|victim| self.is_known(victim));
        let ruled = self.gets_a_rules_name(node, new) || exchanged.is_some_and(|victim| self.gets_a_rules_name(victim, old));
        if known && !ruled && self.names_shown(old.0) && self.names_shown(new.0) {
            if mode == RenameMode::Whiteout {
                // Only a listing tells which node was left at the old name.
                self.relist(old.0);
            }
            return Pass;
        }
        // A directory that has a shown name has a place.
        let (met, victim_met) = (self.names_shown(old.0), self.names_shown(new.0));
        let mut instead = Vec::new();
        match (mode, exchanged) {
            // What is left there is not ours to make from here.
            (RenameMode::Whiteout, _) | (RenameMode::Exchange, None) => self.lose_name(old.0),
            (_, Some(victim)) => {
                self.leave_to_rule(old, (node, victim), &mut instead);
                self.leave_to_rule(new, (victim, node), &mut instead);
                self.give_name(old, victim, victim_met, &mut instead);
            }
            (_, None) => self.take_name(old, node, &mut instead),
        }
        self.give_name(new, node, met, &mut instead);
        if instead.is_empty() { Drop } else { Instead(instead) }
    }

    /// The excluded name that this rename takes from a node. One that it gives is the business of whoever gives it.
    fn move_border(&mut self, node: NodeId, old: (NodeId, &Name), new: (NodeId, &Name)) {
        if self.exclusions.is_empty() || self.is_directory(node) {
            return;
        }
        let (was_out, is_out) = (self.is_left_out(old.0, old.1), self.is_left_out(new.0, new.1));
        if was_out && is_out && self.move_sole_name(node, old, new) {
            return;
        }
        self.take_excluded_name(node, old);
        if was_out && !is_out {
            self.have_read(node);
        }
    }

    /// Whether a rule leaves out this name of a node that is no directory.
    fn gets_a_rules_name(&self, node: NodeId, (parent, name): (NodeId, &Name)) -> bool {
        !self.is_directory(node) && self.is_named_by_a_rule(parent, name)
    }

    /// Notes where a directory is now; true if the rules say otherwise below it.
    fn follow(&mut self, node: NodeId, (parent, name): (NodeId, &Name)) -> bool {
        // A directory that was met only as excluded has no place yet, and without one no rule would hold below it.
        self.is_directory(node) && self.put(node, parent, name)
    }

    fn lose_name(&mut self, directory: NodeId) {
        if self.names_shown(directory) { self.relist(directory) } else { self.owe_names(directory) }
    }

    /// A directory is replicated whatever rule its name has. Where something else is exchanged for it, the replica has nothing there any more.
    fn leave_to_rule(&mut self, (parent, name): (NodeId, &Name), (goes, comes): (NodeId, NodeId), out: &mut Vec<Operation>) {
        if self.is_directory(goes) && !self.hides_below(parent) && self.gets_a_rules_name(comes, (parent, name)) {
            self.take_name((parent, name), goes, out);
        }
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
        if self.hides_below(parent) {
            self.seclude(node, (parent, name), met);
        } else if self.gets_a_rules_name(node, (parent, name)) && (self.is_known(node) || self.excluded.contains(&node)) {
            self.give_excluded_name(node, (parent, name));
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

    pub(crate) fn forget(&mut self, node: NodeId) -> Admission {
        // Whoever waits for a read of it has to hear of its end, whatever it was.
        let excluded = self.excluded.remove(&node) && !self.stale.contains(&node);
        self.excluded_names.remove(node);
        self.reconsidered.remove(&node);
        self.hollow.remove(&node);
        self.places.remove(&node);
        self.make_stale(node);
        self.known.remove(&node);
        self.once_excluded.remove(&node);
        self.stale.remove(&node);
        self.unlisted.remove(&node);
        self.unnamed.remove(&node);
        self.nameless.remove(&node);
        if excluded { Drop } else { Pass }
    }
}
