//! Compares with recorded steps and epochs of Keras 3; `record_keras.py` records them.

use serde::Deserialize;

use super::super::loss::{LossRule, cross_entropy};
use super::super::network::Network;
use super::super::{head_network::HeadNetwork, optimizer::OptimizerState, train::train_from};
use super::*;

#[derive(Deserialize)]
struct Recording {
    features: usize,
    batch: usize,
    batches: Vec<Batch>,
    steps: Vec<StepCase>,
    fits: Vec<FitCase>,
}

#[derive(Deserialize)]
struct Batch {
    features: Vec<f32>,
    two_classes: Vec<usize>,
    three_classes: Vec<usize>,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    accuracy: f64,
    /// Kernel and bias of each layer after the step.
    weights: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct StepCase {
    name: String,
    optimizer: Optimizer,
    classes: usize,
    start: Vec<Vec<f32>>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct FitCase {
    name: String,
    optimizer: Optimizer,
    classes: usize,
    units: usize,
    start: Vec<Vec<f32>>,
    features: Vec<f32>,
    labels: Vec<usize>,
    val_features: Vec<f32>,
    val_labels: Vec<usize>,
    loss: Vec<f64>,
    accuracy: Vec<f64>,
    val_loss: Vec<f64>,
    val_accuracy: Vec<f64>,
}

const TOLERANCE: f64 = 1e-5;

pub(super) fn assert_close(actual: f64, expected: f64, what: &str) {
    let difference = (actual - expected).abs();
    assert!(difference < TOLERANCE, "{what}: {actual}, Keras {expected}");
}

fn recording() -> Recording {
    serde_json::from_str(include_str!("keras.json")).unwrap()
}

fn layers(tensors: &[Vec<f32>]) -> Vec<DenseWeights> {
    tensors
        .chunks_exact(2)
        .map(|pair| DenseWeights {
            inputs: pair[0].len() / pair[1].len(),
            outputs: pair[1].len(),
            kernel: pair[0].clone(),
            bias: pair[1].clone(),
            norm: None,
        })
        .collect()
}

#[test]
fn first_steps_match_keras() {
    let recording = recording();
    for case in &recording.steps {
        let start = layers(&case.start);
        assert_eq!(start[0].inputs, recording.features);
        let outputs = start.last().unwrap().outputs;
        let mut network = HeadNetwork::new(&start);
        let lengths: Vec<usize> = network.parameters().iter().map(|p| p.values.len()).collect();
        let mut optimizer = OptimizerState::new(case.optimizer, &lengths);
        for (number, (step, batch)) in case.steps.iter().zip(&recording.batches).enumerate() {
            let what = format!("{}, step {}", case.name, number + 1);
            let labels = if case.classes == 2 { &batch.two_classes } else { &batch.three_classes };
            let rows = labels.len();
            let logits = network.forward(batch.features.clone(), rows, None);
            let loss = cross_entropy(&logits, labels, outputs, LossRule::default());
            network.backward(loss.gradient);
            optimizer.begin_step();
            for (index, parameter) in network.parameters_mut().into_iter().enumerate() {
                optimizer.update(index, &mut parameter.values, &parameter.gradient);
            }
            // The values of single losses agree better than the weights.
            let mean = loss.sum / rows as f64;
            assert!((mean - step.loss).abs() < 1e-6, "{what}: {mean}, {}", step.loss);
            assert_close(loss.correct as f64 / rows as f64, step.accuracy, &what);
            for (layer, expected) in network.weights().iter().zip(layers(&step.weights)) {
                assert_eq!(layer.kernel.len(), expected.kernel.len());
                let pairs = layer.kernel.iter().zip(&expected.kernel);
                for (a, e) in pairs.chain(layer.bias.iter().zip(&expected.bias)) {
                    assert_close(f64::from(*a), f64::from(*e), &what);
                }
            }
        }
        assert_eq!(case.steps.len(), recording.batches.len());
    }
}

/// Whole epochs with a partial last batch: the metrics are those of Keras.
#[test]
fn epoch_statistics_match_keras() {
    let recording = recording();
    for case in &recording.fits {
        let training = Samples::new(recording.features, &case.features, &case.labels);
        let validation = Samples::new(recording.features, &case.val_features, &case.val_labels);
        assert_ne!(training.labels.len() % recording.batch, 0);
        let config = TrainConfig {
            units: if case.units > 0 { vec![case.units] } else { vec![] },
            dropout: 0.0,
            classes: case.classes,
            optimizer: case.optimizer,
            epochs: case.loss.len(),
            batch_size: recording.batch,
            shuffle: false,
            ..TrainConfig::default()
        };
        let random = random::Random::new(0);
        let head = train_from(
            &config,
            TrainState::new(&config, layers(&case.start), random, training.labels.len()),
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
