//! The section on the settings of the training.

use std::fmt::Write;

use maud::{Markup, html};
use vgg_edge::head::{Activation, Output};

use super::super::text::visible;
use super::{Page, Report, percent};

impl Page<'_> {
    pub(super) fn settings(&self) -> Markup {
        let Report { head, fingerprint, .. } = self.report;
        let training = &head.training;
        let (p, m) = (&head.preprocess, &training.metrics);
        let metrics = |accuracy, loss| format!("accuracy {}, loss {loss:.4}", percent(accuracy));
        let threshold = match head.decision.threshold {
            0.0 => "0: every image gets a class".to_owned(),
            threshold => format!("{threshold}: lower scores give unknown"),
        };
        let settings = format!("{}, seed {}", training.settings, training.seed);
        let fact = |name: &str, value: String| html! { dt { (name) } dd { (value) } };
        let hash = |name: &str, value: String| html! { dt { (name) } dd { code { (value) } } };
        html! {
            dl.facts {
                (fact("Trained", visible(&format!("{}, {}", training.date, training.program))))
                (fact("Settings", visible(&settings)))
                (fact("Layers", self.layers()))
                (fact(
                    "Input",
                    format!("{0} × {0} px, {1}, {2}", p.size, p.fit.name(), p.resize.name()),
                ))
                (fact("Training set", metrics(m.accuracy, m.loss)))
                @if let (Some(accuracy), Some(loss)) = (m.val_accuracy, m.val_loss) {
                    (fact("Validation set", metrics(accuracy, loss)))
                }
                (fact("Temperature", format!("{:.4}", head.decision.temperature)))
                (fact("Threshold", threshold))
                (fact("Best epoch", training.best_epoch.to_string()))
                (hash("Head", fingerprint.to_string()))
                (hash("Backbone", head.base.to_string()))
                @if let Some(data) = training.data { (hash("Images", data.to_string())) }
            }
        }
    }

    /// The layers of the head with their activations.
    fn layers(&self) -> String {
        let head = self.report.head;
        let mut layers = format!("{} features", head.pool.len(&head.preprocess));
        for layer in &head.layers {
            let activation = match (layer.activation, head.output) {
                (Activation::Relu, _) => "relu",
                (Activation::Linear, Output::Sigmoid) => "sigmoid",
                (Activation::Linear, Output::Softmax) => "softmax",
            };
            // Writing to a String does not fail.
            let _ = write!(layers, " → {} {activation}", layer.outputs);
        }
        layers
    }
}
