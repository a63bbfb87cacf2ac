//! The command line: one file per command with its flags, and the settings they resolve to.

mod augment;
mod base;
mod classify;
mod evaluate;
mod extract;
mod inspect;
mod keygen;
mod label;
mod merge;
mod options;
mod password;
mod sign;
mod summary;
mod train;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vgg_edge_cli::logging::{self, Verbosity};
use vgg_edge_cli::terminal::{self, CancelToken, Signals};

use crate::PROGRAM;

/// Train image classifiers on the frozen, quantized VGG16 base, for `edge` to run
#[derive(Parser)]
#[command(
    name = PROGRAM,
    version,
    after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage.\n\
                  Results go to stdout, messages to stderr.\n\
                  Try: host train samples/surfaces -o head.postcard"
)]
struct Cli {
    #[command(flatten)]
    verbosity: Verbosity,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(Box<train::Args>),
    Augment(augment::Args),
    Extract(extract::Args),
    Merge(merge::Args),
    Evaluate(evaluate::Args),
    Classify(classify::Args),
    Label(label::Args),
    Summary(summary::Args),
    Inspect(inspect::Args),
    Keygen(keygen::Args),
    Sign(sign::Args),
    Verify(verify::Args),
    Base(base::Args),
}

impl Command {
    fn run(self, cancel: &CancelToken) -> anyhow::Result<()> {
        match self {
            Self::Train(args) => train::run(*args, cancel),
            Self::Augment(args) => augment::run(args),
            Self::Extract(args) => extract::run(args, cancel),
            Self::Merge(args) => merge::run(args, cancel),
            Self::Evaluate(args) => evaluate::run(args, cancel),
            Self::Classify(args) => classify::run(args, cancel),
            Self::Label(args) => label::run(args, cancel),
            Self::Summary(args) => summary::run(args),
            Self::Inspect(args) => inspect::run(args),
            Self::Keygen(args) => keygen::run(args),
            Self::Sign(args) => sign::run(args),
            Self::Verify(args) => verify::run(args),
            Self::Base(args) => base::run(args, cancel),
        }
    }
}

/// Runs the program: parses the command line, installs signal handlers, runs the command and
/// reports its error.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init(PROGRAM, cli.verbosity);
    let outcome = Signals::install(false).map_err(anyhow::Error::from).and_then(|signals| {
        terminal::explain_interrupts(&signals.cancel);
        cli.command.run(&signals.cancel)
    });
    match outcome {
        Ok(()) => ExitCode::from(terminal::DONE),
        Err(error) => terminal::report(PROGRAM, error.chain()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn train_flags_are_grouped_under_headings() {
        let command = Cli::command();
        let train = command.find_subcommand("train").unwrap();
        let heading = |id: &str| {
            let arg = train.get_arguments().find(|arg| arg.get_id() == id).unwrap();
            arg.get_help_heading().unwrap_or_default()
        };
        for (id, expected) in [
            ("data", ""),
            ("val_split", "Data"),
            ("size", "Data"),
            ("threads", "Data"),
            ("base", "Backbone"),
            ("dropout", "Head"),
            ("lr", "Optimizer"),
            ("rotation", "Augmentation"),
            ("variants", "Augmentation"),
            ("tuned_base", "Fine-tuning"),
            ("output", "Output"),
            ("report", "Output"),
        ] {
            assert_eq!(heading(id), expected, "{id}");
        }
    }
}
