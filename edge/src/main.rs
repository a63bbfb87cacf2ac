//! `edge`: runs the quantised VGG16 base and a shipped head on the device.

mod cmd;
mod options;
mod source;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The name in messages.
const PROGRAM: &str = "edge";

/// Classifies pictures and video with a head that `host train` made.
#[derive(Parser)]
#[command(
    name = PROGRAM,
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage.\n\
                  Results go to stdout, words to stderr. Try: edge run --head head.postcard --source samples/surfaces.y4m"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Classify(cmd::classify::Args),
    Run(cmd::run::Args),
    Info(cmd::info::Args),
    Bench(cmd::bench::Args),
}

fn main() -> ExitCode {
    let start = std::time::Instant::now();
    let cli = Cli::parse();
    let outcome = shared::cli::catch_interrupts().map_err(anyhow::Error::from_boxed).and_then(|()| match cli.command {
        Command::Classify(args) => cmd::classify::run(args),
        Command::Run(args) => cmd::run::run(args),
        Command::Info(args) => cmd::info::run(args),
        Command::Bench(args) => cmd::bench::run(args, start),
    });
    match outcome {
        Ok(()) => ExitCode::from(shared::cli::DONE),
        Err(error) => shared::cli::report(PROGRAM, error.chain()),
    }
}
