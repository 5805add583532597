//! The unit of the stream: a sealed, checksummed run of operations with consecutive sequence numbers.
//!
//! `docs/formats/segment.md` describes the bytes. Invariants: a [`Segment`] that exists has a header and a body whose checksums were
//! right, and covers at least one item; its first item has `first_seq` and each next item the next number. Whether the body *decodes* is
//! known only after [`Segment::items`], because compression and operations are opened only by who applies them. A segment from outside that fails
//! any check is refused whole; nothing of it is used.

use crate::SegmentError as Error;
use standin_model::codec::{self, OPERATION_BYTES_MAX};
use standin_model::{Item, OpSeq, Timestamp};
use std::sync::Arc;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

mod header;
mod seal;
mod split;

pub use header::{Codec, HEADER_LEN, SegmentHeader, VERSION};
pub(crate) use header::{MAGIC, array};
pub use seal::Sealer;

/// A sealer is full when its operations have this many bytes; the one that crosses the line still fits.
pub const SEGMENT_RAW_BYTES_MAX: usize = 4 * 1024 * 1024;

/// No body is longer, compressed or not: what was gathered before the line was crossed, and the operation that crossed it.
pub const SEGMENT_BODY_BYTES_MAX: usize = SEGMENT_RAW_BYTES_MAX + OPERATION_BYTES_MAX;

/// No segment is longer: 6 MiB of body and its header. A frame of the wire (8 MiB) holds it.
pub const SEGMENT_BYTES_MAX: usize = SEGMENT_BODY_BYTES_MAX + HEADER_LEN;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum SegmentError {
    #[error("segment ends after {have} bytes, {need} are needed")]
    Short { have: usize, need: usize },
    #[error("segment has {extra} bytes behind its end")]
    Trailing { extra: usize },
    #[error("not a segment: it begins with {found:02x?}")]
    BadMagic { found: [u8; 4] },
    #[error("segment has format version {found}, this program reads up to {supported}")]
    FutureVersion { found: u16, supported: u16 },
    #[error("segment header has a wrong checksum")]
    BadHeaderChecksum,
    #[error("segment body of items {first}..{last} has a wrong checksum")]
    BadBodyChecksum { first: OpSeq, last: OpSeq },
    #[error("segment header field {field} has a value that is not allowed: {value}")]
    BadField { field: &'static str, value: u64 },
    #[error("segment body does not decompress to {raw_len} bytes")]
    Decompress { raw_len: u32 },
    #[error("item {seq} of the segment does not decode")]
    Operation { seq: OpSeq, source: codec::DecodeError },
    #[error("segment of items {first}..{last} holds {found} operations")]
    WrongCount { first: OpSeq, last: OpSeq, found: u64 },
}

impl SegmentError {
    pub fn code(&self) -> &'static str {
        match self {
            Error::FutureVersion { .. } => "STANDIN-E2005",
            _ => "STANDIN-E2010",
        }
    }
    /// Bytes that arrived damaged may arrive whole next time; a newer format will not become older.
    pub fn is_corrupt(&self) -> bool {
        !matches!(self, Error::FutureVersion { .. })
    }
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// Sealed bytes with the header that was read from them. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub header: SegmentHeader,
    pub bytes: Arc<[u8]>,
}

impl Segment {
    /// Takes bytes from outside; checks all but what needs decompression.
    pub fn parse(bytes: impl Into<Arc<[u8]>>) -> Result<Segment, Error> {
        let bytes = bytes.into();
        let header = SegmentHeader::parse(&bytes)?;
        let need = header.segment_len();
        if bytes.len() < need {
            return Err(Error::Short { have: bytes.len(), need });
        }
        if bytes.len() > need {
            return Err(Error::Trailing { extra: bytes.len() - need });
        }
        let body = bytes.get(HEADER_LEN..).unwrap_or_default();
        if xxh3_64(body) != header.body_checksum {
            return Err(Error::BadBodyChecksum { first: header.first_seq, last: header.last_seq });
        }
        Ok(Segment { header, bytes })
    }

    pub fn first_seq(&self) -> OpSeq {
        self.header.first_seq
    }
    pub fn last_seq(&self) -> OpSeq {
        self.header.last_seq
    }
    /// Bytes in the queue, on the wire and in the journal.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }
    /// When the newest item was captured, by the source's clock.
    pub fn captured_at(&self) -> Timestamp {
        self.header.last_captured_at
    }

    /// The operations as they were before compression.
    fn raw(&self) -> Result<Vec<u8>, Error> {
        let body = self.bytes.get(HEADER_LEN..).unwrap_or_default();
        let raw_len = self.header.raw_len;
        let failed = Error::Decompress { raw_len };
        let raw = match self.header.codec {
            Codec::Raw => body.to_vec(),
            // The header was checked: the capacity is at most SEGMENT_BODY_BYTES_MAX, whatever the frame claims.
            Codec::Zstd => match zstd::bulk::decompress(body, raw_len as usize) {
                Ok(raw) => raw,
                Err(_) => return Err(failed),
            },
        };
        if raw.len() == raw_len as usize { Ok(raw) } else { Err(failed) }
    }

    /// Opens the segment. All of it decodes, or none is returned.
    pub fn items(&self) -> Result<Vec<Item>, Error> {
        let raw = self.raw()?;
        let SegmentHeader { first_seq: first, last_seq: last, .. } = self.header;
        let mut rest = raw.as_slice();
        // Every operation takes a byte at least, so the body bounds what may be reserved.
        let mut items = Vec::with_capacity(self.header.item_count().min(raw.len() as u64).min(4096) as usize);
        let mut seq = first;
        while !rest.is_empty() {
            if seq > last {
                return Err(Error::WrongCount { first, last, found: items.len() as u64 + 1 });
            }
            let (operation, behind) = codec::decode(rest).map_err(|source| Error::Operation { seq, source })?;
            items.push(Item { seq, operation });
            rest = behind;
            // `last` is below u64::MAX (checked by the header), so this cannot run over.
            seq = seq.next();
        }
        if items.len() as u64 != self.header.item_count() {
            return Err(Error::WrongCount { first, last, found: items.len() as u64 });
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests;
