//! The quantized 3x3 convolutions of the base: one algorithm, a thin file for each instruction set.
//!
//! [`Stack`] runs a chain of [`ConvLayer`]s, each with ReLU and, where asked, 2x2 max pooling. The
//! arithmetic is fixed in `ARCHITECTURE.md`; [`algo::reference`] is that text in code and every
//! kernel is tested against it.

pub mod algo;
mod arch;
mod dispatch;
mod isa;
mod layout;
mod stack;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use algo::{direct, dot, winograd};
pub use dispatch::{KERNEL_VARIABLE, Kernel};
use layout::BLOCK;
use rayon::prelude::*;
pub use stack::{Arena, Stack};

/// One quantized convolution: 3x3, stride 1, padding 1 with the input's zero point, then
/// requantization and ReLU.
#[derive(Clone, Debug)]
pub struct ConvLayer {
    /// Name of the layer, as Keras has it: `block1_conv1`.
    pub name: String,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Weights, i8, `[outputs, inputs, 3, 3]`.
    pub weights: Arc<[i8]>,
    /// Bias in units of the accumulator, one an output channel.
    pub bias: Vec<i32>,
    /// Zero point of the input.
    pub zero_point: u8,
    /// `input scale * weight scale / output scale`, one an output channel.
    pub multipliers: Vec<f32>,
    /// Whether 2x2 max pooling with stride 2 follows.
    pub pool: bool,
}

/// How a layer's sums are computed; all ways give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Each product by itself.
    Direct,
    /// As direct, by dot products of four i8.
    Dot,
    /// Winograd's F(4x4, 3x3) in integers.
    Winograd,
}

impl Algorithm {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Dot => "dot",
            Self::Winograd => "winograd",
        }
    }
}

/// An order of weights in memory: how many values there are, zeros that fill up among them, and
/// where the weight of an output, an input and a tap stands.
struct Places<F> {
    len: usize,
    place: F,
}

impl<F: Fn(usize, usize, usize) -> usize> Places<F> {
    fn pack(&self, layer: &ConvLayer) -> Vec<i8> {
        let mut packed = vec![0; self.len];
        self.each(layer, |at, place| packed[place] = layer.weights[at]);
        packed
    }

    fn unpack(&self, layer: &ConvLayer, packed: &[i8]) -> Arc<[i8]> {
        let mut weights = vec![0; layer.outputs * layer.inputs * 9];
        self.each(layer, |at, place| weights[at] = packed[place]);
        weights.into()
    }

    /// Calls `visit` with where each weight stands in a [`ConvLayer`], and where it stands here.
    fn each(&self, layer: &ConvLayer, mut visit: impl FnMut(usize, usize)) {
        for output in 0..layer.outputs {
            for channel in 0..layer.inputs {
                for tap in 0..9 {
                    visit(
                        (output * layer.inputs + channel) * 9 + tap,
                        (self.place)(output, channel, tap),
                    );
                }
            }
        }
    }
}

/// Runs an expression with the [`Places`] of a layer under their own type.
macro_rules! with_places {
    ($layer:expr, $algorithm:expr, $pairs:expr, $first:expr, $places:ident => $body:expr) => {{
        let (inputs, outputs) = ($layer.inputs, $layer.outputs);
        match $algorithm {
            Algorithm::Direct => {
                let $places = direct::places(inputs, outputs, $pairs);
                $body
            }
            Algorithm::Dot if $first => {
                let $places = dot::places_of_patches(inputs, outputs);
                $body
            }
            Algorithm::Dot => {
                let $places = dot::places(inputs, outputs);
                $body
            }
            Algorithm::Winograd => {
                let $places = winograd::places(inputs, outputs, $pairs);
                $body
            }
        }
    }};
}

/// A layer with its weights in the order in which the kernel reads them, and in no other: they are
/// most of the memory.
struct Packed {
    /// Without weights.
    layer: ConvLayer,
    algorithm: Algorithm,
    /// As [`isa::Isa::PAIRS`].
    pairs: bool,
    /// Whether it is the first of its chain.
    first: bool,
    weights: Vec<i8>,
    /// Bias less the share of the zero point (and of what [`dot`] takes off), in blocks.
    bias: Vec<[i32; BLOCK]>,
    multipliers: Vec<[f32; BLOCK]>,
    /// What the bytes of the output are combined with: 128 if the next layer is [`Algorithm::Dot`],
    /// else 0.
    flip: u8,
}

impl Packed {
    fn new(mut layer: ConvLayer, algorithm: Algorithm, pairs: bool, first: bool, flip: u8) -> Self {
        let blocks = layer.outputs.div_ceil(BLOCK);
        let weights = with_places!(layer, algorithm, pairs, first, places => places.pack(&layer));
        // Outputs that fill up the last block are 0.
        let mut bias = vec![[0; BLOCK]; blocks];
        let mut multipliers = vec![[1.0; BLOCK]; blocks];
        for (output, kernel) in layer.weights.chunks_exact(9 * layer.inputs).enumerate() {
            let sum: i32 = kernel.iter().map(|&w| i32::from(w)).sum();
            // Modulo 2^32, like the sums: only the total need fit.
            let taken =
                i32::from(layer.zero_point) - if algorithm == Algorithm::Dot { 128 } else { 0 };
            let share = sum.wrapping_mul(taken);
            bias[output / BLOCK][output % BLOCK] = layer.bias[output].wrapping_sub(share);
            multipliers[output / BLOCK][output % BLOCK] = layer.multipliers[output];
        }
        layer.weights = Arc::default();
        Self { layer, algorithm, pairs, first, weights, bias, multipliers, flip }
    }

    /// The layer with its weights.
    fn unpacked(&self) -> ConvLayer {
        let Self { layer, algorithm, pairs, first, weights, .. } = self;
        let weights =
            with_places!(layer, algorithm, *pairs, *first, places => places.unpack(layer, weights));
        ConvLayer { weights, ..layer.clone() }
    }

    /// Sums of neighboring pixels of one block to u8; pooling is still to come.
    #[inline(always)]
    fn finish<I: isa::Isa>(&self, isa: I, index: usize, sums: &[[i32; BLOCK]], out: &mut [u8]) {
        let flip = if self.layer.pool { 0 } else { self.flip };
        for (sums, out) in sums.iter().zip(out.as_chunks_mut().0) {
            let mut block = isa.requantize(sums, &self.bias[index], &self.multipliers[index]);
            block.iter_mut().for_each(|q| *q ^= flip);
            *out = block;
        }
    }
}

/// Calls `work` with each `len` values and their number; with `parallel`, shared out over the rayon
/// pool in which it is called.
fn each_chunk<T: Send>(
    data: &mut [T],
    len: usize,
    parallel: bool,
    work: impl Fn((usize, &mut [T])) + Send + Sync,
) {
    if parallel {
        data.par_chunks_exact_mut(len).enumerate().for_each(work);
    } else {
        data.chunks_exact_mut(len).enumerate().for_each(work);
    }
}

/// A layer whose numbers contradict each other or could overflow.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("layer {layer}: {reason}")]
pub struct LayerError {
    layer: String,
    reason: String,
}

impl ConvLayer {
    /// Checks lengths, multipliers, and that no true sum can leave the range of i32.
    ///
    /// # Errors
    /// [`LayerError`] naming the layer and the channel.
    pub fn check(&self) -> Result<(), LayerError> {
        let wrong = |reason: String| Err(LayerError { layer: self.name.clone(), reason });
        if self.inputs == 0 || self.outputs == 0 {
            return wrong("it has no channels".into());
        }
        if self.weights.len() != self.inputs * self.outputs * 9 {
            return wrong(format!(
                "{} weights do not fit {} x {} x 3 x 3",
                self.weights.len(),
                self.outputs,
                self.inputs
            ));
        }
        if self.bias.len() != self.outputs || self.multipliers.len() != self.outputs {
            return wrong(format!(
                "bias or scales are not one for each of {} outputs",
                self.outputs
            ));
        }
        let reach = i64::from(self.zero_point.max(255 - self.zero_point));
        for (channel, weights) in self.weights.chunks_exact(self.inputs * 9).enumerate() {
            let bound = sum(weights, i32::abs) * reach + i64::from(self.bias[channel]).abs();
            if bound > i64::from(i32::MAX) {
                return wrong(format!(
                    "output channel {channel} can reach {bound}, beyond 32 bits"
                ));
            }
            if !self.multipliers[channel].is_normal() || self.multipliers[channel] < 0.0 {
                return wrong(format!(
                    "output channel {channel} has the scale {}",
                    self.multipliers[channel]
                ));
            }
        }
        Ok(())
    }

    /// Height and width of the output for an input of that height and width.
    pub fn output_size(&self, height: usize, width: usize) -> (usize, usize) {
        if self.pool { (height / 2, width / 2) } else { (height, width) }
    }

    /// Multiplications for an input of that height and width.
    pub fn macs(&self, height: usize, width: usize) -> u64 {
        (self.inputs * self.outputs * 9) as u64 * (height * width) as u64
    }
}

/// The sum of what becomes of weights, of at most 2^8 each. In parts that i32 holds: all weights
/// pass here at each start, and twice as many fit into a vector.
fn sum(weights: &[i8], of: impl Fn(i32) -> i32) -> i64 {
    weights
        .chunks(1 << 16)
        .map(|part| i64::from(part.iter().map(|&w| of(i32::from(w))).sum::<i32>()))
        .sum()
}

/// Step 3 and 4 of the convolution (`ARCHITECTURE.md`) for an output zero point of 0.
///
/// Clamping comes before rounding, which is the same since both bounds are integers; the rounding
/// to nearest even is that of an addition of 1.5 * 2^23, which every CPU does alike and which needs
/// no rounding instruction.
#[inline(always)]
pub(crate) fn requantize(sum: i32, multiplier: f32) -> u8 {
    const ROUND: f32 = 12_582_912.0;
    let real = (sum as f32 * multiplier).clamp(0.0, 255.0);
    ((real + ROUND).to_bits() & 0xff) as u8
}

/// [`requantize`] of a block, bias added first.
#[inline(always)]
pub(crate) fn requantize_block(
    sums: &[i32; BLOCK],
    bias: &[i32; BLOCK],
    multipliers: &[f32; BLOCK],
) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    for (((out, &sum), &bias), &multiplier) in out.iter_mut().zip(sums).zip(bias).zip(multipliers) {
        *out = requantize(sum.wrapping_add(bias), multiplier);
    }
    out
}
