//! Messages on stderr: the `log` facade with one line per message, `PROGRAM: message`.
//!
//! A logger of its own rather than `env_logger`, because the format is fixed, levels come from
//! flags only, and the device program stays small.

use std::io::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};

/// Flags for the amount of messages on stderr.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[command(next_help_heading = "Messages")]
pub struct Verbosity {
    /// Write warnings and errors only; twice: errors only
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "verbose")]
    pub quiet: u8,

    /// Write more messages
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Verbosity {
    /// The most detailed level that is written.
    pub fn level(self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (0, 0) => LevelFilter::Info,
            (0, 1) => LevelFilter::Debug,
            (0, _) => LevelFilter::Trace,
            (1, _) => LevelFilter::Warn,
            _ => LevelFilter::Error,
        }
    }
}

struct Stderr {
    program: &'static str,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The messages of dependencies are not for users.
        ["vgg_edge", "vgg_edge_cli", "host", "edge", "quant"]
            .contains(&metadata.target().split("::").next().unwrap_or_default())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // If stderr is closed, there is nowhere to report it.
            let _ = writeln!(io::stderr(), "{}: {}", self.program, record.args());
        }
    }

    fn flush(&self) {}
}

/// Writes the messages of this process to stderr from now on. Only the first call has an effect.
pub fn init(program: &'static str, verbosity: Verbosity) {
    if log::set_boxed_logger(Box::new(Stderr { program })).is_ok() {
        log::set_max_level(verbosity.level());
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        verbosity: Verbosity,
    }

    #[test]
    fn verbosity_flags_select_the_log_level() {
        for (flags, level) in [
            (&[][..], LevelFilter::Info),
            (&["-q"], LevelFilter::Warn),
            (&["-qq"], LevelFilter::Error),
            (&["--quiet", "--quiet", "--quiet"], LevelFilter::Error),
            (&["-v"], LevelFilter::Debug),
            (&["-vv"], LevelFilter::Trace),
            (&["--verbose", "-vv"], LevelFilter::Trace),
        ] {
            let args = ["test"].iter().chain(flags);
            assert_eq!(Cli::parse_from(args).verbosity.level(), level, "{flags:?}");
        }
        assert!(Cli::try_parse_from(["test", "-q", "-v"]).is_err());
    }

    #[test]
    fn only_messages_of_this_project_are_logged() {
        let logger = Stderr { program: "test" };
        for (target, expected) in [
            ("vgg_edge::backbone", true),
            ("host", true),
            ("edge::source::camera", true),
            ("hyper::proto", false),
            ("hostname", false),
        ] {
            let metadata = Metadata::builder().target(target).level(log::Level::Error).build();
            assert_eq!(logger.enabled(&metadata), expected, "{target}");
        }
    }
}
