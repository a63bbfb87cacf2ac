//! Metrics of a head: accuracy, loss, confusion matrix, and precision, recall and F1 per class.

use vgg_edge::Head;
use vgg_edge::head::Output;

use crate::features::extraction::Features;

/// Minimum probability for the loss: Keras clips at 1e-7 (`keras.config.epsilon`).
const EPSILON: f64 = 1e-7;

/// Metrics of a head on labeled images.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Fraction classified correctly (the best score counts, whatever the threshold), 0 to 1.
    pub accuracy: f64,
    /// Mean cross-entropy in nats, probabilities clipped at 1e-7 as in Keras.
    pub loss: f64,
    /// Counts `confusion[truth][answer]`.
    pub confusion: Vec<Vec<u64>>,
}

/// Metrics of one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassMetrics {
    /// Fraction of the answers for this class that are correct; 0 without such answers.
    pub precision: f64,
    /// Fraction of the images of this class that are found; 0 without images.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1: f64,
    /// Number of images.
    pub support: u64,
}

/// Evaluates `head` on rows of `features`, whose classes are `truth`.
///
/// # Errors
/// [`vgg_edge::Error::Io`] for features that cannot be read.
pub fn evaluate(
    head: &Head,
    features: &Features,
    rows: &[usize],
    truth: &[usize],
) -> vgg_edge::Result<Evaluation> {
    use rayon::prelude::*;
    let classes = head.labels.len();
    let answers: Vec<(usize, f64)> = rows
        .par_iter()
        .zip(truth)
        .map(|(&row, &truth)| {
            let scores = head.scores(&features.row(row)?);
            let probability = f64::from(scores[truth]).clamp(EPSILON, 1.0 - EPSILON);
            Ok((head.decide(&scores, 0.0).0, -libm_log(probability)))
        })
        .collect::<vgg_edge::Result<_>>()?;
    let mut confusion = vec![vec![0; classes]; classes];
    let mut loss = 0.0;
    for (&(answer, nats), &truth) in answers.iter().zip(truth) {
        confusion[truth][answer] += 1;
        loss += nats;
    }
    let right: u64 = (0..classes).map(|class| confusion[class][class]).sum();
    let count = rows.len().max(1) as f64;
    Ok(Evaluation { accuracy: right as f64 / count, loss: loss / count, confusion })
}

/// Returns the logits of `rows` as those of a softmax, one per class.
///
/// # Errors
/// [`vgg_edge::Error::Io`] for features that cannot be read.
pub fn logits(head: &Head, features: &Features, rows: &[usize]) -> vgg_edge::Result<Vec<Vec<f32>>> {
    use rayon::prelude::*;
    rows.par_iter()
        .map(|&row| {
            let logits = head.logits(&features.row(row)?);
            Ok(match head.output {
                // A sigmoid is a softmax over 0 and the logit.
                Output::Sigmoid => vec![0.0, logits[0]],
                Output::Softmax => logits,
            })
        })
        .collect()
}

/// Returns the temperature that calibrates the scores: it minimizes the cross-entropy with the
/// `logits` divided by it (Guo and others 2017, arXiv:1706.04599). A prior with the weight of one
/// image keeps it near 1 if there are few images, or no misclassified one.
pub fn temperature(logits: &[Vec<f32>], truth: &[usize]) -> f32 {
    let objective = |log_temperature: f64| -> f64 {
        let scale = libm::exp(-log_temperature);
        let nats = logits.iter().zip(truth).map(|(logits, &truth)| {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let below = |logit: f32| f64::from(logit) - f64::from(largest);
            let sum: f64 = logits.iter().map(|&logit| libm::exp(below(logit) * scale)).sum();
            libm_log(sum) - below(logits[truth]) * scale
        });
        nats.sum::<f64>() + log_temperature * log_temperature
    };
    // Golden-section search; the interval is [1/20, 20].
    let ratio = (5.0f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (-libm_log(20.0), libm_log(20.0));
    for _ in 0..60 {
        let (a, b) = (high - ratio * (high - low), low + ratio * (high - low));
        if objective(a) <= objective(b) { high = b } else { low = a }
    }
    libm::exp(f64::midpoint(low, high)) as f32
}

/// Logarithm of libm: metrics are written into the head, so that they must not depend on the
/// machine's C library.
fn libm_log(x: f64) -> f64 {
    libm::log(x)
}

impl Evaluation {
    /// Returns the metrics of each class.
    pub fn per_class(&self) -> Vec<ClassMetrics> {
        (0..self.confusion.len())
            .map(|class| {
                let right = self.confusion[class][class] as f64;
                let support: u64 = self.confusion[class].iter().sum();
                let answers: u64 = self.confusion.iter().map(|row| row[class]).sum();
                let ratio = |of: f64| if of > 0.0 { right / of } else { 0.0 };
                let (precision, recall) = (ratio(answers as f64), ratio(support as f64));
                let sum = precision + recall;
                let f1 = if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 };
                ClassMetrics { precision, recall, f1, support }
            })
            .collect()
    }

    /// Returns one JSON object: `accuracy`, `loss`, `count`, `labels`, `confusion`, `per_class`.
    pub fn to_json(&self, labels: &[String]) -> serde_json::Value {
        let per_class: serde_json::Map<String, serde_json::Value> = labels
            .iter()
            .zip(self.per_class())
            .map(|(label, f)| {
                let metrics = serde_json::json!({
                    "precision": f.precision, "recall": f.recall, "f1": f.f1, "support": f.support
                });
                (label.clone(), metrics)
            })
            .collect();
        serde_json::json!({
            "accuracy": self.accuracy,
            "loss": self.loss,
            "count": self.confusion.iter().flatten().sum::<u64>(),
            "labels": labels,
            "confusion": self.confusion,
            "per_class": per_class,
        })
    }

    /// Formats a table for people.
    pub fn to_table(&self, labels: &[String]) -> String {
        use std::fmt::Write;
        let width = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0).max(5);
        let mut out = format!("accuracy {:.4}  loss {:.4}\n\n", self.accuracy, self.loss);
        let _ = writeln!(out, "{:width$}  precision  recall      f1    images", "class");
        for (label, f) in labels.iter().zip(self.per_class()) {
            let _ = writeln!(
                out,
                "{label:width$}  {:9.4}  {:6.4}  {:6.4}  {:8}",
                f.precision, f.recall, f.f1, f.support
            );
        }
        let cell = self.confusion.iter().flatten().max().unwrap_or(&0).to_string().len().max(3);
        let _ = writeln!(
            out,
            "\nconfusion (rows: truth, columns: answer, in the order of the classes)"
        );
        for (label, row) in labels.iter().zip(&self.confusion) {
            let _ = write!(out, "{label:width$} ");
            for count in row {
                let _ = write!(out, " {count:cell$}");
            }
            out.push('\n');
        }
        out.truncate(out.trim_end().len());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_a_known_confusion_matrix() {
        let evaluation = Evaluation {
            accuracy: 0.7,
            loss: 0.5,
            confusion: vec![vec![5, 1, 0], vec![2, 2, 0], vec![0, 0, 0]],
        };
        let metrics = evaluation.per_class();
        assert!((metrics[0].precision - 5.0 / 7.0).abs() < 1e-12);
        assert!((metrics[0].recall - 5.0 / 6.0).abs() < 1e-12);
        assert!((metrics[1].f1 - 2.0 * (2.0 / 3.0) * 0.5 / (2.0 / 3.0 + 0.5)).abs() < 1e-12);
        assert_eq!(metrics[2], ClassMetrics { precision: 0.0, recall: 0.0, f1: 0.0, support: 0 });
        let labels = ["a", "b", "c"].map(String::from);
        let json = evaluation.to_json(&labels);
        assert_eq!(json["confusion"][1][0], 2);
        assert_eq!(json["per_class"]["a"]["support"], 6);
        assert!(evaluation.to_table(&labels).contains("accuracy 0.7000"));
    }
}
