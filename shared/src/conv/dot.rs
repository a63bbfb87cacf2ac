//! Direct convolution by dot products of four i8, for CPUs that have an instruction for it.
//!
//! Inputs are taken as `q - 128`, which is in i8; the bias makes up for it by 128 times the sum of the weights. Borders, where
//! `q` is 0, are part of the same sum.

use super::isa::Isa;
use super::map::{BLOCK, Map};
use super::{ConvLayer, Packed, each_chunk};

/// Pixels that the widest tile computes at once.
pub(super) const PIXELS: usize = 4;

/// Weights of one block of inputs and one of outputs: `[tap][channel / 4][output][channel % 4]`.
pub(super) type Weights = [[i8; BLOCK * BLOCK]; 9];

/// What an instruction set adds. A value of the type is the proof that the CPU has the instructions.
pub(super) trait Dot: Copy + Send + Sync {
    /// Adds to `sums` the products of `P` neighbouring pixels, less 128, with the weights.
    ///
    /// `input` begins one row above and one pixel left of the first; the next row is `stride` bytes on, the next block of
    /// channels `plane` bytes, and there is one for each of `weights`.
    fn tile<const P: usize>(
        self,
        input: &[u8],
        plane: usize,
        stride: usize,
        weights: &[Weights],
        sums: &mut [[i32; BLOCK]; P],
    );
}

/// [`Weights`] of all blocks of inputs of the first block of outputs, then the second...
pub(super) fn pack(layer: &ConvLayer) -> Vec<i8> {
    let blocks = layer.inputs.div_ceil(BLOCK);
    let mut packed = vec![0; layer.outputs.div_ceil(BLOCK) * blocks * 9 * BLOCK * BLOCK];
    for output in 0..layer.outputs {
        for channel in 0..layer.inputs {
            for tap in 0..9 {
                let block = output / BLOCK * blocks + channel / BLOCK;
                let inner = (channel % BLOCK / 4 * BLOCK + output % BLOCK) * 4 + channel % 4;
                packed[(block * 9 + tap) * BLOCK * BLOCK + inner] =
                    layer.weights[(output * layer.inputs + channel) * 9 + tap];
            }
        }
    }
    packed
}

/// Convolves without pooling.
#[allow(clippy::too_many_arguments, reason = "what a layer reads and writes, as in `direct`")]
pub(super) fn convolve<D: Dot, I: Isa>(
    dot: D,
    isa: I,
    packed: &Packed,
    input: &[u8],
    from: Map,
    parallel: bool,
    out: &mut [u8],
    to: Map,
) {
    let weights = packed.weights.as_chunks::<{ BLOCK * BLOCK }>().0.as_chunks::<9>().0;
    each_chunk(out, to.plane(), parallel, |(block, plane)| {
        to.clear_around(plane);
        let weights = &weights[block * from.blocks()..][..from.blocks()];
        for (picture, out) in plane.chunks_exact_mut(to.picture()).enumerate() {
            for y in 0..from.height {
                let out = &mut out[to.at(y + 1, 1)..][..to.width * BLOCK];
                let mut x = 0;
                while x < from.width {
                    let input = &input[picture * from.picture() + from.at(y, x)..];
                    let pixels = &mut out[x * BLOCK..];
                    x += match from.width - x {
                        PIXELS.. => run_tile::<D, I, PIXELS>(dot, isa, packed, input, from, weights, block, pixels),
                        2.. => run_tile::<D, I, 2>(dot, isa, packed, input, from, weights, block, pixels),
                        _ => run_tile::<D, I, 1>(dot, isa, packed, input, from, weights, block, pixels),
                    };
                }
            }
        }
    });
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "what a tile reads and writes")]
fn run_tile<D: Dot, I: Isa, const P: usize>(
    dot: D,
    isa: I,
    packed: &Packed,
    input: &[u8],
    from: Map,
    weights: &[Weights],
    block: usize,
    out: &mut [u8],
) -> usize {
    let mut sums = [[0; BLOCK]; P];
    dot.tile(input, from.plane(), from.stride(), weights, &mut sums);
    packed.finish(isa, block, &sums, out);
    P
}

/// For tests on any CPU.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(super) struct PortableDot;

#[cfg(test)]
impl Dot for PortableDot {
    fn tile<const P: usize>(
        self,
        input: &[u8],
        plane: usize,
        stride: usize,
        weights: &[Weights],
        sums: &mut [[i32; BLOCK]; P],
    ) {
        for (block, weights) in weights.iter().enumerate() {
            for (tap, weights) in weights.iter().enumerate() {
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    let at = block * plane + tap / 3 * stride + (pixel + tap % 3) * BLOCK;
                    for (index, &weight) in weights.iter().enumerate() {
                        let channel = index / (4 * BLOCK) * 4 + index % 4;
                        let value = i32::from(input[at + channel]) - 128;
                        sums[index / 4 % BLOCK] += value * i32::from(weight);
                    }
                }
            }
        }
    }
}
