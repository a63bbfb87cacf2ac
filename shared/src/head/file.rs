//! The head file: magic, version, length, postcard, checksum. `ARCHITECTURE.md` has the table.

use std::path::Path;

use serde::Deserialize;

use super::{Decision, Dense, Head, Output, Pool, TrainingRecord};
use crate::error::HeadFileError;
use crate::preprocess::Preprocess;
use crate::{Error, Fingerprint, Result};

const MAGIC: &[u8; 8] = b"VGGEHEAD";
const HEADER: usize = 8 + 4 + 8;
const CHECKSUM: usize = 32;

/// Format version that is written.
pub const FORMAT: u32 = 3;

/// Oldest format version that is read.
pub const OLDEST: u32 = 2;

/// Format version of the bytes of a head file; `None` if they are not those of one.
pub fn format_of(bytes: &[u8]) -> Option<u32> {
    bytes.strip_prefix(MAGIC)?.first_chunk().map(|version| u32::from_le_bytes(*version))
}

/// The payload of format 2, which knew neither pooling nor background classes.
#[derive(Deserialize)]
struct Format2 {
    base: Fingerprint,
    preprocess: Preprocess,
    feature_scales: Vec<f32>,
    labels: Vec<String>,
    layers: Vec<Dense>,
    output: Output,
    decision: Decision,
    training: TrainingRecord,
}

impl From<Format2> for Head {
    fn from(old: Format2) -> Self {
        let Format2 {
            base,
            preprocess,
            feature_scales,
            labels,
            layers,
            output,
            decision,
            training,
        } = old;
        let (pool, background) = (Pool::Flatten, Vec::new());
        Self {
            base,
            preprocess,
            feature_scales,
            labels,
            layers,
            output,
            decision,
            training,
            pool,
            background,
        }
    }
}

/// Largest head file, in bytes: a hidden layer of 1,024 units at 224 px takes 98 MiB.
pub const MAX_BYTES: u64 = 512 << 20;

impl Head {
    /// The bytes of the file.
    ///
    /// # Errors
    /// [`HeadFileError::Inconsistent`] if the parts contradict each other,
    /// [`HeadFileError::TooLarge`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, HeadFileError> {
        self.check().map_err(HeadFileError::Inconsistent)?;
        let payload =
            postcard::to_stdvec(self).map_err(|e| HeadFileError::Inconsistent(e.to_string()))?;
        let mut bytes = Vec::with_capacity(HEADER + payload.len() + CHECKSUM);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&payload);
        let checksum = Fingerprint::of(&bytes);
        bytes.extend_from_slice(&checksum.0);
        if bytes.len() as u64 > MAX_BYTES {
            return Err(HeadFileError::TooLarge { found: bytes.len() as u64, limit: MAX_BYTES });
        }
        Ok(bytes)
    }

    /// Reads the bytes of a file, and checks everything.
    ///
    /// # Errors
    /// [`HeadFileError`], one kind for each thing that can be wrong. The version is looked at
    /// before length and checksum, so that a head of another version is told as such.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HeadFileError> {
        if !bytes.starts_with(MAGIC) {
            return Err(HeadFileError::Magic);
        }
        let found = bytes.len() as u64;
        let cut = |expected: u64| HeadFileError::Length { expected, found };
        let header: &[u8; HEADER] = bytes.first_chunk().ok_or(cut((HEADER + CHECKSUM) as u64))?;
        let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if !(OLDEST..=FORMAT).contains(&version) {
            return Err(HeadFileError::Version { found: version, wanted: FORMAT });
        }
        let length = header.last_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        let expected = length.saturating_add((HEADER + CHECKSUM) as u64);
        if expected > MAX_BYTES {
            return Err(HeadFileError::TooLarge { found: expected, limit: MAX_BYTES });
        }
        if expected != found {
            return Err(cut(expected));
        }
        let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
        if Fingerprint::of(content).0 != checksum {
            return Err(HeadFileError::Checksum);
        }
        let inconsistent = |e: postcard::Error| HeadFileError::Inconsistent(e.to_string());
        let payload = &content[HEADER..];
        let (head, rest) = match version {
            2 => {
                postcard::take_from_bytes::<Format2>(payload).map(|(old, rest)| (old.into(), rest))
            }
            _ => postcard::take_from_bytes::<Self>(payload),
        }
        .map_err(inconsistent)?;
        if !rest.is_empty() {
            return Err(HeadFileError::Inconsistent(format!("{} bytes are left over", rest.len())));
        }
        head.check().map_err(HeadFileError::Inconsistent)?;
        Ok(head)
    }

    /// Writes the file: the new one whole, or the old one stays.
    ///
    /// # Errors
    /// [`Error::HeadFile`], [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes =
            self.to_bytes().map_err(|source| Error::HeadFile { path: path.to_owned(), source })?;
        crate::durable_fs::write_bytes(path, &bytes)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::HeadFile`], [`Error::Io`].
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = crate::durable_fs::read_limited(path, MAX_BYTES)?;
        Self::from_bytes(&bytes).map_err(|source| Error::HeadFile { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::head::tests::example;

    /// `bytes` with a checksum that holds again, to reach the checks behind it.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - CHECKSUM);
        let checksum = Fingerprint::of(&bytes);
        bytes.extend_from_slice(&checksum.0);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let head = example(&["a", "b", "c"]);
        assert_eq!(Head::from_bytes(&head.to_bytes().unwrap()).unwrap(), head);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.postcard");
        head.save(&path).unwrap();
        assert_eq!(Head::load(&path).unwrap(), head);
    }

    #[test]
    fn each_damage_has_its_own_error() {
        let good = example(&["no", "yes"]).to_bytes().unwrap();
        let error = |bytes: &[u8]| Head::from_bytes(bytes).unwrap_err();
        assert_eq!(error(b""), HeadFileError::Magic);
        assert_eq!(error(b"\x89PNG and so on, and on, and on"), HeadFileError::Magic);
        assert!(matches!(error(&good[..12]), HeadFileError::Length { .. }));
        assert!(matches!(error(&good[..good.len() - 1]), HeadFileError::Length { .. }));
        assert!(matches!(error(&[&good[..], &[0]].concat()), HeadFileError::Length { .. }));
        let mut old = good.clone();
        old[8] = 0;
        assert_eq!(error(&old), HeadFileError::Version { found: 0, wanted: FORMAT });
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 4;
        assert_eq!(error(&flipped), HeadFileError::Checksum);
        let mut huge = good.clone();
        huge[12..20].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(error(&huge), HeadFileError::TooLarge { .. }));
        let mut trailing = good.clone();
        trailing.insert(good.len() - CHECKSUM, 0);
        let length = (trailing.len() - HEADER - CHECKSUM) as u64;
        trailing[12..20].copy_from_slice(&length.to_le_bytes());
        assert!(error(&sealed(trailing)).to_string().contains("left over"));
    }

    /// `format2.postcard` was written by version 0.1.0 as it was before format 3: `host train
    /// samples/surfaces --size 32 --units 0 --epochs 1 --no-calibration --lr 0.0002`; so were the
    /// scores.
    #[test]
    fn format_2_is_still_read() {
        let old = include_bytes!("format2.postcard");
        assert_eq!(format_of(old), Some(2));
        let head = Head::from_bytes(old).unwrap();
        assert_eq!((head.pool, head.background.len(), head.labels.len()), (Pool::Flatten, 0, 3));
        assert_eq!(head.training.date, "2023-11-14");
        let new = head.to_bytes().unwrap();
        assert_eq!(format_of(&new), Some(FORMAT));
        assert_eq!(Head::from_bytes(&new).unwrap(), head);
        // What is new stands behind what was there.
        let payload = |bytes: &[u8]| bytes[HEADER..bytes.len() - CHECKSUM].to_vec();
        assert_eq!(payload(&new), [payload(old), vec![0, 0]].concat());
        let mut relabeled = old.to_vec();
        relabeled[8] = FORMAT as u8;
        assert!(matches!(
            Head::from_bytes(&sealed(relabeled)),
            Err(HeadFileError::Inconsistent(_))
        ));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 512 }))]
        #[test]
        fn no_bytes_bring_it_down(at in 0usize..15_000, value: u8, reseal: bool, cut in 0usize..20_000) {
            let mut bytes = example(&["a", "b", "c"]).to_bytes().unwrap();
            let at = at % bytes.len();
            let same = bytes[at] == value;
            bytes[at] = value;
            if reseal {
                // A byte of the payload may be changed to another valid head; it must then be
                // consistent.
                if let Ok(head) = Head::from_bytes(&sealed(bytes)) {
                    head.check().unwrap();
                }
            } else {
                bytes.truncate(cut);
                let untouched = same && cut >= bytes.len() && bytes == example(&["a", "b", "c"]).to_bytes().unwrap();
                prop_assert_eq!(Head::from_bytes(&bytes).is_ok(), untouched);
            }
        }
    }
}
