//! The convolutions of VGG16 in f32, and the input that they expect.

use sha2::{Digest, Sha256};
use vgg_edge::Fingerprint;
use vgg_edge::image::resize::Filter;
use vgg_edge::preprocess::{ChannelOrder, InputSpec};

use crate::WeightsError;

/// Name, input channels, output channels, and whether 2x2 max pooling follows, of the 13
/// convolutions of VGG16 (Simonyan and Zisserman 2014, table 1, column D; names as in Keras).
pub const VGG16: [(&str, usize, usize, bool); 13] = [
    ("block1_conv1", 3, 64, false),
    ("block1_conv2", 64, 64, true),
    ("block2_conv1", 64, 128, false),
    ("block2_conv2", 128, 128, true),
    ("block3_conv1", 128, 256, false),
    ("block3_conv2", 256, 256, false),
    ("block3_conv3", 256, 256, true),
    ("block4_conv1", 256, 512, false),
    ("block4_conv2", 512, 512, false),
    ("block4_conv3", 512, 512, true),
    ("block5_conv1", 512, 512, false),
    ("block5_conv2", 512, 512, false),
    ("block5_conv3", 512, 512, true),
];

/// SHA-256 ([`FloatBase::digest`]) of the ImageNet weights of the Visual Geometry Group as Keras
/// ships them.
pub const CANONICAL: &str = "dd21191fd3ba4d9b2b0104621c806227994d029acdf7f88d3ca0afd5774c15cf";

/// One convolution: 3x3, stride 1, zero padding 1, followed by ReLU.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatLayer {
    /// Name of the layer, as in Keras: `block1_conv1`.
    pub name: String,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Weights `[outputs, inputs, 3, 3]`.
    pub kernel: Vec<f32>,
    /// One value per output channel.
    pub bias: Vec<f32>,
    /// Whether 2x2 max pooling with stride 2 follows.
    pub pool: bool,
}

/// How a pixel becomes an input value: `(p - mean) / std` for p from 0 to 255.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalization {
    /// Order of the channels.
    pub channel_order: ChannelOrder,
    /// Mean of each channel in pixel units, in the order of `channel_order`.
    pub mean: [f32; 3],
    /// Standard deviation of each channel in pixel units, in the order of `channel_order`.
    pub std: [f32; 3],
}

impl Normalization {
    /// Keras `preprocess_input(mode="caffe")`, that of the original weights: B, G, R minus the
    /// means, not scaled.
    pub const CAFFE: Self = Self {
        channel_order: ChannelOrder::Bgr,
        mean: [103.939, 116.779, 123.68],
        std: [1.0, 1.0, 1.0],
    };

    /// torchvision's `IMAGENET1K_V1` transforms: means 0.485, 0.456, 0.406 and deviations 0.229,
    /// 0.224, 0.225, times 255.
    pub const TORCHVISION: Self = Self {
        channel_order: ChannelOrder::Rgb,
        mean: [123.675, 116.28, 103.53],
        std: [58.395, 57.12, 57.375],
    };

    /// R, G, B divided by 255: the tutorial's `rescale=1./255`.
    pub const TUTORIAL: Self =
        Self { channel_order: ChannelOrder::Rgb, mean: [0.0; 3], std: [255.0; 3] };

    /// Checks that the numbers are plausible for pixels of 0 to 255.
    ///
    /// # Errors
    /// [`WeightsError::Metadata`] with the numbers.
    pub fn check(&self) -> Result<(), WeightsError> {
        let sane = |v: f32| v.is_finite() && v.abs() <= 1e4;
        if !self.mean.iter().all(|&v| sane(v)) {
            return Err(WeightsError::Metadata(format!(
                "means of {:?} are not plausible for pixels of 0 to 255",
                self.mean
            )));
        }
        if !self.std.iter().all(|&v| sane(v) && v >= 1e-3) {
            return Err(WeightsError::Metadata(format!(
                "standard deviations of {:?} are not plausible for pixels of 0 to 255",
                self.std
            )));
        }
        Ok(())
    }

    /// Returns the scale and zero point with which u8 covers the range of all pixels.
    pub fn quantization(&self) -> (f32, u8) {
        let ends = |pixel: f32| (0..3).map(move |c| (pixel - self.mean[c]) / self.std[c]);
        // 0 must lie within: it is the value of the padding.
        let low = ends(0.0).fold(0.0, f32::min);
        let high = ends(255.0).fold(0.0, f32::max);
        let scale = (high - low) / 255.0;
        (scale, (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8)
    }
}

/// A chain of convolutions in f32 and the input that it expects.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatBase {
    /// The convolutions, in order.
    pub layers: Vec<FloatLayer>,
    /// How pixels become input values.
    pub normalization: Normalization,
    /// Origin of the weights, for users.
    pub source: String,
}

impl FloatBase {
    /// Returns the input that an int8 base of these weights expects.
    pub fn contract(&self) -> InputSpec {
        let pools = self.layers.iter().filter(|layer| layer.pool).count();
        contract(&self.normalization, pools, self.layers.last().map_or(0, |layer| layer.outputs))
    }

    /// Returns the SHA-256 over the layers in order, each its kernel (OIHW, f32, little-endian) and
    /// then its bias.
    pub fn digest(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        for layer in &self.layers {
            for part in [&layer.kernel, &layer.bias] {
                for values in part.chunks(4096) {
                    hash.update(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
                }
            }
        }
        Fingerprint(hash.finalize().into())
    }

    /// Whether these are the ImageNet weights of the Visual Geometry Group.
    pub fn is_canonical(&self) -> bool {
        self.digest().to_string() == CANONICAL
    }

    /// Returns the number of weights and biases.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(|layer| layer.kernel.len() + layer.bias.len()).sum()
    }
}

/// Returns the input settings of a base with `pools` poolings and `outputs` channels.
pub(crate) fn contract(normalization: &Normalization, pools: usize, outputs: usize) -> InputSpec {
    let (scale, zero_point) = normalization.quantization();
    let stride = 1 << pools;
    InputSpec {
        channel_order: normalization.channel_order,
        mean: normalization.mean,
        std: normalization.std,
        scale,
        zero_point,
        resize: Filter::Bilinear,
        channels: outputs as u32,
        stride,
        size_multiple: stride,
        size_min: stride,
        size_max: 1024,
    }
}

/// A kernel and a bias as found in a file, before they are checked against VGG16.
pub(crate) struct Found {
    /// Name in the file.
    pub name: String,
    /// Shape of the kernel, which should be `[outputs, inputs, 3, 3]`.
    pub shape: Vec<usize>,
    /// Weights in the order of `shape`.
    pub kernel: Vec<f32>,
    /// One value per output channel.
    pub bias: Vec<f32>,
}

/// Checks the convolutions of a file against VGG16.
///
/// # Errors
/// [`WeightsError`] about the first mismatch, with its name in the file.
pub(crate) fn assemble(found: Vec<Found>) -> Result<Vec<FloatLayer>, WeightsError> {
    for (found, (name, inputs, outputs, _)) in found.iter().zip(VGG16) {
        let wanted = [outputs, inputs, 3, 3];
        if found.shape != wanted {
            return Err(WeightsError::NotVgg16(format!(
                "{} has a kernel of {:?} where {name} has {wanted:?} \
                 (outputs, inputs, height, width)",
                found.name, found.shape
            )));
        }
        if found.bias.len() != outputs {
            let reason = format!("a bias of {} values, {name} has {outputs}", found.bias.len());
            return Err(WeightsError::tensor(&found.name, reason));
        }
        if let Some(at) = found.kernel.iter().chain(&found.bias).position(|v| !v.is_finite()) {
            let part = if at < found.kernel.len() { "kernel" } else { "bias" };
            let reason = format!("its {part} holds a value that is not finite (NaN or infinite)");
            return Err(WeightsError::tensor(&found.name, reason));
        }
    }
    if found.len() != VGG16.len() {
        let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).take(20).collect();
        let names =
            if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        return Err(WeightsError::NotVgg16(format!(
            "{} convolutions{names}, VGG16 has 13",
            found.len()
        )));
    }
    Ok(found
        .into_iter()
        .zip(VGG16)
        .map(|(found, (name, inputs, outputs, pool))| FloatLayer {
            name: name.into(),
            inputs,
            outputs,
            kernel: found.kernel,
            bias: found.bias,
            pool,
        })
        .collect())
}

/// Reorders `[3, 3, inputs, outputs]` (Keras) to `[outputs, inputs, 3, 3]`.
pub(crate) fn hwio_to_oihw(kernel: &[f32], inputs: usize, outputs: usize) -> Vec<f32> {
    let mut out = vec![0.0; kernel.len()];
    for (at, &value) in kernel.iter().enumerate() {
        let (tap, channel, output) = (at / (inputs * outputs), at / outputs % inputs, at % outputs);
        out[(output * inputs + channel) * 9 + tap] = value;
    }
    out
}
