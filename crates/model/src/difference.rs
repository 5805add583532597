//! Differences: a file's content as digests of its blocks, and which of these blocks the replica has otherwise.
//!
//! Sizes here are bounds, not rules of either end: an item says how large its blocks are. What an item can have somebody read is bounded by
//! [`DIGESTS_MAX`] blocks of [`DIGEST_BLOCK_BYTES_MAX`] bytes, 16 MiB.

use crate::OpSeq;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Blocks in one item.
pub const DIGESTS_MAX: usize = 256;
/// Bytes in one block.
pub const DIGEST_BLOCK_BYTES_MAX: u32 = 64 * 1024;

/// How many blocks of this size a range takes; the last may be shorter.
pub fn blocks_of(len: u64, block: u32) -> u64 {
    len.div_ceil(u64::from(block.max(1)))
}

/// Which blocks of an item: by their index in it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub struct BlockSet([u64; DIGESTS_MAX / 64]);

impl BlockSet {
    pub fn insert(&mut self, block: u8) {
        self.0[usize::from(block / 64)] |= 1 << (block % 64);
    }
    pub fn contains(&self, block: u8) -> bool {
        self.0[usize::from(block / 64)] & 1 << (block % 64) != 0
    }
    pub fn is_empty(&self) -> bool {
        *self == BlockSet::default()
    }
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
    pub fn iter(&self) -> impl Iterator<Item = u8> + use<'_> {
        (0..=u8::MAX).filter(|block| self.contains(*block))
    }
}

impl FromIterator<u8> for BlockSet {
    fn from_iter<I: IntoIterator<Item = u8>>(blocks: I) -> BlockSet {
        let mut set = BlockSet::default();
        blocks.into_iter().for_each(|block| set.insert(block));
        set
    }
}

impl From<Vec<u8>> for BlockSet {
    fn from(blocks: Vec<u8>) -> BlockSet {
        blocks.into_iter().collect()
    }
}

impl From<BlockSet> for Vec<u8> {
    fn from(set: BlockSet) -> Vec<u8> {
        set.iter().collect()
    }
}

impl fmt::Debug for BlockSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What comparing one item of digests came to: the blocks that the replica has otherwise, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differs {
    pub seq: OpSeq,
    pub blocks: BlockSet,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_written_as_its_blocks_and_takes_any_list() {
        let differs = Differs { seq: OpSeq(9), blocks: [255, 0, 64, 0].into_iter().collect() };
        let json = serde_json::to_string(&differs).unwrap();
        assert_eq!(json, r#"{"seq":9,"blocks":[0,64,255]}"#);
        assert_eq!(serde_json::from_str::<Differs>(&json).unwrap(), differs);
        assert!(serde_json::from_str::<Differs>(r#"{"seq":9,"blocks":[256]}"#).is_err());
        assert_eq!((differs.blocks.len(), differs.blocks.contains(64), differs.blocks.contains(63)), (3, true, false));
    }
}
