//! Pixels in the formats of cameras and video, read one row at a time, so that only the used part
//! of an image is converted.
//!
//! The resizer reads through [`Pixels`]: rows of R, G and B in planes. [`Image`] implements it for
//! RGB8, [`RawFrame`] for camera formats, in integers, so that the bits are the same on every CPU.

mod bayer;
mod color;
mod format;
mod layout;
#[cfg(test)]
mod tests;
mod yuv;

use crate::{Error, Image, Result};

pub use color::{Color, Matrix, Range};
pub use format::PixelFormat;
pub use layout::{Layout, default_color, parse_layout, parse_size};

/// An image that is read by rows.
pub trait Pixels {
    /// Returns the width in pixels.
    fn width(&self) -> usize;

    /// Returns the height in pixels.
    fn height(&self) -> usize;

    /// Writes the pixels `x..x + n` of row `y` into three planes of `n` values, R, G and B, each 0
    /// to 255.
    ///
    /// # Panics
    /// If the pixels do not lie within the image, or the planes differ in length.
    fn row(&self, y: usize, x: usize, planes: [&mut [i16]; 3]);
}

impl Pixels for Image {
    fn width(&self) -> usize {
        self.width()
    }

    fn height(&self) -> usize {
        self.height()
    }

    fn row(&self, y: usize, x: usize, [r, g, b]: [&mut [i16]; 3]) {
        let row = &self.rgb()[3 * (y * self.width() + x)..][..3 * r.len()];
        for (((pixel, r), g), b) in row.chunks_exact(3).zip(r).zip(g).zip(b) {
            (*r, *g, *b) = (pixel[0].into(), pixel[1].into(), pixel[2].into());
        }
    }
}

/// The bytes of a frame with their layout.
#[derive(Clone, Copy)]
pub struct RawFrame<'a> {
    layout: Layout,
    bytes: &'a [u8],
}

impl<'a> RawFrame<'a> {
    /// Creates a frame from its bytes. Bytes after the frame are ignored.
    ///
    /// # Errors
    /// [`Error::Image`] if there are too few bytes.
    pub fn new(layout: Layout, bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() < layout.least_len() {
            return Err(Error::Image(format!(
                "{} bytes are too few for {layout}, which takes {}",
                bytes.len(),
                layout.frame_bytes()
            )));
        }
        Ok(Self { layout, bytes })
    }

    /// Returns the layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Converts the whole frame to RGB8.
    pub fn to_frame(&self) -> Image {
        to_frame(self)
    }
}

impl Pixels for RawFrame<'_> {
    fn width(&self) -> usize {
        self.layout.width
    }

    fn height(&self) -> usize {
        self.layout.height
    }

    fn row(&self, y: usize, x: usize, planes: [&mut [i16]; 3]) {
        let Layout { format, width, height, stride, color } = self.layout;
        let [r, g, b] = planes;
        let n = r.len();
        assert!(y < height && x + n <= width && g.len() == n && b.len() == n);
        match format {
            PixelFormat::Rgb3 | PixelFormat::Bgr3 => {
                let row = &self.bytes[y * stride + 3 * x..][..3 * n];
                let (first, last) = if format == PixelFormat::Rgb3 { (r, b) } else { (b, r) };
                for (((pixel, first), g), last) in row.chunks_exact(3).zip(first).zip(g).zip(last) {
                    (*first, *g, *last) = (pixel[0].into(), pixel[1].into(), pixel[2].into());
                }
            }
            _ if format.is_mosaic() => bayer::read_row(self, y, x, [r, g, b]),
            _ => {
                yuv::read_row(self, y, x, [r, g, b]);
                if format == PixelFormat::Grey && color.range == Range::Full {
                    g.copy_from_slice(r);
                    b.copy_from_slice(r);
                    return;
                }
                color::convert(color.coefficients(), r, g, b);
            }
        }
    }
}

/// Converts any image to RGB8.
pub fn to_frame(pixels: &dyn Pixels) -> Image {
    let (width, height) = (pixels.width(), pixels.height());
    let mut planes = vec![0i16; 3 * width];
    let (r, rest) = planes.split_at_mut(width);
    let (g, b) = rest.split_at_mut(width);
    let mut rgb = vec![0; 3 * width * height];
    for (y, out) in rgb.chunks_exact_mut((3 * width).max(1)).enumerate() {
        pixels.row(y, 0, [&mut *r, &mut *g, &mut *b]);
        for (((pixel, &r), &g), &b) in out.chunks_exact_mut(3).zip(&*r).zip(&*g).zip(&*b) {
            pixel.copy_from_slice(&[r as u8, g as u8, b as u8]);
        }
    }
    Image::of_whole_rows(width, height, rgb)
}
