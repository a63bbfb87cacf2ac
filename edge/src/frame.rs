//! Frames as their sources deliver them: decoded pixels, a camera's raw samples, or a JPEG that is
//! not decoded yet.

use vgg_edge::image::decode::decode;
use vgg_edge::pixel::{Layout, Pixels, RawFrame};
use vgg_edge::{Image, Result};

/// A frame, in the form in which it arrived.
pub enum Frame {
    /// RGB8.
    Rgb(Image),
    /// Samples of a camera.
    Raw(Layout, Vec<u8>),
    /// A JPEG file, as Motion JPEG cameras deliver it.
    Jpeg(Vec<u8>),
}

impl Frame {
    /// Decodes a JPEG; returns other forms unchanged.
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
    /// [`vgg_edge::Error::Picture`] for too few raw samples, and for a JPEG that is not
    /// [`Frame::decoded`].
    pub fn with_pixels<T>(&self, f: impl FnOnce(&dyn Pixels) -> T) -> Result<T> {
        match self {
            Self::Rgb(image) => Ok(f(image)),
            Self::Raw(layout, bytes) => Ok(f(&RawFrame::new(*layout, bytes)?)),
            Self::Jpeg(bytes) => Ok(f(&decode(bytes)?)),
        }
    }

    /// Returns the memory for the next frame.
    pub fn into_buffer(self) -> Option<Vec<u8>> {
        match self {
            Self::Raw(_, bytes) | Self::Jpeg(bytes) => Some(bytes),
            Self::Rgb(_) => None,
        }
    }
}
