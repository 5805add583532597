//! Tails a journal read-only from another process, up to what the writer says is durable.
//!
//! Invariants: segments come in order, each once, none beyond `durable`. The reader takes no lock and changes nothing. It never looks at
//! bytes that are not yet durable, so it cannot meet a torn record: whatever it finds wrong is damage, and is reported with the place and
//! the item. After an error the reader stays where it was, and the call may be repeated.

use crate::Result;
use crate::error::{DamageError, JournalError};
use crate::log::record::{At, FILE_HEADER_LEN, MARK_LEN, read_head, read_record};
use crate::log::{list, open_file};
use crate::segment::Segment;
use standin_model::OpSeq;
use std::fs::File;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct JournalReader {
    dir: PathBuf,
    /// First item that the caller has not got.
    next: OpSeq,
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    file: File,
    path: PathBuf,
    base: OpSeq,
    salt: u64,
    offset: u64,
    /// Item that begins at `offset`.
    expected: OpSeq,
}

impl JournalReader {
    /// `from` is the first item wanted; 0 and 1 both mean the beginning. Nothing is read until [`JournalReader::next`].
    pub fn open(dir: impl AsRef<Path>, from: OpSeq) -> Result<JournalReader> {
        Ok(JournalReader { dir: dir.as_ref().to_owned(), next: from.max(OpSeq(1)), place: None })
    }

    /// First item of the segment that comes next.
    pub fn position(&self) -> OpSeq {
        self.next
    }

    /// The next segment whose items are all `≤ durable`, or `None` when there is none yet. The first one may begin before `from`, where
    /// `from` lies inside a segment.
    pub fn next(&mut self, durable: OpSeq) -> Result<Option<Segment>> {
        while self.next <= durable {
            let Some(place) = &mut self.place else {
                self.place = Some(Place::find(&self.dir, self.next)?);
                continue;
            };
            match place.step(self.next, durable)? {
                Step::Segment(segment) => {
                    self.next = segment.last_seq().next();
                    return Ok(Some(segment));
                }
                Step::Skipped => {}
                Step::BeyondDurable => return Ok(None),
                Step::EndOfFile => self.place = Some(place.follow(&self.dir, durable)?),
            }
        }
        Ok(None)
    }
}

enum Step {
    Segment(Segment),
    Skipped,
    BeyondDurable,
    EndOfFile,
}

impl Place {
    /// Beginning of the file that holds `wanted`.
    fn find(dir: &Path, wanted: OpSeq) -> Result<Place> {
        let files = list(dir)?;
        let oldest = files.first().map(|file| file.header.base.next());
        match files.into_iter().rev().find(|file| file.header.base < wanted) {
            Some(file) => Place::begin(file.path, file.header.base, file.header.salt),
            None => match oldest {
                Some(oldest) => Err(JournalError::Discarded { wanted, oldest }),
                None => Err(missing(dir, 0, wanted, wanted)),
            },
        }
    }

    fn begin(path: PathBuf, base: OpSeq, salt: u64) -> Result<Place> {
        let file = open_file(&path, false)?;
        Ok(Place { file, path, base, salt, offset: FILE_HEADER_LEN, expected: base.next() })
    }

    fn step(&mut self, wanted: OpSeq, durable: OpSeq) -> Result<Step> {
        let read = read_head(&self.file, self.offset, self.salt);
        let (mark, header) = match self.found(read)? {
            Some(found) => found,
            None => return Ok(Step::EndOfFile),
        };
        let (first, last) = (header.first_seq, header.last_seq);
        if first != self.expected {
            return Err(self.damaged(DamageError::WrongItems { expected: self.expected, first, last }));
        }
        if last > durable {
            return Ok(Step::BeyondDurable);
        }
        let segment = if last < wanted {
            None
        } else {
            let read = read_record(&self.file, self.offset, self.salt);
            self.found(read)?.map(|(_, segment)| segment)
        };
        self.offset = self.offset.saturating_add(MARK_LEN).saturating_add(mark.len.into());
        self.expected = last.next();
        Ok(segment.map_or(Step::Skipped, Step::Segment))
    }

    fn found<T>(&self, read: std::io::Result<At<T>>) -> Result<Option<T>> {
        match read {
            Ok(At::Found(found)) => Ok(Some(found)),
            Ok(At::End) => Ok(None),
            Ok(At::Damaged(damage)) => Err(self.damaged(damage)),
            Err(error) => Err(JournalError::io("read", &self.path, error)),
        }
    }

    /// The file behind this one. It must exist: there are durable items that this file does not hold.
    fn follow(&self, dir: &Path, durable: OpSeq) -> Result<Place> {
        let next = list(dir)?.into_iter().find(|file| file.header.base > self.base);
        match next {
            Some(file) if file.header.previous == Some(self.base) && file.header.base.next() == self.expected => {
                Place::begin(file.path, file.header.base, file.header.salt)
            }
            Some(file) if file.header.previous == Some(self.base) => {
                let before = file.header.base;
                Err(self.damaged(DamageError::MissingFile { after: OpSeq(self.expected.0 - 1), before }))
            }
            Some(file) => Err(JournalError::Discarded { wanted: self.expected, oldest: file.header.base.next() }),
            None => Err(missing(&self.path, self.offset, self.expected, durable)),
        }
    }

    fn damaged(&self, source: DamageError) -> JournalError {
        JournalError::Corrupt { path: self.path.clone(), offset: self.offset, expected: self.expected, source }
    }
}

fn missing(path: &Path, offset: u64, expected: OpSeq, durable: OpSeq) -> JournalError {
    let source = DamageError::MissingItems { durable };
    JournalError::Corrupt { path: path.to_owned(), offset, expected, source }
}

#[cfg(test)]
mod tests;
