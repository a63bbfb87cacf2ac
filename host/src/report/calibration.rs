//! Calibration of the scores: reliability bins and the expected calibration error.

/// Bins of equal width over scores from 0 to 1.
pub const BINS: usize = 10;

/// Predictions whose score falls into one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    /// Number of predictions.
    pub count: u64,
    /// Number of correct predictions.
    pub correct: u64,
    /// Sum of the scores.
    pub scores: f64,
}

impl Bin {
    /// Mean score, 0 to 1.
    pub fn score(&self) -> f64 {
        self.scores / self.count.max(1) as f64
    }

    /// Fraction of correct predictions, 0 to 1.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.count.max(1) as f64
    }
}

/// A reliability diagram: the predictions by score (Guo et al. 2017, arXiv:1706.04599, section 2).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reliability {
    /// Bin `i` has the scores from `i / BINS` up to but excluding `(i + 1) / BINS`, which the last
    /// bin includes.
    pub bins: [Bin; BINS],
}

impl Reliability {
    /// Bins predictions, each given by the score of the predicted class and whether it is correct.
    pub fn of(predictions: impl Iterator<Item = (f64, bool)>) -> Self {
        let mut out = Self::default();
        for (score, correct) in predictions {
            let bin = &mut out.bins[((score * BINS as f64) as usize).min(BINS - 1)];
            bin.count += 1;
            bin.correct += u64::from(correct);
            bin.scores += score;
        }
        out
    }

    /// Number of predictions.
    pub fn count(&self) -> u64 {
        self.bins.iter().map(|bin| bin.count).sum()
    }

    /// Expected calibration error, 0 to 1: the mean over the predictions of the distance between
    /// accuracy and mean score of their bin. 0 if there are none.
    pub fn error(&self) -> f64 {
        let distances: f64 =
            self.bins.iter().map(|bin| (bin.correct as f64 - bin.scores).abs()).sum();
        distances / self.count().max(1) as f64
    }
}

/// The 95 % confidence interval of a proportion of which `correct` of `count` were observed
/// (Wilson score interval); 0 to 1.
pub fn interval(correct: u64, count: u64) -> (f64, f64) {
    const Z: f64 = 1.959_963_985;
    if count == 0 {
        return (0.0, 1.0);
    }
    let (n, p) = (count as f64, correct as f64 / count as f64);
    let middle = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((middle - half) / scale).max(0.0), ((middle + half) / scale).min(1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition in the paper, one bin at a time.
    fn naive(answers: &[(f64, bool)]) -> f64 {
        let mut error = 0.0;
        for bin in 0..BINS {
            let (low, high) = (bin as f64 / BINS as f64, (bin + 1) as f64 / BINS as f64);
            let inside: Vec<_> = answers
                .iter()
                .filter(|(s, _)| *s >= low && (*s < high || (bin == BINS - 1 && *s <= 1.0)))
                .collect();
            if inside.is_empty() {
                continue;
            }
            let n = inside.len() as f64;
            let accuracy = inside.iter().filter(|(_, right)| *right).count() as f64 / n;
            let confidence = inside.iter().map(|(s, _)| s).sum::<f64>() / n;
            error += n / answers.len() as f64 * (accuracy - confidence).abs();
        }
        error
    }

    #[test]
    fn known_calibration_errors() {
        assert_eq!(Reliability::default().error(), 0.0);
        // Three of four right at 0.75: perfect. All right at 0.6: off by 0.4.
        let fair = [(0.75, true), (0.75, true), (0.75, false), (0.75, true)];
        assert!(Reliability::of(fair.into_iter()).error() < 1e-12);
        let shy = [(0.6, true); 5];
        assert!((Reliability::of(shy.into_iter()).error() - 0.4).abs() < 1e-12);
        assert_eq!(Reliability::of([(1.0, true)].into_iter()).bins[BINS - 1].count, 1);
    }

    #[test]
    fn wilson_intervals_of_the_literature() {
        // Newcombe 1998, table I: 81 of 263, and none of 20.
        let (low, high) = interval(81, 263);
        assert!((low - 0.2553).abs() < 1e-4 && (high - 0.3662).abs() < 1e-4, "{low} {high}");
        let (low, high) = interval(0, 20);
        assert!(low == 0.0 && (high - 0.1611).abs() < 1e-4, "{low} {high}");
        assert_eq!(interval(0, 0), (0.0, 1.0));
    }

    proptest! {
        #[test]
        fn calibration_error_is_that_of_the_paper(
            scores in prop::collection::vec((0u32..=1000, any::<bool>()), 1..200),
        ) {
            let answers: Vec<_> =
                scores.into_iter().map(|(s, correct)| (f64::from(s) / 1000.0, correct)).collect();
            let found = Reliability::of(answers.iter().copied());
            prop_assert_eq!(found.count(), answers.len() as u64);
            prop_assert!((found.error() - naive(&answers)).abs() < 1e-9);
        }
    }
}
