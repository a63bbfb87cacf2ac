//! Compares whole epochs with what Keras 3 did under the options beyond the plain head; `record_keras_options.py` recorded it.

use super::super::{fit::fit, random::Random};
use super::keras::assert_close;
use super::keras_options_fixture::{BATCH, CASES, FEATURES};
use super::*;

pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) optimizer: Optimizer,
    pub(super) classes: usize,
    pub(super) units: &'static [usize],
    pub(super) batch_norm: bool,
    pub(super) l2: f64,
    pub(super) class_weights: &'static [f64],
    pub(super) label_smoothing: f64,
    pub(super) schedule: Schedule,
    /// All tensors of the model before the first epoch, in the order of Keras.
    pub(super) start: &'static [&'static [f32]],
    pub(super) features: &'static [f32],
    pub(super) labels: &'static [usize],
    pub(super) val_features: &'static [f32],
    pub(super) val_labels: &'static [usize],
    pub(super) loss: &'static [f64],
    pub(super) accuracy: &'static [f64],
    pub(super) val_loss: &'static [f64],
    pub(super) val_accuracy: &'static [f64],
    pub(super) lr: &'static [f64],
    /// All tensors after the last.
    pub(super) end: &'static [&'static [f32]],
}

impl Case {
    fn config(&self) -> TrainConfig {
        TrainConfig {
            units: self.units.to_vec(),
            batch_norm: self.batch_norm,
            dropout: 0.0,
            l2: self.l2,
            class_weights: self.class_weights.to_vec(),
            label_smoothing: self.label_smoothing,
            classes: self.classes,
            optimizer: self.optimizer,
            schedule: self.schedule,
            epochs: self.loss.len(),
            batch_size: BATCH,
            shuffle: false,
            ..TrainConfig::default()
        }
    }

    /// Keras has a hidden layer with batch normalisation as kernel, gamma, beta, mean, variance; others as kernel, bias.
    fn layers(&self, tensors: &[&[f32]]) -> Vec<DenseWeights> {
        let mut tensors = tensors.iter().map(|tensor| tensor.to_vec());
        let mut next = || tensors.next().unwrap();
        let hidden = self.units.iter().map(|_| self.batch_norm).chain([false]);
        hidden
            .map(|norm| {
                let kernel = next();
                let gamma = norm.then(&mut next);
                let bias = next();
                let norm = gamma.map(|gamma| BatchNorm { gamma, mean: next(), variance: next() });
                DenseWeights {
                    inputs: kernel.len() / bias.len(),
                    outputs: bias.len(),
                    kernel,
                    bias,
                    norm,
                }
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
fn epochs_with_options_match() {
    for case in CASES {
        let training = Samples::new(FEATURES, case.features, case.labels);
        let validation = Samples::new(FEATURES, case.val_features, case.val_labels);
        let config = case.config();
        config.validate().unwrap();
        let start =
            State::new(&config, case.layers(case.start), Random::new(0), training.labels.len());
        let mut last = Vec::new();
        let head = fit(
            &config,
            start,
            &training.dataset(),
            Some(&validation.dataset()),
            &mut |progress| {
                last = progress.state().unwrap().layers;
                ControlFlow::Continue(())
            },
        )
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
        let (found, expected) = (values(&last), values(&case.layers(case.end)));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(f64::from(*found), f64::from(*expected), case.name);
        }
    }
}

/// The head that is kept has its batch normalisation folded away: its logits are those of the network as it was trained.
#[test]
fn folding_keeps_the_logits() {
    let mut folded_some = false;
    for case in CASES.iter().filter(|case| case.batch_norm) {
        let layers = case.layers(case.end);
        let folded: Vec<DenseWeights> = layers.iter().cloned().map(DenseWeights::folded).collect();
        assert!(folded.iter().all(|layer| layer.norm.is_none()));
        let logits = |layers: &[DenseWeights]| {
            network::Network::new(layers).logits(case.features.to_vec(), case.labels.len()).unwrap()
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
