//! How segments lie in a journal file: a file header, then records; each record is a mark and a segment.
//!
//! The mark notes how far the journal was durable when the record was written. That tells a torn tail from damage: bytes that a *later*
//! record calls durable were synced, so they cannot be torn. The checksums of marks are salted per file, so that a journal file inside
//! a journal (a source that is itself an appliance) is never taken for the outer one. Nothing that is read here is trusted.

use crate::error::DamageError;
use crate::segment::{HEADER_LEN, SEGMENT_BYTES_MAX, Segment, SegmentHeader};
use standin_model::OpSeq;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub(crate) const FILE_HEADER_LEN: u64 = 48;
pub(crate) const MARK_LEN: u64 = 24;
pub(crate) const FILE_VERSION: u16 = 1;
const FILE_MAGIC: [u8; 4] = *b"SJNL";
const MARK_MAGIC: [u8; 4] = *b"SREC";
const SUFFIX: &str = ".journal";

/// What stands at the beginning of every file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    /// Last item before this file.
    pub base: OpSeq,
    /// `base` of the file before this one; `None` in the first of a chain.
    pub previous: Option<OpSeq>,
    /// Epoch of item `base`.
    pub epoch: u64,
    pub salt: u64,
}

/// `previous` of the first file; no item has this number.
const NO_PREVIOUS: u64 = u64::MAX;

pub(crate) enum HeaderError {
    Damaged,
    FutureVersion(u16),
}

impl FileHeader {
    pub fn to_bytes(self) -> [u8; FILE_HEADER_LEN as usize] {
        let mut bytes = [0; FILE_HEADER_LEN as usize];
        bytes[0..4].copy_from_slice(&FILE_MAGIC);
        bytes[4..6].copy_from_slice(&FILE_VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.base.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.previous.map_or(NO_PREVIOUS, |p| p.0).to_le_bytes());
        bytes[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.salt.to_le_bytes());
        let checksum = xxh3_64(&bytes[..40]);
        bytes[40..48].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub fn parse(bytes: &[u8; FILE_HEADER_LEN as usize]) -> Result<FileHeader, HeaderError> {
        if bytes[0..4] != FILE_MAGIC {
            return Err(HeaderError::Damaged);
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version > FILE_VERSION {
            return Err(HeaderError::FutureVersion(version));
        }
        let (base, previous) = (u64_at(bytes, 8), u64_at(bytes, 16));
        if xxh3_64(&bytes[..40]) != u64_at(bytes, 40) || version == 0 || base == u64::MAX {
            return Err(HeaderError::Damaged);
        }
        let previous = (previous != NO_PREVIOUS).then_some(OpSeq(previous));
        Ok(FileHeader { base: OpSeq(base), previous, epoch: u64_at(bytes, 24), salt: u64_at(bytes, 32) })
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(crate::segment::array(bytes, at))
}

/// A number that no other journal file has: the standard library's hash seed is random per process and differs per call.
pub(crate) fn new_salt() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Files sort by name as their items do.
pub(crate) fn file_path(dir: &Path, base: OpSeq) -> PathBuf {
    dir.join(format!("{:020}{SUFFIX}", base.0))
}

/// The base that a file's name claims; `None` for a file that is not ours.
pub(crate) fn base_of_name(name: &str) -> Option<OpSeq> {
    let digits = name.strip_suffix(SUFFIX)?;
    let ours = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    if ours { digits.parse().ok().map(OpSeq) } else { None }
}

pub(crate) fn mark_bytes(len: u32, durable: OpSeq, salt: u64) -> [u8; MARK_LEN as usize] {
    let mut bytes = [0; MARK_LEN as usize];
    bytes[0..4].copy_from_slice(&MARK_MAGIC);
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes[8..16].copy_from_slice(&durable.0.to_le_bytes());
    let checksum = xxh3_64_with_seed(&bytes[..16], salt);
    bytes[16..24].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[derive(Clone, Copy)]
pub(crate) struct Mark {
    pub len: u32,
    pub durable: OpSeq,
}

fn parse_mark(bytes: &[u8], salt: u64) -> Option<Mark> {
    let bytes = bytes.first_chunk::<{ MARK_LEN as usize }>()?;
    let good = bytes[0..4] == MARK_MAGIC && xxh3_64_with_seed(&bytes[..16], salt) == u64_at(bytes, 16);
    good.then(|| Mark { len: u32::from_le_bytes(crate::segment::array(bytes, 4)), durable: OpSeq(u64_at(bytes, 8)) })
}

/// What stands at a place of a journal file.
pub(crate) enum At<T> {
    Found(T),
    /// The file ends exactly here.
    End,
    Damaged(DamageError),
}

/// Mark and segment header of the record at `offset`, which needs no read of its body.
pub(crate) fn read_head(file: &File, offset: u64, salt: u64) -> io::Result<At<(Mark, SegmentHeader)>> {
    let mut head = [0u8; MARK_LEN as usize + HEADER_LEN];
    let have = read_up_to(file, &mut head, offset)?;
    if have == 0 {
        return Ok(At::End);
    }
    if have < head.len() {
        return Ok(At::Damaged(DamageError::Short { have: have as u64, need: head.len() as u64 }));
    }
    let Some(mark) = parse_mark(&head, salt) else { return Ok(At::Damaged(DamageError::RecordMark)) };
    let (_, head) = head.split_at(MARK_LEN as usize);
    Ok(match SegmentHeader::parse(head) {
        Err(error) => At::Damaged(DamageError::Segment(error)),
        Ok(header) if header.segment_len() != mark.len as usize => At::Damaged(DamageError::RecordLength { len: mark.len }),
        Ok(header) => At::Found((mark, header)),
    })
}

/// The whole record at `offset`, every checksum verified.
pub(crate) fn read_record(file: &File, offset: u64, salt: u64) -> io::Result<At<(Mark, Segment)>> {
    let (mark, header) = match read_head(file, offset, salt)? {
        At::Found(found) => found,
        At::End => return Ok(At::End),
        At::Damaged(damage) => return Ok(At::Damaged(damage)),
    };
    // A parsed header bounds the length by SEGMENT_BYTES_MAX.
    debug_assert!(header.segment_len() <= SEGMENT_BYTES_MAX);
    let mut bytes = vec![0; header.segment_len()];
    let have = read_up_to(file, &mut bytes, offset.saturating_add(MARK_LEN))?;
    if have < bytes.len() {
        return Ok(At::Damaged(DamageError::Short { have: have as u64, need: bytes.len() as u64 }));
    }
    Ok(match Segment::parse(bytes) {
        Ok(segment) => At::Found((mark, segment)),
        Err(error) => At::Damaged(DamageError::Segment(error)),
    })
}

pub(crate) fn record_len(segment_len: usize) -> u64 {
    MARK_LEN + segment_len as u64
}

/// Fills `buffer` from `offset`, less where the file ends.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut have = 0;
    while let Some(rest) = buffer.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(have as u64)) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

/// Looks at every byte behind `from` for marks of this file, and calls `found` with each mark's place until that has seen enough. Used only on
/// damage, so it may be slow; memory is one window.
pub(crate) fn scan_marks(file: &File, from: u64, salt: u64, mut found: impl FnMut(u64, Mark) -> ControlFlow<()>) -> io::Result<()> {
    const WINDOW: usize = 1 << 20;
    let mut window = vec![0u8; WINDOW];
    let mut offset = from;
    loop {
        let have = read_up_to(file, &mut window, offset)?;
        let seen = window.get(..have).unwrap_or_default();
        for (index, candidate) in seen.windows(MARK_LEN as usize).enumerate() {
            if candidate.first() == MARK_MAGIC.first()
                && let Some(mark) = parse_mark(candidate, salt)
                && found(offset.saturating_add(index as u64), mark).is_break()
            {
                return Ok(());
            }
        }
        if have < WINDOW {
            return Ok(());
        }
        // The last bytes of a window may hold the beginning of a mark.
        offset = offset.saturating_add(have as u64 - (MARK_LEN - 1));
    }
}
