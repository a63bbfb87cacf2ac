//! How feature maps lie in memory between layers.

/// Channels of a block: neighbors in memory, computed at once.
pub(super) const BLOCK: usize = 16;

/// Outputs of a Winograd tile in each direction; maps have room for whole tiles.
pub(super) const TILE: usize = 4;

/// A u8 feature map of some pictures as `[channels / 16][picture][row][column][16]`.
///
/// Rows and columns are filled up to whole tiles, with a border of one pixel around. Border and
/// filling are 0, the zero point of every layer but the first (whose input is not kept in this
/// form). A map that [`crate::kernels::algo::dot`] reads holds `q - 128` in i8, border and filling
/// too: all its bytes have their highest bit flipped (`Packed::flip`).
#[derive(Clone, Copy)]
pub(super) struct Map {
    pub pictures: usize,
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

    /// Bytes of a row, border and filling included.
    pub fn stride(self) -> usize {
        (self.width.next_multiple_of(TILE) + 2) * BLOCK
    }

    /// Bytes of one block of channels of one picture.
    pub fn picture(self) -> usize {
        self.rows() * self.stride()
    }

    /// Bytes of one block of channels of all pictures.
    pub fn plane(self) -> usize {
        self.pictures * self.picture()
    }

    /// Bytes of all.
    pub fn len(self) -> usize {
        self.blocks() * self.plane()
    }

    /// Where a block of channels of a picture begins.
    pub fn start(self, block: usize, picture: usize) -> usize {
        block * self.plane() + picture * self.picture()
    }

    /// Where the pixel lies in its picture; `y` and `x` count from the border, so 1 is the first
    /// row.
    pub fn at(self, y: usize, x: usize) -> usize {
        y * self.stride() + x * BLOCK
    }

    /// Fills what lies around the pictures of a plane.
    pub fn clear_around(self, plane: &mut [u8], value: u8) {
        for picture in plane.chunks_exact_mut(self.picture()) {
            picture[..self.at(1, 0)].fill(value);
            picture[self.at(self.height + 1, 0)..].fill(value);
            for row in picture[self.at(1, 0)..].chunks_exact_mut(self.stride()).take(self.height) {
                row[..BLOCK].fill(value);
                row[(self.width + 1) * BLOCK..].fill(value);
            }
        }
    }
}
