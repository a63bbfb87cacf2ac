//! Flags that `host` and `edge` share, and the objects they resolve to.

use std::path::PathBuf;

use vgg_edge::image::resize::Rect;
use vgg_edge::kernels::Kernel;
use vgg_edge::pixel::{Color, Layout, parse_layout};
use vgg_edge::preprocess::Fit;
use vgg_edge::{Backbone, Result};

/// Which base and which kernel.
#[derive(Clone, Debug, clap::Args)]
pub struct BaseOptions {
    /// The int8 base [default: models/vgg16-notop-int8.onnx here or beside the program]
    #[arg(long, value_name = "ONNX", env = vgg_edge::backbone::BASE_VARIABLE)]
    pub base: Option<PathBuf>,

    /// Code for the convolutions, all with the same results: portable, avx2, neon, sdot [default:
    /// the best for this CPU]
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
}

impl BaseOptions {
    /// Loads the base.
    ///
    /// # Errors
    /// As [`Backbone::load`], [`vgg_edge::backbone::find`] and [`Kernel::from_name`].
    pub fn load(&self) -> Result<Backbone> {
        let kernel = self.kernel()?;
        Backbone::load(&self.path()?, kernel)
    }

    /// Where the base is.
    ///
    /// # Errors
    /// As [`vgg_edge::backbone::find`].
    pub fn path(&self) -> Result<PathBuf> {
        self.base.clone().map_or_else(vgg_edge::backbone::find, Ok)
    }

    /// The kernel.
    ///
    /// # Errors
    /// As [`Kernel::from_name`].
    pub fn kernel(&self) -> Result<Kernel> {
        self.kernel.as_deref().map_or_else(Kernel::detect, Kernel::from_name)
    }
}

/// The names of [`Fit`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum FitName {
    /// All of it, squeezed into the square
    Stretch,
    /// The largest square in its center
    Cover,
    /// All of it with its aspect ratio, padded
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

/// What part of a picture is looked at, and what raw samples mean.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ViewOptions {
    /// Looks only at this part, in pixels from the upper left
    #[arg(long, value_name = "X,Y,W,H", value_parser = parse_crop)]
    pub crop: Option<Rect>,

    /// How that part becomes a square [default: as the head was trained]
    #[arg(long, value_enum)]
    pub fit: Option<FitName>,

    /// What Y'CbCr samples mean: bt601, bt601-full, bt709, bt709-full [default: what the camera
    /// says, else bt601]
    #[arg(long, visible_alias = "colour", value_name = "NAME", value_parser = parse_color)]
    pub color: Option<Color>,
}

impl ViewOptions {
    /// The layout with the color that was asked for, if any was.
    pub fn color(&self, layout: Layout) -> Layout {
        self.color.map_or(layout, |color| layout.with_color(color))
    }
}

fn parse_crop(text: &str) -> Result<Rect, String> {
    let numbers: Option<Vec<usize>> =
        text.split(',').map(|part| part.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[x, y, width, height]) if width > 0 && height > 0 => Ok(Rect { x, y, width, height }),
        _ => Err("four whole numbers X,Y,W,H are wanted, the last two above 0".into()),
    }
}

fn parse_color(text: &str) -> Result<Color, String> {
    Color::from_name(text)
        .ok_or_else(|| format!("one of {} is wanted", Color::ALL.map(Color::name).join(", ")))
}

/// Arguments of `host classify` and `edge classify`.
#[derive(Clone, Debug, clap::Args)]
pub struct ClassifyOptions {
    /// Picture files (JPEG, PNG, BMP, PNM, WebP)
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// The head
    #[arg(long, value_name = "FILE")]
    pub head: PathBuf,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take it for the help of the command")]
    pub base: BaseOptions,

    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take it for the help of the command")]
    pub view: ViewOptions,

    /// The files hold one raw frame each, as a camera gives it: FORMAT:WIDTHxHEIGHT, with :STRIDE
    /// if rows are padded, such as yuyv:640x480
    #[arg(long, value_name = "LAYOUT", value_parser = parse_layout)]
    pub raw: Option<Layout>,

    /// Prints NDJSON
    #[arg(long)]
    pub json: bool,

    /// Adds the SHA-256 of the quantized feature map to each line, to compare machines
    #[arg(long, requires = "json")]
    pub digest: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_and_colors() {
        assert_eq!(parse_crop("1, 2,3,4").unwrap(), Rect { x: 1, y: 2, width: 3, height: 4 });
        for wrong in ["", "1,2,3", "1,2,3,0", "1,2,-3,4", "1,2,3,4,5"] {
            assert!(parse_crop(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_color("bt709").unwrap().name(), "bt709");
        assert!(parse_color("bt2020").unwrap_err().contains("bt601-full"));
    }
}
