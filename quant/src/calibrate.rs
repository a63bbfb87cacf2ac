//! The range of an activation: how much of what was seen u8 covers.

use crate::{Error, Result};

/// Bins of a histogram.
const BINS: usize = 8192;

/// How the largest representable value of a layer's output is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// The largest value that was seen.
    MinMax,
    /// The value that this share (percent) of all positive values does not exceed.
    Percentile(f64),
    /// The value that gives the least mean squared error of rounding and clipping together.
    Mse,
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MinMax => f.write_str("min-max"),
            Self::Percentile(share) => write!(f, "percentile {share}"),
            Self::Mse => f.write_str("MSE"),
        }
    }
}

/// Counts of the positive values of an activation, in bins of equal width from 0 to the largest.
#[derive(Clone, Debug)]
pub struct Histogram {
    largest: f32,
    counts: Vec<u64>,
}

impl Histogram {
    /// An empty one for values up to `largest`.
    pub fn new(largest: f32) -> Self {
        Self { largest, counts: vec![0; BINS] }
    }

    /// Counts values; those that are not positive are left out, since 0 has no error.
    pub fn add(&mut self, values: impl Iterator<Item = f32>) {
        let step = BINS as f32 / self.largest;
        for value in values.filter(|&v| v > 0.0) {
            self.counts[((value * step) as usize).min(BINS - 1)] += 1;
        }
    }

    /// Adds the counts of another of the same range.
    pub fn merge(mut self, other: &Self) -> Self {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self
    }

    /// The largest value that u8 shall represent, in (0, largest].
    ///
    /// # Errors
    /// [`Error::Layer`] if nothing positive was seen.
    pub fn reach(&self, method: Method, layer: &str) -> Result<f32> {
        let total: u64 = self.counts.iter().sum();
        if total == 0 || !self.largest.is_normal() {
            return Err(Error::Layer {
                layer: layer.into(),
                reason: "no calibration picture gives it an output above 0; calibrate with photographs like those it will see"
                    .into(),
            });
        }
        let width = f64::from(self.largest) / BINS as f64;
        Ok(match method {
            Method::MinMax => self.largest,
            Method::Percentile(share) => {
                let wanted = share / 100.0 * total as f64;
                let mut seen = 0;
                let bin = self.counts.iter().position(|&count| {
                    seen += count;
                    seen as f64 >= wanted
                });
                ((bin.unwrap_or(BINS - 1) + 1) as f64 * width) as f32
            }
            Method::Mse => {
                let (mut best, mut least) = (self.largest, f64::INFINITY);
                for percent in (10..=100).rev() {
                    let reach = f64::from(self.largest) * f64::from(percent) / 100.0;
                    let error = self.squared_error(reach, width);
                    if error < least {
                        (best, least) = (reach as f32, error);
                    }
                }
                best
            }
        })
    }

    /// Sum of the squared errors of u8 up to `reach`, each bin taken at its middle.
    fn squared_error(&self, reach: f64, width: f64) -> f64 {
        let scale = reach / 255.0;
        let error = |(bin, &count): (usize, &u64)| {
            let value = (bin as f64 + 0.5) * width;
            let back = (value / scale).round_ties_even().min(255.0) * scale;
            count as f64 * (back - value) * (back - value)
        };
        self.counts.iter().enumerate().map(error).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::new(values.iter().copied().fold(0.0, f32::max));
        histogram.add(values.iter().copied());
        histogram
    }

    #[test]
    fn methods_choose_what_they_say() {
        // A thousand values up to 1 and a single outlier at 10.
        let mut values: Vec<f32> = (1..=1000).map(|i| i as f32 / 1000.0).collect();
        values.push(10.0);
        let seen = histogram(&values);
        assert_eq!(seen.reach(Method::MinMax, "l").unwrap(), 10.0);
        let percentile = seen.reach(Method::Percentile(99.8), "l").unwrap();
        assert!((0.99..1.01).contains(&percentile), "{percentile}");
        assert_eq!(seen.reach(Method::Percentile(100.0), "l").unwrap(), 10.0);
        // One value clipped by 1 costs more than a thousand values rounded finer gain.
        assert!(seen.reach(Method::Mse, "l").unwrap() > 9.0);
        // With a million small values it is the other way round.
        let many: Vec<f32> =
            (0..2_000_000).map(|i| (i % 1000) as f32 / 1000.0).chain([10.0]).collect();
        assert!(histogram(&many).reach(Method::Mse, "l").unwrap() < 9.0);
    }

    #[test]
    fn nothing_seen_is_an_error() {
        assert!(
            Histogram::new(0.0)
                .reach(Method::Mse, "block1_conv1")
                .unwrap_err()
                .to_string()
                .contains("block1_conv1")
        );
    }
}
