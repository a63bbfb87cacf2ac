//! Trains the last convolutions of a base together with its head, in f32, as Keras does after
//! `layer.trainable = True`.
//!
//! The convolutions are 3x3 with stride 1 and zero padding 1, each followed by ReLU and some by 2x2
//! max pooling; the last one's output, pooled or flattened in the order of Keras (h, w, c), goes
//! into the head. The layers before them are frozen: their outputs are the features.

use std::ops::ControlFlow;

use quant::FloatLayer;
use vgg_edge::head::Pool;

use super::conv::MapShape;
use super::fit::{Fit, Progress};
use super::pooling::features_of;
use super::random::Random;
use super::state::{BestEpoch, FineTuneState};
use super::tail_network::{TailNetwork, TailWeights};
use super::{
    Dataset, DenseWeights, EpochStats, Schedule, Split, TrainConfig, TrainError, TrainState,
};

/// The result of fine-tuning.
#[derive(Debug, Clone, PartialEq)]
pub struct FineTuned {
    /// The convolutions after the best epoch.
    pub tail: Vec<FloatLayer>,
    /// The head after the best epoch.
    pub head: Vec<DenseWeights>,
    /// The best epoch: 0 for the weights before training, if none was better.
    pub best_epoch: usize,
    /// The metrics of all epochs that were run. The first, of number 0, is the state before; it has
    /// no training metrics of its own, so `loss` and `accuracy` are those of the validation set, or
    /// of the training set without dropout.
    pub history: Vec<EpochStats>,
}

/// The network to train.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// The convolutions.
    pub tail: &'a [FloatLayer],
    /// The head after them.
    pub head: &'a [DenseWeights],
    /// The shape of the input maps.
    pub shape: MapShape,
    /// The pooling between both.
    pub pool: Pool,
}

/// Fine-tunes a model on `training`, whose rows are maps of its shape, channels last.
///
/// Of `config`, classes and their weights, dropout (on the outputs of hidden layers), label
/// smoothing (in training), optimizer (at a constant rate), epochs, batch size, seed and patience
/// count. The best epoch is chosen as by [`train`](super::train()), the state before training among
/// them: fine-tuning never returns a model that measures worse. `from` is the state at which an
/// earlier call stopped. `on_event` is called after each batch and each epoch, and ends training by
/// breaking; the result is the best of the complete epochs.
///
/// # Errors
/// As [`train`](super::train()).
pub fn fine_tune(
    config: &TrainConfig,
    model: Model,
    training: &Dataset,
    validation: Option<&Dataset>,
    from: Option<FineTuneState>,
    on_event: &mut dyn FnMut(&Progress<FineTuneState>) -> ControlFlow<()>,
) -> Result<FineTuned, TrainError> {
    config.validate()?;
    let dim = model.shape.iter().product();
    for (split, data) in [(Split::Training, Some(training)), (Split::Validation, validation)] {
        if let Some(data) = data {
            data.validate(split, config.classes)?;
            data.check_dim(split, dim)?;
        }
    }
    let config = &TrainConfig {
        l2: 0.0,
        schedule: Schedule::Constant,
        shuffle: true,
        keep_last: false,
        ..config.clone()
    };
    let samples = training.labels.len();
    let features = model.features()?;
    let is_fresh = from.is_none();
    let mut state = match from {
        Some(state) => {
            state.check(config, samples, 0, |weights| model.fits(weights, features, config))?;
            state
        }
        None => {
            let weights = model.weights();
            if weights.head.first().is_none_or(|layer| layer.inputs != features) {
                return Err(TrainError::WrongState { what: "inputs of the head" });
            }
            TrainState::new(config, weights, Random::new(config.seed), samples)
        }
    };
    let weights = std::mem::take(&mut state.weights);
    let network = TailNetwork::new(model.tail, &weights, model.shape, model.pool);
    let mut fit = Fit::new(config, (training, validation), network, state, on_event)?;
    let state =
        if is_fresh && fit.measure_start()?.is_break() { fit.into_state() } else { fit.run()? };
    let Some(BestEpoch { stats, weights }) = state.best else { return Err(TrainError::Stopped) };
    let tail = model.tail.iter().zip(weights.tail);
    let tail = tail.map(|(layer, [kernel, bias])| FloatLayer { kernel, bias, ..layer.clone() });
    Ok(FineTuned {
        tail: tail.collect(),
        head: weights.head,
        best_epoch: stats.epoch,
        history: state.history,
    })
}

impl Model<'_> {
    /// Number of features that the tail gives the head.
    fn features(&self) -> Result<usize, TrainError> {
        let [mut height, mut width, mut channels] = self.shape;
        for layer in self.tail {
            if layer.inputs != channels {
                return Err(TrainError::WrongState { what: "channels of the layers" });
            }
            channels = layer.outputs;
            (height, width) = if layer.pool { (height / 2, width / 2) } else { (height, width) };
        }
        if height * width * channels == 0 {
            return Err(TrainError::WrongState { what: "sizes of the maps" });
        }
        Ok(features_of(self.pool, [height, width, channels]))
    }

    /// A copy of its weights.
    fn weights(&self) -> TailWeights {
        let layers = self.tail.iter();
        let tail = layers.map(|layer| [layer.kernel.clone(), layer.bias.clone()]).collect();
        TailWeights { tail, head: self.head.to_vec() }
    }

    /// Whether weights that were read from a file are of this tail, which gives as many
    /// `features`, and of a head for them.
    fn fits(&self, weights: &TailWeights, features: usize, config: &TrainConfig) -> bool {
        let TailWeights { tail, head } = weights;
        let lengths = |[kernel, bias]: &[Vec<f32>; 2]| (kernel.len(), bias.len());
        let expected = self.tail.iter().map(|layer| (layer.kernel.len(), layer.bias.len()));
        let is_dense = |layer: &DenseWeights| {
            layer.inputs.checked_mul(layer.outputs) == Some(layer.kernel.len())
                && layer.bias.len() == layer.outputs
                && layer.norm.is_none()
        };
        let ends = (head.first().map(|layer| layer.inputs), head.last().map(|layer| layer.outputs));
        tail.iter().map(lengths).eq(expected)
            && ends == (Some(features), Some(config.outputs()))
            && head.iter().all(is_dense)
            && head.windows(2).all(|pair| pair[0].outputs == pair[1].inputs)
    }
}
