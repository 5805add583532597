//! Chance that comes out the same from the same seed, everywhere: splitmix64 (Steele, Lea, Flood 2014), small, fast, and good enough for content.

use std::time::Duration;

pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }

    /// A time below `bound`.
    pub fn time(&mut self, bound: Duration) -> Duration {
        Duration::from_millis(self.below(bound.as_millis() as u64))
    }

    /// In 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let value = self.number().to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
    }
}
