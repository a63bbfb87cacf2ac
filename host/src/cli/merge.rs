//! `host merge`: parts of features to one file.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;
use vgg_edge_cli::terminal::print_line;

use crate::features::parts::{Merged, Set};

/// Puts the parts of host extract --shard together
///
/// Looks whether all parts are there, whole, of the same pictures, settings, base and version, and
/// whether each picture is in one of them; names those of which this is not so. The file is the
/// same to the byte whatever the number of parts, and is what host train --features reads.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  host merge parts -o photos.features && host train --features photos.features -o head.postcard"
)]
pub struct Args {
    /// Folder of the parts
    #[arg(value_name = "DIR")]
    parts: PathBuf,

    /// Where the features go
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Prints one object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    vgg_edge::durable_fs::check_writable(&args.output)?;
    let Merged { parts, pictures, rows } = Set::open(&args.parts)?.merge(&args.output)?;
    if args.json {
        print_line(json!({
            "output": args.output, "parts": parts, "pictures": pictures, "skipped": pictures - rows,
        }))?;
    } else {
        print_line(format_args!(
            "wrote {}: {rows} of {pictures} pictures, {parts} parts",
            args.output.display()
        ))?;
    }
    Ok(())
}
