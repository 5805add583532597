//! Packs operations into segments, on the source. The one place that gives out sequence numbers.
//!
//! Invariants: numbers are consecutive across seals; a sealed segment opens again to exactly what was pushed. Sealing cannot fail: where
//! compression does not help or does not work, the body stays as it is. An operation above its bound becomes several items; one that cannot
//! be split is left out and declared as a gap, and from then on this sealer's stream never says *consistent* again. So a segment that nobody
//! may open cannot exist, whatever lies on the source.

use super::{Codec, HEADER_LEN, SEGMENT_BODY_BYTES_MAX, SEGMENT_RAW_BYTES_MAX, Segment, SegmentHeader, split::split};
use standin_model::codec::{self, OPERATION_BYTES_MAX};
use standin_model::{Marker, OpSeq, Operation, Timestamp};
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
    /// Why something that belongs into the stream could not be put there.
    withheld: Option<String>,
}

impl Sealer {
    /// `start` is the number of the first operation that will be pushed; `level` is zstd's, and 0 means no compression.
    pub fn new(epoch: u64, start: OpSeq, level: i32) -> Sealer {
        assert!(start > OpSeq::ZERO, "the first item of an order is 1");
        Sealer { epoch, level, next: start, first: start, times: None, raw: Vec::new(), compressor: None, withheld: None }
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

    pub fn level(&self) -> i32 {
        self.level
    }

    /// Compression from the next seal on: low while the link keeps up, higher when a backlog builds.
    pub fn set_level(&mut self, level: i32) {
        if level != self.level {
            self.level = level;
            self.compressor = None;
        }
    }

    /// Gives the operation its place in the order; the number is that of its last item.
    ///
    /// # Panics
    /// When the sealer is full.
    pub fn push(&mut self, operation: Operation, captured_at: Timestamp) -> OpSeq {
        assert!(!self.is_full(), "seal before pushing: {} bytes are gathered", self.raw.len());
        let operation = match (&self.withheld, operation) {
            (Some(reason), Operation::Marker(Marker::Consistent)) => Operation::Marker(Marker::Gap { reason: reason.clone() }),
            (_, operation) => operation,
        };
        if let Some(seq) = self.push_item(&operation, captured_at) {
            return seq;
        }
        let mut seq = OpSeq(self.next.0 - 1);
        for part in split(operation) {
            seq = match self.push_item(&part, captured_at) {
                Some(seq) => seq,
                None => return self.withhold(&part, captured_at),
            };
        }
        seq
    }

    /// `None`, with nothing changed, where the operation is too long for an item or for what is left of the segment.
    fn push_item(&mut self, operation: &Operation, captured_at: Timestamp) -> Option<OpSeq> {
        let before = self.raw.len();
        codec::encode(operation, &mut self.raw);
        if self.raw.len() - before > OPERATION_BYTES_MAX || self.raw.len() > SEGMENT_BODY_BYTES_MAX {
            self.raw.truncate(before);
            return None;
        }
        self.times = Some(match self.times {
            None => (captured_at, captured_at),
            Some((first, last)) => (first.min(captured_at), last.max(captured_at)),
        });
        let seq = self.next;
        self.next = seq.next();
        Some(seq)
    }

    fn withhold(&mut self, operation: &Operation, captured_at: Timestamp) -> OpSeq {
        let node = operation.node().map_or_else(|| "a marker".to_owned(), |node| format!("node {node}"));
        let reason = format!("{node} cannot be replicated: what describes it is longer than a segment holds");
        self.withheld = Some(reason.clone());
        self.push_item(&Operation::Marker(Marker::Gap { reason }), captured_at).unwrap_or(OpSeq(self.next.0 - 1))
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
