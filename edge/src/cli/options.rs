//! Flags that several commands share, and the objects they resolve to.

use std::sync::Arc;

use anyhow::Result;

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
        Ok(vgg_edge::backbone::thread_pool(self.threads.into())?)
    }
}

/// A figure of this process's memory in bytes, by its name in `/proc/self/status` such as `VmRSS`
/// (resident) or `VmHWM` (the peak of it).
pub fn memory(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}
