//! Rows of quantized features: in memory while they are few, beyond that in a file.
//!
//! The file is the feature cache if there is one, so that features are stored once; else a
//! temporary file without a name, which is gone with the process however that ends. Rows are read
//! back by position. What is read often stays in the system's page cache, which, unlike the memory
//! of the process, gives way to others.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use vgg_edge::{Error, Result};
use vgg_edge_cli::terminal::UsageError;

/// Bytes of features that are kept in memory: those of 32,000 pictures at 64 px or 2,600 at 224 px.
/// It is what the program takes without them, so that pictures never more than double it; training
/// on a file that the page cache holds is as fast (`benchmarks/scale.py`).
pub const IN_MEMORY: u64 = 64 << 20;

/// Sets another bound than [`IN_MEMORY`], in bytes; tests do.
pub const VARIABLE: &str = "VGG_EDGE_FEATURES_IN_MEMORY";

/// The bound that holds.
///
/// # Errors
/// A variable that is no number.
pub fn in_memory() -> Result<u64, UsageError> {
    match std::env::var_os(VARIABLE) {
        None => Ok(IN_MEMORY),
        Some(value) => value.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
            UsageError(format!("{VARIABLE} must be a number of bytes, not {}", value.display()))
        }),
    }
}

/// Where large temporary files go: `TMPDIR`, or `/var/tmp`, since `/tmp` is often kept in memory
/// (file-hierarchy(7)).
fn folder() -> PathBuf {
    match std::env::var_os("TMPDIR") {
        Some(folder) if !folder.is_empty() => folder.into(),
        _ => Some(PathBuf::from("/var/tmp"))
            .filter(|folder| folder.is_dir())
            .unwrap_or_else(std::env::temp_dir),
    }
}

/// Rows of `dim` bytes each.
pub struct Table {
    dim: usize,
    place: Place,
}

enum Place {
    Memory(Vec<u8>),
    File {
        file: File,
        /// For messages.
        path: PathBuf,
        /// Where each row begins.
        offsets: Vec<u64>,
    },
    Stretches {
        stretches: Vec<Stretch>,
        /// For each row the stretch that it is in, and its place there.
        places: Vec<[u32; 2]>,
    },
}

/// Files that are kept open: processes may often have 1,024.
const OPEN_FILES: usize = 512;

/// Rows one after another in a file.
pub struct Stretch {
    path: PathBuf,
    /// Where the first one begins.
    start: u64,
    /// `None` if there are too many files: then it is opened for each row.
    file: Option<File>,
}

impl Stretch {
    /// Stretches that begin at these places of these files; nothing there may change any more.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open_all(stretches: Vec<(PathBuf, u64)>) -> Result<Vec<Self>> {
        let keep = stretches.len() <= OPEN_FILES;
        let open = |(path, start): (PathBuf, u64)| {
            let file = File::open(&path).map_err(Error::io("read features from", &path))?;
            Ok(Self { path, start, file: keep.then_some(file) })
        };
        stretches.into_iter().map(open).collect()
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        match &self.file {
            Some(file) => file.read_exact_at(bytes, self.start + at),
            None => File::open(&self.path)?.read_exact_at(bytes, self.start + at),
        }
    }
}

impl Table {
    /// Rows that begin at these offsets of a file; nothing there may change any more. `path` is for
    /// messages.
    pub fn in_file(dim: usize, file: File, path: PathBuf, offsets: Vec<u64>) -> Self {
        Self { dim, place: Place::File { file, path, offsets } }
    }

    /// Rows in several files: for each row the stretch that it is in, and its place there.
    pub fn in_stretches(dim: usize, stretches: Vec<Stretch>, places: Vec<[u32; 2]>) -> Self {
        Self { dim, place: Place::Stretches { stretches, places } }
    }

    /// A row.
    ///
    /// # Errors
    /// [`Error::Io`]: the file cannot be read, or was cut.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> Result<Cow<'_, [u8]>> {
        match &self.place {
            Place::Memory(data) => Ok(Cow::Borrowed(&data[row * self.dim..][..self.dim])),
            Place::File { file, path, offsets } => {
                let mut bytes = vec![0; self.dim];
                file.read_exact_at(&mut bytes, offsets[row])
                    .map_err(Error::io("read features from", path))?;
                Ok(Cow::Owned(bytes))
            }
            Place::Stretches { stretches, places } => {
                let [stretch, place] = places[row];
                let stretch = &stretches[stretch as usize];
                let mut bytes = vec![0; self.dim];
                let at = u64::from(place) * self.dim as u64;
                stretch
                    .read(at, &mut bytes)
                    .map_err(Error::io("read features from", &stretch.path))?;
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

/// A table whose rows come in any order, of which some may stay away.
pub struct Draft {
    dim: usize,
    rows: usize,
    /// Where a temporary file is.
    folder: PathBuf,
    place: DraftPlace,
}

enum DraftPlace {
    Memory(Vec<u8>),
    /// Without a name.
    File(File),
}

impl Draft {
    /// For `rows` rows of `dim` bytes: in memory if all are at most `limit` bytes, else in a
    /// temporary file.
    ///
    /// # Errors
    /// [`Error::Io`] if there can be no temporary file.
    pub fn new(dim: usize, rows: usize, limit: u64) -> Result<Self> {
        Self::new_in(folder(), dim, rows, limit)
    }

    fn new_in(folder: PathBuf, dim: usize, rows: usize, limit: u64) -> Result<Self> {
        let mut draft = Self { dim, rows, folder, place: DraftPlace::Memory(Vec::new()) };
        draft.place = if fits(dim, rows, limit) {
            DraftPlace::Memory(vec![0; dim * rows])
        } else {
            DraftPlace::File(tempfile::tempfile_in(&draft.folder).map_err(|e| draft.refused(e))?)
        };
        Ok(draft)
    }

    /// Sets a row.
    ///
    /// # Errors
    /// [`Error::Io`], most often for a full disk.
    ///
    /// # Panics
    /// If there is no such row, or `features` is no row.
    pub fn set(&mut self, row: usize, features: &[u8]) -> Result<()> {
        assert!(row < self.rows && features.len() == self.dim, "row {row} of {}", self.rows);
        match &mut self.place {
            DraftPlace::Memory(data) => {
                data[row * self.dim..][..self.dim].copy_from_slice(features);
                Ok(())
            }
            DraftPlace::File(file) => file
                .write_all_at(features, row as u64 * self.dim as u64)
                .map_err(|e| self.refused(e)),
        }
    }

    /// The table of the rows `kept`, in that order, which must be ascending.
    pub fn table(self, kept: &[usize]) -> Table {
        let dim = self.dim;
        match self.place {
            DraftPlace::Memory(mut data) => {
                // Rows move up over those that stayed away.
                for (to, &from) in kept.iter().enumerate() {
                    data.copy_within(from * dim..(from + 1) * dim, to * dim);
                }
                data.truncate(kept.len() * dim);
                Table { dim, place: Place::Memory(data) }
            }
            DraftPlace::File(file) => Table::in_file(
                dim,
                file,
                self.folder,
                kept.iter().map(|&row| row as u64 * dim as u64).collect(),
            ),
        }
    }

    /// Says what was to be written, and what can be done.
    fn refused(&self, source: std::io::Error) -> Error {
        let megabytes = (self.rows as u64 * self.dim as u64).div_ceil(1 << 20);
        let words = format!(
            "{source}; {megabytes} MiB of features go into a temporary file there: make room, name another folder in TMPDIR, or keep \
             them with --cache"
        );
        Error::io("write", &self.folder)(std::io::Error::new(source.kind(), words))
    }
}

/// Whether rows are kept in memory.
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
            dim in 1usize..20, present in prop::collection::vec(any::<bool>(), 1..40), turn in 0usize..40,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let rows = present.len();
            let kept: Vec<usize> = (0..rows).filter(|&row| present[row]).collect();
            let content = |row: usize| -> Vec<u8> { (0..dim).map(|i| (row * 31 + i * 7) as u8).collect() };
            // The bound is exact.
            for (limit, in_memory) in [((dim * rows) as u64, true), ((dim * rows) as u64 - 1, false)] {
                let mut draft = Draft::new_in(folder.path().into(), dim, rows, limit).unwrap();
                prop_assert_eq!(matches!(draft.place, DraftPlace::Memory(_)), in_memory);
                let mut order = kept.clone();
                order.rotate_left(turn % kept.len().max(1));
                for &row in &order {
                    draft.set(row, &content(row)).unwrap();
                }
                let table = draft.table(&kept);
                for (row, &from) in kept.iter().enumerate() {
                    prop_assert_eq!(&*table.row(row).unwrap(), &content(from)[..]);
                }
            }
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_file_that_was_cut_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        std::fs::write(&path, [7; 10]).unwrap();
        let table = Table::in_file(4, File::open(&path).unwrap(), path.clone(), vec![6, 7]);
        assert_eq!(*table.row(0).unwrap(), [7; 4]);
        let error = table.row(1).unwrap_err().to_string();
        assert!(error.contains("rows: cannot read features"), "{error}");
    }

    #[test]
    fn without_a_place_for_the_file_the_message_says_what_to_do() {
        let error =
            Draft::new_in("/nonexistent".into(), 1 << 20, 3, 100).err().unwrap().to_string();
        assert!(error.starts_with("/nonexistent: cannot write: "), "{error}");
        assert!(
            error.contains("3 MiB") && error.contains("TMPDIR") && error.contains("--cache"),
            "{error}"
        );
        assert!(!fits(usize::MAX, 3, u64::MAX));
    }
}
