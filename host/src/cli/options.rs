//! Flags that several commands share, and the objects they resolve to.

use std::path::PathBuf;

pub use vgg_edge_cli::options::BaseOptions;

/// How many pictures are worked on at once, and where features are kept.
#[derive(Clone, clap::Args)]
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

    /// A storage that fails ends the extraction, rather than leaving pictures out that could be
    /// read elsewhere.
    #[arg(skip)]
    pub fail_on_storage: bool,
}

impl ExtractOptions {
    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            usize::from,
        )
    }
}
