//! The page of `host base compare`: one file without external resources.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use quant::compare::LayerReport;

use super::compare::{HeadReport, mean_deviation};

const STYLE: &str = include_str!("page.css");

/// Writes the page as HTML.
pub fn page(
    title: &str,
    fingerprint: &str,
    layers: &[LayerReport],
    heads: Option<&HeadReport>,
) -> String {
    let last = layers.last().map_or(0.0, |layer| layer.relative_error);
    let errors = layers.iter().map(|l| (l.name.as_str(), 100.0 * l.relative_error)).collect();
    let ratios = layers.iter().map(|l| (l.name.as_str(), l.sqnr_db)).collect();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { "int8 compared with f32" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "int8 compared with f32" }
                p { (title) }
                p { "int8 base " code { (fingerprint) } }
                h2 { "Relative L2 error of each layer's output (%)" }
                p {
                    "Errors of earlier layers are included; the last one, "
                    (format_args!("{:.2} %", 100.0 * last)) ", is that of the features."
                }
                (Bars { bars: errors, class: "bar", digits: 2 }.svg())
                h2 { "Signal-to-quantization-noise ratio (dB)" }
                (Bars { bars: ratios, class: "bar2", digits: 1 }.svg())
                h2 { "All metrics" }
                (layer_table(layers))
                @if let Some(heads) = heads {
                    h2 { "Heads trained on the features of both" }
                    p { "Accuracy in percent, " (heads.data) "." }
                    (head_table(heads))
                }
            }
        }
        "\n"
    };
    page.into_string()
}

fn layer_table(layers: &[LayerReport]) -> Markup {
    html! {
        div.scroll {
            table {
                tr {
                    th { "layer" } th { "SQNR (dB)" } th { "relative error" } th { "cosine" }
                    th { "max error" } th { "in steps" } th { "clipped" }
                }
                @for l in layers {
                    tr {
                        td { (l.name) }
                        td { (format_args!("{:.2}", l.sqnr_db)) }
                        td { (format_args!("{:.4}", l.relative_error)) }
                        td { (format_args!("{:.5}", l.cosine)) }
                        td { (format_args!("{:.3}", l.max_error)) }
                        td { (format_args!("{:.1}", l.max_error / l.scale)) }
                        td { (format_args!("{:.4} %", 100.0 * l.clipped)) }
                    }
                }
            }
        }
    }
}

fn head_table(heads: &HeadReport) -> Markup {
    let differences = heads.differences();
    let mean = |values: &[f64]| {
        let (mean, deviation) = mean_deviation(values);
        format!("{:.2} ± {:.2}", 100.0 * mean, 100.0 * deviation)
    };
    let rows = heads.float.iter().zip(&heads.int8).zip(&differences).enumerate();
    html! {
        div.scroll {
            table {
                tr {
                    th { "seed" } th { "f32" } th { "int8" } th { "difference (points)" }
                }
                @for (seed, ((float, int8), difference)) in rows {
                    tr {
                        td { (seed) }
                        td { (format_args!("{:.2}", 100.0 * float)) }
                        td { (format_args!("{:.2}", 100.0 * int8)) }
                        td { (format_args!("{:+.2}", 100.0 * difference)) }
                    }
                }
                tr {
                    th { "mean ± standard deviation" }
                    th { (mean(&heads.float)) }
                    th { (mean(&heads.int8)) }
                    th { (mean(&differences)) }
                }
            }
        }
    }
}

/// Horizontal bars with their values.
struct Bars<'a> {
    bars: Vec<(&'a str, f64)>,
    class: &'a str,
    digits: usize,
}

impl Bars<'_> {
    fn svg(&self) -> Markup {
        const ROW: usize = 24;
        let Self { bars, class, digits } = self;
        let digits = *digits;
        let largest = bars.iter().map(|bar| bar.1).fold(f64::MIN_POSITIVE, f64::max);
        let width = |value: f64| 230.0 * (value / largest).clamp(0.0, 1.0);
        html! {
            svg viewBox=(format_args!("0 0 400 {}", bars.len() * ROW)) role="img" {
                @for (index, &(name, value)) in bars.iter().enumerate() {
                    @let y = index * ROW;
                    text.soft x="0" y=(y + 16) { (name) }
                    rect class=(class) x="105" y=(y + 3)
                        width=(format_args!("{:.1}", width(value))) height="16" rx="2" {}
                    text x=(format_args!("{:.1}", 111.0 + width(value))) y=(y + 16) {
                        (format_args!("{value:.digits$}"))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let page = page("<script>alert(1)</script>", "ab", &[], None);
        assert!(
            !page.contains("<script>")
                && page.contains("&lt;script&gt;")
                && page.ends_with("</html>\n")
        );
    }
}
