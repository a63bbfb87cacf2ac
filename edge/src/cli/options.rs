//! Flags of several commands, and the objects that they resolve to.

use std::sync::Arc;

use anyhow::Result;

/// The number of threads.
#[derive(Clone, clap::Args)]
pub struct Threads {
    /// Threads for the convolutions
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub threads: u16,
}

impl Threads {
    /// Returns a pool of that many threads; `None` for one thread.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn pool(&self) -> Result<Option<Arc<rayon::ThreadPool>>> {
        Ok(vgg_edge::backbone::thread_pool(self.threads.into())?)
    }
}
