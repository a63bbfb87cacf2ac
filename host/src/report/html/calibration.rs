//! The section on calibration.

use maud::{Markup, html};

use super::super::calibration::{BINS, Reliability};
use super::super::prediction::Prediction;
use super::{Page, column, count, percent, scroll, text_column};

impl Page<'_> {
    pub(super) fn calibration(&self) -> Markup {
        html! {
            p.soft {
                "A head is calibrated if its score is the probability that its prediction is "
                "correct: then the points lie on the dashed diagonal, and a threshold can be read "
                "as a probability. Larger points stand for more images. The expected calibration "
                "error (ECE) is the mean distance from the diagonal, over " (BINS) " bins."
                @if self.charts.uncalibrated.is_some() && self.report.history.is_some() {
                    " The temperature was fitted on these same images, so the error on others is "
                    "slightly larger."
                }
            }
            (self.threshold())
            div.charts {
                figure { (self.charts.reliability.svg()) }
                div { (scroll("Calibration as a table", "", &self.bins())) }
            }
        }
    }

    /// The effect of the threshold, if there is one.
    fn threshold(&self) -> Markup {
        let threshold = self.report.head.decision.threshold;
        let all = self.size(self.report.measured);
        let above: Vec<&Prediction> =
            self.report.measured().filter(|p| p.score() >= threshold).collect();
        let correct = above.iter().filter(|p| p.is_correct()).count();
        html! {
            @if threshold > 0.0 {
                p {
                    "At the threshold of " (threshold) ", " (above.len()) " of "
                    (count(all, "image")) " (" (percent(above.len() as f64 / all.max(1) as f64))
                    ") get a class, of which "
                    (percent(correct as f64 / above.len().max(1) as f64))
                    " are correct; the others get " code { "unknown" } "."
                }
            }
        }
    }

    /// The bins of the reliability diagram.
    fn bins(&self) -> Markup {
        let uncalibrated = self.charts.uncalibrated.iter().map(|side| ("temperature 1", side));
        let sides: Vec<(&str, &Reliability)> =
            uncalibrated.chain([("temperature of the head", &self.charts.calibrated)]).collect();
        html! {
            table {
                thead {
                    @if sides.len() > 1 {
                        tr {
                            td {}
                            @for (name, _) in &sides {
                                th scope="colgroup" colspan="3" { (name) }
                            }
                        }
                    }
                    tr {
                        (text_column("score"))
                        @for _ in &sides {
                            (column("images")) (column("mean score")) (column("accuracy"))
                        }
                    }
                }
                tbody {
                    @for bin in 0..BINS {
                        @if sides.iter().any(|(_, side)| side.bins[bin].count > 0) {
                            tr {
                                th scope="row" {
                                    (100 * bin / BINS) " to " (100 * (bin + 1) / BINS) " %"
                                }
                                @for (_, side) in &sides {
                                    @let bin = side.bins[bin];
                                    @if bin.count == 0 {
                                        td.nil { "0" } td {} td {}
                                    } @else {
                                        td { (bin.count) }
                                        td { (percent(bin.score())) }
                                        td { (percent(bin.accuracy())) }
                                    }
                                }
                            }
                        }
                    }
                }
                tfoot { tr {
                    th scope="row" { "ECE" }
                    @for (_, side) in &sides {
                        td { (side.count()) } td {} td { (percent(side.error())) }
                    }
                } }
            }
        }
    }
}
