//! What the job leaves out: all that is in one directory, files with the names of temporary ones, and what is at one path, whatever is moved there.
//!
//! Nodes have names on either side of the border and on both, and go over it by link, by rename, and with the directories that hold them.

use super::Source;
use crate::random::Random;
use standin_model::*;

/// Of the directory whose contents are excluded.
const SECLUDED: &[u8] = b"secluded";
/// The path whose contents are excluded, below a volume's root.
const RULED: [&[u8]; 2] = [b"n3", b"n5"];

impl Source {
    /// Begins to exclude; returns the rules.
    pub fn exclude(&mut self, random: &mut Random) -> Vec<String> {
        let Some(root) = random.pick(&self.roots) else { return vec![] };
        let attributes = Attributes { mode: 0o700, owner: 0, group: 0, modified: self.clock };
        let node = self.new_node(root.volume, NodeKind::Directory, attributes);
        self.put(root, SECLUDED, node);
        self.secluded = Some(node);
        let mount_point = if root.volume.0 == 0 { String::new() } else { format!("/v{}", root.volume.0) };
        vec![format!("{mount_point}/secluded"), format!("{mount_point}/n3/n5"), "/**/t?".to_owned()]
    }

    /// A name that only files bear.
    pub(super) fn is_temporary(&self, name: &[u8]) -> bool {
        self.excludes() && name.starts_with(b"t")
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

    /// The directory at the upper part of the path, and what is at the whole of it.
    fn ruled(&self) -> Option<(NodeId, NodeId)> {
        let volume = self.secluded?.volume;
        let root = self.roots.iter().copied().find(|root| root.volume == volume)?;
        let [upper, lower] = RULED;
        let above = self.lookup(root, upper)?;
        Some((above, self.lookup(above, lower)?))
    }

    /// Whether a name, with all that is below it, is left out. A directory at the path stays, and what is in it is left out.
    pub(super) fn leaves_out(&self, directory: NodeId, name: &[u8]) -> bool {
        if !self.excludes() {
            return false;
        }
        let is_file = |node: NodeId| self.nodes()[&node].directory.is_none();
        let ruled = self.ruled().is_some_and(|(above, at)| directory == at || directory == above && name == RULED[1] && is_file(at));
        ruled || Some(directory) == self.secluded || self.is_temporary(name)
    }
}
