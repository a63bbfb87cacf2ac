//! Y'CbCr to R'G'B', in fixed point.

use std::fmt;

use crate::multiversion;

/// The matrix between R'G'B' and Y'CbCr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Matrix {
    /// ITU-R BT.601: webcams, JPEG, standard definition.
    Bt601,
    /// ITU-R BT.709: high definition.
    Bt709,
}

/// The range of Y'CbCr samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// 0 to 255, as in JPEG (JFIF).
    Full,
    /// 16 to 235 for luma and 16 to 240 for chroma, as in video.
    Limited,
}

/// The interpretation of Y'CbCr samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Color {
    /// The matrix.
    pub matrix: Matrix,
    /// The range.
    pub range: Range,
}

impl Color {
    /// BT.601 in limited range: the default of video.
    pub const VIDEO: Self = Self { matrix: Matrix::Bt601, range: Range::Limited };
    /// BT.601 in full range: JPEG.
    pub const JPEG: Self = Self { matrix: Matrix::Bt601, range: Range::Full };

    /// All combinations.
    pub const ALL: [Self; 4] = [
        Self::VIDEO,
        Self::JPEG,
        Self { matrix: Matrix::Bt709, range: Range::Limited },
        Self { matrix: Matrix::Bt709, range: Range::Full },
    ];

    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match (self.matrix, self.range) {
            (Matrix::Bt601, Range::Limited) => "bt601",
            (Matrix::Bt601, Range::Full) => "bt601-full",
            (Matrix::Bt709, Range::Limited) => "bt709",
            (Matrix::Bt709, Range::Full) => "bt709-full",
        }
    }

    /// Returns the color with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|color| color.name() == name)
    }

    /// Returns the coefficients in 16-bit fixed point.
    pub(super) fn coefficients(self) -> Coefficients {
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

    /// Converts one pixel in 16-bit fixed point, rounded to nearest and clamped: the same integers
    /// on every CPU.
    pub fn rgb(self, y: u8, cb: u8, cr: u8) -> [u8; 3] {
        self.coefficients().rgb(y.into(), cb.into(), cr.into()).map(|v| v as u8)
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The coefficients of a [`Color`] in 16-bit fixed point.
#[derive(Clone, Copy)]
pub(super) struct Coefficients {
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
    /// Converts planes of Y, Cb and Cr to R, G and B, in place.
    pub(super) fn convert(
        coefficients: Coefficients, y: &mut [i16], cb: &mut [i16], cr: &mut [i16],
    ) {
        for ((y, cb), cr) in y.iter_mut().zip(cb).zip(cr) {
            [*y, *cb, *cr] = coefficients.rgb(*y, *cb, *cr);
        }
    }
}
