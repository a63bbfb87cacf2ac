//! The range of an activation: the part of the observed values that u8 covers.

use crate::{Error, Result};

/// Number of bins of a histogram.
const BINS: usize = 8192;

/// The choice of the largest representable value of a layer's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// The largest observed value.
    MinMax,
    /// The value that this percentage of all positive values does not exceed.
    Percentile(f64),
    /// The value with the least mean squared error of rounding and clipping together.
    Mse,
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MinMax => f.write_str("min-max"),
            Self::Percentile(percent) => write!(f, "percentile {percent}"),
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
    /// Creates an empty histogram for values up to `largest`.
    pub fn new(largest: f32) -> Self {
        Self { largest, counts: vec![0; BINS] }
    }

    /// Returns the upper end of the last bin.
    pub fn largest(&self) -> f32 {
        self.largest
    }

    /// Counts values; those that are not positive are skipped, since 0 has no error.
    pub fn add(&mut self, values: impl Iterator<Item = f32>) {
        let step = BINS as f32 / self.largest;
        for value in values.filter(|&v| v > 0.0) {
            self.counts[((value * step) as usize).min(BINS - 1)] += 1;
        }
    }

    /// Adds the counts of another histogram with the same range.
    pub fn merge(mut self, other: &Self) -> Self {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self
    }

    /// Returns the largest value that u8 represents, in (0, largest].
    ///
    /// # Errors
    /// [`Error::Layer`] without positive values.
    pub fn reach(&self, method: Method, layer: &str) -> Result<f32> {
        let total: u64 = self.counts.iter().sum();
        if total == 0 || !self.largest.is_normal() {
            return Err(Error::Layer {
                layer: layer.into(),
                reason: "no calibration image gives it an output above 0; \
                         calibrate with photographs like those to be classified"
                    .into(),
            });
        }
        let width = f64::from(self.largest) / BINS as f64;
        Ok(match method {
            Method::MinMax => self.largest,
            Method::Percentile(percent) => {
                let wanted = percent / 100.0 * total as f64;
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

    /// Returns the sum of the squared errors of u8 up to `reach`, with the middle of each bin as
    /// its value.
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
    fn calibration_methods_choose_the_range() {
        // A thousand values up to 1 and a single outlier at 10.
        let mut values: Vec<f32> = (1..=1000).map(|i| i as f32 / 1000.0).collect();
        values.push(10.0);
        let seen = histogram(&values);
        assert_eq!(seen.reach(Method::MinMax, "l").unwrap(), 10.0);
        let percentile = seen.reach(Method::Percentile(99.8), "l").unwrap();
        assert!((0.99..1.01).contains(&percentile), "{percentile}");
        assert_eq!(seen.reach(Method::Percentile(100.0), "l").unwrap(), 10.0);
        // Clipping one value by 1 costs more than finer rounding of a thousand values gains.
        assert!(seen.reach(Method::Mse, "l").unwrap() > 9.0);
        // With a million small values it is the opposite.
        let many: Vec<f32> =
            (0..2_000_000).map(|i| (i % 1000) as f32 / 1000.0).chain([10.0]).collect();
        assert!(histogram(&many).reach(Method::Mse, "l").unwrap() < 9.0);
    }

    #[test]
    fn an_empty_histogram_is_an_error() {
        assert!(
            Histogram::new(0.0)
                .reach(Method::Mse, "block1_conv1")
                .unwrap_err()
                .to_string()
                .contains("block1_conv1")
        );
    }
}
