//! What the job leaves out: all that is in one directory, and files with the names of temporary ones.
//!
//! The product decides per node and not per name. A node that has names on both sides of the border is beyond it, so that no such node is made
//! here: only what has one name goes over the border.

use super::Source;
use crate::random::Random;
use standin_model::*;

/// Of the directory whose contents are excluded.
const SECLUDED: &[u8] = b"secluded";

impl Source {
    /// Begins to exclude; returns the rules.
    pub fn exclude(&mut self, random: &mut Random) -> Vec<String> {
        let Some(root) = random.pick(&self.roots) else { return vec![] };
        let attributes = Attributes { mode: 0o700, owner: 0, group: 0, modified: self.clock };
        let node = self.new_node(root.volume, NodeKind::Directory, attributes);
        self.put(root, SECLUDED, node);
        self.secluded = Some(node);
        let mount_point = if root.volume.0 == 0 { String::new() } else { format!("/v{}", root.volume.0) };
        vec![format!("{mount_point}/secluded"), "/t?".to_owned(), "/**/t?".to_owned()]
    }

    pub(super) fn is_temporary(&self, name: &[u8]) -> bool {
        self.secluded.is_some() && name.starts_with(b"t")
    }

    pub(super) fn create_temporary(&mut self, parent: NodeId, random: &mut Random) {
        let name = format!("t{}", random.below(3)).into_bytes();
        if self.lookup(parent, &name).is_none() {
            let attributes = Attributes { mode: 0o600, owner: 0, group: 0, modified: self.clock };
            let node = self.new_node(parent.volume, NodeKind::File, attributes);
            self.put(parent, &name, node);
            let name = Name::new(name).expect("good");
            self.tell(Operation::Create { parent, name, node, attributes });
        }
    }

    pub(super) fn excludes(&self) -> bool {
        self.secluded.is_some()
    }

    /// Whether what is in this directory is excluded.
    pub(super) fn is_secluded(&self, directory: NodeId) -> bool {
        self.secluded.is_some_and(|secluded| self.is_below(directory, secluded))
    }

    /// Whether this node has a name that is excluded.
    pub(super) fn is_out(&self, node: NodeId) -> bool {
        self.excludes() && self.names().iter().any(|(parent, name, n)| *n == node && (self.is_temporary(name) || self.is_secluded(*parent)))
    }

    /// Whether it and everything below it has one name only.
    pub(super) fn is_single(&self, node: NodeId) -> bool {
        let names = self.names();
        let mut todo = vec![node];
        while let Some(at) = todo.pop() {
            if names.iter().filter(|(_, _, n)| *n == at).count() != 1 {
                return false;
            }
            todo.extend(self.nodes()[&at].directory.iter().flat_map(|names| names.values().copied()));
        }
        true
    }
}
