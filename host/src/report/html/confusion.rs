//! The section on the confusion matrix.

use std::cmp::Reverse;

use maud::{Markup, html};

use super::super::text::bdi;
use super::{Page, column, number, percent, scroll, text_column};

/// The number of confusions in the list of the most frequent ones.
const MOST_FREQUENT: usize = 10;

impl Page<'_> {
    pub(super) fn confusion(&self) -> Markup {
        let classes = self.report.evaluation.confusion.len();
        let common = self.most_frequent_confusions();
        let Some(chart) = &self.charts.confusion else {
            return html! {
                p.soft { "The confusion matrix of " (classes) " classes is too large to be drawn." }
                (common)
            };
        };
        // A matrix of few classes shrinks to a phone; a larger one keeps its size and scrolls.
        let class = if chart.width > 450.0 { "wide" } else { "" };
        let figure = scroll("Confusion matrix", class, &html! { figure { (chart.svg()) } });
        html! {
            p.soft {
                "Rows are the true classes, columns the predicted ones; the color of a cell is its "
                "fraction of the row."
            }
            // A large matrix takes the whole width.
            @if chart.width > 600.0 {
                (figure) (common)
            } @else {
                div.beside { (figure) div { (common) } }
            }
            details {
                summary { "Confusion matrix as a table" }
                (scroll("Confusion matrix as a table", "tall", &self.matrix()))
            }
        }
    }

    fn most_frequent_confusions(&self) -> Markup {
        let mut pairs = Vec::new();
        for (truth, row) in self.report.evaluation.confusion.iter().enumerate() {
            let total: u64 = row.iter().sum();
            let others = row.iter().enumerate().filter(|&(class, &n)| class != truth && n > 0);
            pairs.extend(others.map(|(class, &n)| (n, truth, class, n as f64 / total as f64)));
        }
        if pairs.is_empty() {
            return html! { p { "No image is misclassified." } };
        }
        pairs.sort_by_key(|&(n, truth, class, _)| (Reverse(n), truth, class));
        let table = html! {
            table {
                caption { "Most frequent confusions" }
                thead { tr {
                    (text_column("true class")) (text_column("predicted class"))
                    (column("images")) (column("of the class"))
                } }
                tbody {
                    @for &(n, truth, class, fraction) in pairs.iter().take(MOST_FREQUENT) {
                        tr {
                            td.l { (bdi(self.label(truth))) }
                            td.l { (bdi(self.label(class))) }
                            td { (n) }
                            td { (percent(fraction)) }
                        }
                    }
                }
            }
        };
        scroll("Most frequent confusions", "", &table)
    }

    fn matrix(&self) -> Markup {
        html! {
            table {
                thead { tr {
                    (text_column("true \\ predicted"))
                    @for label in &self.report.head.labels { th scope="col" { (bdi(label)) } }
                } }
                tbody {
                    @for (truth, row) in self.report.evaluation.confusion.iter().enumerate() {
                        tr {
                            th scope="row" { (bdi(self.label(truth))) }
                            @for &n in row { (number(n)) }
                        }
                    }
                }
            }
        }
    }
}
