//! The section on the cost of int8.

use maud::{Markup, html};

use super::super::prediction::Prediction;
use super::super::text::visible;
use super::{Page, column, count, scroll, text_column};

impl Page<'_> {
    pub(super) fn float(&self) -> Markup {
        let Some(float) = &self.report.float else {
            return html! {
                p.soft {
                    "To compare the int8 base with the f32 weights that it was quantized from:"
                }
                p {
                    code.line { "host evaluate --head HEAD DATA --report DIR --float FILE" }
                }
            };
        };
        let pairs: Vec<(&Prediction, usize)> = self
            .report
            .measured()
            .zip(&float.predicted)
            .filter_map(|(prediction, class)| Some((prediction, (*class)?)))
            .collect();
        let all = pairs.len().max(1) as f64;
        let number = |of: fn(&Prediction, usize) -> bool| {
            pairs.iter().filter(|(p, class)| of(p, *class)).count()
        };
        let rows = [
            ("accuracy on int8 features", number(|p, _| p.is_correct())),
            ("accuracy on f32 features", number(|p, class| class == p.class)),
            ("predictions that differ", number(|p, class| class != p.predicted())),
            (
                "of these, correct on f32 only",
                number(|p, class| class == p.class && !p.is_correct()),
            ),
            (
                "of these, correct on int8 only",
                number(|p, class| class != p.class && p.is_correct()),
            ),
        ];
        let table = html! {
            table {
                thead { tr { (text_column("")) (column("images")) (column("fraction")) } }
                tbody {
                    @for (name, n) in rows {
                        tr {
                            th scope="row" { (name) }
                            td { (n) }
                            td { (format_args!("{:.2} %", 100.0 * n as f64 / all)) }
                        }
                    }
                }
            }
        };
        html! {
            p.soft {
                "The same head on features of the f32 weights "
                code { (visible(&float.path.to_string_lossy())) } ", "
                (count(pairs.len(), "image")) " of " (self.measured()) "."
            }
            (scroll("int8 compared with f32", "", &table))
        }
    }
}
