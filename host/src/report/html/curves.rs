//! The section on the training curves.

use maud::{Markup, html};

use super::super::text::visible;
use super::{Page, column, scroll};

impl Page<'_> {
    /// `None` if there was no training.
    pub(super) fn curves(&self) -> Option<Markup> {
        let history = self.report.history.as_ref()?;
        let best = self.report.head.training.best_epoch as usize;
        let table = html! {
            table {
                thead { tr {
                    (column("epoch"))
                    @for column in &history.columns { th scope="col" { (visible(&column.name)) } }
                } }
                tbody {
                    @for epoch in 0..history.epochs() {
                        tr {
                            th scope="row" { (epoch + 1) @if epoch + 1 == best { " (best)" } }
                            @for column in &history.columns {
                                td {
                                    @if let Some(value) = column.at(epoch) {
                                        (format_args!("{value:.4}"))
                                    }
                                }
                            }
                        }
                    }
                }
            }
        };
        Some(html! {
            p.soft {
                "Training values are means over each epoch with dropout, as Keras reports them; "
                "validation values are measured after the epoch, without dropout."
            }
            div.charts { @for chart in &self.charts.curves { figure { (chart.svg()) } } }
            details {
                summary { "Table of all epochs" }
                (scroll("All epochs", "tall", &table))
            }
        })
    }
}
