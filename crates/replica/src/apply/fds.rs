//! A bounded set of open descriptors, so that a run of operations on one node opens it once.
//!
//! Replacement is second chance: a hand walks the slots and takes the first that was not used since it last came by. The caller
//! learns which node was closed, because times that are still to be set are cheapest to set just before.

use rustix::fd::OwnedFd;
use standin_model::NodeId;
use std::collections::HashMap;
use std::sync::Arc;

pub type Fd = Arc<OwnedFd>;

/// Half of the usual soft limit of 1,024 descriptors.
pub const OPEN_NODES_MAX: usize = 512;

struct Slot {
    node: NodeId,
    fd: Fd,
    used: bool,
}

#[derive(Default)]
pub struct OpenNodes {
    slots: Vec<Option<Slot>>,
    places: HashMap<NodeId, usize>,
    free: Vec<usize>,
    hand: usize,
}

impl OpenNodes {
    pub fn get(&mut self, node: NodeId) -> Option<Fd> {
        let slot = self.slots[*self.places.get(&node)?].as_mut().expect("a place leads to a slot");
        slot.used = true;
        Some(slot.fd.clone())
    }

    /// Keeps a descriptor; returns the one that had to go for it.
    pub fn insert(&mut self, node: NodeId, fd: Fd) -> Option<(NodeId, Fd)> {
        self.remove(node);
        let slot = Some(Slot { node, fd, used: false });
        let (place, evicted) = if let Some(place) = self.free.pop() {
            (place, None)
        } else if self.slots.len() < OPEN_NODES_MAX {
            self.slots.push(None);
            (self.slots.len() - 1, None)
        } else {
            self.evict()
        };
        self.slots[place] = slot;
        self.places.insert(node, place);
        evicted
    }

    fn evict(&mut self) -> (usize, Option<(NodeId, Fd)>) {
        loop {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = self.slots[place].as_mut().expect("every slot is taken when none is free");
            if !std::mem::take(&mut slot.used) {
                let slot = self.slots[place].take().expect("just seen");
                self.places.remove(&slot.node);
                return (place, Some((slot.node, slot.fd)));
            }
        }
    }

    pub fn remove(&mut self, node: NodeId) {
        if let Some(place) = self.places.remove(&node) {
            self.slots[place] = None;
            self.free.push(place);
        }
    }

    /// Closes what has no name left in the file system: only the descriptor keeps it alive, and it would be taken for a node that exists.
    pub fn close_nameless(&mut self) {
        let nameless = |slot: &Slot| rustix::fs::fstat(&slot.fd).is_ok_and(|stat| stat.st_nlink == 0);
        let nodes: Vec<NodeId> = self.slots.iter().flatten().filter(|slot| nameless(slot)).map(|slot| slot.node).collect();
        nodes.into_iter().for_each(|node| self.remove(node));
    }

    pub fn clear(&mut self) {
        *self = OpenNodes::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_model::VolumeId;

    fn node(inode: u64) -> NodeId {
        NodeId { volume: VolumeId(0), subvolume: 0, inode, generation: 0 }
    }

    #[test]
    fn the_bound_holds_and_recent_use_protects() {
        let fd: Fd = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
        let mut open = OpenNodes::default();
        let mut evicted = Vec::new();
        for inode in 0..2000 {
            assert!(inode == 0 || open.get(node(0)).is_some(), "node 0 is used all the time");
            evicted.extend(open.insert(node(inode), fd.clone()).map(|(node, _)| node.inode));
        }
        assert_eq!(evicted.len(), 2000 - OPEN_NODES_MAX);
        assert!(!evicted.contains(&0));
        open.remove(node(1999));
        assert!(open.get(node(1999)).is_none());
        assert_eq!(open.insert(node(3000), fd).map(|(node, _)| node), None, "a freed slot is used first");
    }
}
