//! The generator's own source of chance: SplitMix64 (Steele, Lea, Flood 2014). Twenty lines of integer arithmetic, so
//! that a seed gives the same bytes on every machine and with every release of every library. Not for secrets.

/// The golden ratio in 64 bits: the step of the counter.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function: a bijection, so distinct inputs give distinct ids.
pub(super) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of draws.
#[derive(Clone, Debug)]
pub(super) struct Prng(u64);

impl Prng {
    /// A stream for one purpose: equal parts give equal streams, and no stream depends on how far another was read.
    pub(super) fn of(parts: &[u64]) -> Prng {
        Prng(parts.iter().fold(0, |state, part| mix(state.wrapping_add(STEP) ^ mix(part.wrapping_add(STEP)))))
    }

    /// 64 uniform bits.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// Uniform in `0..bound` (bias below bound / 2^64).
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a draw has at least one outcome");
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in `low..=high`.
    pub(super) fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as u64) as i64
    }

    /// True in `per_mille` of a thousand draws.
    pub(super) fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1_000) < u64::from(per_mille)
    }

    /// One of `items`, each as likely.
    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference implementation's first outputs for state 0.
    #[test]
    fn equals_the_published_sequence() {
        let mut prng = Prng(0);
        assert_eq!(
            [prng.next(), prng.next(), prng.next()],
            [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]
        );
    }

    #[test]
    fn draws_stay_in_range_and_reach_both_ends() {
        let mut prng = Prng::of(&[1, 2]);
        let draws: Vec<i64> = (0..1_000).map(|_| prng.between(-3, 3)).collect();
        assert_eq!((draws.iter().min(), draws.iter().max()), (Some(&-3), Some(&3)));
        let hits = (0..100_000).filter(|_| prng.chance(30)).count();
        assert!((2_800..3_200).contains(&hits), "{hits} of 100000 at 30 per mille");
    }
}
