//! Finds whole segments where the records around them cannot be trusted. Both checksums of a segment are right, or it is not found.
//!
//! Without marks, a segment inside the content of another one (a source that is itself an appliance) cannot be told from one of this journal if the
//! outer one is damaged; who reads on sees it by its numbers.

use crate::log::record::read_up_to;
use crate::segment::{HEADER_LEN, MAGIC, Segment, SegmentHeader};
use std::fs::File;
use std::io;

/// The segment that begins at `offset`.
pub(super) fn segment_at(file: &File, offset: u64) -> io::Result<Option<Segment>> {
    let mut head = [0u8; HEADER_LEN];
    if read_up_to(file, &mut head, offset)? < HEADER_LEN {
        return Ok(None);
    }
    // A parsed header bounds the length by SEGMENT_BYTES_MAX.
    let Ok(header) = SegmentHeader::parse(&head) else { return Ok(None) };
    let mut bytes = vec![0; header.segment_len()];
    let have = read_up_to(file, &mut bytes, offset)?;
    Ok(if have < bytes.len() { None } else { Segment::parse(bytes).ok() })
}

/// The first segment at or behind `from`. Memory is one window and one segment.
pub(super) fn next_segment(file: &File, from: u64) -> io::Result<Option<(u64, Segment)>> {
    const WINDOW: usize = 1 << 20;
    let mut window = vec![0u8; WINDOW];
    let mut offset = from;
    loop {
        let have = read_up_to(file, &mut window, offset)?;
        let seen = window.get(..have).unwrap_or_default();
        for (index, candidate) in seen.windows(HEADER_LEN).enumerate() {
            // The header has a checksum of its own, which chance does not meet: the file is read again only where it is right.
            if candidate.starts_with(&MAGIC) && SegmentHeader::parse(candidate).is_ok() {
                let at = offset.saturating_add(index as u64);
                if let Some(segment) = segment_at(file, at)? {
                    return Ok(Some((at, segment)));
                }
            }
        }
        if have < WINDOW {
            return Ok(None);
        }
        // The last bytes of a window may hold the beginning of a header.
        offset = offset.saturating_add(have as u64 - (HEADER_LEN as u64 - 1));
    }
}
