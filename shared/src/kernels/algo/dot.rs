//! Direct convolution by dot products of four i8, for CPUs that have an instruction for it.
//!
//! Inputs are read as `q - 128`, which is in i8; the bias makes up for it by 128 times the sum of
//! the weights. Borders, where `q` is 0, are part of the same sum. The layer before writes its map
//! in that form already (`PackedLayer::sign_flip`).
//!
//! The three channels of an image would fill a block badly, so the first layer reads *patches*: the
//! 27 inputs of each output, as one matrix product.

use crate::kernels::isa::{Dot, Isa};
use crate::kernels::layer::ConvLayer;
use crate::kernels::layout::{
    BLOCK, DOT_PIXELS, DotStep, DotWeights, Map, Patch, SIGN_BIT, TAPS, WeightLayout,
};
use crate::kernels::packed::{LayerRun, Source};

/// Returns whether the sums of a layer that is not the first are exact: padding is 0, so the zero
/// point must be.
pub(in crate::kernels) fn is_exact_for(layer: &ConvLayer) -> bool {
    layer.zero_point == 0
}

/// Returns whether the sums of a first layer are exact: patches hold three channels.
pub(in crate::kernels) fn is_exact_for_first(layer: &ConvLayer) -> bool {
    layer.inputs == COLORS
}

/// Index of a weight within a [`DotStep`].
fn position_in_step(input: usize, output: usize) -> usize {
    (input % BLOCK / 4 * BLOCK + output % BLOCK) * 4 + input % 4
}

/// [`DotWeights`] of all blocks of inputs for the first block of outputs, then for the second...
pub(in crate::kernels) fn weight_layout(
    inputs: usize,
    outputs: usize,
) -> WeightLayout<impl Fn(usize, usize, usize) -> usize> {
    let blocks = inputs.div_ceil(BLOCK);
    let position = move |output: usize, channel: usize, tap: usize| {
        let block = output / BLOCK * blocks + channel / BLOCK;
        (block * TAPS + tap) * BLOCK * BLOCK + position_in_step(channel, output)
    };
    let len = outputs.div_ceil(BLOCK) * blocks * TAPS * BLOCK * BLOCK;
    WeightLayout { inputs, outputs, len, position }
}

/// For a first layer: two [`DotStep`]s for each block of outputs.
pub(in crate::kernels) fn first_weight_layout(
    inputs: usize,
    outputs: usize,
) -> WeightLayout<impl Fn(usize, usize, usize) -> usize> {
    let position = move |output: usize, channel: usize, tap: usize| {
        let input = tap * inputs + channel;
        (output / BLOCK * 2 + input / BLOCK) * BLOCK * BLOCK + position_in_step(input, output)
    };
    let len = outputs.div_ceil(BLOCK) * 2 * BLOCK * BLOCK;
    WeightLayout { inputs, outputs, len, position }
}

/// Convolves without pooling. `memory` is for the first layer.
pub(in crate::kernels) fn convolve<I: Isa, D: Dot>(
    (isa, dot): (I, D),
    run: &LayerRun,
    memory: &mut Patches,
    input: Source,
    out: &mut [u8],
) {
    match input {
        Source::Planes(planes) => convolve_planes((isa, dot), run, memory, planes, out),
        Source::Map(map) => convolve_map((isa, dot), run, map, out),
    }
}

fn convolve_map<I: Isa, D: Dot>((isa, dot): (I, D), run: &LayerRun, input: &[u8], out: &mut [u8]) {
    let &LayerRun { packed, from, to, .. } = run;
    let weights = packed.weights.as_chunks::<{ BLOCK * BLOCK }>().0.as_chunks::<TAPS>().0;
    run.for_each_plane(out, |(block, plane)| {
        to.fill_border(plane, packed.sign_flip);
        let weights = &weights[block * from.blocks()..][..from.blocks()];
        let tile = Tile { run, weights, block };
        for (image, out) in plane.chunks_exact_mut(to.image_len()).enumerate() {
            for y in 0..from.height {
                let out = &mut out[to.at(y + 1, 1)..][..to.width * BLOCK];
                let mut x = 0;
                while x < from.width {
                    let input = &input[image * from.image_len() + from.at(y, x)..];
                    let pixels = &mut out[x * BLOCK..];
                    x += match from.width - x {
                        DOT_PIXELS.. => tile.run::<I, D, DOT_PIXELS>(isa, dot, input, pixels),
                        4.. => tile.run::<I, D, 4>(isa, dot, input, pixels),
                        2.. => tile.run::<I, D, 2>(isa, dot, input, pixels),
                        _ => tile.run::<I, D, 1>(isa, dot, input, pixels),
                    };
                }
            }
        }
    });
}

/// The parameters that all tiles of a block of outputs share.
#[derive(Clone, Copy)]
struct Tile<'a> {
    run: &'a LayerRun<'a>,
    weights: &'a [DotWeights],
    /// Block of outputs.
    block: usize,
}

impl Tile<'_> {
    /// Computes `P` pixels, and returns `P`.
    #[inline(always)]
    fn run<I: Isa, D: Dot, const P: usize>(
        self,
        isa: I,
        dot: D,
        input: &[u8],
        out: &mut [u8],
    ) -> usize {
        let &LayerRun { packed, from, .. } = self.run;
        let mut sums = [[0; BLOCK]; P];
        dot.tile(input, from.plane_len(), from.stride(), self.weights, &mut sums);
        packed.requantize_tile(isa, self.block, &sums, out);
        P
    }
}

/// The memory of a first layer.
#[derive(Clone, Default)]
pub(in crate::kernels) struct Patches {
    lines: Vec<u8>,
    patches: Vec<Patch>,
}

fn convolve_planes<I: Isa, D: Dot>(
    (isa, dot): (I, D),
    run: &LayerRun,
    memory: &mut Patches,
    planes: &[u8],
    out: &mut [u8],
) {
    let &LayerRun { packed, from, to, .. } = run;
    let Patches { lines, patches } = memory;
    interleave(planes, from, packed.layer.zero_point, lines);
    patches.resize(from.images * from.height * from.width, [0; _]);
    run.for_each_chunk(patches, from.width, |(row, patches)| {
        fill_patches(lines, from, row, patches)
    });
    let weights = packed.weights.as_chunks::<{ BLOCK * BLOCK }>().0.as_chunks::<2>().0;
    run.for_each_plane(out, |(block, plane)| {
        to.fill_border(plane, packed.sign_flip);
        for (row, patches) in patches.chunks_exact(from.width).enumerate() {
            let at = row / from.height * to.image_len() + to.at(row % from.height + 1, 1);
            let out = &mut plane[at..][..to.width * BLOCK];
            let (eights, rest) = patches.as_chunks::<DOT_PIXELS>();
            for (patches, out) in eights.iter().zip(out.chunks_mut(DOT_PIXELS * BLOCK)) {
                let sums = run_patches(dot, patches, &weights[block]);
                packed.requantize_tile(isa, block, &sums, out);
            }
            let out = &mut out[eights.len() * DOT_PIXELS * BLOCK..];
            for (patch, out) in rest.as_chunks::<1>().0.iter().zip(out.chunks_mut(BLOCK)) {
                let sums = run_patches(dot, patch, &weights[block]);
                packed.requantize_tile(isa, block, &sums, out);
            }
        }
    });
}

#[inline(always)]
fn run_patches<D: Dot, const P: usize>(
    dot: D,
    patches: &[Patch; P],
    weights: &[DotStep; 2],
) -> [[i32; BLOCK]; P] {
    let mut sums = [[0; BLOCK]; P];
    dot.patches(patches, weights, &mut sums);
    sums
}

/// Channels of an image.
const COLORS: usize = 3;

/// Inputs of one row of taps.
const ROW: usize = 3 * COLORS;

/// Interleaves the planes as `q - 128`, channels last, with a border of one pixel that holds the
/// zero point: `[image][row][column][channel]`.
fn interleave(planes: &[u8], from: Map, zero_point: u8, lines: &mut Vec<u8>) {
    let stride = (from.width + 2) * COLORS;
    lines.clear();
    lines.resize(from.images * (from.height + 2) * stride, zero_point ^ SIGN_BIT);
    for (image, planes) in planes.chunks_exact(COLORS * from.height * from.width).enumerate() {
        let rows = lines[(image * (from.height + 2) + 1) * stride..].chunks_exact_mut(stride);
        for (y, row) in rows.take(from.height).enumerate() {
            for (channel, plane) in planes.chunks_exact(from.height * from.width).enumerate() {
                let values = row[COLORS + channel..].iter_mut().step_by(COLORS);
                values
                    .zip(&plane[y * from.width..][..from.width])
                    .for_each(|(value, &q)| *value = q ^ SIGN_BIT);
            }
        }
    }
}

/// Fills the patches of one row of an image.
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
