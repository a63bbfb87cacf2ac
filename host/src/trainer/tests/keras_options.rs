//! Compares whole epochs with Keras 3 under the options beyond the plain head;
//! `record_keras_options.py` records them.

use serde::Deserialize;

use super::super::network::Network;
use super::super::{head_network::HeadNetwork, train::train_from};
use super::keras::assert_close;
use super::*;

#[derive(Deserialize)]
struct Recording {
    features: usize,
    batch: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    optimizer: Optimizer,
    classes: usize,
    units: Vec<usize>,
    batch_norm: bool,
    l2: f64,
    class_weights: Vec<f64>,
    label_smoothing: f64,
    schedule: Schedule,
    /// All tensors of the model before the first epoch, in the order of Keras.
    start: Vec<Vec<f32>>,
    features: Vec<f32>,
    labels: Vec<usize>,
    val_features: Vec<f32>,
    val_labels: Vec<usize>,
    loss: Vec<f64>,
    accuracy: Vec<f64>,
    val_loss: Vec<f64>,
    val_accuracy: Vec<f64>,
    lr: Vec<f64>,
    /// All tensors after the last epoch.
    end: Vec<Vec<f32>>,
}

fn recording() -> Recording {
    serde_json::from_str(include_str!("keras_options.json")).unwrap()
}

impl Case {
    fn config(&self, batch_size: usize) -> TrainConfig {
        TrainConfig {
            units: self.units.clone(),
            batch_norm: self.batch_norm,
            dropout: 0.0,
            l2: self.l2,
            class_weights: self.class_weights.clone(),
            label_smoothing: self.label_smoothing,
            classes: self.classes,
            optimizer: self.optimizer,
            schedule: self.schedule,
            epochs: self.loss.len(),
            batch_size,
            shuffle: false,
            ..TrainConfig::default()
        }
    }

    /// Layers from the tensors of Keras, which has a hidden layer with batch normalization as
    /// kernel, gamma, beta, mean, variance, and others as kernel, bias.
    fn layers(&self, tensors: &[Vec<f32>]) -> Vec<DenseWeights> {
        let mut tensors = tensors.iter().cloned();
        let mut next = || tensors.next().unwrap();
        let hidden = self.units.iter().map(|_| self.batch_norm).chain([false]);
        hidden
            .map(|norm| {
                let kernel = next();
                let gamma = norm.then(&mut next);
                let bias = next();
                let norm = gamma.map(|gamma| BatchNorm { gamma, mean: next(), variance: next() });
                let outputs = bias.len();
                DenseWeights { inputs: kernel.len() / outputs, outputs, kernel, bias, norm }
            })
            .collect()
    }
}

fn values(layers: &[DenseWeights]) -> Vec<f32> {
    let tensors = layers.iter().flat_map(|layer| {
        let norm = layer.norm.iter().flat_map(|norm| [&norm.gamma, &norm.mean, &norm.variance]);
        [&layer.kernel, &layer.bias].into_iter().chain(norm)
    });
    tensors.flatten().copied().collect()
}

#[test]
fn epochs_with_options_match_keras() {
    let Recording { features, batch, cases } = recording();
    for case in &cases {
        let training = Samples::new(features, &case.features, &case.labels);
        let validation = Samples::new(features, &case.val_features, &case.val_labels);
        let config = case.config(batch);
        config.validate().unwrap();
        let (layers, random) = (case.layers(&case.start), random::Random::new(0));
        let start = TrainState::new(&config, layers, random, training.labels.len());
        let (training, validation) = (training.dataset(), validation.dataset());
        let mut last = Vec::new();
        let head = train_from(&config, start, &training, Some(&validation), &mut |progress| {
            last = progress.state().weights;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(head.history.len(), case.loss.len());
        for (i, stats) in head.history.iter().enumerate() {
            let what = format!("{}, epoch {}", case.name, stats.epoch);
            assert_close(stats.loss, case.loss[i], &what);
            assert_close(stats.accuracy, case.accuracy[i], &what);
            assert_close(stats.val_loss.unwrap(), case.val_loss[i], &what);
            assert_close(stats.val_accuracy.unwrap(), case.val_accuracy[i], &what);
            assert_close(stats.lr, case.lr[i], &what);
        }
        let (found, expected) = (values(&last), values(&case.layers(&case.end)));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(f64::from(*found), f64::from(*expected), &case.name);
        }
    }
}

/// The head that is kept has its batch normalization folded: its logits are those of the trained
/// network.
#[test]
fn folding_batch_norm_keeps_the_logits() {
    let mut folded_some = false;
    for case in recording().cases.iter().filter(|case| case.batch_norm) {
        let layers = case.layers(&case.end);
        let folded: Vec<DenseWeights> = layers.iter().cloned().map(DenseWeights::folded).collect();
        assert!(folded.iter().all(|layer| layer.norm.is_none()));
        let logits = |layers: &[DenseWeights]| {
            HeadNetwork::new(layers).logits(case.features.clone(), case.labels.len())
        };
        let (before, after) = (logits(&layers), logits(&folded));
        let largest = before.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        for (before, after) in before.iter().zip(&after) {
            assert!(
                (before - after).abs() <= 1e-5 * largest,
                "{}: {before} and {after}",
                case.name
            );
        }
        folded_some |= folded != layers;
    }
    assert!(folded_some);
}
