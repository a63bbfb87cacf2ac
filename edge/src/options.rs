//! Flags that several commands share, and the objects they resolve to.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use shared::Head;
use shared::options::BaseOptions;
use shared::pipeline::Classifier;

/// How many threads.
#[derive(Clone, clap::Args)]
pub struct Threads {
    /// Threads for the convolutions
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
}

impl Threads {
    /// The pool of that many threads; none for one.
    pub fn pool(&self) -> Result<Option<Arc<rayon::ThreadPool>>> {
        Ok(shared::base::thread_pool(self.threads.into())?)
    }

    /// Loads base and head, and joins them.
    pub fn classifier(&self, base: &BaseOptions, head: &Path) -> Result<Classifier> {
        // The head first: it is small, and its errors should not wait for the base.
        let head = Arc::new(Head::load(head)?);
        let base = base.load()?;
        Ok(Classifier::new(&base, head, self.pool()?)?)
    }
}
