//! Compares with what Keras 3 did; `record_keras.py` recorded it.

use super::super::{fit::fit, loss::LossRule, random::Random};
use super::keras_fixture::{BATCH, BATCHES, FEATURES, FITS, STEPS};
use super::*;

pub(super) struct Batch {
    pub(super) features: &'static [f32],
    pub(super) two_classes: &'static [usize],
    pub(super) three_classes: &'static [usize],
}

pub(super) struct Step {
    pub(super) loss: f64,
    pub(super) accuracy: f64,
    /// Kernel and bias of each layer after the step.
    pub(super) weights: &'static [&'static [f32]],
}

pub(super) struct StepCase {
    pub(super) name: &'static str,
    pub(super) optimizer: Optimizer,
    pub(super) classes: usize,
    pub(super) start: &'static [&'static [f32]],
    pub(super) steps: &'static [Step],
}

pub(super) struct FitCase {
    pub(super) name: &'static str,
    pub(super) optimizer: Optimizer,
    pub(super) classes: usize,
    pub(super) units: usize,
    pub(super) start: &'static [&'static [f32]],
    pub(super) features: &'static [f32],
    pub(super) labels: &'static [usize],
    pub(super) val_features: &'static [f32],
    pub(super) val_labels: &'static [usize],
    pub(super) loss: &'static [f64],
    pub(super) accuracy: &'static [f64],
    pub(super) val_loss: &'static [f64],
    pub(super) val_accuracy: &'static [f64],
}

const TOLERANCE: f64 = 1e-5;

pub(super) fn assert_close(actual: f64, expected: f64, what: &str) {
    let difference = (actual - expected).abs();
    assert!(difference < TOLERANCE, "{what}: {actual}, Keras {expected}");
}

fn layers(tensors: &[&[f32]]) -> Vec<DenseWeights> {
    tensors
        .chunks_exact(2)
        .map(|pair| DenseWeights {
            inputs: pair[0].len() / pair[1].len(),
            outputs: pair[1].len(),
            kernel: pair[0].to_vec(),
            bias: pair[1].to_vec(),
            norm: None,
        })
        .collect()
}

/// All batches as one data set.
fn batches(classes: usize, count: usize) -> Samples {
    let batches = &BATCHES[..count];
    let labels = |batch: &Batch| match classes {
        2 => batch.two_classes,
        _ => batch.three_classes,
    };
    Samples::new(
        FEATURES,
        &batches.iter().flat_map(|b| b.features).copied().collect::<Vec<_>>(),
        &batches.iter().flat_map(labels).copied().collect::<Vec<_>>(),
    )
}

#[test]
fn first_steps_match() {
    for case in STEPS {
        let mut start = layers(case.start);
        assert_eq!(start[0].inputs, FEATURES);
        let mut network = network::Network::new(&start);
        let mut state = optimizer::OptimizerState::new(case.optimizer, &network.lengths());
        let outputs = start.pop().map_or(0, |last| last.outputs);
        for (step, number) in case.steps.iter().zip(1..) {
            let what = format!("{}, step {number}", case.name);
            let samples = batches(case.classes, number);
            let rows: Vec<usize> = ((number - 1) * BATCH..number * BATCH).collect();
            let (features, labels) = samples.dataset().batch(Split::Training, &rows).unwrap();
            let (gradients, (loss, correct)) = network
                .gradients(features, BATCH, Vec::new(), |logits| {
                    let loss = loss::cross_entropy(&logits, &labels, outputs, LossRule::default());
                    Ok((loss.gradient, (loss.sum, loss.correct)))
                })
                .unwrap();
            (network, _) = network.update(gradients, &mut state, 0.0).unwrap();
            // The values of single losses agree better than the weights.
            let loss = loss / BATCH as f64;
            assert!((loss - step.loss).abs() < 1e-6, "{what}: {loss}, {}", step.loss);
            assert_close(correct as f64 / BATCH as f64, step.accuracy, &what);
            let weights = network.weights().unwrap();
            for (layer, expected) in weights.iter().zip(layers(step.weights)) {
                assert_eq!(layer.kernel.len(), expected.kernel.len());
                let pairs = layer.kernel.iter().zip(&expected.kernel);
                for (a, e) in pairs.chain(layer.bias.iter().zip(&expected.bias)) {
                    assert_close(f64::from(*a), f64::from(*e), &what);
                }
            }
        }
    }
}

/// Whole epochs with a partial last batch: the statistics are Keras's too.
#[test]
fn epoch_statistics_match() {
    for case in FITS {
        let training = Samples::new(FEATURES, case.features, case.labels);
        let validation = Samples::new(FEATURES, case.val_features, case.val_labels);
        assert_ne!(training.labels.len() % BATCH, 0);
        let config = TrainConfig {
            units: if case.units > 0 { vec![case.units] } else { vec![] },
            dropout: 0.0,
            classes: case.classes,
            optimizer: case.optimizer,
            epochs: case.loss.len(),
            batch_size: BATCH,
            shuffle: false,
            ..TrainConfig::default()
        };
        let head = fit(
            &config,
            State::new(&config, layers(case.start), Random::new(0), training.labels.len()),
            &training.dataset(),
            Some(&validation.dataset()),
            &mut |_| ControlFlow::Continue(()),
        )
        .unwrap();
        for (i, stats) in head.history.iter().enumerate() {
            let what = format!("{}, epoch {}", case.name, stats.epoch);
            assert_close(stats.loss, case.loss[i], &what);
            assert_close(stats.accuracy, case.accuracy[i], &what);
            assert_close(stats.val_loss.unwrap(), case.val_loss[i], &what);
            assert_close(stats.val_accuracy.unwrap(), case.val_accuracy[i], &what);
        }
    }
}
