//! The predictions of a head for the images of a data set.

use std::path::PathBuf;

use anyhow::Result;
use rayon::prelude::*;
use vgg_edge::head::{Output, best};
use vgg_edge::{Fingerprint, Head};

use crate::dataset::Item;
use crate::features::extraction::Features;

/// A named subset of the images: the training set, the validation set, or a directory.
pub struct DataSplit {
    /// `training`, `validation`, or the name of the directory.
    pub name: String,
    /// Its rows in the features.
    pub rows: Vec<usize>,
}

/// An image and the head's prediction for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The file.
    pub file: PathBuf,
    /// The index of the split that the image belongs to.
    pub split: usize,
    /// The true class.
    pub class: usize,
    /// SHA-256 of the file.
    pub hash: Fingerprint,
    /// The classes with the highest scores, best first, at most [`TOP`]. The first one is the
    /// prediction.
    pub top: Vec<(usize, f32)>,
    /// The score of the true class.
    pub label_score: f32,
    /// The score of the predicted class at temperature 1.
    pub raw_score: f64,
}

/// The number of scores that are kept of an image: all of thousands of classes would fill the
/// memory.
pub const TOP: usize = 3;

impl Prediction {
    /// The predicted class, whatever the threshold.
    pub fn predicted(&self) -> usize {
        self.top[0].0
    }

    /// The score of the predicted class.
    pub fn score(&self) -> f32 {
        self.top[0].1
    }

    /// Whether the predicted class is the true one.
    pub fn is_correct(&self) -> bool {
        self.predicted() == self.class
    }
}

/// Classifies the images of all splits by their features.
///
/// # Errors
/// An I/O error if features are read from a file.
pub fn predict(
    head: &Head,
    features: &Features,
    items: &[Item],
    splits: &[DataSplit],
) -> Result<Vec<Prediction>> {
    let rows: Vec<(usize, usize)> = splits
        .iter()
        .enumerate()
        .flat_map(|(split, s)| s.rows.iter().map(move |&row| (split, row)))
        .collect();
    rows.into_par_iter()
        .map(|(split, row)| {
            let Item { path, class } = &items[features.items[row]];
            let map = features.row(row)?;
            let scores = head.scores(&map);
            let predicted = best(&scores);
            let mut others: Vec<usize> = (0..scores.len()).filter(|&c| c != predicted).collect();
            others.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            let ranking = std::iter::once(predicted).chain(others);
            Ok(Prediction {
                file: path.clone(),
                split,
                class: *class,
                hash: features.hashes[row],
                top: ranking.take(TOP).map(|c| (c, scores[c])).collect(),
                label_score: scores[*class],
                raw_score: softmax(head.output, &head.logits(&map))[predicted],
            })
        })
        .collect()
}

/// The scores of logits at temperature 1, in f64.
pub fn softmax(output: Output, logits: &[f32]) -> Vec<f64> {
    let logits: Vec<f64> = match output {
        // A sigmoid is a softmax over 0 and the logit.
        Output::Sigmoid => [0.0].into_iter().chain(logits.iter().map(|&l| f64::from(l))).collect(),
        Output::Softmax => logits.iter().map(|&l| f64::from(l)).collect(),
    };
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|logit| libm::exp(logit - largest)).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_of_both_outputs() {
        let p = softmax(Output::Sigmoid, &[3f32.ln()]);
        assert!((p[0] - 0.25).abs() < 1e-6 && (p[1] - 0.75).abs() < 1e-6);
        let p = softmax(Output::Softmax, &[1000.0, 1000.0, -1000.0]);
        assert_eq!(p, [0.5, 0.5, 0.0]);
    }
}
