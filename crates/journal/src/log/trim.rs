//! What shortens a journal or begins it anew: discarding what is applied, restarting elsewhere, and opening again after a failure.
//!
//! Only whole closed files are removed, oldest first, so a crash in between leaves a shorter chain. The newest file stays, because it
//! knows where the order goes on.

use super::record::{FileHeader, new_salt};
use super::{Journal, create_file};
use crate::Result;
use crate::error::JournalError;
use standin_model::OpSeq;
use std::fs;
use std::io;

impl Journal {
    /// Removes the files that hold nothing beyond `through`. The newest file always stays, because it knows where the order goes on.
    pub fn discard_through(&mut self, through: OpSeq) -> Result<()> {
        let through = through.min(self.durable);
        while let Some(file) = self.closed.front() {
            let end = self.closed.get(1).map_or(self.active.header.base, |next| next.base);
            if end > through {
                break;
            }
            match fs::remove_file(&file.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(JournalError::io("remove", &file.path, error)),
                _ => self.closed_bytes = self.closed_bytes.saturating_sub(file.len),
            }
            self.closed.pop_front();
        }
        Ok(())
    }

    /// Finds the true end again after an error that left it unknown. The lock is kept throughout; if this fails, the journal refuses
    /// everything as before, and the call may be repeated.
    pub fn reopen(&mut self) -> Result<()> {
        self.poisoned = true;
        let epoch_min = self.epoch_min;
        *self = Self::open_locked(&self.dir, self.options, self.volatile, self.lock.clone())?;
        self.epoch_min = epoch_min;
        Ok(())
    }

    /// Throws everything away and goes on behind `last`: for a journal whose content no longer matters.
    pub fn restart_after(&mut self, last: OpSeq, epoch: u64) -> Result<()> {
        // Newest last: a crash in between leaves a shorter chain, or an empty directory, which is simply a new journal.
        for path in self.closed.iter().map(|f| &f.path).chain([&self.active.path]) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.poisoned = true;
                    return Err(JournalError::io("remove", path, error));
                }
                _ => {}
            }
        }
        self.poisoned = true;
        self.active = create_file(&self.dir, FileHeader { base: last, previous: None, epoch, salt: new_salt() }, self.volatile)?;
        self.closed.clear();
        self.closed_bytes = 0;
        (self.last, self.durable) = (last, last);
        (self.epoch, self.durable_epoch) = (epoch, epoch);
        self.poisoned = false;
        Ok(())
    }
}
