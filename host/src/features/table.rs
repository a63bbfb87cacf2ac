//! Rows of quantized features: in memory while they are few, beyond that in a file.
//!
//! The file is the feature cache if there is one, so that features are stored once; otherwise an
//! unnamed temporary file, which disappears with the process however that ends. Rows are read back
//! by position. Rows that are read often stay in the system's page cache, which, unlike the memory
//! of the process, is given up to other programs.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use vgg_edge::{Error, Result};
use vgg_edge_cli::terminal::UsageError;

/// Bytes of features that are kept in memory: those of 32,000 images at 64 px or 2,600 at 224 px.
/// The program takes as much without them, so that images at most double it; training on a file
/// that the page cache holds is as fast (`benchmarks/scale.py`).
pub const IN_MEMORY: u64 = 64 << 20;

/// Environment variable that replaces [`IN_MEMORY`], in bytes; set by tests.
pub const VARIABLE: &str = "VGG_EDGE_FEATURES_IN_MEMORY";

/// Returns the bound in effect: [`VARIABLE`], or [`IN_MEMORY`].
///
/// # Errors
/// [`UsageError`] if the variable is not a number.
pub fn in_memory() -> Result<u64, UsageError> {
    match std::env::var_os(VARIABLE) {
        None => Ok(IN_MEMORY),
        Some(value) => value.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
            UsageError(format!("{VARIABLE} must be a number of bytes, not {}", value.display()))
        }),
    }
}

/// Directory of large temporary files: `TMPDIR`, or `/var/tmp`, since `/tmp` is often kept in
/// memory (file-hierarchy(7)).
fn temporary_directory() -> PathBuf {
    match std::env::var_os("TMPDIR") {
        Some(directory) if !directory.is_empty() => directory.into(),
        _ => Some(PathBuf::from("/var/tmp"))
            .filter(|directory| directory.is_dir())
            .unwrap_or_else(std::env::temp_dir),
    }
}

/// Table of feature maps: rows of `dim` bytes each.
pub struct FeatureTable {
    dim: usize,
    storage: Storage,
}

enum Storage {
    Memory(Vec<u8>),
    File {
        file: File,
        /// Path of the file, for messages.
        path: PathBuf,
        /// Offset of each row.
        offsets: Vec<u64>,
    },
    Segments {
        segments: Vec<Segment>,
        /// Segment of each row, and the row's index within it.
        positions: Vec<[u32; 2]>,
    },
}

/// Maximum number of files that are kept open: the usual limit of a process is 1,024.
const OPEN_FILES: usize = 512;

/// Consecutive rows in a file.
pub struct Segment {
    path: PathBuf,
    /// Offset of the first row.
    start: u64,
    /// `None` if there are too many files; then the file is opened for each row.
    file: Option<File>,
}

impl Segment {
    /// Opens segments that begin at these offsets of these files; the files must not change any
    /// more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open_all(segments: Vec<(PathBuf, u64)>) -> Result<Vec<Self>> {
        let keep = segments.len() <= OPEN_FILES;
        let open = |(path, start): (PathBuf, u64)| {
            let file = File::open(&path).map_err(Error::io("read features from", &path))?;
            Ok(Self { path, start, file: keep.then_some(file) })
        };
        segments.into_iter().map(open).collect()
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        match &self.file {
            Some(file) => file.read_exact_at(bytes, self.start + at),
            None => File::open(&self.path)?.read_exact_at(bytes, self.start + at),
        }
    }
}

impl FeatureTable {
    /// Creates a table of rows that begin at these offsets of a file, which must not change any
    /// more. `path` is for messages.
    pub fn in_file(dim: usize, file: File, path: PathBuf, offsets: Vec<u64>) -> Self {
        Self { dim, storage: Storage::File { file, path, offsets } }
    }

    /// Creates a table of rows in several files, from the segment of each row and its index there.
    pub fn in_segments(dim: usize, segments: Vec<Segment>, positions: Vec<[u32; 2]>) -> Self {
        Self { dim, storage: Storage::Segments { segments, positions } }
    }

    /// Returns a row.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read or was truncated.
    ///
    /// # Panics
    /// If the row is out of range.
    pub fn row(&self, row: usize) -> Result<Cow<'_, [u8]>> {
        match &self.storage {
            Storage::Memory(data) => Ok(Cow::Borrowed(&data[row * self.dim..][..self.dim])),
            Storage::File { file, path, offsets } => {
                let mut bytes = vec![0; self.dim];
                file.read_exact_at(&mut bytes, offsets[row])
                    .map_err(Error::io("read features from", path))?;
                Ok(Cow::Owned(bytes))
            }
            Storage::Segments { segments, positions } => {
                let [segment, position] = positions[row];
                let segment = &segments[segment as usize];
                let mut bytes = vec![0; self.dim];
                let at = u64::from(position) * self.dim as u64;
                segment
                    .read(at, &mut bytes)
                    .map_err(Error::io("read features from", &segment.path))?;
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

/// Builder of a table whose rows arrive in any order and may be incomplete.
pub struct TableBuilder {
    dim: usize,
    rows: usize,
    /// Directory of the temporary file.
    directory: PathBuf,
    storage: BuilderStorage,
}

enum BuilderStorage {
    Memory(Vec<u8>),
    /// Unnamed temporary file.
    File(File),
}

impl TableBuilder {
    /// Creates a builder for `rows` rows of `dim` bytes: in memory if they take at most `limit`
    /// bytes, otherwise in a temporary file.
    ///
    /// # Errors
    /// [`Error::Io`] if the temporary file cannot be created.
    pub fn new(dim: usize, rows: usize, limit: u64) -> Result<Self> {
        Self::new_in(temporary_directory(), dim, rows, limit)
    }

    fn new_in(directory: PathBuf, dim: usize, rows: usize, limit: u64) -> Result<Self> {
        let mut builder =
            Self { dim, rows, directory, storage: BuilderStorage::Memory(Vec::new()) };
        builder.storage = if fits(dim, rows, limit) {
            BuilderStorage::Memory(vec![0; dim * rows])
        } else {
            BuilderStorage::File(
                tempfile::tempfile_in(&builder.directory).map_err(|e| builder.write_error(e))?,
            )
        };
        Ok(builder)
    }

    /// Sets a row.
    ///
    /// # Errors
    /// [`Error::Io`], typically for a full disk.
    ///
    /// # Panics
    /// If the row is out of range, or `features` is not `dim` bytes.
    pub fn set(&mut self, row: usize, features: &[u8]) -> Result<()> {
        assert!(row < self.rows && features.len() == self.dim, "row {row} of {}", self.rows);
        match &mut self.storage {
            BuilderStorage::Memory(data) => {
                data[row * self.dim..][..self.dim].copy_from_slice(features);
                Ok(())
            }
            BuilderStorage::File(file) => file
                .write_all_at(features, row as u64 * self.dim as u64)
                .map_err(|e| self.write_error(e)),
        }
    }

    /// Builds the table of the rows `kept`, which must be ascending.
    pub fn finish(self, kept: &[usize]) -> FeatureTable {
        let dim = self.dim;
        match self.storage {
            BuilderStorage::Memory(mut data) => {
                // Rows move up over the missing ones.
                for (to, &from) in kept.iter().enumerate() {
                    data.copy_within(from * dim..(from + 1) * dim, to * dim);
                }
                data.truncate(kept.len() * dim);
                FeatureTable { dim, storage: Storage::Memory(data) }
            }
            BuilderStorage::File(file) => FeatureTable::in_file(
                dim,
                file,
                self.directory,
                kept.iter().map(|&row| row as u64 * dim as u64).collect(),
            ),
        }
    }

    /// Adds to a write error how much space is needed and what can be done about it.
    fn write_error(&self, source: std::io::Error) -> Error {
        let megabytes = (self.rows as u64 * self.dim as u64).div_ceil(1 << 20);
        let message = format!(
            "{source}; the temporary file there takes {megabytes} MiB of features: free some \
             space, set TMPDIR to another directory, or keep the features with --cache"
        );
        Error::io("write", &self.directory)(std::io::Error::new(source.kind(), message))
    }
}

/// Whether rows fit into memory.
pub fn fits(dim: usize, rows: usize, limit: u64) -> bool {
    (dim as u64).checked_mul(rows as u64).is_some_and(|bytes| bytes <= limit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn memory_and_file_give_what_was_set(
            dim in 1usize..20, present in prop::collection::vec(any::<bool>(), 1..40),
            turn in 0usize..40,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let rows = present.len();
            let kept: Vec<usize> = (0..rows).filter(|&row| present[row]).collect();
            let content =
                |row: usize| -> Vec<u8> { (0..dim).map(|i| (row * 31 + i * 7) as u8).collect() };
            // The bound is exact.
            let size = (dim * rows) as u64;
            for (limit, in_memory) in [(size, true), (size - 1, false)] {
                let directory = directory.path().to_owned();
                let mut builder = TableBuilder::new_in(directory, dim, rows, limit).unwrap();
                prop_assert_eq!(matches!(builder.storage, BuilderStorage::Memory(_)), in_memory);
                let mut order = kept.clone();
                order.rotate_left(turn % kept.len().max(1));
                for &row in &order {
                    builder.set(row, &content(row)).unwrap();
                }
                let table = builder.finish(&kept);
                for (row, &from) in kept.iter().enumerate() {
                    prop_assert_eq!(&*table.row(row).unwrap(), &content(from)[..]);
                }
            }
            prop_assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_truncated_feature_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows");
        std::fs::write(&path, [7; 10]).unwrap();
        let table = FeatureTable::in_file(4, File::open(&path).unwrap(), path.clone(), vec![6, 7]);
        assert_eq!(*table.row(0).unwrap(), [7; 4]);
        let error = table.row(1).unwrap_err().to_string();
        assert!(error.contains("rows: cannot read features"), "{error}");
    }

    #[test]
    fn without_space_for_the_temporary_file_the_message_names_the_remedies() {
        let error =
            TableBuilder::new_in("/nonexistent".into(), 1 << 20, 3, 100).err().unwrap().to_string();
        assert!(error.starts_with("/nonexistent: cannot write: "), "{error}");
        assert!(
            error.contains("3 MiB") && error.contains("TMPDIR") && error.contains("--cache"),
            "{error}"
        );
        assert!(!fits(usize::MAX, 3, u64::MAX));
    }
}
