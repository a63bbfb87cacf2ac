//! Flags that several commands share, and the settings they resolve to.

use std::path::PathBuf;

use clap::ValueEnum;
use vgg_edge::Backbone;
use vgg_edge::image::resize::Filter;
use vgg_edge::preprocess::Preprocess;
pub use vgg_edge_cli::options::BaseOptions;
use vgg_edge_cli::options::FitName;

use crate::features::extraction::ExtractSettings;

/// Flags for the extraction of features.
#[derive(Clone, clap::Args)]
pub struct ExtractOptions {
    /// Number of threads [default: all cores]
    ///
    /// They decode images, run the backbone and train.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Cache features in this directory
    ///
    /// Features are stored by the content of the image, the backbone and the preprocessing, so that
    /// a second run need not compute them.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Fail at the first unreadable image instead of leaving it out
    #[arg(long)]
    pub strict: bool,
}

impl ExtractOptions {
    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        self.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            usize::from,
        )
    }

    /// Returns the settings.
    pub fn resolve(&self) -> ExtractSettings {
        ExtractSettings {
            threads: self.threads(),
            cache: self.cache.clone(),
            strict: self.strict,
            fail_on_storage: false,
        }
    }
}

/// Flags for how an image becomes an input of the backbone.
#[derive(Clone, Debug, clap::Args)]
pub struct InputOptions {
    /// Height and width of the input in pixels, a multiple of 32
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    pub size: u32,

    /// How an image is fitted into the square input
    #[arg(long, value_enum, default_value_t = FitName::Stretch)]
    pub fit: FitName,

    /// Resampling filter [default: recommended by the backbone]
    #[arg(long, value_enum)]
    pub resize: Option<ResizeName>,
}

impl InputOptions {
    /// Returns the preprocessing for a backbone.
    ///
    /// # Errors
    /// As [`Preprocess::new`].
    pub fn preprocess(&self, base: &Backbone) -> vgg_edge::Result<Preprocess> {
        let resize = self.resize.map_or(base.contract().resize, Into::into);
        Preprocess::new(base.contract().clone(), self.size, self.fit.into(), resize)
    }
}

/// Names of [`Filter`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ResizeName {
    /// Pillow's BILINEAR, without aliasing
    Bilinear,
    /// Pillow's NEAREST, the default of Keras
    Nearest,
}

impl From<ResizeName> for Filter {
    fn from(name: ResizeName) -> Self {
        match name {
            ResizeName::Bilinear => Self::Bilinear,
            ResizeName::Nearest => Self::Nearest,
        }
    }
}
