//! Flags that several commands share, and the objects they resolve to.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use shared::conv::Kernel;
use shared::pipeline::Classifier;
use shared::{Base, Head};

/// Which base, which kernel, how many threads.
#[derive(clap::Args)]
pub struct BaseOptions {
    /// The int8 base [default: models/vgg16-notop-int8.onnx here or beside the program]
    #[arg(long, value_name = "ONNX", env = shared::base::BASE_VARIABLE)]
    pub base: Option<PathBuf>,

    /// Code for the convolutions, all with the same results: portable, avx2, neon [default: the best for this CPU]
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,

    /// Threads for the convolutions
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
}

impl BaseOptions {
    /// Loads the base.
    pub fn load(&self) -> Result<Base> {
        let kernel = match &self.kernel {
            Some(name) => Kernel::from_name(name)?,
            None => Kernel::detect()?,
        };
        let path = match &self.base {
            Some(path) => path.clone(),
            None => shared::base::find()?,
        };
        Ok(Base::load(&path, kernel)?)
    }

    /// Loads base and head, and joins them.
    pub fn classifier(&self, head: &std::path::Path) -> Result<Classifier> {
        // The head first: it is small, and its errors should not wait for the base.
        let head = Arc::new(Head::load(head)?);
        let base = self.load()?;
        Ok(Classifier::new(&base, head, shared::base::thread_pool(self.threads.into())?)?)
    }
}
