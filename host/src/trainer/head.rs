use super::data::all_finite;
#[cfg(test)]
use super::{Dataset, TrainError, network::Network};

/// The weights of a dense layer: `output = input * kernel + bias`.
#[derive(Debug, Clone, PartialEq)]
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
}

/// How training stood at the end of an epoch.
///
/// As in Keras, `loss` and `accuracy` are means over the epoch's samples of what each batch gave
/// before its step, with dropout: they lag behind the weights, while the validation set is measured
/// after the epoch and without dropout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochStats {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Mean cross-entropy, in nats, of the training batches.
    pub loss: f64,
    /// Share of training samples classified correctly, from 0 to 1.
    pub accuracy: f64,
    /// Mean cross-entropy, in nats, of the validation set, if there is one.
    pub val_loss: Option<f64>,
    /// Share of validation samples classified correctly, from 0 to 1, if there are any.
    pub val_accuracy: Option<f64>,
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
    /// The dense layers from the features to the output, one or two. ReLU comes after the first of
    /// two; after the last comes a sigmoid if it has one output, which is the probability of class
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
        super::fit::evaluate(&Network::new(&self.layers), outputs, data)
    }
}

impl DenseWeights {
    pub(super) fn is_finite(&self) -> bool {
        all_finite(&self.kernel) && all_finite(&self.bias)
    }
}
