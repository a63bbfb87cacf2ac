//! `edge`: runs the quantized VGG16 base and a head on the device.

mod cli;
mod collect;
mod config;
mod events;
mod frame;
pub mod fuzzing;
mod health;
mod jpeg;
mod metrics;
mod model;
mod motion;
mod run;
mod sandbox;
mod service;
mod smoothing;
mod source;
mod status;
mod system;
mod web;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vgg_edge_cli::terminal::Signals;

/// The name in messages.
const PROGRAM: &str = "edge";

/// Classify images and video with a head from `host train`
#[derive(Parser)]
#[command(
    name = PROGRAM,
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage.\n\
                  Results go to stdout, messages to stderr.\n\
                  Try: edge run --head head.postcard --source samples/surfaces.y4m"
)]
struct Cli {
    #[command(flatten)]
    verbosity: vgg_edge_cli::logging::Verbosity,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Classify(cli::classify::Args),
    Run(Box<cli::run::Args>),
    Rollback(cli::rollback::Args),
    Devices(cli::devices::Args),
    Info(cli::info::Args),
    Bench(cli::bench::Args),
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let start = std::time::Instant::now();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match config::expand::<Cli>(&arguments) {
        Ok(arguments) => Cli::parse_from(arguments),
        Err(error) => return vgg_edge_cli::terminal::report(PROGRAM, error.chain()),
    };
    vgg_edge_cli::logging::init(PROGRAM, cli.verbosity);
    // A service has no terminal that could hang up; there SIGHUP requests a reload.
    let reloads = matches!(cli.command, Command::Run(_)) && !std::io::stderr().is_terminal();
    let signals = Signals::install(reloads);
    let outcome = signals.map_err(anyhow::Error::from).and_then(|signals| match cli.command {
        Command::Classify(args) => cli::classify::run(args, &signals.cancel),
        Command::Run(args) => cli::run::run(*args, &|| run_args(&arguments), &signals),
        Command::Rollback(args) => cli::rollback::run(args),
        Command::Devices(args) => cli::devices::run(args),
        Command::Info(args) => cli::info::run(args),
        Command::Bench(args) => cli::bench::run(args, start, &signals.cancel),
    });
    match outcome {
        Ok(()) => ExitCode::from(vgg_edge_cli::terminal::DONE),
        Err(error) => vgg_edge_cli::terminal::report(PROGRAM, error.chain()),
    }
}

/// Parses the arguments of `run` again, with the settings file as it is now.
fn run_args(arguments: &[OsString]) -> anyhow::Result<cli::run::Args> {
    let cli = Cli::try_parse_from(config::expand::<Cli>(arguments)?)?;
    match cli.command {
        Command::Run(args) => Ok(*args),
        _ => anyhow::bail!("not edge run"),
    }
}
