//! Packs operations into segments, on the source. The one place that gives out sequence numbers.
//!
//! Invariants: numbers are consecutive across seals; a sealed segment opens again to exactly what was pushed. Sealing cannot fail: where
//! compression does not help or does not work, the body stays as it is. An operation above its bound is our own bug and stops the agent
//! before a segment that nobody may open can exist.

use super::{Codec, HEADER_LEN, SEGMENT_RAW_BYTES_MAX, Segment, SegmentHeader};
use standin_model::codec::{self, OPERATION_BYTES_MAX};
use standin_model::{OpSeq, Operation, Timestamp};
use xxhash_rust::xxh3::xxh3_64;

/// Below this, the frame around compressed bytes costs more than compression saves.
const COMPRESS_BYTES_MIN: usize = 128;
/// After a large segment the buffer is given back down to this, because the agent's memory belongs to the source.
const BUFFER_BYTES_KEPT: usize = 512 * 1024;

pub struct Sealer {
    epoch: u64,
    level: i32,
    next: OpSeq,
    first: OpSeq,
    /// Earliest and latest capture time of what is gathered.
    times: Option<(Timestamp, Timestamp)>,
    raw: Vec<u8>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl Sealer {
    /// `start` is the number of the first operation that will be pushed; `level` is zstd's, and 0 means no compression.
    pub fn new(epoch: u64, start: OpSeq, level: i32) -> Sealer {
        assert!(start > OpSeq::ZERO, "the first item of an order is 1");
        Sealer { epoch, level, next: start, first: start, times: None, raw: Vec::new(), compressor: None }
    }

    /// Number of the next operation.
    pub fn next_seq(&self) -> OpSeq {
        self.next
    }
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
    pub fn raw_len(&self) -> usize {
        self.raw.len()
    }
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }
    /// A full sealer must be sealed before the next push.
    pub fn is_full(&self) -> bool {
        self.raw.len() >= SEGMENT_RAW_BYTES_MAX
    }

    /// Compression from the next seal on: low while the link keeps up, higher when a backlog builds.
    pub fn set_level(&mut self, level: i32) {
        if level != self.level {
            self.level = level;
            self.compressor = None;
        }
    }

    /// Gives the operation its place in the order.
    ///
    /// # Panics
    /// When the sealer is full, or the operation is longer than `OPERATION_BYTES_MAX` in its written form.
    pub fn push(&mut self, operation: Operation, captured_at: Timestamp) -> OpSeq {
        assert!(!self.is_full(), "seal before pushing: {} bytes are gathered", self.raw.len());
        let before = self.raw.len();
        codec::encode(&operation, &mut self.raw);
        assert!(self.raw.len() - before <= OPERATION_BYTES_MAX, "operation of {} bytes", self.raw.len() - before);
        self.times = Some(match self.times {
            None => (captured_at, captured_at),
            Some((first, last)) => (first.min(captured_at), last.max(captured_at)),
        });
        let seq = self.next;
        self.next = seq.next();
        seq
    }

    /// Closes what is gathered; `None` when that is nothing.
    pub fn seal(&mut self) -> Option<Segment> {
        let (first_captured_at, last_captured_at) = self.times.take()?;
        let compressed = self.compress();
        let (codec, body) = match &compressed {
            Some(body) => (Codec::Zstd, body.as_slice()),
            None => (Codec::Raw, self.raw.as_slice()),
        };
        let header = SegmentHeader {
            epoch: self.epoch,
            first_seq: self.first,
            last_seq: OpSeq(self.next.0 - 1),
            first_captured_at,
            last_captured_at,
            codec,
            raw_len: self.raw.len() as u32,
            body_len: body.len() as u32,
            body_checksum: xxh3_64(body),
        };
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
        bytes.extend_from_slice(&header.to_bytes());
        bytes.extend_from_slice(body);
        self.first = self.next;
        self.raw.clear();
        self.raw.shrink_to(BUFFER_BYTES_KEPT);
        Some(Segment { header, bytes: bytes.into() })
    }

    /// The compressed body, where that is shorter.
    fn compress(&mut self) -> Option<Vec<u8>> {
        if self.level == 0 || self.raw.len() < COMPRESS_BYTES_MIN {
            return None;
        }
        if self.compressor.is_none() {
            self.compressor = zstd::bulk::Compressor::new(self.level).ok();
        }
        let body = self.compressor.as_mut()?.compress(&self.raw).ok()?;
        (body.len() < self.raw.len()).then_some(body)
    }
}
