//! `host classify`: classifies image files, with the output of `edge classify`.

use std::sync::Arc;

use anyhow::Result;
use vgg_edge::Head;
use vgg_edge::classifier::Classifier;
use vgg_edge_cli::options::ClassifyOptions;
use vgg_edge_cli::terminal::CancelToken;

/// Classify images
///
/// Prints a line per image: file, label, score; or NDJSON with --json, in the format of edge.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  host classify --head head.postcard holiday/*.jpg --json\n  \
    host classify --head head.postcard --raw yuyv:640x480 frame.bin")]
pub struct Args {
    #[command(flatten)]
    options: ClassifyOptions,
}

/// Runs the command.
pub fn run(Args { options }: Args, cancel: &CancelToken) -> Result<()> {
    let head = Arc::new(Head::open(&options.head)?);
    let base = options.base.load()?;
    let mut classifier = Classifier::new(&base, head)?;
    Ok(vgg_edge_cli::classify::classify(&mut classifier, &options, cancel)?)
}
