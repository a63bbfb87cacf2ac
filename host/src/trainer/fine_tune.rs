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
use shared::head::Pool;

use super::data::all_finite;
use super::head::Evaluation;
use super::loss::{LossRule, cross_entropy};
use super::optimizer::OptimizerState;
use super::random::Random;
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

/// Trains `tail` and `head` further on `training`, whose rows are maps of `shape`, channels last; `pool` is what stands between both.
///
/// Of `config` counts what is not about the head's shape and is not a penalty: classes and their weights, dropout, label smoothing, optimiser (at a
/// constant rate), epochs, batch size, seed, patience. The best epoch is chosen as by [`train`](super::train), the state before training
/// among them: fine-tuning never gives what measures worse. `on_epoch` hears of each epoch, and ends training by breaking.
///
/// # Errors
/// As [`train`](super::train).
pub fn fine_tune(
    config: &TrainConfig,
    tail: &[FloatLayer],
    head: &[DenseWeights],
    (shape, pool): (MapShape, Pool),
    training: &Dataset,
    validation: Option<&Dataset>,
    on_epoch: &mut dyn FnMut(&EpochStats) -> ControlFlow<()>,
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
    let mut network = Network::new(tail, head, shape, pool);
    let mut optimizer = OptimizerState::new(config.optimizer, &network.lengths());
    let mut random = Random::new(config.seed);
    let outputs = config.outputs();
    let lr = config.optimizer.lr();
    let rule = LossRule { smoothing: config.label_smoothing, weights: &config.class_weights };
    let evaluate = |network: &Network, split, data: &Dataset| {
        network.evaluate(split, outputs, data)?.ok_or(TrainError::NonFiniteWeights { epoch: 0, lr })
    };

    let before = match validation {
        Some(validation) => evaluate(&network, Split::Validation, validation)?,
        None => evaluate(&network, Split::Training, training)?,
    };
    let mut best = EpochStats {
        epoch: 0,
        loss: before.loss,
        accuracy: before.accuracy,
        val_loss: validation.map(|_| before.loss),
        val_accuracy: validation.map(|_| before.accuracy),
        lr,
    };
    let mut kept = (tail.to_vec(), head.to_vec());
    let mut history = vec![best];
    let mut flow = on_epoch(&best);
    let mut order: Vec<usize> = (0..training.labels.len()).collect();
    for epoch in 1..=config.epochs {
        if flow.is_break() {
            break;
        }
        random.order.shuffle(&mut order);
        let (mut loss, mut correct) = (0.0, 0);
        for (rows, batch) in order.chunks(config.batch_size).zip(1..) {
            let (features, labels) = training.batch(Split::Training, rows)?;
            let hidden = head.iter().take(if config.dropout > 0.0 { head.len().saturating_sub(1) } else { 0 });
            let masks = hidden.map(|layer| random.dropout.dropout_mask(config.dropout, rows.len() * layer.outputs));
            let (gradients, outcome) = network.gradients(features, rows.len(), masks.collect(), |logits| {
                let loss = cross_entropy(&logits, &labels, outputs, rule);
                let outcome = all_finite(&logits).then_some((loss.sum, loss.correct));
                (loss.gradient, outcome)
            })?;
            let Some((sum, hits)) = outcome else { return Err(TrainError::NonFiniteLoss { epoch, batch, lr }) };
            (loss, correct) = (loss + sum, correct + hits);
            network = network.update(gradients, &mut optimizer)?;
        }
        let weights = network.weights()?;
        let finite = |layer: &FloatLayer| all_finite(&layer.kernel) && all_finite(&layer.bias);
        let diverged = TrainError::NonFiniteWeights { epoch, lr };
        if !weights.0.iter().all(finite) || !weights.1.iter().all(DenseWeights::is_finite) {
            return Err(diverged);
        }
        let measured = match validation {
            Some(validation) => Some(network.evaluate(Split::Validation, outputs, validation)?.ok_or(diverged)?),
            None => None,
        };
        let stats = EpochStats {
            epoch,
            loss: loss / order.len() as f64,
            accuracy: correct as f64 / order.len() as f64,
            val_loss: measured.map(|m| m.loss),
            val_accuracy: measured.map(|m| m.accuracy),
            lr,
        };
        history.push(stats);
        if super::fit::is_better(&stats, &best) {
            (best, kept) = (stats, weights);
        }
        flow = on_epoch(&stats);
        if config.patience.is_some_and(|patience| epoch - best.epoch >= patience.max(1)) {
            break;
        }
    }
    Ok(FineTuned { tail: kept.0, head: kept.1, best_epoch: best.epoch, history })
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
    /// What is not trained.
    layer: FloatLayer,
    /// `[outputs, inputs, 3, 3]`
    kernel: Tensor<4>,
    /// `[outputs]`
    bias: Tensor<1>,
}

/// Of the convolutions, then of the dense layers; kernel, then bias. Flat, as the optimiser takes them.
struct Gradients(Vec<TensorData>);

impl Network {
    fn new(tail: &[FloatLayer], head: &[DenseWeights], shape: MapShape, pool: Pool) -> Self {
        let device = Device::flex();
        let convs = tail.iter().map(|layer| Conv {
            kernel: tensor(&device, layer.kernel.clone(), [layer.outputs, layer.inputs, 3, 3]),
            bias: tensor(&device, layer.bias.clone(), [layer.outputs]),
            layer: FloatLayer { kernel: Vec::new(), bias: Vec::new(), ..layer.clone() },
        });
        let dense = head.iter().map(|layer| {
            [
                tensor(&device, layer.kernel.clone(), [layer.inputs, layer.outputs]),
                tensor(&device, layer.bias.clone(), [1, layer.outputs]),
            ]
        });
        Self { convs: convs.collect(), dense: dense.collect(), shape, pool, device }
    }

    fn lengths(&self) -> Vec<usize> {
        let convs = self.convs.iter().flat_map(|conv| [conv.kernel.dims().iter().product(), conv.bias.dims()[0]]);
        convs.chain(self.dense.iter().flatten().map(|tensor| tensor.dims().iter().product())).collect()
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
                    layer: conv.layer.clone(),
                    kernel: conv.kernel.clone().autodiff().require_grad(),
                    bias: conv.bias.clone().autodiff().require_grad(),
                })
                .collect(),
            dense: self.dense.iter().map(|pair| pair.clone().map(|t| t.autodiff().require_grad())).collect(),
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
            if conv.layer.pool {
                map = max_pool2d(map, MaxPoolOptions::new([2, 2]));
            }
        }
        let [rows, channels, height, width] = map.dims();
        let mut hidden = match self.pool {
            Pool::Flatten => map.permute([0, 2, 3, 1]).reshape([rows, height * width * channels]),
            Pool::Avg => map.reshape([rows, channels, height * width]).mean_dim(2).reshape([rows, channels]),
            Pool::Max => map.reshape([rows, channels, height * width]).max_dim(2).reshape([rows, channels]),
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
    fn update(self, gradients: Gradients, optimizer: &mut OptimizerState) -> Result<Self, TrainError> {
        optimizer.begin_step();
        let mut gradients = gradients.0.into_iter().enumerate();
        let mut step = |mut weights: TensorData| {
            let (index, gradient) = gradients.next().ok_or_else(|| TrainError::backend("gradients are missing"))?;
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
            convs.push(Conv { layer: conv.layer, kernel, bias: Tensor::from_data(step(data(conv.bias)?)?, at) });
        }
        let mut dense = Vec::with_capacity(self.dense.len());
        for [kernel, bias] in self.dense {
            let kernel = Tensor::from_data(step(data(kernel)?)?, at);
            dense.push([kernel, Tensor::from_data(step(data(bias)?)?, at)]);
        }
        Ok(Self { convs, dense, shape: self.shape, pool: self.pool, device: self.device })
    }

    /// Mean loss and accuracy without dropout; `None` if a logit is not finite.
    fn evaluate(&self, split: Split, outputs: usize, data: &Dataset) -> Result<Option<Evaluation>, TrainError> {
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
    fn weights(&self) -> Result<(Vec<FloatLayer>, Vec<DenseWeights>), TrainError> {
        let conv = |conv: &Conv| {
            Ok(FloatLayer { kernel: read(conv.kernel.clone())?, bias: read(conv.bias.clone())?, ..conv.layer.clone() })
        };
        let dense = |[kernel, bias]: &[Tensor<2>; 2]| {
            let [inputs, outputs] = kernel.dims();
            Ok(DenseWeights { inputs, outputs, kernel: read(kernel.clone())?, bias: read(bias.clone())?, norm: None })
        };
        Ok((
            self.convs.iter().map(conv).collect::<Result<_, TrainError>>()?,
            self.dense.iter().map(dense).collect::<Result<_, TrainError>>()?,
        ))
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
