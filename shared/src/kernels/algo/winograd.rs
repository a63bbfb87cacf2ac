//! Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016, arXiv:1509.09308) in integers,
//! without any error.
//!
//! A tile of 4x4 outputs takes 36 products for each channel instead of 144. The usual matrices hold
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
//! - Sums of products, and everything computed from them, are taken modulo 2^32. 576 = 9 x 64 and 9
//!   has an inverse modulo 2^32, so the result times that inverse is 64 times the true sum modulo
//!   2^32; shifting right by 6 gives the sum if it is within +-2^25, which [`is_exact_for`] proves
//!   from the weights.
//!
//! Weights stay in i8 and are transformed during the run, a chunk of channels at a time: in i16 and
//! with 36 values for 9 they would be eight times as large, and streaming them from memory costs
//! more than computing them in the cache.

use std::cell::RefCell;

use crate::kernels::isa::{I16, I32, Isa, Task};
use crate::kernels::layer::{ConvLayer, sum_of_weights};
use crate::kernels::layout::{
    BLOCK, CHUNK, InputBlock, InputPanel, Map, PANEL, POSITIONS, SIDE, SumPanel, TAPS, TILE, TILES,
    WeightChunk, WeightLayout, WeightPair,
};
use crate::kernels::packed::LayerRun;

/// 9 * NINTH = 1 modulo 2^32.
const NINTH: i32 = 954_437_177;

/// Bytes of transformed inputs at a time, from 16 to 64 tiles: more tiles share transformed
/// weights, fewer stay in a small cache.
const INPUT_BYTES: usize = if cfg!(target_arch = "x86_64") { 1 << 20 } else { 256 << 10 };

/// Pairs of channels from those whose weights are transformed to those that are prefetched.
const AHEAD: usize = 16;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Returns whether all true sums of a layer are within +-2^25 and its zero point is 0.
pub(in crate::kernels) fn is_exact_for(layer: &ConvLayer) -> bool {
    const REACH: i64 = 1 << 25;
    layer.zero_point == 0
        && layer.weights.chunks_exact(TAPS * layer.inputs).all(|weights| {
            255 * sum_of_weights(weights, |w| w.max(0)) < REACH
                && -255 * sum_of_weights(weights, |w| w.min(0)) < REACH
        })
}

/// `[block][channel / 2][tap][channel % 2 and output]`, the innermost 32 in the order of the
/// instruction set ([`Isa::PAIRS`]).
pub(in crate::kernels) fn weight_layout(
    inputs: usize,
    outputs: usize,
    pairs: bool,
) -> WeightLayout<impl Fn(usize, usize, usize) -> usize> {
    let channels = inputs.next_multiple_of(BLOCK);
    let position = move |output: usize, channel: usize, tap: usize| {
        let (block, lane) = (output / BLOCK, output % BLOCK);
        let inner = if pairs { 2 * lane + channel % 2 } else { channel % 2 * BLOCK + lane };
        ((block * channels / 2 + channel / 2) * TAPS + tap) * 2 * BLOCK + inner
    };
    let len = outputs.div_ceil(BLOCK) * channels * TAPS * BLOCK;
    WeightLayout { inputs, outputs, len, position }
}

/// [`transform_input`] as a task.
struct TransformInput<'a> {
    source: &'a [u8],
    stride: usize,
    target: &'a mut InputPanel,
    index: usize,
}

impl Task for TransformInput<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        transform_input(isa, self.source, self.stride, self.target, self.index);
    }
}

/// `B^T d B` of one tile and one block of channels, into `target` at `index`: `source` holds six
/// rows, `stride` bytes apart, of six pixels.
#[inline(always)]
fn transform_input<I: Isa>(
    isa: I,
    source: &[u8],
    stride: usize,
    target: &mut InputPanel,
    index: usize,
) {
    assert!(index < PANEL * CHUNK);
    let lanes = I::I16::LANES;
    let rows: [&[u8; SIDE * BLOCK]; SIDE] =
        std::array::from_fn(|y| source[y * stride..].first_chunk().unwrap_or(&[0; SIDE * BLOCK]));
    for part in (0..BLOCK).step_by(lanes) {
        let mut columns = [[I::I16::zero(isa); SIDE]; SIDE];
        for x in 0..SIDE {
            let mut column = [I::I16::zero(isa); SIDE];
            for y in 0..SIDE {
                column[y] = I::I16::from_u8(isa, &rows[y][x * BLOCK + part..][..lanes]);
            }
            columns[x] = input_matrix(column);
        }
        for y in 0..SIDE {
            let mut row = [I::I16::zero(isa); SIDE];
            for x in 0..SIDE {
                row[x] = columns[x][y];
            }
            let row = input_matrix(row);
            for x in 0..SIDE {
                row[x].store(&mut target[y * SIDE + x][index].0[part..][..lanes]);
            }
        }
    }
}

#[inline(always)]
fn times4<S, V: I16<S>>(v: V) -> V {
    v.add(v).add(v.add(v))
}

/// `B^T` times a column.
#[inline(always)]
fn input_matrix<S, V: I16<S>>(d: [V; SIDE]) -> [V; SIDE] {
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

/// [`transform_weights`] as a task.
struct TransformWeights<'a> {
    source: &'a [[i8; 2 * BLOCK]; TAPS],
    target: &'a mut WeightChunk,
    pair: usize,
}

impl Task for TransformWeights<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // A pass reads weights once, from memory, and not fast enough for the hardware to run ahead
        // over chunks and pages.
        for line in 0..(TAPS * 2 * BLOCK).div_ceil(CACHE_LINE) {
            let ahead = std::ptr::from_ref(self.source).wrapping_add(AHEAD);
            isa.prefetch(ahead.wrapping_byte_add(CACHE_LINE * line));
        }
        transform_weights(isa, self.source, self.target, self.pair);
    }
}

/// `G g G^T` of two channels and one block of outputs, into `target` at `pair`.
#[inline(always)]
fn transform_weights<I: Isa>(
    isa: I,
    source: &[[i8; 2 * BLOCK]; TAPS],
    target: &mut WeightChunk,
    pair: usize,
) {
    assert!(pair < CHUNK * BLOCK / 2);
    let lanes = I::I16::LANES;
    for part in (0..2 * BLOCK).step_by(lanes) {
        let mut columns = [[I::I16::zero(isa); SIDE]; 3];
        for x in 0..3 {
            let mut column = [I::I16::zero(isa); 3];
            for y in 0..3 {
                column[y] = I::I16::from_i8(isa, &source[3 * y + x][part..][..lanes]);
            }
            columns[x] = weight_matrix(column);
        }
        for y in 0..SIDE {
            let row = weight_matrix([columns[0][y], columns[1][y], columns[2][y]]);
            for x in 0..SIDE {
                row[x].store(&mut target[y * SIDE + x][pair].0[part..][..lanes]);
            }
        }
    }
}

/// `G` times a column.
#[inline(always)]
fn weight_matrix<S, V: I16<S>>(g: [V; 3]) -> [V; SIDE] {
    let (twice1, twice2) = (g[1].add(g[1]), g[2].add(g[2]));
    let (near, far) = (g[0].add(g[2]), g[0].add(twice2.add(twice2)));
    [g[0], near.add(g[1]), near.sub(g[1]), far.add(twice1), far.sub(twice1), g[2]]
}

/// How the sums of one tile and one block of output channels become outputs.
struct TileOutput<'a> {
    bias: &'a [i32; BLOCK],
    multipliers: &'a [f32; BLOCK],
    pool: bool,
    /// As `PackedLayer::sign_flip`.
    sign_flip: u8,
    /// Rows and columns of the tile's result that are within the image.
    rows: usize,
    columns: usize,
}

/// [`transform_output`] as a task.
struct TransformOutput<'a> {
    sums: &'a SumPanel,
    tile: usize,
    output: &'a TileOutput<'a>,
    out: &'a mut [u8],
    stride: usize,
}

impl Task for TransformOutput<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        transform_output(isa, (self.sums, self.tile), self.output, self.out, self.stride);
    }
}

/// `A^T m A` and the true sums, pooling, and requantization of one tile of a panel and one block of
/// outputs. `out` receives rows that are `stride` bytes apart.
#[inline(always)]
fn transform_output<I: Isa>(
    isa: I,
    (sums, of): (&SumPanel, usize),
    output: &TileOutput,
    out: &mut [u8],
    stride: usize,
) {
    assert!(of < PANEL);
    let lanes = I::I32::LANES;
    let SumPanel(sums) = sums;
    let mut tile = [[[0; BLOCK]; TILE]; TILE];
    for part in (0..BLOCK).step_by(lanes) {
        let mut columns = [[I::I32::zero(isa); TILE]; SIDE];
        for x in 0..SIDE {
            let mut column = [I::I32::zero(isa); SIDE];
            for y in 0..SIDE {
                column[y] = I::I32::load(isa, &sums[y * SIDE + x][of][part..][..lanes]);
            }
            columns[x] = output_matrix(column);
        }
        let mut rows = [[I::I32::zero(isa); TILE]; TILE];
        for y in 0..TILE {
            let mut row = [I::I32::zero(isa); SIDE];
            for x in 0..SIDE {
                row[x] = columns[x][y];
            }
            let row = output_matrix(row);
            for x in 0..TILE {
                rows[y][x] = row[x].mul(NINTH).shr::<6>();
            }
        }
        if output.pool {
            // Requantization keeps order, so the largest sum gives the largest value.
            for (y, tile) in tile.iter_mut().take(TILE / 2).enumerate() {
                for (x, tile) in tile.iter_mut().take(TILE / 2).enumerate() {
                    let above = rows[2 * y][2 * x].max(rows[2 * y][2 * x + 1]);
                    let below = rows[2 * y + 1][2 * x].max(rows[2 * y + 1][2 * x + 1]);
                    above.max(below).store(&mut tile[part..][..lanes]);
                }
            }
        } else {
            for (row, tile) in rows.into_iter().zip(&mut tile) {
                for (sums, tile) in row.into_iter().zip(tile) {
                    sums.store(&mut tile[part..][..lanes]);
                }
            }
        }
    }
    for (row, out) in tile.iter().zip(out.chunks_mut(stride)).take(output.rows) {
        for (sums, out) in row.iter().zip(out.as_chunks_mut().0).take(output.columns) {
            let mut block = isa.requantize(sums, output.bias, output.multipliers);
            for q in &mut block {
                *q ^= output.sign_flip;
            }
            *out = block;
        }
    }
}

/// `A^T` times a column, modulo 2^32.
#[inline(always)]
fn output_matrix<S, V: I32<S>>(m: [V; SIDE]) -> [V; TILE] {
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

/// The matrix products of a panel of tiles and some channels, at all positions.
struct Products<'a> {
    inputs: &'a InputPanel,
    /// First block of channels in `inputs`.
    first: usize,
    weights: &'a WeightChunk,
    /// Pairs of channels.
    pairs: usize,
    tiles: usize,
    /// Whether to add to the sums of earlier channels.
    add: bool,
    sums: &'a mut SumPanel,
}

impl Task for Products<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { inputs, first, weights, pairs, tiles, add, sums } = self;
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
}

/// The memory of one thread.
#[derive(Default)]
struct Scratch {
    /// One, or none before the first use.
    weights: Vec<WeightChunk>,
    /// One for each panel of tiles.
    sums: Vec<SumPanel>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Consecutive tiles of a layer, which are computed at a time.
#[derive(Clone, Copy)]
struct Tiles {
    /// Tiles in each column of an image.
    down: usize,
    /// Tiles in each row of an image.
    across: usize,
    /// The first tile of the group.
    first: usize,
    /// Number of tiles in the group.
    count: usize,
}

impl Tiles {
    /// All tiles of a map.
    fn of(map: Map) -> Self {
        let (down, across) = (map.height.div_ceil(TILE), map.width.div_ceil(TILE));
        Self { down, across, first: 0, count: map.images * down * across }
    }

    /// At most `len` of these tiles, from `first` on.
    fn group(self, first: usize, len: usize) -> Self {
        Self { first, count: len.min(self.count - first), ..self }
    }

    /// Panels of the group.
    fn panels(self) -> usize {
        self.count.div_ceil(PANEL)
    }

    /// Image, row and column of a tile of the group.
    fn position(self, tile: usize) -> (usize, usize, usize) {
        let tile = self.first + tile;
        let (image, rest) = (tile / (self.down * self.across), tile % (self.down * self.across));
        (image, rest / self.across, rest % self.across)
    }
}

/// Convolves, with pooling where the layer has it. `transformed` is memory for inputs.
pub(in crate::kernels) fn convolve<I: Isa>(
    isa: I,
    run: &LayerRun,
    transformed: &mut Vec<InputPanel>,
    input: &[u8],
    out: &mut [u8],
) {
    let &LayerRun { packed, from, to, .. } = run;
    let blocks = from.blocks();
    let chunks = blocks.div_ceil(CHUNK);
    let all = Tiles::of(from);
    let total = all.count;
    let most =
        (INPUT_BYTES / (blocks * POSITIONS * size_of::<InputBlock>())).clamp(PANEL, 4 * PANEL);
    let at_once = total.div_ceil(total.div_ceil(most)).next_multiple_of(TILES);
    let len = at_once.div_ceil(PANEL) * chunks;
    if transformed.len() < len {
        transformed.resize(len, [[InputBlock([0; BLOCK]); PANEL * CHUNK + 2]; POSITIONS]);
    }
    for first in (0..total).step_by(at_once) {
        let tiles = all.group(first, at_once);
        let transformed = &mut transformed[..tiles.panels() * chunks];
        run.for_each_chunk(transformed, 1, |(index, target)| {
            let (done, chunk) = (index / chunks * PANEL, index % chunks * CHUNK);
            for tile in 0..PANEL.min(tiles.count - done) {
                let (image, y, x) = tiles.position(done + tile);
                for block in chunk..blocks.min(chunk + CHUNK) {
                    let at = from.start(block, image) + from.at(TILE * y, TILE * x);
                    isa.run(TransformInput {
                        source: &input[at..],
                        stride: from.stride(),
                        target: &mut target[0],
                        index: tile * CHUNK + block - chunk,
                    });
                }
            }
        });
        let inputs = &*transformed;
        run.for_each_plane(out, |(block, plane)| {
            if first == 0 {
                to.fill_border(plane, packed.sign_flip);
            }
            SCRATCH.with_borrow_mut(|scratch| {
                multiply(isa, run, scratch, inputs, tiles, block);
                requantize_tiles(isa, run, &scratch.sums, tiles, block, plane);
            });
        });
    }
}

/// Multiplies all positions of some tiles with one block of outputs, into `scratch.sums`.
fn multiply<I: Isa>(
    isa: I,
    run: &LayerRun,
    scratch: &mut Scratch,
    inputs: &[InputPanel],
    tiles: Tiles,
    block: usize,
) {
    let blocks = run.from.blocks();
    if scratch.sums.len() < tiles.panels() {
        scratch.sums.resize(tiles.panels(), SumPanel([[[0; BLOCK]; PANEL + 1]; POSITIONS]));
    }
    if scratch.weights.is_empty() {
        scratch.weights.push([[WeightPair([0; 2 * BLOCK]); CHUNK * BLOCK / 2 + 1]; POSITIONS]);
    }
    let weights = &mut scratch.weights[0];
    let len = blocks * BLOCK * TAPS * BLOCK;
    let packed = &run.packed.weights[block * len..][..len];
    let taps = packed.as_chunks::<{ 2 * BLOCK }>().0.as_chunks::<TAPS>().0;
    // Weights that are used once do not need to leave the nearest cache at all.
    let at_once = if tiles.count <= TILES { 1 } else { CHUNK };
    for (number, taps) in taps.chunks(at_once * BLOCK / 2).enumerate() {
        for (pair, source) in taps.iter().enumerate() {
            isa.run(TransformWeights { source, target: weights, pair });
        }
        let first = number * at_once;
        let inputs =
            inputs.chunks_exact(blocks.div_ceil(CHUNK)).map(|chunks| &chunks[first / CHUNK]);
        for ((inputs, sums), done) in inputs.zip(&mut scratch.sums).zip((0..).step_by(PANEL)) {
            isa.run(Products {
                inputs,
                first: first % CHUNK,
                weights,
                pairs: taps.len(),
                tiles: PANEL.min(tiles.count - done),
                add: number > 0,
                sums,
            });
        }
    }
}

/// Turns the sums of some tiles and one block of outputs into the u8 outputs of a plane.
fn requantize_tiles<I: Isa>(
    isa: I,
    run: &LayerRun,
    sums: &[SumPanel],
    tiles: Tiles,
    block: usize,
    plane: &mut [u8],
) {
    let &LayerRun { packed, to, .. } = run;
    let side = if packed.layer.pool { TILE / 2 } else { TILE };
    for tile in 0..tiles.count {
        let (image, y, x) = tiles.position(tile);
        let output = TileOutput {
            bias: &packed.bias[block],
            multipliers: &packed.multipliers[block],
            pool: packed.layer.pool,
            sign_flip: packed.sign_flip,
            rows: side.min(to.height - side * y),
            columns: side.min(to.width - side * x),
        };
        let at = image * to.image_len() + to.at(1 + side * y, 1 + side * x);
        isa.run(TransformOutput {
            sums: &sums[tile / PANEL],
            tile: tile % PANEL,
            output: &output,
            out: &mut plane[at..],
            stride: to.stride(),
        });
    }
}
