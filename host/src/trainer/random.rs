use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// The trainer's random numbers, in three streams that never overlap.
///
/// Everything is drawn here, on the calling thread: from a generator shared by the process, another
/// thread could change the result. The draws are spelled out rather than left to `rand`, whose
/// algorithms may change between versions, and with them the weights that a seed gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Random {
    pub(super) weights: Stream,
    pub(super) order: Stream,
    pub(super) dropout: Stream,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut generator = Xoshiro256PlusPlus::seed_from_u64(seed);
        // A jump skips 2^128 draws.
        let mut stream = || {
            let current = Stream(generator.clone());
            generator.jump();
            current
        };
        Self { weights: stream(), order: stream(), dropout: stream() }
    }
}

/// One stream of random numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stream(Xoshiro256PlusPlus);

/// Bits of a random number: as many as the mantissa of an `f32` has.
const BITS: u32 = 24;

impl Stream {
    /// Draws Keras's `glorot_uniform`: uniform in `[-l, l)` with `l = sqrt(6 / (inputs +
    /// outputs))`.
    pub(super) fn glorot_uniform(&mut self, inputs: usize, outputs: usize) -> Vec<f32> {
        let limit = (6.0 / (inputs as f64 + outputs as f64)).sqrt() as f32;
        let scale = (1.0 / f64::from(1_u32 << BITS)) as f32;
        (0..inputs * outputs)
            .map(|_| {
                let unit = (self.0.next_u64() >> (u64::BITS - BITS)) as f32 * scale;
                limit * (2.0 * unit - 1.0)
            })
            .collect()
    }

    /// Shuffles `items`, each order equally likely (Fisher and Yates).
    pub(super) fn shuffle(&mut self, items: &mut [usize]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }

    /// Draws an integer below `bound`, each equally likely (Lemire's rejection).
    fn below(&mut self, bound: u64) -> u64 {
        loop {
            let wide = u128::from(self.0.next_u64()) * u128::from(bound);
            // 2^64 is not a multiple of `bound`: without dropping the `2^64 mod bound` draws with
            // the smallest low halves, some results would be more likely.
            if wide as u64 >= bound.wrapping_neg() % bound {
                return (wide >> u64::BITS) as u64;
            }
        }
    }

    /// Draws `len` factors of an inverted dropout: 0 with probability `rate`, else
    /// `1 / (1 - rate)`.
    pub(super) fn dropout_mask(&mut self, rate: f32, len: usize) -> Vec<f32> {
        let threshold = (f64::from(rate) * f64::from(1_u32 << BITS)).ceil() as u32;
        let kept = (1.0 / (1.0 - f64::from(rate))) as f32;
        let factor = |draw: u32| {
            if draw >> (u32::BITS - BITS) >= threshold { kept } else { 0.0 }
        };
        let mut mask = Vec::with_capacity(len + 1);
        while mask.len() < len {
            let draw = self.0.next_u64();
            mask.push(factor((draw >> 32) as u32));
            mask.push(factor(draw as u32));
        }
        mask.truncate(len);
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_streams_differ_and_repeat() {
        let draws = |seed| {
            let mut random = Random::new(seed);
            [random.weights.0.next_u64(), random.order.0.next_u64(), random.dropout.0.next_u64()]
        };
        assert_eq!(draws(7), draws(7));
        let [weights, order, dropout] = draws(7);
        assert!(weights != order && order != dropout && weights != dropout);
        assert_ne!(draws(7), draws(8));
    }

    #[test]
    fn glorot_uniform_fills_its_range() {
        let values = Random::new(1).weights.glorot_uniform(100, 50);
        let limit = 0.2_f32; // sqrt(6 / 150)
        assert_eq!(values.len(), 5000);
        assert!(values.iter().all(|v| v.abs() <= limit));
        assert!(values.iter().any(|v| *v > 0.99 * limit));
        assert!(values.iter().any(|v| *v < -0.99 * limit));
        let mean = values.iter().sum::<f32>() / 5000.0;
        assert!(mean.abs() < 0.01, "{mean}");
    }

    #[test]
    fn shuffles_are_permutations_of_equal_chance() {
        let mut random = Random::new(3);
        let mut seen = [0; 6];
        for _ in 0..6000 {
            let mut items = [0, 1, 2];
            random.order.shuffle(&mut items);
            let index = match items {
                [0, 1, 2] => 0,
                [0, 2, 1] => 1,
                [1, 0, 2] => 2,
                [1, 2, 0] => 3,
                [2, 0, 1] => 4,
                [2, 1, 0] => 5,
                _ => panic!("not a permutation: {items:?}"),
            };
            seen[index] += 1;
        }
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
        random.order.shuffle(&mut []);
    }

    #[test]
    fn dropout_mask_keeps_the_mean() {
        let mut random = Random::new(3);
        for rate in [0.0, 0.2, 0.5, 0.9] {
            let mask = random.dropout.dropout_mask(rate, 100_001);
            assert_eq!(mask.len(), 100_001);
            let kept = 1.0 / (1.0 - rate);
            assert!(mask.iter().all(|m| *m == 0.0 || (*m - kept).abs() < 1e-5));
            let mean = mask.iter().sum::<f32>() / 100_001.0;
            assert!((mean - 1.0).abs() < 0.02, "{rate}: {mean}");
        }
    }
}
