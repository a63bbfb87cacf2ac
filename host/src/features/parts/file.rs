//! File of features: a part of a data set, or after `host merge` all of it. `docs/formats.md` has
//! the table.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vgg_edge::container::{CHECKSUM_LEN, Envelope, EnvelopeError};
use vgg_edge::preprocess::Preprocess;
use vgg_edge::{Backbone, Error, Fingerprint};

use super::{DataSet, Shard};
use crate::PROGRAM;
use crate::features::cache::ARITHMETIC;

/// Format version that is written and read.
const FORMAT: u32 = 1;
/// The header, whose payload is the manifest. Checksummed sections of records and rows follow.
const ENVELOPE: Envelope = Envelope {
    magic: *b"VGGEROWS",
    version: FORMAT,
    oldest: FORMAT,
    has_length: true,
    max_len: u64::MAX,
};
/// Thousands of classes with long names.
const MAX_MANIFEST: u64 = 64 << 20;
/// Maximum size of the input in pixels, above that of any backbone; keeps lengths from overflowing.
const MAX_SIZE: u32 = 1 << 14;
/// Maximum length of an entry: a path and a reason, both of a few kilobytes at most.
const MAX_ENTRY: usize = 64 << 10;

/// Inputs that all parts of a data set have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `host` and its version.
    pub program: String,
    /// Version of decoding, preprocessing and arithmetic.
    pub arithmetic: u32,
    /// Fingerprint of the backbone.
    pub base: Fingerprint,
    /// Conversion of images to its input.
    pub preprocess: Preprocess,
    /// Scale of each channel: a feature is `q * scale`.
    pub scales: Vec<f32>,
    /// The images.
    pub data: DataSet,
}

impl Run {
    /// Returns the run of this program.
    pub fn new(base: &Backbone, preprocess: &Preprocess, data: DataSet) -> Self {
        Self {
            program: format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION")),
            arithmetic: ARITHMETIC,
            base: base.fingerprint(),
            preprocess: preprocess.clone(),
            scales: base.feature_scales().to_vec(),
            data,
        }
    }

    /// Describes the first difference from another run; `None` if they are equal.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (ours, theirs) = (&self.data, &other.data);
        if self.program != other.program || self.arithmetic != other.arithmetic {
            let name = |run: &Self| format!("{} (arithmetic {})", run.program, run.arithmetic);
            Some(format!("made by {}, not by {}", name(self), name(other)))
        } else if self.base != other.base || self.scales != other.scales {
            Some(format!("of base {}, not of {}", self.base.short(), other.base.short()))
        } else if self.preprocess != other.preprocess {
            Some(format!("of the contract {}, not of {}", self.preprocess, other.preprocess))
        } else if ours.classes != theirs.classes {
            Some(format!(
                "of classes {}, not of {}",
                ours.classes.join(", "),
                theirs.classes.join(", ")
            ))
        } else if ours != theirs {
            let name =
                |data: &DataSet| format!("{} images (list {})", data.pictures, data.list.short());
            Some(format!("of {}, not of {}", name(ours), name(theirs)))
        } else {
            None
        }
    }
}

/// Manifest of a file of features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Inputs in common with the other parts.
    pub run: Run,
    /// The part.
    pub shard: Shard,
    /// Number of images, readable or not.
    pub entries: u64,
    /// Length of their records in bytes.
    pub index_len: u64,
    /// Number of rows of features: images that could be read.
    pub rows: u64,
}

/// An image of a file of features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Position in the list of the data set.
    pub item: u64,
    /// Index of the class.
    pub class: u32,
    /// Bytes of the path relative to the data directory.
    pub name: Vec<u8>,
    /// Outcome of the extraction.
    pub outcome: Outcome,
}

/// Outcome of the extraction of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The image has a row; the SHA-256 of its file.
    Row(Fingerprint),
    /// The image could not be read, and why.
    Unreadable(String),
}

impl Entry {
    /// Appends the record: a length in four bytes, then postcard.
    ///
    /// # Errors
    /// [`Error::Io`] for a path that is too long.
    pub fn append(&self, index: &mut Vec<u8>) -> vgg_edge::Result<()> {
        let bytes = postcard::to_stdvec(self).unwrap_or_default();
        if bytes.is_empty() || bytes.len() > MAX_ENTRY {
            let path = String::from_utf8_lossy(&self.name).into_owned();
            return Err(Error::io("list", path)(std::io::ErrorKind::InvalidFilename.into()));
        }
        index.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        index.extend_from_slice(&bytes);
        Ok(())
    }
}

/// Reason why a file of features is not usable.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] Error),
    /// The first bytes are not those of a file of features.
    #[error(
        "{0}: not a file of features (no VGGEROWS at its start); make one with host extract \
         --shard and host merge"
    )]
    Magic(PathBuf),
    /// The file has another format version.
    #[error(
        "{path}: of format {found}, but this program reads format {wanted}; extract with this \
         version of host",
        wanted = FORMAT
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The bytes are not those that were written.
    #[error("{path}: damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The evidence.
        what: String,
    },
}

/// Whether a file begins as files of features do.
pub fn is_features_file(path: &Path) -> bool {
    let mut magic = ENVELOPE.magic.map(|_| 0);
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok_and(|()| magic == ENVELOPE.magic)
}

/// Writer of a file of features: the manifest, then raw records, [`Writer::seal`], rows,
/// [`Writer::seal`].
pub struct Writer<W> {
    out: W,
    path: PathBuf,
    hash: Sha256,
}

impl<W: Write> Writer<W> {
    /// Starts with the manifest.
    ///
    /// # Errors
    /// [`Error::Io`]; `path` is for the message.
    pub fn new(out: W, path: &Path, manifest: &Manifest) -> vgg_edge::Result<Self> {
        let bytes = postcard::to_stdvec(manifest).map_err(|e| {
            Error::io("write", path)(std::io::Error::other(format!("the manifest: {e}")))
        })?;
        let mut writer = Self { out, path: path.to_owned(), hash: Sha256::new() };
        writer.bytes(&ENVELOPE.header(bytes.len() as u64))?;
        writer.bytes(&bytes)?;
        Ok(writer)
    }

    /// Writes some records or rows.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn bytes(&mut self, bytes: &[u8]) -> vgg_edge::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Writes the SHA-256 of the bytes since the last one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn seal(&mut self) -> vgg_edge::Result<()> {
        let hash = self.hash.finalize_reset();
        self.out.write_all(&hash).map_err(Error::io("write", &self.path))
    }
}

/// A file of features whose manifest has been read.
pub struct Part {
    /// The file.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Offset of the records.
    index_at: u64,
    /// Hash of all bytes before them.
    hash: Sha256,
}

impl Part {
    /// Reads the manifest, and checks the length of the file against it.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let read = || Error::io("read", path);
        let damaged = |what: &str| FileError::Damaged { path: path.to_owned(), what: what.into() };
        let file = File::open(path).map_err(read())?;
        let found = file.metadata().map_err(read())?.len();
        let header_len = ENVELOPE.header_len() as u64;
        let mut header = Vec::new();
        (&file).take(header_len).read_to_end(&mut header).map_err(read())?;
        // A machine that lost power may leave an empty file or a part of the header.
        if header.len() < ENVELOPE.magic.len() && ENVELOPE.magic.starts_with(&header) {
            return Err(damaged("it is truncated"));
        }
        let len = match ENVELOPE.parse_header(&header) {
            Ok(parsed) => parsed.payload_len.unwrap_or_default(),
            Err(EnvelopeError::Magic) => return Err(FileError::Magic(path.to_owned())),
            Err(EnvelopeError::Version { found, .. }) => {
                return Err(FileError::Format { path: path.to_owned(), found });
            }
            Err(_) => return Err(damaged("it is truncated")),
        };
        if len > MAX_MANIFEST.min(found) {
            return Err(damaged("the length of its manifest is impossible"));
        }
        let mut bytes = Vec::new();
        (&file).take(len).read_to_end(&mut bytes).map_err(read())?;
        let manifest: Manifest = postcard::from_bytes(&bytes)
            .map_err(|e| damaged(&format!("its manifest does not decode: {e}")))?;
        let part = Self {
            path: path.to_owned(),
            index_at: header_len + len,
            hash: Sha256::new().chain_update(&header).chain_update(&bytes),
            manifest,
        };
        match part.expected_len() {
            Some(expected) if expected == found => Ok(part),
            Some(expected) => Err(damaged(&format!("{expected} bytes announced, {found} there"))),
            None => Err(damaged("its manifest contradicts itself")),
        }
    }

    /// Returns the length that follows from the manifest; `None` if that is inconsistent.
    fn expected_len(&self) -> Option<u64> {
        let Manifest { run, entries, index_len, rows, shard } = &self.manifest;
        let preprocess = &run.preprocess;
        let consistent = rows <= entries
            && *entries <= run.data.pictures
            && *entries <= *index_len
            && shard.index < shard.count
            && run.scales.len() == preprocess.base.channels as usize
            && preprocess.size <= MAX_SIZE
            && preprocess.feature_len() > 0;
        if !consistent {
            return None;
        }
        let rows = rows.checked_mul(self.dim() as u64)?;
        let ends = 2 * CHECKSUM_LEN as u64;
        self.index_at.checked_add(*index_len)?.checked_add(rows)?.checked_add(ends)
    }

    /// Returns the length of a row in bytes.
    pub fn dim(&self) -> usize {
        self.manifest.run.preprocess.feature_len()
    }

    /// Returns the offset of the rows.
    pub fn rows_at(&self) -> u64 {
        self.index_at + self.manifest.index_len + CHECKSUM_LEN as u64
    }

    /// Returns a reader of the records.
    pub fn index(&self, piece: usize) -> Index {
        let end = self.index_at + self.manifest.index_len;
        Index {
            pieces: Pieces::new(&self.path, self.hash.clone(), self.index_at, end, piece),
            left: self.manifest.entries,
        }
    }

    /// Returns a reader of the rows.
    pub fn rows(&self, piece: usize) -> Pieces {
        let start = self.rows_at();
        let end = start + self.manifest.rows * self.dim() as u64;
        Pieces::new(&self.path, Sha256::new(), start, end, piece)
    }

    /// Verifies the checksum of the rows; returns early, without an error, once `stop` is true.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn verify_rows(&self, piece: usize, stop: impl Fn() -> bool) -> Result<(), FileError> {
        let mut rows = self.rows(piece);
        while rows.left() > 0 {
            if stop() {
                return Ok(());
            }
            let len = rows.left().min(piece as u64) as usize;
            rows.take(len)?;
        }
        rows.finish()
    }
}

/// Reader of the records of a file of features.
pub struct Index {
    pieces: Pieces,
    left: u64,
}

impl Index {
    /// Returns the next image and its record; `None` after the last one, once the checksum was
    /// verified.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn next_entry(&mut self) -> Result<Option<(Entry, Vec<u8>)>, FileError> {
        if self.left == 0 {
            self.pieces.finish()?;
            return Ok(None);
        }
        self.left -= 1;
        let mut len = [0; 4];
        len.copy_from_slice(self.pieces.take(4)?);
        let mut record = len.to_vec();
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_ENTRY {
            return Err(self.pieces.damaged("a record is too long"));
        }
        record.extend_from_slice(self.pieces.take(len)?);
        match postcard::from_bytes(&record[4..]) {
            Ok(entry) => Ok(Some((entry, record))),
            Err(e) => Err(self.pieces.damaged(&format!("a record does not decode: {e}"))),
        }
    }
}

/// Sequential reader of a section of a file, piece by piece, which hashes what it reads.
///
/// The file is open only while a piece is read: there may be more parts than a process may have
/// open files.
pub struct Pieces {
    path: PathBuf,
    at: u64,
    end: u64,
    piece: usize,
    buffer: Vec<u8>,
    used: usize,
    hash: Sha256,
}

impl Pieces {
    fn new(path: &Path, hash: Sha256, at: u64, end: u64, piece: usize) -> Self {
        Self { path: path.to_owned(), at, end, piece, buffer: Vec::new(), used: 0, hash }
    }

    fn damaged(&self, what: &str) -> FileError {
        FileError::Damaged { path: self.path.clone(), what: what.into() }
    }

    /// Returns the number of remaining bytes.
    fn left(&self) -> u64 {
        self.end - self.at + (self.buffer.len() - self.used) as u64
    }

    /// Returns the next `len` bytes.
    ///
    /// # Errors
    /// [`FileError`] if the section ends before.
    pub fn take(&mut self, len: usize) -> Result<&[u8], FileError> {
        let there = self.buffer.len() - self.used;
        if there < len {
            self.buffer.copy_within(self.used.., 0);
            self.used = 0;
            let more = (self.end - self.at).min((len - there).max(self.piece) as u64) as usize;
            if there + more < len {
                return Err(self.damaged("its records end early"));
            }
            self.buffer.resize(there + more, 0);
            let file = File::open(&self.path).map_err(Error::io("read", &self.path))?;
            let new = &mut self.buffer[there..];
            file.read_exact_at(new, self.at).map_err(Error::io("read", &self.path))?;
            self.hash.update(new);
            self.at += more as u64;
        }
        let taken = &self.buffer[self.used..self.used + len];
        self.used += len;
        Ok(taken)
    }

    /// At the end, verifies the checksum that follows.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn finish(&mut self) -> Result<(), FileError> {
        if self.left() > 0 {
            return Err(self.damaged("its records end early"));
        }
        let mut wanted = [0; CHECKSUM_LEN];
        let file = File::open(&self.path).map_err(Error::io("read", &self.path))?;
        file.read_exact_at(&mut wanted, self.end).map_err(Error::io("read", &self.path))?;
        if self.hash.finalize_reset()[..] != wanted {
            return Err(self.damaged("its checksum does not match"));
        }
        Ok(())
    }
}
