//! Random numbers that a seed repeats: whom to tear down, and how long to wait.

use crate::clock::Nanos;

/// Steele and others' splitmix: ample for choosing, and useless for secrets.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below the bound, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Between half and one and a half of a span.
    pub(crate) fn around(&mut self, span: Nanos) -> Nanos {
        span / 2 + self.below(span.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_numbers_and_they_stay_below_the_bound() {
        let (mut one, mut other) = (Random::new(5), Random::new(5));
        for _ in 0..1000 {
            let number = one.below(17);
            assert!(number < 17);
            assert_eq!(number, other.below(17));
        }
        assert!((500..1500).contains(&one.around(1000)));
    }
}
