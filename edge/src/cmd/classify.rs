//! `edge classify`: what a head says of single pictures.

use anyhow::Result;
use shared::cli::note;
use shared::options::ClassifyOptions;

use crate::PROGRAM;
use crate::options::Threads;
use crate::sandbox::{Needs, SandboxOptions, State};

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

    #[command(flatten)]
    sandbox: SandboxOptions,
}

/// Runs the command.
pub fn run(Args { options, threads, sandbox }: Args) -> Result<()> {
    let mut needs = Needs::default();
    for path in options.files.iter().chain([&options.head]) {
        needs.file(path);
    }
    // A base that is not found is told of when it is loaded.
    if let Ok(path) = options.base.path() {
        needs.file(&path);
    }
    let sandbox = sandbox.enter(&needs)?;
    if matches!(sandbox.state, State::Partial | State::None) {
        note(PROGRAM, format_args!("sandbox {sandbox}"));
    }
    let (_, mut classifier) = threads.classifier(&options.base, &options.head)?;
    Ok(shared::pipeline::classify_files(PROGRAM, &mut classifier, &options)?)
}
