//! Which node of the source is the root of each volume.
//!
//! The mirror of a volume begins with its root: the first directory that is mirrored. Before it only a `Forget` can come, of a node that was used no more when
//! capture began. What was learned is kept beside the node table, because the journal forgets.

use anyhow::{Context, Result};
use standin_model::{Item, NodeId, NodeKind, Operation, VolumeId};
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
        let Operation::MirrorNode { node, kind: NodeKind::Directory, .. } = &item.operation else { return Ok(false) };
        if self.has(node.volume) {
            return Ok(false);
        }
        self.known.push(*node);
        let text = serde_json::to_vec(&self.known)?;
        standin_journal::durable::write_atomically(&self.path, &text).with_context(|| format!("writing {}", self.path.display()))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_model::{Attributes, ByteLen, Marker, OpSeq, Timestamp};

    #[test]
    fn the_first_mirrored_directory_of_a_volume_is_its_root_and_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let table = dir.path().join("nodes.redb");
        let node = |volume, inode| NodeId { volume: VolumeId(volume), subvolume: 0, inode, generation: 0 };
        let attributes = Attributes { mode: 0o755, owner: 0, group: 0, modified: Timestamp(0) };
        let shown = |node, kind| {
            let operation = Operation::MirrorNode {
                node,
                kind,
                attributes,
                accessed: Timestamp(0),
                flags: 0,
                project: 0,
                size: ByteLen(0),
                xattrs: Vec::new(),
            };
            Item { seq: OpSeq(1), operation }
        };
        let item = |node| shown(node, NodeKind::Directory);
        let mut roots = Roots::load(&table).unwrap();
        assert!(!roots.learn(&Item { seq: OpSeq(1), operation: Operation::Marker(Marker::ResyncStarted) }).unwrap());
        let forgotten = Item { seq: OpSeq(1), operation: Operation::Forget { node: node(0, 9) } };
        assert!(!roots.learn(&forgotten).unwrap(), "it was used no more when capture began");
        assert!(roots.learn(&item(node(0, 2))).unwrap());
        assert!(!roots.learn(&item(node(0, 3))).unwrap());
        assert!(!roots.learn(&shown(node(1, 65), NodeKind::File)).unwrap());
        assert!(roots.learn(&item(node(1, 64))).unwrap());
        assert_eq!(Roots::load(&table).unwrap().known(), [node(0, 2), node(1, 64)]);
    }
}
