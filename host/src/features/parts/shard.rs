//! Shards: which image belongs to which part, and which part a job makes.

use std::ffi::OsString;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vgg_edge::Fingerprint;
use vgg_edge_cli::terminal::UsageError;

/// Maximum number of parts of a data set.
pub const MAX_PARTS: u32 = 10_000;

/// One of the parts in which a data set is extracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Index of the part, from 0.
    pub index: u32,
    /// Number of parts.
    pub count: u32,
}

/// Invalid shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// The text is not a shard.
    #[error("expected I/N with I from 0 to N - 1, auto, or auto/N")]
    Syntax,
    /// The number of parts is out of range.
    #[error("the number of parts must be from 1 to {MAX_PARTS}, not {0}")]
    Count(u32),
    /// The index is out of range.
    #[error("there is no part {index} of {count}: they are counted from 0 to {}", count - 1)]
    Index {
        /// The index.
        index: u32,
        /// The number of parts.
        count: u32,
    },
}

impl Shard {
    /// The whole data set.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    fn new(index: u32, count: u32) -> Result<Self, ShardError> {
        if !(1..=MAX_PARTS).contains(&count) {
            return Err(ShardError::Count(count));
        }
        if index >= count {
            return Err(ShardError::Index { index, count });
        }
        Ok(Self { index, count })
    }

    /// Returns which of `count` parts an image belongs to, by the bytes of its path relative to the
    /// data directory.
    ///
    /// It does not depend on other images or the order in which they are found: another image goes
    /// to one part and leaves the others as they are.
    pub fn of(name: &[u8], count: u32) -> u32 {
        let [a, b, c, d, e, f, g, h, ..] = Fingerprint::of(name).0;
        let hash = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        // Below `count`, since the hash is below 2^64.
        ((u128::from(hash) * u128::from(count)) >> 64) as u32
    }

    /// Returns the name of the part's file.
    pub fn file_name(self) -> String {
        format!("part-{:05}-of-{:05}.features", self.index, self.count)
    }

    /// Returns the part that has a file of this name.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (index, count) =
            name.strip_prefix("part-")?.strip_suffix(".features")?.split_once("-of-")?;
        let shard = Self::new(index.parse().ok()?, count.parse().ok()?).ok()?;
        (shard.file_name() == name).then_some(shard)
    }
}

/// Value of `--shard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardOption {
    /// `I/N`.
    Given(Shard),
    /// `auto/N`, or `auto` if the environment has the number of parts too.
    Auto(Option<u32>),
}

impl FromStr for ShardOption {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let number = |text: &str| text.parse::<u32>().map_err(|_| ShardError::Syntax);
        match text.split_once('/') {
            None if text == "auto" => Ok(Self::Auto(None)),
            None => Err(ShardError::Syntax),
            Some(("auto", count)) => Ok(Self::Auto(Some(Shard::new(0, number(count)?)?.count))),
            Some((index, count)) => Ok(Self::Given(Shard::new(number(index)?, number(count)?)?)),
        }
    }
}

impl ShardOption {
    /// Returns the part, using the environment of the scheduler: `SLURM_ARRAY_TASK_ID`, `_MIN`,
    /// `_MAX` and `_COUNT` of Slurm, `JOB_COMPLETION_INDEX` of Kubernetes.
    ///
    /// # Errors
    /// No scheduler, or a job that does not determine the part.
    pub fn resolve(self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Shard, UsageError> {
        let count = match self {
            Self::Given(shard) => return Ok(shard),
            Self::Auto(count) => count,
        };
        let number = |name: &str| match variable(name) {
            None => Ok(None),
            Some(value) => match value.to_str().and_then(|text| text.parse::<u32>().ok()) {
                Some(number) => Ok(Some(number)),
                None => Err(usage(format!("{name} must be a number, not {}", value.display()))),
            },
        };
        let shard = match (number("SLURM_ARRAY_TASK_ID")?, number("JOB_COMPLETION_INDEX")?, count) {
            (Some(_), Some(_), _) => {
                return Err(usage(
                    "the environment has both Slurm and Kubernetes variables; use --shard I/N",
                ));
            }
            (None, None, _) => {
                return Err(usage(
                    "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set; use --shard I/N",
                ));
            }
            (Some(index), None, Some(count)) | (None, Some(index), Some(count)) => {
                Shard::new(index, count)
            }
            (None, Some(index), None) => {
                return Err(usage(format!(
                    "Kubernetes does not provide the number of parts; use --shard auto/N (N: \
                     completions, here above {index})"
                )));
            }
            (Some(index), None, None) => slurm_array(index, &number)?,
        };
        shard.map_err(usage)
    }
}

/// Returns the part of a task of a Slurm array.
fn slurm_array(
    index: u32,
    number: &impl Fn(&str) -> Result<Option<u32>, UsageError>,
) -> Result<Result<Shard, ShardError>, UsageError> {
    let part = |name: &str| {
        let name = format!("SLURM_ARRAY_TASK_{name}");
        number(&name)?.ok_or_else(|| usage(format!("{name} is not set; use --shard auto/N")))
    };
    let (count, first, last) = (part("COUNT")?, part("MIN")?, part("MAX")?);
    // Some tasks of an array that run again have other numbers, which must not pass for those of a
    // whole array.
    if first > 1 || last.checked_sub(first).and_then(|span| span.checked_add(1)) != Some(count) {
        return Err(usage(format!(
            "the array of {count} tasks from {first} to {last} is not all of 0 to N - 1, so that N \
             is unknown; use --shard auto/N"
        )));
    }
    Ok(Shard::new(index.wrapping_sub(first), count))
}

fn usage(message: impl std::fmt::Display) -> UsageError {
    UsageError(format!("--shard auto: {message}"))
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
    fn shard_flags_are_parsed() {
        let read = |text: &str| text.parse::<ShardOption>();
        assert_eq!(read("3/16").unwrap(), ShardOption::Given(Shard { index: 3, count: 16 }));
        assert_eq!(read("auto").unwrap(), ShardOption::Auto(None));
        assert_eq!(read("auto/16").unwrap(), ShardOption::Auto(Some(16)));
        for wrong in [
            "", "3", "3/", "/3", "a/3", "-1/3", "3/3", "0/0", "1/10001", "auto/", "auto/0", "0x1/3",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert_eq!(read("16/16").unwrap_err(), ShardError::Index { index: 16, count: 16 });
    }

    #[test]
    fn slurm_variables_give_the_part() {
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
        // Tasks 3 and 7 of sixteen again: only with their number.
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
    fn kubernetes_variables_give_the_index() {
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
    fn shards_and_file_names_correspond() {
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
    fn assignment_to_parts_is_stable() {
        // Recorded: another assignment would make parts of two versions overlap.
        let parts = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/\u{e9}.png"]
            .map(|name| Shard::of(name.as_bytes(), 16));
        assert_eq!(parts, [6, 8, 11, 11]);
        assert_eq!(Shard::of(b"x", 1), 0);
    }

    proptest! {
        #[test]
        fn each_image_has_one_part(
            names in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..50),
            count in 1..=MAX_PARTS,
        ) {
            for name in names {
                prop_assert!(Shard::of(&name, count) < count);
            }
        }
    }
}
