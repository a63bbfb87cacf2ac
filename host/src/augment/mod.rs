//! Random variants of images for training, with the semantics of Keras's `ImageDataGenerator`
//! (`keras.src.legacy.preprocessing.image`, 3.15).
//!
//! [`Augmentation`] holds the ranges, [`Augmentation::draw`] is `get_random_transform`,
//! [`Transform::apply`] is `apply_transform`:
//!
//! 1. Affine: the point (x, y) of the variant, column and row, shows the point `C R S H Z C^-1 (x,
//!    y)` of the image. The center C is `(width / 2 - 0.5, height / 2 - 0.5)`.
//!    - R rotates by theta, uniform in +-rotation degrees.
//!    - S shifts by tx, uniform in +-width-shift times the width, and ty, uniform in +-height-shift
//!      times the height.
//!    - H shears by an angle uniform in +-shear **degrees**: `[[1, -sin], [0, cos]]`.
//!    - Z scales the axes by zx and zy, each uniform in `[1 - zoom, 1 + zoom]`; above 1 the image
//!      gets smaller.
//!
//! Keras 3 swaps the axes of the matrix once more than those of its inputs, so that
//! `height_shift_range` there moves an image sideways, `width_shift_range` up and down, and images
//! that are not square turn about `(height / 2 - 0.5, width / 2 - 0.5)`. Here each flag does what
//! its name says. For square images and equal shifts, as in the tutorial, there is no difference.
//!
//! Values between pixels are interpolated linearly (`order=1` of `scipy.ndimage.affine_transform`);
//! points outside are filled according to [`Fill`]. The image has been resized to the input size of
//! the backbone before. With `--fit contain` only the part within the borders is transformed; the
//! borders stay.
//! 2. Horizontal, then vertical flip, each with probability 1/2.
//! 3. Brightness, uniform in a range of factors: values are truncated to integers, multiplied in
//!    f32 and truncated again, as Pillow's `ImageEnhance.Brightness` does on Keras's
//!    `array_to_img`.
//!
//! The generator is not NumPy's, so the same seed yields other variants there.
//!
//! **Rounding.** Keras continues in f32. The backbone takes u8, so a variant is rounded to the
//! nearest integer (ties to even) and clamped to 0 to 255, at most half a level away, then
//! quantized like any resized image.
//!
//! **Reproducibility.** Coordinates are computed in f64 by `+`, `-`, `*` and one division by an
//! integer, sine and cosine by `libm`, so a variant has the same bits on every machine. Its
//! generator is seeded with the seed, the epoch and the SHA-256 of the image file: neither threads
//! nor the order of the images matter.

mod variants;
mod warp;

pub use variants::{AugmentSettings, VariantError, Variants};

use std::fmt;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use vgg_edge::Fingerprint;

/// Fill of the points outside the image, as in `scipy.ndimage` (a, b, c, d are the pixels of a
/// row).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// `a a a | a b c d | d d d`
    Nearest,
    /// `c b a | a b c d | d c b`, mirrored at the edges of the outer pixels.
    Reflect,
    /// `b c d | a b c d | b c d`: scipy's `wrap` has a period of one pixel less than the image, so
    /// that the last pixel coincides with the first.
    Wrap,
    /// This value, 0 to 255, in each channel, starting at the centers of the outer pixels, without
    /// a transition.
    Constant(f64),
}

/// Ranges that variants are drawn from.
#[derive(Clone, Debug, PartialEq)]
pub struct Augmentation {
    /// Maximum rotation in degrees, 0 to 180.
    pub rotation: f64,
    /// Maximum shift as a fraction of the width, from 0 to below 1.
    pub width_shift: f64,
    /// Maximum shift as a fraction of the height, from 0 to below 1.
    pub height_shift: f64,
    /// Maximum shear in degrees, from 0 to below 90.
    pub shear: f64,
    /// Maximum deviation of the scale from 1, from 0 to below 1.
    pub zoom: f64,
    /// Whether half of the variants are mirrored left to right.
    pub horizontal_flip: bool,
    /// Whether half of the variants are turned upside down.
    pub vertical_flip: bool,
    /// Minimum and maximum factor of the brightness.
    pub brightness: Option<(f64, f64)>,
    /// Fill of the points outside.
    pub fill: Fill,
}

/// Parameters of one variant, under the names of Keras.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transform {
    /// Rotation in degrees.
    pub theta: f64,
    /// Shift along x, in pixels; above 0 the image moves to the left.
    pub tx: f64,
    /// Shift along y, in pixels; above 0 the image moves up.
    pub ty: f64,
    /// Shear in degrees.
    pub shear: f64,
    /// Scale along x.
    pub zx: f64,
    /// Scale along y.
    pub zy: f64,
    /// Mirrored left to right.
    pub flip_horizontal: bool,
    /// Upside down.
    pub flip_vertical: bool,
    /// Factor of the brightness.
    pub brightness: Option<f64>,
}

impl Augmentation {
    /// No augmentation: the image itself.
    pub const NONE: Self = Self {
        rotation: 0.0,
        width_shift: 0.0,
        height_shift: 0.0,
        shear: 0.0,
        zoom: 0.0,
        horizontal_flip: false,
        vertical_flip: false,
        brightness: None,
        fill: Fill::Nearest,
    };

    /// Ranges of the Keras tutorial ("Building powerful image classification models using very
    /// little data").
    pub const TUTORIAL: Self = Self {
        rotation: 40.0,
        width_shift: 0.2,
        height_shift: 0.2,
        shear: 0.2,
        zoom: 0.2,
        horizontal_flip: true,
        ..Self::NONE
    };

    /// Draws the parameters of an image's variant in an epoch, from the hash of its content;
    /// `width` and `height` are in pixels.
    pub fn draw(
        &self,
        seed: u64,
        epoch: u64,
        content: &Fingerprint,
        width: usize,
        height: usize,
    ) -> Transform {
        let parts = [&b"augment"[..], &seed.to_le_bytes(), &epoch.to_le_bytes(), &content.0];
        let mut random = Xoshiro256PlusPlus::from_seed(Fingerprint::of_parts(parts).0);
        // 53 bits: the precision of an f64 below 1.
        let mut unit = move || (random.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        let mut within =
            |low: f64, high: f64| if low == high { low } else { low + (high - low) * unit() };
        Transform {
            theta: within(-self.rotation, self.rotation),
            tx: within(-self.width_shift, self.width_shift) * width as f64,
            ty: within(-self.height_shift, self.height_shift) * height as f64,
            shear: within(-self.shear, self.shear),
            zx: within(1.0 - self.zoom, 1.0 + self.zoom),
            zy: within(1.0 - self.zoom, 1.0 + self.zoom),
            flip_horizontal: within(0.0, 1.0) < 0.5 && self.horizontal_flip,
            flip_vertical: within(0.0, 1.0) < 0.5 && self.vertical_flip,
            brightness: self.brightness.map(|(low, high)| within(low, high)),
        }
    }

    /// Returns the variant of a resized image, RGB8 `[height, width, 3]`; `content` is the hash of
    /// the image file.
    pub fn variant(
        &self,
        seed: u64,
        epoch: u64,
        content: &Fingerprint,
        rgb: &[u8],
        width: usize,
    ) -> Vec<u8> {
        let height = rgb.len() / (3 * width).max(1);
        let transform = self.draw(seed, epoch, content, width, height);
        let round = |v: &f32| v.round_ties_even().clamp(0.0, 255.0) as u8;
        transform.apply(rgb, width, self.fill).iter().map(round).collect()
    }
}

/// Text of the training record in a head.
impl fmt::Display for Augmentation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "augmented (")?;
        for (name, value) in [
            ("rotation", self.rotation),
            ("width shift", self.width_shift),
            ("height shift", self.height_shift),
            ("shear", self.shear),
            ("zoom", self.zoom),
        ] {
            if value > 0.0 {
                write!(f, "{name} {value}, ")?;
            }
        }
        if self.horizontal_flip {
            write!(f, "horizontal flip, ")?;
        }
        if self.vertical_flip {
            write!(f, "vertical flip, ")?;
        }
        if let Some((low, high)) = self.brightness {
            write!(f, "brightness {low} to {high}, ")?;
        }
        match self.fill {
            Fill::Nearest => write!(f, "fill nearest)"),
            Fill::Reflect => write!(f, "fill reflect)"),
            Fill::Wrap => write!(f, "fill wrap)"),
            Fill::Constant(value) => write!(f, "fill constant {value})"),
        }
    }
}

#[cfg(test)]
mod tests;
