//! The head of the page: key numbers and warnings.

use maud::{Markup, html};

use super::super::calibration::interval;
use super::super::text::visible;
use super::{Page, Report, count, percent};

impl Page<'_> {
    /// The training in one line; its details are in the section on settings.
    pub(super) fn summary(&self) -> Markup {
        let Report { head, fingerprint, .. } = self.report;
        let p = &head.preprocess;
        let decision = &head.decision;
        html! {
            "trained " (visible(&head.training.date)) " · " (p.size) " px, " (p.fit.name()) " · "
            (visible(&head.training.settings))
            " · temperature " (format_args!("{:.2}", decision.temperature))
            " · threshold " (decision.threshold)
            " · head " code { (fingerprint.short()) } " · base " code { (head.base.short()) }
        }
    }

    pub(super) fn tiles(&self) -> Markup {
        let Report { head, evaluation, history, measured, splits, .. } = self.report;
        let all = self.size(*measured);
        let (low, high) = interval((all - self.misclassified.len()) as u64, all as u64);
        let split = self.measured();
        let others: Vec<String> = (0..splits.len())
            .filter(|split| split != measured)
            .map(|i| format!("{} {}", self.size(i), visible(&splits[i])))
            .collect();
        let tile = |value: String, text: String| html! { li { b { (value) } span { (text) } } };
        html! {
            ul.tiles {
                (tile(
                    percent(evaluation.accuracy),
                    format!(
                        "{split} accuracy; 95 % confidence interval {:.1} to {:.1}",
                        100.0 * low,
                        100.0 * high
                    ),
                ))
                (tile(format!("{:.4}", evaluation.loss), format!("{split} loss (nats)")))
                @if others.is_empty() {
                    (tile(all.to_string(), format!("images ({split})")))
                } @else {
                    (tile(all.to_string(), format!("{split} images, {}", others.join(", "))))
                }
                (tile(head.labels.len().to_string(), "classes".to_owned()))
                @if let Some(history) = history {
                    (tile(
                        head.training.best_epoch.to_string(),
                        format!("best epoch, of {}", history.epochs()),
                    ))
                }
                (tile(percent(self.charts.calibrated.error()), match &self.charts.uncalibrated {
                    Some(uncalibrated) => format!(
                        "expected calibration error; {} at temperature 1",
                        percent(uncalibrated.error())
                    ),
                    None => "expected calibration error (ECE)".to_owned(),
                }))
            }
        }
    }

    /// The reservations about the metrics.
    pub(super) fn notices(&self) -> Markup {
        let conflicts = self.duplicates.iter().filter(|group| group.conflict).count();
        let across = self.duplicates.iter().filter(|group| group.across).count();
        let link = |id: &str, text: String| html! { a href=(format_args!("#{id}")) { (text) } };
        let mut notices = Vec::new();
        if self.report.history.is_some() && self.report.splits.len() == 1 {
            notices.push(html! {
                "There is no validation set: the metrics are those of the training images."
            });
        }
        if conflicts > 0 {
            let (have, are) = if conflicts == 1 {
                ("has", "one of its labels is")
            } else {
                ("have", "some of their labels are")
            };
            notices.push(html! {
                (link("duplicates", count(conflicts, "image")))
                " " (have) " more than one label: " (are) " wrong."
            });
        }
        if across > 0 {
            notices.push(html! {
                (link("duplicates", count(across, "image")))
                @if across == 1 { " is" } @else { " are" }
                " in both training and validation: the metrics are too optimistic."
            });
        }
        if !self.report.skipped.is_empty() {
            let files = self.report.skipped.len();
            notices.push(html! {
                (link("unreadable", count(files, "file")))
                " could not be read and " (if files == 1 { "was" } else { "were" }) " left out."
            });
        }
        if !self.suspicious.is_empty() {
            notices.push(html! {
                (link("suspects", count(self.suspicious.len(), "label")))
                " may be wrong: the head predicts another class with a high score."
            });
        }
        html! {
            @if !notices.is_empty() {
                div.notice role="note" {
                    b { "Check these" }
                    ul { @for notice in &notices { li { (notice) } } }
                }
            }
        }
    }
}
