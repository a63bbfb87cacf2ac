//! The section on the data: images per class, unreadable files, duplicates, suspicious labels.

use maud::{Markup, html};

use super::super::audit::{Duplicates, SUSPICIOUS};
use super::super::text::{bdi, visible};
use super::images::legend;
use super::{
    MAX_IMAGES, MAX_LINES, Page, Report, column, count, more, number, percent, scroll, tall,
    text_column,
};

/// The largest number of files shown of a group of duplicates.
const MAX_MEMBERS: usize = 12;

impl Page<'_> {
    pub(super) fn data(&self) -> Markup {
        let classes = self.report.head.labels.len();
        html! {
            (scroll("Images per class", tall(classes > 15), &self.images_per_class()))
            h3 id="unreadable" { "Unreadable files" }
            (self.unreadable())
            h3 id="duplicates" { "Duplicate images" }
            (self.duplicates())
            h3 id="suspects" { "Suspicious labels" }
            (self.suspicious())
        }
    }

    fn images_per_class(&self) -> Markup {
        let Report { splits, predictions, head, .. } = self.report;
        let mut counts = vec![vec![0u64; splits.len()]; head.labels.len()];
        for prediction in predictions {
            counts[prediction.class][prediction.split] += 1;
        }
        let sums: Vec<u64> =
            (0..splits.len()).map(|split| counts.iter().map(|row| row[split]).sum()).collect();
        let cells = |row: &[u64]| {
            html! {
                @for &n in row { (number(n)) }
                @if row.len() > 1 { td { (row.iter().sum::<u64>()) } }
            }
        };
        html! {
            table {
                thead { tr {
                    (text_column("class"))
                    @for split in splits { th scope="col" { (visible(split)) } }
                    @if splits.len() > 1 { (column("all")) }
                } }
                tbody {
                    @for (class, row) in counts.iter().enumerate() {
                        tr { th scope="row" { (bdi(self.label(class))) } (cells(row)) }
                    }
                }
                tfoot { tr { th scope="row" { "all" } (cells(&sums)) } }
            }
        }
    }

    fn unreadable(&self) -> Markup {
        let skipped = self.report.skipped;
        if skipped.is_empty() {
            return html! { p.soft { "None." } };
        }
        let table = html! {
            table {
                thead { tr { (text_column("file")) (text_column("reason")) } }
                tbody {
                    @for (file, reason) in skipped.iter().take(MAX_LINES) {
                        tr {
                            td.l.wrap { (bdi(&self.report.name(file))) }
                            td.l.wrap { (visible(reason)) }
                        }
                    }
                }
            }
        };
        html! {
            (scroll("Unreadable files", tall(skipped.len() > 12), &table))
            (more(skipped.len(), MAX_LINES))
        }
    }

    fn duplicates(&self) -> Markup {
        if self.duplicates.is_empty() {
            return html! { p.soft { "None: no two files have the same bytes." } };
        }
        html! {
            p.soft { (count(self.duplicates.len(), "group")) " of files with the same bytes." }
            ul.duplicates {
                @for group in self.duplicates.iter().take(MAX_LINES) {
                    li { (self.duplicate_group(group)) }
                }
            }
            (more(self.duplicates.len(), MAX_LINES))
        }
    }

    fn duplicate_group(&self, group: &Duplicates) -> Markup {
        let Report { splits, predictions, .. } = self.report;
        let first = &predictions[group.members[0]];
        html! {
            @if group.conflict { span.tag.alarm { "label conflict" } }
            @if group.across {
                span.tag.alarm { "in training and validation" }
            } @else {
                span.tag { "within " (visible(&splits[first.split])) }
            }
            span.soft { "SHA-256 " code { (first.hash.short()) "…" } }
            ul {
                @for &index in group.members.iter().take(MAX_MEMBERS) {
                    @let prediction = &predictions[index];
                    li {
                        (bdi(&self.report.name(&prediction.file))) " "
                        span.soft {
                            "(" (bdi(self.label(prediction.class))) ", "
                            (visible(&splits[prediction.split])) ")"
                        }
                    }
                }
                @if group.members.len() > MAX_MEMBERS {
                    li { "and " (group.members.len() - MAX_MEMBERS) " more" }
                }
            }
        }
    }

    fn suspicious(&self) -> Markup {
        let score = percent(SUSPICIOUS.into());
        if self.suspicious.is_empty() {
            return html! {
                p.soft {
                    "None: the head predicts no other class than the label with a score of "
                    (score) " or more."
                }
            };
        }
        html! {
            p.soft {
                "Images of all splits for which the head predicts another class than the label "
                "with a score of " (score) " or more, highest score first: either the label or the "
                "head is wrong. On training images, the head is rarely so wrong. " (legend())
            }
            (self.cards(&self.suspicious))
            (more(self.suspicious.len(), MAX_IMAGES))
        }
    }
}
