mod errors;
mod fine_tune;
mod keras;
mod keras_fixture;
mod keras_options;
mod keras_options_fixture;
mod training;

use std::ops::ControlFlow;

use proptest::prelude::*;

use super::*;

/// Features in memory.
struct Matrix {
    dim: usize,
    values: Vec<f32>,
}

impl FeatureSource for Matrix {
    fn len(&self) -> usize {
        self.values.len().checked_div(self.dim).unwrap_or(3)
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn gather(&self, rows: &[usize], out: &mut [f32]) -> std::io::Result<()> {
        assert_eq!(out.len(), rows.len() * self.dim);
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(self.dim)) {
            out.copy_from_slice(&self.values[row * self.dim..][..self.dim]);
        }
        Ok(())
    }
}

/// Features with their labels.
struct Samples {
    features: Matrix,
    labels: Vec<usize>,
}

impl Samples {
    /// Samples that a linear classifier separates: non-negative noise, to which 1 is added in the
    /// features that belong to the class.
    fn separable(rows: usize, dim: usize, classes: usize, seed: u64) -> Self {
        let mut random = random::Random::new(seed);
        // The generator has no plain uniform numbers; these are uniform in -1..1 up to a factor.
        let noise = random.weights.glorot_uniform(rows, dim);
        let scale = (6.0 / (rows + dim) as f32).sqrt();
        let labels: Vec<usize> = (0..rows).map(|row| row * 7 % classes).collect();
        let values = noise
            .iter()
            .enumerate()
            .map(|(i, noise)| {
                let signal = (i % dim) % classes == labels[i / dim];
                (noise / scale * 0.7).max(0.0) + f32::from(u8::from(signal))
            })
            .collect();
        Self { features: Matrix { dim, values }, labels }
    }

    fn new(dim: usize, values: &[f32], labels: &[usize]) -> Self {
        Self { features: Matrix { dim, values: values.to_vec() }, labels: labels.to_vec() }
    }

    fn dataset(&self) -> Dataset<'_> {
        Dataset { features: &self.features, labels: &self.labels }
    }
}

/// Small and quick.
fn small_config() -> TrainConfig {
    TrainConfig {
        units: vec![8],
        dropout: 0.3,
        optimizer: Optimizer::rms_prop(0.005),
        epochs: 6,
        batch_size: 8,
        seed: 5,
        ..TrainConfig::default()
    }
}

fn run(
    config: &TrainConfig,
    training: &Samples,
    validation: Option<&Samples>,
) -> Result<TrainedHead, TrainError> {
    let validation = validation.map(Samples::dataset);
    train(
        config,
        &training.dataset(),
        validation.as_ref(),
        None,
        &mut |_| ControlFlow::Continue(()),
    )
}

/// The weights as bits, since -0.0 equals 0.0 and NaN nothing.
fn bits(head: &TrainedHead) -> Vec<u32> {
    let values = head.layers.iter().flat_map(|l| l.kernel.iter().chain(&l.bias));
    values.map(|v| v.to_bits()).collect()
}
