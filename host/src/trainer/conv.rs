//! A convolution in training: 3x3, stride 1, zero padding 1, then 2x2 max pooling if there is any,
//! then ReLU, which gives the same values and gradients as ReLU before the pooling.
//!
//! Maps are channels last, `[images, height, width, channels]`.

use quant::FloatLayer;

use super::network::{Parameter, relu, relu_backward, sum_rows};
use super::pooling::{max_pool, max_pool_backward};
use super::winograd::{Channels, convolve, convolve_backward};

/// Shape of a map: height, width, channels.
pub type MapShape = [usize; 3];

/// A convolution.
pub(super) struct Conv {
    inputs: usize,
    outputs: usize,
    /// `[outputs, inputs, 3, 3]`
    pub(super) kernel: Parameter,
    /// `[outputs]`
    pub(super) bias: Parameter,
    /// Whether 2x2 max pooling follows.
    pool: bool,
}

/// The output of a layer.
pub(super) struct Activation {
    /// The map after pooling and ReLU.
    pub(super) map: Vec<f32>,
    /// The index of the largest of the four values of each window, if there was pooling.
    largest: Option<Vec<u8>>,
}

impl Conv {
    /// A layer of the same shape as `layer`, with the given kernel and bias.
    pub(super) fn new(layer: &FloatLayer, [kernel, bias]: &[Vec<f32>; 2]) -> Self {
        Self {
            inputs: layer.inputs,
            outputs: layer.outputs,
            kernel: Parameter::kernel(kernel.clone()),
            bias: Parameter::offset(bias.clone()),
            pool: layer.pool,
        }
    }

    /// The shape of the output for an input of the given shape.
    pub(super) fn output_shape(&self, [height, width, _]: MapShape) -> MapShape {
        let by = if self.pool { 2 } else { 1 };
        [height / by, width / by, self.outputs]
    }

    /// Convolution, pooling, ReLU.
    pub(super) fn activate(&self, map: &[f32], shape: MapShape) -> Activation {
        let mut sums = convolve(map, shape, self.channels(), &self.kernel.values);
        for pixel in sums.chunks_exact_mut(self.outputs) {
            pixel.iter_mut().zip(&self.bias.values).for_each(|(sum, bias)| *sum += bias);
        }
        let (mut map, largest) = if self.pool {
            let [height, width, _] = shape;
            let (map, largest) = max_pool(&sums, [height, width, self.outputs]);
            (map, Some(largest))
        } else {
            (sums, None)
        };
        relu(&mut map);
        Activation { map, largest }
    }

    /// Replaces the gradients of kernel and bias, given the input, the activation and the gradient
    /// of the loss by the activation. Returns the gradient by the input if `by_input` is set.
    pub(super) fn backward(
        &mut self,
        map: &[f32],
        shape: MapShape,
        activation: &Activation,
        mut upstream: Vec<f32>,
        by_input: bool,
    ) -> Option<Vec<f32>> {
        relu_backward(&activation.map, &mut upstream);
        if let Some(largest) = &activation.largest {
            let [height, width, _] = shape;
            upstream = max_pool_backward(&upstream, largest, [height, width, self.outputs]);
        }
        self.bias.gradient = sum_rows(&upstream, self.outputs);
        let (channels, kernel) = (self.channels(), &self.kernel.values);
        let (by_kernel, by_map) =
            convolve_backward(map, shape, channels, kernel, &upstream, by_input);
        self.kernel.gradient = by_kernel;
        by_map
    }

    fn channels(&self) -> Channels {
        Channels { inputs: self.inputs, outputs: self.outputs }
    }
}
