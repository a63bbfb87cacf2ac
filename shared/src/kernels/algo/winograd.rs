//! Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016, arXiv:1509.09308) in integers,
//! without any error.
//!
//! A tile of 4x4 outputs takes 36 products a channel instead of 144. The usual matrices hold
//! fractions; here each row of `G` is scaled to the smallest integers, and `A` makes up for it so
//! that all results are 24 x 24 = 576 times the sums:
//!
//! ```text
//!       4  0 -5  0  1  0        1  0  0
//!       0 -4 -4  1  1  0        1  1  1         6 -4 -4  1  1  0
//! B^T = 0  4 -4 -1  1  0    G = 1 -1  1   A^T = 0 -4  4  2 -2  0
//!       0 -2 -1  2  1  0        1  2  4         0 -4 -4  4  4  0
//!       0  2 -1 -2  1  0        1 -2  4         0 -4  4  8 -8 24
//!       0  4  0 -5  0  1        0  0  1
//! ```
//!
//! - Transformed inputs are at most 10 x 5 x 255 = 12,750, transformed weights 7 x 7 x 128 = 6,272:
//!   both fit i16.
//! - Sums of products, and all that follows, are taken modulo 2^32. 576 = 9 x 64 and 9 has an
//!   inverse modulo 2^32, so the result times that inverse is 64 times the true sum modulo 2^32;
//!   shifting right by 6 gives the sum if it is within +-2^25, which [`holds`] proves from the
//!   weights.
//!
//! Weights stay in i8 and are transformed on the way, a chunk of channels at a time: in i16 and 36
//! values for 9 they would be eight times as large, and streaming them from memory costs more than
//! making them in the cache.

use std::cell::RefCell;

use crate::kernels::isa::{I16, I32, Isa};
use crate::kernels::layout::{BLOCK, Map, TILE};
use crate::kernels::{ConvLayer, Packed, Places, each_chunk, sum};

/// Values of a transformed tile: 6 x 6.
pub(in crate::kernels) const POSITIONS: usize = SIDE * SIDE;

/// Weights of a filter.
pub(in crate::kernels) const TAPS: usize = 9;

const SIDE: usize = TILE + 2;

/// 9 * NINTH = 1 modulo 2^32.
const NINTH: i32 = 954_437_177;

/// Blocks of channels whose weights are transformed at a time.
pub(in crate::kernels) const CHUNK: usize = 4;

/// Bytes of transformed inputs at a time, from 16 to 64 tiles: more tiles share transformed
/// weights, fewer stay in a small cache.
const INPUT_BYTES: usize = if cfg!(target_arch = "x86_64") { 1 << 20 } else { 256 << 10 };

/// Tiles that the widest matrix product computes at once.
pub(in crate::kernels) const TILES: usize = 4;

/// Tiles whose products are taken position by position: all that is read and written on the way are
/// runs of a few hundred bytes to a few thousand, which stay in the nearest cache or are fetched
/// ahead.
const PANEL: usize = 4 * TILES;

/// Whether all true sums of a layer are within +-2^25 and its zero point is 0.
pub(in crate::kernels) fn holds(layer: &ConvLayer) -> bool {
    const REACH: i64 = 1 << 25;
    layer.zero_point == 0
        && layer.weights.chunks_exact(TAPS * layer.inputs).all(|weights| {
            255 * sum(weights, |w| w.max(0)) < REACH && -255 * sum(weights, |w| w.min(0)) < REACH
        })
}

/// `[block][channel / 2][tap][channel % 2 and output]`, the innermost 32 in the order of the
/// instruction set.
pub(in crate::kernels) fn places(
    inputs: usize,
    outputs: usize,
    pairs: bool,
) -> Places<impl Fn(usize, usize, usize) -> usize> {
    let channels = inputs.next_multiple_of(BLOCK);
    let place = move |output: usize, channel: usize, tap: usize| {
        let (block, lane) = (output / BLOCK, output % BLOCK);
        let inner = if pairs { 2 * lane + channel % 2 } else { channel % 2 * BLOCK + lane };
        ((block * channels / 2 + channel / 2) * TAPS + tap) * 2 * BLOCK + inner
    };
    Places { len: outputs.div_ceil(BLOCK) * channels * TAPS * BLOCK, place }
}

/// What follows the sums of one block of output channels.
pub(in crate::kernels) struct Finish<'a> {
    pub bias: &'a [i32; BLOCK],
    pub multipliers: &'a [f32; BLOCK],
    pub pool: bool,
    /// As `Packed::flip`.
    pub flip: u8,
    /// Rows and columns of the tile's result that are in the picture.
    pub rows: usize,
    pub columns: usize,
}

/// One position of the transformed inputs of one tile and one block of channels.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(in crate::kernels) struct Input(pub [i16; BLOCK]);

/// One position of the transformed weights of two channels and one block of outputs.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(in crate::kernels) struct Weight(pub [i16; 2 * BLOCK]);

/// The transformed inputs of a panel of tiles and a chunk of channels: `[position][tile][block of
/// channels]`.
///
/// What is multiplied is one run of memory, here and in [`Weights`] and [`Sums`]. Each position
/// ends with a cache line that is not used: at powers of two all positions would share few places
/// of a cache.
pub(in crate::kernels) type Inputs = [[Input; PANEL * CHUNK + 2]; POSITIONS];

/// The transformed weights of up to a chunk of channels: `[position][pair of channels]`.
pub(in crate::kernels) type Weights = [[Weight; CHUNK * BLOCK / 2 + 1]; POSITIONS];

/// The sums of products of one panel of tiles and one block of outputs: `[position][tile]`.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(in crate::kernels) struct Sums(pub [[[i32; BLOCK]; PANEL + 1]; POSITIONS]);

// The transforms hold no closure and call none: a closure has no target feature of its own, so
// wherever the compiler does not inline it, each vector operation in it becomes a call.

/// `B^T d B` of one tile and one block of channels: `source` holds six rows, `stride` apart, of six
/// pixels.
#[inline(always)]
pub(in crate::kernels) fn transform_input<V: I16>(
    source: &[u8],
    stride: usize,
    target: &mut Inputs,
    place: usize,
) {
    assert!(place < PANEL * CHUNK);
    let rows: [&[u8; SIDE * BLOCK]; SIDE] =
        std::array::from_fn(|y| source[y * stride..].first_chunk().unwrap_or(&[0; SIDE * BLOCK]));
    for part in (0..BLOCK).step_by(V::LANES) {
        let mut columns = [[V::zero(); SIDE]; SIDE];
        for x in 0..SIDE {
            let mut column = [V::zero(); SIDE];
            for y in 0..SIDE {
                column[y] = V::from_u8(&rows[y][x * BLOCK + part..][..V::LANES]);
            }
            columns[x] = input_matrix(column);
        }
        for y in 0..SIDE {
            let mut row = [V::zero(); SIDE];
            for x in 0..SIDE {
                row[x] = columns[x][y];
            }
            let row = input_matrix(row);
            for x in 0..SIDE {
                row[x].store(&mut target[y * SIDE + x][place].0[part..][..V::LANES]);
            }
        }
    }
}

#[inline(always)]
fn times4<V: I16>(v: V) -> V {
    v.add(v).add(v.add(v))
}

/// `B^T` times a column.
#[inline(always)]
fn input_matrix<V: I16>(d: [V; SIDE]) -> [V; SIDE] {
    let (even, odd) = (d[4].sub(times4(d[2])), d[3].sub(times4(d[1])));
    let (outer, inner) = (d[4].sub(d[2]), d[3].sub(d[1]));
    let twice = inner.add(inner);
    [
        times4(d[0].sub(d[2])).add(outer),
        even.add(odd),
        even.sub(odd),
        outer.add(twice),
        outer.sub(twice),
        d[5].sub(d[3]).sub(twice.add(twice)),
    ]
}

/// `G g G^T` of two channels and one block of outputs.
#[inline(always)]
pub(in crate::kernels) fn transform_weights<V: I16>(
    source: &[[i8; 2 * BLOCK]; TAPS],
    target: &mut Weights,
    pair: usize,
) {
    assert!(pair < CHUNK * BLOCK / 2);
    for part in (0..2 * BLOCK).step_by(V::LANES) {
        let mut columns = [[V::zero(); SIDE]; 3];
        for x in 0..3 {
            let mut column = [V::zero(); 3];
            for y in 0..3 {
                column[y] = V::from_i8(&source[3 * y + x][part..][..V::LANES]);
            }
            columns[x] = weight_matrix(column);
        }
        for y in 0..SIDE {
            let row = weight_matrix([columns[0][y], columns[1][y], columns[2][y]]);
            for x in 0..SIDE {
                row[x].store(&mut target[y * SIDE + x][pair].0[part..][..V::LANES]);
            }
        }
    }
}

/// `G` times a column.
#[inline(always)]
fn weight_matrix<V: I16>(g: [V; 3]) -> [V; SIDE] {
    let (twice1, twice2) = (g[1].add(g[1]), g[2].add(g[2]));
    let (near, far) = (g[0].add(g[2]), g[0].add(twice2.add(twice2)));
    [g[0], near.add(g[1]), near.sub(g[1]), far.add(twice1), far.sub(twice1), g[2]]
}

/// `A^T m A` and the true sums, pooling, and requantization of one tile of a panel and one block of
/// outputs. `out` takes rows, `stride` apart.
#[inline(always)]
pub(in crate::kernels) fn transform_output<V: I32>(
    sums: &Sums,
    of: usize,
    finish: &Finish,
    out: &mut [u8],
    stride: usize,
) {
    assert!(of < PANEL);
    let Sums(sums) = sums;
    let mut tile = [[[0; BLOCK]; TILE]; TILE];
    for part in (0..BLOCK).step_by(V::LANES) {
        let mut columns = [[V::zero(); TILE]; SIDE];
        for x in 0..SIDE {
            let mut column = [V::zero(); SIDE];
            for y in 0..SIDE {
                column[y] = V::load(&sums[y * SIDE + x][of][part..][..V::LANES]);
            }
            columns[x] = output_matrix(column);
        }
        let mut rows = [[V::zero(); TILE]; TILE];
        for y in 0..TILE {
            let mut row = [V::zero(); SIDE];
            for x in 0..SIDE {
                row[x] = columns[x][y];
            }
            let row = output_matrix(row);
            for x in 0..TILE {
                rows[y][x] = row[x].mul(NINTH).shr::<6>();
            }
        }
        if finish.pool {
            // Requantization keeps order, so the largest sum gives the largest value.
            for (y, tile) in tile.iter_mut().take(TILE / 2).enumerate() {
                for (x, tile) in tile.iter_mut().take(TILE / 2).enumerate() {
                    let above = rows[2 * y][2 * x].max(rows[2 * y][2 * x + 1]);
                    let below = rows[2 * y + 1][2 * x].max(rows[2 * y + 1][2 * x + 1]);
                    above.max(below).store(&mut tile[part..][..V::LANES]);
                }
            }
        } else {
            for (row, tile) in rows.into_iter().zip(&mut tile) {
                for (sums, tile) in row.into_iter().zip(tile) {
                    sums.store(&mut tile[part..][..V::LANES]);
                }
            }
        }
    }
    for (row, out) in tile.iter().zip(out.chunks_mut(stride)).take(finish.rows) {
        for (sums, out) in row.iter().zip(out.as_chunks_mut().0).take(finish.columns) {
            let mut block = V::requantize(sums, finish.bias, finish.multipliers);
            for q in &mut block {
                *q ^= finish.flip;
            }
            *out = block;
        }
    }
}

/// `A^T` times a column, modulo 2^32.
#[inline(always)]
fn output_matrix<V: I32>(m: [V; SIDE]) -> [V; TILE] {
    let (a, b) = (m[1].add(m[2]), m[1].sub(m[2]));
    let (c, d) = (m[3].add(m[4]), m[3].sub(m[4]));
    let (b4, d2) = (b.shl::<2>(), d.shl::<1>());
    let twice0 = m[0].add(m[0]);
    let eight5 = m[5].shl::<3>();
    [
        c.sub(a.shl::<2>()).add(twice0.add(twice0).add(twice0)),
        d2.sub(b4),
        c.sub(a).shl::<2>(),
        d2.shl::<2>().sub(b4).add(eight5.add(eight5).add(eight5)),
    ]
}

/// The memory of one thread.
#[derive(Default)]
struct Scratch {
    /// One, or none before the first use.
    weights: Vec<Weights>,
    /// By panels.
    sums: Vec<Sums>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The tiles of a layer: so many down and across each picture.
#[derive(Clone, Copy)]
struct Tiles {
    down: usize,
    across: usize,
}

impl Tiles {
    /// Picture, row and column of a tile.
    fn place(self, tile: usize) -> (usize, usize, usize) {
        let (picture, rest) = (tile / (self.down * self.across), tile % (self.down * self.across));
        (picture, rest / self.across, rest % self.across)
    }
}

/// Convolves, with pooling where the layer has it. `transformed` is memory for inputs.
#[allow(clippy::too_many_arguments, reason = "what a layer reads and writes, as in `direct`")]
pub(in crate::kernels) fn convolve<I: Isa>(
    isa: I,
    packed: &Packed,
    transformed: &mut Vec<Inputs>,
    input: &[u8],
    from: Map,
    parallel: bool,
    out: &mut [u8],
    to: Map,
) {
    let blocks = from.blocks();
    let chunks = blocks.div_ceil(CHUNK);
    let tiles = Tiles { down: from.height.div_ceil(TILE), across: from.width.div_ceil(TILE) };
    let total = from.pictures * tiles.down * tiles.across;
    let most = (INPUT_BYTES / (blocks * POSITIONS * size_of::<Input>())).clamp(PANEL, 4 * PANEL);
    let at_once = total.div_ceil(total.div_ceil(most)).next_multiple_of(TILES);
    let len = at_once.div_ceil(PANEL) * chunks;
    if transformed.len() < len {
        transformed.resize(len, [[Input([0; BLOCK]); PANEL * CHUNK + 2]; POSITIONS]);
    }
    for first in (0..total).step_by(at_once) {
        let count = at_once.min(total - first);
        let transformed = &mut transformed[..count.div_ceil(PANEL) * chunks];
        each_chunk(transformed, 1, parallel, |(index, target)| {
            let (done, chunk) = (index / chunks * PANEL, index % chunks * CHUNK);
            for tile in 0..PANEL.min(count - done) {
                let (picture, y, x) = tiles.place(first + done + tile);
                for block in chunk..blocks.min(chunk + CHUNK) {
                    let at = from.start(block, picture) + from.at(TILE * y, TILE * x);
                    isa.transform_input(
                        &input[at..],
                        from.stride(),
                        &mut target[0],
                        tile * CHUNK + block - chunk,
                    );
                }
            }
        });
        let inputs = &*transformed;
        each_chunk(out, to.plane(), parallel, |(block, plane)| {
            if first == 0 {
                to.clear_around(plane, packed.flip);
            }
            SCRATCH.with_borrow_mut(|scratch| {
                multiply(isa, packed, scratch, inputs, count, blocks, block);
                finish(isa, packed, &scratch.sums, count, first, tiles, block, plane, to);
            });
        });
    }
}

/// The products of all positions of `count` tiles (`blocks` of channels each) with one block of
/// outputs, into `scratch.sums`.
fn multiply<I: Isa>(
    isa: I,
    packed: &Packed,
    scratch: &mut Scratch,
    inputs: &[Inputs],
    count: usize,
    blocks: usize,
    block: usize,
) {
    let panels = count.div_ceil(PANEL);
    if scratch.sums.len() < panels {
        scratch.sums.resize(panels, Sums([[[0; BLOCK]; PANEL + 1]; POSITIONS]));
    }
    if scratch.weights.is_empty() {
        scratch.weights.push([[Weight([0; 2 * BLOCK]); CHUNK * BLOCK / 2 + 1]; POSITIONS]);
    }
    let weights = &mut scratch.weights[0];
    let len = blocks * BLOCK * TAPS * BLOCK;
    let taps =
        packed.weights[block * len..][..len].as_chunks::<{ 2 * BLOCK }>().0.as_chunks::<TAPS>().0;
    // Where weights are used once they need not leave the nearest cache at all.
    let at_once = if count <= TILES { 1 } else { CHUNK };
    for (number, taps) in taps.chunks(at_once * BLOCK / 2).enumerate() {
        for (pair, taps) in taps.iter().enumerate() {
            isa.transform_weights(taps, weights, pair);
        }
        let first = number * at_once;
        let inputs =
            inputs.chunks_exact(blocks.div_ceil(CHUNK)).map(|chunks| &chunks[first / CHUNK]);
        for ((inputs, sums), done) in inputs.zip(&mut scratch.sums).zip((0..).step_by(PANEL)) {
            let tiles = PANEL.min(count - done);
            let chunk = Chunk {
                inputs,
                first: first % CHUNK,
                weights,
                pairs: taps.len(),
                tiles,
                add: number > 0,
            };
            isa.products(&chunk, sums);
        }
    }
}

/// What the products of a panel of tiles and some channels read.
pub(in crate::kernels) struct Chunk<'a> {
    inputs: &'a Inputs,
    /// First block of channels in `inputs`.
    first: usize,
    weights: &'a Weights,
    /// Of channels.
    pairs: usize,
    tiles: usize,
    /// Whether to add to the sums of earlier channels.
    add: bool,
}

/// The matrix products of all positions.
#[inline(always)]
pub(in crate::kernels) fn products<I: Isa>(isa: I, chunk: &Chunk, sums: &mut Sums) {
    let &Chunk { inputs, first, weights, pairs, tiles, add } = chunk;
    for ((inputs, weights), sums) in inputs.iter().zip(weights).zip(&mut sums.0) {
        let (inputs, weights) = (&inputs[first..], &weights[..pairs]);
        let (fours, _) = sums[..PANEL].as_chunks_mut::<TILES>();
        for (sums, done) in fours.iter_mut().zip((0..tiles).step_by(TILES)) {
            let inputs = &inputs[done * CHUNK..];
            match tiles - done {
                1 => isa.product(inputs, weights, &mut sums.as_chunks_mut::<1>().0[0], add),
                2 => isa.product(inputs, weights, &mut sums.as_chunks_mut::<2>().0[0], add),
                _ => isa.product(inputs, weights, sums, add),
            }
        }
    }
}

/// From sums to the u8 outputs of a plane.
#[allow(clippy::too_many_arguments, reason = "what a block reads and writes")]
fn finish<I: Isa>(
    isa: I,
    packed: &Packed,
    sums: &[Sums],
    count: usize,
    first: usize,
    tiles: Tiles,
    block: usize,
    plane: &mut [u8],
    to: Map,
) {
    let side = if packed.layer.pool { TILE / 2 } else { TILE };
    for tile in 0..count {
        let (picture, y, x) = tiles.place(first + tile);
        let finish = Finish {
            bias: &packed.bias[block],
            multipliers: &packed.multipliers[block],
            pool: packed.layer.pool,
            flip: packed.flip,
            rows: side.min(to.height - side * y),
            columns: side.min(to.width - side * x),
        };
        let at = picture * to.picture() + to.at(1 + side * y, 1 + side * x);
        isa.transform_output(
            &sums[tile / PANEL],
            tile % PANEL,
            &finish,
            &mut plane[at..],
            to.stride(),
        );
    }
}
