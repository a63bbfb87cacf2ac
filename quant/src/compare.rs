//! The error of quantization: f32 and integers side by side, layer by layer.

use rayon::prelude::*;
use vgg_edge::kernels::{Kernel, Stack};

use crate::float::{FloatNet, Map};
use crate::quantize::{Inputs, each_layer};
use crate::weights::FloatBase;
use crate::{Error, Result};

/// The metrics of one layer over all images, after ReLU and pooling; the errors of earlier layers
/// are included.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerReport {
    /// Name of the layer.
    pub name: String,
    /// Signal-to-quantization-noise ratio in dB: `10 log10(sum f^2 / sum (f - q)^2)`.
    pub sqnr_db: f64,
    /// `sqrt(sum (f - q)^2 / sum f^2)`: the L2 error relative to the f32 output.
    pub relative_error: f64,
    /// Cosine of the angle between both outputs.
    pub cosine: f64,
    /// Largest difference, in units of the layer.
    pub max_error: f64,
    /// Scale of the layer's output, the size of one step; the largest if each channel has its own.
    pub scale: f64,
    /// Fraction of the values above 0 that exceed the largest value of u8.
    pub clipped: f64,
}

/// Running sums of one layer.
#[derive(Clone, Default)]
struct Sums {
    signal: f64,
    noise: f64,
    product: f64,
    quantized: f64,
    largest: f64,
    positive: u64,
    clipped: u64,
}

impl Sums {
    /// `scales` has one value, or one per channel.
    fn add(&mut self, real: &Map<f32>, q: &Map<u8>, scales: &[f32]) {
        for ((&f, &q), &scale) in real.data.iter().zip(&q.data).zip(scales.iter().cycle()) {
            let reach = 255.5 * scale;
            let (f, back) = (f64::from(f), f64::from(f32::from(q) * scale));
            self.signal += f * f;
            self.noise += (f - back) * (f - back);
            self.product += f * back;
            self.quantized += back * back;
            self.largest = self.largest.max((f - back).abs());
            self.positive += u64::from(f > 0.0);
            self.clipped += u64::from(f > f64::from(reach));
        }
    }

    fn merge(mut self, other: &Self) -> Self {
        self.signal += other.signal;
        self.noise += other.noise;
        self.product += other.product;
        self.quantized += other.quantized;
        self.largest = self.largest.max(other.largest);
        self.positive += other.positive;
        self.clipped += other.clipped;
        self
    }
}

/// Runs both bases on the same images.
///
/// `scales` are the output scales of the integer layers, one for each layer or for each of its
/// channels.
///
/// # Errors
/// [`Error::Calibration`] if there are no images or the layers differ.
pub fn compare(
    float: &FloatBase,
    layers: &[vgg_edge::kernels::ConvLayer],
    scales: &[&[f32]],
    inputs: &Inputs,
    kernel: Kernel,
) -> Result<Vec<LayerReport>> {
    let alike = |(a, b): (&crate::FloatLayer, &vgg_edge::kernels::ConvLayer)| {
        (a.inputs, a.outputs, a.pool) == (b.inputs, b.outputs, b.pool)
    };
    if float.layers.len() != layers.len()
        || scales.len() != layers.len()
        || !float.layers.iter().zip(layers).all(alike)
    {
        return Err(Error::Calibration("the two bases have different layers".into()));
    }
    if inputs.real.is_empty() {
        return Err(Error::Calibration("there are no images".into()));
    }
    let net = FloatNet::new(float);
    let stacks: Vec<Stack> =
        layers.iter().map(|layer| Stack::new(vec![layer.clone()], kernel)).collect();
    let each: Vec<Vec<Sums>> = inputs
        .real
        .par_iter()
        .zip(&inputs.quantized)
        .map(|(real, planes)| {
            let integers = each_layer(&stacks, planes, real.height, real.width);
            let mut sums = vec![Sums::default(); layers.len()];
            net.each_layer(real, |index, map| {
                sums[index].add(map, &integers[index], scales[index])
            });
            sums
        })
        .collect();
    // In the order of the images, so that the last digit does not depend on threads.
    let total =
        each.into_iter().reduce(|a, b| a.into_iter().zip(&b).map(|(a, b)| a.merge(b)).collect());
    let reports = total.unwrap_or_default().into_iter().zip(layers).zip(scales).map(
        |((sums, layer), scale)| {
            let signal = sums.signal.max(f64::MIN_POSITIVE);
            LayerReport {
                name: layer.name.clone(),
                sqnr_db: 10.0 * (signal / sums.noise.max(f64::MIN_POSITIVE)).log10(),
                relative_error: (sums.noise / signal).sqrt(),
                cosine: sums.product / (signal * sums.quantized.max(f64::MIN_POSITIVE)).sqrt(),
                max_error: sums.largest,
                scale: f64::from(scale.iter().copied().fold(0.0, f32::max)),
                clipped: sums.clipped as f64 / sums.positive.max(1) as f64,
            }
        },
    );
    Ok(reports.collect())
}
