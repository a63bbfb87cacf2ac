//! The head file: a postcard payload in the envelope of [`crate::container`].
//! `docs/formats.md` has the table.

use std::path::Path;

use serde::Deserialize;

use super::{Decision, Dense, Head, Output, Pool, TrainingRecord};
use crate::container::Envelope;
use crate::error::HeadFileError;
use crate::preprocess::Preprocess;
use crate::{Error, Fingerprint, Result};

/// Format version that is written.
pub const FORMAT: u32 = 3;

/// Oldest format version that is read.
pub const OLDEST: u32 = 2;

/// Upper limit of a head file, in bytes. A hidden layer of 1,024 units at 224 px takes 98 MiB.
pub const MAX_BYTES: u64 = 512 << 20;

const ENVELOPE: Envelope = Envelope {
    magic: *b"VGGEHEAD",
    version: FORMAT,
    oldest: OLDEST,
    has_length: true,
    max_len: MAX_BYTES,
};

/// Returns the format version of the bytes of a head file; `None` for any other bytes.
pub fn format_of(bytes: &[u8]) -> Option<u32> {
    ENVELOPE.version_of(bytes)
}

/// The payload of format 2, which had neither pooling nor background classes.
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

impl Head {
    /// Returns the bytes of the head file.
    ///
    /// # Errors
    /// [`HeadFileError::Inconsistent`] if [`Head::check`] fails, [`HeadFileError::TooLarge`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, HeadFileError> {
        self.check()?;
        ENVELOPE.encode(|header| postcard::to_extend(self, header).map_err(inconsistent))
    }

    /// Parses the bytes of a head file, and checks everything.
    ///
    /// # Errors
    /// [`HeadFileError`], one variant for each kind of damage. The version is checked before length
    /// and checksum, so that a head of another version is reported as such.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HeadFileError> {
        let (version, payload) = ENVELOPE.decode(bytes)?;
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
        head.check()?;
        Ok(head)
    }

    /// Writes the head file atomically: on failure an existing file stays as it is.
    ///
    /// # Errors
    /// [`Error::HeadFile`], [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes =
            self.to_bytes().map_err(|source| Error::HeadFile { path: path.to_owned(), source })?;
        ENVELOPE.write(path, &bytes)
    }

    /// Reads a head file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::HeadFile`] if it is not a valid head.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = ENVELOPE.read(path)?;
        Self::from_bytes(&bytes).map_err(|source| Error::HeadFile { path: path.to_owned(), source })
    }
}

fn inconsistent(error: postcard::Error) -> HeadFileError {
    HeadFileError::Inconsistent(error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::container::CHECKSUM_LEN as CHECKSUM;
    use crate::head::tests::example;

    const HEADER: usize = ENVELOPE.header_len();

    /// Corrects the checksum of `bytes`, to reach the checks behind it.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - CHECKSUM);
        let checksum = Fingerprint::of(&bytes);
        bytes.extend_from_slice(&checksum.0);
        bytes
    }

    #[test]
    fn head_files_round_trip() {
        let head = example(&["a", "b", "c"]);
        assert_eq!(Head::from_bytes(&head.to_bytes().unwrap()).unwrap(), head);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("head.postcard");
        head.save(&path).unwrap();
        assert_eq!(Head::open(&path).unwrap(), head);
    }

    #[test]
    fn each_damage_to_a_head_has_its_own_error() {
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

    /// `format2.postcard` was written by version 0.1.0 before it had format 3: `host train
    /// samples/surfaces --size 32 --units 0 --epochs 1 --no-calibration --lr 0.0002`.
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
        // New fields follow the old ones.
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
        fn no_head_file_panics(
            at in 0usize..15_000, value: u8, reseal: bool, cut in 0usize..20_000,
        ) {
            let mut bytes = example(&["a", "b", "c"]).to_bytes().unwrap();
            let at = at % bytes.len();
            let same = bytes[at] == value;
            bytes[at] = value;
            if reseal {
                // Changing a byte of the payload may give another valid head; it must be
                // consistent then.
                if let Ok(head) = Head::from_bytes(&sealed(bytes)) {
                    head.check().unwrap();
                }
            } else {
                bytes.truncate(cut);
                let good = example(&["a", "b", "c"]).to_bytes().unwrap();
                let untouched = same && cut >= bytes.len() && bytes == good;
                prop_assert_eq!(Head::from_bytes(&bytes).is_ok(), untouched);
            }
        }
    }
}
