//! A chain of layers over one arena: borders, blocking, requantisation, pooling and threads, the same for every kernel.

use rayon::prelude::*;

use super::kernel::Kernel;
use super::{ConvLayer, portable, requantise};

/// Output channels that a tile computes at once.
pub(super) const BLOCK: usize = 16;

/// Input channels are filled up with zeros to a multiple of this.
pub(super) const CHANNEL_STEP: usize = 4;

/// Pixels that the widest tile computes at once.
const PIXELS: usize = 4;

/// Rows are widened to i16 in bands of at most so many values, to stay in the first caches.
const BAND_VALUES: usize = 48 * 1024;

/// What an instruction set adds: sums over one tile.
///
/// A value of the type is the proof that the CPU has the instructions.
pub(super) trait Tile: Copy + Send + Sync {
    /// Adds the products of `P` neighbouring pixels and one block of weights to `sums`.
    ///
    /// `rows` are the three input rows, each from the pixel left of the first: `channels` values a pixel, a multiple of
    /// [`CHANNEL_STEP`], at least `P + 2` pixels. `weights` is one block as [`pack`] makes it. Sums wrap.
    fn tile<const P: usize>(self, rows: [&[i16]; 3], channels: usize, weights: &[i8], sums: &mut [[i32; BLOCK]; P]);

    /// Whether weights of neighbouring channels lie side by side (`[channel / 2][output][2]`) or not (`[channel][output]`).
    const PAIRS: bool;
}

/// Which [`Tile`] to use; the match is made once a layer.
#[derive(Clone, Copy)]
enum AnyTile {
    Portable(portable::Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(super::avx2::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(super::neon::Neon),
}

impl AnyTile {
    fn new(kernel: Kernel) -> Self {
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => super::avx2::Avx2::new().map(Self::Avx2),
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon => super::neon::Neon::new().map(Self::Neon),
            _ => None,
        }
        .unwrap_or(Self::Portable(portable::Portable))
    }
}

/// A layer with its weights in the order in which the kernel reads them.
struct Packed {
    layer: ConvLayer,
    /// Input channels, filled up.
    channels: usize,
    /// Output channels, filled up to blocks.
    blocks: usize,
    weights: Vec<i8>,
    /// Bias less the zero point's share, filled up to blocks.
    bias: Vec<i32>,
    multipliers: Vec<f32>,
}

impl Packed {
    fn new(layer: ConvLayer, pairs: bool) -> Self {
        let channels = layer.inputs.next_multiple_of(CHANNEL_STEP);
        let blocks = layer.outputs.div_ceil(BLOCK);
        let weights = pack(&layer, channels, blocks, pairs);
        let mut bias = vec![0; blocks * BLOCK];
        let mut multipliers = vec![1.0; blocks * BLOCK];
        for (output, kernel) in layer.weights.chunks_exact(9 * layer.inputs).enumerate() {
            let sum: i32 = kernel.iter().map(|&w| i32::from(w)).sum();
            // Modulo 2^32, like the sums: only the total need fit.
            bias[output] = layer.bias[output].wrapping_sub(sum.wrapping_mul(i32::from(layer.zero_point)));
            multipliers[output] = layer.multipliers[output];
        }
        Self { layer, channels, blocks, weights, bias, multipliers }
    }

    fn block(&self, block: usize) -> &[i8] {
        let len = 9 * self.channels * BLOCK;
        &self.weights[block * len..][..len]
    }
}

/// `[block][tap][channel][output of the block]`, or with pairs of channels innermost.
fn pack(layer: &ConvLayer, channels: usize, blocks: usize, pairs: bool) -> Vec<i8> {
    let mut packed = vec![0; blocks * 9 * channels * BLOCK];
    for output in 0..layer.outputs {
        let (block, lane) = (output / BLOCK, output % BLOCK);
        for channel in 0..layer.inputs {
            for tap in 0..9 {
                let at = (block * 9 + tap) * channels * BLOCK;
                let at = if pairs {
                    at + (channel / 2) * 2 * BLOCK + 2 * lane + channel % 2
                } else {
                    at + channel * BLOCK + lane
                };
                packed[at] = layer.weights[(output * layer.inputs + channel) * 9 + tap];
            }
        }
    }
    packed
}

/// A chain of convolutions, packed for one kernel. Shared by threads; the memory of a run is in [`Arena`].
pub struct Stack {
    layers: Vec<Packed>,
    kernel: Kernel,
    tile: AnyTile,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stack({} layers, {})", self.layers.len(), self.kernel.name())
    }
}

/// The memory of a run, kept between runs: nothing is allocated after the first of a size.
#[derive(Clone, Default)]
pub struct Arena {
    /// Feature maps with borders, read and written in turn.
    maps: [Vec<u8>; 2],
    /// Output of a convolution before pooling, without borders.
    unpooled: Vec<u8>,
}

/// Where rows of a feature map lie: NHWC with `border` pixels around.
#[derive(Clone, Copy)]
struct Map {
    height: usize,
    width: usize,
    channels: usize,
    border: usize,
}

impl Map {
    fn stride(self) -> usize {
        (self.width + 2 * self.border) * self.channels
    }

    fn len(self) -> usize {
        (self.height + 2 * self.border) * self.stride()
    }

    /// Start of the first pixel of a row that is not border.
    fn row(self, y: usize) -> usize {
        (y + self.border) * self.stride() + self.border * self.channels
    }

    fn fill_border(self, data: &mut [u8], value: u8) {
        let (stride, edge) = (self.stride(), self.border * self.channels);
        let (first, last) = (self.border * stride, (self.border + self.height) * stride);
        data[..first].fill(value);
        data[last..self.len()].fill(value);
        for row in data[first..last].chunks_exact_mut(stride) {
            row[..edge].fill(value);
            row[stride - edge..].fill(value);
        }
    }
}

fn grow(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

impl Stack {
    /// Packs `layers` for `kernel`.
    ///
    /// # Panics
    /// If the layers do not follow each other or were not checked ([`ConvLayer::check`]).
    pub fn new(layers: Vec<ConvLayer>, kernel: Kernel) -> Self {
        assert!(layers.windows(2).all(|pair| pair[0].outputs == pair[1].inputs && pair[1].zero_point == 0));
        assert!(layers.iter().all(|layer| layer.check().is_ok()));
        let tile = AnyTile::new(kernel);
        let pairs = match tile {
            AnyTile::Portable(_) => portable::Portable::PAIRS,
            #[cfg(target_arch = "x86_64")]
            AnyTile::Avx2(_) => super::avx2::Avx2::PAIRS,
            #[cfg(target_arch = "aarch64")]
            AnyTile::Neon(_) => super::neon::Neon::PAIRS,
        };
        let layers = layers.into_iter().map(|layer| Packed::new(layer, pairs)).collect();
        Self { layers, kernel, tile }
    }

    /// The kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The layers, in order.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &ConvLayer> {
        self.layers.iter().map(|packed| &packed.layer)
    }

    /// Channels, height and width of the output.
    pub fn output_shape(&self, height: usize, width: usize) -> (usize, usize, usize) {
        let (height, width) = self.layers().fold((height, width), |(h, w), layer| layer.output_size(h, w));
        (self.layers.last().map_or(0, |packed| packed.layer.outputs), height, width)
    }

    /// Runs one picture: `input` is `[inputs, height, width]`, the result `[height, width, outputs]` (channels last), both u8.
    ///
    /// With `parallel`, rows are shared out over the rayon pool in which it is called; without, it makes no task at all.
    ///
    /// # Panics
    /// If `input` or `out` have other lengths.
    pub fn run(&self, arena: &mut Arena, input: &[u8], height: usize, width: usize, parallel: bool, out: &mut [u8]) {
        let Some(first) = self.layers.first() else { return };
        assert_eq!(input.len(), first.layer.inputs * height * width);
        let (outputs, out_height, out_width) = self.output_shape(height, width);
        assert_eq!(out.len(), outputs * out_height * out_width);

        let mut map = Map { height, width, channels: first.channels, border: 1 };
        let [source, target] = &mut arena.maps;
        let (mut source, mut target) = (source, target);
        load(input, first.layer.inputs, map, grow(source, map.len()));
        for (index, packed) in self.layers.iter().enumerate() {
            let data = &mut source[..map.len()];
            map.fill_border(data, packed.layer.zero_point);
            let (height, width) = packed.layer.output_size(map.height, map.width);
            // The last map goes to the caller, without border or filling.
            let last = index + 1 == self.layers.len();
            let next = Map {
                height,
                width,
                channels: if last { outputs } else { packed.layer.outputs.next_multiple_of(CHANNEL_STEP) },
                border: usize::from(!last),
            };
            let written = if last { &mut out[..] } else { grow(target, next.len()) };
            if packed.layer.pool {
                let flat = Map { height: map.height, width: map.width, channels: next.channels, border: 0 };
                let unpooled = grow(&mut arena.unpooled, flat.len());
                self.convolve(packed, data, map, parallel, unpooled, flat);
                max_pool(unpooled, flat, written, next);
            } else {
                self.convolve(packed, data, map, parallel, written, next);
            }
            map = next;
            std::mem::swap(&mut source, &mut target);
        }
    }

    fn convolve(&self, packed: &Packed, input: &[u8], from: Map, parallel: bool, out: &mut [u8], to: Map) {
        match self.tile {
            AnyTile::Portable(tile) => convolve(tile, packed, input, from, parallel, out, to),
            #[cfg(target_arch = "x86_64")]
            AnyTile::Avx2(tile) => convolve(tile, packed, input, from, parallel, out, to),
            #[cfg(target_arch = "aarch64")]
            AnyTile::Neon(tile) => convolve(tile, packed, input, from, parallel, out, to),
        }
    }
}

/// Planes to NHWC with room for borders; the channels that fill up are zero (their weights are too).
fn load(input: &[u8], inputs: usize, map: Map, data: &mut [u8]) {
    for y in 0..map.height {
        let row = &mut data[map.row(y)..][..map.width * map.channels];
        for (x, pixel) in row.chunks_exact_mut(map.channels).enumerate() {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = if channel < inputs { input[(channel * map.height + y) * map.width + x] } else { 0 };
            }
        }
    }
}

fn convolve<T: Tile>(tile: T, packed: &Packed, input: &[u8], from: Map, parallel: bool, out: &mut [u8], to: Map) {
    let rows_at_once = (BAND_VALUES / from.stride()).saturating_sub(2).max(1);
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let band = rows_at_once.min(from.height.div_ceil(threads));
    let body = &mut out[to.border * to.stride()..][..to.height * to.stride()];
    let work = |(index, rows): (usize, &mut [u8])| convolve_band(tile, packed, input, from, index * band, rows, to);
    if threads == 1 {
        body.chunks_mut(band * to.stride()).enumerate().for_each(work);
    } else {
        body.par_chunks_mut(band * to.stride()).enumerate().for_each(work);
    }
}

thread_local! {
    /// The widened rows of a band.
    static WIDE: std::cell::RefCell<Vec<i16>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Convolves the rows `first_row..` that `out` has room for.
fn convolve_band<T: Tile>(
    tile: T,
    packed: &Packed,
    input: &[u8],
    from: Map,
    first_row: usize,
    out: &mut [u8],
    to: Map,
) {
    let (stride, channels) = (from.stride(), from.channels);
    let rows = out.len() / to.stride();
    WIDE.with_borrow_mut(|wide| {
        wide.clear();
        wide.extend(input[first_row * stride..][..(rows + 2) * stride].iter().map(|&v| i16::from(v)));
        for block in 0..packed.blocks {
            for (y, out) in out.chunks_exact_mut(to.stride()).enumerate() {
                let out = &mut out[to.border * to.channels..];
                let rows: [&[i16]; 3] = std::array::from_fn(|dy| &wide[(y + dy) * stride..][..stride]);
                let mut x = 0;
                while x < from.width {
                    let at = rows.map(|row| &row[x * channels..]);
                    let pixels = &mut out[x * to.channels..];
                    x += match from.width - x {
                        PIXELS.. => run_tile::<T, PIXELS>(tile, packed, block, at, pixels, to.channels),
                        2.. => run_tile::<T, 2>(tile, packed, block, at, pixels, to.channels),
                        _ => run_tile::<T, 1>(tile, packed, block, at, pixels, to.channels),
                    };
                }
            }
        }
    });
}

#[inline(always)]
fn run_tile<T: Tile, const P: usize>(
    tile: T,
    packed: &Packed,
    block: usize,
    rows: [&[i16]; 3],
    out: &mut [u8],
    out_channels: usize,
) -> usize {
    let mut sums = [[0; BLOCK]; P];
    tile.tile(rows, packed.channels, packed.block(block), &mut sums);
    let bias = &packed.bias[block * BLOCK..][..BLOCK];
    let multipliers = &packed.multipliers[block * BLOCK..][..BLOCK];
    for (pixel, sums) in sums.iter().enumerate() {
        let lanes = BLOCK.min(out_channels - block * BLOCK);
        let out = &mut out[pixel * out_channels + block * BLOCK..][..lanes];
        for (((value, &sum), &bias), &multiplier) in out.iter_mut().zip(sums).zip(bias).zip(multipliers) {
            *value = requantise(sum.wrapping_add(bias), multiplier);
        }
    }
    P
}

fn max_pool(input: &[u8], from: Map, out: &mut [u8], to: Map) {
    let channels = from.channels;
    for y in 0..to.height {
        let above = &input[from.row(2 * y)..][..from.width * channels];
        let below = &input[from.row(2 * y + 1)..][..from.width * channels];
        let out = &mut out[to.row(y)..][..to.width * channels];
        for (x, pixel) in out.chunks_exact_mut(channels).enumerate() {
            let left = 2 * x * channels;
            let (a, b) = above[left..left + 2 * channels].split_at(channels);
            let (c, d) = below[left..left + 2 * channels].split_at(channels);
            for ((((value, a), b), c), d) in pixel.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *value = *a.max(b).max(c.max(d));
            }
        }
    }
}
