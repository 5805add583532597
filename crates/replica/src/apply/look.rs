//! Looks at a node table without a worker: what its last durable mark says. Nothing of the file is changed, not even where its worker died and left it
//! to be repaired: the repair happens in memory.

use super::error::ApplyError;
use super::record::Meta;
use super::state::ReplicaState;
use super::table::read_mark;
use redb::{Builder, Database, DatabaseError, ReadOnlyDatabase, StorageBackend};
use standin_model::OpSeq;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

/// The last durable mark of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub applied: OpSeq,
    pub state: ReplicaState,
}

/// Reads the mark. A table that a worker has open is refused: it is ahead of its file.
pub fn last_mark(path: &Path) -> Result<Mark, ApplyError> {
    let failed = |source: redb::Error| ApplyError::Table { path: path.to_owned(), source: Box::new(source) };
    let meta = match ReadOnlyDatabase::open(path) {
        Ok(database) => read_mark(&database, path)?,
        Err(DatabaseError::RepairAborted) => {
            let overlay = Overlay::open(path).map_err(|error| failed(redb::Error::Io(error)))?;
            let database: Database = Builder::new().create_with_backend(overlay).map_err(|error| failed(error.into()))?;
            read_mark(&database, path)?
        }
        Err(error) => return Err(failed(error.into())),
    };
    let Meta { applied, state, .. } = meta.unwrap_or_default();
    Ok(Mark { applied, state })
}

const BLOCK: u64 = 4096;

/// A file as it is, with what was written to it since in memory.
#[derive(Debug)]
struct Overlay {
    file: File,
    changed: Mutex<Changed>,
}

#[derive(Debug, Default)]
struct Changed {
    len: u64,
    blocks: HashMap<u64, Box<[u8; BLOCK as usize]>>,
}

impl Overlay {
    fn open(path: &Path) -> io::Result<Overlay> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Overlay { file, changed: Mutex::new(Changed { len, ..Changed::default() }) })
    }

    fn changed(&self) -> MutexGuard<'_, Changed> {
        // Every change is one insertion, so what a panic left behind is whole.
        self.changed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A block of the file; zeroes behind its end.
    fn stored(&self, block: u64) -> io::Result<Box<[u8; BLOCK as usize]>> {
        let mut bytes = Box::new([0; BLOCK as usize]);
        let mut have = 0;
        while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, (block * BLOCK).saturating_add(have as u64))? {
                0 => break,
                count => have += count,
            }
        }
        Ok(bytes)
    }

    /// Calls `each` for every piece of a range that lies in one block: the block, and where in it.
    fn pieces(offset: u64, len: usize, mut each: impl FnMut(u64, usize, std::ops::Range<usize>) -> io::Result<()>) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset.checked_add(done as u64).ok_or(io::ErrorKind::InvalidInput)?;
            let inside = (at % BLOCK) as usize;
            let count = (BLOCK as usize - inside).min(len - done);
            each(at / BLOCK, inside, done..done + count)?;
            done += count;
        }
        Ok(())
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changed().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changed = self.changed();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > changed.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::pieces(offset, out.len(), |block, inside, range| {
            let to = out.get_mut(range).ok_or(io::ErrorKind::InvalidInput)?;
            let len = to.len();
            match changed.blocks.get(&block) {
                Some(bytes) => to.copy_from_slice(&bytes[inside..inside + len]),
                None => to.copy_from_slice(&self.stored(block)?[inside..inside + len]),
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changed = self.changed();
        if len < changed.len {
            // What lies behind the new end must read as zero if the file grows again.
            changed.blocks.retain(|block, _| block * BLOCK < len);
        }
        changed.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changed = self.changed();
        Self::pieces(offset, data.len(), |block, inside, range| {
            let from = data.get(range).ok_or(io::ErrorKind::InvalidInput)?;
            let bytes = match changed.blocks.entry(block) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(place) => place.insert(self.stored(block)?),
            };
            bytes[inside..inside + from.len()].copy_from_slice(from);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::NodeTable;
    use super::*;

    fn table(path: &Path, applied: u64) -> NodeTable {
        let (mut table, mut meta, unsettled) = NodeTable::open(path).unwrap();
        (meta.version, meta.applied) = (super::super::record::FORMAT_VERSION, OpSeq(applied));
        table.commit(&meta, &unsettled).unwrap();
        table
    }

    #[test]
    fn the_mark_of_a_closed_table_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.redb");
        drop(table(&path, 7));
        assert_eq!(last_mark(&path).unwrap(), Mark { applied: OpSeq(7), state: ReplicaState::default() });
    }

    #[test]
    fn a_table_whose_worker_died_is_read_and_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy) = (folder.path().join("nodes.redb"), folder.path().join("copy"));
        let open = table(&path, 9);
        std::fs::copy(&path, &copy).unwrap();
        assert!(last_mark(&path).is_err(), "its worker has it open");
        drop(open);
        let before = std::fs::read(&copy).unwrap();
        assert_eq!(last_mark(&copy).unwrap().applied, OpSeq(9));
        assert_eq!(std::fs::read(&copy).unwrap(), before);
    }

    #[test]
    fn what_is_no_table_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes.redb");
        assert!(last_mark(&path).is_err());
        std::fs::write(&path, vec![0x5a; 100_000]).unwrap();
        assert!(last_mark(&path).is_err());
    }
}
