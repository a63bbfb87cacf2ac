//! Flags that `host` and `edge` share, and the objects they resolve to.

use std::path::PathBuf;

use vgg_edge::image::resize::Rect;
use vgg_edge::kernels::Kernel;
use vgg_edge::pixel::{Color, Layout, parse_layout};
use vgg_edge::preprocess::Fit;
use vgg_edge::{Backbone, Result};

/// The backbone ("base") and its kernel.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Backbone")]
pub struct BaseOptions {
    /// The int8 base [default: models/vgg16-notop-int8.onnx]
    ///
    /// Without the flag it is searched in models/ of the current directory, and in models/ and
    /// share/vgg-edge/ of the directory of the program and its parents.
    #[arg(long, value_name = "ONNX", env = vgg_edge::backbone::BASE_VARIABLE)]
    pub base: Option<PathBuf>,

    /// Kernel of the convolutions: portable, avx2, neon, sdot [default: the fastest of this CPU]
    ///
    /// All kernels give the same results, bit for bit. The environment variable VGG_EDGE_KERNEL
    /// sets the default.
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
}

impl BaseOptions {
    /// Loads the backbone.
    ///
    /// # Errors
    /// As [`Backbone::load`], [`BaseOptions::path`] and [`BaseOptions::kernel`].
    pub fn load(&self) -> Result<Backbone> {
        let kernel = self.kernel()?;
        Backbone::load(&self.path()?, kernel)
    }

    /// Returns the path of the base file, searched for if no flag or variable names it.
    ///
    /// # Errors
    /// As [`vgg_edge::backbone::find`].
    pub fn path(&self) -> Result<PathBuf> {
        self.base.clone().map_or_else(vgg_edge::backbone::find, Ok)
    }

    /// Returns the kernel, detected if no flag names it.
    ///
    /// # Errors
    /// As [`Kernel::from_name`] and [`Kernel::detect`].
    pub fn kernel(&self) -> Result<Kernel> {
        self.kernel.as_deref().map_or_else(Kernel::detect, Kernel::from_name)
    }
}

/// The names of [`Fit`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum FitName {
    /// Whole image, stretched to the square
    Stretch,
    /// Largest square in the center
    Cover,
    /// Whole image with its aspect ratio, padded
    Contain,
}

impl From<FitName> for Fit {
    fn from(name: FitName) -> Self {
        match name {
            FitName::Stretch => Self::Stretch,
            FitName::Cover => Self::Cover,
            FitName::Contain => Self::Contain,
        }
    }
}

/// The part of an image that is used, and the color of raw samples.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Input")]
pub struct ViewOptions {
    /// Use only this part of each image, in pixels from the upper left
    #[arg(long, value_name = "X,Y,W,H", value_parser = parse_crop)]
    pub crop: Option<Rect>,

    /// Fit of each image to the square input [default: as in training]
    #[arg(long, value_enum)]
    pub fit: Option<FitName>,

    /// Color of Y'CbCr samples: bt601, bt601-full, bt709, bt709-full
    ///
    /// The default is the color that the camera reports, otherwise bt601; for gray it is
    /// bt601-full.
    #[arg(long, visible_alias = "colour", value_name = "NAME", value_parser = parse_color)]
    pub color: Option<Color>,
}

impl ViewOptions {
    /// Returns the layout with the color of the flag, if it is given.
    pub fn color(&self, layout: Layout) -> Layout {
        self.color.map_or(layout, |color| layout.with_color(color))
    }
}

fn parse_crop(text: &str) -> Result<Rect, String> {
    let numbers: Option<Vec<usize>> =
        text.split(',').map(|part| part.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[x, y, width, height]) if width > 0 && height > 0 => Ok(Rect { x, y, width, height }),
        _ => Err("use four whole numbers X,Y,W,H; width and height must be above 0".into()),
    }
}

fn parse_color(text: &str) -> Result<Color, String> {
    Color::from_name(text)
        .ok_or_else(|| format!("use one of {}", Color::ALL.map(Color::name).join(", ")))
}

/// Arguments of `host classify` and `edge classify`.
#[derive(Clone, Debug, clap::Args)]
pub struct ClassifyOptions {
    /// Image files (JPEG, PNG, BMP, PNM, WebP)
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Head file
    #[arg(long, value_name = "FILE")]
    pub head: PathBuf,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take it for the help of the command")]
    pub base: BaseOptions,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take it for the help of the command")]
    pub view: ViewOptions,

    /// Read files as raw frames: FORMAT:WIDTHxHEIGHT, such as yuyv:640x480
    ///
    /// Each file holds one frame in a camera's format. With padded rows use
    /// FORMAT:WIDTHxHEIGHT:STRIDE, where STRIDE is the distance between rows in bytes.
    #[arg(long, help_heading = "Input", value_name = "LAYOUT", value_parser = parse_layout)]
    pub raw: Option<Layout>,

    /// Print NDJSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// Add the SHA-256 of the quantized feature map to each line, to compare machines
    #[arg(long, requires = "json", help_heading = "Output")]
    pub digest: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crop_and_color_flags() {
        assert_eq!(parse_crop("1, 2,3,4").unwrap(), Rect { x: 1, y: 2, width: 3, height: 4 });
        for wrong in ["", "1,2,3", "1,2,3,0", "1,2,-3,4", "1,2,3,4,5"] {
            assert!(parse_crop(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_color("bt709").unwrap().name(), "bt709");
        assert!(parse_color("bt2020").unwrap_err().contains("bt601-full"));
    }
}
