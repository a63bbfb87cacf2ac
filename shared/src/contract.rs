//! The contract: how a picture becomes the quantised input of the base. It travels in the base and in the head.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::resize::{Filter, Rect, resize};
use crate::{Error, Frame, Result};

/// The order of the colour channels of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChannelOrder {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red: Caffe's, and that of the original VGG16 weights.
    Bgr,
}

impl ChannelOrder {
    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rgb => "RGB",
            Self::Bgr => "BGR",
        }
    }

    /// The order of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Rgb, Self::Bgr].into_iter().find(|order| order.name() == name)
    }

    /// For each input channel its place in an RGB pixel.
    fn of_rgb(self) -> [usize; 3] {
        match self {
            Self::Rgb => [0, 1, 2],
            Self::Bgr => [2, 1, 0],
        }
    }
}

/// Which part of a picture is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fit {
    /// All of it, squeezed into the square (Keras `load_img`).
    Stretch,
    /// The largest square in its centre.
    Cover,
}

impl Fit {
    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stretch => "stretch",
            Self::Cover => "cover",
        }
    }

    /// The part of a picture of that size.
    pub fn rect(self, width: usize, height: usize) -> Rect {
        match self {
            Self::Stretch => Rect { x: 0, y: 0, width, height },
            Self::Cover => {
                let side = width.min(height);
                Rect { x: (width - side) / 2, y: (height - side) / 2, width: side, height: side }
            }
        }
    }
}

/// What a base expects of its input; read from the base file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseContract {
    /// Order of the channels.
    pub channel_order: ChannelOrder,
    /// Mean that is subtracted, a channel, in pixel units (0 to 255), in the order of `channel_order`.
    pub mean: [f32; 3],
    /// Standard deviation that divides the difference, a channel.
    pub std: [f32; 3],
    /// Scale of the quantised input: `real = (q - zero_point) * scale`.
    pub scale: f32,
    /// Zero point of the quantised input, which also pads it.
    pub zero_point: u8,
    /// The filter that the base recommends.
    pub resize: Filter,
    /// Channels of the feature map: 512 for VGG16.
    pub channels: u32,
    /// Input pixels for each pixel of the feature map, along a side: 32 for VGG16.
    pub stride: u32,
    /// Allowed sizes are multiples of this.
    pub size_multiple: u32,
    /// Smallest allowed size, in pixels.
    pub size_min: u32,
    /// Largest allowed size, in pixels.
    pub size_max: u32,
}

impl BaseContract {
    /// Holds a size against the allowed ones.
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

/// The whole way from a picture to the quantised input; what a head is trained with and insists on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// What the base expects.
    pub base: BaseContract,
    /// Height and width of the input, in pixels.
    pub size: u32,
    /// The part of the picture that is used.
    pub fit: Fit,
    /// How that part is resized.
    pub resize: Filter,
}

impl Preprocess {
    /// The settings of `base` at `size` pixels.
    ///
    /// # Errors
    /// [`Error::Size`] for a size that the base does not allow.
    pub fn new(base: BaseContract, size: u32, fit: Fit, resize: Filter) -> Result<Self> {
        base.check_size(size)?;
        Ok(Self { base, size, fit, resize })
    }

    /// Bytes of a quantised input: `size * size * 3`.
    pub fn input_len(&self) -> usize {
        3 * (self.size as usize).pow(2)
    }

    /// Height, width and channels of a feature map: `[size / 32, size / 32, 512]` for VGG16.
    pub fn feature_shape(&self) -> [usize; 3] {
        let side = (self.size / self.base.stride.max(1)) as usize;
        [side, side, self.base.channels as usize]
    }

    /// Values of a feature map.
    pub fn feature_len(&self) -> usize {
        self.feature_shape().iter().product()
    }

    /// A fast [`Quantiser`] for these settings.
    pub fn quantiser(&self) -> Quantiser {
        let base = &self.base;
        let order = base.channel_order.of_rgb();
        let table = |channel: usize| {
            std::array::from_fn(|pixel| {
                let real = (pixel as f32 - base.mean[channel]) / base.std[channel];
                let q = (real / base.scale).round_ties_even() + f32::from(base.zero_point);
                q.clamp(0.0, 255.0) as u8
            })
        };
        Quantiser { settings: self.clone(), order, tables: [table(0), table(1), table(2)] }
    }

    /// Bytes that differ whenever any setting differs; for fingerprints of caches.
    pub fn to_bytes(&self) -> Vec<u8> {
        format!("{self:?}").into_bytes()
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

/// [`Preprocess`] with its tables computed.
#[derive(Clone)]
pub struct Quantiser {
    settings: Preprocess,
    order: [usize; 3],
    tables: [[u8; 256]; 3],
}

impl Quantiser {
    /// The settings.
    pub fn settings(&self) -> &Preprocess {
        &self.settings
    }

    /// The input of a picture before quantisation: `(p - mean) / std` in f32, channels last `[size, size, 3]` in the base's order.
    pub fn normalise(&self, frame: &Frame) -> Vec<f32> {
        let base = &self.settings.base;
        let value = |pixel: &[u8], c: usize| (f32::from(pixel[self.order[c]]) - base.mean[c]) / base.std[c];
        self.resized(frame).chunks_exact(3).flat_map(|pixel| [0, 1, 2].map(|c| value(pixel, c))).collect()
    }

    /// The quantised input of a picture: u8, channels first `[3, size, size]`, as the ONNX base takes it.
    pub fn quantise(&self, frame: &Frame) -> Vec<u8> {
        let size = self.settings.size as usize;
        let rgb = self.resized(frame);
        let mut out = vec![0; 3 * size * size];
        for ((plane, table), place) in out.chunks_exact_mut(size * size).zip(&self.tables).zip(self.order) {
            for (q, pixel) in plane.iter_mut().zip(rgb.chunks_exact(3)) {
                *q = table[usize::from(pixel[place])];
            }
        }
        out
    }

    /// RGB8 `[size, size, 3]` of the part that is looked at.
    fn resized(&self, frame: &Frame) -> Vec<u8> {
        let Preprocess { size, fit, resize: filter, .. } = self.settings;
        resize(frame, fit.rect(frame.width(), frame.height()), size as usize, size as usize, filter)
    }
}

/// Three numbers with commas between them: a mean or a standard deviation in a base's metadata and on the command line.
pub fn three(text: &str) -> Option<[f32; 3]> {
    let values: Option<Vec<f32>> = text.split(',').map(|v| v.trim().parse().ok()).collect();
    values?.try_into().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The contract of the shipped base.
    pub(crate) fn caffe() -> BaseContract {
        BaseContract {
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
    fn sizes() {
        let base = caffe();
        for size in [32, 64, 224, 1024] {
            base.check_size(size).unwrap();
        }
        for size in [0, 16, 63, 1056] {
            assert!(base.check_size(size).unwrap_err().to_string().contains("multiple of 32 from 32 to 1024"));
        }
    }

    #[test]
    fn channels_are_ordered_and_quantised_within_half_a_step() {
        let pre = Preprocess::new(caffe(), 32, Fit::Stretch, Filter::Bilinear).unwrap();
        let frame = Frame::new(1, 1, vec![10, 100, 250]).unwrap();
        let out = pre.quantiser().quantise(&frame);
        for (channel, pixel) in [250.0f32, 100.0, 10.0].into_iter().enumerate() {
            let q = f32::from(out[channel * 1024]);
            let real = (q - 115.0) * pre.base.scale;
            assert!((real - (pixel - pre.base.mean[channel])).abs() <= 0.51 * pre.base.scale, "{channel}");
        }
    }

    #[test]
    fn cover_takes_the_centre() {
        assert_eq!(Fit::Cover.rect(7, 4), Rect { x: 1, y: 0, width: 4, height: 4 });
        assert_eq!(Fit::Stretch.rect(7, 4), Rect { x: 0, y: 0, width: 7, height: 4 });
    }
}
