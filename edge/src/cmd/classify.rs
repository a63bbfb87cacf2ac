//! `edge classify`: what a head says of single pictures.

use anyhow::Result;
use shared::options::ClassifyOptions;

use crate::PROGRAM;
use crate::options::Threads;

/// Classifies picture files
///
/// One line a picture: file, label, score; or NDJSON with --json. Files that cannot be read are named on stderr, the rest goes on, and
/// the exit code is 1.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  edge classify --head head.postcard holiday/*.jpg --json")]
pub struct Args {
    #[command(flatten)]
    options: ClassifyOptions,

    #[command(flatten)]
    threads: Threads,
}

/// Runs the command.
pub fn run(Args { options, threads }: Args) -> Result<()> {
    let (_, mut classifier) = threads.classifier(&options.base, &options.head)?;
    Ok(shared::pipeline::classify_files(PROGRAM, &mut classifier, &options)?)
}
