//! What a full queue made us leave out: a bounded set of nodes, or, beyond the bound, everything since a time.

use standin_model::{NodeId, Operation, Timestamp};
use std::collections::HashSet;

pub struct Loss {
    pub reason: String,
    pub since: Timestamp,
    /// `None` beyond the bound.
    pub nodes: Option<HashSet<NodeId>>,
    nodes_max: usize,
}

impl Loss {
    pub fn new(reason: String, since: Timestamp, nodes_max: usize) -> Loss {
        Loss { reason, since, nodes: Some(HashSet::new()), nodes_max }
    }

    pub fn note_everything(&mut self) {
        self.nodes = None;
    }

    /// Remembers every node that this item would have changed, directories among them. What a walk had shown in a lost item is shown again.
    pub fn note(&mut self, operation: &Operation) {
        let Some(nodes) = &mut self.nodes else { return };
        nodes.extend(operation.changed_nodes());
        if nodes.len() > self.nodes_max {
            self.nodes = None;
        }
    }
}
