//! The fixed header in front of every segment's body: 72 bytes, little-endian, with its own checksum.
//!
//! Invariants of a parsed header: `1 ≤ first_seq ≤ last_seq < u64::MAX`, both lengths within their bounds, and no more items than raw
//! bytes. The header is checked by itself because readers skip over segments by header alone. Any mismatch refuses the header.

use super::{SEGMENT_BODY_BYTES_MAX, SegmentError as Error};
use standin_model::{OpSeq, Timestamp};
use xxhash_rust::xxh3::xxh3_64;

pub const HEADER_LEN: usize = 72;
/// The format that this program writes, and the newest that it reads. Version 2 has operations that version 1 does not know (checks),
/// version 3 some that version 2 does not know (digests), version 4 some that version 3 does not know (projects), and version 5 one more (patches).
pub const VERSION: u16 = 5;
pub(crate) const MAGIC: [u8; 4] = *b"SSEG";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Raw,
    Zstd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which run of the agent's capture made this; a higher one follows a lower one.
    pub epoch: u64,
    pub first_seq: OpSeq,
    pub last_seq: OpSeq,
    pub first_captured_at: Timestamp,
    pub last_captured_at: Timestamp,
    pub codec: Codec,
    /// Bytes of the operations before compression.
    pub raw_len: u32,
    /// Bytes of the body as it lies behind the header.
    pub body_len: u32,
    /// xxh3-64 of the body as it lies behind the header.
    pub body_checksum: u64,
}

impl SegmentHeader {
    pub fn item_count(&self) -> u64 {
        self.last_seq.0.saturating_sub(self.first_seq.0).saturating_add(1)
    }

    /// Header and body together.
    pub fn segment_len(&self) -> usize {
        HEADER_LEN + self.body_len as usize
    }

    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0u8; HEADER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = match self.codec {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        };
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_seq.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.last_seq.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first_captured_at.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.last_captured_at.0.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.body_checksum.to_le_bytes());
        let checksum = xxh3_64(&bytes[..64]);
        bytes[64..72].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the header in front of `bytes`; what follows it is not looked at.
    pub fn parse(bytes: &[u8]) -> Result<SegmentHeader, Error> {
        let Some(head) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(Error::Short { have: bytes.len(), need: HEADER_LEN });
        };
        let found = array(head, 0);
        if found != MAGIC {
            return Err(Error::BadMagic { found });
        }
        // The version comes before the checksum: a later format may place the checksum elsewhere.
        let version = u16::from_le_bytes(array(head, 4));
        if version > VERSION {
            return Err(Error::FutureVersion { found: version, supported: VERSION });
        }
        if xxh3_64(&head[..64]) != u64::from_le_bytes(array(head, 64)) {
            return Err(Error::BadHeaderChecksum);
        }
        if version == 0 {
            return Err(Error::BadField { field: "version", value: 0 });
        }
        read_fields(head)?.checked()
    }

    fn checked(self) -> Result<SegmentHeader, Error> {
        let bad = |field, value| Err(Error::BadField { field, value });
        let len_max = SEGMENT_BODY_BYTES_MAX as u32;
        if self.first_seq == OpSeq::ZERO {
            return bad("first_seq", 0);
        }
        if self.last_seq < self.first_seq || self.last_seq.0 == u64::MAX {
            return bad("last_seq", self.last_seq.0);
        }
        if self.raw_len == 0 || self.raw_len > len_max || self.item_count() > u64::from(self.raw_len) {
            return bad("raw_len", self.raw_len.into());
        }
        if self.body_len == 0 || self.body_len > len_max || (self.codec == Codec::Raw && self.body_len != self.raw_len) {
            return bad("body_len", self.body_len.into());
        }
        Ok(self)
    }
}

fn read_fields(head: &[u8; HEADER_LEN]) -> Result<SegmentHeader, Error> {
    let codec = match head[6] {
        0 => Codec::Raw,
        1 => Codec::Zstd,
        value => return Err(Error::BadField { field: "codec", value: value.into() }),
    };
    if head[7] != 0 {
        return Err(Error::BadField { field: "reserved", value: head[7].into() });
    }
    Ok(SegmentHeader {
        epoch: u64::from_le_bytes(array(head, 8)),
        first_seq: OpSeq(u64::from_le_bytes(array(head, 16))),
        last_seq: OpSeq(u64::from_le_bytes(array(head, 24))),
        first_captured_at: Timestamp(i64::from_le_bytes(array(head, 32))),
        last_captured_at: Timestamp(i64::from_le_bytes(array(head, 40))),
        codec,
        raw_len: u32::from_le_bytes(array(head, 48)),
        body_len: u32::from_le_bytes(array(head, 52)),
        body_checksum: u64::from_le_bytes(array(head, 56)),
    })
}

/// `N` bytes of a header whose length is known; the places are constants of the format.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|tail| tail.first_chunk()).copied().expect("fixed place inside a fixed header")
}
