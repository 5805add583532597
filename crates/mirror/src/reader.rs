//! The seam to the source's file systems: list, look, read, all by node id.
//!
//! Every call answers for the moment at which it runs; `Ok(None)` means that the node is gone, which is no failure: the operation that
//! removed it is in the stream.

use standin_model::{Attributes, ByteLen, DirectoryEntry, Name, NodeId, NodeKind, Timestamp};
use thiserror::Error;

#[derive(Debug, Error)]
#[error("cannot {action} {node}: {cause}")]
pub struct ReadError {
    pub action: &'static str,
    pub node: NodeId,
    /// The system's own words.
    pub cause: String,
}

/// A directory entry with the time of the node's last change (ctime), by which a resync decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEntry {
    pub entry: DirectoryEntry,
    pub changed: Timestamp,
    /// How many names the node has, of which this is one.
    pub links: u64,
    /// What its content takes on the disk.
    pub allocated: ByteLen,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    pub kind: NodeKind,
    /// Whether the node has a name at all; a file that is only open has none.
    pub named: bool,
    /// How many names it has.
    pub links: u64,
    pub attributes: Attributes,
    pub accessed: Timestamp,
    pub changed: Timestamp,
    pub flags: u32,
    pub project: u32,
    pub size: ByteLen,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    Data {
        offset: u64,
        data: Vec<u8>,
    },
    Hole {
        offset: u64,
        len: u64,
    },
    /// Reads as zeros like a hole, but its blocks are reserved for the file.
    Allocated {
        offset: u64,
        len: u64,
    },
}

/// Content from one read: `next` is where the next read starts; `end` says that the file ended there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub chunks: Vec<Chunk>,
    pub next: u64,
    pub end: bool,
}

pub trait SourceReader {
    /// All entries but the dot names, in any order.
    fn list(&mut self, directory: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError>;
    /// Where a directory hangs, and by which name; nothing for a volume's root, or for one that is gone. Asked only where rules exclude something.
    fn parent(&mut self, _directory: NodeId) -> Result<Option<(NodeId, Name)>, ReadError> {
        Ok(None)
    }
    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError>;
    /// Reads at most about `budget` bytes of data from `offset`; holes cost no budget.
    fn read(&mut self, node: NodeId, offset: u64, budget: usize) -> Result<Option<Content>, ReadError>;
}
