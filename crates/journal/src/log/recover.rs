//! Opening a journal after anything: finds the chain of files, cuts a torn tail, and refuses damage.
//!
//! A tail is torn when it was never durable; then nobody was told that it is safe, and the sender still has it. Bytes are known to have
//! been durable when a later record says so, or when their file was closed (files are synced before the next one begins). Damage there is
//! refused, because cutting it off would lose acknowledged items silently. Damage to the very last synced record cannot be told from a
//! torn one; the cut is reported, and the appliance compares it with what it had acknowledged.

use super::record::{self, At, FILE_HEADER_LEN, FileHeader, HeaderError, base_of_name, read_record, record_len, scan_marks};
use crate::Result;
use crate::error::{DamageError, JournalError};
use standin_model::OpSeq;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// What opening found.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Bytes that were cut off the end.
    pub torn_bytes: u64,
    /// Where they were, and why they could not be kept.
    pub torn: Option<(PathBuf, u64, DamageError)>,
}

#[derive(Debug)]
pub(crate) struct FileEntry {
    pub path: PathBuf,
    pub header: FileHeader,
    pub len: u64,
}

pub(super) struct Recovered {
    /// All files; the last one is where appending goes on.
    pub closed: Vec<FileEntry>,
    pub last: OpSeq,
    pub epoch: u64,
    pub report: Recovery,
}

pub(super) fn recover(dir: &Path) -> Result<Recovered> {
    remove_leftovers(dir)?;
    let mut files = list(dir)?;
    check_chain(&files)?;
    let mut report = Recovery::default();
    let Some(newest) = files.last_mut() else {
        return Ok(Recovered { closed: files, last: OpSeq::ZERO, epoch: 0, report });
    };
    let file = open_file(&newest.path, true)?;
    let io = |error| JournalError::io("read", &newest.path, error);
    let scan = scan(&file, &newest.header).map_err(io)?;
    if let Some(damage) = scan.damage {
        if proves_durable(&file, scan.good_len, newest.header.salt, scan.last).map_err(io)? {
            let expected = scan.last.next();
            return Err(JournalError::Corrupt { path: newest.path.clone(), offset: scan.good_len, expected, source: damage });
        }
        report.torn_bytes = newest.len.saturating_sub(scan.good_len);
        report.torn = Some((newest.path.clone(), scan.good_len, damage));
        file.set_len(scan.good_len).map_err(|e| JournalError::io("cut", &newest.path, e))?;
        newest.len = scan.good_len;
    }
    Ok(Recovered { closed: files, last: scan.last, epoch: scan.epoch, report })
}

/// A file that was being made when the process died has its header in a temporary file only.
fn remove_leftovers(dir: &Path) -> Result<()> {
    let io = |error| JournalError::io("list", dir, error);
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        if name.to_str().and_then(|name| name.strip_suffix(".tmp")).and_then(base_of_name).is_some() {
            fs::remove_file(entry.path()).map_err(|e| JournalError::io("remove", &entry.path(), e))?;
        }
    }
    Ok(())
}

/// The journal's files with their headers, oldest first. Files with other names are not ours and are left alone.
pub(crate) fn list(dir: &Path) -> Result<Vec<FileEntry>> {
    let io = |error| JournalError::io("list", dir, error);
    let mut bases = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        if let Some(base) = entry.map_err(io)?.file_name().to_str().and_then(base_of_name) {
            bases.push(base);
        }
    }
    bases.sort_unstable();
    let mut files = Vec::with_capacity(bases.len());
    for base in bases {
        // A file may have been discarded meanwhile, where a reader lists.
        if let Some(entry) = entry(dir, base)? {
            files.push(entry);
        }
    }
    Ok(files)
}

fn entry(dir: &Path, base: OpSeq) -> Result<Option<FileEntry>> {
    let path = record::file_path(dir, base);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(JournalError::io("open", &path, error)),
        Ok(file) => file,
    };
    let len = file.metadata().map_err(|e| JournalError::io("read", &path, e))?.len();
    let header = read_header(&file, &path)?;
    if header.base != base {
        return Err(header_damaged(&path, base));
    }
    Ok(Some(FileEntry { path, header, len }))
}

pub(crate) fn read_header(file: &File, path: &Path) -> Result<FileHeader> {
    let mut bytes = [0; FILE_HEADER_LEN as usize];
    let have = record::read_up_to(file, &mut bytes, 0).map_err(|e| JournalError::io("read", path, e))?;
    let base = path.file_name().and_then(|name| name.to_str()).and_then(base_of_name).unwrap_or_default();
    if have < bytes.len() {
        return Err(header_damaged(path, base));
    }
    FileHeader::parse(&bytes).map_err(|error| match error {
        HeaderError::Damaged => header_damaged(path, base),
        HeaderError::FutureVersion(found) => JournalError::FutureVersion { path: path.to_owned(), found, supported: record::FILE_VERSION },
    })
}

/// Headers are renamed into place durable, so a bad one is never a torn write.
fn header_damaged(path: &Path, base: OpSeq) -> JournalError {
    let expected = OpSeq(base.0.saturating_add(1));
    JournalError::Corrupt { path: path.to_owned(), offset: 0, expected, source: DamageError::FileHeader }
}

/// Every file names the one before it; only the front of the chain may be gone, discarded.
fn check_chain(files: &[FileEntry]) -> Result<()> {
    for (before, file) in files.iter().zip(files.iter().skip(1)) {
        if file.header.previous != Some(before.header.base) {
            let source = DamageError::MissingFile { after: before.header.base, before: file.header.base };
            return Err(JournalError::Corrupt { path: file.path.clone(), offset: 0, expected: before.header.base, source });
        }
    }
    Ok(())
}

pub(crate) fn open_file(path: &Path, write: bool) -> Result<File> {
    OpenOptions::new().read(true).write(write).open(path).map_err(|e| JournalError::io("open", path, e))
}

/// How far a file is good.
pub(crate) struct Scan {
    pub good_len: u64,
    pub last: OpSeq,
    pub epoch: u64,
    pub damage: Option<DamageError>,
}

/// Reads a file record by record with every checksum, until its end or its first damage.
pub(crate) fn scan(file: &File, header: &FileHeader) -> io::Result<Scan> {
    let mut scan = Scan { good_len: FILE_HEADER_LEN, last: header.base, epoch: header.epoch, damage: None };
    loop {
        let segment = match read_record(file, scan.good_len, header.salt)? {
            At::End => return Ok(scan),
            At::Damaged(damage) => {
                scan.damage = Some(damage);
                return Ok(scan);
            }
            At::Found((_, segment)) => segment,
        };
        let expected = scan.last.next();
        if segment.first_seq() != expected {
            scan.damage = Some(DamageError::WrongItems { expected, first: segment.first_seq(), last: segment.last_seq() });
            return Ok(scan);
        }
        scan.good_len = scan.good_len.saturating_add(record_len(segment.byte_len()));
        scan.last = segment.last_seq();
        scan.epoch = segment.header.epoch;
    }
}

/// Whether a record behind `from` says that more than `last` was durable when it was written.
pub(crate) fn proves_durable(file: &File, from: u64, salt: u64, last: OpSeq) -> io::Result<bool> {
    let mut proved = false;
    scan_marks(file, from, salt, |_, mark| {
        proved = mark.durable > last;
        if proved { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(proved)
}
