//! Static post-training quantization, layer by layer.
//!
//! Weights: i8, symmetric, a scale for each output channel. Activations: u8, zero point 0 after
//! ReLU. The kernels of `vgg_edge` run each quantized layer before the next one is calibrated, so
//! that each layer is calibrated on the inputs it will have.

use std::sync::Arc;

use rayon::prelude::*;
use vgg_edge::Image;
use vgg_edge::kernels::{Arena, Batch, ConvLayer, Kernel, Stack};
use vgg_edge::preprocess::{Fit, Preprocess, Quantizer};

use crate::calibrate::{Histogram, Method};
use crate::float::{FloatConv, Map};
use crate::linalg::Symmetric;
use crate::round::{self, Rounding};
use crate::weights::{FloatBase, FloatLayer};
use crate::{Error, Result};

/// Number of positions in the feature maps, over all images, for the Gram matrix of a layer.
const POSITIONS: usize = 16 * 1024;

/// Number of vectors that are added to a Gram matrix at a time.
const VECTORS: usize = 256;

/// Damping: the fraction of its mean that is added to the diagonal of a Gram matrix.
const DAMPING: f64 = 0.01;

/// The settings of quantization.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The choice of the ranges of activations.
    pub method: Method,
    /// The rounding of weights.
    pub rounding: Rounding,
    /// Limit of cross-layer equalization: a channel that uses little of the range of its layer is
    /// scaled up, at most by this factor; the weights of the next layer (or the scales of the
    /// feature map) compensate it (Nagel and others 2019, arXiv:1906.04721, for activations). 1
    /// disables it.
    pub equalization: f64,
    /// Whether each bias compensates the mean difference of the layer's sums (the same paper,
    /// section 4.2).
    pub bias_correction: bool,
}

impl Default for Options {
    /// Returns the settings with the smallest error (`docs/benchmarks.md`).
    fn default() -> Self {
        Self {
            method: Method::Percentile(99.9999),
            rounding: Rounding::Compensated,
            equalization: 2.0,
            bias_correction: false,
        }
    }
}

/// One layer in integers, with the scales of its ONNX node.
#[derive(Clone, Debug)]
pub struct QuantLayer {
    /// The layer as the kernels run it.
    pub conv: ConvLayer,
    /// Scale of the input.
    pub input_scale: f32,
    /// Scale of the weights of each output channel.
    pub weight_scales: Vec<f32>,
    /// Scale of the output.
    pub output_scale: f32,
    /// Largest f32 output in calibration, in units of this layer.
    pub largest: f32,
}

/// A base in integers.
#[derive(Clone, Debug)]
pub struct QuantBase {
    /// The layers, in order.
    pub layers: Vec<QuantLayer>,
    /// The input that it expects.
    pub normalization: crate::Normalization,
    /// Origin of the weights.
    pub source: String,
    /// Digest of the f32 weights.
    pub weights_digest: vgg_edge::Fingerprint,
    /// Scale of each channel of the feature map.
    pub feature_scales: Vec<f32>,
    /// The settings of quantization, for users.
    pub how: String,
}

/// Images of one size, resized and normalized.
#[derive(Default)]
pub struct Inputs {
    /// f32, channels last.
    pub real: Vec<Map<f32>>,
    /// The quantized inputs of the base: u8, channels first.
    pub quantized: Vec<Vec<u8>>,
}

impl Inputs {
    /// Adds the [`input`] of one image.
    pub fn push(&mut self, (real, quantized): (Map<f32>, Vec<u8>)) {
        self.real.push(real);
        self.quantized.push(quantized);
    }
}

/// Returns one image as an element of [`Inputs`], at the `size` of the quantizer.
pub fn input(quantizer: &Quantizer, size: u32, frame: &Image) -> (Map<f32>, Vec<u8>) {
    let side = size as usize;
    let real = Map { height: side, width: side, channels: 3, data: quantizer.normalize(frame) };
    (real, quantizer.quantize(frame))
}

/// Returns the preprocessing of a base.
pub fn preprocess(base: &FloatBase, size: u32, fit: Fit) -> Preprocess {
    let base = base.contract();
    Preprocess { size, fit, resize: base.resize, base }
}

/// The activations of one calibration image before the current layer.
pub(crate) struct Sample {
    /// In f32.
    pub real: Map<f32>,
    /// In integers.
    pub quantized: Map<u8>,
}

/// Quantizes `base` with the images of `inputs` (of one or more sizes). `progress` is called with
/// the name of each layer before it is quantized.
///
/// # Errors
/// [`Error::Calibration`] without images or with images of one color only; [`Error::Layer`] if the
/// output of a layer is never positive or its sums could overflow; the errors of `progress`.
pub fn quantize(
    base: &FloatBase,
    inputs: Vec<Inputs>,
    options: &Options,
    kernel: Kernel,
    progress: impl FnMut(&str) -> Result<()>,
) -> Result<QuantBase> {
    let mut samples: Vec<Sample> = Vec::new();
    for inputs in inputs {
        for (real, planes) in inputs.real.into_iter().zip(inputs.quantized) {
            let quantized = to_channels_last(&planes, real.height, real.width);
            samples.push(Sample { real, quantized });
        }
    }
    if samples.is_empty() {
        return Err(Error::Calibration("there are no images".into()));
    }
    if samples.iter().all(|sample| {
        sample.quantized.data.chunks_exact(3).all(|p| p == &sample.quantized.data[..3])
    }) {
        return Err(Error::Calibration(format!(
            "all {} images are of a single color; use photographs like those to be classified",
            samples.len()
        )));
    }
    let (layers, feature_scales) = quantize_layers(
        &base.layers,
        samples,
        base.normalization.quantization(),
        options,
        kernel,
        progress,
    )?;
    Ok(QuantBase {
        layers,
        normalization: base.normalization,
        source: base.source.clone(),
        weights_digest: base.digest(),
        feature_scales,
        how: String::new(),
    })
}

/// Quantizes consecutive layers whose inputs are `samples`. Returns the scale of each channel of
/// the last output too. The input has one scale and a zero point.
pub(crate) fn quantize_layers(
    float: &[FloatLayer],
    mut samples: Vec<Sample>,
    (mut input_scale, mut zero_point): (f32, u8),
    options: &Options,
    kernel: Kernel,
    mut progress: impl FnMut(&str) -> Result<()>,
) -> Result<(Vec<QuantLayer>, Vec<f32>)> {
    // Factor of each input channel, from the equalization of the layer before.
    let mut equalized = vec![1.0f32; float.first().map_or(0, |layer| layer.inputs)];
    let mut layers = Vec::with_capacity(float.len());
    for layer in float {
        progress(&layer.name)?;
        let conv = FloatConv::new(layer);

        // The f32 outputs; `real` becomes the input of the next layer.
        let sums: Vec<Map<f32>> =
            samples.par_iter().map(|sample| conv.sums(&sample.real)).collect();
        let mean_sums = options.bias_correction.then(|| channel_means(&sums, layer.outputs));
        let outputs: Vec<Map<f32>> = sums.into_par_iter().map(|sums| conv.activate(sums)).collect();

        let factors = equalization(&outputs, layer.outputs, options.equalization);
        let folded = fold(layer, &equalized, &factors);
        let histogram = histogram(&outputs, &factors);
        let output_scale = histogram.reach(options.method, &layer.name)? / 255.0;

        let weight_scales = round::scales(&folded.kernel, folded.outputs);
        let weights = match options.rounding {
            Rounding::Nearest => round::to_nearest(&folded.kernel, &weight_scales),
            Rounding::Compensated => {
                let gram = gram(&samples, layer.inputs, zero_point);
                round::compensated(&folded.kernel, &weight_scales, &gram, DAMPING)
            }
        };
        let mut quantized = QuantLayer::new(
            &folded,
            weights,
            weight_scales,
            (input_scale, zero_point),
            output_scale,
            histogram.largest(),
        )?;
        if let Some(wanted) = mean_sums {
            correct_bias(&mut quantized, &wanted, &factors, &samples)?;
        }
        quantized
            .conv
            .check()
            .map_err(|e| Error::Layer { layer: layer.name.clone(), reason: e.to_string() })?;

        let stack = Stack::new(vec![quantized.conv.clone()], kernel);
        samples.par_iter_mut().zip(outputs).for_each_init(
            Arena::default,
            |arena, (sample, output)| {
                sample.quantized = run(&stack, arena, &sample.quantized);
                sample.real = output;
            },
        );
        (input_scale, zero_point) = (output_scale, 0);
        equalized = factors;
        layers.push(quantized);
    }
    Ok((layers, equalized.iter().map(|factor| factor * input_scale).collect()))
}

/// Counts the outputs of a layer over all samples, each channel divided by its factor.
fn histogram(outputs: &[Map<f32>], factors: &[f32]) -> Histogram {
    let largest = outputs
        .par_iter()
        .map(|output| divided(output, factors).fold(0.0, f32::max))
        .reduce(|| 0.0, f32::max);
    outputs
        .par_iter()
        .fold(
            || Histogram::new(largest),
            |mut histogram, output| {
                histogram.add(divided(output, factors));
                histogram
            },
        )
        .reduce(|| Histogram::new(largest), |a, b| a.merge(&b))
}

/// Corrects each bias so that the mean of the integer sums equals that of the f32 sums, `wanted`,
/// in units of the folded layer.
fn correct_bias(
    layer: &mut QuantLayer,
    wanted: &[f64],
    factors: &[f32],
    samples: &[Sample],
) -> Result<()> {
    let found = mean_integer_sums(layer, samples);
    for (channel, bias) in layer.conv.bias.iter_mut().enumerate() {
        let unit = f64::from(layer.input_scale) * f64::from(layer.weight_scales[channel]);
        let wanted = wanted[channel] / f64::from(factors[channel]) / unit;
        *bias = to_bias(f64::from(*bias) + wanted - found[channel], &layer.conv.name)?;
    }
    Ok(())
}

impl QuantLayer {
    /// Creates the layer from `layer` and its weights as integers.
    fn new(
        layer: &FloatLayer,
        weights: Vec<i8>,
        weight_scales: Vec<f32>,
        (input_scale, zero_point): (f32, u8),
        output_scale: f32,
        largest: f32,
    ) -> Result<Self> {
        let units = weight_scales.iter().map(|&scale| f64::from(input_scale) * f64::from(scale));
        let bias: Result<Vec<i32>> = layer
            .bias
            .iter()
            .zip(units)
            .map(|(&b, unit)| to_bias(f64::from(b) / unit, &layer.name))
            .collect();
        let conv = ConvLayer {
            name: layer.name.clone(),
            inputs: layer.inputs,
            outputs: layer.outputs,
            weights: Arc::from(weights),
            bias: bias?,
            zero_point,
            multipliers: weight_scales
                .iter()
                .map(|&scale| input_scale * scale / output_scale)
                .collect(),
            pool: layer.pool,
        };
        Ok(Self { conv, input_scale, weight_scales, output_scale, largest })
    }

    /// Returns the lowest and highest sum, bias included, over all output channels and all inputs.
    pub fn bounds(&self) -> (i64, i64) {
        bounds(&self.conv)
    }
}

fn to_bias(value: f64, layer: &str) -> Result<i32> {
    let value = value.round_ties_even();
    if value.abs() < f64::from(i32::MAX) {
        Ok(value as i32)
    } else {
        let reason =
            format!("a bias of {value} does not fit 32 bits: its weights are too small for it");
        Err(Error::Layer { layer: layer.into(), reason })
    }
}

/// Returns the lowest and highest sum, bias included, over all output channels and all inputs.
pub(crate) fn bounds(layer: &ConvLayer) -> (i64, i64) {
    let (low, high) = (-i64::from(layer.zero_point), 255 - i64::from(layer.zero_point));
    let channels = layer.weights.chunks_exact(9 * layer.inputs).zip(&layer.bias);
    channels.fold((0, 0), |(lowest, highest), (weights, &bias)| {
        let (mut least, mut most) = (i64::from(bias), i64::from(bias));
        for &weight in weights {
            let ends = [low * i64::from(weight), high * i64::from(weight)];
            least += ends[0].min(ends[1]);
            most += ends[0].max(ends[1]);
        }
        (lowest.min(least), highest.max(most))
    })
}

/// Returns the layer with its inputs multiplied by `inputs` and its outputs divided by `outputs`;
/// ReLU and pooling commute with that.
fn fold(layer: &FloatLayer, inputs: &[f32], outputs: &[f32]) -> FloatLayer {
    let mut folded = layer.clone();
    for (output, kernel) in folded.kernel.chunks_exact_mut(9 * layer.inputs).enumerate() {
        for (at, weight) in kernel.iter_mut().enumerate() {
            *weight = *weight * inputs[at / 9] / outputs[output];
        }
        folded.bias[output] /= outputs[output];
    }
    folded
}

/// Returns the divisor of each output channel, from `1 / most` to 1.
fn equalization(outputs: &[Map<f32>], channels: usize, most: f64) -> Vec<f32> {
    /// Other images have larger values than those in calibration, and a coarser step costs less
    /// than clipping.
    const ROOM: f64 = 2.0;
    let mut largest = vec![0.0f32; channels];
    for output in outputs {
        for pixel in output.data.chunks_exact(channels) {
            largest.iter_mut().zip(pixel).for_each(|(m, &v)| *m = m.max(v));
        }
    }
    let top = f64::from(largest.iter().copied().fold(f32::MIN_POSITIVE, f32::max));
    largest.iter().map(|&m| (ROOM * f64::from(m) / top).clamp(1.0 / most, 1.0) as f32).collect()
}

/// Returns an output with each channel divided by its factor.
fn divided<'a>(output: &'a Map<f32>, factors: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    output.data.iter().zip(factors.iter().cycle()).map(|(v, factor)| v / factor)
}

fn channel_means(maps: &[Map<f32>], channels: usize) -> Vec<f64> {
    let mut sums = vec![0.0; channels];
    let mut count = 0;
    for map in maps {
        for pixel in map.data.chunks_exact(channels) {
            sums.iter_mut().zip(pixel).for_each(|(s, &v)| *s += f64::from(v));
            count += 1;
        }
    }
    sums.iter_mut().for_each(|s| *s /= f64::from(count.max(1)));
    sums
}

/// Returns the mean of the integer sums of each output channel over all positions. A convolution is
/// linear, so the means follow from the sums of the inputs under each tap.
fn mean_integer_sums(layer: &QuantLayer, samples: &[Sample]) -> Vec<f64> {
    let inputs = layer.conv.inputs;
    let mut taps = vec![0i64; 9 * inputs];
    let mut count = 0;
    for sample in samples {
        let map = sample.quantized.bordered(layer.conv.zero_point);
        for y in 0..sample.quantized.height {
            for x in 0..sample.quantized.width {
                for (at, q) in window(&map, y, x) {
                    taps[at] += i64::from(q) - i64::from(layer.conv.zero_point);
                }
                count += 1;
            }
        }
    }
    let mean = |(weights, &bias): (&[i8], &i32)| {
        let sum: i64 = weights.iter().zip(&taps).map(|(&w, &t)| i64::from(w) * t).sum();
        f64::from(bias) + sum as f64 / f64::from(count.max(1))
    };
    layer.conv.weights.chunks_exact(9 * inputs).zip(&layer.conv.bias).map(mean).collect()
}

/// Returns the inputs of one output pixel, each with its index `[channel, tap]` in a kernel.
fn window(bordered: &Map<u8>, y: usize, x: usize) -> impl Iterator<Item = (usize, u8)> {
    (0..9).flat_map(move |tap| {
        let at = ((y + tap / 3) * bordered.width + x + tap % 3) * bordered.channels;
        let pixel = &bordered.data[at..][..bordered.channels];
        pixel.iter().enumerate().map(move |(channel, &q)| (channel * 9 + tap, q))
    })
}

/// Returns the Gram matrix of the inputs `[channel, tap]` at positions spread evenly over all maps.
fn gram(samples: &[Sample], inputs: usize, zero_point: u8) -> Symmetric {
    let positions: usize = samples.iter().map(|s| s.quantized.height * s.quantized.width).sum();
    // An odd step visits all columns of maps whose sides are powers of two.
    let step = (positions / POSITIONS).max(1) | 1;
    let mut gram = Symmetric::zero(9 * inputs);
    let mut vectors: Vec<Vec<f64>> = Vec::new();
    let mut add = |vectors: &mut Vec<Vec<f64>>| {
        gram.add_outer(vectors.iter().map(Vec::as_slice));
        vectors.clear();
    };
    let mut next = step / 2;
    let mut before = 0;
    for sample in samples {
        let width = sample.quantized.width;
        let after = before + sample.quantized.height * width;
        let map = sample.quantized.bordered(zero_point);
        while next < after {
            let (y, x) = ((next - before) / width, (next - before) % width);
            let mut vector = vec![0.0; 9 * inputs];
            for (at, q) in window(&map, y, x) {
                vector[at] = f64::from(q) - f64::from(zero_point);
            }
            vectors.push(vector);
            if vectors.len() == VECTORS {
                add(&mut vectors);
            }
            next += step;
        }
        before = after;
    }
    add(&mut vectors);
    gram
}

/// Runs a stack on a channels-last map.
fn run(stack: &Stack, arena: &mut Arena, input: &Map<u8>) -> Map<u8> {
    let mut planes = vec![0; input.data.len()];
    let size = input.height * input.width;
    for (at, pixel) in input.data.chunks_exact(input.channels).enumerate() {
        for (channel, &value) in pixel.iter().enumerate() {
            planes[channel * size + at] = value;
        }
    }
    let (channels, height, width) = stack.output_shape(input.height, input.width);
    let mut data = vec![0; channels * height * width];
    let batch = Batch { planes: &planes, height: input.height, width: input.width };
    stack.run(arena, batch, false, &mut data);
    Map { height, width, channels, data }
}

fn to_channels_last(planes: &[u8], height: usize, width: usize) -> Map<u8> {
    let size = height * width;
    let channels = planes.len() / size.max(1);
    let data = (0..size).flat_map(|at| (0..channels).map(move |c| planes[c * size + at])).collect();
    Map { height, width, channels, data }
}

/// Returns the output of each layer, channels last, for a quantized input. Each layer is a stack of
/// its own.
pub(crate) fn each_layer(
    stacks: &[Stack],
    planes: &[u8],
    height: usize,
    width: usize,
) -> Vec<Map<u8>> {
    let mut arena = Arena::default();
    let mut maps: Vec<Map<u8>> = Vec::with_capacity(stacks.len());
    for stack in stacks {
        let map = match maps.last() {
            Some(map) => run(stack, &mut arena, map),
            None => run(stack, &mut arena, &to_channels_last(planes, height, width)),
        };
        maps.push(map);
    }
    maps
}
