//! Pooling of the feature map.

use serde::{Deserialize, Serialize};

use crate::preprocess::Preprocess;

/// The pooling of the feature map `[h, w, channels]` before the dense layers.
///
/// `docs/exactness.md` has the arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pool {
    /// All values, in the order h, w, channel (Keras `Flatten`).
    #[default]
    Flatten,
    /// The mean over the positions, one value per channel (Keras `GlobalAveragePooling2D`).
    Avg,
    /// The maximum over the positions, one value per channel (Keras `GlobalMaxPooling2D`).
    Max,
}

impl Pool {
    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flatten => "flatten",
            Self::Avg => "avg",
            Self::Max => "max",
        }
    }

    /// Returns the number of values that a feature map gives.
    pub fn len(self, preprocess: &Preprocess) -> usize {
        match self {
            Self::Flatten => preprocess.feature_len(),
            Self::Avg | Self::Max => preprocess.base.channels as usize,
        }
    }

    /// Pools a feature map in f32, channels last.
    pub fn features_of(self, map: &[f32], channels: usize) -> Vec<f32> {
        let positions = map.chunks_exact(channels.max(1));
        let fold = |start: f32, step: fn(f32, f32) -> f32| {
            positions.clone().fold(vec![start; channels], |mut all, position| {
                all.iter_mut().zip(position).for_each(|(all, &value)| *all = step(*all, value));
                all
            })
        };
        match self {
            Self::Flatten => map.to_vec(),
            Self::Avg => fold(0.0, |a, b| a + b)
                .into_iter()
                .map(|sum| sum / positions.len() as f32)
                .collect(),
            Self::Max => fold(f32::NEG_INFINITY, f32::max),
        }
    }

    /// Pools a quantized feature map (u8, channels last, with a scale for each channel) into `out`,
    /// which has the length of the map for [`Pool::Flatten`], otherwise that of `scales`.
    ///
    /// The maximum is that of the integers. The mean is a sum in i32 (exact), then one product with
    /// `scale / positions`.
    pub fn features(self, map: &[u8], scales: &[f32], out: &mut [f32]) {
        let positions = map.chunks_exact(scales.len().max(1));
        match self {
            Self::Flatten => {
                for (out, feature) in out.iter_mut().zip(super::dequantize(map, scales)) {
                    *out = feature;
                }
            }
            Self::Avg => {
                let count = positions.len() as f32;
                let mut sums = vec![0i32; scales.len()];
                for position in positions {
                    for (sum, &q) in sums.iter_mut().zip(position) {
                        *sum += i32::from(q);
                    }
                }
                for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
                    *out = sum as f32 * (scale / count);
                }
            }
            Self::Max => {
                let mut largest = vec![0u8; scales.len()];
                for position in positions {
                    for (largest, &q) in largest.iter_mut().zip(position) {
                        *largest = (*largest).max(q);
                    }
                }
                for (out, feature) in out.iter_mut().zip(super::dequantize(&largest, scales)) {
                    *out = feature;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the definitions, channel by channel, in f64.
        #[test]
        fn pooling_matches_its_definition(
            channels in 1usize..9, positions in 1usize..20, seed: u64,
            scales in prop::collection::vec(1e-4f32..10.0, 9),
        ) {
            let map: Vec<u8> = (0..channels * positions)
                .map(|i| seed.rotate_left(i as u32 % 64).wrapping_mul(i as u64 * 2 + 1))
                .map(|bits| (bits >> 56) as u8)
                .collect();
            let scales = &scales[..channels];
            let run = |pool: Pool, len: usize| {
                let mut out = vec![f32::NAN; len];
                pool.features(&map, scales, &mut out);
                out
            };
            let flat = run(Pool::Flatten, map.len());
            let (avg, max) = (run(Pool::Avg, channels), run(Pool::Max, channels));
            for c in 0..channels {
                let all = || flat.iter().skip(c).step_by(channels).copied();
                prop_assert_eq!(max[c], all().fold(0.0, f32::max));
                let mean = all().map(f64::from).sum::<f64>() / positions as f64;
                prop_assert!((f64::from(avg[c]) - mean).abs() <= 1e-6 * mean, "{} {mean}", avg[c]);
            }
            let real = |pool: Pool, found: &[f32]| {
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs();
                pool.features_of(&flat, channels).iter().zip(found).all(close)
            };
            prop_assert!(real(Pool::Flatten, &flat));
            prop_assert!(real(Pool::Avg, &avg) && real(Pool::Max, &max));
            if positions == 1 {
                prop_assert_eq!(&avg, &flat);
            }
        }
    }
}
