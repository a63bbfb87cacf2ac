//! Pixels as cameras and video give them, read a row at a time; no picture is converted that is not
//! looked at.
//!
//! [`Pixels`] is what the resizer reads: rows of R, G and B in planes. [`Image`] gives them from
//! RGB8, [`RawFrame`] straight from a camera's format, in integers, so that both give the same bits
//! on every CPU. Formats bear the names that V4L2 gives them
//! (<https://docs.kernel.org/userspace-api/media/v4l/pixfmt.html>).

use std::fmt;

use crate::{Error, Image, Result, multiversion};

/// A picture that can be read by rows.
pub trait Pixels {
    /// Width in pixels.
    fn width(&self) -> usize;

    /// Height in pixels.
    fn height(&self) -> usize;

    /// Writes the pixels `x..x + n` of row `y` into three planes of `n` values, R, G and B, each 0
    /// to 255.
    ///
    /// # Panics
    /// If they do not lie within the picture, or the planes differ in length.
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

multiversion! {
    /// Planes of Y, Cb and Cr to R, G and B, in place.
    fn convert(coefficients: Coefficients, y: &mut [i16], cb: &mut [i16], cr: &mut [i16]) {
        for ((y, cb), cr) in y.iter_mut().zip(cb).zip(cr) {
            [*y, *cb, *cr] = coefficients.rgb(*y, *cb, *cr);
        }
    }
}

/// How samples of a camera lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// `Y0 Cb Y1 Cr`, 4:2:2.
    Yuyv,
    /// `Cb Y0 Cr Y1`, 4:2:2.
    Uyvy,
    /// `Y0 Cr Y1 Cb`, 4:2:2.
    Yvyu,
    /// `Cr Y0 Cb Y1`, 4:2:2.
    Vyuy,
    /// A plane of Y, then one of `Cb Cr`, 4:2:0.
    Nv12,
    /// A plane of Y, then one of `Cr Cb`, 4:2:0.
    Nv21,
    /// Planes of Y, Cb and Cr, 4:2:0.
    Yu12,
    /// Planes of Y, Cr and Cb, 4:2:0.
    Yv12,
    /// Planes of Y, Cb and Cr, 4:2:2.
    Yuv422p,
    /// Planes of Y, Cb and Cr, 4:4:4.
    Yuv444p,
    /// `R G B`.
    Rgb3,
    /// `B G R`.
    Bgr3,
    /// One sample, grey.
    Grey,
    /// A bare sensor's mosaic that begins `B G`.
    Bggr,
    /// A bare sensor's mosaic that begins `G B`.
    Gbrg,
    /// A bare sensor's mosaic that begins `G R`.
    Grbg,
    /// A bare sensor's mosaic that begins `R G`.
    Rggb,
}

type Entry = (PixelFormat, Option<[u8; 4]>, &'static [&'static str]);

/// Every format: itself, its fourcc in V4L2 (none for one that V4L2 lacks), and other names for it,
/// lower case.
const FORMATS: [Entry; 17] = [
    (PixelFormat::Yuyv, Some(*b"YUYV"), &["yuyv", "yuyv422", "yuy2"]),
    (PixelFormat::Uyvy, Some(*b"UYVY"), &["uyvy", "uyvy422"]),
    (PixelFormat::Yvyu, Some(*b"YVYU"), &["yvyu", "yvyu422"]),
    (PixelFormat::Vyuy, Some(*b"VYUY"), &["vyuy"]),
    (PixelFormat::Nv12, Some(*b"NV12"), &["nv12"]),
    (PixelFormat::Nv21, Some(*b"NV21"), &["nv21"]),
    (PixelFormat::Yu12, Some(*b"YU12"), &["yu12", "yuv420", "yuv420p", "i420"]),
    (PixelFormat::Yv12, Some(*b"YV12"), &["yv12", "yvu420"]),
    (PixelFormat::Yuv422p, Some(*b"422P"), &["422p", "yuv422p"]),
    (PixelFormat::Yuv444p, None, &["yuv444p"]),
    (PixelFormat::Rgb3, Some(*b"RGB3"), &["rgb3", "rgb24", "rgb"]),
    (PixelFormat::Bgr3, Some(*b"BGR3"), &["bgr3", "bgr24", "bgr"]),
    (PixelFormat::Grey, Some(*b"GREY"), &["grey", "gray", "y8"]),
    (PixelFormat::Bggr, Some(*b"BA81"), &["ba81", "bggr", "bayer_bggr8"]),
    (PixelFormat::Gbrg, Some(*b"GBRG"), &["gbrg", "bayer_gbrg8"]),
    (PixelFormat::Grbg, Some(*b"GRBG"), &["grbg", "bayer_grbg8"]),
    (PixelFormat::Rggb, Some(*b"RGGB"), &["rggb", "bayer_rggb8"]),
];

impl PixelFormat {
    /// All formats.
    pub fn all() -> impl Iterator<Item = Self> {
        FORMATS.iter().map(|&(format, ..)| format)
    }

    /// The code that V4L2 has for it.
    pub fn fourcc(self) -> Option<[u8; 4]> {
        FORMATS.iter().find(|(format, ..)| *format == self).and_then(|&(_, fourcc, _)| fourcc)
    }

    /// The format with that code.
    pub fn from_fourcc(fourcc: [u8; 4]) -> Option<Self> {
        FORMATS.iter().find(|(_, code, _)| *code == Some(fourcc)).map(|&(format, ..)| format)
    }

    /// The format of that name: V4L2's, or those that ffmpeg and rpicam-apps use; in upper or lower
    /// case.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        FORMATS.iter().find(|(.., names)| names.contains(&&*name)).map(|&(format, ..)| format)
    }

    /// The name in messages.
    pub fn name(self) -> String {
        let names = FORMATS
            .iter()
            .find(|(format, ..)| *format == self)
            .map_or(&[][..], |(.., names)| names);
        names.first().copied().unwrap_or_default().to_ascii_uppercase()
    }

    /// Whether samples are brightness and color difference, and so need a [`Color`].
    pub fn is_ycbcr(self) -> bool {
        !matches!(self, Self::Rgb3 | Self::Bgr3) && !self.is_mosaic()
    }

    fn is_mosaic(self) -> bool {
        matches!(self, Self::Bggr | Self::Gbrg | Self::Grbg | Self::Rggb)
    }

    /// Bytes of a row of `width` pixels without padding, in the first plane.
    pub fn row_bytes(self, width: usize) -> usize {
        match self {
            Self::Yuyv | Self::Uyvy | Self::Yvyu | Self::Vyuy => 4 * width.div_ceil(2),
            // The plane of chroma has as many bytes a row, and those come in pairs.
            Self::Nv12 | Self::Nv21 => 2 * width.div_ceil(2),
            Self::Rgb3 | Self::Bgr3 => 3 * width,
            _ => width,
        }
    }
}

/// The matrix between R'G'B' and Y'CbCr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// ITU-R BT.601: webcams, JPEG, standard definition.
    Bt601,
    /// ITU-R BT.709: high definition.
    Bt709,
}

/// The range of Y'CbCr samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// 0 to 255, as JPEG (JFIF) has it.
    Full,
    /// 16 to 235 for luma and 16 to 240 for chroma, as video has it.
    Limited,
}

/// What Y'CbCr samples mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Color {
    /// The matrix.
    pub matrix: Matrix,
    /// The range.
    pub range: Range,
}

impl Color {
    /// BT.601 in limited range: what video is unless it says otherwise.
    pub const VIDEO: Self = Self { matrix: Matrix::Bt601, range: Range::Limited };
    /// BT.601 in full range: JPEG.
    pub const JPEG: Self = Self { matrix: Matrix::Bt601, range: Range::Full };

    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::VIDEO,
        Self::JPEG,
        Self { matrix: Matrix::Bt709, range: Range::Limited },
        Self { matrix: Matrix::Bt709, range: Range::Full },
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match (self.matrix, self.range) {
            (Matrix::Bt601, Range::Limited) => "bt601",
            (Matrix::Bt601, Range::Full) => "bt601-full",
            (Matrix::Bt709, Range::Limited) => "bt709",
            (Matrix::Bt709, Range::Full) => "bt709-full",
        }
    }

    /// The color of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|color| color.name() == name)
    }

    /// The coefficients in 16-bit fixed point.
    fn coefficients(self) -> Coefficients {
        let (offset, y) = match self.range {
            Range::Full => (0, 65536),
            // 255/219; chroma is stretched by 255/224 below.
            Range::Limited => (16, 76309),
        };
        let [rv, gu, gv, bu] = match (self.matrix, self.range) {
            (Matrix::Bt601, Range::Full) => [91_881, 22_554, 46_802, 116_130],
            (Matrix::Bt601, Range::Limited) => [104_597, 25_675, 53_279, 132_201],
            (Matrix::Bt709, Range::Full) => [103_206, 12_276, 30_679, 121_609],
            (Matrix::Bt709, Range::Limited) => [117_489, 13_975, 34_925, 138_438],
        };
        Coefficients { offset, y, rv, gu, gv, bu }
    }

    /// One pixel, in 16-bit fixed point, rounded to nearest and clamped; the same integers on every
    /// CPU.
    pub fn rgb(self, y: u8, cb: u8, cr: u8) -> [u8; 3] {
        self.coefficients().rgb(y.into(), cb.into(), cr.into()).map(|v| v as u8)
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, Copy)]
struct Coefficients {
    offset: i32,
    y: i32,
    rv: i32,
    gu: i32,
    gv: i32,
    bu: i32,
}

impl Coefficients {
    #[inline(always)]
    fn rgb(self, y: i16, cb: i16, cr: i16) -> [i16; 3] {
        let y = (i32::from(y) - self.offset) * self.y;
        let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
        let pixel = |v: i32| ((v + 32768) >> 16).clamp(0, 255) as i16;
        [pixel(y + self.rv * cr), pixel(y - self.gu * cb - self.gv * cr), pixel(y + self.bu * cb)]
    }
}

multiversion! {
    /// Pairs of pixels that share chroma, in groups of four bytes; `offsets` of the first luma (the
    /// second is two further), Cb and Cr.
    fn packed(groups: &[u8], offsets: [usize; 3], luma: &mut [i16], cb: &mut [i16], cr: &mut [i16]) {
        let even = luma.len() / 2 * 2;
        let pairs = groups.chunks_exact(4).zip(luma[..even].chunks_exact_mut(2));
        // With the offsets known the compiler takes the bytes apart in vectors.
        macro_rules! split {
            ($at:literal, $u:literal, $v:literal) => {
                for ((group, luma), (cb, cr)) in pairs.zip(cb[..even].chunks_exact_mut(2).zip(cr[..even].chunks_exact_mut(2))) {
                    (luma[0], luma[1]) = (group[$at].into(), group[$at + 2].into());
                    (cb[0], cb[1]) = (group[$u].into(), group[$u].into());
                    (cr[0], cr[1]) = (group[$v].into(), group[$v].into());
                }
            };
        }
        match offsets {
            [0, 1, 3] => split!(0, 1, 3),
            [0, 3, 1] => split!(0, 3, 1),
            [1, 0, 2] => split!(1, 0, 2),
            _ => split!(1, 2, 0),
        }
        if even < luma.len() {
            let group = &groups[2 * even..];
            let [at, u, v] = offsets;
            (luma[even], cb[even], cr[even]) = (group[at].into(), group[u].into(), group[v].into());
        }
    }
}

/// Size, format and meaning of a raw frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    format: PixelFormat,
    width: usize,
    height: usize,
    stride: usize,
    color: Color,
}

impl Layout {
    /// A layout; `stride` is the bytes from row to row of the first plane, without padding if it is
    /// 0. Planes of chroma have the stride that V4L2 gives them: as many bytes for
    /// [`PixelFormat::Nv12`], half for the planar formats.
    ///
    /// # Errors
    /// [`Error::Picture`] for no pixels, a mosaic below 2x2 pixels, a stride that is shorter than a
    /// row; [`Error::PictureTooLarge`] beyond the limits of [`crate::image::decode`].
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
            return Err(Error::Picture(format!(
                "{width}x{height} pixels are too few for {}",
                format.name()
            )));
        }
        let row = format.row_bytes(width);
        let stride = if stride == 0 { row } else { stride };
        if stride < row || stride > 16 * row + 65536 {
            return Err(Error::Picture(format!(
                "a stride of {stride} bytes does not go with rows of {row} bytes"
            )));
        }
        Ok(Self { format, width, height, stride, color })
    }

    /// The format.
    pub fn format(&self) -> PixelFormat {
        self.format
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// What the samples mean.
    pub fn color(&self) -> Color {
        self.color
    }

    /// The same layout of samples that mean something else.
    #[must_use]
    pub fn with_color(self, color: Color) -> Self {
        Self { color, ..self }
    }

    /// Stride and rows of a plane of chroma, 0 where there is none.
    fn chroma(&self) -> (usize, usize) {
        let half = self.height.div_ceil(2);
        match self.format {
            PixelFormat::Nv12 | PixelFormat::Nv21 => (self.stride, half),
            PixelFormat::Yu12 | PixelFormat::Yv12 => (self.stride.div_ceil(2), half),
            PixelFormat::Yuv422p => (self.stride.div_ceil(2), self.height),
            PixelFormat::Yuv444p => (self.stride, self.height),
            _ => (0, 0),
        }
    }

    /// Bytes of a frame.
    pub fn frame_bytes(&self) -> usize {
        let (stride, rows) = self.chroma();
        let planes =
            if matches!(self.format, PixelFormat::Nv12 | PixelFormat::Nv21) { 1 } else { 2 };
        self.stride * self.height + planes * stride * rows
    }

    /// Fewest bytes that hold every pixel: drivers leave out the padding of the last row.
    fn least_len(&self) -> usize {
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

/// The bytes of a frame with their layout.
#[derive(Clone, Copy)]
pub struct RawFrame<'a> {
    layout: Layout,
    bytes: &'a [u8],
}

impl<'a> RawFrame<'a> {
    /// Joins both.
    ///
    /// # Errors
    /// [`Error::Picture`] if bytes are missing; more than needed are left alone.
    pub fn new(layout: Layout, bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() < layout.least_len() {
            return Err(Error::Picture(format!(
                "{} bytes are too few for {layout}: {}",
                bytes.len(),
                layout.frame_bytes()
            )));
        }
        Ok(Self { layout, bytes })
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The whole frame as RGB8.
    pub fn to_frame(&self) -> Image {
        to_frame(self)
    }

    /// `n` samples of a plane of chroma that has one sample for `across` pixels, repeated; `step`
    /// and `offset` are those within a group.
    fn spread(row: &[u8], x: usize, across: usize, step: usize, offset: usize, out: &mut [i16]) {
        if across == 1 {
            for (out, &sample) in out.iter_mut().zip(&row[x..]) {
                *out = sample.into();
            }
            return;
        }
        let odd = out.len().min(x % 2);
        let (first, out) = out.split_at_mut(odd);
        first.fill(row[x / 2 * step + offset].into());
        let group = x / 2 + odd;
        let mut pairs = out.chunks_exact_mut(2);
        let mut groups = row[(group * step).min(row.len())..].chunks_exact(step);
        for (pair, samples) in (&mut pairs).zip(&mut groups) {
            pair.fill(samples[offset].into());
        }
        if let [last] = pairs.into_remainder() {
            let samples = groups.next().unwrap_or_else(|| groups.remainder());
            *last = samples[offset].into();
        }
    }

    /// Planes of Y, Cb and Cr of a part of a row.
    fn ycbcr_row(&self, y: usize, x: usize, [luma, cb, cr]: [&mut [i16]; 3]) {
        let Layout { format, stride, width, .. } = self.layout;
        let row = &self.bytes[y * stride..][..format.row_bytes(width)];
        let (chroma_stride, chroma_rows) = self.layout.chroma();
        let plane = |index: usize, y: usize| {
            let at = stride * self.layout.height
                + index * chroma_stride * chroma_rows
                + y * chroma_stride;
            &self.bytes[at..]
        };
        let copy = |out: &mut [i16], step: usize, offset: usize| {
            for (out, samples) in out.iter_mut().zip(row[x * step..].chunks_exact(step)) {
                *out = samples[offset].into();
            }
        };
        let half = 2 * width.div_ceil(2);
        match format {
            PixelFormat::Yuyv | PixelFormat::Uyvy | PixelFormat::Yvyu | PixelFormat::Vyuy => {
                let (at, [u, v]) = match format {
                    PixelFormat::Yuyv => (0, [1, 3]),
                    PixelFormat::Yvyu => (0, [3, 1]),
                    PixelFormat::Uyvy => (1, [0, 2]),
                    _ => (1, [2, 0]),
                };
                // An odd first pixel is the second of its pair.
                let odd = (x % 2).min(luma.len());
                if odd == 1 {
                    let group = &row[x / 2 * 4..];
                    (luma[0], cb[0], cr[0]) =
                        (group[2 + at].into(), group[u].into(), group[v].into());
                }
                packed(
                    &row[(x / 2 + odd) * 4..],
                    [at, u, v],
                    &mut luma[odd..],
                    &mut cb[odd..],
                    &mut cr[odd..],
                );
            }
            PixelFormat::Nv12 | PixelFormat::Nv21 => {
                let [u, v] = if format == PixelFormat::Nv12 { [0, 1] } else { [1, 0] };
                let chroma = &plane(0, y / 2)[..half];
                copy(luma, 1, 0);
                Self::spread(chroma, x, 2, 2, u, cb);
                Self::spread(chroma, x, 2, 2, v, cr);
            }
            PixelFormat::Yu12 | PixelFormat::Yv12 | PixelFormat::Yuv422p => {
                let [u, v] = if format == PixelFormat::Yv12 { [1, 0] } else { [0, 1] };
                let y = if format == PixelFormat::Yuv422p { y } else { y / 2 };
                copy(luma, 1, 0);
                Self::spread(&plane(u, y)[..half / 2], x, 2, 1, 0, cb);
                Self::spread(&plane(v, y)[..half / 2], x, 2, 1, 0, cr);
            }
            PixelFormat::Yuv444p => {
                copy(luma, 1, 0);
                Self::spread(&plane(0, y)[..width], x, 1, 1, 0, cb);
                Self::spread(&plane(1, y)[..width], x, 1, 1, 0, cr);
            }
            _ => {
                copy(luma, 1, 0);
                cb.fill(128);
                cr.fill(128);
            }
        }
    }

    /// A mosaic, each missing color the mean of its nearest neighbors, mirrored at the edges (which
    /// keeps the pattern).
    fn mosaic_row(&self, y: usize, x: usize, planes: [&mut [i16]; 3]) {
        let Layout { format, stride, width, height, .. } = self.layout;
        // Where red is, in the pattern of 2x2.
        let (red_x, red_y) = match format {
            PixelFormat::Rggb => (0, 0),
            PixelFormat::Grbg => (1, 0),
            PixelFormat::Gbrg => (0, 1),
            _ => (1, 1),
        };
        let mirror = |at: usize, by: isize, size: usize| match at.checked_add_signed(by) {
            None => 1,
            Some(at) if at >= size => size - 2,
            Some(at) => at,
        };
        let row = |by: isize| &self.bytes[mirror(y, by, height) * stride..][..width];
        let (above, here, below) = (row(-1), row(0), row(1));
        let [r, g, b] = planes;
        for (at, ((r, g), b)) in r.iter_mut().zip(g).zip(b).enumerate() {
            let x = x + at;
            let (left, right) = (mirror(x, -1, width), mirror(x, 1, width));
            let value = |row: &[u8], x: usize| i16::from(row[x]);
            let across = value(here, left) + value(here, right);
            let down = value(above, x) + value(below, x);
            let corners =
                value(above, left) + value(above, right) + value(below, left) + value(below, right);
            let center = value(here, x);
            let (on_red_column, on_red_row) = (x % 2 == red_x, y % 2 == red_y);
            let (red, green, blue) = match (on_red_column, on_red_row) {
                (true, true) => (center, (across + down + 2) / 4, (corners + 2) / 4),
                (false, false) => ((corners + 2) / 4, (across + down + 2) / 4, center),
                (false, true) => ((across + 1) / 2, center, (down + 1) / 2),
                (true, false) => ((down + 1) / 2, center, (across + 1) / 2),
            };
            (*r, *g, *b) = (red, green, blue);
        }
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
            _ if format.is_mosaic() => self.mosaic_row(y, x, [r, g, b]),
            _ => {
                self.ycbcr_row(y, x, [r, g, b]);
                if format == PixelFormat::Grey && color.range == Range::Full {
                    g.copy_from_slice(r);
                    b.copy_from_slice(r);
                    return;
                }
                convert(color.coefficients(), r, g, b);
            }
        }
    }
}

/// Any picture as RGB8.
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

/// `FORMAT:WIDTHxHEIGHT[:STRIDE]` on the command line, as `yuv420:640x480`; with the format's
/// [`default_color`].
///
/// # Errors
/// A sentence on what is wrong.
pub fn parse_layout(text: &str) -> Result<Layout, String> {
    let mut parts = text.split(':');
    let format = parts.next().unwrap_or_default();
    let format = PixelFormat::from_name(format).ok_or_else(|| {
        let names: Vec<String> = PixelFormat::all().map(PixelFormat::name).collect();
        format!("no format {format:?}; there are {}", names.join(", "))
    })?;
    let (width, height) =
        parts.next().and_then(parse_size).ok_or("a size such as 640x480 must follow the format")?;
    let stride = match parts.next() {
        Some(stride) => stride.parse().map_err(|_| format!("{stride:?} is no stride in bytes"))?,
        None => 0,
    };
    if parts.next().is_some() {
        return Err("too many parts; it is FORMAT:WIDTHxHEIGHT[:STRIDE]".into());
    }
    Layout::new(format, width, height, stride, default_color(format)).map_err(|e| e.to_string())
}

/// What samples mean that nobody has told more of: grey is full range, as bare sensors give it, the
/// rest is video.
pub fn default_color(format: PixelFormat) -> Color {
    if format == PixelFormat::Grey { Color::JPEG } else { Color::VIDEO }
}

/// `WIDTHxHEIGHT`.
pub fn parse_size(text: &str) -> Option<(usize, usize)> {
    let (width, height) = text.split_once(['x', 'X'])?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn primaries() {
        let rgb = |color: Color, y, cb, cr| color.rgb(y, cb, cr);
        assert_eq!(rgb(Color::JPEG, 0, 128, 128), [0, 0, 0]);
        assert_eq!(rgb(Color::JPEG, 255, 128, 128), [255, 255, 255]);
        assert_eq!(rgb(Color::JPEG, 76, 85, 255), [254, 0, 0]);
        assert_eq!(rgb(Color::VIDEO, 16, 128, 128), [0, 0, 0]);
        assert_eq!(rgb(Color::VIDEO, 235, 128, 128), [255, 255, 255]);
        assert_eq!(rgb(Color::VIDEO, 81, 90, 240), [254, 0, 0]);
        let hd = Color { matrix: Matrix::Bt709, range: Range::Limited };
        assert_eq!(rgb(hd, 63, 102, 240), [255, 1, 0]);
        assert_eq!(rgb(hd, 32, 240, 118), [1, 0, 255]);
    }

    #[test]
    fn within_one_of_the_real_numbers() {
        for color in Color::ALL {
            let (kr, kb) =
                if color.matrix == Matrix::Bt601 { (0.299, 0.114) } else { (0.2126, 0.0722) };
            let (offset, luma, chroma) = match color.range {
                Range::Full => (0.0, 1.0, 1.0),
                Range::Limited => (16.0, 255.0 / 219.0, 255.0 / 224.0),
            };
            let step = if cfg!(miri) { 85 } else { 5 };
            for (y, cb, cr) in (0..=255u8).step_by(step).flat_map(|y| {
                (0..=255u8)
                    .step_by(15)
                    .flat_map(move |cb| (0..=255u8).step_by(15).map(move |cr| (y, cb, cr)))
            }) {
                let (y_, u, v) = (
                    luma * (f64::from(y) - offset),
                    chroma * (f64::from(cb) - 128.0),
                    chroma * (f64::from(cr) - 128.0),
                );
                let (r, b) = (y_ + 2.0 * (1.0 - kr) * v, y_ + 2.0 * (1.0 - kb) * u);
                let g = (y_ - kr * r - kb * b) / (1.0 - kr - kb);
                for (got, want) in color.rgb(y, cb, cr).into_iter().zip([r, g, b]) {
                    assert!(
                        (f64::from(got) - want.clamp(0.0, 255.0)).abs() <= 0.51,
                        "{color} {y} {cb} {cr}"
                    );
                }
            }
        }
    }

    fn bytes(n: usize, seed: u32) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed.into());
        (0..n).map(|_| random.u8(..)).collect()
    }

    /// The definition of each format, a sample at a time.
    fn naive(layout: &Layout, bytes: &[u8], x: usize, y: usize) -> [u8; 3] {
        use PixelFormat as F;
        let Layout { format, width, height, stride, color } = *layout;
        let at = |plane: usize, stride: usize, y: usize, x: usize| bytes[plane + y * stride + x];
        let luma_end = stride * height;
        let (pair, half) = (x / 2, stride.div_ceil(2));
        let second = luma_end + half * height.div_ceil(2);
        let ycbcr = |y: u8, cb: u8, cr: u8| color.rgb(y, cb, cr);
        match format {
            F::Yuyv => ycbcr(
                at(0, stride, y, 2 * x),
                at(0, stride, y, 4 * pair + 1),
                at(0, stride, y, 4 * pair + 3),
            ),
            F::Yvyu => ycbcr(
                at(0, stride, y, 2 * x),
                at(0, stride, y, 4 * pair + 3),
                at(0, stride, y, 4 * pair + 1),
            ),
            F::Uyvy => ycbcr(
                at(0, stride, y, 2 * x + 1),
                at(0, stride, y, 4 * pair),
                at(0, stride, y, 4 * pair + 2),
            ),
            F::Vyuy => ycbcr(
                at(0, stride, y, 2 * x + 1),
                at(0, stride, y, 4 * pair + 2),
                at(0, stride, y, 4 * pair),
            ),
            F::Nv12 => {
                let (cb, cr) = (
                    at(luma_end, stride, y / 2, 2 * pair),
                    at(luma_end, stride, y / 2, 2 * pair + 1),
                );
                ycbcr(at(0, stride, y, x), cb, cr)
            }
            F::Nv21 => {
                let (cr, cb) = (
                    at(luma_end, stride, y / 2, 2 * pair),
                    at(luma_end, stride, y / 2, 2 * pair + 1),
                );
                ycbcr(at(0, stride, y, x), cb, cr)
            }
            F::Yu12 => ycbcr(
                at(0, stride, y, x),
                at(luma_end, half, y / 2, pair),
                at(second, half, y / 2, pair),
            ),
            F::Yv12 => ycbcr(
                at(0, stride, y, x),
                at(second, half, y / 2, pair),
                at(luma_end, half, y / 2, pair),
            ),
            F::Yuv422p => {
                let second = luma_end + half * height;
                ycbcr(at(0, stride, y, x), at(luma_end, half, y, pair), at(second, half, y, pair))
            }
            F::Yuv444p => ycbcr(
                at(0, stride, y, x),
                at(luma_end, stride, y, x),
                at(2 * luma_end, stride, y, x),
            ),
            F::Rgb3 => [0, 1, 2].map(|c| at(0, stride, y, 3 * x + c)),
            F::Bgr3 => [2, 1, 0].map(|c| at(0, stride, y, 3 * x + c)),
            F::Grey if color.range == Range::Full => [at(0, stride, y, x); 3],
            F::Grey => ycbcr(at(0, stride, y, x), 128, 128),
            F::Bggr | F::Gbrg | F::Grbg | F::Rggb => {
                let pattern: [usize; 4] = match format {
                    F::Bggr => [2, 1, 1, 0],
                    F::Gbrg => [1, 2, 0, 1],
                    F::Grbg => [1, 0, 2, 1],
                    _ => [0, 1, 1, 2],
                };
                let color_at = |x: usize, y: usize| pattern[2 * (y % 2) + x % 2];
                let mirror = |v: isize, n: usize| {
                    let last = n as isize - 1;
                    (if v < 0 {
                        -v
                    } else if v > last {
                        2 * last - v
                    } else {
                        v
                    }) as usize
                };
                // The mean of the neighbors of a color at the least distance, rounded half up.
                [0, 1, 2].map(|color| {
                    for distance in 0..=2isize {
                        let near =
                            (-1..=1isize).flat_map(|dy| (-1..=1isize).map(move |dx| (dx, dy)));
                        let found: Vec<u32> = near
                            .filter(|(dx, dy)| dx * dx + dy * dy == distance)
                            .map(|(dx, dy)| {
                                (mirror(x as isize + dx, width), mirror(y as isize + dy, height))
                            })
                            .filter(|&(x, y)| color_at(x, y) == color)
                            .map(|(x, y)| u32::from(at(0, stride, y, x)))
                            .collect();
                        if !found.is_empty() {
                            let n = found.len() as u32;
                            return ((found.iter().sum::<u32>() + n / 2) / n) as u8;
                        }
                    }
                    unreachable!("every color is within the pattern")
                })
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 96 }))]

        #[test]
        fn rows_are_as_the_format_is_defined(
            index in 0..FORMATS.len(), width in 2usize..35, height in 2usize..12, padding in 0usize..9, color in 0usize..4, seed: u32,
        ) {
            let format = FORMATS[index].0;
            // Chroma of NV12 comes in pairs, so its stride is even.
            let stride = format.row_bytes(width) + if matches!(format, PixelFormat::Nv12 | PixelFormat::Nv21) { 2 * padding } else { padding };
            let layout = Layout::new(format, width, height, stride, Color::ALL[color]).unwrap();
            let bytes = bytes(layout.frame_bytes(), seed);
            let raw = RawFrame::new(layout, &bytes).unwrap();
            let frame = raw.to_frame();
            let wanted: Vec<u8> = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).flat_map(|(x, y)| naive(&layout, &bytes, x, y)).collect();
            prop_assert_eq!(frame.rgb(), &wanted[..], "{:?}", format);
            // Every part of a row is the same part of the whole.
            let (x, y) = (seed as usize % width, seed as usize % height);
            let n = 1 + (seed as usize / 7) % (width - x);
            let mut planes = vec![0i16; 3 * n];
            let (r, rest) = planes.split_at_mut(n);
            let (g, b) = rest.split_at_mut(n);
            raw.row(y, x, [&mut *r, &mut *g, &mut *b]);
            for i in 0..n {
                let got = [r[i], g[i], b[i]].map(|v| v as u8);
                prop_assert_eq!(&got[..], &frame.rgb()[3 * (y * width + x + i)..][..3]);
            }
            // No byte beyond the last pixel is read, and one fewer is refused.
            let least = layout.least_len();
            prop_assert!(RawFrame::new(layout, &bytes[..least]).unwrap().to_frame() == frame);
            prop_assert!(RawFrame::new(layout, &bytes[..least - 1]).is_err());
        }
    }

    #[test]
    fn names_and_codes() {
        for format in PixelFormat::all() {
            assert_eq!(PixelFormat::from_name(&format.name()), Some(format));
            if let Some(fourcc) = format.fourcc() {
                assert_eq!(PixelFormat::from_fourcc(fourcc), Some(format));
            }
        }
        let layout = parse_layout("yuv420:640x480").unwrap();
        assert_eq!((layout.format(), layout.frame_bytes()), (PixelFormat::Yu12, 460_800));
        assert_eq!(parse_layout("NV12:636x480:640").unwrap().frame_bytes(), 640 * 720);
        for wrong in [
            "",
            "yuyv",
            "yuyv:",
            "yuyv:0x4",
            "yuyv:4x4:7",
            "yuyv:4x4:8:1",
            "h264:4x4",
            "grey:99999x99999",
            "rggb:1x4",
        ] {
            assert!(parse_layout(wrong).is_err(), "{wrong}");
        }
    }
}
