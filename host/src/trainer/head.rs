use serde::{Deserialize, Serialize};

use super::data::all_finite;
#[cfg(test)]
use super::{Dataset, TrainError, network::Network};

/// The weights of a dense layer: `output = input * kernel + bias`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DenseWeights {
    /// How many values go in.
    pub inputs: usize,
    /// How many values come out.
    pub outputs: usize,
    /// `[inputs, outputs]` row by row, as Keras stores it: the weight from input `i` to output `o`
    /// is `kernel[i * outputs + o]`.
    pub kernel: Vec<f32>,
    /// `[outputs]`
    pub bias: Vec<f32>,
    /// Batch normalisation of the sums before `bias` is added; `None` in a trained head.
    pub norm: Option<BatchNorm>,
}

/// Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167), as Keras defines it: `(x - mean) / sqrt(variance + epsilon) * gamma + beta`
/// with `beta` the layer's `bias`. Each is of `[outputs]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchNorm {
    /// The factor that is trained; it starts at 1.
    pub gamma: Vec<f32>,
    /// Moving mean of the batches' means; it starts at 0.
    pub mean: Vec<f32>,
    /// Moving mean of the batches' variances (those of the batch itself, not estimates of a population); it starts at 1.
    pub variance: Vec<f32>,
}

impl BatchNorm {
    /// Keras's `epsilon`.
    pub const EPSILON: f64 = 1e-3;
    /// Keras's `momentum`: the weight of the past in the moving means.
    pub const MOMENTUM: f64 = 0.99;

    /// As Keras starts it.
    pub(super) fn new(outputs: usize) -> Self {
        Self { gamma: vec![1.0; outputs], mean: vec![0.0; outputs], variance: vec![1.0; outputs] }
    }

    /// `gamma / sqrt(variance + epsilon)` of each output.
    pub(super) fn factors(&self) -> impl Iterator<Item = f64> {
        let pairs = self.gamma.iter().zip(&self.variance);
        pairs.map(|(&gamma, &variance)| {
            f64::from(gamma) / (f64::from(variance) + Self::EPSILON).sqrt()
        })
    }
}

/// How training stood at the end of an epoch.
///
/// As in Keras, `loss` and `accuracy` are means over the epoch's samples of what each batch gave
/// before its step, with dropout: they lag behind the weights, while the validation set is measured
/// after the epoch and without dropout.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochStats {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Mean cross-entropy, in nats, of the training batches, with the weights of the classes, smoothed labels and the L2 penalty.
    pub loss: f64,
    /// Share of training samples classified correctly, from 0 to 1.
    pub accuracy: f64,
    /// Mean cross-entropy, in nats, of the validation set, if there is one, with smoothed labels and the L2 penalty (as Keras).
    pub val_loss: Option<f64>,
    /// Share of validation samples classified correctly, from 0 to 1, if there are any.
    pub val_accuracy: Option<f64>,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
}

/// How a data set fares without dropout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Evaluation {
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Share of samples classified correctly, from 0 to 1.
    pub accuracy: f64,
}

/// A trained head: the weights of its best epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedHead {
    /// The dense layers from the features to the output, one or more; batch normalisation is folded away. ReLU comes after each
    /// but the last; after the last comes a sigmoid if it has one output, which is the probability of class
    /// 1, and a softmax if it has more.
    pub layers: Vec<DenseWeights>,
    /// The epoch, from 1, after which the weights were these.
    pub best_epoch: usize,
    /// All epochs that were run, also those after the best.
    pub history: Vec<EpochStats>,
}

#[cfg(test)]
impl TrainedHead {
    /// Loss and accuracy over a data set, without dropout: to hold the kept weights against the history.
    pub(super) fn evaluate(&self, data: &Dataset) -> Result<Option<Evaluation>, TrainError> {
        let outputs = self.layers.last().map_or(0, |layer| layer.outputs);
        super::fit::evaluate(
            &Network::new(&self.layers),
            outputs,
            data,
            super::loss::LossRule::default(),
        )
    }
}

impl DenseWeights {
    pub(super) fn is_finite(&self) -> bool {
        let norm = self.norm.as_ref();
        all_finite(&self.kernel)
            && all_finite(&self.bias)
            && norm.is_none_or(|n| {
                all_finite(&n.gamma) && all_finite(&n.mean) && all_finite(&n.variance)
            })
    }

    /// The layer with its batch normalisation worked into kernel and bias.
    pub(super) fn folded(mut self) -> Self {
        if let Some(norm) = self.norm.take() {
            let factors: Vec<f64> = norm.factors().collect();
            for row in self.kernel.chunks_exact_mut(self.outputs) {
                row.iter_mut()
                    .zip(&factors)
                    .for_each(|(weight, factor)| *weight = (f64::from(*weight) * factor) as f32);
            }
            for ((bias, mean), factor) in self.bias.iter_mut().zip(norm.mean).zip(factors) {
                *bias = (f64::from(*bias) - f64::from(mean) * factor) as f32;
            }
        }
        self
    }
}
