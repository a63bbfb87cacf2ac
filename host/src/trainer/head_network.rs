//! The dense layers of a head in training.

use super::DenseWeights;
use super::dense::Dense;
use super::network::{Dropout, Network, Parameter, relu, relu_backward};
use super::schedule::Rate;

/// Dense layers with ReLU and dropout between them.
pub(super) struct HeadNetwork {
    layers: Vec<Dense>,
    /// Whether dropout acts on the features if there is no hidden layer.
    drops_features: bool,
    tape: Tape,
}

/// Values of the latest forward pass that the backward pass uses.
#[derive(Default)]
struct Tape {
    rows: usize,
    /// The input of each layer.
    inputs: Vec<Vec<f32>>,
    /// The sums of each hidden layer, before ReLU.
    sums: Vec<Vec<f32>>,
    /// The dropout mask of each hidden layer, if there is dropout.
    masks: Vec<Vec<f32>>,
}

impl HeadNetwork {
    /// A head on frozen features.
    pub(super) fn new(layers: &[DenseWeights]) -> Self {
        Self { drops_features: true, ..Self::on_trained_features(layers) }
    }

    /// A head on features that are trained with it: dropout leaves them alone.
    pub(super) fn on_trained_features(layers: &[DenseWeights]) -> Self {
        let layers = layers.iter().map(Dense::new).collect();
        Self { layers, drops_features: false, tape: Tape::default() }
    }

    /// As [`Network::backward`]; returns the gradient by the features if `by_features` is set,
    /// which takes a product as large as those by the weights.
    pub(super) fn propagate(&mut self, upstream: Vec<f32>, by_features: bool) -> Option<Vec<f32>> {
        let Tape { rows, inputs, sums, masks } = std::mem::take(&mut self.tape);
        let mut upstream = upstream;
        for (index, layer) in self.layers.iter_mut().enumerate().rev() {
            upstream = layer.backward(&inputs[index], upstream, rows);
            if index == 0 {
                return by_features.then(|| layer.input_gradient(&upstream, rows));
            }
            upstream = layer.input_gradient(&upstream, rows);
            if let Some(mask) = masks.get(index - 1) {
                multiply(&mut upstream, mask);
            }
            relu_backward(&sums[index - 1], &mut upstream);
        }
        None
    }
}

impl Network for HeadNetwork {
    type Weights = Vec<DenseWeights>;
    type Rate = Rate;

    const EVALUATION_ROWS: usize = 256;
    const SMOOTHED_VALIDATION: bool = true;

    fn parameters(&self) -> Vec<&Parameter> {
        self.layers.iter().flat_map(Dense::parameters).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.layers.iter_mut().flat_map(Dense::parameters_mut).collect()
    }

    fn weights(&self) -> Vec<DenseWeights> {
        self.layers.iter().map(Dense::weights).collect()
    }

    fn is_finite(weights: &Vec<DenseWeights>) -> bool {
        weights.iter().all(DenseWeights::is_finite)
    }

    fn logits(&self, features: Vec<f32>, rows: usize) -> Vec<f32> {
        let mut values = features;
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                relu(&mut values);
            }
            values = layer.infer(&values, rows);
        }
        values
    }

    fn forward(&mut self, features: Vec<f32>, rows: usize, dropout: Option<Dropout>) -> Vec<f32> {
        let mut dropout = dropout;
        let mut mask = |len: usize| {
            dropout.as_mut().map(|dropout| dropout.stream.dropout_mask(dropout.rate, len))
        };
        let mut tape = Tape { rows, ..Tape::default() };
        let mut values = features;
        if self.layers.len() == 1
            && self.drops_features
            && let Some(mask) = mask(values.len())
        {
            multiply(&mut values, &mask);
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            if index > 0 {
                tape.sums.push(values.clone());
                relu(&mut values);
                if let Some(mask) = mask(values.len()) {
                    multiply(&mut values, &mask);
                    tape.masks.push(mask);
                }
            }
            let sums = layer.forward(&values, rows);
            tape.inputs.push(std::mem::replace(&mut values, sums));
        }
        self.tape = tape;
        values
    }

    fn backward(&mut self, upstream: Vec<f32>) {
        self.propagate(upstream, false);
    }
}

fn multiply(values: &mut [f32], factors: &[f32]) {
    values.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
}
