//! How far a piece of work has come: a bar on a terminal, elsewhere a line from time to time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use vgg_edge_cli::terminal::note;

use crate::PROGRAM;

/// Time between two lines.
const EVERY: Duration = Duration::from_secs(10);

/// How far a piece of work has come. Any thread may count; the bar goes when this is dropped.
pub struct Meter {
    bar: ProgressBar,
    /// What is counted, in the plural.
    unit: &'static str,
    /// For lines; `None` if there is a bar.
    lines: Option<Mutex<Lines>>,
}

/// When lines were written.
struct Lines {
    start: Instant,
    last: Instant,
    /// Steps that were behind it at the start.
    from: u64,
}

impl Meter {
    /// Of `len` steps, which are `unit` (pictures, batches).
    pub fn new(len: u64, unit: &'static str) -> Self {
        let template = format!(
            "{{bar:30}} {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{eta}} left  {{wide_msg}}"
        );
        let bar = bar(len, &template);
        let now = Instant::now();
        let lines = bar.is_hidden().then(|| Mutex::new(Lines { start: now, last: now, from: 0 }));
        Self { bar, unit, lines }
    }

    /// Counts steps that an earlier run has done.
    pub fn resume_at(&self, done: u64) {
        self.bar.set_position(done);
        // They say nothing of the rate.
        self.bar.reset_eta();
        if let Some(lines) = &self.lines {
            lines.lock().unwrap_or_else(PoisonError::into_inner).from = done;
        }
    }

    /// So many more are done.
    pub fn inc(&self, steps: u64) {
        self.bar.inc(steps);
        self.tell();
    }

    /// So many are done in all.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
        self.tell();
    }

    /// Begins a step of this name; the one before is done.
    pub fn next(&self, name: &str) {
        if !self.bar.message().is_empty() {
            self.inc(1);
        }
        self.message(name);
    }

    /// What is being worked on.
    pub fn message(&self, words: impl Into<String>) {
        self.bar.set_message(words.into());
    }

    /// Writes something else to the terminal.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }

    fn tell(&self) {
        let Some(lines) = &self.lines else { return };
        // Who finds it locked need not wait: somebody else is looking at the clock.
        let Ok(mut lines) = lines.try_lock() else { return };
        let len = self.bar.length().unwrap_or_default();
        if let Some(line) = lines.line(Instant::now(), self.bar.position(), len, self.unit) {
            note(PROGRAM, line);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Lines {
    /// The line that is due, if one is.
    fn line(&mut self, now: Instant, done: u64, len: u64, unit: &str) -> Option<String> {
        if now.duration_since(self.last) < EVERY || done >= len {
            return None;
        }
        self.last = now;
        let seconds = now.duration_since(self.start).as_secs_f64();
        let rate = done.saturating_sub(self.from) as f64 / seconds;
        let left = if rate > 0.0 {
            let left =
                Duration::try_from_secs_f64((len - done) as f64 / rate).unwrap_or(Duration::MAX);
            format!(", {} left", HumanDuration(left))
        } else {
            String::new()
        };
        let digits = if rate < 10.0 { 2 } else { 0 };
        Some(format!(
            "{} of {} {unit} ({rate:.digits$} a second{left})",
            HumanCount(done),
            HumanCount(len)
        ))
    }
}

/// A bar of `len` steps in the form of an indicatif template; hidden unless a person watches.
pub fn bar(len: u64, template: &str) -> ProgressBar {
    if !vgg_edge_cli::terminal::shows_progress() {
        let bar = ProgressBar::hidden();
        bar.set_length(len);
        return bar;
    }
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_every_ten_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lines = Lines { start, last: start, from: 0 };
        let mut line = |seconds, done| lines.line(at(seconds), done, 100_000, "pictures");
        assert_eq!(line(9, 2000), None);
        assert_eq!(
            line(10, 2500).unwrap(),
            "2,500 of 100,000 pictures (250 a second, 7 minutes left)"
        );
        assert_eq!(line(19, 5000), None);
        assert_eq!(
            line(25, 5000).unwrap(),
            "5,000 of 100,000 pictures (200 a second, 8 minutes left)"
        );
        assert_eq!(line(40, 100_000), None, "what is done is told by its result");
        // What an earlier run has done is not of this one's speed.
        let mut lines = Lines { start, last: start, from: 90 };
        let line = lines.line(at(20), 100, 110, "batches").unwrap();
        assert_eq!(line, "100 of 110 batches (0.50 a second, 20 seconds left)");
        let mut lines = Lines { start, last: start, from: 0 };
        assert_eq!(lines.line(at(20), 0, 13, "layers").unwrap(), "0 of 13 layers (0.00 a second)");
    }
}
