//! A decoded picture: RGB8, rows without padding. Camera formats are in [`crate::pixel`].

pub mod decode;
pub mod resize;

use crate::{Error, Result};

/// A picture of `height` x `width` pixels, three bytes (R, G, B; 0 to 255) each, row by row.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Image {
    /// Takes the pixels of a picture.
    ///
    /// # Errors
    /// [`Error::Picture`] if a side is 0 or `rgb` is not `3 * width * height` long.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 {
            return Err(Error::Picture(format!("it has no pixels ({width}x{height})")));
        }
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if expected != Some(rgb.len()) {
            return Err(Error::Picture(format!(
                "{width}x{height} pixels do not fit {} bytes",
                rgb.len()
            )));
        }
        Ok(Self { width, height, rgb })
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, row by row, `R G B R G B ...`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// As [`Image::new`], for pixels of which the number is right by construction.
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
    fn empty_pictures_are_refused() {
        assert!(Image::new(0, 3, vec![]).is_err());
        assert!(Image::new(2, 2, vec![0; 11]).is_err());
    }
}
