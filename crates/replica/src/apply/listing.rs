//! Directory listings of the mirror. A page names entries; each comes to lead to its node: a known one is linked (a directory is moved),
//! an unknown one becomes an empty placeholder of the right kind, which its `MirrorNode` and `MirrorData` fill later.
//!
//! Between the first and the last page, names that operations add count as listed. At the last page, names that nobody listed go to
//! limbo. A whole listing is true at its barrier, so that this holds in a resync and for a single wanted directory alike. A last page whose first page was lost to a crash cannot tell, so that the directory is wanted again.

use super::create::Shape;
use super::fds::Fd;
use super::table::fact;
use super::{Applier, Done, LIMBO_NAME};
use rustix::fs::{Dir, Mode};
use rustix::io::Errno;
use standin_model::{DirectoryEntry, Name, NodeId, NodeKind};
use std::collections::HashSet;

impl Applier {
    pub(super) fn mirror_directory(&mut self, node: NodeId, entries: &[DirectoryEntry], first: bool, last: bool) -> Done {
        let Some(directory) = self.need_directory(node)? else { return Ok(()) };
        if first {
            self.listings.insert(node, HashSet::new());
        }
        for entry in entries {
            self.entry(node, entry)?;
        }
        if !last {
            return Ok(());
        }
        let Some(listed) = self.listings.remove(&node) else {
            // A page of its own, neither first nor last, is how the agent shows single names; a lone last page is a cut listing.
            self.missing_listing(node);
            return Ok(());
        };
        self.remove_unlisted(node, &directory, &listed)?;
        self.unplaced.retain(|(_, parent)| *parent != node);
        self.listed(node);
        Ok(())
    }

    fn missing_listing(&mut self, node: NodeId) {
        if self.redoing() {
            self.suspects.insert(node);
        } else {
            self.want(node);
        }
    }

    fn entry(&mut self, parent: NodeId, entry: &DirectoryEntry) -> Done {
        if self.is_reserved(parent, &entry.name) {
            return Ok(());
        }
        self.drop_if_of_another_kind(entry);
        let known = self.table.get(entry.node).is_some();
        let existed = known && self.alive(entry.node)?.is_some();
        let shape = Shape { kind: entry.kind, device: entry.device, target: &entry.target };
        let fd = self.named(parent, &entry.name, entry.node, shape)?;
        if let Some(listed) = self.listings.get_mut(&parent) {
            listed.insert(entry.name.clone());
        }
        if fd.is_some() && !existed {
            self.table.set_fact(entry.node, fact::HOLLOW, true);
            if known {
                // Its content was here once; the agent may believe that it still is.
                self.doubt(entry.node);
            }
        }
        Ok(())
    }

    /// One id cannot change its kind; if the table says otherwise, the table is wrong about the node.
    fn drop_if_of_another_kind(&mut self, entry: &DirectoryEntry) {
        if self.kind(entry.node).is_some_and(|kind| kind != entry.kind) {
            self.counters.conflicts += 1;
            self.open.remove(entry.node);
            self.table.remove(entry.node);
        }
    }

    fn remove_unlisted(&mut self, node: NodeId, directory: &Fd, listed: &HashSet<Name>) -> Done {
        let is_root = self.volumes.root_of(node.volume) == Some(node);
        let names = unlisted(directory, listed);
        let Some(names) = self.settle(node, "reading a directory", names)? else { return Ok(()) };
        for name in names.iter().filter(|name| !(is_root && name.as_slice() == LIMBO_NAME)) {
            if let Some(found) = self.lookup(node, directory, name)? {
                self.to_limbo(node, directory, name, &found)?;
            }
        }
        Ok(())
    }
}

/// Names in a directory that are not in the set.
fn unlisted(directory: &Fd, listed: &HashSet<Name>) -> Result<Vec<Vec<u8>>, Errno> {
    // A descriptor of its own, because reading moves the position and `directory` is shared.
    let own = rustix::fs::openat(directory, ".", super::volume::open_flags(NodeKind::Directory), Mode::empty())?;
    let mut names = Vec::new();
    let mut scan = Dir::new(own)?;
    while let Some(entry) = scan.read() {
        let bytes = entry?.file_name().to_bytes().to_vec();
        // Dot names are no names to the model, and stay.
        if Name::new(bytes.clone()).is_ok_and(|name| !listed.contains(&name)) {
            names.push(bytes);
        }
    }
    Ok(names)
}
