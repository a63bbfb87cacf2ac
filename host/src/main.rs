//! `host`: trains classifiers on the frozen, quantised VGG16 base.

mod augment;
mod cache;
mod checkpoint;
mod cmd;
mod data;
mod extract;
mod folds;
mod label;
mod metrics;
mod npz;
mod options;
mod progress;
mod report;
mod shard;
mod store;
mod trainer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The name in messages.
const PROGRAM: &str = "host";

/// Trains image classifiers on the frozen, quantised VGG16 base, for `edge` to run.
#[derive(Parser)]
#[command(
    name = PROGRAM,
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage.\n\
                  Results go to stdout, words to stderr. Try: host train samples/surfaces -o head.postcard"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(Box<cmd::train::Args>),
    Augment(cmd::augment::Args),
    Extract(cmd::extract::Args),
    Merge(cmd::merge::Args),
    Evaluate(cmd::evaluate::Args),
    Classify(cmd::classify::Args),
    Label(cmd::label::Args),
    Summary(cmd::summary::Args),
    Inspect(cmd::inspect::Args),
    Keygen(cmd::keygen::Args),
    Sign(cmd::sign::Args),
    Verify(cmd::verify::Args),
    Base(cmd::base::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    shared::cli::explain_interrupts(PROGRAM);
    let outcome = shared::cli::catch_interrupts(false).map_err(anyhow::Error::from).and_then(|()| match cli.command {
        Command::Train(args) => cmd::train::run(*args),
        Command::Augment(args) => cmd::augment::run(args),
        Command::Extract(args) => cmd::extract::run(args),
        Command::Merge(args) => cmd::merge::run(args),
        Command::Evaluate(args) => cmd::evaluate::run(args),
        Command::Classify(args) => cmd::classify::run(args),
        Command::Label(args) => cmd::label::run(args),
        Command::Summary(args) => cmd::summary::run(args),
        Command::Inspect(args) => cmd::inspect::run(args),
        Command::Keygen(args) => cmd::keygen::run(args),
        Command::Sign(args) => cmd::sign::run(args),
        Command::Verify(args) => cmd::verify::run(args),
        Command::Base(args) => cmd::base::run(args),
    });
    match outcome {
        Ok(()) => ExitCode::from(shared::cli::DONE),
        Err(error) => shared::cli::report(PROGRAM, error.chain()),
    }
}
