//! What a source gives: decoded pixels, a camera's raw samples, or a JPEG that is still to be
//! decoded.

use vgg_edge::image::decode::decode;
use vgg_edge::pixel::{Layout, Pixels, RawFrame};
use vgg_edge::{Image, Result};

/// A picture, in the form in which it came.
pub enum Picture {
    /// RGB8.
    Rgb(Image),
    /// Samples of a camera.
    Raw(Layout, Vec<u8>),
    /// A JPEG file, as Motion JPEG cameras give it.
    Jpeg(Vec<u8>),
}

impl Picture {
    /// Decodes a JPEG; the rest stays as it is.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn decoded(self) -> Result<Self> {
        match self {
            Self::Jpeg(bytes) => Ok(Self::Rgb(decode(&bytes)?)),
            other => Ok(other),
        }
    }

    /// Calls `f` with the pixels.
    ///
    /// # Errors
    /// [`vgg_edge::Error::Image`] for raw samples that are too few, and for a JPEG that is not
    /// [`Picture::decoded`].
    pub fn with_pixels<T>(&self, f: impl FnOnce(&dyn Pixels) -> T) -> Result<T> {
        match self {
            Self::Rgb(frame) => Ok(f(frame)),
            Self::Raw(layout, bytes) => Ok(f(&RawFrame::new(*layout, bytes)?)),
            Self::Jpeg(bytes) => Ok(f(&decode(bytes)?)),
        }
    }

    /// Gives the memory back for the next frame.
    pub fn into_buffer(self) -> Option<Vec<u8>> {
        match self {
            Self::Raw(_, bytes) | Self::Jpeg(bytes) => Some(bytes),
            Self::Rgb(_) => None,
        }
    }
}
