//! The page of a report: one file without scripts, which loads nothing and is allowed nothing.
//!
//! It is written by templates that escape by default ([`maud`]), and is well-formed XML too, which
//! lets a strict parser check it. Names from outside also pass through [`visible`].

mod calibration;
mod classes;
mod confusion;
mod curves;
mod data;
mod float;
mod images;
mod settings;
mod summary;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::audit::{self, Duplicates};
use super::calibration::Reliability;
use super::chart::Chart;
use super::text::{bdi, visible};
use super::{Report, thumbnail};

const STYLE: &str = include_str!("page.css");

/// The largest number of images shown in a list.
const MAX_IMAGES: usize = 24;
/// The largest number of lines of a list that may be as long as the data.
const MAX_LINES: usize = 200;

/// The charts of a report, and the calibration that one of them shows.
pub struct Charts {
    /// Quantities by epoch.
    pub curves: Vec<Chart>,
    /// The confusion matrix; `None` with too many classes.
    pub confusion: Option<Chart>,
    /// The reliability diagram.
    pub reliability: Chart,
    /// The calibration at temperature 1; `None` if that is the head's temperature.
    pub uncalibrated: Option<Reliability>,
    /// The calibration at the head's temperature.
    pub calibrated: Reliability,
}

/// A report with everything that several sections show.
struct Page<'a> {
    report: &'a Report<'a>,
    charts: &'a Charts,
    /// Misclassified images of the measured split, the lowest score of the true class first.
    misclassified: Vec<usize>,
    /// Images with suspicious labels.
    suspicious: Vec<usize>,
    duplicates: Vec<Duplicates>,
    /// `data:` URIs by image.
    thumbnails: BTreeMap<usize, String>,
}

/// A part of the page that the navigation links to.
struct Section {
    id: &'static str,
    name: &'static str,
    content: Markup,
}

/// Writes the page.
pub fn page(report: &Report<'_>, charts: &Charts) -> String {
    let misclassified = audit::misclassified(&report.predictions, report.measured);
    let suspicious = audit::suspicious_labels(&report.predictions);
    let duplicates = audit::duplicates(&report.predictions);
    let shown = misclassified.iter().take(MAX_IMAGES).chain(suspicious.iter().take(MAX_IMAGES));
    let thumbnails = shown
        .copied()
        .collect::<Vec<usize>>()
        .into_par_iter()
        .filter_map(|i| {
            let file = &report.predictions[i].file;
            Some((i, thumbnail::data_uri(file, &report.head.preprocess)?))
        })
        .collect();
    let page = Page { report, charts, misclassified, suspicious, duplicates, thumbnails };
    close_void_elements(&page.markup().into_string())
}

/// Turns `<img ...>` into `<img .../>`, and so on, which makes the page well-formed XML.
///
/// `<` and `>` are only found around tags: the templates escape them in text and attribute values,
/// and the style sheet has no `<`.
fn close_void_elements(html: &str) -> String {
    let mut out = String::with_capacity(html.len() + 64);
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        let (text, tag) = rest.split_at(start);
        let (tag, after) = tag.split_at(tag.find('>').unwrap_or(tag.len()));
        out.push_str(text);
        out.push_str(tag);
        if ["img", "meta"].contains(&tag[1..].split(' ').next().unwrap_or_default()) {
            out.push('/');
        }
        rest = after;
    }
    out + rest
}

impl Page<'_> {
    fn label(&self, class: usize) -> &str {
        self.report.head.labels.get(class).map_or("", String::as_str)
    }

    /// The name of the measured split.
    fn measured(&self) -> String {
        visible(&self.report.splits[self.report.measured])
    }

    /// Number of images in a split.
    fn size(&self, split: usize) -> usize {
        self.report.predictions.iter().filter(|prediction| prediction.split == split).count()
    }

    fn sections(&self) -> Vec<Section> {
        let section = |id, name, content| Some(Section { id, name, content });
        [
            self.curves().and_then(|content| section("curves", "Training curves", content)),
            section("classes", "Classes", self.classes()),
            section("confusion", "Confusion matrix", self.confusion()),
            section("calibration", "Calibration", self.calibration()),
            section("errors", "Misclassified images", self.misclassified()),
            section("int8", "int8 and f32", self.float()),
            section("data", "Data", self.data()),
            section("settings", "Settings", self.settings()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn markup(&self) -> Markup {
        let Report { head, history, title, .. } = self.report;
        let kind = if history.is_some() { "Training report" } else { "Evaluation report" };
        let sections = self.sections();
        html! {
            (DOCTYPE) "\n"
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy());
                    meta name="viewport" content="width=device-width,initial-scale=1";
                    meta name="referrer" content="no-referrer";
                    title { (kind) ": " (visible(title)) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    main {
                        header {
                            h1 { (kind) }
                            p.lead { (bdi(title)) }
                            p.lead { (self.summary()) }
                        }
                        nav aria-label="Sections" {
                            @for Section { id, name, .. } in &sections {
                                a href=(format_args!("#{id}")) { (name) }
                            }
                        }
                        (self.tiles())
                        (self.notices())
                        @for Section { id, name, content } in &sections {
                            section id=(id) { h2 { (name) } (content) }
                        }
                        footer {
                            (visible(&head.training.program)) ", base " code { (head.base.short()) }
                        }
                    }
                }
            }
            "\n"
        }
    }
}

/// The content security policy: this style sheet, by its hash, and images within the page.
fn policy() -> String {
    let hash = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    format!(
        "default-src 'none'; img-src data:; style-src 'sha256-{hash}'; base-uri 'none'; \
         form-action 'none'"
    )
}

/// A fraction as `93.8 %`.
fn percent(fraction: f64) -> String {
    format!("{:.1} %", 100.0 * fraction)
}

/// `1 image`, `2 images`.
fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A box that scrolls by itself if its content is wider than the window, or, of the class `tall`,
/// higher than some lines.
fn scroll(label: &str, class: &str, content: &Markup) -> Markup {
    html! {
        div class=(format_args!("scroll {class}")) role="region" tabindex="0"
            aria-label=(visible(label)) { (content) }
    }
}

/// The class of a [`scroll`] box of many lines.
fn tall(is_tall: bool) -> &'static str {
    if is_tall { "tall" } else { "" }
}

/// A header cell of a column of numbers.
fn column(name: &str) -> Markup {
    html! { th scope="col" { (name) } }
}

/// A header cell of a column of text.
fn text_column(name: &str) -> Markup {
    html! { th scope="col" class="l" { (name) } }
}

/// A cell with a number, grayed if it is 0.
fn number(n: u64) -> Markup {
    html! { td class=[(n == 0).then_some("nil")] { (n) } }
}

/// A note that a list was cut.
fn more(all: usize, shown: usize) -> Markup {
    html! { @if all > shown { p.soft { "And " (all - shown) " more." } } }
}
