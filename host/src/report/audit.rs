//! Problems of the data: images that occur more than once, labels that the head contradicts.

use std::collections::HashMap;

use super::Prediction;

/// Images with the same content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicates {
    /// Indices of two or more images, ascending.
    pub members: Vec<usize>,
    /// Whether they have different labels.
    pub conflict: bool,
    /// Whether they are in different splits, training and validation.
    pub across: bool,
}

/// Finds all groups of images whose files have the same bytes: label conflicts first, then those
/// across splits, then by their first image.
pub fn duplicates(predictions: &[Prediction]) -> Vec<Duplicates> {
    let mut by_content: HashMap<_, Vec<usize>> = HashMap::new();
    for (index, prediction) in predictions.iter().enumerate() {
        by_content.entry(prediction.hash.0).or_default().push(index);
    }
    let mut groups: Vec<Duplicates> = by_content
        .into_values()
        .filter(|members| members.len() > 1)
        .map(|members| {
            let first = &predictions[members[0]];
            Duplicates {
                conflict: members.iter().any(|&i| predictions[i].class != first.class),
                across: members.iter().any(|&i| predictions[i].split != first.split),
                members,
            }
        })
        .collect();
    groups.sort_by_key(|group| (!group.conflict, !group.across, group.members[0]));
    groups
}

/// Finds the misclassified images of a split, the one whose true class has the lowest score first.
pub fn misclassified(predictions: &[Prediction], split: usize) -> Vec<usize> {
    let mut wrong: Vec<usize> = (0..predictions.len())
        .filter(|&i| predictions[i].split == split && !predictions[i].is_correct())
        .collect();
    wrong.sort_by(|&a, &b| {
        predictions[a].label_score.total_cmp(&predictions[b].label_score).then(a.cmp(&b))
    });
    wrong
}

/// The lowest score of another class that makes a label suspicious.
pub const SUSPICIOUS: f32 = 0.8;

/// Finds the images of all splits for which the head predicts another class with a score of at
/// least [`SUSPICIOUS`], the highest score first.
pub fn suspicious_labels(predictions: &[Prediction]) -> Vec<usize> {
    let mut found: Vec<usize> = (0..predictions.len())
        .filter(|&i| !predictions[i].is_correct() && predictions[i].score() >= SUSPICIOUS)
        .collect();
    found.sort_by(|&a, &b| {
        predictions[b].score().total_cmp(&predictions[a].score()).then(a.cmp(&b))
    });
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vgg_edge::Fingerprint;

    use super::*;

    fn prediction(
        content: u8,
        class: usize,
        split: usize,
        predicted: usize,
        score: f32,
    ) -> Prediction {
        Prediction {
            file: format!("{content}").into(),
            split,
            class,
            hash: Fingerprint::of(&[content]),
            top: vec![(predicted, score)],
            label_score: if predicted == class { score } else { 1.0 - score },
            raw_score: f64::from(score),
        }
    }

    #[test]
    fn misclassified_and_suspicious_images_are_sorted() {
        let predictions = [
            prediction(0, 0, 0, 1, 0.7),
            prediction(1, 0, 1, 1, 0.9),
            prediction(2, 0, 0, 1, 0.95),
            prediction(3, 0, 0, 0, 0.99),
            prediction(4, 1, 1, 0, 0.6),
        ];
        assert_eq!(misclassified(&predictions, 0), [2, 0]);
        assert_eq!(misclassified(&predictions, 1), [1, 4]);
        assert_eq!(suspicious_labels(&predictions), [2, 1]);
    }

    proptest! {
        #[test]
        fn duplicates_are_those_of_comparing_each_pair(
            spec in prop::collection::vec((0u8..12, 0usize..3, 0usize..2), 0..40),
        ) {
            let predictions: Vec<_> = spec
                .iter()
                .map(|&(content, class, split)| prediction(content, class, split, class, 1.0))
                .collect();
            let groups = duplicates(&predictions);
            let group_of = |i: usize| groups.iter().find(|group| group.members.contains(&i));
            for a in 0..predictions.len() {
                let equal: Vec<usize> =
                    (0..predictions.len()).filter(|&b| spec[b].0 == spec[a].0).collect();
                let Some(group) = group_of(a) else {
                    prop_assert_eq!(equal.len(), 1);
                    continue;
                };
                prop_assert_eq!(&group.members, &equal);
                let pairs = || equal.iter().flat_map(|&x| equal.iter().map(move |&y| (x, y)));
                prop_assert_eq!(group.conflict, pairs().any(|(x, y)| spec[x].1 != spec[y].1));
                prop_assert_eq!(group.across, pairs().any(|(x, y)| spec[x].2 != spec[y].2));
            }
            prop_assert!(groups.is_sorted_by_key(|group| !group.conflict));
        }
    }
}
