//! Progress bars, on a terminal only.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `len` steps in the form of an indicatif template; hidden unless a person watches.
pub fn bar(len: u64, template: &str) -> ProgressBar {
    if !shared::cli::shows_progress() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style)
}
