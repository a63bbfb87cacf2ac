//! Quantized convolution layers and the checks that they pass before they are packed.

use std::sync::Arc;

use crate::kernels::layout::TAPS;

/// One quantized convolution: 3x3, stride 1, padding 1 with the input's zero point, then
/// requantization and ReLU.
#[derive(Clone, Debug)]
pub struct ConvLayer {
    /// Name of the layer, as in Keras: `block1_conv1`.
    pub name: String,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Weights, i8, `[outputs, inputs, 3, 3]`.
    pub weights: Arc<[i8]>,
    /// Bias of each output channel, in units of the accumulator.
    pub bias: Vec<i32>,
    /// Zero point of the input.
    pub zero_point: u8,
    /// `input scale * weight scale / output scale` of each output channel.
    pub multipliers: Vec<f32>,
    /// Whether 2x2 max pooling with stride 2 follows.
    pub pool: bool,
}

/// Reasons why a layer is inconsistent or could overflow.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum LayerError {
    /// The number of input or output channels is 0.
    #[error("layer {layer}: it has no channels")]
    NoChannels {
        /// Name of the layer.
        layer: String,
    },
    /// The number of weights is not `outputs * inputs * 3 * 3`.
    #[error("layer {layer}: {found} weights do not fit {outputs} x {inputs} x 3 x 3")]
    Weights {
        /// Name of the layer.
        layer: String,
        /// Number of weights.
        found: usize,
        /// Output channels.
        outputs: usize,
        /// Input channels.
        inputs: usize,
    },
    /// Biases or multipliers are not one for each output channel.
    #[error(
        "layer {layer}: {biases} biases and {multipliers} scales do not fit {outputs} output \
         channels"
    )]
    PerChannel {
        /// Name of the layer.
        layer: String,
        /// Number of biases.
        biases: usize,
        /// Number of multipliers.
        multipliers: usize,
        /// Output channels.
        outputs: usize,
    },
    /// An input exists for which a sum leaves the range of i32.
    #[error("layer {layer}: output channel {channel} can reach {bound}, beyond 32 bits")]
    Overflow {
        /// Name of the layer.
        layer: String,
        /// Output channel.
        channel: usize,
        /// Upper bound of the absolute value of the sum.
        bound: i64,
    },
    /// A multiplier is not a positive normal number.
    #[error(
        "layer {layer}: output channel {channel} has the scale {multiplier}, which is not a \
         positive number"
    )]
    Multiplier {
        /// Name of the layer.
        layer: String,
        /// Output channel.
        channel: usize,
        /// The multiplier.
        multiplier: f32,
    },
}

impl ConvLayer {
    /// Checks lengths and multipliers, and that no input makes a sum leave the range of i32.
    ///
    /// # Errors
    /// [`LayerError`], for the first fault found.
    pub fn check(&self) -> Result<(), LayerError> {
        let &Self { inputs, outputs, .. } = self;
        let layer = || self.name.clone();
        if inputs == 0 || outputs == 0 {
            return Err(LayerError::NoChannels { layer: layer() });
        }
        let found = self.weights.len();
        if found != inputs * outputs * TAPS {
            return Err(LayerError::Weights { layer: layer(), found, outputs, inputs });
        }
        let (biases, multipliers) = (self.bias.len(), self.multipliers.len());
        if biases != outputs || multipliers != outputs {
            return Err(LayerError::PerChannel { layer: layer(), biases, multipliers, outputs });
        }
        let reach = i64::from(self.zero_point.max(255 - self.zero_point));
        for (channel, weights) in self.weights.chunks_exact(inputs * TAPS).enumerate() {
            let bound =
                sum_of_weights(weights, i32::abs) * reach + i64::from(self.bias[channel]).abs();
            if bound > i64::from(i32::MAX) {
                return Err(LayerError::Overflow { layer: layer(), channel, bound });
            }
            let multiplier = self.multipliers[channel];
            if !multiplier.is_normal() || multiplier < 0.0 {
                return Err(LayerError::Multiplier { layer: layer(), channel, multiplier });
            }
        }
        Ok(())
    }

    /// Returns height and width of the output for an input of `height` by `width` pixels.
    pub fn output_size(&self, height: usize, width: usize) -> (usize, usize) {
        if self.pool { (height / 2, width / 2) } else { (height, width) }
    }

    /// Returns the number of multiplications for an input of `height` by `width` pixels.
    pub fn macs(&self, height: usize, width: usize) -> u64 {
        (self.inputs * self.outputs * TAPS) as u64 * (height * width) as u64
    }
}

/// Sums `of` over weights; it returns at most 2^8 for each.
///
/// Partial sums fit in i32: all weights pass here at each start, and a vector holds twice as many
/// i32 as i64.
pub(super) fn sum_of_weights(weights: &[i8], of: impl Fn(i32) -> i32) -> i64 {
    weights
        .chunks(1 << 16)
        .map(|part| i64::from(part.iter().map(|&w| of(i32::from(w))).sum::<i32>()))
        .sum()
}
