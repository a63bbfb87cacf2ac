//! The page of `host base compare`: one file, no external assets.

use std::fmt::Write;

use quant::compare::LayerReport;

use super::compare::{HeadReport, mean_deviation};

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6672;--line:#d8dee4;--ground:#fff;--bar:#2563eb;--bar2:#d97706}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa7b4;--line:#30363d;--ground:#0d1117;--bar:#60a5fa;--bar2:#fbbf24}}\
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{color:var(--soft);margin:.3rem 0}\
code{font-size:.8em;overflow-wrap:anywhere}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:600}\
svg{width:100%;max-width:34rem;height:auto}svg text{fill:var(--ink);font:13px system-ui,sans-serif}svg .soft{fill:var(--soft)}\
.bar{fill:var(--bar)}.bar2{fill:var(--bar2)}";

/// The page as HTML.
pub fn page(
    title: &str,
    fingerprint: &str,
    layers: &[LayerReport],
    heads: Option<&HeadReport>,
) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>int8 against f32</title><style>{STYLE}</style></head><body>\
         <h1>int8 against f32</h1><p>{}</p><p>int8 base <code>{fingerprint}</code></p>",
        escape(title)
    );
    let last = layers.last().map_or(0.0, |layer| layer.relative_error);
    let bars: Vec<(String, f64)> =
        layers.iter().map(|l| (l.name.clone(), 100.0 * l.relative_error)).collect();
    let _ = write!(
        out,
        "<h2>Relative L2 error of each layer's output, in percent</h2>\
         <p>Errors of the layers before are included; the last one, {:.2} %, is that of the features.</p>{}",
        100.0 * last,
        chart(&bars, "bar", 2)
    );
    let bars: Vec<(String, f64)> = layers.iter().map(|l| (l.name.clone(), l.sqnr_db)).collect();
    let _ = write!(
        out,
        "<h2>Signal-to-quantization-noise ratio, in dB</h2>{}",
        chart(&bars, "bar2", 1)
    );
    out.push_str(
        "<h2>All figures</h2><div class=\"scroll\"><table><tr><th>layer<th>SQNR dB<th>relative error<th>cosine\
         <th>max error<th>in steps<th>clipped</tr>",
    );
    for l in layers {
        let _ = write!(
            out,
            "<tr><td>{}<td>{:.2}<td>{:.4}<td>{:.5}<td>{:.3}<td>{:.1}<td>{:.4} %</tr>",
            escape(&l.name),
            l.sqnr_db,
            l.relative_error,
            l.cosine,
            l.max_error,
            l.max_error / l.scale,
            100.0 * l.clipped
        );
    }
    out.push_str("</table></div>");
    if let Some(heads) = heads {
        let _ = write!(
            out,
            "<h2>Heads trained on the features of both</h2><p>Accuracy in percent, {}.</p>\
             <div class=\"scroll\"><table><tr><th>seed<th>f32<th>int8<th>difference, points</tr>",
            escape(&heads.data)
        );
        let differences = heads.differences();
        for (seed, ((float, int8), difference)) in
            heads.float.iter().zip(&heads.int8).zip(&differences).enumerate()
        {
            let _ = write!(
                out,
                "<tr><td>{seed}<td>{:.2}<td>{:.2}<td>{:+.2}</tr>",
                100.0 * float,
                100.0 * int8,
                100.0 * difference
            );
        }
        let cell = |values: &[f64]| {
            let (mean, deviation) = mean_deviation(values);
            format!("{:.2} ± {:.2}", 100.0 * mean, 100.0 * deviation)
        };
        let _ = write!(
            out,
            "<tr><th>mean ± deviation<th>{}<th>{}<th>{}</tr></table></div>",
            cell(&heads.float),
            cell(&heads.int8),
            cell(&differences)
        );
    }
    out.push_str("</body></html>\n");
    out
}

/// Horizontal bars with their values.
fn chart(bars: &[(String, f64)], class: &str, digits: usize) -> String {
    const ROW: usize = 24;
    let largest = bars.iter().map(|bar| bar.1).fold(f64::MIN_POSITIVE, f64::max);
    let mut out = format!("<svg viewBox=\"0 0 400 {}\" role=\"img\">", bars.len() * ROW);
    for (index, (name, value)) in bars.iter().enumerate() {
        let y = index * ROW;
        let width = 230.0 * (value / largest).clamp(0.0, 1.0);
        let _ = write!(
            out,
            "<text class=\"soft\" x=\"0\" y=\"{}\">{}</text><rect class=\"{class}\" x=\"105\" y=\"{}\" width=\"{width:.1}\" height=\"16\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"{}\">{value:.digits$}</text>",
            y + 16,
            escape(name),
            y + 3,
            111.0 + width,
            y + 16
        );
    }
    out.push_str("</svg>");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
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
