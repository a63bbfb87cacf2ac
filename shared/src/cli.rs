//! What both programs do at the terminal: exit codes, errors in one line, standard output, Ctrl-C.

use std::error::Error as StdError;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of a run that did what it was asked.
pub const DONE: u8 = 0;
/// Exit code of a run that failed.
pub const FAILED: u8 = 1;
/// Exit code of a command line that makes no sense.
pub const USAGE: u8 = 2;

/// A command line that parses but makes no sense: ends with exit code [`USAGE`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The run was stopped by Ctrl-C or SIGTERM before it was done.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing was written")]
pub struct Interrupted;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether Ctrl-C, SIGTERM or SIGHUP came since [`catch_interrupts`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Makes Ctrl-C, SIGTERM and SIGHUP a matter of [`interrupted`]; a second one ends the process at once.
///
/// # Errors
/// What the system says if it refuses handlers.
pub fn catch_interrupts() -> Result<(), Box<dyn StdError + Send + Sync>> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(FAILED));
        }
    })
    .map_err(Into::into)
}

/// Turns the outcome of a program into words on stderr and an exit code. A broken pipe is a reader that has seen enough, not an error.
pub fn exit_code(program: &str, outcome: Result<(), Box<dyn StdError + Send + Sync>>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::from(DONE) };
    let chain: Vec<&(dyn StdError + 'static)> =
        std::iter::successors(Some(&*error as &(dyn StdError + 'static)), |&error| error.source()).collect();
    let is_broken_pipe = |error: &&(dyn StdError + 'static)| {
        error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    if chain.iter().any(is_broken_pipe) {
        return ExitCode::from(DONE);
    }
    let mut words: Vec<String> = Vec::new();
    for error in &chain {
        let text = error.to_string().replace('\n', " ");
        // Errors that name their cause in their own text would say it twice.
        if !words.last().is_some_and(|last| last.contains(&text)) {
            words.push(text);
        }
    }
    // Standard error may be closed too; there is nobody left to tell.
    let _ = writeln!(io::stderr(), "{program}: error: {}", words.join(": "));
    ExitCode::from(if chain.iter().any(|error| error.is::<UsageError>()) { USAGE } else { FAILED })
}

/// Writes a line to stdout at once, so that a reader of a pipe sees each result when it is there.
///
/// # Errors
/// What the system says; a broken pipe among it.
pub fn print_line(line: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Writes a note to stderr.
pub fn note(program: &str, words: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{program}: {words}");
}

/// Whether progress bars make sense: stderr is a terminal that can move its cursor.
pub fn shows_progress() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Today's date, `YYYY-MM-DD` in UTC, or that of `SOURCE_DATE_EPOCH` (reproducible-builds.org), so that files can be made again byte for byte.
pub fn date() -> String {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse::<u64>().ok());
    let now = match epoch {
        // The year 9999 is the last that the formatter knows.
        Some(seconds) => std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.min(253_402_300_799)),
        None => std::time::SystemTime::now(),
    };
    humantime::format_rfc3339_seconds(now).to_string().chars().take(10).collect()
}
