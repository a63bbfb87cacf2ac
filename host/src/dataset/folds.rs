//! Stratified K-fold cross-validation: the fold of each image, and the results of the folds.

use serde::{Deserialize, Serialize};
use vgg_edge::Fingerprint;

use super::split::{group, shuffle};

/// A class has too few images to be in every fold.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "class {label} has {found} different images, too few for --folds {folds}; \
     add some or use fewer folds"
)]
pub struct TooFew {
    /// The class.
    pub label: String,
    /// Number of different images; one that is also in an earlier class is counted there.
    pub found: usize,
    /// The requested number of folds.
    pub folds: usize,
}

/// Checks for what [`assign`] would refuse, as far as it is known before contents are read.
///
/// # Errors
/// [`TooFew`].
pub fn check_counts(
    classes: impl Iterator<Item = usize>,
    labels: &[String],
    folds: usize,
) -> Result<(), TooFew> {
    let mut counts = vec![0; labels.len()];
    classes.for_each(|class| counts[class] += 1);
    match counts.iter().position(|&count| count < folds) {
        Some(class) => Err(TooFew { label: labels[class].clone(), found: counts[class], folds }),
        None => Ok(()),
    }
}

/// Assigns the rows to `folds` folds of nearly equal size in each class; returns the fold of each
/// row.
///
/// Rows of equal content (`hashes`) go to the same fold, whatever their classes. The result depends
/// only on the seed and on the order of the rows.
///
/// # Errors
/// [`TooFew`].
pub fn assign(
    classes: &[usize],
    hashes: &[Fingerprint],
    labels: &[String],
    folds: usize,
    seed: u64,
) -> Result<Vec<usize>, TooFew> {
    // Rows of each content, in the order in which contents appear.
    let groups = group(hashes.iter());
    let mut members: Vec<Vec<&Vec<usize>>> = vec![Vec::new(); labels.len()];
    groups.iter().for_each(|rows| members[classes[rows[0]]].push(rows));
    let mut fold_of = vec![0; classes.len()];
    let mut sizes = vec![0; folds];
    for (class, (label, mut members)) in labels.iter().zip(members).enumerate() {
        if members.len() < folds {
            return Err(TooFew { label: label.clone(), found: members.len(), folds });
        }
        shuffle(&mut members, seed, class);
        let mut counts = vec![0; folds];
        for rows in members {
            // To the fold with the fewest images of the class, then of all.
            let fold = (0..folds).min_by_key(|&fold| (counts[fold], sizes[fold])).unwrap_or(0);
            counts[fold] += rows.len();
            sizes[fold] += rows.len();
            rows.iter().for_each(|&row| fold_of[row] = fold);
        }
    }
    Ok(fold_of)
}

/// Metrics of a fold on the images that it held out, at its best epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldResult {
    /// Fraction classified correctly, 0 to 1.
    pub accuracy: f64,
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// The best epoch, from 1.
    pub best_epoch: usize,
}

/// Results of the completed folds, from which a cross-validation resumes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletedFolds {
    /// Metrics of each fold.
    pub results: Vec<FoldResult>,
    /// Logits of the held-out images, fold by fold.
    pub logits: Vec<Vec<f32>>,
    /// Classes of the held-out images.
    pub truth: Vec<usize>,
}

/// Metrics of all folds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Mean accuracy of the folds.
    pub accuracy: f64,
    /// Sample standard deviation of the accuracy (with a divisor of one less than the folds).
    pub deviation: f64,
    /// Mean loss.
    pub loss: f64,
    /// Mean of the best epochs, rounded, at least 1.
    pub epochs: usize,
}

impl Summary {
    /// Summarizes two or more folds.
    pub fn of(folds: &[FoldResult]) -> Self {
        let count = folds.len().max(1) as f64;
        let mean = |value: fn(&FoldResult) -> f64| folds.iter().map(value).sum::<f64>() / count;
        let accuracy = mean(|fold| fold.accuracy);
        let squares: f64 =
            folds.iter().map(|fold| (fold.accuracy - accuracy) * (fold.accuracy - accuracy)).sum();
        Self {
            accuracy,
            deviation: (squares / (count - 1.0).max(1.0)).sqrt(),
            loss: mean(|fold| fold.loss),
            epochs: (mean(|fold| fold.best_epoch as f64).round() as usize).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn folds_are_stratified_and_never_share_an_image(
            counts in prop::collection::vec(6usize..30, 2..5),
            folds in 2usize..5, twins in 0usize..4, seed: u64,
        ) {
            let labels: Vec<String> = (0..counts.len()).map(|c| c.to_string()).collect();
            let mut classes: Vec<usize> =
                counts.iter().enumerate().flat_map(|(c, &n)| vec![c; n]).collect();
            let mut contents: Vec<usize> = (0..classes.len()).collect();
            // Copies of some images of the first class, one of them in another class.
            for twin in 0..twins {
                classes.push(if twin == 1 { 1 } else { 0 });
                contents.push(twin / 2);
            }
            let hashes: Vec<Fingerprint> =
                contents.iter().map(|c| Fingerprint::of(&c.to_le_bytes())).collect();
            let fold_of = assign(&classes, &hashes, &labels, folds, seed).unwrap();
            let again = assign(&classes, &hashes, &labels, folds, seed).unwrap();
            prop_assert_eq!(&fold_of, &again);
            for a in 0..classes.len() {
                for b in 0..a {
                    prop_assert!(contents[a] != contents[b] || fold_of[a] == fold_of[b]);
                }
            }
            for (class, &n) in counts.iter().enumerate() {
                let in_class = |fold: usize| {
                    let rows = classes.iter().zip(&fold_of);
                    rows.filter(|&(&c, &f)| c == class && f == fold).count()
                };
                let parts: Vec<usize> = (0..folds).map(in_class).collect();
                let (least, most) = (parts.iter().min().unwrap(), parts.iter().max().unwrap());
                prop_assert!(*least >= 1 && most - least <= 1 + twins, "{parts:?} of {n}");
            }
        }
    }

    #[test]
    fn a_class_with_too_few_is_named() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let hash = |n: u8| Fingerprint::of(&[n]);
        // Four of b, but two are the same.
        let hashes = [0, 1, 2, 3, 4, 5, 5, 6].map(hash);
        let classes = [0, 0, 0, 0, 1, 1, 1, 1];
        let error = assign(&classes, &hashes, &labels, 4, 0).unwrap_err();
        assert_eq!(error, TooFew { label: "b".into(), found: 3, folds: 4 });
        assert!(error.to_string().contains("class b has 3 different images"));
        assert!(assign(&classes, &hashes, &labels, 3, 0).is_ok());
    }

    #[test]
    fn summaries_are_means() {
        let fold = |accuracy, best_epoch| FoldResult { accuracy, loss: accuracy * 2.0, best_epoch };
        let summary = Summary::of(&[fold(0.5, 3), fold(0.7, 4), fold(0.9, 6)]);
        assert!((summary.accuracy - 0.7).abs() < 1e-12 && (summary.deviation - 0.2).abs() < 1e-12);
        assert_eq!(summary.epochs, 4);
    }
}
