//! Cache of features on disk, by the content of the image, the backbone and the preprocessing: a
//! second run need not compute them.
//!
//! There is one file per backbone and preprocessing, with records of equal length: SHA-256 of the
//! image file, the feature map, a checksum. Appending takes a lock, so that programs may share a
//! directory; an incomplete record at the end is truncated.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vgg_edge::container::Envelope;
use vgg_edge::preprocess::Preprocess;
use vgg_edge::{Error, Fingerprint, Result};

use crate::features::table::FeatureTable;

/// Raised whenever decoding, pre-processing or the arithmetic changes on purpose.
pub const ARITHMETIC: u32 = 1;
/// The start of the file. The key of the cache and the length of a feature map follow.
const ENVELOPE: Envelope = Envelope {
    magic: *b"VGGEFEAT",
    version: ARITHMETIC,
    oldest: ARITHMETIC,
    has_length: false,
    max_len: u64::MAX,
};
const HEADER: usize = ENVELOPE.header_len() + 32 + 8;
const KEY: usize = 32;
const CHECKSUM: usize = 8;
/// Number of pending bytes at which records are written.
const FLUSH_BYTES: usize = 4 << 20;

/// Open cache for one backbone and preprocessing.
pub struct Cache {
    path: PathBuf,
    file: File,
    feature_len: usize,
    /// Offset of the feature map of each image.
    index: HashMap<Fingerprint, u64>,
    pending: Vec<u8>,
}

impl Cache {
    /// Opens the file of that backbone and preprocessing in `folder`, which is created if needed.
    ///
    /// # Errors
    /// [`Error::Io`]; also for a file that is not such a cache, which must not be overwritten.
    pub fn open(folder: &Path, base: Fingerprint, preprocess: &Preprocess) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
        let contract = Fingerprint::of_parts([&base.0[..], &preprocess.to_bytes()]);
        let path = folder.join(format!("{}.features", contract.short()));
        let io = |action| Error::io(action, &path);
        let feature_len = preprocess.feature_len();
        let mut header = ENVELOPE.header(0);
        header.extend_from_slice(&contract.0);
        header.extend_from_slice(&(feature_len as u64).to_le_bytes());

        // With its header or not at all, so that a file after power loss is not taken for another
        // program's.
        if !path.exists() {
            vgg_edge::durable_fs::write_new(&path, &header)?;
        }
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(io("open"))?;
        file.lock().map_err(io("lock"))?;
        let mut found = Vec::new();
        (&file).take(HEADER as u64).read_to_end(&mut found).map_err(io("read"))?;
        if !header.starts_with(&found) {
            let reason = std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "it is not a feature cache of this version; remove it or name another directory",
            );
            return Err(Error::io("use", &path)(reason));
        }
        if found.len() < HEADER {
            file.set_len(0).map_err(io("write"))?;
            file.seek(SeekFrom::Start(0)).map_err(io("write"))?;
            file.write_all(&header).map_err(io("write"))?;
        }
        let mut cache = Self {
            path: path.clone(),
            file,
            feature_len,
            index: HashMap::new(),
            pending: Vec::new(),
        };
        cache.scan().map_err(Error::io("read", &path))?;
        cache.file.unlock().map_err(Error::io("unlock", &path))?;
        Ok(cache)
    }

    fn record_len(&self) -> usize {
        KEY + self.feature_len + CHECKSUM
    }

    /// Reads the keys; truncates an incomplete record.
    fn scan(&mut self) -> std::io::Result<()> {
        let len = self.file.metadata()?.len();
        let record = self.record_len() as u64;
        let records = len.saturating_sub(HEADER as u64) / record;
        let end = HEADER as u64 + records * record;
        if end < len {
            self.file.set_len(end)?;
        }
        let mut key = [0; KEY];
        for start in (0..records).map(|i| HEADER as u64 + i * record) {
            self.file.read_exact_at(&mut key, start)?;
            self.index.insert(Fingerprint(key), start + KEY as u64);
        }
        Ok(())
    }

    fn checksum(key: &[u8], features: &[u8]) -> [u8; CHECKSUM] {
        let mut sum = [0; CHECKSUM];
        sum.copy_from_slice(&Fingerprint::of_parts([key, features]).0[..CHECKSUM]);
        sum
    }

    /// Returns the features of an image; `None` if they are missing or the record is damaged.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn get(&self, image: &Fingerprint) -> Result<Option<Vec<u8>>> {
        let Some(&offset) = self.index.get(image) else { return Ok(None) };
        let mut record = vec![0; self.feature_len + CHECKSUM];
        self.file.read_exact_at(&mut record, offset).map_err(Error::io("read", &self.path))?;
        let sum: Vec<u8> = record.split_off(self.feature_len);
        Ok((sum == Self::checksum(&image.0, &record)).then_some(record))
    }

    /// Adds the features of an image; they are on disk after the next [`Cache::flush`] at the
    /// latest.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn put(&mut self, image: &Fingerprint, features: &[u8]) -> Result<()> {
        debug_assert_eq!(features.len(), self.feature_len);
        self.pending.extend_from_slice(&image.0);
        self.pending.extend_from_slice(features);
        self.pending.extend_from_slice(&Self::checksum(&image.0, features));
        if self.pending.len() >= FLUSH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes the pending records.
    ///
    /// # Errors
    /// [`Error::Io`]; the file then holds only whole records, at the latest after it is opened
    /// again.
    pub fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        self.append(&pending).map_err(Error::io("write", &self.path))
    }

    fn append(&mut self, records: &[u8]) -> std::io::Result<()> {
        self.file.lock()?;
        let record = self.record_len() as u64;
        // Another program may have appended, or died while appending.
        let len = self.file.metadata()?.len();
        let end = HEADER as u64 + len.saturating_sub(HEADER as u64) / record * record;
        let result = self.file.write_all_at(records, end);
        if result.is_err() {
            // A full disk: free the space of the incomplete record.
            let _ = self.file.set_len(end);
        }
        self.file.unlock()?;
        result?;
        for (i, record_bytes) in records.chunks_exact(self.record_len()).enumerate() {
            let mut key = [0; KEY];
            key.copy_from_slice(&record_bytes[..KEY]);
            self.index.insert(Fingerprint(key), end + i as u64 * record + KEY as u64);
        }
        Ok(())
    }

    /// Returns the features of these images, read from the file of the cache from now on. Records
    /// stay where they are, so that other programs may add theirs.
    ///
    /// # Errors
    /// [`Error::Io`] if pending records cannot be written, or for an image that was neither found
    /// nor added.
    pub fn table(mut self, images: &[Fingerprint]) -> Result<FeatureTable> {
        self.flush()?;
        let offsets: Option<Vec<u64>> =
            images.iter().map(|image| self.index.get(image).copied()).collect();
        match offsets {
            Some(offsets) => {
                Ok(FeatureTable::in_file(self.feature_len, self.file, self.path, offsets))
            }
            None => {
                Err(Error::io("find an image in", &self.path)(std::io::ErrorKind::NotFound.into()))
            }
        }
    }

    /// Returns the number of images.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.index.len()
    }
}

#[cfg(test)]
mod tests {
    use vgg_edge::image::resize::Filter;
    use vgg_edge::preprocess::{ChannelOrder, Fit, InputSpec};

    use super::*;

    fn preprocess() -> Preprocess {
        let base = InputSpec {
            channel_order: ChannelOrder::Bgr,
            mean: [0.0; 3],
            std: [1.0; 3],
            scale: 1.0,
            zero_point: 0,
            resize: Filter::Bilinear,
            channels: 4,
            stride: 32,
            size_multiple: 32,
            size_min: 32,
            size_max: 64,
        };
        Preprocess::new(base, 64, Fit::Stretch, Filter::Bilinear).unwrap()
    }

    fn key(n: u8) -> Fingerprint {
        Fingerprint::of(&[n])
    }

    #[test]
    fn cache_survives_incomplete_and_damaged_records() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Cache::open(dir.path(), key(0), &preprocess()).unwrap();
        let mut cache = open();
        for n in 0..3 {
            cache.put(&key(n), &[n; 16]).unwrap();
        }
        cache.flush().unwrap();
        assert_eq!(cache.get(&key(1)).unwrap().unwrap(), [1; 16]);

        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), HEADER + 3 * (KEY + 16 + CHECKSUM));
        bytes.truncate(bytes.len() - 5);
        bytes[HEADER + KEY + 3] ^= 1;
        std::fs::write(&path, &bytes).unwrap();

        let mut cache = open();
        assert_eq!(cache.len(), 2);
        assert_eq!(cache.get(&key(0)).unwrap(), None, "damaged");
        assert_eq!(cache.get(&key(1)).unwrap().unwrap(), [1; 16]);
        assert_eq!(cache.get(&key(2)).unwrap(), None, "torn");
        cache.put(&key(2), &[9; 16]).unwrap();
        cache.put(&key(0), &[8; 16]).unwrap();
        cache.flush().unwrap();
        let cache = open();
        assert_eq!(cache.get(&key(0)).unwrap().unwrap(), [8; 16]);
        assert_eq!(cache.get(&key(2)).unwrap().unwrap(), [9; 16]);
    }

    #[test]
    fn cache_serves_as_the_table_while_others_add() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Cache::open(dir.path(), key(0), &preprocess()).unwrap();
        let mut cache = open();
        for n in 0..3 {
            cache.put(&key(n), &[n; 16]).unwrap();
        }
        // Nothing is flushed yet.
        let table = cache.table(&[2, 0, 2].map(key)).unwrap();
        let mut other = open();
        other.put(&key(7), &[7; 16]).unwrap();
        other.flush().unwrap();
        for (row, n) in [2, 0, 2].into_iter().enumerate() {
            assert_eq!(*table.row(row).unwrap(), [n; 16]);
        }
        assert!(open().table(&[key(9)]).err().unwrap().to_string().contains("cannot find"));
    }

    #[test]
    fn two_programs_may_share_a_cache() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Cache::open(dir.path(), key(0), &preprocess()).unwrap();
        let (mut a, mut b) = (open(), open());
        a.put(&key(1), &[1; 16]).unwrap();
        b.put(&key(2), &[2; 16]).unwrap();
        a.flush().unwrap();
        b.flush().unwrap();
        assert_eq!(open().len(), 2);
    }

    #[test]
    fn each_preprocessing_has_its_own_cache_file_and_other_files_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut other = preprocess();
        other.fit = Fit::Cover;
        Cache::open(dir.path(), key(0), &preprocess()).unwrap();
        Cache::open(dir.path(), key(0), &other).unwrap();
        Cache::open(dir.path(), key(1), &other).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            std::fs::write(entry.unwrap().path(), b"my precious notes").unwrap();
        }
        let refused = Cache::open(dir.path(), key(0), &preprocess()).err().unwrap();
        assert!(refused.to_string().contains("not a feature cache"));
    }
}
