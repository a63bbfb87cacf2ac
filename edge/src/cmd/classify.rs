//! `edge classify`: what a head says of single pictures.

use std::path::PathBuf;

use anyhow::Result;

use crate::PROGRAM;
use crate::options::BaseOptions;

/// Classifies picture files
///
/// One line a picture: file, label, score; or NDJSON with --json. Files that cannot be read are named on stderr, the rest goes on, and
/// the exit code is 1.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  edge classify --head head.postcard holiday/*.jpg --json")]
pub struct Args {
    /// Picture files (JPEG, PNG, BMP, PNM, WebP)
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// The head
    #[arg(long, value_name = "FILE")]
    head: PathBuf,

    #[command(flatten)]
    base: BaseOptions,

    /// Prints NDJSON
    #[arg(long)]
    json: bool,

    /// Adds the SHA-256 of the quantised feature map to each line, to compare machines
    #[arg(long, requires = "json")]
    digest: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let mut classifier = args.base.classifier(&args.head)?;
    classifier.set_digest(args.digest);
    Ok(shared::pipeline::classify_files(PROGRAM, &mut classifier, &args.files, args.json)?)
}
