//! A decoded picture: RGB8, rows without padding; and the way there from camera formats.

use crate::{Error, Result};

/// A picture of `height` x `width` pixels, three bytes (R, G, B; 0 to 255) each, row by row.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Frame {
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
            return Err(Error::Picture(format!("{width}x{height} pixels do not fit {} bytes", rgb.len())));
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

    /// A picture from planar Y'CbCr with 8 bits a sample, as YUV4MPEG2 and raw cameras give it.
    ///
    /// `chroma` gives how many luma samples share a chroma sample, across and down: (2, 2) for 4:2:0, (2, 1) for 4:2:2,
    /// (1, 1) for 4:4:4. Chroma is repeated, not interpolated. Planes have no padding; chroma planes are rounded up.
    ///
    /// # Errors
    /// [`Error::Picture`] if a plane is too short.
    pub fn from_ycbcr_planes(
        width: usize,
        height: usize,
        planes: [&[u8]; 3],
        chroma: (usize, usize),
        range: Range,
    ) -> Result<Self> {
        let (across, down) = chroma;
        let chroma_width = width.div_ceil(across.max(1));
        let chroma_len = chroma_width * height.div_ceil(down.max(1));
        let [y, cb, cr] = planes;
        if y.len() < width * height || cb.len() < chroma_len || cr.len() < chroma_len {
            return Err(Error::Picture(format!("planes are too short for {width}x{height} pixels")));
        }
        let mut rgb = Vec::with_capacity(3 * width * height);
        for row in 0..height {
            let luma = &y[row * width..][..width];
            let at = (row / down.max(1)) * chroma_width;
            for (x, &luma) in luma.iter().enumerate() {
                let x = at + x / across.max(1);
                rgb.extend_from_slice(&range.rgb(luma, cb[x], cr[x]));
            }
        }
        Self::new(width, height, rgb)
    }

    /// A grey picture: each sample is repeated as R, G and B.
    ///
    /// # Errors
    /// [`Error::Picture`] if the plane does not fit the size.
    pub fn from_grey(width: usize, height: usize, luma: &[u8]) -> Result<Self> {
        Self::new(width, height, luma.iter().flat_map(|&v| [v; 3]).collect())
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({}x{})", self.width, self.height)
    }
}

/// The range of Y'CbCr samples (ITU-R BT.601 matrix).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// 0 to 255, as JPEG (JFIF) has it.
    Full,
    /// 16 to 235 for luma and 16 to 240 for chroma, as video has it.
    Limited,
}

impl Range {
    /// One pixel, in 16-bit fixed point, rounded to nearest and clamped; the same integers on every CPU.
    pub fn rgb(self, y: u8, cb: u8, cr: u8) -> [u8; 3] {
        // Coefficients of BT.601 times 65536; limited range is stretched by 255/219 and 255/224.
        let (y, rv, gu, gv, bu) = match self {
            Self::Full => (i32::from(y) * 65536, 91881, 22554, 46802, 116_130),
            Self::Limited => ((i32::from(y) - 16) * 76309, 104_597, 25675, 53279, 132_201),
        };
        let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
        let pixel = |v: i32| ((v + 32768) >> 16).clamp(0, 255) as u8;
        [pixel(y + rv * cr), pixel(y - gu * cb - gv * cr), pixel(y + bu * cb)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primaries_of_bt601() {
        assert_eq!(Range::Full.rgb(0, 128, 128), [0, 0, 0]);
        assert_eq!(Range::Full.rgb(255, 128, 128), [255, 255, 255]);
        assert_eq!(Range::Full.rgb(76, 85, 255), [254, 0, 0]);
        assert_eq!(Range::Limited.rgb(16, 128, 128), [0, 0, 0]);
        assert_eq!(Range::Limited.rgb(235, 128, 128), [255, 255, 255]);
        assert_eq!(Range::Limited.rgb(81, 90, 240), [254, 0, 0]);
    }

    #[test]
    fn within_one_of_the_real_numbers() {
        for (y, cb, cr) in (0..=255u8).step_by(5).flat_map(|y| {
            (0..=255u8).step_by(15).flat_map(move |cb| (0..=255u8).step_by(15).map(move |cr| (y, cb, cr)))
        }) {
            let (yf, u, v) = (f64::from(y), f64::from(cb) - 128.0, f64::from(cr) - 128.0);
            let exact = [yf + 1.402 * v, yf - 0.344_136 * u - 0.714_136 * v, yf + 1.772 * u];
            for (got, want) in Range::Full.rgb(y, cb, cr).into_iter().zip(exact) {
                assert!((f64::from(got) - want.clamp(0.0, 255.0)).abs() <= 0.51, "{y} {cb} {cr}");
            }
        }
    }

    #[test]
    fn odd_sizes_round_chroma_up() {
        let frame = Frame::from_ycbcr_planes(3, 3, [&[50; 9], &[128; 4], &[128; 4]], (2, 2), Range::Full).unwrap();
        assert_eq!(frame.rgb(), &[50; 27]);
        assert!(Frame::from_ycbcr_planes(3, 3, [&[50; 9], &[128; 3], &[128; 4]], (2, 2), Range::Full).is_err());
    }

    #[test]
    fn empty_pictures_are_refused() {
        assert!(Frame::new(0, 3, vec![]).is_err());
        assert!(Frame::new(2, 2, vec![0; 11]).is_err());
    }
}
