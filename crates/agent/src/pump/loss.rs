//! What a full queue made us leave out: a bounded set of nodes, or, beyond the bound, everything since a time.

use standin_model::{NodeId, Operation, Timestamp};
use std::collections::HashSet;

/// 24 bytes a node and as much again for the table: about 6 MiB at the bound.
const NODES_MAX: usize = 128 * 1024;

pub struct Loss {
    pub reason: String,
    pub since: Timestamp,
    /// `None` beyond the bound.
    pub nodes: Option<HashSet<NodeId>>,
}

impl Loss {
    pub fn new(reason: String, since: Timestamp) -> Loss {
        Loss { reason, since, nodes: Some(HashSet::new()) }
    }

    pub fn note_everything(&mut self) {
        self.nodes = None;
    }

    /// Remembers every node that this item would have changed, directories among them. What a walk had shown in a lost item is shown again.
    pub fn note(&mut self, operation: &Operation) {
        use Operation::*;
        let Some(nodes) = &mut self.nodes else { return };
        nodes.extend(operation.node());
        match operation {
            Create { parent, .. }
            | Mkdir { parent, .. }
            | Symlink { parent, .. }
            | Mknod { parent, .. }
            | Link { parent, .. }
            | Unlink { parent, .. }
            | Rmdir { parent, .. } => nodes.extend([*parent]),
            Rename { parent, new_parent, victim, .. } => {
                nodes.extend([*parent, *new_parent]);
                nodes.extend(*victim);
            }
            _ => {}
        }
        if nodes.len() > NODES_MAX {
            self.nodes = None;
        }
    }
}
