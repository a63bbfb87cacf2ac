//! Decoded images: RGB8, rows without padding. Camera formats are in [`crate::pixel`].

pub mod decode;
pub mod resize;

use std::path::Path;

use crate::{Error, Result};

/// An image of `height` x `width` pixels, three bytes (R, G, B; 0 to 255) each, row by row.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Image {
    /// Reads and decodes an image file (JPEG, PNG, BMP, PNM, WebP). The content decides the
    /// format, not the extension.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; otherwise as [`Image::decode`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        decode::decode_file(path.as_ref())
    }

    /// Decodes the bytes of an image file.
    ///
    /// # Errors
    /// [`Error::Image`] if the bytes are not a whole image in a supported format;
    /// [`Error::ImageTooLarge`] beyond the limits in [`decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        decode::decode(bytes)
    }

    /// Creates an image from its pixels, `3 * width * height` bytes.
    ///
    /// # Errors
    /// [`Error::Image`] if a side is 0 or the length of `rgb` does not match.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 {
            return Err(Error::Image(format!("it has no pixels ({width}x{height})")));
        }
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if expected != Some(rgb.len()) {
            return Err(Error::Image(format!(
                "{width}x{height} pixels do not match {} bytes",
                rgb.len()
            )));
        }
        Ok(Self { width, height, rgb })
    }

    /// Returns the width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Returns the pixels, row by row, `R G B R G B ...`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// As [`Image::new`], if the length is right by construction.
    pub(crate) fn of_whole_rows(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        debug_assert_eq!(rgb.len(), 3 * width * height);
        Self { width, height, rgb }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({}x{})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_without_pixels_or_of_another_length_are_refused() {
        assert!(Image::new(0, 3, vec![]).is_err());
        assert!(Image::new(2, 2, vec![0; 11]).is_err());
    }
}
