//! The node table: which inode of the replica stands for which node of the source. All of it is in memory; what changed since the last
//! durable mark is written by [`NodeTable::commit`] in one transaction together with the applied position.
//!
//! Invariant: the table on disk is the table as it was after item `applied`, and the replica's file systems hold at least all of that
//! (they are synced first). After a crash nothing newer than the mark is known, and redo finds out.

use super::error::ApplyError;
use super::handle::Handle;
use super::record::{self, Meta};
use super::unsettled::Unsettled;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use standin_model::{NodeId, NodeKind, OpSeq, Timestamp, VolumeId};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

const NODES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("nodes");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// Node → number of its last change; see `unsettled`.
const UNSETTLED: TableDefinition<&[u8], u64> = TableDefinition::new("unsettled");

/// Facts about a node that matter when it cannot be found, or when it is written to.
pub mod fact {
    /// The stream has taken a name away and given none since: if the inode is gone, that is as it should be.
    pub const UNLINKED: u8 = 1;
    /// A placeholder from a listing whose attributes and content have not come yet.
    pub const HOLLOW: u8 = 2;
    /// Made without a name; it lives in limbo until it is linked or forgotten.
    pub const UNNAMED: u8 = 4;
    /// Has `security.capability`, which the kernel drops whenever the file is written or its owner set.
    pub const CAPABLE: u8 = 8;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub handle: Handle,
    pub kind: NodeKind,
    pub facts: u8,
    /// Flags of the source that are set on the replica only by `finish`: immutable, append-only, and that a directory gives its project on.
    pub guard: u32,
    /// What the source says, whatever our own writes did to it since.
    pub modified: Option<Timestamp>,
}

impl Entry {
    pub fn has(&self, fact: u8) -> bool {
        self.facts & fact != 0
    }
}

/// The last mark; `None` in a table that has none yet.
pub fn read_mark(database: &impl ReadableDatabase, path: &Path) -> Result<Option<Meta>, ApplyError> {
    let failed = |source: redb::Error| ApplyError::Table { path: path.to_owned(), source: Box::new(source) };
    let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
    let table = match transaction.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table.map_err(|e| failed(e.into()))?,
    };
    let mark = table.get("mark").map_err(|e| failed(e.into()))?.ok_or(ApplyError::TableCorrupt { field: "mark" })?;
    Meta::decode(mark.value()).map(Some)
}

pub struct NodeTable {
    path: PathBuf,
    database: Database,
    entries: HashMap<NodeId, Entry>,
    /// Where the stream put each directory; the file system may be ahead of it during redo.
    parents: HashMap<NodeId, NodeId>,
    dirty: HashSet<NodeId>,
    hollow: u64,
    /// Only while a verification asks for it.
    index: Option<Index>,
}

/// The table's other ways in.
#[derive(Default)]
struct Index {
    nodes: HashMap<(VolumeId, Handle), NodeId>,
    /// The generation of an inode number; of several, one that has a name.
    generations: HashMap<(VolumeId, u64, u64), u32>,
}

impl Index {
    fn insert(&mut self, node: NodeId, entry: &Entry) {
        self.nodes.insert((node.volume, entry.handle), node);
        let place = self.generations.entry((node.volume, node.subvolume, node.inode));
        if entry.has(fact::UNLINKED) {
            place.or_insert(node.generation);
        } else {
            place.insert_entry(node.generation);
        }
    }

    fn remove(&mut self, node: NodeId, entry: &Entry) {
        if self.nodes.get(&(node.volume, entry.handle)) == Some(&node) {
            self.nodes.remove(&(node.volume, entry.handle));
        }
        let key = (node.volume, node.subvolume, node.inode);
        if self.generations.get(&key) == Some(&node.generation) {
            self.generations.remove(&key);
        }
    }
}

impl NodeTable {
    pub fn open(path: &Path) -> Result<(NodeTable, Meta, Unsettled), ApplyError> {
        let failed = |source: redb::Error| ApplyError::Table { path: path.to_owned(), source: Box::new(source) };
        let database = Database::create(path).map_err(|e| failed(e.into()))?;
        let mut table = NodeTable {
            path: path.to_owned(),
            database,
            entries: HashMap::new(),
            parents: HashMap::new(),
            dirty: HashSet::new(),
            hollow: 0,
            index: None,
        };
        let meta = table.load()?;
        let unsettled = Unsettled::load(table.load_unsettled()?, meta.unsettled_overflow);
        Ok((table, meta, unsettled))
    }

    fn failed(&self, source: impl Into<redb::Error>) -> ApplyError {
        ApplyError::Table { path: self.path.clone(), source: Box::new(source.into()) }
    }

    fn load(&mut self) -> Result<Meta, ApplyError> {
        let Some(meta) = read_mark(&self.database, &self.path)? else { return Ok(Meta::default()) };
        let transaction = self.database.begin_read().map_err(|e| self.failed(e))?;
        let nodes = transaction.open_table(NODES).map_err(|e| self.failed(e))?;
        for row in nodes.iter().map_err(|e| self.failed(e))? {
            let (key, value) = row.map_err(|e| self.failed(e))?;
            let node = record::decode_node(key.value()).ok_or(ApplyError::TableCorrupt { field: "node id" })?;
            let (entry, parent) = record::decode_entry(value.value()).ok_or(ApplyError::TableCorrupt { field: "entry" })?;
            self.hollow += u64::from(entry.has(fact::HOLLOW));
            self.entries.insert(node, entry);
            if let Some(parent) = parent {
                self.parents.insert(node, parent);
            }
        }
        Ok(meta)
    }

    fn load_unsettled(&self) -> Result<HashMap<NodeId, OpSeq>, ApplyError> {
        let transaction = self.database.begin_read().map_err(|e| self.failed(e))?;
        let rows = match transaction.open_table(UNSETTLED) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(HashMap::new()),
            Err(error) => return Err(self.failed(error)),
            Ok(rows) => rows,
        };
        let mut nodes = HashMap::new();
        for row in rows.iter().map_err(|e| self.failed(e))? {
            let (key, seq) = row.map_err(|e| self.failed(e))?;
            let node = record::decode_node(key.value()).ok_or(ApplyError::TableCorrupt { field: "node id" })?;
            nodes.insert(node, OpSeq(seq.value()));
        }
        Ok(nodes)
    }

    /// Writes what changed, and the mark. The caller has synced the volumes before.
    pub fn commit(&mut self, meta: &Meta, unsettled: &Unsettled) -> Result<(), ApplyError> {
        let transaction = self.database.begin_write().map_err(|e| self.failed(e))?;
        {
            let mut nodes = transaction.open_table(NODES).map_err(|e| self.failed(e))?;
            for node in &self.dirty {
                let key = record::encode_node(*node);
                match self.entries.get(node) {
                    Some(entry) => {
                        let value = record::encode_entry(entry, self.parents.get(node).copied());
                        nodes.insert(key.as_slice(), value.as_slice()).map_err(|e| self.failed(e))?;
                    }
                    None => drop(nodes.remove(key.as_slice()).map_err(|e| self.failed(e))?),
                }
            }
            let mut rows = transaction.open_table(UNSETTLED).map_err(|e| self.failed(e))?;
            for (node, seq) in unsettled.changes() {
                let key = record::encode_node(node);
                match seq {
                    Some(seq) => drop(rows.insert(key.as_slice(), seq.0).map_err(|e| self.failed(e))?),
                    None => drop(rows.remove(key.as_slice()).map_err(|e| self.failed(e))?),
                }
            }
            let mut mark = transaction.open_table(META).map_err(|e| self.failed(e))?;
            mark.insert("mark", meta.encode().as_slice()).map_err(|e| self.failed(e))?;
        }
        transaction.commit().map_err(|e| self.failed(e))?;
        self.dirty.clear();
        Ok(())
    }

    pub fn get(&self, node: NodeId) -> Option<&Entry> {
        self.entries.get(&node)
    }

    pub fn insert(&mut self, node: NodeId, entry: Entry) {
        self.hollow += u64::from(entry.has(fact::HOLLOW));
        let old = self.entries.insert(node, entry);
        if let Some(old) = &old {
            self.hollow -= u64::from(old.has(fact::HOLLOW));
        }
        if let Some(index) = &mut self.index {
            if let Some(old) = &old {
                index.remove(node, old);
            }
            index.insert(node, &entry);
        }
        self.dirty.insert(node);
    }

    /// Changes an entry that exists; does nothing for an unknown node.
    pub fn update(&mut self, node: NodeId, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(&node) else { return };
        let before = *entry;
        change(entry);
        if *entry != before {
            self.hollow -= u64::from(before.has(fact::HOLLOW));
            self.hollow += u64::from(entry.has(fact::HOLLOW));
            self.dirty.insert(node);
        }
    }

    pub fn set_fact(&mut self, node: NodeId, fact: u8, on: bool) {
        self.update(node, |entry| if on { entry.facts |= fact } else { entry.facts &= !fact });
    }

    pub fn remove(&mut self, node: NodeId) {
        if let Some(old) = self.entries.remove(&node) {
            self.hollow -= u64::from(old.has(fact::HOLLOW));
            self.parents.remove(&node);
            if let Some(index) = &mut self.index {
                index.remove(node, &old);
            }
            self.dirty.insert(node);
        }
    }

    pub fn parent(&self, directory: NodeId) -> Option<NodeId> {
        self.parents.get(&directory).copied()
    }

    pub fn set_parent(&mut self, directory: NodeId, parent: NodeId) {
        if self.parents.insert(directory, parent) != Some(parent) {
            self.dirty.insert(directory);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Entry)> {
        self.entries.iter().map(|(node, entry)| (*node, entry))
    }

    fn index(&mut self) -> &Index {
        let entries = &self.entries;
        self.index.get_or_insert_with(|| {
            let mut index = Index::default();
            entries.iter().for_each(|(node, entry)| index.insert(*node, entry));
            index
        })
    }

    /// The node that an inode of the replica stands for.
    pub fn node_of(&mut self, volume: VolumeId, handle: &Handle) -> Option<NodeId> {
        self.index().nodes.get(&(volume, *handle)).copied()
    }

    /// The node of the source with this inode number.
    pub fn find(&mut self, volume: VolumeId, subvolume: u64, inode: u64) -> Option<NodeId> {
        let generation = *self.index().generations.get(&(volume, subvolume, inode))?;
        Some(NodeId { volume, subvolume, inode, generation })
    }

    /// Gives the memory back: about 100 bytes a node.
    pub fn drop_index(&mut self) {
        self.index = None;
    }

    pub fn hollow_count(&self) -> u64 {
        self.hollow
    }

    pub fn has_changes(&self) -> bool {
        !self.dirty.is_empty()
    }
}
