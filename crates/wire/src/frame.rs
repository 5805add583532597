//! Frames: a little-endian u32 length of the payload, one byte of kind, the payload. `docs/formats/wire.md` has the table.
//!
//! A length is checked against the bound of its kind before anything is kept for it, and memory grows with the bytes that arrive, not with
//! the length that was claimed. A frame that breaks a rule ends the connection.

use crate::error::ConnectionError;

pub(crate) const FRAME_HEADER_LEN: usize = 5;

/// A list of 8192 nodes fits.
pub(crate) const CONTROL_BYTES_MAX: usize = 1 << 20;
/// A segment is at most 6 MiB and a header.
pub(crate) const SEGMENT_FRAME_BYTES_MAX: usize = 8 << 20;
/// What an end without a certificate may send: its request is about a kilobyte.
pub(crate) const NEWCOMER_BYTES_MAX: usize = 32 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Control,
    Segment,
    /// Says only that the sender lives; has no payload.
    KeepAlive,
}

impl Kind {
    pub fn byte(self) -> u8 {
        match self {
            Kind::Control => 1,
            Kind::Segment => 2,
            Kind::KeepAlive => 3,
        }
    }
    fn parse(byte: u8) -> Result<Kind, ConnectionError> {
        match byte {
            1 => Ok(Kind::Control),
            2 => Ok(Kind::Segment),
            3 => Ok(Kind::KeepAlive),
            kind => Err(ConnectionError::UnknownFrame { kind }),
        }
    }
}

/// Payload bounds by kind; a newcomer's are narrower.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub control: usize,
    pub segment: usize,
}

impl Limits {
    pub const SESSION: Limits = Limits { control: CONTROL_BYTES_MAX, segment: SEGMENT_FRAME_BYTES_MAX };
    pub const NEWCOMER: Limits = Limits { control: NEWCOMER_BYTES_MAX, segment: 0 };

    fn of(self, kind: Kind) -> usize {
        match kind {
            Kind::Control => self.control,
            Kind::Segment => self.segment,
            Kind::KeepAlive => 0,
        }
    }

    pub fn check(self, kind: Kind, len: usize) -> Result<(), ConnectionError> {
        let len_max = self.of(kind);
        if len <= len_max {
            return Ok(());
        }
        Err(ConnectionError::FrameTooLarge { kind: kind.byte(), len: len as u64, len_max: len_max as u64 })
    }
}

pub(crate) fn header(kind: Kind, len: usize) -> [u8; FRAME_HEADER_LEN] {
    // Limits::check keeps lengths far below u32::MAX.
    let [a, b, c, d] = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    [a, b, c, d, kind.byte()]
}

/// A frame that is complete, and the bytes behind what was taken.
type Taken<'b> = (Option<(Kind, Vec<u8>)>, &'b [u8]);

/// Puts frames together from bytes as they come.
pub(crate) struct Assembler {
    limits: Limits,
    head: Vec<u8>,
    /// Kind and length of the frame whose payload is being gathered.
    current: Option<(Kind, usize)>,
    payload: Vec<u8>,
}

impl Assembler {
    pub fn new(limits: Limits) -> Assembler {
        Assembler { limits, head: Vec::with_capacity(FRAME_HEADER_LEN), current: None, payload: Vec::new() }
    }

    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes from the front of `bytes` what belongs to the current frame; returns the rest, and the frame if that completes it.
    pub fn take<'b>(&mut self, mut bytes: &'b [u8]) -> Result<Taken<'b>, ConnectionError> {
        let (kind, len) = match self.current {
            Some(current) => current,
            None => {
                let missing = FRAME_HEADER_LEN.saturating_sub(self.head.len());
                let (part, rest) = bytes.split_at(missing.min(bytes.len()));
                self.head.extend_from_slice(part);
                bytes = rest;
                let Ok([a, b, c, d, kind]) = <[u8; FRAME_HEADER_LEN]>::try_from(self.head.as_slice()) else {
                    return Ok((None, bytes));
                };
                self.head.clear();
                let (kind, len) = (Kind::parse(kind)?, u32::from_le_bytes([a, b, c, d]) as usize);
                self.limits.check(kind, len)?;
                self.current = Some((kind, len));
                (kind, len)
            }
        };
        let missing = len.saturating_sub(self.payload.len());
        let (part, rest) = bytes.split_at(missing.min(bytes.len()));
        self.payload.extend_from_slice(part);
        if self.payload.len() < len {
            return Ok((None, rest));
        }
        self.current = None;
        Ok((Some((kind, std::mem::take(&mut self.payload))), rest))
    }
}

#[cfg(test)]
mod tests;
