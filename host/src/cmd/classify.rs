//! `host classify`: what a head says of single pictures, in the same words as `edge classify`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use shared::Head;
use shared::pipeline::Classifier;

use crate::PROGRAM;
use crate::options::BaseOptions;

/// Classifies pictures
///
/// One line a picture: file, label, score; or NDJSON with --json, as edge prints it.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  host classify --head head.postcard holiday/*.jpg --json")]
pub struct Args {
    /// Picture files
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
    let head = Arc::new(Head::load(&args.head)?);
    let base = args.base.load()?;
    let mut classifier = Classifier::new(&base, head, None)?;
    classifier.set_digest(args.digest);
    Ok(shared::pipeline::classify_files(PROGRAM, &mut classifier, &args.files, args.json)?)
}
