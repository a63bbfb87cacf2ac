use std::ops::ControlFlow;

use super::fit::{Fit, Progress};
use super::head_network::HeadNetwork;
use super::random::{Random, Stream};
use super::state::{BestEpoch, HeadState};
use super::{
    BatchNorm, Dataset, DenseWeights, MAX_WEIGHTS, Split, TrainConfig, TrainError, TrainState,
    TrainedHead,
};

/// Trains a head.
///
/// See [the module](super) for the computation. `on_event` is called after each batch and after
/// each epoch; if it breaks, training stops there and returns the best head so far, of the epochs
/// that are complete. With `from`, training resumes where [`Progress::state`] was taken, also
/// within an epoch, and arrives at the same bits as without the interruption.
///
/// The best epoch is the one with the highest validation accuracy, among equals the one with the
/// lowest validation loss, and without a validation set the one with the lowest training loss;
/// among epochs equal in that too, the first. With `keep_last` it is the last.
///
/// # Errors
///
/// If a field of `config` is outside its range; if a data set is empty, has no features, not one
/// label for each row, a label that is not a class or a feature that is not finite; if the two data
/// sets differ in dimension; if training diverges, so that a loss is not finite; if `from` is of
/// another network or other data; [`TrainError::Stopped`] if it is stopped before the first epoch
/// is complete.
pub fn train(
    config: &TrainConfig,
    training: &Dataset,
    validation: Option<&Dataset>,
    from: Option<HeadState>,
    on_event: &mut dyn FnMut(&Progress<HeadState>) -> ControlFlow<()>,
) -> Result<TrainedHead, TrainError> {
    config.validate()?;
    training.validate(Split::Training, config.classes)?;
    let dim = training.features.dim();
    if let Some(validation) = validation {
        validation.validate(Split::Validation, config.classes)?;
        validation.check_dim(Split::Validation, dim)?;
    }
    let samples = training.labels.len();
    let widths = widths(config, dim)?;
    let state = match from {
        Some(state) => {
            state.check(config, samples, 1, |layers| fits(layers, config, &widths))?;
            state
        }
        None => {
            let mut random = Random::new(config.seed);
            let layers = initial_layers(config, &widths, &mut random.weights);
            TrainState::new(config, layers, random, samples)
        }
    };
    train_from(config, state, training, validation, on_event)
}

/// Trains from the given state; everything is valid.
pub(super) fn train_from(
    config: &TrainConfig,
    mut state: HeadState,
    training: &Dataset,
    validation: Option<&Dataset>,
    on_event: &mut dyn FnMut(&Progress<HeadState>) -> ControlFlow<()>,
) -> Result<TrainedHead, TrainError> {
    let network = HeadNetwork::new(&std::mem::take(&mut state.weights));
    let state = Fit::new(config, (training, validation), network, state, on_event)?.run()?;
    let Some(BestEpoch { stats, weights }) = state.best else {
        // There is at least one epoch, and the first is the best so far, unless it was stopped.
        return Err(TrainError::Stopped);
    };
    let layers = weights.into_iter().map(DenseWeights::folded).collect();
    Ok(TrainedHead { layers, best_epoch: stats.epoch, history: state.history })
}

/// Widths between the layers: features, hidden layers, outputs.
fn widths(config: &TrainConfig, dim: usize) -> Result<Vec<usize>, TrainError> {
    let hidden = config.units.iter().copied();
    let widths: Vec<usize> = [dim].into_iter().chain(hidden).chain([config.outputs()]).collect();
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
    widths: &[usize],
    stream: &mut Stream,
) -> Vec<DenseWeights> {
    let layers = widths.windows(2).zip(1..).map(|(pair, number)| {
        let (inputs, outputs) = (pair[0], pair[1]);
        let is_hidden = number <= config.units.len();
        DenseWeights {
            inputs,
            outputs,
            kernel: stream.glorot_uniform(inputs, outputs),
            bias: vec![0.0; outputs],
            norm: (config.batch_norm && is_hidden).then(|| BatchNorm::new(outputs)),
        }
    });
    layers.collect()
}

/// Whether layers that were read from a file are finite and have these widths.
fn fits(layers: &[DenseWeights], config: &TrainConfig, widths: &[usize]) -> bool {
    let layer_fits = |index: usize, layer: &DenseWeights, inputs: usize, outputs: usize| {
        let is_hidden = index + 2 < widths.len();
        let norm = layer.norm.as_ref();
        (layer.inputs, layer.outputs) == (inputs, outputs)
            && (layer.kernel.len(), layer.bias.len()) == (inputs * outputs, outputs)
            && norm.is_some() == (config.batch_norm && is_hidden)
            && norm.is_none_or(|norm| {
                [&norm.gamma, &norm.mean, &norm.variance].iter().all(|v| v.len() == outputs)
            })
            && layer.is_finite()
    };
    layers.len() + 1 == widths.len()
        && layers
            .iter()
            .zip(widths.windows(2))
            .enumerate()
            .all(|(index, (layer, pair))| layer_fits(index, layer, pair[0], pair[1]))
}
