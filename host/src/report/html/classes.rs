//! The section on the metrics per class.

use maud::{Markup, html};

use super::super::text::bdi;
use super::{Page, column, percent, scroll, tall, text_column};

/// The largest number of classes in the table.
const MAX_CLASSES: usize = 200;

impl Page<'_> {
    pub(super) fn classes(&self) -> Markup {
        let metrics = self.report.evaluation.per_class();
        let mut order: Vec<usize> = (0..metrics.len()).collect();
        let is_cut = order.len() > MAX_CLASSES;
        if is_cut {
            order.sort_by(|&a, &b| metrics[a].f1.total_cmp(&metrics[b].f1).then(a.cmp(&b)));
            order.truncate(MAX_CLASSES);
        }
        // Classes without images have no meaningful recall.
        let counted: Vec<_> = metrics.iter().filter(|m| m.support > 0).collect();
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            percent(values.sum::<f64>() / counted.len().max(1) as f64)
        };
        let table = html! {
            table {
                thead { tr {
                    (text_column("class")) (column("precision")) (column("recall")) (column("F1"))
                    td {}
                    (column("images"))
                } }
                tbody {
                    @for class in order {
                        @let m = metrics[class];
                        tr {
                            th scope="row" { (bdi(self.label(class))) }
                            td { (percent(m.precision)) }
                            td { (percent(m.recall)) }
                            td { (percent(m.f1)) }
                            td { (bar(m.f1)) }
                            td { (m.support) }
                        }
                    }
                }
                tfoot { tr {
                    th scope="row" { "macro average" }
                    td { (mean(&mut counted.iter().map(|m| m.precision))) }
                    td { (mean(&mut counted.iter().map(|m| m.recall))) }
                    td { (mean(&mut counted.iter().map(|m| m.f1))) }
                    td {}
                    td { (metrics.iter().map(|m| m.support).sum::<u64>()) }
                } }
            }
        };
        html! {
            p.soft {
                "On the " (self.measured()) " images. Precision: the fraction of the predictions "
                "of a class that are correct. Recall: the fraction of the images of a class that "
                "are predicted correctly. F1: the harmonic mean of both."
                @if is_cut { " The " (MAX_CLASSES) " classes with the lowest F1 are shown." }
            }
            (scroll("Metrics per class", tall(metrics.len() > 25), &table))
        }
    }
}

/// A fraction as a bar.
fn bar(fraction: f64) -> Markup {
    let width = 72.0 * fraction.clamp(0.0, 1.0);
    html! {
        svg.bar viewBox="0 0 72 8" aria-hidden="true" {
            rect.f-grid width="72" height="8" rx="2" {}
            rect.f-first width=(format_args!("{width:.1}")) height="8" rx="2" {}
        }
    }
}
