//! Exit codes, errors in one line, standard output and signals.

use std::error::Error as StdError;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit code of a run that succeeded.
pub const DONE: u8 = 0;
/// Exit code of a run that failed.
pub const FAILED: u8 = 1;
/// Exit code of an invalid command line.
pub const USAGE: u8 = 2;

/// An invalid command line that the parser accepts; leads to exit code [`USAGE`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The run was stopped by Ctrl-C or SIGTERM before its end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// A request to stop, shared by the signal handlers and the work that polls it.
///
/// Clones share one state. Work that takes a while checks it between steps, and ends with
/// [`Interrupted`].
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Requests the stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the stop was requested.
    pub fn is_canceled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends the caller once the stop was requested.
    ///
    /// # Errors
    /// [`Interrupted`] if so.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_canceled() { Err(Interrupted) } else { Ok(()) }
    }
}

/// The signals of a program, as flags to poll.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Set by SIGINT, SIGTERM and, unless the program reloads on it, SIGHUP.
    pub cancel: CancelToken,
    hang_up: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers. A second SIGINT or SIGTERM ends the process at once.
    ///
    /// `reloads`: SIGHUP asks for a reload ([`Signals::take_hang_up`]) instead of a stop.
    ///
    /// # Errors
    /// The system's error if it refuses a handler.
    pub fn install(reloads: bool) -> io::Result<Self> {
        let signals = Self::default();
        let stops = [SIGINT, SIGTERM].into_iter().chain((!reloads).then_some(SIGHUP));
        for signal in stops {
            let flag = &signals.cancel.0;
            // In this order: the first signal finds the flag unset.
            flag::register_conditional_shutdown(signal, FAILED.into(), flag.clone())?;
            flag::register(signal, flag.clone())?;
        }
        if reloads {
            flag::register(SIGHUP, signals.hang_up.clone())?;
        }
        Ok(signals)
    }

    /// Whether SIGHUP arrived since the last call.
    pub fn take_hang_up(&self) -> bool {
        self.hang_up.swap(false, Ordering::Relaxed)
    }
}

/// Prints a message if the program still runs one second after Ctrl-C. A long step that cannot be
/// shortened looks like a hang otherwise, and a second Ctrl-C would end it without saving.
pub fn explain_interrupts(cancel: &CancelToken) {
    let cancel = cancel.clone();
    let watch = move || {
        while !cancel.is_canceled() {
            std::thread::sleep(Duration::from_millis(100));
        }
        std::thread::sleep(Duration::from_secs(1));
        log::warn!("stopping after the current step; Ctrl-C again ends at once, without saving");
    };
    // The program works without the thread too.
    drop(std::thread::Builder::new().name("interrupts".into()).spawn(watch));
}

/// Prints an error and its causes to stderr, in one line, and returns the exit code.
///
/// A broken pipe is a reader that has read enough, not an error.
pub fn report<'a>(
    program: &str,
    causes: impl Iterator<Item = &'a (dyn StdError + 'static)>,
) -> ExitCode {
    let causes: Vec<_> = causes.collect();
    let is_broken_pipe = |cause: &&(dyn StdError + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    if causes.iter().any(is_broken_pipe) {
        return ExitCode::from(DONE);
    }
    note(program, format_args!("error: {}", join(causes.iter().map(ToString::to_string))));
    ExitCode::from(if causes.iter().any(|cause| cause.is::<UsageError>()) { USAGE } else { FAILED })
}

/// Joins the texts of an error and its causes in one line. A cause that is part of an earlier text
/// is not repeated: some errors include the text of their cause.
fn join(causes: impl Iterator<Item = String>) -> String {
    let mut texts: Vec<String> = Vec::new();
    for cause in causes {
        let text = cause.replace('\n', " ");
        if !texts.iter().any(|earlier| earlier.contains(&text)) {
            texts.push(text);
        }
    }
    texts.join(": ")
}

/// Writes a line to stdout and flushes, so that the reader of a pipe gets each result at once.
///
/// # Errors
/// The system's error, such as a broken pipe.
pub fn print_line(line: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Standard output of a run whose work matters more than its output: a failed write stops the
/// output, not the run, and is reported at the end.
#[derive(Debug, Default)]
pub struct Printer(Mutex<Option<io::Error>>);

impl Printer {
    /// Writes a line as [`print_line`] does, unless an earlier one failed.
    pub fn line(&self, line: impl std::fmt::Display) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_none() {
            *failed = print_line(line).err();
        }
    }

    /// Ends the output.
    ///
    /// # Errors
    /// The error of the first line that could not be written, such as a broken pipe.
    pub fn end(self) -> io::Result<()> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Writes a message to stderr; errors are ignored, since there is nowhere to report them.
pub fn note(program: &str, message: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{program}: {message}");
}

/// Whether to draw progress bars: stderr is a terminal that can move its cursor.
pub fn shows_progress() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns today's date, `YYYY-MM-DD` in UTC, or that of `SOURCE_DATE_EPOCH`
/// (reproducible-builds.org), so that files can be reproduced byte for byte.
pub fn date() -> String {
    let epoch =
        std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse::<u64>().ok());
    let now = match epoch {
        // The formatter supports years up to 9999.
        Some(seconds) => std::time::UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799)),
        None => std::time::SystemTime::now(),
    };
    humantime::format_rfc3339_seconds(now).to_string().chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer<E: StdError + 'static>(#[source] E);

    fn code(error: &(dyn StdError + 'static)) -> ExitCode {
        report("test", std::iter::successors(Some(error), |&error| error.source()))
    }

    #[test]
    fn reports_name_each_cause_once() {
        let joined = |texts: &[&str]| join(texts.iter().map(|&text| text.to_owned()));
        assert_eq!(joined(&["cannot train", "a.jpg: cannot read: gone", "gone"]), {
            "cannot train: a.jpg: cannot read: gone"
        });
        assert_eq!(joined(&["a: c", "b", "c"]), "a: c: b");
        assert_eq!(joined(&["two\nlines", ""]), "two lines");
    }

    #[test]
    fn cancel_tokens_share_their_state() {
        let token = CancelToken::default();
        let work = token.clone();
        assert!(work.check().is_ok());
        token.cancel();
        assert_eq!(work.check().unwrap_err().to_string(), "interrupted");
    }

    #[test]
    fn causes_decide_the_exit_code() {
        assert_eq!(code(&Outer(io::Error::from(io::ErrorKind::BrokenPipe))), ExitCode::from(DONE));
        assert_eq!(code(&Outer(io::Error::from(io::ErrorKind::NotFound))), ExitCode::from(FAILED));
        assert_eq!(code(&Outer(UsageError("no".into()))), ExitCode::from(USAGE));
    }
}
