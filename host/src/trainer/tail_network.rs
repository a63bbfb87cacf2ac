//! The last convolutions of a base in training, with the head after them.

use quant::FloatLayer;
use serde::{Deserialize, Serialize};
use vgg_edge::head::Pool;

use super::DenseWeights;
use super::conv::{Activation, Conv, MapShape};
use super::data::all_finite;
use super::head_network::HeadNetwork;
use super::network::{Dropout, Network, Parameter};
use super::pooling::{Pooled, pool_all, pool_all_backward};
use super::schedule::FixedRate;

/// Kernels and biases of the convolutions, and the head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TailWeights {
    /// Kernel and bias of each convolution, as in [`FloatLayer`].
    pub(super) tail: Vec<[Vec<f32>; 2]>,
    pub(super) head: Vec<DenseWeights>,
}

/// Convolutions, pooling over the whole map, dense layers.
pub(super) struct TailNetwork {
    convs: Vec<Conv>,
    pool: Pool,
    head: HeadNetwork,
    /// The shape of the input of each convolution, and of the output of the last one.
    shapes: Vec<MapShape>,
    tape: Option<Tape>,
}

/// Values of the latest forward pass that the backward pass uses.
struct Tape {
    input: Vec<f32>,
    activations: Vec<Activation>,
    pooled: Pooled,
}

impl TailNetwork {
    /// Layers like those of `tail` with the weights given, for maps of this shape.
    pub(super) fn new(
        tail: &[FloatLayer],
        weights: &TailWeights,
        shape: MapShape,
        pool: Pool,
    ) -> Self {
        let convs: Vec<Conv> = tail
            .iter()
            .zip(&weights.tail)
            .map(|(layer, weights)| Conv::new(layer, weights))
            .collect();
        let mut shapes = vec![shape];
        for conv in &convs {
            shapes.extend(shapes.last().map(|shape| conv.output_shape(*shape)));
        }
        let head = HeadNetwork::on_trained_features(&weights.head);
        Self { convs, pool, head, shapes, tape: None }
    }

    fn last_shape(&self) -> MapShape {
        self.shapes.last().copied().unwrap_or_default()
    }
}

impl Network for TailNetwork {
    type Weights = TailWeights;
    type Rate = FixedRate;

    const EVALUATION_ROWS: usize = 64;
    const SMOOTHED_VALIDATION: bool = false;

    fn parameters(&self) -> Vec<&Parameter> {
        let convs = self.convs.iter().flat_map(|conv| [&conv.kernel, &conv.bias]);
        convs.chain(self.head.parameters()).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let convs = self.convs.iter_mut().flat_map(|conv| [&mut conv.kernel, &mut conv.bias]);
        convs.chain(self.head.parameters_mut()).collect()
    }

    fn weights(&self) -> TailWeights {
        let conv = |conv: &Conv| [conv.kernel.values.clone(), conv.bias.values.clone()];
        TailWeights { tail: self.convs.iter().map(conv).collect(), head: self.head.weights() }
    }

    fn is_finite(weights: &TailWeights) -> bool {
        weights.tail.iter().flatten().all(|values| all_finite(values))
            && HeadNetwork::is_finite(&weights.head)
    }

    fn logits(&self, features: Vec<f32>, rows: usize) -> Vec<f32> {
        let mut map = features;
        for (conv, shape) in self.convs.iter().zip(&self.shapes) {
            map = conv.activate(&map, *shape).map;
        }
        self.head.logits(pool_all(map, self.pool, self.last_shape()).features, rows)
    }

    fn forward(&mut self, features: Vec<f32>, rows: usize, dropout: Option<Dropout>) -> Vec<f32> {
        let input = features;
        let mut activations: Vec<Activation> = Vec::new();
        for (conv, shape) in self.convs.iter().zip(&self.shapes) {
            let map = activations.last().map_or(&input, |activation| &activation.map);
            activations.push(conv.activate(map, *shape));
        }
        let map = activations.last().map_or(&input, |activation| &activation.map);
        let mut pooled = pool_all(map.clone(), self.pool, self.last_shape());
        let features = std::mem::take(&mut pooled.features);
        self.tape = Some(Tape { input, activations, pooled });
        self.head.forward(features, rows, dropout)
    }

    fn backward(&mut self, upstream: Vec<f32>) {
        let Some(Tape { input, activations, pooled }) = self.tape.take() else { return };
        let shape = self.last_shape();
        let mut upstream = self
            .head
            .propagate(upstream, !self.convs.is_empty())
            .map(|gradient| pool_all_backward(gradient, &pooled, self.pool, shape));
        for (index, conv) in self.convs.iter_mut().enumerate().rev() {
            let Some(gradient) = upstream.take() else { return };
            let map = if index == 0 { &input } else { &activations[index - 1].map };
            let (shape, activation) = (self.shapes[index], &activations[index]);
            // The layers before the first convolution are frozen.
            upstream = conv.backward(map, shape, activation, gradient, index > 0);
        }
    }
}
