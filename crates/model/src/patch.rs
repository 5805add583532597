//! Patches: a write of which the replica has most already. The parts that it lacks travel, and a checksum of all that was written.
//!
//! A patch is nothing but the writes of its parts: what is not in a part is not touched. The checksum says what the whole range has to be
//! afterwards, so that whoever applies it need not trust whoever chose the parts. It is the 64-bit XXH3 hash without seed: it tells accidents,
//! and a source can only ever deceive its own replica.

use xxhash_rust::xxh3::xxh3_64;

/// No patch is of more bytes: what may be read back for one is bounded as a write's data is.
pub const PATCH_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// Bytes that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchPart {
    /// From the beginning of the patch.
    pub at: u32,
    /// Never empty.
    pub data: Vec<u8>,
}

impl PatchPart {
    /// From the beginning of the patch.
    pub fn end(&self) -> u64 {
        u64::from(self.at).saturating_add(self.data.len() as u64)
    }
}

/// Of everything that a patch leaves in its range.
pub fn checksum_of(content: &[u8]) -> u64 {
    xxh3_64(content)
}

/// Whether the parts lie in the range, in their order, with something between any two of them.
pub(crate) fn are_possible(parts: &[PatchPart], len: u64) -> bool {
    let mut least = 0;
    let fits = parts.iter().all(|part| {
        let in_order = u64::from(part.at) >= least && !part.data.is_empty();
        least = part.end().saturating_add(1);
        in_order && part.end() <= len
    });
    fits && len <= PATCH_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_in_order_apart_and_within() {
        let part = |at, len| PatchPart { at, data: vec![1; len] };
        let check = |parts: &[PatchPart], len, expect| assert_eq!(are_possible(parts, len), expect, "{parts:?} of {len}");
        check(&[], 0, true);
        check(&[], PATCH_BYTES_MAX, true);
        check(&[], PATCH_BYTES_MAX + 1, false);
        check(&[part(0, 4), part(5, 3)], 8, true);
        check(&[part(0, 4), part(5, 3)], 7, false);
        check(&[part(0, 4), part(4, 3)], 8, false);
        check(&[part(5, 1), part(0, 1)], 8, false);
        check(&[part(3, 0)], 8, false);
        check(&[part(u32::MAX, 1)], 8, false);
    }
}
