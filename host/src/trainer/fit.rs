use std::hint::black_box;
use std::ops::ControlFlow;

use super::data::all_finite;
use super::head::Evaluation;
use super::loss::{LossRule, cross_entropy};
use super::network::{Network, sum_of_squares};
use super::optimizer::OptimizerState;
use super::random::{Random, Stream};
use super::state::{Best, Moment, Part, State};
use super::{
    BatchNorm, Dataset, DenseWeights, EpochStats, MAX_WEIGHTS, Split, TrainConfig, TrainError,
    TrainedHead,
};

/// Rows that are evaluated at once: enough for the matrix products to run at full speed.
const EVALUATION_ROWS: usize = 256;

/// Trains a head.
///
/// See [the module](super) for what is computed. `hear` is called after each batch and after each epoch; if it
/// breaks, training stops there and gives the best head so far, of the epochs that are whole. With `from`, training goes on where
/// [`Progress::state`] was taken, also amid an epoch, and comes to the same bits as if it had not been away.
///
/// The best epoch is the one with the highest validation accuracy, among equals the one with the
/// lowest validation loss, and without a validation set the one with the lowest training loss;
/// among epochs equal in that too, the first. With `keep_last` it is the last.
///
/// # Errors
///
/// If a field of `config` is outside its range; if a data set is empty, has no features, not one
/// label a row, a label that is no class or a feature that is not finite; if the two data sets
/// differ in dimension; if training diverges, so that a loss is not finite; if `from` is not of this network and these data;
/// [`TrainError::Stopped`] if it is stopped before there is a whole epoch.
pub fn train(
    config: &TrainConfig,
    training: &Dataset,
    validation: Option<&Dataset>,
    from: Option<State>,
    hear: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
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
    let state = match from {
        Some(state) => {
            state.check(config, &widths(config, dim)?, training.labels.len())?;
            state
        }
        None => {
            let mut random = Random::new(config.seed);
            let layers = initial_layers(config, dim, &mut random.weights)?;
            State::new(config, layers, random, training.labels.len())
        }
    };
    fit(config, state, training, validation, hear)
}

/// How training stands after a batch or an epoch.
pub struct Progress<'a> {
    /// After which.
    pub at: Moment<'a>,
    state: &'a State,
    network: &'a Network,
    optimizer: &'a OptimizerState,
}

impl Progress<'_> {
    /// Everything that is needed to go on from here; some four times the size of the weights.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub fn state(&self) -> Result<State, TrainError> {
        let mut state = self.state.clone();
        state.layers = self.network.weights()?;
        state.moments = Some(self.optimizer.moments().clone());
        Ok(state)
    }
}

/// Widths of what goes between the layers: features, hidden layers, outputs.
fn widths(config: &TrainConfig, dim: usize) -> Result<Vec<usize>, TrainError> {
    let widths: Vec<usize> =
        [dim].into_iter().chain(config.units.iter().copied()).chain([config.outputs()]).collect();
    for pair in widths.windows(2) {
        let (inputs, outputs) = (pair[0], pair[1]);
        if inputs.checked_mul(outputs).is_none_or(|weights| weights > MAX_WEIGHTS) {
            return Err(TrainError::TooManyWeights { inputs, outputs });
        }
    }
    Ok(widths)
}

/// Keras's initial weights: `glorot_uniform` kernels and biases of zero.
fn initial_layers(
    config: &TrainConfig,
    dim: usize,
    stream: &mut Stream,
) -> Result<Vec<DenseWeights>, TrainError> {
    let widths = widths(config, dim)?;
    let layers = widths.windows(2).zip(1..).map(|(pair, number)| {
        let (inputs, outputs) = (pair[0], pair[1]);
        DenseWeights {
            inputs,
            outputs,
            kernel: stream.glorot_uniform(inputs, outputs),
            bias: vec![0.0; outputs],
            norm: (config.batch_norm && number <= config.units.len())
                .then(|| BatchNorm::new(outputs)),
        }
    });
    Ok(layers.collect())
}

/// Trains from the given state; everything is valid.
pub(super) fn fit(
    config: &TrainConfig,
    mut state: State,
    training: &Dataset,
    validation: Option<&Dataset>,
    hear: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<TrainedHead, TrainError> {
    keep_freed_memory();
    let mut network = Network::new(&state.layers);
    // The network has them now.
    state.layers = Vec::new();
    let mut optimizer = OptimizerState::new(config.optimizer, &network.lengths());
    if let Some(moments) = state.moments.take()
        && !optimizer.restore(moments)
    {
        return Err(TrainError::WrongState { what: "state of the optimiser" });
    }
    let rule = LossRule { smoothing: config.label_smoothing, weights: &config.class_weights };
    let samples = state.order.len();
    let batches = samples.div_ceil(config.batch_size);

    'epochs: while !state.is_done(config) {
        let epoch = state.history.len() + 1;
        if training
            .features
            .prepare(epoch)
            .map_err(|reason| TrainError::Source { epoch, reason })?
            .is_break()
        {
            let done = state.part.map_or(0, |part| part.batches);
            let at = Moment::Batch { epoch, done };
            // There is nothing left to break off.
            let _ = hear(&Progress { at, state: &state, network: &network, optimizer: &optimizer });
            break;
        }
        let mut lr = 0.0;
        if config.shuffle && state.part.is_none() {
            state.random.order.shuffle(&mut state.order);
        }
        let mut part = state.part.take().unwrap_or_default();
        while part.batches < batches {
            let batch = part.batches + 1;
            let first = part.batches * config.batch_size;
            let rows = &state.order[first..samples.min(first + config.batch_size)];
            lr = state.rate.at(
                config,
                epoch,
                (epoch - 1) * batches + batch - 1,
                config.epochs * batches,
            );
            optimizer.set_lr(lr);
            let outcome;
            (network, outcome) = step(
                config,
                rule,
                network,
                &mut optimizer,
                &mut state.random.dropout,
                training,
                rows,
            )?;
            let Some(outcome) = outcome else {
                return Err(TrainError::NonFiniteLoss { epoch, batch, lr });
            };
            part = Part {
                batches: batch,
                loss: part.loss + outcome.loss,
                correct: part.correct + outcome.correct,
            };
            if batch < batches {
                state.part = Some(part);
                let at = Moment::Batch { epoch, done: batch };
                if hear(&Progress { at, state: &state, network: &network, optimizer: &optimizer })
                    .is_break()
                {
                    break 'epochs;
                }
            }
        }
        state.part = None;
        // The losses do not show what the last step of the epoch did.
        let weights = network.weights()?;
        let diverged = TrainError::NonFiniteWeights { epoch, lr };
        if !weights.iter().all(DenseWeights::is_finite) {
            return Err(diverged);
        }
        let measured = match validation {
            Some(validation) => {
                // Keras weights the classes in training only.
                let rule = LossRule { weights: &[], ..rule };
                let mut measured =
                    evaluate(&network, config.outputs(), validation, rule)?.ok_or(diverged)?;
                if config.l2 > 0.0 {
                    measured.loss += config.l2
                        * weights.iter().map(|layer| sum_of_squares(&layer.kernel)).sum::<f64>();
                }
                Some(measured)
            }
            None => None,
        };
        let stats = part.end(epoch, samples, measured, lr);
        state.history.push(stats);
        state.rate.end_epoch(config, stats.val_loss.unwrap_or(stats.loss));
        if config.keep_last || state.best.as_ref().is_none_or(|best| is_better(&stats, &best.stats))
        {
            state.best = Some(Best { stats, layers: weights });
        }
        let at = Moment::Epoch { stats: &stats, last: state.is_done(config) };
        if hear(&Progress { at, state: &state, network: &network, optimizer: &optimizer })
            .is_break()
        {
            break;
        }
    }

    let Some(Best { stats, layers }) = state.best else {
        // There is at least one epoch, and the first is the best so far, unless it was stopped.
        return Err(TrainError::Stopped);
    };
    let layers = layers.into_iter().map(DenseWeights::folded).collect();
    Ok(TrainedHead { layers, best_epoch: stats.epoch, history: state.history })
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
    /// The samples' losses and penalties, added up.
    loss: f64,
    correct: usize,
}

/// One step on the given rows; no outcome if the loss is not finite.
fn step(
    config: &TrainConfig,
    rule: LossRule,
    network: Network,
    optimizer: &mut OptimizerState,
    dropout: &mut Stream,
    training: &Dataset,
    rows: &[usize],
) -> Result<(Network, Option<StepOutcome>), TrainError> {
    let (mut features, labels) = training.batch(Split::Training, rows)?;
    let mut masks = Vec::new();
    if config.dropout > 0.0 {
        masks.extend(
            config
                .units
                .iter()
                .map(|units| dropout.dropout_mask(config.dropout, rows.len() * units)),
        );
        if config.units.is_empty() {
            let factors = dropout.dropout_mask(config.dropout, features.len());
            features.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
    }
    let (gradients, outcome) = network.gradients(features, rows.len(), masks, |logits| {
        let loss = cross_entropy(&logits, &labels, config.outputs(), rule);
        let outcome =
            all_finite(&logits).then_some(StepOutcome { loss: loss.sum, correct: loss.correct });
        Ok((loss.gradient, outcome))
    })?;
    let (network, penalty) = network.update(gradients, optimizer, config.l2)?;
    let with_penalty = |outcome: StepOutcome| StepOutcome {
        loss: outcome.loss + penalty * rows.len() as f64,
        ..outcome
    };
    Ok((network, outcome.map(with_penalty)))
}

/// Mean loss and accuracy of valid data; `None` if a logit is not finite.
pub(super) fn evaluate(
    network: &Network,
    outputs: usize,
    data: &Dataset,
    rule: LossRule,
) -> Result<Option<Evaluation>, TrainError> {
    let rows: Vec<usize> = (0..data.labels.len()).collect();
    let (mut loss, mut correct) = (0.0, 0);
    for rows in rows.chunks(EVALUATION_ROWS) {
        let (features, labels) = data.batch(Split::Validation, rows)?;
        let logits = network.logits(features, rows.len())?;
        if !all_finite(&logits) {
            return Ok(None);
        }
        let batch = cross_entropy(&logits, &labels, outputs, rule);
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
