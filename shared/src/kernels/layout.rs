//! Memory layouts shared by algorithms and instruction sets: block sizes, feature maps, and packed
//! weights and inputs.
//!
//! This module depends on no other, so that everything else may depend on it.

use std::sync::Arc;

/// Channels of a block: neighbors in memory, computed at once.
pub(super) const BLOCK: usize = 16;

/// Weights of a filter for one input channel: 3 x 3.
pub(super) const TAPS: usize = 9;

/// Direct convolution pads its input channels with zeros to a multiple of this.
pub(super) const CHANNEL_STEP: usize = 4;

/// Rows and columns of outputs of a Winograd tile; maps have room for whole tiles.
pub(super) const TILE: usize = 4;

/// Rows and columns of inputs of a Winograd tile.
pub(super) const SIDE: usize = TILE + 2;

/// Values of a transformed Winograd tile: 6 x 6.
pub(super) const POSITIONS: usize = SIDE * SIDE;

/// Blocks of channels whose Winograd weights are transformed at a time.
pub(super) const CHUNK: usize = 4;

/// Tiles that the widest Winograd matrix product computes at once.
pub(super) const TILES: usize = 4;

/// Winograd tiles whose products are taken position by position: everything read and written on the
/// way is a run of a few hundred to a few thousand bytes, which stays in the nearest cache or is
/// prefetched.
pub(super) const PANEL: usize = 4 * TILES;

/// Pixels that the widest tile of dot products computes at once.
pub(super) const DOT_PIXELS: usize = 8;

/// The bit that turns u8 `q` into i8 `q - 128`, the form in which dot products read a map.
pub(super) const SIGN_BIT: u8 = 128;

/// One position of the transformed inputs of one Winograd tile and one block of channels.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(super) struct InputBlock(pub [i16; BLOCK]);

/// One position of the transformed Winograd weights of two channels and one block of outputs.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct WeightPair(pub [i16; 2 * BLOCK]);

/// The transformed inputs of a panel of tiles and a chunk of channels: `[position][tile][block of
/// channels]`.
///
/// The operands of a product are one run of memory, here and in [`WeightChunk`] and [`SumPanel`].
/// Each position ends with an unused cache line: at powers of two all positions would compete for
/// the same few cache sets.
pub(super) type InputPanel = [[InputBlock; PANEL * CHUNK + 2]; POSITIONS];

/// The transformed weights of up to a chunk of channels: `[position][pair of channels]`.
pub(super) type WeightChunk = [[WeightPair; CHUNK * BLOCK / 2 + 1]; POSITIONS];

/// The sums of products of one panel of tiles and one block of outputs: `[position][tile]`.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct SumPanel(pub [[[i32; BLOCK]; PANEL + 1]; POSITIONS]);

/// Dot product weights of sixteen inputs and one block of outputs:
/// `[input / 4][output][input % 4]`.
pub(super) type DotStep = [i8; BLOCK * BLOCK];

/// Dot product weights of one block of inputs and one block of outputs:
/// `[tap][channel / 4][output][channel % 4]`.
pub(super) type DotWeights = [DotStep; TAPS];

/// Inputs of one output of a first layer that is computed by dot products:
/// `[row][column][channel]`, padded with bytes whose weights are 0.
pub(super) type Patch = [u8; 2 * BLOCK];

/// An order of a layer's weights in memory.
///
/// `position` maps output channel, input channel and tap to an index below `len`; the indexes that
/// it leaves out are padding and hold 0.
pub(super) struct WeightLayout<F> {
    /// Input channels of the layer.
    pub inputs: usize,
    /// Output channels of the layer.
    pub outputs: usize,
    /// Values in memory, padding included.
    pub len: usize,
    /// Index of a weight.
    pub position: F,
}

impl<F: Fn(usize, usize, usize) -> usize> WeightLayout<F> {
    /// Reorders weights from `[outputs, inputs, 3, 3]`.
    pub fn pack(&self, weights: &[i8]) -> Vec<i8> {
        let mut packed = vec![0; self.len];
        self.for_each(|index, position| packed[position] = weights[index]);
        packed
    }

    /// Reorders weights back to `[outputs, inputs, 3, 3]`.
    pub fn unpack(&self, packed: &[i8]) -> Arc<[i8]> {
        let mut weights = vec![0; self.outputs * self.inputs * TAPS];
        self.for_each(|index, position| weights[index] = packed[position]);
        weights.into()
    }

    /// Calls `visit` with the index of each weight in `[outputs, inputs, 3, 3]` and in this order.
    fn for_each(&self, mut visit: impl FnMut(usize, usize)) {
        for output in 0..self.outputs {
            for channel in 0..self.inputs {
                for tap in 0..TAPS {
                    visit(
                        (output * self.inputs + channel) * TAPS + tap,
                        (self.position)(output, channel, tap),
                    );
                }
            }
        }
    }
}

/// A u8 feature map of a batch of images as `[channels / 16][image][row][column][16]`.
///
/// Rows and columns are padded to whole tiles, with a border of one pixel around. Border and
/// padding are 0, the zero point of every layer but the first (whose input is not kept in this
/// form). A map that is read by dot products holds `q - 128` in i8, border and padding too: all its
/// bytes have their highest bit flipped ([`SIGN_BIT`]).
#[derive(Clone, Copy)]
pub(super) struct Map {
    pub images: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

impl Map {
    /// Blocks of channels.
    pub fn blocks(self) -> usize {
        self.channels.div_ceil(BLOCK)
    }

    fn rows(self) -> usize {
        self.height.next_multiple_of(TILE) + 2
    }

    /// Bytes of a row, border and padding included.
    pub fn stride(self) -> usize {
        (self.width.next_multiple_of(TILE) + 2) * BLOCK
    }

    /// Bytes of one block of channels of one image.
    pub fn image_len(self) -> usize {
        self.rows() * self.stride()
    }

    /// Bytes of one block of channels of all images.
    pub fn plane_len(self) -> usize {
        self.images * self.image_len()
    }

    /// Bytes of the map.
    pub fn len(self) -> usize {
        self.blocks() * self.plane_len()
    }

    /// Offset of a block of channels of an image.
    pub fn start(self, block: usize, image: usize) -> usize {
        block * self.plane_len() + image * self.image_len()
    }

    /// Offset of a pixel within its image; `y` and `x` count from the border, so 1 is the first row
    /// or column.
    pub fn at(self, y: usize, x: usize) -> usize {
        y * self.stride() + x * BLOCK
    }

    /// Fills borders and padding of the images of a plane.
    pub fn fill_border(self, plane: &mut [u8], value: u8) {
        for image in plane.chunks_exact_mut(self.image_len()) {
            image[..self.at(1, 0)].fill(value);
            image[self.at(self.height + 1, 0)..].fill(value);
            for row in image[self.at(1, 0)..].chunks_exact_mut(self.stride()).take(self.height) {
                row[..BLOCK].fill(value);
                row[(self.width + 1) * BLOCK..].fill(value);
            }
        }
    }
}
