//! Preprocessing: how an image becomes the quantized input of the backbone. The settings are stored
//! in the base file and in the head.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::image::resize::{Filter, Rect, resize};
use crate::pixel::Pixels;
use crate::{Error, Result};

/// The order of the color channels of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChannelOrder {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red: the order of Caffe and of the original VGG16 weights.
    Bgr,
}

impl ChannelOrder {
    /// Returns the name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rgb => "RGB",
            Self::Bgr => "BGR",
        }
    }

    /// Returns the order with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Rgb, Self::Bgr].into_iter().find(|order| order.name() == name)
    }

    /// Returns the index in an RGB pixel for each input channel.
    fn of_rgb(self) -> [usize; 3] {
        match self {
            Self::Rgb => [0, 1, 2],
            Self::Bgr => [2, 1, 0],
        }
    }
}

/// How an image is fitted to the square input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Fit {
    /// The whole image, stretched to the square (Keras `load_img`).
    Stretch,
    /// The largest square in the center.
    Cover,
    /// The whole image, with its aspect ratio; the rest of the square is padded with the zero point
    /// of the input.
    Contain,
}

impl Fit {
    /// Returns the name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stretch => "stretch",
            Self::Cover => "cover",
            Self::Contain => "contain",
        }
    }

    /// Returns the fit with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Stretch, Self::Cover, Self::Contain].into_iter().find(|fit| fit.name() == name)
    }

    /// Returns the part of `within` that is used.
    pub fn source(self, within: Rect) -> Rect {
        match self {
            Self::Stretch | Self::Contain => within,
            Self::Cover => {
                let side = within.width.min(within.height);
                let (x, y) =
                    (within.x + (within.width - side) / 2, within.y + (within.height - side) / 2);
                Rect { x, y, width: side, height: side }
            }
        }
    }

    /// Returns the position of a part of an image in a square of `size` pixels.
    pub fn target(self, source: Rect, size: usize) -> Rect {
        let longest = source.width.max(source.height);
        match self {
            Self::Contain if longest > 0 => {
                // Rounded half up; even the longest panorama keeps one line.
                let scaled =
                    |side: usize| ((2 * side * size + longest) / (2 * longest)).clamp(1, size);
                let (width, height) = (scaled(source.width), scaled(source.height));
                Rect { x: (size - width) / 2, y: (size - height) / 2, width, height }
            }
            _ => Rect { x: 0, y: 0, width: size, height: size },
        }
    }
}

/// The input that a backbone expects, read from the base file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputSpec {
    /// Order of the channels.
    pub channel_order: ChannelOrder,
    /// Mean of each channel, which is subtracted, in pixel units (0 to 255) and in the order of
    /// `channel_order`.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, by which the difference is divided.
    pub std: [f32; 3],
    /// Scale of the quantized input: `real = (q - zero_point) * scale`.
    pub scale: f32,
    /// Zero point of the quantized input, also its padding.
    pub zero_point: u8,
    /// The filter that the base file recommends.
    pub resize: Filter,
    /// Channels of the feature map: 512 for VGG16.
    pub channels: u32,
    /// Input pixels per pixel of the feature map, along a side: 32 for VGG16.
    pub stride: u32,
    /// Allowed sizes are multiples of this.
    pub size_multiple: u32,
    /// Smallest allowed size, in pixels.
    pub size_min: u32,
    /// Largest allowed size, in pixels.
    pub size_max: u32,
}

impl InputSpec {
    /// Checks that a size, in pixels, is allowed.
    ///
    /// # Errors
    /// [`Error::Size`].
    pub fn check_size(&self, size: u32) -> Result<()> {
        let (multiple, min, max) = (self.size_multiple, self.size_min, self.size_max);
        if size.is_multiple_of(multiple.max(1)) && (min..=max).contains(&size) {
            Ok(())
        } else {
            Err(Error::Size { size, multiple, min, max })
        }
    }
}

/// The settings from an image to the quantized input. A head stores those it was trained with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// The input that the backbone expects.
    pub base: InputSpec,
    /// Height and width of the input, in pixels.
    pub size: u32,
    /// How the image is fitted to the square.
    pub fit: Fit,
    /// The filter for resizing.
    pub resize: Filter,
}

impl Preprocess {
    /// Creates settings for inputs of `size` x `size` pixels.
    ///
    /// # Errors
    /// [`Error::Size`] if the backbone does not allow the size.
    pub fn new(base: InputSpec, size: u32, fit: Fit, resize: Filter) -> Result<Self> {
        base.check_size(size)?;
        Ok(Self { base, size, fit, resize })
    }

    /// Returns the bytes of a quantized input: `size * size * 3`.
    pub fn input_len(&self) -> usize {
        3 * (self.size as usize).pow(2)
    }

    /// Returns height, width and channels of a feature map: `[size / 32, size / 32, 512]` for
    /// VGG16.
    pub fn feature_shape(&self) -> [usize; 3] {
        let side = (self.size / self.base.stride.max(1)) as usize;
        [side, side, self.base.channels as usize]
    }

    /// Returns the number of values of a feature map.
    pub fn feature_len(&self) -> usize {
        self.feature_shape().iter().product()
    }

    /// Returns a [`Quantizer`] with these settings.
    pub fn quantizer(&self) -> Quantizer {
        let base = &self.base;
        let order = base.channel_order.of_rgb();
        let table = |channel: usize| {
            std::array::from_fn(|pixel| {
                let real = (pixel as f32 - base.mean[channel]) / base.std[channel];
                let q = (real / base.scale).round_ties_even() + f32::from(base.zero_point);
                q.clamp(0.0, 255.0) as u8
            })
        };
        Quantizer {
            settings: self.clone(),
            order,
            tables: [table(0), table(1), table(2)],
            crop: None,
        }
    }

    /// Returns bytes that differ whenever a setting differs, for the fingerprints of caches.
    pub fn to_bytes(&self) -> Vec<u8> {
        // The text is part of the names of caches, so it keeps the first name of `InputSpec`.
        format!("{self:?}").replacen("InputSpec", "BaseContract", 1).into_bytes()
    }
}

impl fmt::Display for Preprocess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = &self.base;
        write!(
            f,
            "{0}x{0} {1}, {2}, {3}, mean {4:?}, std {5:?}, scale {6}, zero point {7}",
            self.size,
            base.channel_order.name(),
            self.fit.name(),
            self.resize.name(),
            base.mean,
            base.std,
            base.scale,
            base.zero_point
        )
    }
}

/// [`Preprocess`] with computed tables, and an optional crop.
#[derive(Clone, Debug)]
pub struct Quantizer {
    settings: Preprocess,
    order: [usize; 3],
    tables: [[u8; 256]; 3],
    crop: Option<Rect>,
}

impl Quantizer {
    /// Returns the settings.
    pub fn settings(&self) -> &Preprocess {
        &self.settings
    }

    /// Sets the part of each image that is used; it is clipped to the image. `None` uses the whole
    /// image.
    pub fn set_crop(&mut self, crop: Option<Rect>) {
        self.crop = crop;
    }

    /// Replaces the fit of the settings.
    pub fn set_fit(&mut self, fit: Fit) {
        self.settings.fit = fit;
    }

    /// Returns the part that is used of an image of this size, in pixels; `None` if the crop lies
    /// outside the image.
    pub fn source(&self, width: usize, height: usize) -> Option<Rect> {
        let whole = Rect { x: 0, y: 0, width, height };
        let within = match self.crop {
            Some(crop) => crop.within(whole)?,
            None => whole,
        };
        Some(self.settings.fit.source(within))
    }

    /// Returns the input before quantization: `(p - mean) / std` in f32, channels last `[size,
    /// size, 3]`, in the order of the backbone.
    ///
    /// # Panics
    /// If the crop lies outside the image.
    pub fn normalize(&self, pixels: &dyn Pixels) -> Vec<f32> {
        let base = &self.settings.base;
        let size = self.settings.size as usize;
        let (rgb, target) = self.resized(pixels);
        let mut out = vec![0.0; 3 * size * size];
        for (y, row) in rgb.chunks_exact(3 * target.width).enumerate() {
            let at = 3 * ((target.y + y) * size + target.x);
            for (out, pixel) in out[at..].chunks_exact_mut(3).zip(row.chunks_exact(3)) {
                for (c, out) in out.iter_mut().enumerate() {
                    *out = (f32::from(pixel[self.order[c]]) - base.mean[c]) / base.std[c];
                }
            }
        }
        out
    }

    /// Returns the quantized input: u8, channels first `[3, size, size]`, as the ONNX base takes
    /// it.
    ///
    /// # Panics
    /// If the crop lies outside the image.
    pub fn quantize(&self, pixels: &dyn Pixels) -> Vec<u8> {
        let (rgb, target) = self.resized(pixels);
        self.quantize_resized(&rgb, target)
    }

    /// Quantizes the result of [`Quantizer::resized`], or a modification of it: the second half of
    /// [`Quantizer::quantize`].
    ///
    /// # Panics
    /// If `target` does not lie within the square.
    pub fn quantize_resized(&self, rgb: &[u8], target: Rect) -> Vec<u8> {
        let size = self.settings.size as usize;
        let mut out = vec![self.settings.base.zero_point; 3 * size * size];
        for ((plane, table), place) in
            out.chunks_exact_mut(size * size).zip(&self.tables).zip(self.order)
        {
            for (y, row) in rgb.chunks_exact(3 * target.width).enumerate() {
                let at = (target.y + y) * size + target.x;
                for (q, pixel) in plane[at..].iter_mut().zip(row.chunks_exact(3)) {
                    *q = table[usize::from(pixel[place])];
                }
            }
        }
        out
    }

    /// Returns the used part, resized, as RGB8, and its position in the square input.
    ///
    /// # Panics
    /// If the crop lies outside the image.
    pub fn resized(&self, pixels: &dyn Pixels) -> (Vec<u8>, Rect) {
        let Preprocess { size, fit, resize: filter, .. } = self.settings;
        #[allow(clippy::expect_used, reason = "the documented panic")]
        let source =
            self.source(pixels.width(), pixels.height()).expect("the crop lies within the image");
        let target = fit.target(source, size as usize);
        (resize(pixels, source, target.width, target.height, filter), target)
    }
}

/// Parses three numbers separated by commas: a mean or a standard deviation in the metadata of a
/// base file or on the command line.
pub fn three(text: &str) -> Option<[f32; 3]> {
    let values: Option<Vec<f32>> = text.split(',').map(|v| v.trim().parse().ok()).collect();
    values?.try_into().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Image;

    /// The input of the shipped backbone.
    pub(crate) fn caffe() -> InputSpec {
        InputSpec {
            channel_order: ChannelOrder::Bgr,
            mean: [103.939, 116.779, 123.68],
            std: [1.0; 3],
            scale: (151.061 + 123.68) / 255.0,
            zero_point: 115,
            resize: Filter::Bilinear,
            channels: 512,
            stride: 32,
            size_multiple: 32,
            size_min: 32,
            size_max: 1024,
        }
    }

    #[test]
    fn input_sizes_are_checked() {
        let base = caffe();
        for size in [32, 64, 224, 1024] {
            base.check_size(size).unwrap();
        }
        for size in [0, 16, 63, 1056] {
            assert!(
                base.check_size(size)
                    .unwrap_err()
                    .to_string()
                    .contains("multiple of 32 from 32 to 1024")
            );
        }
    }

    /// Caches are named after these bytes: another text would make all of them useless.
    #[test]
    fn bytes_of_preprocess_are_fixed() {
        let pre = Preprocess::new(caffe(), 64, Fit::Cover, Filter::Nearest).unwrap();
        let expected = "Preprocess { base: BaseContract { channel_order: Bgr, \
            mean: [103.939, 116.779, 123.68], std: [1.0, 1.0, 1.0], scale: 1.0774157, \
            zero_point: 115, resize: Bilinear, channels: 512, stride: 32, size_multiple: 32, \
            size_min: 32, size_max: 1024 }, size: 64, fit: Cover, resize: Nearest }";
        assert_eq!(String::from_utf8(pre.to_bytes()).unwrap(), expected);
    }

    #[test]
    fn channels_are_ordered_and_quantized_within_half_a_step() {
        let pre = Preprocess::new(caffe(), 32, Fit::Stretch, Filter::Bilinear).unwrap();
        let frame = Image::new(1, 1, vec![10, 100, 250]).unwrap();
        let out = pre.quantizer().quantize(&frame);
        for (channel, pixel) in [250.0f32, 100.0, 10.0].into_iter().enumerate() {
            let q = f32::from(out[channel * 1024]);
            let real = (q - 115.0) * pre.base.scale;
            assert!(
                (real - (pixel - pre.base.mean[channel])).abs() <= 0.51 * pre.base.scale,
                "{channel}"
            );
        }
    }

    #[test]
    fn fit_cover_takes_the_center() {
        let whole = Rect { x: 0, y: 0, width: 7, height: 4 };
        assert_eq!(Fit::Cover.source(whole), Rect { x: 1, y: 0, width: 4, height: 4 });
        assert_eq!(Fit::Stretch.source(whole), whole);
    }

    #[test]
    fn fit_contain_keeps_the_aspect_ratio_and_pads() {
        let mut pre = Preprocess::new(caffe(), 64, Fit::Contain, Filter::Bilinear).unwrap();
        let frame = Image::new(40, 20, vec![255; 3 * 800]).unwrap();
        let input = pre.quantizer().quantize(&frame);
        let row = |y: usize| &input[y * 64..][..64];
        assert!((0..64).all(|y| row(y).iter().all(|&q| (q == 115) != (16..48).contains(&y))));
        assert_eq!(pre.quantizer().normalize(&frame)[0], 0.0);
        assert_eq!(Fit::Contain.target(Rect { x: 0, y: 0, width: 9000, height: 1 }, 64).height, 1);
        // A square has nothing to pad.
        let square = Image::new(2, 2, (0..12).map(|v| 20 * v).collect()).unwrap();
        let contained = pre.quantizer().quantize(&square);
        pre.fit = Fit::Stretch;
        assert_eq!(contained, pre.quantizer().quantize(&square));
    }

    #[test]
    fn a_crop_equals_an_image_of_its_own() {
        let pre = Preprocess::new(caffe(), 32, Fit::Cover, Filter::Bilinear).unwrap();
        let frame =
            Image::new(30, 20, (0..1800u32).map(|v| ((v * v) >> 3) as u8).collect()).unwrap();
        let part: Vec<u8> =
            (5..17).flat_map(|y| frame.rgb()[3 * (30 * y + 4)..][..3 * 9].to_vec()).collect();
        let mut quantizer = pre.quantizer();
        quantizer.set_crop(Some(Rect { x: 4, y: 5, width: 9, height: 12 }));
        assert_eq!(
            quantizer.quantize(&frame),
            pre.quantizer().quantize(&Image::new(9, 12, part).unwrap())
        );
        quantizer.set_crop(Some(Rect { x: 30, y: 0, width: 9, height: 12 }));
        assert_eq!(quantizer.source(30, 20), None);
        quantizer.set_crop(Some(Rect { x: 20, y: 0, width: 99, height: 4 }));
        assert_eq!(quantizer.source(30, 20), Some(Rect { x: 23, y: 0, width: 4, height: 4 }));
    }
}
