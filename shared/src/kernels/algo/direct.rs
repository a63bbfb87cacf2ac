//! Direct convolution in i16: the first layer, and layers whose sums exceed what Winograd can hold.

use crate::kernels::isa::Isa;
use crate::kernels::layout::{BLOCK, CHANNEL_STEP, Map, TAPS, WeightLayout};
use crate::kernels::packed::{LayerRun, Source};

/// Pixels that the widest tile computes at once.
const PIXELS: usize = 4;

/// `[block][tap][channel][output of the block]`, or with `pairs` of channels innermost.
pub(in crate::kernels) fn weight_layout(
    inputs: usize,
    outputs: usize,
    pairs: bool,
) -> WeightLayout<impl Fn(usize, usize, usize) -> usize> {
    let channels = inputs.next_multiple_of(CHANNEL_STEP);
    let position = move |output: usize, channel: usize, tap: usize| {
        let (block, lane) = (output / BLOCK, output % BLOCK);
        let at = (block * TAPS + tap) * channels * BLOCK;
        if pairs {
            at + (channel / 2) * 2 * BLOCK + 2 * lane + channel % 2
        } else {
            at + channel * BLOCK + lane
        }
    };
    let len = outputs.div_ceil(BLOCK) * TAPS * channels * BLOCK;
    WeightLayout { inputs, outputs, len, position }
}

/// Widens the input to i16, channels last, with a border of one pixel that holds the zero point:
/// `[image][row][column][channel]`.
fn widen(source: Source, from: Map, zero_point: u8, wide: &mut Vec<i16>) {
    let (columns, rows) = (from.width + 2, from.height + 2);
    let channels = from.channels.next_multiple_of(CHANNEL_STEP);
    // Channels that pad have weights of zero.
    wide.clear();
    wide.resize(from.images * rows * columns * channels, i16::from(zero_point));
    for image in 0..from.images {
        for y in 0..from.height {
            let at = ((image * rows + y + 1) * columns + 1) * channels;
            let row = &mut wide[at..][..from.width * channels];
            match source {
                Source::Planes(planes) => widen_row_of_planes(planes, from, image, y, row),
                Source::Map(map) => widen_row_of_map(map, from, image, y, row),
            }
        }
    }
}

fn widen_row_of_planes(planes: &[u8], from: Map, image: usize, y: usize, row: &mut [i16]) {
    let channels = from.channels.next_multiple_of(CHANNEL_STEP);
    for channel in 0..from.channels {
        let at = ((image * from.channels + channel) * from.height + y) * from.width;
        let values = row[channel..].iter_mut().step_by(channels);
        values.zip(&planes[at..][..from.width]).for_each(|(wide, &value)| *wide = i16::from(value));
    }
}

fn widen_row_of_map(map: &[u8], from: Map, image: usize, y: usize, row: &mut [i16]) {
    let channels = from.channels.next_multiple_of(CHANNEL_STEP);
    for block in 0..from.blocks() {
        let lanes = BLOCK.min(from.channels - block * BLOCK);
        let at = from.start(block, image) + from.at(y + 1, 1);
        for (x, values) in map[at..][..from.width * BLOCK].chunks_exact(BLOCK).enumerate() {
            let wide = &mut row[x * channels + block * BLOCK..][..lanes];
            wide.iter_mut().zip(values).for_each(|(wide, &value)| *wide = i16::from(value));
        }
    }
}

/// Convolves without pooling. `wide` is memory for the input in i16.
pub(in crate::kernels) fn convolve<I: Isa>(
    isa: I,
    run: &LayerRun,
    wide: &mut Vec<i16>,
    input: Source,
    out: &mut [u8],
) {
    widen(input, run.from, run.packed.layer.zero_point, wide);
    let wide = &wide[..];
    run.for_each_plane(out, |(block, plane)| {
        run.to.fill_border(plane, run.packed.sign_flip);
        convolve_block(isa, run, wide, block, plane);
    });
}

fn convolve_block<I: Isa>(isa: I, run: &LayerRun, wide: &[i16], block: usize, plane: &mut [u8]) {
    let &LayerRun { from, to, .. } = run;
    let channels = from.channels.next_multiple_of(CHANNEL_STEP);
    let stride = (from.width + 2) * channels;
    for (image, out) in plane.chunks_exact_mut(to.image_len()).enumerate() {
        for y in 0..from.height {
            let rows: [&[i16]; 3] = std::array::from_fn(|dy| {
                &wide[(image * (from.height + 2) + y + dy) * stride..][..stride]
            });
            let out = &mut out[to.at(y + 1, 1)..][..to.width * BLOCK];
            let mut x = 0;
            while x < from.width {
                let at = rows.map(|row| &row[x * channels..]);
                let pixels = &mut out[x * BLOCK..];
                x += match from.width - x {
                    PIXELS.. => run_tile::<I, PIXELS>(isa, run, block, at, pixels),
                    2.. => run_tile::<I, 2>(isa, run, block, at, pixels),
                    _ => run_tile::<I, 1>(isa, run, block, at, pixels),
                };
            }
        }
    }
}

#[inline(always)]
fn run_tile<I: Isa, const P: usize>(
    isa: I,
    run: &LayerRun,
    block: usize,
    rows: [&[i16]; 3],
    out: &mut [u8],
) -> usize {
    let channels = run.from.channels.next_multiple_of(CHANNEL_STEP);
    let mut sums = [[0; BLOCK]; P];
    let len = TAPS * channels * BLOCK;
    isa.tile(rows, channels, &run.packed.weights[block * len..][..len], &mut sums);
    run.packed.requantize_tile(isa, block, &sums, out);
    P
}

/// 2x2 max pooling with stride 2 of one plane, whose results are combined with `sign_flip` by XOR;
/// an odd last row or column is dropped.
pub(in crate::kernels) fn max_pool(
    input: &[u8],
    from: Map,
    out: &mut [u8],
    to: Map,
    sign_flip: u8,
) {
    to.fill_border(out, sign_flip);
    let images = input.chunks_exact(from.image_len()).zip(out.chunks_exact_mut(to.image_len()));
    for (input, out) in images {
        for y in 0..to.height {
            let above = &input[from.at(2 * y + 1, 1)..][..2 * to.width * BLOCK];
            let below = &input[from.at(2 * y + 2, 1)..][..2 * to.width * BLOCK];
            let out = &mut out[to.at(y + 1, 1)..][..to.width * BLOCK];
            let pairs = above.chunks_exact(2 * BLOCK).zip(below.chunks_exact(2 * BLOCK));
            for (pixel, (above, below)) in out.chunks_exact_mut(BLOCK).zip(pairs) {
                for (lane, value) in pixel.iter_mut().enumerate() {
                    *value = above[lane]
                        .max(above[lane + BLOCK])
                        .max(below[lane].max(below[lane + BLOCK]))
                        ^ sign_flip;
                }
            }
        }
    }
}
