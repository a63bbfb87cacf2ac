//! The table of pixel formats. Formats have the names that V4L2 gives them
//! (<https://docs.kernel.org/userspace-api/media/v4l/pixfmt.html>).

/// The arrangement of samples in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// One sample of gray per pixel.
    Grey,
    /// A Bayer mosaic that begins `B G`, one sample per pixel.
    Bggr,
    /// A Bayer mosaic that begins `G B`, one sample per pixel.
    Gbrg,
    /// A Bayer mosaic that begins `G R`, one sample per pixel.
    Grbg,
    /// A Bayer mosaic that begins `R G`, one sample per pixel.
    Rggb,
}

type FormatRow = (PixelFormat, Option<[u8; 4]>, &'static [&'static str]);

/// Every format with its V4L2 fourcc (none if V4L2 lacks the format) and its names in lower case;
/// the first name is used in messages.
pub(super) const FORMATS: [FormatRow; 17] = [
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
    /// Returns all formats.
    pub fn all() -> impl Iterator<Item = Self> {
        FORMATS.iter().map(|&(format, ..)| format)
    }

    /// Returns the V4L2 fourcc, if there is one.
    pub fn fourcc(self) -> Option<[u8; 4]> {
        FORMATS.iter().find(|(format, ..)| *format == self).and_then(|&(_, fourcc, _)| fourcc)
    }

    /// Returns the format with this V4L2 fourcc.
    pub fn from_fourcc(fourcc: [u8; 4]) -> Option<Self> {
        FORMATS.iter().find(|(_, code, _)| *code == Some(fourcc)).map(|&(format, ..)| format)
    }

    /// Returns the format with this name, one of V4L2, ffmpeg or rpicam-apps, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        FORMATS.iter().find(|(.., names)| names.contains(&&*name)).map(|&(format, ..)| format)
    }

    /// Returns the name used in messages.
    pub fn name(self) -> String {
        let names = FORMATS
            .iter()
            .find(|(format, ..)| *format == self)
            .map_or(&[][..], |(.., names)| names);
        names.first().copied().unwrap_or_default().to_ascii_uppercase()
    }

    /// Whether samples are luma and chroma, so that a [`Color`](super::Color) is needed to
    /// interpret them.
    pub fn is_ycbcr(self) -> bool {
        !matches!(self, Self::Rgb3 | Self::Bgr3) && !self.is_mosaic()
    }

    /// Whether samples are a Bayer mosaic.
    pub(super) fn is_mosaic(self) -> bool {
        matches!(self, Self::Bggr | Self::Gbrg | Self::Grbg | Self::Rggb)
    }

    /// Returns the bytes of an unpadded row of `width` pixels in the first plane.
    pub fn row_bytes(self, width: usize) -> usize {
        match self {
            Self::Yuyv | Self::Uyvy | Self::Yvyu | Self::Vyuy => 4 * width.div_ceil(2),
            // Rows of the chroma plane have the same length, and their bytes come in pairs.
            Self::Nv12 | Self::Nv21 => 2 * width.div_ceil(2),
            Self::Rgb3 | Self::Bgr3 => 3 * width,
            _ => width,
        }
    }
}
