//! Looks at journals as they are, broken or not: what `standin-appliance debug journal dump` and `verify` print.
//!
//! Read-only, takes no lock, repairs nothing, and goes on behind damage by searching for the next whole record. Findings are as seen
//! by this process at this moment; a running writer may be ahead of them.

use crate::error::{DamageError, JournalError};
use crate::log::record::{At, FILE_HEADER_LEN, MARK_LEN, base_of_name, read_record, record_len, scan_marks};
use crate::log::{open_file, proves_durable, read_header};
use crate::segment::SegmentHeader;
use crate::{Result, SegmentError};
use standin_model::{Item, OpSeq};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// One thing seen while walking a journal.
#[derive(Debug)]
pub enum Finding {
    File {
        path: PathBuf,
        base: OpSeq,
        epoch: u64,
        bytes: u64,
    },
    /// A whole record. `items` is an error where the checksums are right but the body does not open.
    Segment {
        path: PathBuf,
        offset: u64,
        header: SegmentHeader,
        durable_before: OpSeq,
        items: std::result::Result<Vec<Item>, SegmentError>,
    },
    Problem(Problem),
}

#[derive(Debug)]
pub struct Problem {
    pub path: PathBuf,
    pub offset: u64,
    /// Item that was expected there.
    pub expected: OpSeq,
    /// Bytes until the next whole record, or the end.
    pub skipped_bytes: u64,
    /// Whether this is what a crash leaves behind; opening the journal cuts it off without loss of anything acknowledged.
    pub is_torn_tail: bool,
    pub cause: ProblemCause,
}

#[derive(Debug, thiserror::Error)]
pub enum ProblemCause {
    #[error(transparent)]
    Damage(#[from] DamageError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("segment does not open")]
    Content(#[source] SegmentError),
}

#[derive(Debug, Default)]
pub struct Summary {
    pub files: u64,
    pub segments: u64,
    pub items: u64,
    pub bytes: u64,
    pub first: Option<OpSeq>,
    pub last: Option<OpSeq>,
    pub problems: Vec<Problem>,
}

impl Summary {
    /// No problem but what a crash leaves behind.
    pub fn is_sound(&self) -> bool {
        self.problems.iter().all(|problem| problem.is_torn_tail)
    }
}

/// Problems listed in a summary; a journal that is broken everywhere is told so without filling memory.
const PROBLEMS_MAX: usize = 1000;

/// Reads everything and opens every segment.
pub fn verify(dir: impl AsRef<Path>) -> Result<Summary> {
    let mut summary = Summary::default();
    dump(dir, |finding| summary.note(finding))?;
    Ok(summary)
}

impl Summary {
    fn note(&mut self, finding: Finding) {
        match finding {
            Finding::File { bytes, .. } => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(bytes);
            }
            Finding::Segment { path, offset, header, items, .. } => {
                self.segments += 1;
                self.items = self.items.saturating_add(header.item_count());
                self.first = self.first.or(Some(header.first_seq));
                self.last = Some(header.last_seq);
                if let Err(error) = items {
                    let cause = ProblemCause::Content(error);
                    self.add(Problem { path, offset, expected: header.first_seq, skipped_bytes: 0, is_torn_tail: false, cause });
                }
            }
            Finding::Problem(problem) => self.add(problem),
        }
    }

    fn add(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}

/// Walks every file of the journal, oldest first, and reports what is there. Fails only when the directory cannot be listed.
pub fn dump(dir: impl AsRef<Path>, mut report: impl FnMut(Finding)) -> Result<()> {
    let dir = dir.as_ref();
    let paths = paths(dir)?;
    let newest = paths.len().saturating_sub(1);
    let mut expected = None;
    for (index, (base, path)) in paths.into_iter().enumerate() {
        if let Some(last) = expected.filter(|last| *last != base) {
            let cause = DamageError::MissingFile { after: last, before: base }.into();
            let next = OpSeq(last.0.saturating_add(1));
            report(Finding::Problem(Problem {
                path: path.clone(),
                offset: 0,
                expected: next,
                skipped_bytes: 0,
                is_torn_tail: false,
                cause,
            }));
        }
        expected = match dump_file(&path, index == newest, &mut report) {
            Ok(last) => Some(last),
            Err(error) => {
                let expected = OpSeq(base.0.saturating_add(1));
                report(Finding::Problem(Problem { path, offset: 0, expected, skipped_bytes: 0, is_torn_tail: false, cause: error.into() }));
                None
            }
        };
    }
    Ok(())
}

fn paths(dir: &Path) -> Result<Vec<(OpSeq, PathBuf)>> {
    let io = |error| JournalError::io("list", dir, error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        if let Some(base) = entry.file_name().to_str().and_then(base_of_name) {
            paths.push((base, entry.path()));
        }
    }
    paths.sort();
    Ok(paths)
}

/// Walks one file and returns the last item that it is known to hold.
fn dump_file(path: &Path, newest: bool, report: &mut impl FnMut(Finding)) -> Result<OpSeq> {
    let io = |error| JournalError::io("read", path, error);
    let file = open_file(path, false)?;
    let header = read_header(&file, path)?;
    let bytes = file.metadata().map_err(io)?.len();
    report(Finding::File { path: path.to_owned(), base: header.base, epoch: header.epoch, bytes });
    let (mut offset, mut last) = (FILE_HEADER_LEN, header.base);
    loop {
        let cause = match read_record(&file, offset, header.salt).map_err(io)? {
            At::End => return Ok(last),
            At::Found((mark, segment)) => {
                let (first, end) = (segment.first_seq(), segment.last_seq());
                if first != last.next() {
                    let expected = last.next();
                    let cause = DamageError::WrongItems { expected, first, last: end }.into();
                    report(Finding::Problem(Problem {
                        path: path.to_owned(),
                        offset,
                        expected,
                        skipped_bytes: 0,
                        is_torn_tail: false,
                        cause,
                    }));
                }
                let (header, items) = (segment.header, segment.items());
                report(Finding::Segment { path: path.to_owned(), offset, header, durable_before: mark.durable, items });
                offset = offset.saturating_add(record_len(segment.byte_len()));
                last = end;
                continue;
            }
            At::Damaged(damage) => ProblemCause::Damage(damage),
        };
        let next = next_record(&file, offset, header.salt).map_err(io)?;
        let is_torn_tail = newest && !proves_durable(&file, offset, header.salt, last).map_err(io)?;
        let skipped_bytes = next.unwrap_or(bytes).saturating_sub(offset);
        report(Finding::Problem(Problem { path: path.to_owned(), offset, expected: last.next(), skipped_bytes, is_torn_tail, cause }));
        match next {
            Some(next) => offset = next,
            None => return Ok(last),
        }
    }
}

/// Place of the first whole record behind `from`.
fn next_record(file: &File, from: u64, salt: u64) -> std::io::Result<Option<u64>> {
    let mut candidates = Vec::new();
    // A file has at most as many records as marks fit; damage is rare, so the list of places is short against the file.
    scan_marks(file, from.saturating_add(1), salt, |at, _| candidates.push(at))?;
    for at in candidates {
        debug_assert!(at >= FILE_HEADER_LEN.min(MARK_LEN));
        if let At::Found(_) = read_record(file, at, salt)? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
