//! `edge`: runs the quantised VGG16 base and a shipped head on the device.

mod board;
mod cmd;
mod collect;
mod config;
mod decide;
mod feed;
pub mod hostile;
mod http;
mod jpeg;
mod keeper;
mod model;
mod motion;
mod options;
mod picture;
mod sandbox;
mod service;
mod state;

use std::ffi::OsString;
use std::io::IsTerminal;
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
    Run(Box<cmd::run::Args>),
    Rollback(cmd::rollback::Args),
    Devices(cmd::devices::Args),
    Info(cmd::info::Args),
    Bench(cmd::bench::Args),
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let start = std::time::Instant::now();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match config::expand::<Cli>(&arguments) {
        Ok(arguments) => Cli::parse_from(arguments),
        Err(error) => return shared::cli::report(PROGRAM, error.chain()),
    };
    // A service has no terminal that could hang up; there SIGHUP means to read everything again.
    let reloads = matches!(cli.command, Command::Run(_)) && !std::io::stderr().is_terminal();
    let outcome =
        shared::cli::catch_interrupts(reloads).map_err(anyhow::Error::from).and_then(|()| match cli.command {
            Command::Classify(args) => cmd::classify::run(args),
            Command::Run(args) => cmd::run::run(*args, &|| run_args(&arguments)),
            Command::Rollback(args) => cmd::rollback::run(args),
            Command::Devices(args) => cmd::devices::run(args),
            Command::Info(args) => cmd::info::run(args),
            Command::Bench(args) => cmd::bench::run(args, start),
        });
    match outcome {
        Ok(()) => ExitCode::from(shared::cli::DONE),
        Err(error) => shared::cli::report(PROGRAM, error.chain()),
    }
}

/// The arguments of `run` once more, with the configuration as it is now.
fn run_args(arguments: &[OsString]) -> anyhow::Result<cmd::run::Args> {
    let cli = Cli::try_parse_from(config::expand::<Cli>(arguments)?)?;
    match cli.command {
        Command::Run(args) => Ok(*args),
        _ => anyhow::bail!("not edge run"),
    }
}
