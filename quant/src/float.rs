//! The base in f32, the reference for the integers.
//!
//! Own code, because the sums of a library depend on the CPU. Each output starts at its bias and
//! adds `x * w` tap by tap (row, column) and channel by channel; each product and each sum is
//! rounded to f32. Every CPU gives the same bits.

use crate::weights::{FloatBase, FloatLayer};
use vgg_edge::multiversion;

/// Number of output channels that are computed at a time.
const BLOCK: usize = 16;

/// A feature map of one image: `[height, width, channels]`, channels last.
#[derive(Clone, Debug, PartialEq)]
pub struct Map<T> {
    /// Rows.
    pub height: usize,
    /// Pixels per row.
    pub width: usize,
    /// Values per pixel.
    pub channels: usize,
    /// `height * width * channels` values.
    pub data: Vec<T>,
}

impl<T: Copy> Map<T> {
    /// Returns the map with a border of one pixel of `value`.
    pub(crate) fn bordered(&self, value: T) -> Self {
        let (height, width, row) = (self.height + 2, self.width + 2, self.width * self.channels);
        let mut data = vec![value; height * width * self.channels];
        for (from, to) in self
            .data
            .chunks_exact(row.max(1))
            .zip(data.chunks_exact_mut((width * self.channels).max(1)).skip(1))
        {
            to[self.channels..][..row].copy_from_slice(from);
        }
        Self { height, width, channels: self.channels, data }
    }
}

impl<T: Copy + PartialOrd> Map<T> {
    /// Applies 2x2 max pooling with stride 2; an odd last row or column is dropped, as in Keras.
    pub fn max_pool(&self) -> Self {
        let (height, width, channels) = (self.height / 2, self.width / 2, self.channels);
        let mut data = Vec::with_capacity(height * width * channels);
        let larger = |a: T, b: T| if b > a { b } else { a };
        for y in 0..height {
            let row = |dy: usize| {
                &self.data[(2 * y + dy) * self.width * channels..][..self.width * channels]
            };
            let (above, below) = (row(0), row(1));
            for x in 0..width {
                for c in 0..channels {
                    let at = 2 * x * channels + c;
                    data.push(larger(
                        larger(above[at], above[at + channels]),
                        larger(below[at], below[at + channels]),
                    ));
                }
            }
        }
        Self { height, width, channels, data }
    }
}

/// A convolution with its weights in the order of access.
pub struct FloatConv {
    inputs: usize,
    outputs: usize,
    /// `[block][tap][channel][output of the block]`.
    weights: Vec<f32>,
    /// Padded to whole blocks.
    bias: Vec<f32>,
    pool: bool,
}

impl FloatConv {
    /// Packs a layer.
    pub fn new(layer: &FloatLayer) -> Self {
        let blocks = layer.outputs.div_ceil(BLOCK);
        let mut weights = vec![0.0; blocks * 9 * layer.inputs * BLOCK];
        let mut bias = vec![0.0; blocks * BLOCK];
        bias[..layer.outputs].copy_from_slice(&layer.bias);
        for (output, kernel) in layer.kernel.chunks_exact(9 * layer.inputs).enumerate() {
            for (at, &weight) in kernel.iter().enumerate() {
                let (channel, tap) = (at / 9, at % 9);
                weights[((output / BLOCK * 9 + tap) * layer.inputs + channel) * BLOCK
                    + output % BLOCK] = weight;
            }
        }
        Self { inputs: layer.inputs, outputs: layer.outputs, weights, bias, pool: layer.pool }
    }

    /// Returns the sums with bias, before ReLU and pooling.
    ///
    /// # Panics
    /// If the map has another number of channels.
    pub fn sums(&self, input: &Map<f32>) -> Map<f32> {
        assert_eq!(input.channels, self.inputs);
        let padded = input.bordered(0.0);
        let mut out = Map {
            height: input.height,
            width: input.width,
            channels: self.outputs,
            data: vec![0.0; input.height * input.width * self.outputs],
        };
        convolve(self, &padded, &mut out);
        out
    }

    /// Applies ReLU and, if the layer has it, pooling.
    pub fn activate(&self, mut sums: Map<f32>) -> Map<f32> {
        sums.data.iter_mut().for_each(|v| *v = v.max(0.0));
        if self.pool { sums.max_pool() } else { sums }
    }

    /// Applies [`FloatConv::sums`] and [`FloatConv::activate`].
    pub fn run(&self, input: &Map<f32>) -> Map<f32> {
        self.activate(self.sums(input))
    }
}

multiversion! {
    /// Computes the sums of a convolution, block by block and tile by tile.
    fn convolve(conv: &FloatConv, padded: &Map<f32>, out: &mut Map<f32>) {
        let (channels, stride) = (conv.inputs, padded.width * padded.channels);
        let (width, outputs) = (out.width, conv.outputs);
        let block_len = 9 * channels * BLOCK;
        for (block, weights) in conv.weights.chunks_exact(block_len).enumerate() {
            let bias: [f32; BLOCK] = std::array::from_fn(|lane| conv.bias[block * BLOCK + lane]);
            let lanes = BLOCK.min(outputs - block * BLOCK);
            for y in 0..out.height {
                let row = |dy: usize| &padded.data[(y + dy) * stride..][..stride];
                let rows: [&[f32]; 3] = std::array::from_fn(row);
                let to = &mut out.data[y * width * outputs..][..width * outputs];
                let mut store = |x: usize, sums: &[[f32; BLOCK]]| {
                    for (p, sums) in sums.iter().enumerate() {
                        let at = (x + p) * outputs + block * BLOCK;
                        to[at..][..lanes].copy_from_slice(&sums[..lanes]);
                    }
                };
                let mut x = 0;
                while x + 4 <= width {
                    store(x, &tile::<4>(rows, x, channels, weights, bias));
                    x += 4;
                }
                while x < width {
                    store(x, &tile::<1>(rows, x, channels, weights, bias));
                    x += 1;
                }
            }
        }
    }
}

#[inline(always)]
fn tile<const P: usize>(
    rows: [&[f32]; 3],
    x: usize,
    channels: usize,
    weights: &[f32],
    bias: [f32; BLOCK],
) -> [[f32; BLOCK]; P] {
    let mut sums = [bias; P];
    for (tap, weights) in weights.chunks_exact(channels * BLOCK).enumerate() {
        let at = |p: usize| &rows[tap / 3][(x + p + tap % 3) * channels..][..channels];
        let pixels: [&[f32]; P] = std::array::from_fn(at);
        for (c, weights) in weights.chunks_exact(BLOCK).enumerate() {
            for p in 0..P {
                let value = pixels[p][c];
                for lane in 0..BLOCK {
                    sums[p][lane] += value * weights[lane];
                }
            }
        }
    }
    sums
}

/// All convolutions of a base, packed.
pub struct FloatNet {
    convs: Vec<FloatConv>,
}

impl FloatNet {
    /// Packs a base.
    pub fn new(base: &FloatBase) -> Self {
        Self { convs: base.layers.iter().map(FloatConv::new).collect() }
    }

    /// Returns the feature map of a normalized input.
    pub fn features(&self, input: &Map<f32>) -> Map<f32> {
        self.each_layer(input, |_, _| {})
    }

    /// As [`FloatNet::features`]. `on_layer` is called with the index and the output of each layer,
    /// after ReLU and pooling.
    pub fn each_layer(
        &self,
        input: &Map<f32>,
        mut on_layer: impl FnMut(usize, &Map<f32>),
    ) -> Map<f32> {
        let mut map = input.clone();
        for (index, conv) in self.convs.iter().enumerate() {
            map = conv.run(&map);
            on_layer(index, &map);
        }
        map
    }
}
