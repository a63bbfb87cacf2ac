//! Direct convolution by dot products of four i8, for CPUs that have an instruction for it.
//!
//! Inputs are taken as `q - 128`, which is in i8; the bias makes up for it by 128 times the sum of
//! the weights. Borders, where `q` is 0, are part of the same sum. The layer before writes its map
//! in that form already (`Packed::flip`).
//!
//! The three channels of a picture would fill a block badly, so the first layer reads *patches*:
//! the 27 inputs of each output, as one product of a matrix.

use crate::kernels::algo::direct::Source;
use crate::kernels::isa::Isa;
use crate::kernels::layout::{BLOCK, Map};
use crate::kernels::{ConvLayer, Packed, Places, each_chunk};

/// Pixels that the widest tile computes at once.
pub(in crate::kernels) const PIXELS: usize = 8;

/// Weights of one block of inputs and one of outputs: `[tap][channel / 4][output][channel % 4]`.
pub(in crate::kernels) type Weights = [Step; 9];

/// Sixteen inputs against one block of outputs: `[input / 4][output][input % 4]`.
pub(in crate::kernels) type Step = [i8; BLOCK * BLOCK];

/// Inputs of one output of the first layer, filled up: `[row][column][channel]`, then what meets
/// weights of 0.
pub(in crate::kernels) type Patch = [u8; 2 * BLOCK];

/// What an instruction set adds. A value of the type is the proof that the CPU has the
/// instructions.
pub(in crate::kernels) trait Dot: Copy + Send + Sync {
    /// Adds to `sums` the products of `P` neighboring pixels with the weights.
    ///
    /// `input`, whose bytes are i8, begins one row above and one pixel left of the first; the next
    /// row is `stride` bytes on, the next block of channels `plane` bytes, and there is one for
    /// each of `weights`.
    fn tile<const P: usize>(
        self,
        input: &[u8],
        plane: usize,
        stride: usize,
        weights: &[Weights],
        sums: &mut [[i32; BLOCK]; P],
    );

    /// Adds to `sums` the products of patches, whose bytes are i8, with the weights.
    fn patches<const P: usize>(
        self,
        input: &[Patch; P],
        weights: &[Step; 2],
        sums: &mut [[i32; BLOCK]; P],
    );
}

/// Whether the layer reads pictures.
pub(in crate::kernels) fn holds_patches(layer: &ConvLayer) -> bool {
    layer.inputs == COLORS
}

/// Where a weight stands in a [`Step`].
fn inner(input: usize, output: usize) -> usize {
    (input % BLOCK / 4 * BLOCK + output % BLOCK) * 4 + input % 4
}

/// [`Weights`] of all blocks of inputs of the first block of outputs, then the second...
pub(in crate::kernels) fn places(
    inputs: usize,
    outputs: usize,
) -> Places<impl Fn(usize, usize, usize) -> usize> {
    let blocks = inputs.div_ceil(BLOCK);
    let place = move |output: usize, channel: usize, tap: usize| {
        let block = output / BLOCK * blocks + channel / BLOCK;
        (block * 9 + tap) * BLOCK * BLOCK + inner(channel, output)
    };
    Places { len: outputs.div_ceil(BLOCK) * blocks * 9 * BLOCK * BLOCK, place }
}

/// Two [`Step`]s for each block of outputs.
pub(in crate::kernels) fn places_of_patches(
    inputs: usize,
    outputs: usize,
) -> Places<impl Fn(usize, usize, usize) -> usize> {
    let place = move |output: usize, channel: usize, tap: usize| {
        let input = tap * inputs + channel;
        (output / BLOCK * 2 + input / BLOCK) * BLOCK * BLOCK + inner(input, output)
    };
    Places { len: outputs.div_ceil(BLOCK) * 2 * BLOCK * BLOCK, place }
}

/// Convolves without pooling. `memory` is for the first layer.
#[allow(clippy::too_many_arguments, reason = "what a layer reads and writes, as in `direct`")]
pub(in crate::kernels) fn convolve<D: Dot, I: Isa>(
    dot: D,
    isa: I,
    packed: &Packed,
    memory: &mut Patches,
    input: &Source,
    from: Map,
    parallel: bool,
    out: &mut [u8],
    to: Map,
) {
    match *input {
        Source::Planes(planes) => {
            convolve_planes(dot, isa, packed, memory, planes, from, parallel, out, to)
        }
        Source::Map(map) => convolve_map(dot, isa, packed, map, from, parallel, out, to),
    }
}

#[allow(clippy::too_many_arguments, reason = "as `convolve`")]
fn convolve_map<D: Dot, I: Isa>(
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
        to.clear_around(plane, packed.flip);
        let weights = &weights[block * from.blocks()..][..from.blocks()];
        for (picture, out) in plane.chunks_exact_mut(to.picture()).enumerate() {
            for y in 0..from.height {
                let out = &mut out[to.at(y + 1, 1)..][..to.width * BLOCK];
                let mut x = 0;
                while x < from.width {
                    let input = &input[picture * from.picture() + from.at(y, x)..];
                    let pixels = &mut out[x * BLOCK..];
                    x += match from.width - x {
                        PIXELS.. => run_tile::<D, I, PIXELS>(
                            dot, isa, packed, input, from, weights, block, pixels,
                        ),
                        4.. => run_tile::<D, I, 4>(
                            dot, isa, packed, input, from, weights, block, pixels,
                        ),
                        2.. => run_tile::<D, I, 2>(
                            dot, isa, packed, input, from, weights, block, pixels,
                        ),
                        _ => run_tile::<D, I, 1>(
                            dot, isa, packed, input, from, weights, block, pixels,
                        ),
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

/// The memory of a first layer.
#[derive(Clone, Default)]
pub(in crate::kernels) struct Patches {
    lines: Vec<u8>,
    patches: Vec<Patch>,
}

#[allow(clippy::too_many_arguments, reason = "as `convolve`")]
fn convolve_planes<D: Dot, I: Isa>(
    dot: D,
    isa: I,
    packed: &Packed,
    memory: &mut Patches,
    planes: &[u8],
    from: Map,
    parallel: bool,
    out: &mut [u8],
    to: Map,
) {
    let Patches { lines, patches } = memory;
    interleave(planes, from, packed.layer.zero_point, lines);
    patches.resize(from.pictures * from.height * from.width, [0; _]);
    each_chunk(patches, from.width, parallel, |(row, patches)| {
        fill_patches(lines, from, row, patches)
    });
    let weights = packed.weights.as_chunks::<{ BLOCK * BLOCK }>().0.as_chunks::<2>().0;
    each_chunk(out, to.plane(), parallel, |(block, plane)| {
        to.clear_around(plane, packed.flip);
        for (row, patches) in patches.chunks_exact(from.width).enumerate() {
            let at = row / from.height * to.picture() + to.at(row % from.height + 1, 1);
            let out = &mut plane[at..][..to.width * BLOCK];
            let (eights, rest) = patches.as_chunks::<PIXELS>();
            for (patches, out) in eights.iter().zip(out.chunks_mut(PIXELS * BLOCK)) {
                run_patches(dot, isa, packed, patches, &weights[block], block, out);
            }
            let out = &mut out[eights.len() * PIXELS * BLOCK..];
            for (patch, out) in rest.as_chunks::<1>().0.iter().zip(out.chunks_mut(BLOCK)) {
                run_patches(dot, isa, packed, patch, &weights[block], block, out);
            }
        }
    });
}

#[inline(always)]
fn run_patches<D: Dot, I: Isa, const P: usize>(
    dot: D,
    isa: I,
    packed: &Packed,
    patches: &[Patch; P],
    weights: &[Step; 2],
    block: usize,
    out: &mut [u8],
) {
    let mut sums = [[0; BLOCK]; P];
    dot.patches(patches, weights, &mut sums);
    packed.finish(isa, block, &sums, out);
}

/// Channels of a picture.
const COLORS: usize = 3;

/// Inputs of one row of taps.
const ROW: usize = 3 * COLORS;

/// The planes as `q - 128`, channels last, with a border of one pixel that holds the zero point:
/// `[picture][row][column][channel]`.
fn interleave(planes: &[u8], from: Map, zero_point: u8, lines: &mut Vec<u8>) {
    let stride = (from.width + 2) * COLORS;
    lines.clear();
    lines.resize(from.pictures * (from.height + 2) * stride, zero_point ^ 128);
    for (picture, planes) in planes.chunks_exact(COLORS * from.height * from.width).enumerate() {
        let rows = lines[(picture * (from.height + 2) + 1) * stride..].chunks_exact_mut(stride);
        for (y, row) in rows.take(from.height).enumerate() {
            for (channel, plane) in planes.chunks_exact(from.height * from.width).enumerate() {
                let values = row[COLORS + channel..].iter_mut().step_by(COLORS);
                values
                    .zip(&plane[y * from.width..][..from.width])
                    .for_each(|(value, &q)| *value = q ^ 128);
            }
        }
    }
}

/// The patches of one row of a picture.
fn fill_patches(lines: &[u8], from: Map, row: usize, patches: &mut [Patch]) {
    let stride = (from.width + 2) * COLORS;
    let above = row / from.height * (from.height + 2) + row % from.height;
    let lines: [&[u8]; 3] = std::array::from_fn(|dy| &lines[(above + dy) * stride..][..stride]);
    for (x, patch) in patches.iter_mut().enumerate() {
        *patch = [0; _];
        for (line, patch) in lines.iter().zip(patch.as_chunks_mut::<ROW>().0) {
            if let Some(&taps) = line[x * COLORS..].first_chunk() {
                *patch = taps;
            }
        }
    }
}

/// For tests on any CPU.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(in crate::kernels) struct PortableDot;

#[cfg(test)]
impl PortableDot {
    fn step(input: &[u8], weights: &Step, sums: &mut [i32; BLOCK]) {
        for (index, &weight) in weights.iter().enumerate() {
            let value = input[index / (4 * BLOCK) * 4 + index % 4].cast_signed();
            sums[index / 4 % BLOCK] += i32::from(value) * i32::from(weight);
        }
    }
}

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
                    Self::step(&input[at..], weights, sums);
                }
            }
        }
    }

    fn patches<const P: usize>(
        self,
        input: &[Patch; P],
        weights: &[Step; 2],
        sums: &mut [[i32; BLOCK]; P],
    ) {
        for (patch, sums) in input.iter().zip(sums) {
            for (input, weights) in patch.chunks_exact(BLOCK).zip(weights) {
                Self::step(input, weights, sums);
            }
        }
    }
}
