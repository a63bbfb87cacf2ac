//! `host`: trains classifiers on the frozen, quantized VGG16 base.

mod augment;
mod checkpoint;
mod cli;
mod dataset;
mod features;
mod labeling;
mod metrics;
mod progress;
mod report;
mod trainer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The name in messages.
const PROGRAM: &str = "host";

/// Trains image classifiers on the frozen, quantized VGG16 base, for `edge` to run.
#[derive(Parser)]
#[command(
    name = PROGRAM,
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage.\n\
                  Results go to stdout, words to stderr. Try: host train samples/surfaces -o head.postcard"
)]
struct Cli {
    #[command(flatten)]
    verbosity: vgg_edge_cli::logging::Verbosity,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(Box<cli::train::Args>),
    Augment(cli::augment::Args),
    Extract(cli::extract::Args),
    Merge(cli::merge::Args),
    Evaluate(cli::evaluate::Args),
    Classify(cli::classify::Args),
    Label(cli::label::Args),
    Summary(cli::summary::Args),
    Inspect(cli::inspect::Args),
    Keygen(cli::keygen::Args),
    Sign(cli::sign::Args),
    Verify(cli::verify::Args),
    Base(cli::base::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    vgg_edge_cli::logging::init(PROGRAM, cli.verbosity);
    vgg_edge_cli::terminal::explain_interrupts(PROGRAM);
    // The first for the commands that still poll `interrupted`.
    let signals = vgg_edge_cli::terminal::catch_interrupts(false)
        .and_then(|()| vgg_edge_cli::terminal::Signals::install(false));
    let outcome = signals.map_err(anyhow::Error::from).and_then(|signals| match cli.command {
        Command::Train(args) => cli::train::run(*args, &signals.cancel),
        Command::Augment(args) => cli::augment::run(args),
        Command::Extract(args) => cli::extract::run(args),
        Command::Merge(args) => cli::merge::run(args),
        Command::Evaluate(args) => cli::evaluate::run(args, &signals.cancel),
        Command::Classify(args) => cli::classify::run(args),
        Command::Label(args) => cli::label::run(args),
        Command::Summary(args) => cli::summary::run(args),
        Command::Inspect(args) => cli::inspect::run(args),
        Command::Keygen(args) => cli::keygen::run(args),
        Command::Sign(args) => cli::sign::run(args),
        Command::Verify(args) => cli::verify::run(args),
        Command::Base(args) => cli::base::run(args, &signals.cancel),
    });
    match outcome {
        Ok(()) => ExitCode::from(vgg_edge_cli::terminal::DONE),
        Err(error) => vgg_edge_cli::terminal::report(PROGRAM, error.chain()),
    }
}
