//! What is odd about the data: pictures that occur twice, labels that the head doubts.

use std::collections::HashMap;

use super::Picture;

/// Pictures of equal content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicates {
    /// Indices of two or more pictures, ascending.
    pub members: Vec<usize>,
    /// Whether they bear different labels.
    pub conflict: bool,
    /// Whether they lie in different parts, training and validation.
    pub across: bool,
}

/// All groups of pictures whose files have the same bytes: conflicts first, then those across the
/// parts, then by their first picture.
pub fn duplicates(pictures: &[Picture]) -> Vec<Duplicates> {
    let mut by_content: HashMap<_, Vec<usize>> = HashMap::new();
    for (index, picture) in pictures.iter().enumerate() {
        by_content.entry(picture.hash.0).or_default().push(index);
    }
    let mut groups: Vec<Duplicates> = by_content
        .into_values()
        .filter(|members| members.len() > 1)
        .map(|members| {
            let first = &pictures[members[0]];
            Duplicates {
                conflict: members.iter().any(|&i| pictures[i].class != first.class),
                across: members.iter().any(|&i| pictures[i].part != first.part),
                members,
            }
        })
        .collect();
    groups.sort_by_key(|group| (!group.conflict, !group.across, group.members[0]));
    groups
}

/// The pictures of a part that were answered wrongly, the one whose label got the lowest score
/// first.
pub fn most_wrong(pictures: &[Picture], part: usize) -> Vec<usize> {
    let mut wrong: Vec<usize> = (0..pictures.len())
        .filter(|&i| pictures[i].part == part && !pictures[i].is_right())
        .collect();
    wrong.sort_by(|&a, &b| {
        pictures[a].label_score.total_cmp(&pictures[b].label_score).then(a.cmp(&b))
    });
    wrong
}

/// The least score of another label that makes a label suspicious.
pub const SURE: f32 = 0.8;

/// The pictures of all parts that the head gives another label with a score of at least [`SURE`],
/// the surest first.
pub fn suspects(pictures: &[Picture]) -> Vec<usize> {
    let mut found: Vec<usize> = (0..pictures.len())
        .filter(|&i| !pictures[i].is_right() && pictures[i].said_score() >= SURE)
        .collect();
    found.sort_by(|&a, &b| {
        pictures[b].said_score().total_cmp(&pictures[a].said_score()).then(a.cmp(&b))
    });
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vgg_edge::Fingerprint;

    use super::*;

    fn picture(content: u8, class: usize, part: usize, said: usize, score: f32) -> Picture {
        Picture {
            file: format!("{content}").into(),
            part,
            class,
            hash: Fingerprint::of(&[content]),
            top: vec![(said, score)],
            label_score: if said == class { score } else { 1.0 - score },
            raw_score: f64::from(score),
        }
    }

    #[test]
    fn the_worst_come_first() {
        let pictures = [
            picture(0, 0, 0, 1, 0.7),
            picture(1, 0, 1, 1, 0.9),
            picture(2, 0, 0, 1, 0.95),
            picture(3, 0, 0, 0, 0.99),
            picture(4, 1, 1, 0, 0.6),
        ];
        assert_eq!(most_wrong(&pictures, 0), [2, 0]);
        assert_eq!(most_wrong(&pictures, 1), [1, 4]);
        assert_eq!(suspects(&pictures), [2, 1]);
    }

    proptest! {
        #[test]
        fn duplicates_are_those_of_a_look_at_each_pair(spec in prop::collection::vec((0u8..12, 0usize..3, 0usize..2), 0..40)) {
            let pictures: Vec<_> = spec.iter().map(|&(content, class, part)| picture(content, class, part, class, 1.0)).collect();
            let groups = duplicates(&pictures);
            let group_of = |i: usize| groups.iter().find(|group| group.members.contains(&i));
            for a in 0..pictures.len() {
                let twins: Vec<usize> = (0..pictures.len()).filter(|&b| spec[b].0 == spec[a].0).collect();
                let Some(group) = group_of(a) else {
                    prop_assert_eq!(twins.len(), 1);
                    continue;
                };
                prop_assert_eq!(&group.members, &twins);
                let pairs = || twins.iter().flat_map(|&x| twins.iter().map(move |&y| (x, y)));
                prop_assert_eq!(group.conflict, pairs().any(|(x, y)| spec[x].1 != spec[y].1));
                prop_assert_eq!(group.across, pairs().any(|(x, y)| spec[x].2 != spec[y].2));
            }
            prop_assert!(groups.is_sorted_by_key(|group| !group.conflict));
        }
    }
}
