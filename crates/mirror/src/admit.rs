//! Which captured operations go into the stream while a walk is under way, and what the walk learns from them.

use crate::walk::{Mirror, Place, Task, join};
use standin_model::{Name, NodeId, Operation, RenameMode, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Append it.
    Pass,
    /// Leave it out: what it did is excluded, or a later read will show it.
    Drop,
}
use Admission::{Drop, Pass};

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
            Unlink { parent, node, .. } | Rmdir { parent, node, .. } => self.admit_removal(*parent, *node),
            Rename { parent, node, new_parent, new_name, mode, victim, .. } => {
                let admission = self.admit_rename(*parent, *node, *new_parent, new_name, *mode);
                self.find_moved([Some(*node), *victim]);
                admission
            }
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
            return Pass;
        }
        Drop
    }

    /// Whether times and other attributes of this node belong in the stream now.
    pub fn admits_node(&self, node: NodeId) -> bool {
        !self.excluded.contains(&node) && self.is_shown(node)
    }

    fn names_shown(&self, directory: NodeId) -> bool {
        self.is_shown(directory) && !self.excluded.contains(&directory) && !self.hollow.contains(&directory)
    }

    fn admit_content(&mut self, node: NodeId, write_at: Option<u64>) -> Admission {
        if !self.admits_node(node) {
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
            return Drop;
        }
        if !self.is_being_read(node) {
            return Pass;
        }
        if self.reading.remove(&node).is_some() {
            self.tasks.retain(|task| !matches!(task, Task::Read { node: n, .. } if *n == node));
        }
        self.revisit(node);
        Drop
    }

    fn is_being_read(&self, node: NodeId) -> bool {
        self.recent.contains(&node) || self.reading.contains_key(&node)
    }

    fn admit_clone(&mut self, origin: NodeId, node: NodeId) -> Admission {
        if !self.admits_node(node) {
            return Drop;
        }
        if self.admits_node(origin) && !self.is_being_read(origin) && !self.is_being_read(node) {
            return Pass;
        }
        self.revisit(node);
        Drop
    }

    fn revisit(&mut self, node: NodeId) {
        if self.dirty.insert(node) {
            // Behind a running read, so that the reader's place stays at the front.
            self.tasks.push_back(Task::Visit { node, directory: false, changed: Timestamp(i64::MAX) });
        }
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
            return Drop;
        }
        self.set_shown(node);
        Pass
    }

    fn admit_link(&mut self, parent: NodeId, node: NodeId) -> Admission {
        if !self.names_shown(parent) {
            return Drop;
        }
        if self.admits_node(node) {
            return Pass;
        }
        self.excluded.remove(&node);
        self.relist(parent);
        Drop
    }

    fn admit_removal(&mut self, parent: NodeId, node: NodeId) -> Admission {
        if self.hollow.contains(&parent) || self.excluded.contains(&parent) || self.excluded.contains(&node) {
            return Drop;
        }
        if self.names_shown(parent) { Pass } else { Drop }
    }

    fn admit_rename(&mut self, parent: NodeId, node: NodeId, new_parent: NodeId, new_name: &Name, mode: RenameMode) -> Admission {
        if let Some(place) = self.places.get_mut(&node) {
            *place = Place { parent: Some(new_parent), path_part: new_name.as_bytes().to_vec() };
        }
        let (from, to) = (self.names_shown(parent), self.names_shown(new_parent));
        let secluded = |m: &Mirror, n: NodeId| m.hollow.contains(&n) || m.excluded.contains(&n);
        if !secluded(self, parent) && !secluded(self, new_parent) && !self.excluded.contains(&node) {
            return self.admit_plain_rename(from, to, parent, new_parent, mode);
        }
        // A border of the excluded part was crossed: show both directories as they are now, and the node if it came in.
        if to && self.excluded.remove(&node) {
            self.hollow.remove(&node);
            self.revisit(node);
        }
        if secluded(self, new_parent) {
            self.excluded.insert(node);
        }
        for (shown, directory) in [(from, parent), (to, new_parent)] {
            if shown {
                self.relist(directory);
            }
        }
        Drop
    }

    /// A node that moved while two directories were listed may stand in neither listing, and a resync would take it for unchanged. So whatever
    /// was renamed before it was shown is visited by itself.
    fn find_moved(&mut self, nodes: [Option<NodeId>; 2]) {
        for node in nodes.into_iter().flatten() {
            if !self.is_shown(node) && !self.excluded.contains(&node) && self.names_seen() {
                self.tasks.push_back(Task::Visit { node, directory: false, changed: Timestamp(i64::MAX) });
            }
        }
    }

    /// Whether the walk has listed anything yet; before that, every name is still going to be seen.
    fn names_seen(&self) -> bool {
        self.shown.as_ref().is_some_and(|shown| !shown.is_empty())
    }

    fn admit_plain_rename(&mut self, from: bool, to: bool, parent: NodeId, new_parent: NodeId, mode: RenameMode) -> Admission {
        match (from, to) {
            (true, true) => Pass,
            (false, false) => Drop,
            // It leaves what is shown. The replica keeps it aside until the walk finds it at its new place.
            (true, false) if mode == RenameMode::Exchange => {
                self.relist(parent);
                Drop
            }
            (true, false) => Pass,
            (false, true) => {
                self.relist(new_parent);
                Drop
            }
        }
    }

    fn relist(&mut self, directory: NodeId) {
        let task = Task::Relist { node: directory };
        if !self.tasks.contains(&task) {
            self.tasks.push_back(task);
        }
    }

    fn forget(&mut self, node: NodeId) -> Admission {
        let known = !self.excluded.remove(&node) && self.is_shown(node);
        self.hollow.remove(&node);
        self.places.remove(&node);
        self.dirty.remove(&node);
        if let Some(shown) = &mut self.shown {
            shown.remove(&node);
        }
        if known { Pass } else { Drop }
    }
}
