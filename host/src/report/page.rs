//! The page: one file without scripts, that asks for nothing and is allowed nothing.
//!
//! It is well-formed XML too, which lets a strict parser check it.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use vgg_edge::head::{Activation, Output};

use super::audit::{self, Duplicates};
use super::calibration::{BINS, Reliability, interval};
use super::chart::Scene;
use super::text::escape;
use super::{Picture, Report, thumbnail};

const STYLE: &str = include_str!("page.css");

/// Most pictures shown of a kind.
const SHOWN: usize = 24;
/// Most lines of a list that may be as long as the data.
const LINES: usize = 200;
/// Most classes in the table of figures.
const CLASSES: usize = 200;

/// The charts and what they were made of.
pub struct Figures {
    /// Over the epochs.
    pub curves: Vec<Scene>,
    /// `None` with too many classes.
    pub confusion: Option<Scene>,
    /// Of the scores.
    pub reliability: Scene,
    /// At temperature 1; `None` if that is the head's.
    pub before: Option<Reliability>,
    /// At the head's temperature.
    pub after: Reliability,
}

/// A share as `93.8 %`.
fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// `1 picture`, `2 pictures`.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A name from outside, which must not turn the words around it.
fn bdi(text: &str) -> String {
    format!("<bdi>{}</bdi>", escape(text))
}

/// Writes to a String, which does not fail.
macro_rules! put {
    ($out:expr, $($words:tt)*) => {{
        let _ = write!($out, $($words)*);
    }};
}

/// A box that scrolls by itself if its content is wider than the window.
fn scroll(label: &str, class: &str, content: &str) -> String {
    format!(
        "<div class=\"scroll {class}\" role=\"region\" tabindex=\"0\" aria-label=\"{}\">{content}</div>",
        escape(label)
    )
}

/// The page.
pub fn page(report: &Report<'_>, figures: &Figures) -> String {
    let wrong = audit::most_wrong(&report.pictures, report.measured);
    let suspects = audit::suspects(&report.pictures);
    let twins = audit::duplicates(&report.pictures);
    let shown: Vec<usize> =
        wrong.iter().take(SHOWN).chain(suspects.iter().take(SHOWN)).copied().collect();
    let thumbnails: BTreeMap<usize, String> = shown
        .into_par_iter()
        .filter_map(|i| {
            Some((i, thumbnail::data_uri(&report.pictures[i].file, &report.head.preprocess)?))
        })
        .collect();
    let page = Page { report, figures, wrong, suspects, twins, thumbnails };
    let kind = if report.history.is_some() { "Training report" } else { "Evaluation report" };
    let title = escape(&report.title);
    let style = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'sha256-{style}'; \
         base-uri 'none'; form-action 'none'\"/>\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"/><meta name=\"referrer\" content=\"no-referrer\"/>\
         <title>{kind}: {title}</title><style>{STYLE}</style></head><body><main>\
         <header><h1>{kind}</h1><p class=\"lead\">{}</p><p class=\"lead\">{}</p></header>",
        bdi(&report.title),
        page.summary()
    );
    let sections: Vec<(&str, &str, String)> = [
        ("curves", "Curves", page.curves()),
        ("classes", "Classes", Some(page.classes())),
        ("confusion", "Confusion", Some(page.confusion())),
        ("reliability", "Reliability", Some(page.reliability())),
        ("wrong", "Most wrong", Some(page.most_wrong())),
        ("int8", "int8 and f32", Some(page.float())),
        ("data", "Data", Some(page.data())),
        ("settings", "Settings", Some(page.settings())),
    ]
    .into_iter()
    .filter_map(|(id, name, content)| Some((id, name, content?)))
    .collect();
    out.push_str("<nav aria-label=\"Sections\">");
    for (id, name, _) in &sections {
        put!(out, "<a href=\"#{id}\">{name}</a>");
    }
    out.push_str("</nav>");
    out.push_str(&page.tiles());
    out.push_str(&page.notices());
    for (id, _, content) in &sections {
        put!(out, "<section id=\"{id}\">{content}</section>");
    }
    put!(
        out,
        "<footer>{}, base <code>{}</code></footer>",
        escape(&report.head.training.program),
        report.head.base.short()
    );
    out.push_str("</main></body></html>\n");
    out
}

struct Page<'a> {
    report: &'a Report<'a>,
    figures: &'a Figures,
    /// Pictures of the measured part that were answered wrongly, worst first.
    wrong: Vec<usize>,
    suspects: Vec<usize>,
    twins: Vec<Duplicates>,
    thumbnails: BTreeMap<usize, String>,
}

impl Page<'_> {
    fn label(&self, class: usize) -> &str {
        self.report.head.labels.get(class).map_or("", String::as_str)
    }

    fn part(&self) -> &str {
        &self.report.parts[self.report.measured]
    }

    /// How many pictures a part has.
    fn size(&self, part: usize) -> usize {
        self.report.pictures.iter().filter(|picture| picture.part == part).count()
    }

    /// One line on what was trained; all of it is below, under settings.
    fn summary(&self) -> String {
        let Report { head, fingerprint, .. } = self.report;
        let p = &head.preprocess;
        let decision = &head.decision;
        format!(
            "trained {} · {} px, {} · {} · temperature {:.2} · threshold {} · head <code>{}</code> · base <code>{}</code>",
            escape(&head.training.date),
            p.size,
            p.fit.name(),
            escape(&head.training.settings),
            decision.temperature,
            decision.threshold,
            fingerprint.short(),
            head.base.short()
        )
    }

    fn tiles(&self) -> String {
        let Report { head, evaluation, measured, .. } = self.report;
        let all = self.size(*measured);
        let (low, high) = interval((all - self.wrong.len()) as u64, all as u64);
        let part = escape(self.part());
        let mut tiles = vec![
            (
                percent(evaluation.accuracy),
                format!("{part} accuracy; 95 % interval {:.1} to {:.1}", 100.0 * low, 100.0 * high),
            ),
            (format!("{:.4}", evaluation.loss), format!("{part} loss (nats)")),
            (
                format!("{all}"),
                match self.report.parts.len() {
                    1 => format!("pictures ({part})"),
                    _ => {
                        let others = (0..self.report.parts.len()).filter(|part| part != measured);
                        let others = others
                            .map(|i| format!("{} {}", self.size(i), escape(&self.report.parts[i])));
                        format!("{part} pictures, {}", others.collect::<Vec<_>>().join(", "))
                    }
                },
            ),
            (format!("{}", head.labels.len()), "classes".to_owned()),
        ];
        if let Some(history) = &self.report.history {
            tiles.push((
                format!("{}", head.training.best_epoch),
                format!("epoch kept, of {} run", history.epochs()),
            ));
        }
        tiles.push((
            percent(self.figures.after.error()),
            match &self.figures.before {
                Some(before) => {
                    format!("calibration error; {} before the temperature", percent(before.error()))
                }
                None => "calibration error (ECE)".to_owned(),
            },
        ));
        let mut out = String::from("<ul class=\"tiles\">");
        for (figure, words) in tiles {
            put!(out, "<li><b>{figure}</b><span>{words}</span></li>");
        }
        out + "</ul>"
    }

    /// What a reader should know before believing the figures.
    fn notices(&self) -> String {
        let mut notices = Vec::new();
        if self.report.history.is_some() && self.report.parts.len() == 1 {
            notices
                .push("There are no validation pictures: the figures are those of the pictures trained on.".to_owned());
        }
        let conflicts = self.twins.iter().filter(|group| group.conflict).count();
        if conflicts > 0 {
            let (verb, bears) = if conflicts == 1 {
                ("bears", "one of its labels is")
            } else {
                ("bear", "some of their labels are")
            };
            notices.push(format!(
                "<a href=\"#duplicates\">{}</a> {verb} more than one label: {bears} wrong.",
                count(conflicts, "picture")
            ));
        }
        let across = self.twins.iter().filter(|group| group.across).count();
        if across > 0 {
            let lies = if across == 1 { "lies" } else { "lie" };
            notices.push(format!(
                "<a href=\"#duplicates\">{}</a> {lies} in training and validation: the figures flatter.",
                count(across, "picture")
            ));
        }
        if !self.report.skipped.is_empty() {
            notices.push(format!(
                "<a href=\"#unreadable\">{}</a> could not be read and took no part.",
                count(self.report.skipped.len(), "file")
            ));
        }
        if !self.suspects.is_empty() {
            notices.push(format!(
                "<a href=\"#suspects\">{}</a> may be wrong: the head is sure of another.",
                count(self.suspects.len(), "label")
            ));
        }
        if notices.is_empty() {
            return String::new();
        }
        let items: String = notices.iter().map(|notice| format!("<li>{notice}</li>")).collect();
        format!("<div class=\"notice\" role=\"note\"><b>To look at</b><ul>{items}</ul></div>")
    }

    fn curves(&self) -> Option<String> {
        let history = self.report.history.as_ref()?;
        let mut out = String::from(
            "<h2>Curves</h2><p class=\"soft\">Training values are means over each epoch with dropout, as Keras prints them; validation is \
             measured after the epoch without it.</p><div class=\"charts\">",
        );
        for chart in &self.figures.curves {
            put!(out, "<figure>{}</figure>", chart.svg());
        }
        out.push_str("</div>");
        let mut table = String::from("<table><thead><tr><th scope=\"col\">epoch</th>");
        for column in &history.columns {
            put!(table, "<th scope=\"col\">{}</th>", escape(&column.name));
        }
        table.push_str("</tr></thead><tbody>");
        let best = self.report.head.training.best_epoch as usize;
        for epoch in 0..history.epochs() {
            let kept = if epoch + 1 == best { " (kept)" } else { "" };
            put!(table, "<tr><th scope=\"row\">{}{kept}</th>", epoch + 1);
            for column in &history.columns {
                match column.at(epoch) {
                    Some(value) => put!(table, "<td>{value:.4}</td>"),
                    None => table.push_str("<td></td>"),
                }
            }
            table.push_str("</tr>");
        }
        table.push_str("</tbody></table>");
        put!(
            out,
            "<details><summary>All epochs as numbers</summary>{}</details>",
            scroll("All epochs", "tall", &table)
        );
        Some(out)
    }

    fn classes(&self) -> String {
        let figures = self.report.evaluation.per_class();
        let mut order: Vec<usize> = (0..figures.len()).collect();
        let mut words = format!(
            "On the {} pictures. Precision: of the answers that named a class, the share that was right. Recall: of its \
             pictures, the share that was found. F1: the harmonic mean of both.",
            escape(self.part())
        );
        if order.len() > CLASSES {
            order.sort_by(|&a, &b| figures[a].f1.total_cmp(&figures[b].f1).then(a.cmp(&b)));
            order.truncate(CLASSES);
            put!(words, " The {CLASSES} classes with the lowest F1 are shown.");
        }
        let mut table = String::from(
            "<table><thead><tr><th scope=\"col\" class=\"l\">class</th><th scope=\"col\">precision</th><th scope=\"col\">recall</th>\
             <th scope=\"col\">F1</th><td></td><th scope=\"col\">pictures</th></tr></thead><tbody>",
        );
        for class in order {
            let f = figures[class];
            put!(
                table,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                bdi(self.label(class)),
                percent(f.precision),
                percent(f.recall),
                percent(f.f1),
                bar(f.f1),
                f.support
            );
        }
        // Classes without pictures have no recall to speak of.
        let counted: Vec<_> = figures.iter().filter(|f| f.support > 0).collect();
        let mean = |of: fn(&crate::metrics::ClassMetrics) -> f64| {
            percent(counted.iter().map(|f| of(f)).sum::<f64>() / counted.len().max(1) as f64)
        };
        put!(
            table,
            "</tbody><tfoot><tr><th scope=\"row\">mean</th><td>{}</td><td>{}</td><td>{}</td><td></td><td>{}</td></tr></tfoot></table>",
            mean(|f| f.precision),
            mean(|f| f.recall),
            mean(|f| f.f1),
            figures.iter().map(|f| f.support).sum::<u64>()
        );
        format!(
            "<h2>Classes</h2><p class=\"soft\">{words}</p>{}",
            scroll("Figures of each class", if figures.len() > 25 { "tall" } else { "" }, &table)
        )
    }

    fn confusion(&self) -> String {
        let confusion = &self.report.evaluation.confusion;
        let mut pairs = Vec::new();
        for (truth, row) in confusion.iter().enumerate() {
            let total: u64 = row.iter().sum();
            let others = row.iter().enumerate().filter(|&(said, &n)| said != truth && n > 0);
            pairs.extend(others.map(|(said, &n)| (n, truth, said, n as f64 / total as f64)));
        }
        pairs.sort_by_key(|&(n, truth, said, _)| (std::cmp::Reverse(n), truth, said));
        let mut out = String::from("<h2>Confusion</h2>");
        let mut common = String::new();
        if pairs.is_empty() {
            common.push_str("<p>No picture was answered wrongly.</p>");
        } else {
            let mut table = String::from(
                "<table><caption>Most frequent confusions</caption><thead><tr><th scope=\"col\" class=\"l\">label</th>\
                 <th scope=\"col\" class=\"l\">answer</th><th scope=\"col\">pictures</th><th scope=\"col\">of the class</th></tr></thead><tbody>",
            );
            for &(n, truth, said, share) in pairs.iter().take(10) {
                put!(
                    table,
                    "<tr><td class=\"l\">{}</td><td class=\"l\">{}</td><td>{n}</td><td>{}</td></tr>",
                    bdi(self.label(truth)),
                    bdi(self.label(said)),
                    percent(share)
                );
            }
            common = scroll("Most frequent confusions", "", &(table + "</tbody></table>"));
        }
        let Some(chart) = &self.figures.confusion else {
            put!(
                out,
                "<p class=\"soft\">The matrix of {} classes is too large to be drawn.</p>{common}",
                confusion.len()
            );
            return out;
        };
        out.push_str("<p class=\"soft\">Rows are the labels of the pictures, columns the answers; each row is as strong as its share.</p>");
        // One of some classes shrinks to a phone; of many it keeps its size and scrolls.
        let class = if chart.width > 450.0 { "wide" } else { "" };
        let figure =
            scroll("Confusion matrix", class, &format!("<figure>{}</figure>", chart.svg()));
        // A large matrix takes the whole width.
        if chart.width > 600.0 {
            put!(out, "{figure}{common}");
        } else {
            put!(out, "<div class=\"beside\">{figure}<div>{common}</div></div>");
        }
        let mut table =
            String::from("<table><thead><tr><th scope=\"col\" class=\"l\">label \\ answer</th>");
        for label in &self.report.head.labels {
            put!(table, "<th scope=\"col\">{}</th>", bdi(label));
        }
        table.push_str("</tr></thead><tbody>");
        for (truth, row) in confusion.iter().enumerate() {
            put!(table, "<tr><th scope=\"row\">{}</th>", bdi(self.label(truth)));
            for n in row {
                put!(table, "<td{}>{n}</td>", if *n == 0 { " class=\"nil\"" } else { "" });
            }
            table.push_str("</tr>");
        }
        table.push_str("</tbody></table>");
        put!(
            out,
            "<details><summary>The matrix as numbers</summary>{}</details>",
            scroll("Confusion matrix as numbers", "tall", &table)
        );
        out
    }

    fn reliability(&self) -> String {
        let Figures { before, after, .. } = self.figures;
        let mut words = String::from(
            "Of the answers with a score about s, a share of s should be right: then points lie on the dashed diagonal, and a threshold \
             means what it says. Larger dots are more pictures. The expected calibration error (ECE) is the mean distance from it",
        );
        put!(words, " over {BINS} bins.");
        if before.is_some() && self.report.history.is_some() {
            words += " The temperature was found on these same pictures, so on others the error is a little larger.";
        }
        let threshold = self.report.head.decision.threshold;
        if threshold > 0.0 {
            let answered: Vec<&Picture> =
                self.report.measured().filter(|p| p.said_score() >= threshold).collect();
            let right = answered.iter().filter(|p| p.is_right()).count();
            put!(
                words,
                "</p><p>At the threshold of {threshold}, {} of {} are answered ({}), and {} of these answers are right; the others get \
                 <code>unknown</code>.",
                answered.len(),
                count(self.size(self.report.measured), "picture"),
                percent(answered.len() as f64 / self.size(self.report.measured).max(1) as f64),
                percent(right as f64 / answered.len().max(1) as f64)
            );
        }
        let sides: Vec<(&str, &Reliability)> = before
            .iter()
            .map(|b| ("as trained", b))
            .chain([("with the temperature", after)])
            .collect();
        let mut table = String::from("<table><thead>");
        if sides.len() > 1 {
            table.push_str("<tr><td></td>");
            for (side, _) in &sides {
                put!(table, "<th scope=\"colgroup\" colspan=\"3\">{side}</th>");
            }
            table.push_str("</tr>");
        }
        table.push_str("<tr><th scope=\"col\" class=\"l\">score</th>");
        for _ in &sides {
            table.push_str("<th scope=\"col\">pictures</th><th scope=\"col\">mean</th><th scope=\"col\">right</th>");
        }
        table.push_str("</tr></thead><tbody>");
        for bin in 0..BINS {
            if sides.iter().all(|(_, side)| side.bins[bin].count == 0) {
                continue;
            }
            put!(
                table,
                "<tr><th scope=\"row\">{} to {} %</th>",
                100 * bin / BINS,
                100 * (bin + 1) / BINS
            );
            for (_, side) in &sides {
                let bin = side.bins[bin];
                if bin.count == 0 {
                    table.push_str("<td class=\"nil\">0</td><td></td><td></td>");
                } else {
                    put!(
                        table,
                        "<td>{}</td><td>{}</td><td>{}</td>",
                        bin.count,
                        percent(bin.score()),
                        percent(bin.accuracy())
                    );
                }
            }
            table.push_str("</tr>");
        }
        table.push_str("</tbody><tfoot><tr><th scope=\"row\">ECE</th>");
        for (_, side) in &sides {
            put!(table, "<td>{}</td><td></td><td>{}</td>", side.count(), percent(side.error()));
        }
        table.push_str("</tr></tfoot></table>");
        format!(
            "<h2>Reliability</h2><p class=\"soft\">{words}</p><div class=\"charts\"><figure>{}</figure><div>{}</div></div>",
            self.figures.reliability.svg(),
            scroll("Reliability as numbers", "", &table)
        )
    }

    fn image(&self, index: usize) -> String {
        let side = thumbnail::SIDE;
        match self.thumbnails.get(&index) {
            Some(uri) => format!(
                "<img src=\"{uri}\" width=\"{side}\" height=\"{side}\" alt=\"\" decoding=\"async\"/>"
            ),
            None => "<span class=\"none\"></span>".to_owned(),
        }
    }

    fn most_wrong(&self) -> String {
        let (all, wrong) = (self.size(self.report.measured), self.wrong.len());
        let mut out = String::from("<h2>Most wrong</h2>");
        if wrong == 0 {
            put!(
                out,
                "<p>All {} of {} were answered rightly.</p>",
                count(all, "picture"),
                escape(self.part())
            );
            return out;
        }
        let which =
            if wrong > SHOWN { format!("These {SHOWN} gave") } else { "Sorted by".to_owned() };
        let order = if wrong > SHOWN {
            "their own label the lowest scores."
        } else {
            "the score of their own label, lowest first."
        };
        put!(
            out,
            "<p class=\"soft\">{wrong} of {} of {} were answered wrongly. {which} {order} They are shown as the base sees them ({}). \
             <span class=\"said\">Answer</span>, <span class=\"true\">label</span>.</p><ul class=\"cards\">",
            count(all, "picture"),
            escape(self.part()),
            self.report.head.preprocess.fit.name()
        );
        for &index in self.wrong.iter().take(SHOWN) {
            out += &self.card(index);
        }
        out + "</ul>"
    }

    /// A picture with its scores.
    fn card(&self, index: usize) -> String {
        let picture = &self.report.pictures[index];
        let mut out = format!(
            "<li>{}<span class=\"name\">{}</span><dl class=\"scores\">",
            self.image(index),
            bdi(&self.report.name(&picture.file))
        );
        let mut scores = picture.top.clone();
        if !scores.iter().any(|&(class, _)| class == picture.class) {
            scores.push((picture.class, picture.label_score));
        }
        for (class, score) in scores {
            let kind = if class == picture.said() {
                "said"
            } else if class == picture.class {
                "true"
            } else {
                "soft"
            };
            put!(
                out,
                "<dt class=\"{kind}\">{}</dt><dd class=\"{kind}\">{}</dd>",
                bdi(self.label(class)),
                percent(score.into())
            );
        }
        out + "</dl></li>"
    }

    fn float(&self) -> String {
        let mut out = String::from("<h2>int8 and f32</h2>");
        let Some(float) = &self.report.float else {
            out.push_str(
                "<p class=\"soft\">What the int8 base costs this head is told if you give the weights that the base was made of:</p>\
                 <p><code class=\"line\">host evaluate --head HEAD DATA --report DIR --float FILE</code></p>",
            );
            return out;
        };
        let pairs: Vec<(&Picture, usize)> = self
            .report
            .measured()
            .zip(&float.said)
            .filter_map(|(picture, said)| Some((picture, (*said)?)))
            .collect();
        let all = pairs.len().max(1) as f64;
        let right = |of: &dyn Fn(&Picture, usize) -> bool| {
            pairs.iter().filter(|(p, said)| of(p, *said)).count()
        };
        let int8 = right(&|p, _| p.is_right());
        let f32_right = right(&|p, said| said == p.class);
        let differ = right(&|p, said| said != p.said());
        let lost = right(&|p, said| said == p.class && !p.is_right());
        let won = right(&|p, said| said != p.class && p.is_right());
        put!(
            out,
            "<p class=\"soft\">The same head on features of the f32 weights <code>{}</code>, {} of {}.</p>",
            escape(&float.path.to_string_lossy()),
            count(pairs.len(), "picture"),
            escape(self.part())
        );
        let rows = [
            ("accuracy on int8 features", int8),
            ("accuracy on f32 features", f32_right),
            ("decisions that differ", differ),
            ("of these, right on f32 only", lost),
            ("of these, right on int8 only", won),
        ];
        let mut table = String::from(
            "<table><thead><tr><th scope=\"col\" class=\"l\"></th><th scope=\"col\">pictures</th><th scope=\"col\">share</th></tr></thead><tbody>",
        );
        for (name, n) in rows {
            put!(
                table,
                "<tr><th scope=\"row\">{name}</th><td>{n}</td><td>{:.2} %</td></tr>",
                100.0 * n as f64 / all
            );
        }
        out + &scroll("int8 against f32", "", &(table + "</tbody></table>"))
    }

    fn data(&self) -> String {
        let Report { parts, pictures, head, .. } = self.report;
        let mut counts = vec![vec![0usize; parts.len()]; head.labels.len()];
        for picture in pictures {
            counts[picture.class][picture.part] += 1;
        }
        let cells = |row: &[usize]| -> String {
            let mut cells: String = row
                .iter()
                .map(|n| format!("<td{}>{n}</td>", if *n == 0 { " class=\"nil\"" } else { "" }))
                .collect();
            if row.len() > 1 {
                put!(cells, "<td>{}</td>", row.iter().sum::<usize>());
            }
            cells
        };
        let mut table = String::from("<table><thead><tr><th scope=\"col\" class=\"l\">class</th>");
        for part in parts {
            put!(table, "<th scope=\"col\">{}</th>", escape(part));
        }
        if parts.len() > 1 {
            table.push_str("<th scope=\"col\">all</th>");
        }
        table.push_str("</tr></thead><tbody>");
        for (class, row) in counts.iter().enumerate() {
            put!(table, "<tr><th scope=\"row\">{}</th>{}</tr>", bdi(self.label(class)), cells(row));
        }
        let sums: Vec<usize> =
            (0..parts.len()).map(|part| counts.iter().map(|row| row[part]).sum()).collect();
        put!(
            table,
            "</tbody><tfoot><tr><th scope=\"row\">all</th>{}</tr></tfoot></table>",
            cells(&sums)
        );
        let mut out = String::from("<h2>Data</h2>");
        out +=
            &scroll("Pictures of each class", if counts.len() > 15 { "tall" } else { "" }, &table);
        out += &self.unreadable();
        out += &self.duplicates();
        out += &self.suspicious();
        out
    }

    fn unreadable(&self) -> String {
        let skipped = self.report.skipped;
        let mut out = String::from("<h3 id=\"unreadable\">Files that could not be read</h3>");
        if skipped.is_empty() {
            return out + "<p class=\"soft\">None.</p>";
        }
        let mut table = String::from(
            "<table><thead><tr><th scope=\"col\" class=\"l\">file</th><th scope=\"col\" class=\"l\">reason</th></tr></thead><tbody>",
        );
        for (file, reason) in skipped.iter().take(LINES) {
            put!(
                table,
                "<tr><td class=\"l wrap\">{}</td><td class=\"l wrap\">{}</td></tr>",
                bdi(&self.report.name(file)),
                escape(reason)
            );
        }
        table.push_str("</tbody></table>");
        out += &scroll(
            "Files that could not be read",
            if skipped.len() > 12 { "tall" } else { "" },
            &table,
        );
        more(&mut out, skipped.len(), LINES);
        out
    }

    fn duplicates(&self) -> String {
        let mut out = String::from("<h3 id=\"duplicates\">Pictures that occur more than once</h3>");
        if self.twins.is_empty() {
            return out + "<p class=\"soft\">None: no two files have the same bytes.</p>";
        }
        put!(
            out,
            "<p class=\"soft\">{} of files with the same bytes.</p><ul class=\"twins\">",
            count(self.twins.len(), "group")
        );
        for group in self.twins.iter().take(LINES) {
            out.push_str("<li>");
            if group.conflict {
                out.push_str("<span class=\"tag alarm\">conflict of labels</span>");
            }
            let first = &self.report.pictures[group.members[0]];
            if group.across {
                out.push_str("<span class=\"tag alarm\">across training and validation</span>");
            } else {
                put!(
                    out,
                    "<span class=\"tag\">within {}</span>",
                    escape(&self.report.parts[first.part])
                );
            }
            put!(
                out,
                "<span class=\"soft\">SHA-256 <code>{}…</code></span><ul>",
                first.hash.short()
            );
            const MEMBERS: usize = 12;
            for &index in group.members.iter().take(MEMBERS) {
                let picture = &self.report.pictures[index];
                put!(
                    out,
                    "<li>{} <span class=\"soft\">({}, {})</span></li>",
                    bdi(&self.report.name(&picture.file)),
                    bdi(self.label(picture.class)),
                    escape(&self.report.parts[picture.part])
                );
            }
            if group.members.len() > MEMBERS {
                put!(out, "<li>and {} more</li>", group.members.len() - MEMBERS);
            }
            out.push_str("</ul></li>");
        }
        out.push_str("</ul>");
        more(&mut out, self.twins.len(), LINES);
        out
    }

    fn suspicious(&self) -> String {
        let mut out = String::from("<h3 id=\"suspects\">Suspicious labels</h3>");
        if self.suspects.is_empty() {
            put!(
                out,
                "<p class=\"soft\">None: the head gives no picture another label with {} or more.</p>",
                percent(audit::SURE.into())
            );
            return out;
        }
        put!(
            out,
            "<p class=\"soft\">Pictures of all parts that the head gives another label with {} or more, the surest first: either the label or \
             the head is wrong. On pictures it was trained on it is rarely so sure by mistake. <span class=\"said\">Answer</span>, \
             <span class=\"true\">label</span>.</p>",
            percent(audit::SURE.into())
        );
        out.push_str("<ul class=\"cards\">");
        for &index in self.suspects.iter().take(SHOWN) {
            out += &self.card(index);
        }
        out.push_str("</ul>");
        more(&mut out, self.suspects.len(), SHOWN);
        out
    }

    fn settings(&self) -> String {
        let Report { head, fingerprint, .. } = self.report;
        let training = &head.training;
        let mut layers = format!("{} features", head.pool.len(&head.preprocess));
        for layer in &head.layers {
            let activation = match (layer.activation, head.output) {
                (Activation::Relu, _) => "relu",
                (Activation::Linear, Output::Sigmoid) => "sigmoid",
                (Activation::Linear, Output::Softmax) => "softmax",
            };
            put!(layers, " → {} {activation}", layer.outputs);
        }
        let p = &head.preprocess;
        let m = &training.metrics;
        let mut facts: Vec<(&str, String)> = vec![
            ("Trained", format!("{}, {}", escape(&training.date), escape(&training.program))),
            ("Settings", format!("{}, seed {}", escape(&training.settings), training.seed)),
            ("Layers", layers),
            ("Input", format!("{0} × {0} px, {1}, {2}", p.size, p.fit.name(), p.resize.name())),
            (
                "On training pictures",
                format!("accuracy {}, loss {:.4}", percent(m.accuracy), m.loss),
            ),
        ];
        if let (Some(accuracy), Some(loss)) = (m.val_accuracy, m.val_loss) {
            facts.push((
                "On validation pictures",
                format!("accuracy {}, loss {loss:.4}", percent(accuracy)),
            ));
        }
        facts.push(("Temperature", format!("{:.4}", head.decision.temperature)));
        facts.push((
            "Threshold",
            match head.decision.threshold {
                0.0 => "0: every picture is answered".to_owned(),
                threshold => format!("{threshold}: below it the answer is unknown"),
            },
        ));
        facts.push(("Kept epoch", training.best_epoch.to_string()));
        facts.push(("Head", format!("<code>{fingerprint}</code>")));
        facts.push(("Backbone", format!("<code>{}</code>", head.base)));
        if let Some(data) = training.data {
            facts.push(("Pictures", format!("<code>{data}</code>")));
        }
        let mut out = String::from("<h2>Settings</h2><dl class=\"facts\">");
        for (name, value) in facts {
            put!(out, "<dt>{name}</dt><dd>{value}</dd>");
        }
        out + "</dl>"
    }
}

/// A share as a bar.
fn bar(share: f64) -> String {
    let width = 72.0 * share.clamp(0.0, 1.0);
    format!(
        "<svg class=\"bar\" viewBox=\"0 0 72 8\" aria-hidden=\"true\"><rect class=\"f-grid\" width=\"72\" height=\"8\" rx=\"2\"/>\
         <rect class=\"f-first\" width=\"{width:.1}\" height=\"8\" rx=\"2\"/></svg>"
    )
}

/// That a list was cut.
fn more(out: &mut String, all: usize, shown: usize) {
    if all > shown {
        put!(out, "<p class=\"soft\">And {} more.</p>", all - shown);
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use vgg_edge::Fingerprint;
    use vgg_edge::head::{Decision, Dense, Head, Pool, TrainingRecord};
    use vgg_edge::image::resize::Filter;
    use vgg_edge::preprocess::{ChannelOrder, Fit, InputSpec, Preprocess};

    use super::super::{Column, FloatAnswers, History, plots};
    use super::*;
    use crate::metrics::Evaluation;

    fn head(labels: &[&str]) -> Head {
        let base = InputSpec {
            channel_order: ChannelOrder::Bgr,
            mean: [0.0; 3],
            std: [1.0; 3],
            scale: 1.0,
            zero_point: 0,
            resize: Filter::Bilinear,
            channels: 4,
            stride: 32,
            size_multiple: 32,
            size_min: 32,
            size_max: 64,
        };
        let outputs = labels.len() as u32;
        let layer = Dense {
            inputs: 4,
            outputs,
            activation: Activation::Linear,
            kernel: vec![0.0; 4 * labels.len()],
            bias: vec![0.0; labels.len()],
        };
        Head {
            base: Fingerprint::of(b"base"),
            preprocess: Preprocess::new(base, 32, Fit::Stretch, Filter::Bilinear).unwrap(),
            feature_scales: vec![1.0; 4],
            labels: labels.iter().map(ToString::to_string).collect(),
            layers: vec![layer],
            output: Output::Softmax,
            decision: Decision { temperature: 1.5, threshold: 0.5 },
            pool: Pool::Flatten,
            background: vec![],
            training: TrainingRecord {
                settings: "<i>settings</i>".into(),
                program: "<b>host</b>".into(),
                best_epoch: 1,
                ..TrainingRecord::default()
            },
        }
    }

    /// The page of pictures given as `(file, content, class, part, said, score)`.
    fn render(
        head: &Head,
        pictures: &[(&str, u8, usize, usize, usize, f32)],
        skipped: &[(PathBuf, String)],
    ) -> String {
        let pictures: Vec<Picture> = pictures
            .iter()
            .map(|&(file, content, class, part, said, score)| Picture {
                file: file.into(),
                part,
                class,
                hash: Fingerprint::of(&[content]),
                top: vec![(said, score), (2, 0.01)],
                label_score: if said == class { score } else { 0.001 },
                raw_score: score.into(),
            })
            .collect();
        let mut confusion = vec![vec![0; head.labels.len()]; head.labels.len()];
        let measured: Vec<_> = pictures.iter().filter(|p| p.part == 1).collect();
        for picture in &measured {
            confusion[picture.class][picture.said()] += 1;
        }
        let right = measured.iter().filter(|p| p.is_right()).count();
        let float = FloatAnswers {
            path: "<f32>".into(),
            said: measured.iter().map(|p| Some(p.class)).collect(),
        };
        let column = |name: &str| Column { name: name.into(), values: vec![Some(0.5), None] };
        let history = History { columns: vec![column("loss"), column("<img>")] };
        let answers = || measured.iter().map(|p| (f64::from(p.said_score()), p.is_right()));
        let after = Reliability::of(answers());
        let figures = Figures {
            curves: plots::curves(&history, Some(1)),
            confusion: plots::confusion(&head.labels, &confusion),
            reliability: plots::reliability(Some(&after), &after, 1.5),
            before: Some(after),
            after,
        };
        let accuracy = right as f64 / measured.len() as f64;
        let report = Report {
            title: "<script>title</script>".into(),
            data: Path::new("data"),
            head,
            fingerprint: Fingerprint::of(b"head"),
            history: Some(history),
            parts: vec!["training".into(), "validation\" onload=\"x".into()],
            measured: 1,
            evaluation: Evaluation { accuracy, loss: 0.5, confusion },
            pictures,
            skipped,
            float: Some(float),
        };
        page(&report, &figures)
    }

    const HOSTILE: [&str; 3] =
        ["</title><script>alert(1)</script>", "\" onerror='x' \u{202e}\u{0}", "]]><!-- &amp; 猫"];

    #[test]
    fn nothing_from_outside_becomes_markup() {
        let head = head(&HOSTILE);
        let skipped =
            [(PathBuf::from("data/<svg onload=x>.jpg"), "<iframe src='x'>\u{1b}[2J".to_owned())];
        let out = render(
            &head,
            &[
                ("data/<img src=x onerror=alert(1)>.jpg", 1, 0, 1, 1, 0.95),
                ("data/\"><script>.jpg", 1, 1, 0, 0, 0.9),
                ("data/ok.jpg", 2, 2, 1, 2, 0.9),
            ],
            &skipped,
        );
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        let document = roxmltree::Document::parse_with_options(&out, options).unwrap();
        for node in document.descendants().filter(roxmltree::Node::is_element) {
            let name = node.tag_name().name();
            assert!(!["script", "iframe", "object", "i", "f32"].contains(&name), "{name}");
            assert!(
                name != "img"
                    || node.attribute("src").unwrap().starts_with("data:image/jpeg;base64,")
            );
            for attribute in node.attributes() {
                assert!(
                    !attribute.name().starts_with("on") && attribute.name() != "style",
                    "{attribute:?}"
                );
            }
            assert!(node.attribute("href").is_none_or(|href| href.starts_with('#')));
        }
        let text: String = document
            .descendants()
            .filter_map(|n| if n.is_text() { n.text() } else { None })
            .collect();
        for words in [
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>.jpg",
            "\\u{202e}\\u{0}",
            "<iframe",
            "<i>settings",
        ] {
            assert!(text.contains(words), "{words} is not shown");
        }
        // Each identifier occurs once, and each link within the page has its aim.
        let mut ids: Vec<_> = document.descendants().filter_map(|n| n.attribute("id")).collect();
        for link in document.descendants().filter_map(|n| n.attribute("href")) {
            assert!(ids.contains(&&link[1..]), "{link}");
        }
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }

    #[test]
    fn the_policy_allows_the_style_and_nothing_else() {
        let out = render(&head(&["a", "b", "c"]), &[("x", 0, 0, 1, 0, 0.9)], &[]);
        let style = out.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
        let hash = STANDARD.encode(Sha256::digest(style.as_bytes()));
        assert!(
            out.contains(&format!("default-src 'none'; img-src data:; style-src 'sha256-{hash}';"))
        );
        assert!(!style.contains("url(") && !style.contains('<') && !style.contains("@import"));
        assert_eq!(out.matches("<style").count(), 1);
    }

    #[test]
    fn oddities_of_the_data_are_named() {
        let clean =
            render(&head(&["a", "b", "c"]), &[("x", 0, 0, 1, 0, 0.9), ("y", 1, 0, 0, 0, 0.9)], &[]);
        assert!(
            !clean.contains("To look at") && clean.contains("no two files have the same bytes")
        );
        let odd = render(
            &head(&["a", "b", "c"]),
            &[
                ("data/x", 0, 0, 1, 1, 0.9),
                ("data/y", 0, 1, 0, 1, 0.9),
                ("data/z", 7, 2, 0, 2, 0.9),
                ("data/w", 7, 2, 0, 2, 0.9),
            ],
            &[(PathBuf::from("data/a/broken.jpg"), "the file is empty".to_owned())],
        );
        for words in [
            "conflict of labels",
            "across training and validation",
            "within training",
            "1 picture</a> bears more than one label",
            "1 picture</a> lies in training and validation",
            "1 file</a> could not be read",
            "1 label</a> may be wrong",
            "<bdi>a/broken.jpg</bdi></td><td class=\"l wrap\">the file is empty",
            "of these, right on f32 only</th><td>1</td><td>100.00 %",
        ] {
            assert!(odd.contains(words), "{words} is not in the page");
        }
    }
}
