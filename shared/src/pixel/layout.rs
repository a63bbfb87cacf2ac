//! The layout of a raw frame: format, size, stride and color.

use std::fmt;

use super::{Color, PixelFormat};
use crate::{Error, Result};

/// The size, format and color of a raw frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(super) format: PixelFormat,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) stride: usize,
    pub(super) color: Color,
}

impl Layout {
    /// Creates a layout of `width` x `height` pixels.
    ///
    /// `stride` is the distance between rows of the first plane in bytes; 0 stands for rows without
    /// padding. Chroma planes have the stride that V4L2 gives them: the same for
    /// [`PixelFormat::Nv12`], half for the planar formats.
    ///
    /// # Errors
    /// [`Error::Image`] if there are no pixels, a mosaic has fewer than 2x2 pixels, or the stride
    /// is shorter than a row; [`Error::ImageTooLarge`] beyond the limits of
    /// [`crate::image::decode`].
    pub fn new(
        format: PixelFormat,
        width: usize,
        height: usize,
        stride: usize,
        color: Color,
    ) -> Result<Self> {
        crate::image::decode::check_size(width as u64, height as u64)?;
        let least = if format.is_mosaic() { 2 } else { 1 };
        if width.min(height) < least {
            return Err(Error::Image(format!(
                "{width}x{height} pixels are too few for {}",
                format.name()
            )));
        }
        let row = format.row_bytes(width);
        let stride = if stride == 0 { row } else { stride };
        if stride < row || stride > 16 * row + 65536 {
            return Err(Error::Image(format!(
                "a stride of {stride} bytes does not match rows of {row} bytes"
            )));
        }
        Ok(Self { format, width, height, stride, color })
    }

    /// Returns the format.
    pub fn format(&self) -> PixelFormat {
        self.format
    }

    /// Returns the width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Returns the interpretation of the samples.
    pub fn color(&self) -> Color {
        self.color
    }

    /// Returns the same layout with another interpretation of the samples.
    #[must_use]
    pub fn with_color(self, color: Color) -> Self {
        Self { color, ..self }
    }

    /// Returns stride and rows of a chroma plane, 0 if there is none.
    pub(super) fn chroma(&self) -> (usize, usize) {
        let half = self.height.div_ceil(2);
        match self.format {
            PixelFormat::Nv12 | PixelFormat::Nv21 => (self.stride, half),
            PixelFormat::Yu12 | PixelFormat::Yv12 => (self.stride.div_ceil(2), half),
            PixelFormat::Yuv422p => (self.stride.div_ceil(2), self.height),
            PixelFormat::Yuv444p => (self.stride, self.height),
            _ => (0, 0),
        }
    }

    /// Returns the bytes of a frame.
    pub fn frame_bytes(&self) -> usize {
        let (stride, rows) = self.chroma();
        let planes =
            if matches!(self.format, PixelFormat::Nv12 | PixelFormat::Nv21) { 1 } else { 2 };
        self.stride * self.height + planes * stride * rows
    }

    /// Returns the fewest bytes that hold every pixel: drivers omit the padding of the last row.
    pub(super) fn least_len(&self) -> usize {
        let last = match self.format {
            PixelFormat::Yu12 | PixelFormat::Yv12 | PixelFormat::Yuv422p => self.width.div_ceil(2),
            _ => self.format.row_bytes(self.width),
        };
        let (chroma_stride, _) = self.chroma();
        let stride = if chroma_stride == 0 { self.stride } else { chroma_stride };
        self.frame_bytes() - (stride - last)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}x{}", self.format.name(), self.width, self.height)?;
        if self.format.is_ycbcr() && self.format != PixelFormat::Grey {
            write!(f, " {}", self.color)
        } else {
            Ok(())
        }
    }
}

/// Parses `FORMAT:WIDTHxHEIGHT[:STRIDE]`, as in `yuv420:640x480`; the color is the format's
/// [`default_color`].
///
/// # Errors
/// [`Error::Layout`] names the part that is wrong; [`Layout::new`] may fail too.
pub fn parse_layout(text: &str) -> Result<Layout> {
    let mut parts = text.split(':');
    let name = parts.next().unwrap_or_default();
    let format = PixelFormat::from_name(name).ok_or_else(|| {
        let names: Vec<String> = PixelFormat::all().map(PixelFormat::name).collect();
        Error::Layout(format!("unknown pixel format {name:?}; use one of {}", names.join(", ")))
    })?;
    let (width, height) = parts.next().and_then(parse_size).ok_or_else(|| {
        Error::Layout("a size such as 640x480 must follow the pixel format".into())
    })?;
    let stride = match parts.next() {
        Some(stride) => stride
            .parse()
            .map_err(|_| Error::Layout(format!("{stride:?} is not a stride in bytes")))?,
        None => 0,
    };
    if parts.next().is_some() {
        return Err(Error::Layout("too many parts; use FORMAT:WIDTHxHEIGHT[:STRIDE]".into()));
    }
    Layout::new(format, width, height, stride, default_color(format))
}

/// Returns the color of a format if nothing specifies it: full range for gray, as bare sensors
/// deliver it, and that of video for the rest.
pub fn default_color(format: PixelFormat) -> Color {
    if format == PixelFormat::Grey { Color::JPEG } else { Color::VIDEO }
}

/// Parses `WIDTHxHEIGHT`.
pub fn parse_size(text: &str) -> Option<(usize, usize)> {
    let (width, height) = text.split_once(['x', 'X'])?;
    Some((width.parse().ok()?, height.parse().ok()?))
}
