//! Progress of long work: a bar on a terminal, otherwise a line from time to time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

/// Time between two lines.
const EVERY: Duration = Duration::from_secs(10);

/// Progress of some work. Any thread may advance it; dropping it removes the bar.
pub struct Progress {
    bar: ProgressBar,
    /// Unit that is counted, in the plural.
    unit: &'static str,
    /// State of the lines; `None` if there is a bar.
    lines: Option<Mutex<Lines>>,
}

/// When lines were written.
struct Lines {
    start: Instant,
    last: Instant,
    /// Steps that were complete at the start.
    from: u64,
}

impl Progress {
    /// Shows the progress of `len` steps, counted in `unit` (images, batches).
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
        // They do not count towards the rate.
        self.bar.reset_eta();
        if let Some(lines) = &self.lines {
            lines.lock().unwrap_or_else(PoisonError::into_inner).from = done;
        }
    }

    /// Advances by some steps.
    pub fn inc(&self, steps: u64) {
        self.bar.inc(steps);
        self.log();
    }

    /// Sets the number of completed steps.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
        self.log();
    }

    /// Completes the step in progress and starts one of this name.
    pub fn next(&self, name: &str) {
        if !self.bar.message().is_empty() {
            self.inc(1);
        }
        self.message(name);
    }

    /// Shows a message beside the bar.
    pub fn message(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }

    /// Hides the bar while `write` writes something else to the terminal.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }

    fn log(&self) {
        let Some(lines) = &self.lines else { return };
        // If it is locked, another thread is checking the time.
        let Ok(mut lines) = lines.try_lock() else { return };
        let len = self.bar.length().unwrap_or_default();
        if let Some(line) = lines.line(Instant::now(), self.bar.position(), len, self.unit) {
            log::info!("{line}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Lines {
    /// Returns the line that is due, if any.
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
            "{} of {} {unit} ({rate:.digits$} per second{left})",
            HumanCount(done),
            HumanCount(len)
        ))
    }
}

/// Creates a bar of `len` steps from an indicatif template; hidden unless stderr is a terminal.
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
    fn a_progress_line_is_due_every_ten_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lines = Lines { start, last: start, from: 0 };
        let mut line = |seconds, done| lines.line(at(seconds), done, 100_000, "images");
        assert_eq!(line(9, 2000), None);
        assert_eq!(
            line(10, 2500).unwrap(),
            "2,500 of 100,000 images (250 per second, 7 minutes left)"
        );
        assert_eq!(line(19, 5000), None);
        assert_eq!(
            line(25, 5000).unwrap(),
            "5,000 of 100,000 images (200 per second, 8 minutes left)"
        );
        assert_eq!(line(40, 100_000), None, "the result follows when all is done");
        // Steps of an earlier run do not count towards the rate.
        let mut lines = Lines { start, last: start, from: 90 };
        let line = lines.line(at(20), 100, 110, "batches").unwrap();
        assert_eq!(line, "100 of 110 batches (0.50 per second, 20 seconds left)");
        let mut lines = Lines { start, last: start, from: 0 };
        assert_eq!(
            lines.line(at(20), 0, 13, "layers").unwrap(),
            "0 of 13 layers (0.00 per second)"
        );
    }
}
