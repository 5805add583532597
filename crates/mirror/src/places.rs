//! Where directories hang, so that exclusion rules can be asked for paths.

use crate::walk::Mirror;
use crate::{ReadError, SourceReader};
use standin_model::{Name, NodeId};

/// A directory's name in its parent; a root has its mount point instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub parent: Option<NodeId>,
    pub path_part: Vec<u8>,
}

/// No path is deeper than its 4096 bytes allow; the bound also ends a cycle that a race could make.
pub(crate) const PATH_DEPTH_MAX: usize = 4096;

impl Mirror {
    /// No rule holds where the path is not known: a directory that moved before the walk met it, or that somebody asked for, is looked up.
    pub(crate) fn find_place(&mut self, node: NodeId, reader: &mut impl SourceReader) -> Result<(), ReadError> {
        let mut at = node;
        for _ in 0..PATH_DEPTH_MAX {
            if self.exclusions.is_empty() || self.path_of(at).is_some() {
                break;
            }
            let Some((parent, name)) = reader.parent(at)? else { break };
            self.put(at, parent, &name);
            at = parent;
        }
        Ok(())
    }

    /// Notes where a directory hangs. True if it hung elsewhere, and the rules say otherwise below it now.
    pub(crate) fn put(&mut self, directory: NodeId, parent: NodeId, name: &Name) -> bool {
        let place = Place { parent: Some(parent), path_part: name.as_bytes().to_vec() };
        let before = if self.exclusions.is_empty() { None } else { self.places.get(&directory) };
        let moved = before.is_some_and(|before| *before != place);
        let known = moved && !self.is_in_doubt(directory);
        let old = if known { self.path_of(directory) } else { None };
        self.places.insert(directory, place);
        match (old, self.path_of(directory)) {
            // A listing of its parent at its new place may have missed it, because it got this name meanwhile.
            (Some(old), Some(new)) => {
                !self.exclusions.agree(&old, &new) || self.hollow.contains(&directory) && !self.exclusions.matches(&new)
            }
            _ => moved,
        }
    }

    /// Whether what is taken for excluded here may be so by an older path, of the directory or of one above it.
    fn is_in_doubt(&self, directory: NodeId) -> bool {
        if self.places.get(&directory).and_then(|place| place.parent).is_some_and(|parent| self.hides_below(parent)) {
            return true;
        }
        let above = |node: &NodeId| self.places.get(node).and_then(|place| place.parent);
        let mut chain = std::iter::successors(Some(directory), above).take(PATH_DEPTH_MAX);
        !self.reconsidered.is_empty() && chain.any(|node| self.reconsidered.contains(&node))
    }

    /// Absolute path of a directory as far as it is known.
    pub(crate) fn path_of(&self, node: NodeId) -> Option<Vec<u8>> {
        let mut parts = Vec::new();
        let mut at = node;
        for _ in 0..PATH_DEPTH_MAX {
            let place = self.places.get(&at)?;
            parts.push(&place.path_part);
            match place.parent {
                Some(parent) => at = parent,
                None => return Some(assemble(&parts)),
            }
        }
        None
    }
}

fn assemble(parts: &[&Vec<u8>]) -> Vec<u8> {
    let mut path = parts.last().map(|root| root.to_vec()).unwrap_or_default();
    for part in parts.iter().rev().skip(1) {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    path
}

pub(crate) fn join(path: &[u8], name: &Name) -> Vec<u8> {
    [path, b"/", name.as_bytes()].concat()
}
