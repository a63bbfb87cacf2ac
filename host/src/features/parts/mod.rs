//! Extraction in parts, on as many machines as there are: whose picture is whose, files of
//! features, and putting them together.
//!
//! Machines share nothing but the pictures and a folder for the parts. They need no locks on it: a
//! part is renamed into place whole, and the same part is the same bytes whoever makes it, and
//! however often.

mod extract;
mod file;
mod set;

use std::ffi::OsString;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vgg_edge::Fingerprint;
use vgg_edge_cli::terminal::UsageError;

pub use extract::{Made, extract_part};
pub use file::{Entry, Manifest, Outcome, Part, is_features_file};
pub use set::{Merged, Set};

/// Most parts of a data set.
pub const MAX_PARTS: u32 = 10_000;

/// One of the parts in which a data set is extracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which one, from 0.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

impl Shard {
    /// All of a data set.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    fn new(index: u32, count: u32) -> Result<Self, String> {
        if !(1..=MAX_PARTS).contains(&count) {
            return Err(format!("there can be 1 to {MAX_PARTS} parts, not {count}"));
        }
        if index >= count {
            return Err(format!(
                "there is no part {index} of {count}: they are counted from 0 to {}",
                count - 1
            ));
        }
        Ok(Self { index, count })
    }

    /// Which of `count` parts a picture belongs to, by the bytes of its path relative to the data
    /// folder.
    ///
    /// Neither other pictures nor the order in which they are found matter: a picture more goes to
    /// one part and leaves the others as they are.
    pub fn of(name: &[u8], count: u32) -> u32 {
        let [a, b, c, d, e, f, g, h, ..] = Fingerprint::of(name).0;
        let hash = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        // Below `count`, since the hash is below 2^64.
        ((u128::from(hash) * u128::from(count)) >> 64) as u32
    }

    /// The name of its file.
    pub fn file_name(self) -> String {
        format!("part-{:05}-of-{:05}.features", self.index, self.count)
    }

    /// The part that a file of this name is.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (index, count) =
            name.strip_prefix("part-")?.strip_suffix(".features")?.split_once("-of-")?;
        let shard = Self::new(index.parse().ok()?, count.parse().ok()?).ok()?;
        (shard.file_name() == name).then_some(shard)
    }
}

/// What `--shard` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardOption {
    /// `I/N`.
    Given(Shard),
    /// `auto/N`, or `auto` if the environment tells the number of parts too.
    Auto(Option<u32>),
}

impl FromStr for ShardOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "I/N is wanted, I from 0 to N - 1, or auto, or auto/N".to_owned();
        let number = |text: &str| text.parse::<u32>().map_err(|_| wanted());
        match text.split_once('/') {
            None if text == "auto" => Ok(Self::Auto(None)),
            None => Err(wanted()),
            Some(("auto", count)) => Ok(Self::Auto(Some(Shard::new(0, number(count)?)?.count))),
            Some((index, count)) => Ok(Self::Given(Shard::new(number(index)?, number(count)?)?)),
        }
    }
}

impl ShardOption {
    /// The part, with what the scheduler has put into the environment: of Slurm
    /// `SLURM_ARRAY_TASK_ID`, `_MIN`, `_MAX` and `_COUNT`, of Kubernetes `JOB_COMPLETION_INDEX`.
    ///
    /// # Errors
    /// No scheduler, or a job from which the part does not follow.
    pub fn resolve(self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Shard, UsageError> {
        let wrong = |words: String| UsageError(format!("--shard auto: {words}"));
        let count = match self {
            Self::Given(shard) => return Ok(shard),
            Self::Auto(count) => count,
        };
        let number = |name: &str| match variable(name) {
            None => Ok(None),
            Some(value) => match value.to_str().and_then(|text| text.parse::<u32>().ok()) {
                Some(number) => Ok(Some(number)),
                None => Err(wrong(format!("{name} must be a number, not {}", value.display()))),
            },
        };
        let [slurm, kubernetes] = [number("SLURM_ARRAY_TASK_ID")?, number("JOB_COMPLETION_INDEX")?];
        let shard = match (slurm, kubernetes, count) {
            (Some(_), Some(_), _) => {
                return Err(wrong(
                    "both Slurm and Kubernetes are in the environment; say --shard I/N".into(),
                ));
            }
            (None, None, _) => {
                return Err(wrong(
                    "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set; say --shard I/N"
                        .into(),
                ));
            }
            (Some(index), None, Some(count)) | (None, Some(index), Some(count)) => {
                Shard::new(index, count)
            }
            (None, Some(index), None) => {
                return Err(wrong(format!(
                    "Kubernetes does not tell how many parts there are; say --shard auto/N (N: completions, here above {index})"
                )));
            }
            (Some(index), None, None) => {
                let part = |name: &str| {
                    let name = format!("SLURM_ARRAY_TASK_{name}");
                    number(&name)?
                        .ok_or_else(|| wrong(format!("{name} is not set; say --shard auto/N")))
                };
                let (count, first, last) = (part("COUNT")?, part("MIN")?, part("MAX")?);
                // A part of an array that is run once more has other numbers; they must not pass
                // for those of a whole one.
                if first > 1
                    || last.checked_sub(first).and_then(|span| span.checked_add(1)) != Some(count)
                {
                    return Err(wrong(format!(
                        "the array of {count} tasks from {first} to {last} is not all of 0 to N - 1, so N does not follow from it; say --shard auto/N"
                    )));
                }
                Shard::new(index.wrapping_sub(first), count)
            }
        };
        shard.map_err(wrong)
    }
}

/// What is extracted: a list of pictures, without the pictures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSet {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// How many of the pictures are to train on, the first ones; `None` if the data folder is not
    /// split.
    pub train: Option<u64>,
    /// How many pictures there are, readable or not.
    pub pictures: u64,
    /// Over the classes, the split, and class and relative path of each picture in order: the same
    /// folder gives the same list everywhere.
    pub list: Fingerprint,
}

/// Makes a [`DataSet`] of pictures as they come.
#[derive(Default)]
struct ListBuilder {
    hash: Sha256,
    pictures: u64,
}

impl ListBuilder {
    /// The next picture.
    fn add(&mut self, class: usize, name: &[u8]) {
        self.pictures += 1;
        self.hash.update((class as u64).to_le_bytes());
        self.hash.update((name.len() as u64).to_le_bytes());
        self.hash.update(name);
    }

    fn finish(mut self, classes: Vec<String>, train: Option<u64>) -> DataSet {
        // What is hashed last tells how much of what was before is pictures.
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

/// Numbers as ranges: `3, 7-9`.
fn ranges(numbers: &[u32], separator: &str) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if number == *last + 1 => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let words = |&(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}{separator}{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(words).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn auto(count: Option<u32>, variables: &[(&str, &str)]) -> Result<Shard, String> {
        let find = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        };
        ShardOption::Auto(count).resolve(find).map_err(|e| e.to_string())
    }

    #[test]
    fn shards_are_read() {
        let read = |text: &str| text.parse::<ShardOption>();
        assert_eq!(read("3/16").unwrap(), ShardOption::Given(Shard { index: 3, count: 16 }));
        assert_eq!(read("auto").unwrap(), ShardOption::Auto(None));
        assert_eq!(read("auto/16").unwrap(), ShardOption::Auto(Some(16)));
        for wrong in [
            "", "3", "3/", "/3", "a/3", "-1/3", "3/3", "0/0", "1/10001", "auto/", "auto/0", "0x1/3",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read("16/16").unwrap_err().contains("from 0 to 15"));
    }

    #[test]
    fn slurm_tells_the_part() {
        let slurm = |id, count, min, max| {
            [
                ("SLURM_ARRAY_TASK_ID", id),
                ("SLURM_ARRAY_TASK_COUNT", count),
                ("SLURM_ARRAY_TASK_MIN", min),
                ("SLURM_ARRAY_TASK_MAX", max),
            ]
        };
        let shard = |index, count| Ok(Shard { index, count });
        assert_eq!(auto(None, &slurm("0", "4", "0", "3")), shard(0, 4));
        assert_eq!(auto(None, &slurm("4", "4", "1", "4")), shard(3, 4));
        // Tasks 3 and 7 of sixteen once more: only with their number.
        assert!(auto(None, &slurm("7", "2", "3", "7")).unwrap_err().contains("--shard auto/N"));
        assert_eq!(auto(Some(16), &slurm("7", "2", "3", "7")), shard(7, 16));
        for wrong in
            [slurm("0", "2", "0", "2"), slurm("2", "2", "2", "3"), slurm("9", "2", "0", "1")]
        {
            auto(None, &wrong).unwrap_err();
        }
        assert!(
            auto(None, &slurm("x", "2", "0", "1"))
                .unwrap_err()
                .contains("SLURM_ARRAY_TASK_ID must be a number")
        );
        assert!(
            auto(None, &slurm("0", "2", "0", "1")[..3])
                .unwrap_err()
                .contains("SLURM_ARRAY_TASK_MAX is not set")
        );
        assert!(
            auto(Some(4), &slurm("4", "4", "1", "4")).unwrap_err().contains("counted from 0 to 3")
        );
    }

    #[test]
    fn kubernetes_tells_the_index() {
        let index = ("JOB_COMPLETION_INDEX", "3");
        assert_eq!(auto(Some(4), &[index]), Ok(Shard { index: 3, count: 4 }));
        assert!(auto(Some(3), &[index]).unwrap_err().contains("counted from 0 to 2"));
        assert!(auto(None, &[index]).unwrap_err().contains("auto/N"));
        assert!(
            auto(Some(4), &[index, ("SLURM_ARRAY_TASK_ID", "3")]).unwrap_err().contains("both")
        );
        assert!(auto(None, &[]).unwrap_err().contains("neither"));
    }

    #[test]
    fn names_of_files() {
        let shard = Shard { index: 3, count: 16 };
        assert_eq!(shard.file_name(), "part-00003-of-00016.features");
        assert_eq!(Shard::from_file_name(&shard.file_name()), Some(shard));
        for other in [
            "part-3-of-16.features",
            "part-00016-of-00016.features",
            ".part-00003-of-00016.features",
            "features",
        ] {
            assert_eq!(Shard::from_file_name(other), None, "{other}");
        }
    }

    #[test]
    fn parts_stay_what_they_are() {
        // Recorded: another assignment would make parts of two versions overlap.
        let parts = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/\u{e9}.png"]
            .map(|name| Shard::of(name.as_bytes(), 16));
        assert_eq!(parts, [6, 8, 11, 11]);
        assert_eq!(Shard::of(b"x", 1), 0);
    }

    #[test]
    fn ranges_are_short() {
        assert_eq!(ranges(&[3, 7, 8, 9, 11, 12], ", "), "3, 7-9, 11, 12");
        assert_eq!(ranges(&[0], ","), "0");
    }

    proptest! {
        #[test]
        fn each_picture_has_one_part(names in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..50), count in 1..=MAX_PARTS) {
            for name in names {
                prop_assert!(Shard::of(&name, count) < count);
            }
        }

        #[test]
        fn lists_differ_when_anything_does(
            pictures in prop::collection::vec((0usize..3, prop::collection::vec(any::<u8>(), 0..4)), 1..8), train in prop::option::of(0u64..8), at: prop::sample::Index,
        ) {
            let list = |pictures: &[(usize, Vec<u8>)], classes: &[&str], train| {
                let mut list = ListBuilder::default();
                pictures.iter().for_each(|(class, name)| list.add(*class, name));
                list.finish(classes.iter().map(|&name| name.to_owned()).collect(), train).list
            };
            let same = list(&pictures, &["a", "bc"], train);
            prop_assert_eq!(same, list(&pictures, &["a", "bc"], train));
            prop_assert_ne!(same, list(&pictures, &["ab", "c"], train));
            prop_assert_ne!(same, list(&pictures, &["a", "bc"], Some(9)));
            let mut other = pictures.clone();
            other[at.index(pictures.len())].1.push(7);
            prop_assert_ne!(same, list(&other, &["a", "bc"], train));
            other = pictures.clone();
            other.pop();
            prop_assert_ne!(same, list(&other, &["a", "bc"], train));
        }
    }
}
