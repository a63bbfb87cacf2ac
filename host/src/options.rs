//! Flags that several commands share, and the objects they resolve to.

use std::path::PathBuf;

use shared::conv::Kernel;
use shared::{Base, Result};

/// Which base, which kernel, how many threads.
#[derive(clap::Args)]
pub struct BaseOptions {
    /// The int8 base [default: models/vgg16-notop-int8.onnx here or beside the program]
    #[arg(long, value_name = "ONNX", env = shared::base::BASE_VARIABLE)]
    pub base: Option<PathBuf>,

    /// Code for the convolutions, all with the same results: portable, avx2, neon [default: the best for this CPU]
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
}

impl BaseOptions {
    /// Loads the base.
    ///
    /// # Errors
    /// As [`Base::load`], [`shared::base::find`] and [`Kernel::from_name`].
    pub fn load(&self) -> Result<Base> {
        let kernel = match &self.kernel {
            Some(name) => Kernel::from_name(name)?,
            None => Kernel::detect()?,
        };
        let path = match &self.base {
            Some(path) => path.clone(),
            None => shared::base::find()?,
        };
        Base::load(&path, kernel)
    }
}

/// How many pictures are worked on at once, and where features are kept.
#[derive(clap::Args)]
pub struct ExtractOptions {
    /// Threads for decoding, the base and training [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Keeps features in this folder, by content and contract: a second run takes them from there
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Ends at the first file that cannot be read, rather than leaving it out
    #[arg(long)]
    pub strict: bool,
}

impl ExtractOptions {
    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }
}
