//! Looks at journals as they are, broken or not: what `standin debug journal` and `standin debug queue` print.
//!
//! Read-only, takes no lock, repairs nothing, and goes on behind damage by searching for the next whole record; where not even the file's header is
//! left, for whole segments. Findings are as seen by this process at this moment; a running writer may be ahead of them.

use crate::error::{DamageError, JournalError};
use crate::log::record::{At, FILE_HEADER_LEN, FileHeader, MARK_LEN, base_of_name, read_record, record_len, scan_marks};
use crate::log::{open_file, proves_durable, read_header};
use crate::segment::SegmentHeader;
use crate::{Result, Segment, SegmentError};
use standin_model::{Item, OpSeq};
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

mod salvage;

/// One thing seen while walking a journal.
#[derive(Debug)]
pub enum Finding {
    File {
        path: PathBuf,
        base: OpSeq,
        epoch: u64,
        bytes: u64,
    },
    /// A whole segment. `items` is an error where the checksums are right but the body does not open.
    Segment {
        path: PathBuf,
        /// Of its record.
        offset: u64,
        header: SegmentHeader,
        /// `None` where the record's mark is damaged, so that no program but this one reads it.
        durable_before: Option<OpSeq>,
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
    /// Bytes until the next thing that can be read, or the end.
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
    /// The first thousand.
    pub problems: Vec<Problem>,
    /// All of them.
    pub problem_count: u64,
    /// Those that are more than what a crash leaves behind.
    pub damage_count: u64,
}

impl Summary {
    /// No problem but what a crash leaves behind.
    pub fn is_sound(&self) -> bool {
        self.damage_count == 0
    }
}

/// Problems listed in a summary; a journal that is broken everywhere is told so without filling memory.
const PROBLEMS_MAX: usize = 1000;

/// Reads everything and opens every segment.
pub fn verify(path: impl AsRef<Path>) -> Result<Summary> {
    let mut summary = Summary::default();
    dump(path, |finding| summary.note(finding))?;
    Ok(summary)
}

impl Summary {
    pub fn note(&mut self, finding: Finding) {
        match finding {
            Finding::File { bytes, .. } => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(bytes);
            }
            Finding::Segment { path, offset, header, items, .. } => {
                self.segments += 1;
                self.first = self.first.or(Some(header.first_seq));
                self.last = Some(header.last_seq);
                match items {
                    Ok(items) => self.items = self.items.saturating_add(items.len() as u64),
                    Err(error) => self.add(Problem::new(&path, offset, header.first_seq, ProblemCause::Content(error))),
                }
            }
            Finding::Problem(problem) => self.add(problem),
        }
    }

    fn add(&mut self, problem: Problem) {
        self.problem_count += 1;
        self.damage_count += u64::from(!problem.is_torn_tail);
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}

impl Problem {
    fn new(path: &Path, offset: u64, expected: OpSeq, cause: impl Into<ProblemCause>) -> Problem {
        Problem { path: path.to_owned(), offset, expected, skipped_bytes: 0, is_torn_tail: false, cause: cause.into() }
    }
}

/// Walks every file of the journal, oldest first, or one file, and reports what is there. Fails only when the directory cannot be listed, or the one
/// file not be looked at.
pub fn dump(path: impl AsRef<Path>, mut report: impl FnMut(Finding)) -> Result<()> {
    let (files, newest) = files(path.as_ref())?;
    let mut expected = None;
    for (base, path) in files {
        if let (Some(last), Some(base)) = (expected, base)
            && last != base
        {
            let cause = DamageError::MissingFile { after: last, before: base };
            report(Finding::Problem(Problem::new(&path, 0, after(last), cause)));
        }
        let walk = Walk { is_newest: newest.as_ref() == Some(&path), base, path };
        expected = match walk.file(&mut report) {
            Ok(last) => Some(last),
            Err(error) => {
                report(Finding::Problem(Problem::new(&walk.path, 0, after(base.unwrap_or_default()), error)));
                None
            }
        };
    }
    Ok(())
}

/// The item behind one that may be any number.
fn after(seq: OpSeq) -> OpSeq {
    OpSeq(seq.0.saturating_add(1))
}

/// Base by name, where it has one.
type Named = (Option<OpSeq>, PathBuf);

/// The files to walk, and the newest of their journal: only that one can have a torn tail.
fn files(path: &Path) -> Result<(Vec<Named>, Option<PathBuf>)> {
    let data = fs::metadata(path).map_err(|error| JournalError::io("look at", path, error))?;
    if data.is_dir() {
        let files = list(path)?;
        let newest = files.last().map(|(_, path)| path.clone());
        return Ok((files, newest));
    }
    let base = path.file_name().and_then(|name| name.to_str()).and_then(base_of_name);
    // A file that was taken out of its journal may have been the newest.
    let beside = path.parent().and_then(|parent| list(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }).ok());
    let is_older = base.is_some() && beside.is_some_and(|files| files.iter().any(|(other, _)| *other > base));
    Ok((vec![(base, path.to_owned())], (!is_older).then(|| path.to_owned())))
}

fn list(dir: &Path) -> Result<Vec<Named>> {
    let io = |error| JournalError::io("list", dir, error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        if let Some(base) = entry.file_name().to_str().and_then(base_of_name) {
            paths.push((Some(base), entry.path()));
        }
    }
    paths.sort();
    Ok(paths)
}

/// One file on its way through.
struct Walk {
    path: PathBuf,
    base: Option<OpSeq>,
    is_newest: bool,
}

impl Walk {
    fn problem(&self, offset: u64, expected: OpSeq, cause: impl Into<ProblemCause>) -> Problem {
        Problem::new(&self.path, offset, expected, cause)
    }

    /// Walks the file and returns the last item that it is known to hold.
    fn file(&self, report: &mut impl FnMut(Finding)) -> Result<OpSeq> {
        let io = |error| JournalError::io("read", &self.path, error);
        let file = open_file(&self.path, false)?;
        let bytes = file.metadata().map_err(io)?.len();
        let header = match read_header(&file, &self.path) {
            Ok(header) => header,
            Err(error @ JournalError::Corrupt { .. }) => return self.headless(&file, bytes, error, report).map_err(io),
            Err(error) => return Err(error),
        };
        report(Finding::File { path: self.path.clone(), base: header.base, epoch: header.epoch, bytes });
        if let Some(base) = self.base.filter(|base| *base != header.base) {
            report(Finding::Problem(self.problem(0, after(base), DamageError::WrongName { base: header.base })));
        }
        self.records(&file, &header, bytes, report).map_err(io)
    }

    fn records(&self, file: &File, header: &FileHeader, bytes: u64, report: &mut impl FnMut(Finding)) -> io::Result<OpSeq> {
        let (mut offset, mut last) = (FILE_HEADER_LEN, header.base);
        loop {
            let damage = match read_record(file, offset, header.salt)? {
                At::End => return Ok(last),
                At::Found((mark, segment)) => {
                    let end = offset.saturating_add(record_len(segment.byte_len()));
                    last = self.segment(offset, last, segment, Some(mark.durable), report);
                    offset = end;
                    continue;
                }
                At::Damaged(damage) => damage,
            };
            let mut problem = self.problem(offset, after(last), damage);
            problem.is_torn_tail = self.is_newest && !proves_durable(file, offset, header.salt, last)?;
            // Only the mark may be damaged; then the segment behind it is as good as ever.
            let behind = salvage::segment_at(file, offset.saturating_add(MARK_LEN))?.filter(|segment| segment.first_seq() == after(last));
            if let Some(segment) = behind {
                let end = offset.saturating_add(record_len(segment.byte_len()));
                report(Finding::Problem(problem));
                last = self.segment(offset, last, segment, None, report);
                offset = end;
                continue;
            }
            let next = next_record(file, offset, header.salt)?;
            problem.skipped_bytes = next.unwrap_or(bytes).saturating_sub(offset);
            report(Finding::Problem(problem));
            match next {
                Some(next) => offset = next,
                None => return Ok(last),
            }
        }
    }

    /// Reports a segment, and what is missing before it; returns its last item.
    fn segment(
        &self,
        offset: u64,
        last: OpSeq,
        segment: Segment,
        durable_before: Option<OpSeq>,
        report: &mut impl FnMut(Finding),
    ) -> OpSeq {
        let (expected, first, end) = (after(last), segment.first_seq(), segment.last_seq());
        if first != expected {
            report(Finding::Problem(self.problem(offset, expected, DamageError::WrongItems { expected, first, last: end })));
        }
        let (header, items) = (segment.header, segment.items());
        report(Finding::Segment { path: self.path.clone(), offset, header, durable_before, items });
        end
    }

    /// A file whose header is damaged: its salt is lost, and with it the marks; segments have checksums of their own.
    fn headless(&self, file: &File, bytes: u64, error: JournalError, report: &mut impl FnMut(Finding)) -> io::Result<OpSeq> {
        let mut last = self.base.unwrap_or_default();
        report(Finding::File { path: self.path.clone(), base: last, epoch: 0, bytes });
        report(Finding::Problem(self.problem(0, after(last), error)));
        let mut offset = 0;
        while let Some((at, segment)) = salvage::next_segment(file, offset)? {
            offset = at.saturating_add(segment.byte_len() as u64);
            // A file without a name that says where it begins is taken as it is.
            if self.base.is_none() && last == OpSeq::ZERO {
                last = OpSeq(segment.first_seq().0.saturating_sub(1));
            }
            last = self.segment(at.saturating_sub(MARK_LEN), last, segment, None, report);
        }
        Ok(last)
    }
}

/// Place of the first whole record behind `from`.
fn next_record(file: &File, from: u64, salt: u64) -> io::Result<Option<u64>> {
    let mut next = Ok(None);
    scan_marks(file, from.saturating_add(1), salt, |at, _| match read_record(file, at, salt) {
        Ok(At::Found(_)) => {
            next = Ok(Some(at));
            ControlFlow::Break(())
        }
        Ok(_) => ControlFlow::Continue(()),
        Err(error) => {
            next = Err(error);
            ControlFlow::Break(())
        }
    })?;
    next
}

#[cfg(test)]
mod tests;
