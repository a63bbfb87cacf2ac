//! `edge classify`: classifies image files.

use anyhow::Result;
use log::warn;
use vgg_edge_cli::options::ClassifyOptions;
use vgg_edge_cli::terminal::CancelToken;

use crate::cli::options::Threads;
use crate::model::loader::{ModelLoader, TrustOptions};
use crate::sandbox::{Needs, SandboxOptions, SandboxState};

/// Classify image files
///
/// Stdout carries one line per image: file, label and score, separated by tabs, or NDJSON with
/// --json. Files that cannot be read are reported on stderr and skipped; the exit code is then 1.
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
pub fn run(Args { options, trust, threads, sandbox }: Args, cancel: &CancelToken) -> Result<()> {
    let mut needs = Needs::default();
    options.files.iter().for_each(|path| needs.file(path));
    // With the signatures beside them. A base that is not found is reported when it is loaded.
    for path in options.base.path().iter().chain([&options.head]) {
        if trust.trust.is_empty() { needs.file(path) } else { needs.replaceable(path) }
    }
    trust.create_state()?;
    trust.needs(&mut needs);
    let sandbox = sandbox.enter(&needs)?;
    if matches!(sandbox.state, SandboxState::Partial | SandboxState::None) {
        warn!("sandbox {sandbox}");
    }
    let loader = ModelLoader::new(&options.head, &options.base, &trust)?;
    let model = loader.load(None)?;
    // Before the first result, so that an older head is not accepted later.
    loader.note_versions(&model)?;
    let mut classifier = model.classifier(threads.pool()?)?;
    drop(model);
    Ok(vgg_edge_cli::classify::classify(&mut classifier, &options, cancel)?)
}
