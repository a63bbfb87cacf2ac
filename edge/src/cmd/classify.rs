//! `edge classify`: what a head says of single pictures.

use anyhow::Result;
use shared::options::ClassifyOptions;

use crate::PROGRAM;
use crate::model::{Files, TrustOptions};
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
    trust: TrustOptions,

    #[command(flatten)]
    threads: Threads,
}

/// Runs the command.
pub fn run(Args { options, trust, threads }: Args) -> Result<()> {
    let files = Files::new(&options.head, &options.base, &trust)?;
    let pair = files.load(None)?;
    // Before the first answer, so that no older head is taken later on.
    files.note_versions(&pair)?;
    let mut classifier = pair.classifier(threads.pool()?)?;
    drop(pair);
    Ok(shared::pipeline::classify_files(PROGRAM, &mut classifier, &options)?)
}
