//! `edge classify`: what a head says of single pictures.

use anyhow::Result;
use vgg_edge_cli::options::ClassifyOptions;
use vgg_edge_cli::terminal::note;

use crate::PROGRAM;
use crate::cli::options::Threads;
use crate::model::loader::{ModelLoader, TrustOptions};
use crate::sandbox::{Needs, SandboxOptions, SandboxState};

/// Classifies picture files
///
/// One line a picture: file, label, score; or NDJSON with --json. ModelLoader that cannot be read
/// are named on stderr, the rest goes on, and the exit code is 1.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  edge classify --head head.postcard holiday/*.jpg --json")]
pub struct Args {
    #[command(flatten)]
    options: ClassifyOptions,

    #[command(flatten)]
    trust: TrustOptions,

    #[command(flatten)]
    threads: Threads,

    #[command(flatten)]
    sandbox: SandboxOptions,
}

/// Runs the command.
pub fn run(Args { options, trust, threads, sandbox }: Args) -> Result<()> {
    let mut needs = Needs::default();
    options.files.iter().for_each(|path| needs.file(path));
    // With their signatures beside them. A base that is not found is told of when it is loaded.
    for path in options.base.path().iter().chain([&options.head]) {
        if trust.trust.is_empty() { needs.file(path) } else { needs.replaceable(path) }
    }
    trust.create_state()?;
    trust.needs(&mut needs);
    let sandbox = sandbox.enter(&needs)?;
    if matches!(sandbox.state, SandboxState::Partial | SandboxState::None) {
        note(PROGRAM, format_args!("sandbox {sandbox}"));
    }
    let files = ModelLoader::new(&options.head, &options.base, &trust)?;
    let pair = files.load(None)?;
    // Before the first answer, so that no older head is taken later on.
    files.note_versions(&pair)?;
    let mut classifier = pair.classifier(threads.pool()?)?;
    drop(pair);
    Ok(vgg_edge_cli::classify::classify_files(PROGRAM, &mut classifier, &options)?)
}
