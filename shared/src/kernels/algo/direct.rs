//! Direct convolution: the first layer, and layers whose sums Winograd cannot hold.

use crate::kernels::isa::Isa;
use crate::kernels::layout::{BLOCK, Map};
use crate::kernels::{Packed, Places, each_chunk};

/// Input channels are filled up with zeros to a multiple of this.
pub(in crate::kernels) const CHANNEL_STEP: usize = 4;

/// Pixels that the widest tile computes at once.
const PIXELS: usize = 4;

/// `[block][tap][channel][output of the block]`, or with pairs of channels innermost.
pub(in crate::kernels) fn places(
    inputs: usize,
    outputs: usize,
    pairs: bool,
) -> Places<impl Fn(usize, usize, usize) -> usize> {
    let channels = inputs.next_multiple_of(CHANNEL_STEP);
    let place = move |output: usize, channel: usize, tap: usize| {
        let (block, lane) = (output / BLOCK, output % BLOCK);
        let at = (block * 9 + tap) * channels * BLOCK;
        if pairs {
            at + (channel / 2) * 2 * BLOCK + 2 * lane + channel % 2
        } else {
            at + channel * BLOCK + lane
        }
    };
    Places { len: outputs.div_ceil(BLOCK) * 9 * channels * BLOCK, place }
}

/// The input of a layer.
pub(in crate::kernels) enum Source<'a> {
    /// `[picture][channel][row][column]`.
    Planes(&'a [u8]),
    Map(&'a [u8]),
}

/// The input in i16, channels last, with a border of one pixel that holds the zero point:
/// `[picture][row][column][channel]`.
fn widen(source: &Source, from: Map, zero_point: u8, wide: &mut Vec<i16>) {
    let (columns, rows) = (from.width + 2, from.height + 2);
    let channels = from.channels.next_multiple_of(CHANNEL_STEP);
    // Channels that fill up meet weights of zero.
    wide.clear();
    wide.resize(from.pictures * rows * columns * channels, i16::from(zero_point));
    for picture in 0..from.pictures {
        for y in 0..from.height {
            let at = (((picture * rows) + y + 1) * columns + 1) * channels;
            let row = &mut wide[at..][..from.width * channels];
            match source {
                Source::Planes(planes) => {
                    for channel in 0..from.channels {
                        let at =
                            ((picture * from.channels + channel) * from.height + y) * from.width;
                        let values = row[channel..].iter_mut().step_by(channels);
                        values
                            .zip(&planes[at..][..from.width])
                            .for_each(|(wide, &value)| *wide = i16::from(value));
                    }
                }
                Source::Map(map) => {
                    for block in 0..from.blocks() {
                        let lanes = BLOCK.min(from.channels - block * BLOCK);
                        let at = from.start(block, picture) + from.at(y + 1, 1);
                        for (x, values) in
                            map[at..][..from.width * BLOCK].chunks_exact(BLOCK).enumerate()
                        {
                            let wide = &mut row[x * channels + block * BLOCK..][..lanes];
                            wide.iter_mut()
                                .zip(values)
                                .for_each(|(wide, &value)| *wide = i16::from(value));
                        }
                    }
                }
            }
        }
    }
}

/// Convolves without pooling.
#[allow(clippy::too_many_arguments, reason = "what a layer reads and writes, as in `winograd`")]
pub(in crate::kernels) fn convolve<I: Isa>(
    isa: I,
    packed: &Packed,
    wide: &mut Vec<i16>,
    input: &Source,
    from: Map,
    parallel: bool,
    out: &mut [u8],
    to: Map,
) {
    widen(input, from, packed.layer.zero_point, wide);
    let wide = &wide[..];
    each_chunk(out, to.plane(), parallel, |(block, plane)| {
        to.clear_around(plane, packed.flip);
        convolve_block(isa, packed, wide, from, block, plane, to);
    });
}

fn convolve_block<I: Isa>(
    isa: I,
    packed: &Packed,
    wide: &[i16],
    from: Map,
    block: usize,
    plane: &mut [u8],
    to: Map,
) {
    let channels = from.channels.next_multiple_of(CHANNEL_STEP);
    let stride = (from.width + 2) * channels;
    for (picture, out) in plane.chunks_exact_mut(to.picture()).enumerate() {
        for y in 0..from.height {
            let rows: [&[i16]; 3] = std::array::from_fn(|dy| {
                &wide[(picture * (from.height + 2) + y + dy) * stride..][..stride]
            });
            let out = &mut out[to.at(y + 1, 1)..][..to.width * BLOCK];
            let mut x = 0;
            while x < from.width {
                let at = rows.map(|row| &row[x * channels..]);
                let pixels = &mut out[x * BLOCK..];
                x += match from.width - x {
                    PIXELS.. => run_tile::<I, PIXELS>(isa, packed, channels, block, at, pixels),
                    2.. => run_tile::<I, 2>(isa, packed, channels, block, at, pixels),
                    _ => run_tile::<I, 1>(isa, packed, channels, block, at, pixels),
                };
            }
        }
    }
}

#[inline(always)]
fn run_tile<I: Isa, const P: usize>(
    isa: I,
    packed: &Packed,
    channels: usize,
    block: usize,
    rows: [&[i16]; 3],
    out: &mut [u8],
) -> usize {
    let mut sums = [[0; BLOCK]; P];
    let len = 9 * channels * BLOCK;
    isa.tile(rows, channels, &packed.weights[block * len..][..len], &mut sums);
    packed.finish(isa, block, &sums, out);
    P
}

/// 2x2 max pooling with stride 2 of one plane, whose results are combined with `flip`; an odd last
/// row or column is dropped.
pub(in crate::kernels) fn max_pool(input: &[u8], from: Map, out: &mut [u8], to: Map, flip: u8) {
    to.clear_around(out, flip);
    for (input, out) in input.chunks_exact(from.picture()).zip(out.chunks_exact_mut(to.picture())) {
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
                        ^ flip;
                }
            }
        }
    }
}
