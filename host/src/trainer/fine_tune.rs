//! Trains the last convolutions of a base together with its head, in f32, as Keras does after `layer.trainable = True`.
//!
//! The convolutions are 3x3 with stride 1 and zero padding 1, each followed by ReLU and some by 2x2 max pooling; the last one's output,
//! pooled or flattened in the order of Keras (h, w, c), goes into the head. What stands before them is frozen: its outputs are the features that come in.

use std::ops::ControlFlow;

use burn::tensor::activation::relu;
use burn::tensor::module::{conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{DType, Device, Tensor, TensorData};
use quant::FloatLayer;
use serde::{Deserialize, Serialize};
use vgg_edge::head::Pool;

use super::data::all_finite;
use super::head::Evaluation;
use super::loss::{LossRule, cross_entropy};
use super::optimizer::{Moments, OptimizerState};
use super::random::Random;
use super::state::{Moment, Part};
use super::{Dataset, DenseWeights, EpochStats, Split, TrainConfig, TrainError};

/// Rows that are evaluated at once.
const EVALUATION_ROWS: usize = 64;

/// What training has made of both.
#[derive(Debug, Clone, PartialEq)]
pub struct FineTuned {
    /// The convolutions after the best epoch.
    pub tail: Vec<FloatLayer>,
    /// The head after the best epoch.
    pub head: Vec<DenseWeights>,
    /// The epoch they are of: 0 for what they were before, if none was better.
    pub best_epoch: usize,
    /// All epochs that were run. The first, of number 0, is the state before; it has no training figures of its own, so `loss` and `accuracy`
    /// are those of the validation set, or of the training set without dropout.
    pub history: Vec<EpochStats>,
}

/// Shape of the maps that come in: height, width, channels.
pub type MapShape = [usize; 3];

/// What is trained.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// The convolutions.
    pub tail: &'a [FloatLayer],
    /// The head after them.
    pub head: &'a [DenseWeights],
    /// Of the maps that come in.
    pub shape: MapShape,
    /// What stands between both.
    pub pool: Pool,
}

/// Kernels and biases of the convolutions, and the head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Weights {
    tail: Vec<[Vec<f32>; 2]>,
    head: Vec<DenseWeights>,
}

/// All that fine-tuning keeps from one epoch to the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FineTuneState {
    /// Empty while the network has them.
    weights: Weights,
    moments: Option<Moments>,
    random: Random,
    order: Vec<usize>,
    history: Vec<EpochStats>,
    best: Option<(EpochStats, Weights)>,
    /// The epoch at hand, if it has begun.
    part: Option<Part>,
}

impl FineTuneState {
    /// How many epochs are done.
    pub fn epochs(&self) -> usize {
        self.history.len().saturating_sub(1)
    }

    /// Whether no epoch is left to run.
    fn is_done(&self, config: &TrainConfig) -> bool {
        let best = self.best.as_ref().map_or(0, |(stats, _)| stats.epoch);
        let waited = self.epochs() - best.min(self.epochs());
        self.epochs() >= config.epochs
            || config.patience.is_some_and(|patience| waited >= patience.max(1))
    }

    /// The kernel of a convolution.
    #[cfg(test)]
    pub(super) fn kernel(&self, layer: usize) -> &[f32] {
        &self.weights.tail[layer][0]
    }

    /// Holds a state that was read from a file against what it shall go on with; the tail gives as many `features`.
    fn check(
        &self,
        config: &TrainConfig,
        tail: &[FloatLayer],
        features: usize,
        samples: usize,
    ) -> Result<(), TrainError> {
        let wrong = |what| Err(TrainError::WrongState { what });
        let fits = |weights: &Weights| {
            let lengths = |[kernel, bias]: &[Vec<f32>; 2]| (kernel.len(), bias.len());
            let dense = |layer: &DenseWeights| {
                layer.inputs.checked_mul(layer.outputs) == Some(layer.kernel.len())
                    && layer.bias.len() == layer.outputs
                    && layer.norm.is_none()
            };
            let chain = weights.head.windows(2).all(|pair| pair[0].outputs == pair[1].inputs);
            let ends = (
                weights.head.first().map(|layer| layer.inputs),
                weights.head.last().map(|layer| layer.outputs),
            );
            weights
                .tail
                .iter()
                .map(lengths)
                .eq(tail.iter().map(|layer| (layer.kernel.len(), layer.bias.len())))
                && ends == (Some(features), Some(config.outputs()))
                && weights.head.iter().all(dense)
                && chain
        };
        if !fits(&self.weights) || !self.best.as_ref().is_some_and(|(_, best)| fits(best)) {
            return wrong("weights");
        }
        let mut order = self.order.clone();
        order.sort_unstable();
        if !order.iter().copied().eq(0..samples) || self.history.is_empty() {
            return wrong("order of the samples");
        }
        if self.part.is_some_and(|part| part.batches >= samples.div_ceil(config.batch_size)) {
            return wrong("batches of the epoch");
        }
        Ok(())
    }
}

/// How it stands after a batch or an epoch.
pub struct FineTuneProgress<'a> {
    /// After which; the state before all epochs is told as epoch 0.
    pub at: Moment<'a>,
    state: &'a FineTuneState,
    network: &'a Network,
    optimizer: &'a OptimizerState,
}

impl FineTuneProgress<'_> {
    /// What it takes to go on from here.
    ///
    /// # Errors
    /// If the weights cannot be read.
    pub fn state(&self) -> Result<FineTuneState, TrainError> {
        let moments = Some(self.optimizer.moments().clone());
        Ok(FineTuneState { weights: self.network.weights()?, moments, ..self.state.clone() })
    }
}

/// Trains a model further on `training`, whose rows are maps of its shape, channels last.
///
/// Of `config` counts what is not about the head's shape and is not a penalty: classes and their weights, dropout (on the outputs of hidden
/// layers), label smoothing, optimiser (at a constant rate), epochs, batch size, seed, patience. The best epoch is chosen as by
/// [`train`](super::train), the state before training among them: fine-tuning never gives what measures worse. `from` is where an earlier call
/// stopped. `hear` is called after each batch and each epoch, and ends training by breaking; what is given is the best of the epochs that are whole.
///
/// # Errors
/// As [`train`](super::train).
pub fn fine_tune(
    config: &TrainConfig,
    Model { tail, head, shape, pool }: Model,
    training: &Dataset,
    validation: Option<&Dataset>,
    from: Option<FineTuneState>,
    hear: &mut dyn FnMut(&FineTuneProgress) -> ControlFlow<()>,
) -> Result<FineTuned, TrainError> {
    config.validate()?;
    training.validate(Split::Training, config.classes)?;
    if let Some(validation) = validation {
        validation.validate(Split::Validation, config.classes)?;
    }
    let dim = shape.iter().product();
    for (split, data) in [(Split::Training, Some(training)), (Split::Validation, validation)] {
        if let Some(found) = data.map(|data| data.features.dim()).filter(|&found| found != dim) {
            return Err(TrainError::DimensionMismatch { split, expected: dim, found });
        }
    }
    let samples = training.labels.len();
    let fresh = from.is_none();
    let mut state = from.unwrap_or_else(|| FineTuneState {
        weights: Weights {
            tail: tail.iter().map(|layer| [layer.kernel.clone(), layer.bias.clone()]).collect(),
            head: head.to_vec(),
        },
        moments: None,
        random: Random::new(config.seed),
        order: (0..samples).collect(),
        history: Vec::new(),
        best: None,
        part: None,
    });
    let [mut height, mut width, mut channels] = shape;
    for layer in tail {
        if layer.inputs != channels {
            return Err(TrainError::WrongState { what: "channels of the layers" });
        }
        channels = layer.outputs;
        (height, width) = if layer.pool { (height / 2, width / 2) } else { (height, width) };
    }
    let features = if pool == Pool::Flatten { height * width * channels } else { channels };
    if !fresh {
        state.check(config, tail, features, samples)?;
    } else if head.first().is_none_or(|layer| layer.inputs != features) {
        return Err(TrainError::WrongState { what: "inputs of the head" });
    }
    let weights =
        std::mem::replace(&mut state.weights, Weights { tail: Vec::new(), head: Vec::new() });
    let hidden: Vec<usize> =
        weights.head.iter().rev().skip(1).rev().map(|layer| layer.outputs).collect();
    let mut network = Network::new(tail, &weights, shape, pool);
    let mut optimizer = OptimizerState::new(config.optimizer, &network.lengths());
    if let Some(moments) = state.moments.take()
        && !optimizer.restore(moments)
    {
        return Err(TrainError::WrongState { what: "state of the optimiser" });
    }
    let outputs = config.outputs();
    let lr = config.optimizer.lr();
    let rule = LossRule { smoothing: config.label_smoothing, weights: &config.class_weights };
    let evaluate = |network: &Network, split, data: &Dataset, epoch| {
        network.evaluate(split, outputs, data)?.ok_or(TrainError::NonFiniteWeights { epoch, lr })
    };
    let batches = samples.div_ceil(config.batch_size);
    let mut flow = ControlFlow::Continue(());
    if fresh {
        let (split, data) = match validation {
            Some(validation) => (Split::Validation, validation),
            None => (Split::Training, training),
        };
        let before = evaluate(&network, split, data, 0)?;
        let stats = EpochStats {
            epoch: 0,
            loss: before.loss,
            accuracy: before.accuracy,
            val_loss: validation.map(|_| before.loss),
            val_accuracy: validation.map(|_| before.accuracy),
            lr,
        };
        state.history.push(stats);
        state.best = Some((stats, weights));
        let at = Moment::Epoch { stats: &stats, last: state.is_done(config) };
        flow =
            hear(&FineTuneProgress { at, state: &state, network: &network, optimizer: &optimizer });
    }
    'epochs: while flow.is_continue() && !state.is_done(config) {
        let epoch = state.epochs() + 1;
        if state.part.is_none() {
            state.random.order.shuffle(&mut state.order);
        }
        let mut part = state.part.take().unwrap_or_default();
        while part.batches < batches {
            let batch = part.batches + 1;
            let first = part.batches * config.batch_size;
            let rows = &state.order[first..samples.min(first + config.batch_size)];
            let (features, labels) = training.batch(Split::Training, rows)?;
            let mut masks = Vec::new();
            if config.dropout > 0.0 {
                let dropout = &mut state.random.dropout;
                masks.extend(
                    hidden
                        .iter()
                        .map(|units| dropout.dropout_mask(config.dropout, rows.len() * units)),
                );
            }
            let (gradients, outcome) =
                network.gradients(features, rows.len(), masks, |logits| {
                    let loss = cross_entropy(&logits, &labels, outputs, rule);
                    let outcome = all_finite(&logits).then_some((loss.sum, loss.correct));
                    (loss.gradient, outcome)
                })?;
            let Some((sum, hits)) = outcome else {
                return Err(TrainError::NonFiniteLoss { epoch, batch, lr });
            };
            network = network.update(gradients, &mut optimizer)?;
            part = Part { batches: batch, loss: part.loss + sum, correct: part.correct + hits };
            if batch < batches {
                state.part = Some(part);
                let at = Moment::Batch { epoch, done: batch };
                if hear(&FineTuneProgress {
                    at,
                    state: &state,
                    network: &network,
                    optimizer: &optimizer,
                })
                .is_break()
                {
                    break 'epochs;
                }
            }
        }
        state.part = None;
        let weights = network.weights()?;
        if !weights.is_finite() {
            return Err(TrainError::NonFiniteWeights { epoch, lr });
        }
        let measured = match validation {
            Some(validation) => Some(evaluate(&network, Split::Validation, validation, epoch)?),
            None => None,
        };
        let stats = part.end(epoch, samples, measured, lr);
        state.history.push(stats);
        if state.best.as_ref().is_none_or(|(best, _)| super::fit::is_better(&stats, best)) {
            state.best = Some((stats, weights));
        }
        let at = Moment::Epoch { stats: &stats, last: state.is_done(config) };
        flow =
            hear(&FineTuneProgress { at, state: &state, network: &network, optimizer: &optimizer });
    }
    let Some((stats, weights)) = state.best else {
        return Err(TrainError::backend("no epoch was run"));
    };
    let tail = tail.iter().zip(weights.tail);
    let tail = tail.map(|(layer, [kernel, bias])| FloatLayer { kernel, bias, ..layer.clone() });
    Ok(FineTuned {
        tail: tail.collect(),
        head: weights.head,
        best_epoch: stats.epoch,
        history: state.history,
    })
}

impl Weights {
    fn is_finite(&self) -> bool {
        self.tail.iter().flatten().all(|values| all_finite(values))
            && self.head.iter().all(DenseWeights::is_finite)
    }
}

/// The weights in training.
struct Network {
    convs: Vec<Conv>,
    dense: Vec<[Tensor<2>; 2]>,
    shape: MapShape,
    pool: Pool,
    device: Device,
}

struct Conv {
    /// `[outputs, inputs, 3, 3]`
    kernel: Tensor<4>,
    /// `[outputs]`
    bias: Tensor<1>,
    /// Whether 2x2 max pooling follows.
    pool: bool,
}

/// Of the convolutions, then of the dense layers; kernel, then bias. Flat, as the optimiser takes them.
struct Gradients(Vec<TensorData>);

impl Network {
    fn new(tail: &[FloatLayer], weights: &Weights, shape: MapShape, pool: Pool) -> Self {
        let device = Device::flex();
        let convs = tail.iter().zip(&weights.tail).map(|(layer, [kernel, bias])| Conv {
            kernel: tensor(&device, kernel.clone(), [layer.outputs, layer.inputs, 3, 3]),
            bias: tensor(&device, bias.clone(), [layer.outputs]),
            pool: layer.pool,
        });
        let dense = weights.head.iter().map(|layer| {
            [
                tensor(&device, layer.kernel.clone(), [layer.inputs, layer.outputs]),
                tensor(&device, layer.bias.clone(), [1, layer.outputs]),
            ]
        });
        Self { convs: convs.collect(), dense: dense.collect(), shape, pool, device }
    }

    fn lengths(&self) -> Vec<usize> {
        let convs = self
            .convs
            .iter()
            .flat_map(|conv| [conv.kernel.dims().iter().product(), conv.bias.dims()[0]]);
        convs
            .chain(self.dense.iter().flatten().map(|tensor| tensor.dims().iter().product()))
            .collect()
    }

    /// `[rows, channels, h, w]` of rows that are channels last.
    fn input(&self, features: Vec<f32>, rows: usize) -> Tensor<4> {
        let [height, width, channels] = self.shape;
        tensor(&self.device, features, [rows, height, width, channels]).permute([0, 3, 1, 2])
    }

    fn gradients<T>(
        &self,
        features: Vec<f32>,
        rows: usize,
        masks: Vec<Vec<f32>>,
        loss: impl FnOnce(Vec<f32>) -> (Vec<f32>, T),
    ) -> Result<(Gradients, T), TrainError> {
        let tracked = Self {
            convs: self
                .convs
                .iter()
                .map(|conv| Conv {
                    pool: conv.pool,
                    kernel: conv.kernel.clone().autodiff().require_grad(),
                    bias: conv.bias.clone().autodiff().require_grad(),
                })
                .collect(),
            dense: self
                .dense
                .iter()
                .map(|pair| pair.clone().map(|t| t.autodiff().require_grad()))
                .collect(),
            device: self.device.clone(),
            ..*self
        };
        let input = self.input(features, rows).autodiff();
        let masks = masks.into_iter().map(|mask| {
            let units = mask.len() / rows;
            tensor(&self.device, mask, [rows, units]).autodiff()
        });
        let logits = tracked.forward(input, &masks.collect::<Vec<_>>());
        let shape = logits.dims();
        let (upstream, outcome) = loss(read(logits.clone().inner())?);
        // The gradient of sum(logits * upstream) by the logits is `upstream`.
        let upstream = tensor(&self.device, upstream, shape).autodiff();
        let mut gradients = (logits * upstream).sum().backward();
        let missing = || TrainError::backend("a tensor of weights has no gradient");
        let mut flat = Vec::new();
        for conv in &tracked.convs {
            flat.push(data(conv.kernel.grad_remove(&mut gradients).ok_or_else(missing)?)?);
            flat.push(data(conv.bias.grad_remove(&mut gradients).ok_or_else(missing)?)?);
        }
        for weights in tracked.dense.iter().flatten() {
            flat.push(data(weights.grad_remove(&mut gradients).ok_or_else(missing)?)?);
        }
        Ok((Gradients(flat), outcome))
    }

    /// The logits; `masks` are multiplied with the outputs of the hidden layers.
    fn forward(&self, input: Tensor<4>, masks: &[Tensor<2>]) -> Tensor<2> {
        let mut map = input;
        for conv in &self.convs {
            let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
            map = relu(conv2d(map, conv.kernel.clone(), Some(conv.bias.clone()), options));
            if conv.pool {
                map = max_pool2d(map, MaxPoolOptions::new([2, 2]));
            }
        }
        let [rows, channels, height, width] = map.dims();
        let mut hidden = match self.pool {
            Pool::Flatten => map.permute([0, 2, 3, 1]).reshape([rows, height * width * channels]),
            Pool::Avg => {
                map.reshape([rows, channels, height * width]).mean_dim(2).reshape([rows, channels])
            }
            Pool::Max => {
                map.reshape([rows, channels, height * width]).max_dim(2).reshape([rows, channels])
            }
        };
        for (index, [kernel, bias]) in self.dense.iter().enumerate() {
            if index > 0 {
                hidden = relu(hidden);
                if let Some(mask) = masks.get(index - 1) {
                    hidden = hidden * mask.clone();
                }
            }
            hidden = hidden.matmul(kernel.clone()) + bias.clone();
        }
        hidden
    }

    /// Steps all weights.
    fn update(
        self,
        gradients: Gradients,
        optimizer: &mut OptimizerState,
    ) -> Result<Self, TrainError> {
        optimizer.begin_step();
        let mut gradients = gradients.0.into_iter().enumerate();
        let mut step = |mut weights: TensorData| {
            let (index, gradient) =
                gradients.next().ok_or_else(|| TrainError::backend("gradients are missing"))?;
            optimizer.update(
                index,
                weights.as_mut_slice().map_err(TrainError::backend)?,
                gradient.as_slice().map_err(TrainError::backend)?,
            );
            Ok::<_, TrainError>(weights)
        };
        let at = (&self.device, DType::F32);
        let mut convs = Vec::with_capacity(self.convs.len());
        for conv in self.convs {
            let kernel = Tensor::from_data(step(data(conv.kernel)?)?, at);
            convs.push(Conv {
                kernel,
                bias: Tensor::from_data(step(data(conv.bias)?)?, at),
                pool: conv.pool,
            });
        }
        let mut dense = Vec::with_capacity(self.dense.len());
        for [kernel, bias] in self.dense {
            let kernel = Tensor::from_data(step(data(kernel)?)?, at);
            dense.push([kernel, Tensor::from_data(step(data(bias)?)?, at)]);
        }
        Ok(Self { convs, dense, shape: self.shape, pool: self.pool, device: self.device })
    }

    /// Mean loss and accuracy without dropout; `None` if a logit is not finite.
    fn evaluate(
        &self,
        split: Split,
        outputs: usize,
        data: &Dataset,
    ) -> Result<Option<Evaluation>, TrainError> {
        let rows: Vec<usize> = (0..data.labels.len()).collect();
        let (mut loss, mut correct) = (0.0, 0);
        for rows in rows.chunks(EVALUATION_ROWS) {
            let (features, labels) = data.batch(split, rows)?;
            let logits = read(self.forward(self.input(features, rows.len()), &[]))?;
            if !all_finite(&logits) {
                return Ok(None);
            }
            let batch = cross_entropy(&logits, &labels, outputs, LossRule::default());
            (loss, correct) = (loss + batch.sum, correct + batch.correct);
        }
        let samples = rows.len() as f64;
        Ok(Some(Evaluation { loss: loss / samples, accuracy: correct as f64 / samples }))
    }

    /// A copy of the weights.
    fn weights(&self) -> Result<Weights, TrainError> {
        let conv = |conv: &Conv| Ok([read(conv.kernel.clone())?, read(conv.bias.clone())?]);
        let dense = |[kernel, bias]: &[Tensor<2>; 2]| {
            let [inputs, outputs] = kernel.dims();
            Ok(DenseWeights {
                inputs,
                outputs,
                kernel: read(kernel.clone())?,
                bias: read(bias.clone())?,
                norm: None,
            })
        };
        Ok(Weights {
            tail: self.convs.iter().map(conv).collect::<Result<_, TrainError>>()?,
            head: self.dense.iter().map(dense).collect::<Result<_, TrainError>>()?,
        })
    }
}

fn tensor<const D: usize>(device: &Device, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn data<const D: usize>(tensor: Tensor<D>) -> Result<TensorData, TrainError> {
    tensor.try_into_data().map_err(TrainError::backend)
}

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, TrainError> {
    Ok(data(tensor)?.as_slice().map_err(TrainError::backend)?.to_vec())
}
