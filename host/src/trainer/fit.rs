use std::hint::black_box;
use std::ops::ControlFlow;

use super::data::all_finite;
use super::head::Evaluation;
use super::loss::cross_entropy;
use super::network::Network;
use super::optimizer::OptimizerState;
use super::random::{Random, Stream};
use super::{Dataset, DenseWeights, EpochStats, MAX_WEIGHTS, Split, TrainConfig, TrainError, TrainedHead};

/// Rows that are evaluated at once: enough for the matrix products to run at full speed.
const EVALUATION_ROWS: usize = 256;

/// Trains a head.
///
/// See [the module](super) for what is computed. `on_epoch` is called after each epoch; if it
/// breaks, training stops there, that epoch included, and gives the best head so far.
///
/// The best epoch is the one with the highest validation accuracy, among equals the one with the
/// lowest validation loss, and without a validation set the one with the lowest training loss;
/// among epochs equal in that too, the first.
///
/// # Errors
///
/// If a field of `config` is outside its range; if a data set is empty, has no features, not one
/// label a row, a label that is no class or a feature that is not finite; if the two data sets
/// differ in dimension; if training diverges, so that a loss is not finite.
pub fn train(
    config: &TrainConfig,
    training: &Dataset,
    validation: Option<&Dataset>,
    on_epoch: &mut dyn FnMut(&EpochStats) -> ControlFlow<()>,
) -> Result<TrainedHead, TrainError> {
    config.validate()?;
    training.validate(Split::Training, config.classes)?;
    let dim = training.features.dim();
    if let Some(validation) = validation {
        validation.validate(Split::Validation, config.classes)?;
        if validation.features.dim() != dim {
            return Err(TrainError::DimensionMismatch {
                split: Split::Validation,
                expected: dim,
                found: validation.features.dim(),
            });
        }
    }
    let mut random = Random::new(config.seed);
    let layers = initial_layers(config, dim, &mut random.weights)?;
    fit(config, &layers, &mut random, training, validation, on_epoch)
}

/// Keras's initial weights: `glorot_uniform` kernels and biases of zero.
fn initial_layers(config: &TrainConfig, dim: usize, stream: &mut Stream) -> Result<Vec<DenseWeights>, TrainError> {
    let widths = match config.units {
        0 => vec![dim, config.outputs()],
        units => vec![dim, units, config.outputs()],
    };
    widths
        .windows(2)
        .map(|pair| {
            let (inputs, outputs) = (pair[0], pair[1]);
            let weights = inputs.checked_mul(outputs);
            if weights.is_none_or(|weights| weights > MAX_WEIGHTS) {
                return Err(TrainError::TooManyWeights { inputs, outputs });
            }
            Ok(DenseWeights {
                inputs,
                outputs,
                kernel: stream.glorot_uniform(inputs, outputs),
                bias: vec![0.0; outputs],
            })
        })
        .collect()
}

/// Trains from the given weights; everything is valid.
pub(super) fn fit(
    config: &TrainConfig,
    layers: &[DenseWeights],
    random: &mut Random,
    training: &Dataset,
    validation: Option<&Dataset>,
    on_epoch: &mut dyn FnMut(&EpochStats) -> ControlFlow<()>,
) -> Result<TrainedHead, TrainError> {
    keep_freed_memory();
    let mut network = Network::new(layers);
    let mut optimizer = OptimizerState::new(config.optimizer, &network.lengths());
    let mut order: Vec<usize> = (0..training.labels.len()).collect();
    let mut history: Vec<EpochStats> = Vec::new();
    let mut best: Option<(EpochStats, Vec<DenseWeights>)> = None;
    let lr = config.optimizer.lr();

    for epoch in 1..=config.epochs {
        if config.shuffle {
            random.order.shuffle(&mut order);
        }
        let (mut loss, mut correct) = (0.0, 0);
        for (rows, batch) in order.chunks(config.batch_size).zip(1..) {
            let outcome;
            (network, outcome) = step(config, network, &mut optimizer, &mut random.dropout, training, rows)?;
            let Some(outcome) = outcome else {
                return Err(TrainError::NonFiniteLoss { epoch, batch, lr });
            };
            loss += outcome.loss;
            correct += outcome.correct;
        }
        // The losses do not show what the last step of the epoch did.
        let weights = network.weights()?;
        let diverged = TrainError::NonFiniteWeights { epoch, lr };
        if !weights.iter().all(DenseWeights::is_finite) {
            return Err(diverged);
        }
        let measured = match validation {
            Some(validation) => Some(evaluate(&network, config.outputs(), validation)?.ok_or(diverged)?),
            None => None,
        };
        let samples = order.len() as f64;
        let stats = EpochStats {
            epoch,
            loss: loss / samples,
            accuracy: correct as f64 / samples,
            val_loss: measured.map(|m| m.loss),
            val_accuracy: measured.map(|m| m.accuracy),
        };
        history.push(stats);
        if best.as_ref().is_none_or(|(old, _)| is_better(&stats, old)) {
            best = Some((stats, weights));
        }
        let flow = on_epoch(&stats);
        let waited = epoch - best.as_ref().map_or(epoch, |(stats, _)| stats.epoch);
        let out_of_patience = config.patience.is_some_and(|p| waited >= p.max(1));
        if flow.is_break() || out_of_patience {
            break;
        }
    }

    let Some((stats, layers)) = best else {
        // Not reached: there is at least one epoch, and the first is the best so far.
        return Err(TrainError::backend("no epoch was run"));
    };
    Ok(TrainedHead { layers, best_epoch: stats.epoch, history })
}

/// Has glibc's `malloc` keep the memory of freed tensors for the next ones.
///
/// Each step allocates and frees gradients as large as the weights. By default glibc returns such
/// memory to the system at once and faults it in again, page by page, which takes a fifth of the
/// time of a step, and more for heads on flattened feature maps. Freeing one block of the largest
/// size that it still learns from makes it keep up to twice as much. The block itself is never
/// touched, so it costs nothing; other allocators do not mind it.
fn keep_freed_memory() {
    const LARGEST: usize = (32 << 20) - (64 << 10);
    drop(black_box(Vec::<u8>::with_capacity(LARGEST)));
}

/// What one batch gave before its step.
struct StepOutcome {
    /// The samples' losses, added up.
    loss: f64,
    correct: usize,
}

/// One step on the given rows; no outcome if the loss is not finite.
fn step(
    config: &TrainConfig,
    network: Network,
    optimizer: &mut OptimizerState,
    dropout: &mut Stream,
    training: &Dataset,
    rows: &[usize],
) -> Result<(Network, Option<StepOutcome>), TrainError> {
    let (mut features, labels) = training.batch(Split::Training, rows)?;
    let mut mask = None;
    if config.dropout > 0.0 {
        if config.units > 0 {
            mask = Some(dropout.dropout_mask(config.dropout, rows.len() * config.units));
        } else {
            let factors = dropout.dropout_mask(config.dropout, features.len());
            features.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
    }
    let (gradients, outcome) = network.gradients(features, rows.len(), mask, |logits| {
        let loss = cross_entropy(&logits, &labels, config.outputs());
        let outcome = all_finite(&logits).then_some(StepOutcome { loss: loss.sum, correct: loss.correct });
        Ok((loss.gradient, outcome))
    })?;
    Ok((network.update(gradients, optimizer)?, outcome))
}

/// Mean loss and accuracy of valid data; `None` if a logit is not finite.
pub(super) fn evaluate(network: &Network, outputs: usize, data: &Dataset) -> Result<Option<Evaluation>, TrainError> {
    let rows: Vec<usize> = (0..data.labels.len()).collect();
    let (mut loss, mut correct) = (0.0, 0);
    for rows in rows.chunks(EVALUATION_ROWS) {
        let (features, labels) = data.batch(Split::Validation, rows)?;
        let logits = network.logits(features, rows.len())?;
        if !all_finite(&logits) {
            return Ok(None);
        }
        let batch = cross_entropy(&logits, &labels, outputs);
        loss += batch.sum;
        correct += batch.correct;
    }
    let samples = rows.len() as f64;
    Ok(Some(Evaluation { loss: loss / samples, accuracy: correct as f64 / samples }))
}

pub(super) fn is_better(new: &EpochStats, old: &EpochStats) -> bool {
    match (new.val_accuracy, old.val_accuracy) {
        (Some(accuracy), Some(best)) if accuracy != best => accuracy > best,
        (Some(_), Some(_)) => new.val_loss < old.val_loss,
        _ => new.loss < old.loss,
    }
}
