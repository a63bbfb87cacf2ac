//! Extraction in parts, on any number of machines: the assignment of images to parts, files of
//! features, and merging them.
//!
//! Machines share only the images and a directory for the parts. They need no locks on it: a part
//! is renamed into place whole, and the same part has the same bytes whoever makes it, and however
//! often.

mod entries;
mod error;
mod extract;
mod file;
mod load;
mod merge;
mod set;
mod shard;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vgg_edge::Fingerprint;

pub use error::PartSetError;
pub use extract::{ExtractedPart, PartSettings, extract_part};
pub use file::{Entry, FileError, Manifest, Outcome, Part, Run, is_features_file};
pub use merge::Merged;
pub use set::PartSet;
pub use shard::{MAX_PARTS, Shard, ShardError, ShardOption};

/// List of the images that are extracted, without the images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSet {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Number of training images, which come first; `None` if the data directory is not split.
    pub train: Option<u64>,
    /// Number of images, readable or not.
    pub pictures: u64,
    /// Hash over the classes, the split, and class and relative path of each image in order: the
    /// same directory has the same list everywhere.
    pub list: Fingerprint,
}

/// Builder of a [`DataSet`].
#[derive(Default)]
struct ListBuilder {
    hash: Sha256,
    pictures: u64,
}

impl ListBuilder {
    /// Adds the next image.
    fn add(&mut self, class: usize, name: &[u8]) {
        self.pictures += 1;
        self.hash.update((class as u64).to_le_bytes());
        self.hash.update((name.len() as u64).to_le_bytes());
        self.hash.update(name);
    }

    fn finish(mut self, classes: Vec<String>, train: Option<u64>) -> DataSet {
        // The numbers at the end separate the classes from the images.
        for class in &classes {
            self.hash.update(class.as_bytes());
            self.hash.update((class.len() as u64).to_le_bytes());
        }
        for number in [classes.len() as u64, train.unwrap_or(u64::MAX), self.pictures] {
            self.hash.update(number.to_le_bytes());
        }
        DataSet {
            classes,
            train,
            pictures: self.pictures,
            list: Fingerprint(self.hash.finalize().into()),
        }
    }
}

/// Formats numbers as ranges: `3, 7-9`.
fn ranges(numbers: &[u32], separator: &str) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if number == *last + 1 => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let format = |&(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}{separator}{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(format).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_short() {
        assert_eq!(ranges(&[3, 7, 8, 9, 11, 12], ", "), "3, 7-9, 11, 12");
        assert_eq!(ranges(&[0], ","), "0");
    }

    proptest! {
        #[test]
        fn lists_differ_when_anything_does(
            images in prop::collection::vec(
                (0usize..3, prop::collection::vec(any::<u8>(), 0..4)), 1..8,
            ),
            train in prop::option::of(0u64..8), at: prop::sample::Index,
        ) {
            let list = |images: &[(usize, Vec<u8>)], classes: &[&str], train| {
                let mut list = ListBuilder::default();
                images.iter().for_each(|(class, name)| list.add(*class, name));
                list.finish(classes.iter().map(|&name| name.to_owned()).collect(), train).list
            };
            let same = list(&images, &["a", "bc"], train);
            prop_assert_eq!(same, list(&images, &["a", "bc"], train));
            prop_assert_ne!(same, list(&images, &["ab", "c"], train));
            prop_assert_ne!(same, list(&images, &["a", "bc"], Some(9)));
            let mut other = images.clone();
            other[at.index(images.len())].1.push(7);
            prop_assert_ne!(same, list(&other, &["a", "bc"], train));
            other = images.clone();
            other.pop();
            prop_assert_ne!(same, list(&other, &["a", "bc"], train));
        }
    }
}
