//! Stratified split into training and validation images.

use std::collections::HashMap;
use std::hash::Hash;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use vgg_edge::Fingerprint;

/// Groups items by key, keys in the order in which they appear.
pub fn group<K: Eq + Hash>(keys: impl Iterator<Item = K>) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known = HashMap::new();
    for (item, key) in keys.enumerate() {
        let group = *known.entry(key).or_insert(groups.len());
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(item);
    }
    groups
}

/// Shuffles the members of a class, with a random stream per class: another image in one class
/// leaves the others as they are.
pub fn shuffle<T>(members: &mut [T], seed: u64, class: usize) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(
        seed ^ (class as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    );
    // Fisher-Yates; the bias of the remainder is below 2^-40 for any directory that fits a disk.
    for i in (1..members.len()).rev() {
        members.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
    }
}

/// Chooses validation items of each class: `fraction` of it, rounded, at least one and never all.
///
/// `classes` and `hashes` are the class and the content of each item. Items of a class with the
/// same content stay together, or validation images would be known from training; where they are
/// many, the fraction may be missed. Returns the indices of the training and of the validation
/// items, ascending. The choice depends only on the seed and on the order of the items within their
/// class.
pub fn split(
    classes: &[usize],
    hashes: &[Fingerprint],
    count: usize,
    fraction: f64,
    seed: u64,
) -> (Vec<usize>, Vec<usize>) {
    let mut is_val = vec![false; classes.len()];
    // Items of each content, by class.
    let mut members: Vec<Vec<Vec<usize>>> = vec![Vec::new(); count];
    group(classes.iter().zip(hashes))
        .into_iter()
        .for_each(|items| members[classes[items[0]]].push(items));
    for (class, mut members) in members.into_iter().enumerate() {
        if members.len() < 2 {
            continue;
        }
        let items: usize = members.iter().map(Vec::len).sum();
        shuffle(&mut members, seed, class);
        let mut wanted = ((fraction * items as f64).round() as usize).clamp(1, items - 1);
        let smallest = members.iter().map(Vec::len).min().unwrap_or_default();
        // At least one content goes to each side.
        let (mut chosen, most) = (0, members.len() - 1);
        for group in members {
            let fits = group.len() <= wanted
                || (chosen == 0 && group.len() == smallest && wanted < smallest);
            if fits && chosen < most {
                chosen += 1;
                wanted = wanted.saturating_sub(group.len());
                group.into_iter().for_each(|item| is_val[item] = true);
            }
        }
    }
    (0..classes.len()).partition(|&i| !is_val[i])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Returns hashes of different contents.
    fn different(count: usize) -> Vec<Fingerprint> {
        (0..count).map(|item| Fingerprint::of(&item.to_le_bytes())).collect()
    }

    proptest! {
        #[test]
        fn copies_stay_on_one_side(
            contents in prop::collection::vec(0u8..12, 0..60), fraction in 0.0f64..1.0, seed: u64,
        ) {
            let classes: Vec<usize> = (0..contents.len()).map(|item| item % 3).collect();
            let hashes: Vec<Fingerprint> =
                contents.iter().map(|&content| Fingerprint::of(&[content])).collect();
            let (train, val) = split(&classes, &hashes, 3, fraction, seed);
            prop_assert_eq!(train.len() + val.len(), classes.len());
            let keys = |rows: &[usize], class: usize| -> BTreeSet<u8> {
                let rows = rows.iter().filter(|&&row| classes[row] == class);
                rows.map(|&row| contents[row]).collect()
            };
            for class in 0..3 {
                let (train, val) = (keys(&train, class), keys(&val, class));
                prop_assert!(train.is_disjoint(&val));
                prop_assert_eq!(val.is_empty(), train.len() + val.len() < 2);
                prop_assert_eq!(train.is_empty(), train.len() + val.len() == 0);
            }
        }

        #[test]
        fn splits_are_stratified_and_repeatable(
            counts in prop::collection::vec(0usize..40, 1..5), fraction in 0.0f64..1.0, seed: u64,
        ) {
            let classes: Vec<usize> =
                counts.iter().enumerate().flat_map(|(c, &n)| vec![c; n]).collect();
            let hashes = different(classes.len());
            let (train, val) = split(&classes, &hashes, counts.len(), fraction, seed);
            prop_assert_eq!(train.len() + val.len(), classes.len());
            let again = split(&classes, &hashes, counts.len(), fraction, seed);
            prop_assert_eq!(again, (train, val.clone()));
            for (class, &n) in counts.iter().enumerate() {
                let chosen = val.iter().filter(|&&i| classes[i] == class).count();
                let wanted = ((fraction * n as f64).round() as usize).clamp(1, n.max(2) - 1);
                let wanted = if n < 2 { 0 } else { wanted };
                prop_assert_eq!(chosen, wanted);
            }
        }
    }
}
