//! `HEAD.checkpoint`: the state from which an interrupted training is resumed.
//! `docs/formats.md` has the table.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vgg_edge::Fingerprint;
use vgg_edge::container::{Envelope, EnvelopeError};

/// Format version that is written and read.
const FORMAT: u32 = 2;

/// Four times the largest head: weights, best weights, and two values of the optimizer for each.
const MAX_BYTES: u64 = 4 * vgg_edge::head::MAX_BYTES + (64 << 20);

const ENVELOPE: Envelope = Envelope {
    magic: *b"VGGECKPT",
    version: FORMAT,
    oldest: FORMAT,
    has_length: false,
    max_len: MAX_BYTES,
};

/// The inputs of a training beside its state. They must be the same before and after an
/// interruption, or the bits would differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// The base.
    pub base: Fingerprint,
    /// All settings of training and preprocessing, as text that is only compared.
    pub settings: String,
    /// Contents, classes and order of the training and validation images.
    pub data: Fingerprint,
}

/// The reasons why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It cannot be read.
    #[error("--resume: {0}; train without --resume to start over")]
    Read(vgg_edge::Error),
    /// It is of another version, of another training, or damaged.
    #[error("{path}: {what}; train without --resume to start over")]
    Content {
        /// The file.
        path: PathBuf,
        /// The reason.
        what: String,
    },
}

/// The checkpoint file beside a head during training.
pub struct Checkpoint {
    path: PathBuf,
    key: Key,
    every: Duration,
    last: Instant,
}

impl Checkpoint {
    /// Returns the checkpoint of the head file `head`, with an extension for each kind of state;
    /// nothing is written yet.
    pub fn new(head: &Path, extension: &str, key: Key, every: Duration) -> Self {
        Self { path: path_of(head, extension), key, every, last: Instant::now() }
    }

    /// Checks that a head has a checkpoint with one of these extensions, before any work is done
    /// for it.
    ///
    /// # Errors
    /// [`CheckpointError::Content`] if there is none.
    pub fn check_exists(head: &Path, extensions: &[&str]) -> Result<(), CheckpointError> {
        if Self::find(head, extensions).is_some() {
            return Ok(());
        }
        let path = path_of(head, extensions.last().copied().unwrap_or_default());
        let what = "there is no checkpoint to resume from (--resume)".into();
        Err(CheckpointError::Content { path, what })
    }

    /// Returns the first checkpoint of a head with one of these extensions.
    pub fn find(head: &Path, extensions: &[&str]) -> Option<PathBuf> {
        extensions.iter().map(|extension| path_of(head, extension)).find(|path| path.is_file())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the state in the file.
    ///
    /// # Errors
    /// [`CheckpointError`]: there is no file, it is damaged, or it belongs to another training.
    pub fn load<S: DeserializeOwned>(&self) -> Result<S, CheckpointError> {
        let bytes = ENVELOPE.read(&self.path).map_err(CheckpointError::Read)?;
        let wrong = |what: String| CheckpointError::Content { path: self.path.clone(), what };
        let (key, state) = decode(&bytes).map_err(wrong)?;
        let other = if key.base != self.key.base {
            "the checkpoint is of a training on another base"
        } else if key.settings != self.key.settings {
            "the checkpoint is of a training with other settings"
        } else if key.data != self.key.data {
            "the checkpoint is of a training on other images, or with another validation set"
        } else {
            return Ok(state);
        };
        Err(wrong(other.into()))
    }

    /// Writes the file if the interval has passed or `now` is set; `state` is called only then.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save<S: Serialize>(
        &mut self,
        state: impl FnOnce() -> S,
        now: bool,
    ) -> anyhow::Result<()> {
        if now || self.last.elapsed() >= self.every {
            // Also on failure: a full disk must not be tried at every epoch.
            self.last = Instant::now();
            ENVELOPE.write(&self.path, &encode(&self.key, &state())?)?;
        }
        Ok(())
    }

    /// Removes the file, if there is one, after the training.
    ///
    /// # Errors
    /// If it exists and cannot be removed.
    pub fn remove(&self) -> vgg_edge::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(vgg_edge::Error::io("remove", &self.path)(e))
            }
            _ => Ok(()),
        }
    }
}

fn path_of(head: &Path, extension: &str) -> PathBuf {
    let mut path = head.as_os_str().to_owned();
    path.push(".");
    path.push(extension);
    path.into()
}

fn encode(key: &Key, state: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    ENVELOPE.encode(|header| Ok(postcard::to_extend(&(key, state), header)?))
}

fn decode<S: DeserializeOwned>(bytes: &[u8]) -> Result<(Key, S), String> {
    let (_, payload) = ENVELOPE.decode(bytes).map_err(|e| match e {
        EnvelopeError::Magic => "not a checkpoint".to_owned(),
        EnvelopeError::Version { found, .. } => {
            format!("checkpoint of format {found}, but this program reads format {FORMAT}")
        }
        EnvelopeError::Length { .. } => "the checkpoint is truncated".to_owned(),
        e => format!("the checkpoint is damaged ({e})"),
    })?;
    postcard::from_bytes(payload).map_err(|e| format!("the checkpoint is damaged ({e})"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ops::ControlFlow;

    use vgg_edge::container::CHECKSUM_LEN;

    use super::*;
    use crate::trainer::{Dataset, FeatureSource, HeadState, TrainConfig, train};

    struct Ramp;

    impl FeatureSource for Ramp {
        fn len(&self) -> usize {
            20
        }
        fn dim(&self) -> usize {
            3
        }
        fn gather(&self, rows: &[usize], out: &mut [f32]) -> std::io::Result<()> {
            for (&row, out) in rows.iter().zip(out.chunks_exact_mut(3)) {
                out.copy_from_slice(&[row as f32 * 0.1, 1.0, (row % 3) as f32]);
            }
            Ok(())
        }
    }

    fn key() -> Key {
        Key { base: Fingerprint::of(b"base"), settings: "s".into(), data: Fingerprint::of(b"data") }
    }

    #[test]
    fn checkpoints_round_trip_and_others_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let head = folder.path().join("head");
        let mut checkpoint = Checkpoint::new(&head, "checkpoint", key(), Duration::ZERO);
        assert!(checkpoint.load::<HeadState>().unwrap_err().to_string().contains("--resume"));
        let labels: Vec<usize> = (0..20).map(|row| row % 2).collect();
        let data = Dataset { features: &Ramp, labels: &labels };
        let config = TrainConfig { units: vec![4, 3], batch_norm: true, ..TrainConfig::default() };
        let mut kept = None;
        train(&config, &data, None, None, &mut |progress| {
            checkpoint.save(|| progress.state(), false).unwrap();
            kept = Some(progress.state());
            if progress.at.stats().is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
        assert_eq!(Some(checkpoint.load::<HeadState>().unwrap()), kept);

        let with = |key| {
            Checkpoint::new(&head, "checkpoint", key, Duration::ZERO)
                .load::<HeadState>()
                .unwrap_err()
                .to_string()
        };
        assert!(with(Key { base: Fingerprint::of(b"x"), ..key() }).contains("another base"));
        assert!(with(Key { settings: "t".into(), ..key() }).contains("other settings"));
        assert!(with(Key { data: Fingerprint::of(b"x"), ..key() }).contains("other images"));
        let good = std::fs::read(checkpoint.path()).unwrap();
        for (at, words) in [(0, "not a checkpoint"), (8, "format"), (good.len() / 2, "damaged")] {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            std::fs::write(checkpoint.path(), bytes).unwrap();
            assert!(with(key()).contains(words), "{at}");
        }
        for len in [0, 8, 12, 43, 44, good.len() - 1] {
            std::fs::write(checkpoint.path(), &good[..len]).unwrap();
            with(key());
        }
        checkpoint.remove().unwrap();
        checkpoint.remove().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// With valid checksums, since those find plain damage: what decodes must fit the training or
    /// be refused.
    #[test]
    fn forged_checkpoints_are_refused_or_fit() {
        let labels: Vec<usize> = (0..20).map(|row| row % 2).collect();
        let data = Dataset { features: &Ramp, labels: &labels };
        let config =
            TrainConfig { units: vec![4], epochs: 3, batch_size: 8, ..TrainConfig::default() };
        let mut good = Vec::new();
        train(&config, &data, Some(&data), None, &mut |progress| {
            good.push((
                format!("state {}", good.len()).into(),
                encode(&key(), &progress.state()).unwrap(),
            ));
            ControlFlow::Continue(())
        })
        .unwrap();
        let resumed = Cell::new(0);
        fuzz_targets::attack("checkpoint", &good, 500, |bytes| {
            assert!(
                decode::<HeadState>(bytes).is_err() || good.iter().any(|(_, good)| good == bytes),
                "damage is not seen"
            );
            let content = &bytes[..bytes.len().saturating_sub(CHECKSUM_LEN)];
            let sealed = [content, &Fingerprint::of(content).0].concat();
            if let Ok((_, state)) = decode::<HeadState>(&sealed) {
                let trained = train(&config, &data, Some(&data), Some(state), &mut |_| {
                    ControlFlow::Continue(())
                });
                resumed.set(resumed.get() + u32::from(trained.is_ok()));
            }
        });
        assert!(resumed.get() > 50, "{resumed:?}");
    }
}
