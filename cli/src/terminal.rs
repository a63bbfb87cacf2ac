//! What both programs do at the terminal: exit codes, errors in one line, standard output, Ctrl-C.

use std::error::Error as StdError;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

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

/// A request to stop, shared by whoever may ask for it and the work that polls it.
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

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static HUNG_UP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Whether Ctrl-C, SIGTERM or (if it ends the program) SIGHUP came since [`catch_interrupts`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Whether SIGHUP came since the last call, for a program that reloads then.
pub fn hung_up() -> bool {
    HUNG_UP.swap(false, Ordering::Relaxed)
}

/// Makes Ctrl-C and SIGTERM a matter of [`interrupted`]; a second one ends the process at once.
/// SIGHUP does the same, or is a matter of [`hung_up`] if the program `reloads` then.
///
/// # Errors
/// What the system says if it refuses handlers.
pub fn catch_interrupts(reloads: bool) -> io::Result<()> {
    let ends = [SIGINT, SIGTERM].into_iter().chain((!reloads).then_some(SIGHUP));
    for signal in ends {
        // In this order: the first signal finds the flag unset.
        flag::register_conditional_shutdown(signal, FAILED.into(), INTERRUPTED.clone())?;
        flag::register(signal, INTERRUPTED.clone())?;
    }
    if reloads {
        flag::register(SIGHUP, HUNG_UP.clone())?;
    }
    Ok(())
}

/// Says that Ctrl-C was seen if the program is still at work a little later: a step that is long
/// and cannot be cut short looks like deafness else, and the second Ctrl-C would end it without
/// saving.
pub fn explain_interrupts(program: &'static str) {
    let watch = move || {
        while !interrupted() {
            std::thread::sleep(Duration::from_millis(100));
        }
        std::thread::sleep(Duration::from_secs(1));
        note(program, "stopping after the step at hand; Ctrl-C again ends at once, without saving");
    };
    // Without it the program works all the same.
    drop(std::thread::Builder::new().name("interrupts".into()).spawn(watch));
}

/// Tells an error and its causes on stderr, in one line, and gives the exit code.
///
/// A broken pipe is a reader that has seen enough, not an error.
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
    let mut words: Vec<String> = Vec::new();
    for cause in &causes {
        let text = cause.to_string().replace('\n', " ");
        // Errors that name their cause in their own text would say it twice.
        if !words.last().is_some_and(|last| last.contains(&text)) {
            words.push(text);
        }
    }
    note(program, format_args!("error: {}", words.join(": ")));
    ExitCode::from(if causes.iter().any(|cause| cause.is::<UsageError>()) { USAGE } else { FAILED })
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

/// Standard output of a run whose work is worth more than its words: what cannot be written stops
/// the words, not the run, and is told of when the work is done.
#[derive(Debug, Default)]
pub struct Printer(Mutex<Option<io::Error>>);

impl Printer {
    /// Writes a line as [`print_line`] does; nothing once one could not be written.
    pub fn line(&self, line: impl std::fmt::Display) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_none() {
            *failed = print_line(line).err();
        }
    }

    /// Ends the words.
    ///
    /// # Errors
    /// Why a line could not be written; a broken pipe among it.
    pub fn end(self) -> io::Result<()> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Writes a note to stderr; if that is closed there is nobody to tell.
pub fn note(program: &str, words: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{program}: {words}");
}

/// Whether progress bars make sense: stderr is a terminal that can move its cursor.
pub fn shows_progress() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Today's date, `YYYY-MM-DD` in UTC, or that of `SOURCE_DATE_EPOCH` (reproducible-builds.org), so
/// that files can be made again byte for byte.
pub fn date() -> String {
    let epoch =
        std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse::<u64>().ok());
    let now = match epoch {
        // The year 9999 is the last that the formatter knows.
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
    fn causes_decide_the_exit_code() {
        assert_eq!(code(&Outer(io::Error::from(io::ErrorKind::BrokenPipe))), ExitCode::from(DONE));
        assert_eq!(code(&Outer(io::Error::from(io::ErrorKind::NotFound))), ExitCode::from(FAILED));
        assert_eq!(code(&Outer(UsageError("no".into()))), ExitCode::from(USAGE));
    }
}
