//! `host merge`: parts of features to one file.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;
use vgg_edge_cli::terminal::{CancelToken, print_line};

use crate::features::parts::{Merged, PartSet};

/// Merge the parts of host extract --shard into one file
///
/// Verifies that all parts are there, whole, of the same images, settings, backbone and version,
/// and that each image is in one of them; the message names those that are not. The file is the
/// same to the byte whatever the number of parts, and is read by host train --features.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  \
    host merge parts -o photos.features && host train --features photos.features -o head.postcard")]
pub struct Args {
    /// Directory of the parts
    #[arg(value_name = "DIR")]
    parts: PathBuf,

    /// Output file of the features
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: PathBuf,

    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args, cancel: &CancelToken) -> Result<()> {
    vgg_edge::durable_fs::check_writable(&args.output)?;
    let Merged { parts, images, rows } = PartSet::open(&args.parts)?.merge(&args.output, cancel)?;
    if args.json {
        print_line(json!({
            "output": args.output, "parts": parts, "pictures": images, "skipped": images - rows,
        }))?;
    } else {
        print_line(format_args!(
            "wrote {}: {rows} of {images} images, {parts} parts",
            args.output.display()
        ))?;
    }
    Ok(())
}
