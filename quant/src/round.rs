//! Weights to i8: a scale for each output channel, and the rounding.

use rayon::prelude::*;

use crate::linalg::Symmetric;

/// Largest weight in integers; -128 is excluded to keep the range symmetric.
const LIMIT: f64 = 127.0;

/// Number of output channels whose weights are rounded together.
const BLOCK: usize = 16;

/// The rounding of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Each weight to the nearest integer.
    Nearest,
    /// One after the other; each compensates the errors of those before it, weighted by the
    /// correlation of the inputs.
    Compensated,
}

/// Returns the scale with the least squared error for each output channel, out of 51 between half
/// the largest weight and the largest weight.
///
/// `kernel` is `[outputs, k]`. A channel of zeros gets the scale 1.
pub fn scales(kernel: &[f32], outputs: usize) -> Vec<f32> {
    let k = kernel.len() / outputs.max(1);
    kernel
        .par_chunks_exact(k)
        .map(|weights| {
            let largest = weights.iter().fold(0.0f32, |m, w| m.max(w.abs()));
            if largest == 0.0 {
                return 1.0;
            }
            let (mut best, mut least) = (1.0, f64::INFINITY);
            for percent in (50..=100).rev() {
                let scale = f64::from(largest) * f64::from(percent) / 100.0 / LIMIT;
                let error: f64 = weights
                    .iter()
                    .map(|&w| (nearest(f64::from(w) / scale) * scale - f64::from(w)).powi(2))
                    .sum();
                if error < least {
                    (best, least) = (scale as f32, error);
                }
            }
            best.max(f32::MIN_POSITIVE)
        })
        .collect()
}

fn nearest(value: f64) -> f64 {
    value.round_ties_even().clamp(-LIMIT, LIMIT)
}

/// Rounds each weight to the nearest multiple of its channel's scale.
pub fn to_nearest(kernel: &[f32], scales: &[f32]) -> Vec<i8> {
    let k = kernel.len() / scales.len().max(1);
    kernel
        .chunks_exact(k.max(1))
        .zip(scales)
        .flat_map(|(weights, &scale)| {
            weights.iter().map(move |&w| nearest(f64::from(w) / f64::from(scale)) as i8)
        })
        .collect()
}

/// Rounds greedily so that the output of the layer changes least on the inputs with the Gram matrix
/// `gram`.
///
/// For a channel with the weights `w` and the integers `q` the squared error over the inputs `x` is
/// `d^T G d` with `d = w / scale - q` and `G = sum x x^T`. With `G = L L^T` that is `|L^T d|^2`,
/// and `L^T` is upper triangular: from the last weight to the first, each `q` is rounded from `w /
/// scale` plus the projection of the errors already made. This is Babai's nearest plane, and the
/// same as GPTQ (Frantar and others 2022, arXiv:2210.17323; for the equality Chen and others 2025,
/// arXiv:2507.18553). The weights of the strongest inputs are rounded first. `damping`, a fraction
/// of the mean of the diagonal, is added to the diagonal, and more if that is not enough.
///
/// `kernel` is `[outputs, k]` and `gram` is `[k, k]`, in the same order of inputs.
pub fn compensated(kernel: &[f32], scales: &[f32], gram: &Symmetric, damping: f64) -> Vec<i8> {
    let k = gram.size();
    let mut order: Vec<usize> = (0..k).collect();
    // The last one is rounded first. The sort is stable, so equal inputs keep their order.
    order.sort_by(|&a, &b| gram.at(a, a).total_cmp(&gram.at(b, b)));
    let mean = ((0..k).map(|i| gram.at(i, i)).sum::<f64>() / k.max(1) as f64).max(1.0);
    let mut damping = damping;
    let upper = loop {
        let mut matrix = gram.permuted(&order);
        matrix.add_to_diagonal(damping * mean);
        match matrix.cholesky() {
            Some(lower) => break lower.transposed(),
            // Adding the mean often enough makes any Gram matrix positive definite.
            None => damping = (10.0 * damping).max(1e-3),
        }
    };
    let mut out = vec![0; kernel.len()];
    out.par_chunks_mut(BLOCK * k).enumerate().for_each(|(block, out)| {
        let lanes = out.len() / k;
        let mut errors = vec![[0.0; BLOCK]; k];
        for (i, row) in upper.iter().enumerate().rev() {
            let projection = weighted(&row[1..], &errors[i + 1..]);
            for lane in 0..lanes {
                let output = block * BLOCK + lane;
                let weight = f64::from(kernel[output * k + order[i]]) / f64::from(scales[output]);
                let q = nearest(weight + projection[lane] / row[0]);
                errors[i][lane] = weight - q;
                out[lane * k + order[i]] = q as i8;
            }
        }
    });
    out
}

/// Returns `sum factors[j] * rows[j]`, in two running sums.
#[inline(always)]
fn weighted(factors: &[f64], rows: &[[f64; BLOCK]]) -> [f64; BLOCK] {
    let mut sums = [[0.0; BLOCK]; 2];
    for (pair, rows) in factors.chunks(2).zip(rows.chunks(2)) {
        for ((sums, factor), row) in sums.iter_mut().zip(pair).zip(rows) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += factor * value;
            }
        }
    }
    std::array::from_fn(|lane| sums[0][lane] + sums[1][lane])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns weights and the Gram matrix of correlated inputs, like neighboring pixels.
    fn layer(outputs: usize, k: usize, seed: u32) -> (Vec<f32>, Symmetric) {
        let mut random = fastrand::Rng::with_seed(seed.into());
        let mut next = || random.f32();
        let kernel = (0..outputs * k).map(|_| next() - 0.5).collect();
        let inputs: Vec<Vec<f64>> = (0..3 * k)
            .map(|_| {
                let common = 200.0 * next();
                (0..k).map(|_| f64::from((common + 40.0 * next()).round())).collect()
            })
            .collect();
        let mut gram = Symmetric::zero(k);
        gram.add_outer(inputs.iter().map(Vec::as_slice));
        (kernel, gram)
    }

    /// Returns `d^T G d` of one output, in units of its scale.
    fn error(weights: &[f32], scale: f32, q: &[i8], gram: &Symmetric) -> f64 {
        let d: Vec<f64> = weights
            .iter()
            .zip(q)
            .map(|(&w, &q)| f64::from(w) / f64::from(scale) - f64::from(q))
            .collect();
        (0..d.len())
            .flat_map(|i| (0..d.len()).map(move |j| (i, j)))
            .map(|(i, j)| d[i] * d[j] * gram.at(i, j))
            .sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// The bound of Babai's nearest plane: each step leaves at most half a unit, so `d^T G d`
        /// is at most a quarter of the sum of the squared diagonal of the factor. A single output
        /// may still be worse than plain rounding by chance.
        #[test]
        fn compensated_rounding_keeps_the_bound_of_the_nearest_plane(
            outputs in 1usize..20, k in 1usize..60, seed: u32,
        ) {
            const DAMPING: f64 = 0.01;
            let (kernel, gram) = layer(outputs, k, seed);
            // Far from the limits of i8, where rounding would be clipped.
            let scales = vec![0.5 / 16.0; outputs];
            let rounded = compensated(&kernel, &scales, &gram, DAMPING);
            let mut damped = gram.permuted(&(0..k).collect::<Vec<_>>());
            damped.add_to_diagonal(DAMPING * (0..k).map(|i| gram.at(i, i)).sum::<f64>() / k as f64);
            let mut order: Vec<usize> = (0..k).collect();
            order.sort_by(|&a, &b| gram.at(a, a).total_cmp(&gram.at(b, b)));
            let upper = damped.permuted(&order).cholesky().unwrap().transposed();
            let bound: f64 = upper.iter().map(|row| row[0] * row[0] / 4.0).sum();
            for o in 0..outputs {
                let q = &rounded[o * k..][..k];
                prop_assume!(q.iter().all(|q| q.unsigned_abs() < 127));
                let found = error(&kernel[o * k..][..k], scales[o], q, &damped);
                prop_assert!(found <= bound * (1.0 + 1e-9), "{found} {bound}");
            }
        }
    }

    #[test]
    fn compensated_rounding_is_better_on_average() {
        let (mut plain, mut better) = (0.0, 0.0);
        for seed in 0..40 {
            let (kernel, gram) = layer(8, 54, seed);
            let scales = scales(&kernel, 8);
            let total = |q: &[i8]| -> f64 {
                (0..8)
                    .map(|o| {
                        error(&kernel[o * 54..][..54], scales[o], &q[o * 54..][..54], &gram)
                            * f64::from(scales[o]).powi(2)
                    })
                    .sum()
            };
            let rounded = compensated(&kernel, &scales, &gram, 0.01);
            assert!(rounded.iter().all(|&q| q != -128));
            plain += total(&to_nearest(&kernel, &scales));
            better += total(&rounded);
        }
        assert!(better < 0.5 * plain, "{better} {plain}");
    }

    #[test]
    fn compensated_rounding_of_uncorrelated_inputs_is_plain_rounding() {
        let kernel = [0.3, -0.7, 1.0, 0.05, 0.5, -1.0];
        let mut gram = Symmetric::zero(3);
        gram.add_to_diagonal(9.0);
        let scales = scales(&kernel, 2);
        assert_eq!(compensated(&kernel, &scales, &gram, 0.01), to_nearest(&kernel, &scales));
    }

    #[test]
    fn rounding_keeps_zeros() {
        let scales = scales(&[0.0; 8], 2);
        assert_eq!(scales, [1.0, 1.0]);
        assert_eq!(compensated(&[0.0; 8], &scales, &Symmetric::zero(4), 0.01), [0; 8]);
    }
}
