//! Messages on stderr: the `log` facade with one line per message, `PROGRAM: message`.
//!
//! A logger of its own rather than `env_logger`, because the format is fixed, levels come from
//! flags only, and the device program stays small.

use std::io::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};

/// Flags for how much is written to stderr.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
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
        // Crates below us have messages of their own, which are not for users.
        ["vgg_edge", "vgg_edge_cli", "host", "edge", "quant"]
            .contains(&metadata.target().split("::").next().unwrap_or_default())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // Nobody is left to be told if stderr is closed.
            let _ = writeln!(io::stderr(), "{}: {}", self.program, record.args());
        }
    }

    fn flush(&self) {}
}

/// Writes the messages of this process to stderr from now on; the first call of a process counts.
pub fn init(program: &'static str, verbosity: Verbosity) {
    if log::set_boxed_logger(Box::new(Stderr { program })).is_ok() {
        log::set_max_level(verbosity.level());
    }
}
