//! The parts of a data set: whether all are there and belong together.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vgg_edge::{Backbone, Error};

use super::error::PartSetError;
use super::file::{FileError, Run};
use super::{Manifest, Part, Shard, ranges};
use crate::features::cache::ARITHMETIC;

/// Memory for pieces of all parts together, in bytes.
const PIECES: usize = 64 << 20;

/// All parts of a data set.
pub struct PartSet {
    pub(super) path: PathBuf,
    /// The parts by index.
    pub(super) parts: Vec<Part>,
}

/// Finds the files in a directory that are named like parts: their indices by number of parts.
pub(super) fn find(directory: &Path) -> vgg_edge::Result<BTreeMap<u32, Vec<u32>>> {
    let list = || Error::io("list", directory);
    let mut found: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(list())? {
        let name = entry.map_err(list())?.file_name();
        if let Some(Shard { index, count }) = name.to_str().and_then(Shard::from_file_name) {
            found.entry(count).or_default().push(index);
        }
    }
    found.values_mut().for_each(|indices| indices.sort_unstable());
    Ok(found)
}

impl PartSet {
    /// Opens a file of `host merge`, or the parts in a directory, and reads their manifests.
    ///
    /// # Errors
    /// [`PartSetError`], which names every part that is missing, of a wrong length, or of another
    /// run.
    pub fn open(path: &Path) -> Result<Self, PartSetError> {
        if !path.is_dir() {
            let part = Part::open(path)?;
            let Shard { index, count } = part.manifest.shard;
            return match count {
                1 => Ok(Self { path: path.to_owned(), parts: vec![part] }),
                _ => Err(PartSetError::Alone { path: path.to_owned(), index, count }),
            };
        }
        let found = find(path)?;
        let count = match found.keys().copied().collect::<Vec<_>>()[..] {
            [] => return Err(PartSetError::Empty(path.to_owned())),
            [count] => count,
            _ => {
                let format = |(count, indices): (&u32, &Vec<u32>)| {
                    format!("{} of {count} ({})", indices.len(), ranges(indices, ", "))
                };
                let counts = found.iter().map(format).collect::<Vec<_>>().join("; ");
                return Err(PartSetError::Counts { path: path.to_owned(), counts });
            }
        };
        let (mut parts, mut missing, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
        for index in 0..count {
            let shard = Shard { index, count };
            // Opened by name, whatever the listing had: over a network a file may be newer than the
            // listing.
            match Part::open(&path.join(shard.file_name())) {
                Ok(part) if part.manifest.shard == shard => parts.push(part),
                Ok(part) => {
                    let Shard { index, count } = part.manifest.shard;
                    let what =
                        format!("its name does not match its content, part {index} of {count}");
                    return Err(PartSetError::Images { path: part.path, what });
                }
                Err(FileError::Io(Error::Io { source, .. }))
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    missing.push(index);
                }
                Err(FileError::Damaged { what, .. }) => damaged.push((index, what)),
                Err(FileError::Magic(_)) => {
                    damaged.push((index, "it is not a file of features".into()))
                }
                Err(e) => return Err(e.into()),
            }
        }
        let set = Self { path: path.to_owned(), parts };
        if !missing.is_empty() || !damaged.is_empty() {
            return Err(set.incomplete(count, &missing, &damaged));
        }
        set.check_together()?;
        Ok(set)
    }

    pub(super) fn incomplete(
        &self,
        count: u32,
        missing: &[u32],
        damaged: &[(u32, String)],
    ) -> PartSetError {
        let mut problems = Vec::new();
        if !missing.is_empty() {
            problems.push(format!(
                "of {count} parts {} missing: {}",
                missing.len(),
                ranges(missing, ", ")
            ));
        }
        problems.extend(
            damaged.iter().map(|(index, what)| format!("part {index} is damaged ({what})")),
        );
        let mut array: Vec<u32> =
            missing.iter().copied().chain(damaged.iter().map(|&(index, _)| index)).collect();
        array.sort_unstable();
        PartSetError::Incomplete {
            path: self.path.clone(),
            problems: problems.join("; "),
            count,
            array: ranges(&array, ","),
        }
    }

    /// Checks that all parts are of the same run: that of most parts.
    fn check_together(&self) -> Result<(), PartSetError> {
        let mut runs: Vec<(&Run, Vec<u32>)> = Vec::new();
        for part in &self.parts {
            let Manifest { run, shard, .. } = &part.manifest;
            match runs.iter_mut().find(|(known, _)| *known == run) {
                Some((_, indices)) => indices.push(shard.index),
                None => runs.push((run, vec![shard.index])),
            }
        }
        // The first of the runs with most parts.
        runs.sort_by_key(|(_, indices)| Reverse(indices.len()));
        let [(most, _), others @ ..] = &runs[..] else { return Ok(()) };
        let differences = others.iter().filter_map(|(run, indices)| {
            let [part, is] = if indices.len() == 1 { ["part", "is"] } else { ["parts", "are"] };
            Some(format!("{part} {} {is} {}", ranges(indices, ", "), run.difference(most)?))
        });
        let differences: Vec<String> = differences.collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(PartSetError::Foreign { path: self.path.clone(), differences: differences.join("; ") })
    }

    /// Returns what all parts have in common.
    pub fn run(&self) -> &Run {
        &self.parts[0].manifest.run
    }

    /// Checks that a head can be trained on the features with this backbone and this program.
    ///
    /// # Errors
    /// [`PartSetError::Unfit`].
    pub fn check_base(&self, base: &Backbone) -> Result<(), PartSetError> {
        let run = self.run();
        let differences = if run.arithmetic != ARITHMETIC {
            format!(
                "features of {} (arithmetic {}), not of arithmetic {ARITHMETIC}",
                run.program, run.arithmetic
            )
        } else if run.base != base.fingerprint() || run.preprocess.base != *base.contract() {
            format!(
                "features of base {}, but {} is base {}",
                run.base,
                base.path().display(),
                base.fingerprint()
            )
        } else if run.scales != base.feature_scales() {
            "features with other scales than those of their base".into()
        } else {
            return Ok(());
        };
        Err(PartSetError::Unfit { path: self.path.clone(), differences })
    }

    /// Sums a number over the manifests.
    pub(super) fn sum(&self, of: impl Fn(&Manifest) -> u64) -> u64 {
        self.parts.iter().map(|part| of(&part.manifest)).fold(0, u64::saturating_add)
    }

    /// Returns the number of bytes of a part that are read at once.
    pub(super) fn piece(&self) -> usize {
        (PIECES / self.parts.len()).clamp(16 << 10, 1 << 20)
    }
}

#[cfg(test)]
mod tests;
