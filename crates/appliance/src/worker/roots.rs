//! Which node of the source is the root of each volume.
//!
//! The mirror of a volume begins with its root, and nothing about a volume comes before that, so the first item that names a node of a volume names its
//! root. What was learned is kept beside the node table, because the journal forgets.

use anyhow::{Context, Result};
use standin_model::{Item, NodeId, VolumeId};
use std::path::{Path, PathBuf};

pub struct Roots {
    path: PathBuf,
    known: Vec<NodeId>,
}

impl Roots {
    pub fn load(node_table: &Path) -> Result<Roots> {
        let path = node_table.with_extension("roots.json");
        let known = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        Ok(Roots { path, known })
    }

    pub fn known(&self) -> &[NodeId] {
        &self.known
    }

    fn has(&self, volume: VolumeId) -> bool {
        self.known.iter().any(|root| root.volume == volume)
    }

    /// Takes in an item; true when it named the root of a volume that had none.
    pub fn learn(&mut self, item: &Item) -> Result<bool> {
        let Some(node) = item.operation.node().filter(|node| !self.has(node.volume)) else { return Ok(false) };
        self.known.push(node);
        let text = serde_json::to_vec(&self.known)?;
        standin_journal::durable::write_atomically(&self.path, &text).with_context(|| format!("writing {}", self.path.display()))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_model::{Marker, OpSeq, Operation};

    #[test]
    fn the_first_node_of_a_volume_is_its_root_and_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let table = dir.path().join("nodes.redb");
        let node = |volume, inode| NodeId { volume: VolumeId(volume), subvolume: 0, inode, generation: 0 };
        let item = |node| Item { seq: OpSeq(1), operation: Operation::Forget { node } };
        let mut roots = Roots::load(&table).unwrap();
        assert!(!roots.learn(&Item { seq: OpSeq(1), operation: Operation::Marker(Marker::ResyncStarted) }).unwrap());
        assert!(roots.learn(&item(node(0, 2))).unwrap());
        assert!(!roots.learn(&item(node(0, 3))).unwrap());
        assert!(roots.learn(&item(node(1, 64))).unwrap());
        assert_eq!(Roots::load(&table).unwrap().known(), [node(0, 2), node(1, 64)]);
    }
}
