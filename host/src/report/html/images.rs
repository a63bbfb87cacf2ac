//! The section on misclassified images, and the cards of images.

use maud::{Markup, html};

use super::super::text::bdi;
use super::super::thumbnail;
use super::{MAX_IMAGES, Page, count, percent};

impl Page<'_> {
    pub(super) fn misclassified(&self) -> Markup {
        let (all, wrong) = (self.size(self.report.measured), self.misclassified.len());
        let split = self.measured();
        if wrong == 0 {
            return html! {
                p { "All " (count(all, "image")) " of " (split) " are classified correctly." }
            };
        }
        html! {
            p.soft {
                (wrong) " of " (count(all, "image")) " of " (split) " are misclassified. "
                @if wrong > MAX_IMAGES {
                    "These " (MAX_IMAGES) " have the lowest scores of the true class. "
                } @else {
                    "They are sorted by the score of the true class, lowest first. "
                }
                "They are shown as the base sees them (" (self.report.head.preprocess.fit.name())
                "). " (legend())
            }
            (self.cards(&self.misclassified))
        }
    }

    /// The first of some images, as cards.
    pub(super) fn cards(&self, images: &[usize]) -> Markup {
        html! {
            ul.cards { @for &index in images.iter().take(MAX_IMAGES) { (self.card(index)) } }
        }
    }

    /// An image with its scores.
    fn card(&self, index: usize) -> Markup {
        let prediction = &self.report.predictions[index];
        let mut scores = prediction.top.clone();
        if !scores.iter().any(|&(class, _)| class == prediction.class) {
            scores.push((prediction.class, prediction.label_score));
        }
        let style = |class: usize| {
            if class == prediction.predicted() {
                "predicted"
            } else if class == prediction.class {
                "true"
            } else {
                "soft"
            }
        };
        let side = thumbnail::SIDE;
        html! {
            li {
                @if let Some(uri) = self.thumbnails.get(&index) {
                    img src=(uri) width=(side) height=(side) alt="" decoding="async";
                } @else {
                    span.none {}
                }
                span.name { (bdi(&self.report.name(&prediction.file))) }
                dl.scores {
                    @for (class, score) in scores {
                        dt class=(style(class)) { (bdi(self.label(class))) }
                        dd class=(style(class)) { (percent(score.into())) }
                    }
                }
            }
        }
    }
}

/// The meaning of the colors of a card.
pub(super) fn legend() -> Markup {
    html! {
        span.predicted { "Predicted class" } ", " span.true { "true class" } "."
    }
}
