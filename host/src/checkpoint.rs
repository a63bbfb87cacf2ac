//! `HEAD.checkpoint`: what it takes to go on with a training that was interrupted.
//! `ARCHITECTURE.md` has the table.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vgg_edge::Fingerprint;

const MAGIC: &[u8; 8] = b"VGGECKPT";
const HEADER: usize = 8 + 4;
const CHECKSUM: usize = 32;

/// Format version that is written and read.
const FORMAT: u32 = 2;

/// Four times the largest head: weights, best weights, and two values of the optimizer for each.
const MAX_BYTES: u64 = 4 * vgg_edge::head::MAX_BYTES + (64 << 20);

/// What a training depends on beside its state: the same on both sides of an interruption, or the
/// bits would differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// The base.
    pub base: Fingerprint,
    /// All settings of training and pre-processing, in words that are only compared.
    pub settings: String,
    /// Contents, classes and order of the pictures to train and to validate on.
    pub data: Fingerprint,
}

/// Why a checkpoint is no use.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It cannot be read.
    #[error("--resume: {0}; train without --resume to begin anew")]
    Read(vgg_edge::Error),
    /// It is of another program, or damaged.
    #[error("{path}: {what}; train without --resume to begin anew")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// The file beside a head while that is being trained.
pub struct Checkpoint {
    path: PathBuf,
    key: Key,
    every: Duration,
    last: Instant,
}

impl Checkpoint {
    /// The checkpoint of the head that goes to `head`, with another ending for another kind of
    /// state; nothing is written yet.
    pub fn new(head: &Path, ending: &str, key: Key, every: Duration) -> Self {
        Self { path: path_of(head, ending), key, every, last: Instant::now() }
    }

    /// Looks whether a head has a checkpoint with one of these endings, before any work is done for
    /// it.
    ///
    /// # Errors
    /// [`CheckpointError::Content`] if there is none.
    pub fn check_exists(head: &Path, endings: &[&str]) -> Result<(), CheckpointError> {
        if Self::find(head, endings).is_some() {
            return Ok(());
        }
        let path = path_of(head, endings.last().copied().unwrap_or_default());
        let what = "there is no checkpoint to go on from (--resume)".into();
        Err(CheckpointError::Content { path, what })
    }

    /// The first of the checkpoints with these endings that a head has.
    pub fn find(head: &Path, endings: &[&str]) -> Option<PathBuf> {
        endings.iter().map(|ending| path_of(head, ending)).find(|path| path.is_file())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state in the file.
    ///
    /// # Errors
    /// [`CheckpointError`]: there is none, it is damaged, or it belongs to another training.
    pub fn load<S: DeserializeOwned>(&self) -> Result<S, CheckpointError> {
        let bytes = vgg_edge::durable_fs::read_limited(&self.path, MAX_BYTES)
            .map_err(CheckpointError::Read)?;
        let wrong = |what: String| CheckpointError::Content { path: self.path.clone(), what };
        let (key, state) = decode(&bytes).map_err(wrong)?;
        let other = if key.base != self.key.base {
            "the checkpoint is of a training on another base"
        } else if key.settings != self.key.settings {
            "the checkpoint is of a training with other settings"
        } else if key.data != self.key.data {
            "the checkpoint is of a training on other pictures, or with others set aside"
        } else {
            return Ok(state);
        };
        Err(wrong(other.into()))
    }

    /// Writes the file if it is time to, or `now`; `state` is asked for only then.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save<S: Serialize>(
        &mut self,
        state: impl FnOnce() -> S,
        now: bool,
    ) -> anyhow::Result<()> {
        if now || self.last.elapsed() >= self.every {
            // Also if it fails: a full disk is not to be tried at every epoch.
            self.last = Instant::now();
            vgg_edge::durable_fs::write_bytes(&self.path, &encode(&self.key, &state())?)?;
        }
        Ok(())
    }

    /// Removes the file, if there is one: the training is done.
    ///
    /// # Errors
    /// If it is there and stays.
    pub fn remove(&self) -> vgg_edge::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(vgg_edge::Error::io("remove", &self.path)(e))
            }
            _ => Ok(()),
        }
    }
}

fn path_of(head: &Path, ending: &str) -> PathBuf {
    let mut path = head.as_os_str().to_owned();
    path.push(".");
    path.push(ending);
    path.into()
}

fn encode(key: &Key, state: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = [&MAGIC[..], &FORMAT.to_le_bytes()].concat();
    bytes = postcard::to_extend(&(key, state), bytes)?;
    let checksum = Fingerprint::of(&bytes);
    bytes.extend_from_slice(&checksum.0);
    Ok(bytes)
}

fn decode<S: DeserializeOwned>(bytes: &[u8]) -> Result<(Key, S), String> {
    if !bytes.starts_with(MAGIC) || bytes.len() < HEADER + CHECKSUM {
        return Err("not a checkpoint, or cut".into());
    }
    let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
    let version =
        content[MAGIC.len()..].first_chunk().map_or(0, |version| u32::from_le_bytes(*version));
    if version != FORMAT {
        return Err(format!(
            "checkpoint of format {version}, but this program reads format {FORMAT}"
        ));
    }
    if Fingerprint::of(content).0 != checksum {
        return Err("the checkpoint is damaged (its checksum does not match)".into());
    }
    postcard::from_bytes(&content[HEADER..]).map_err(|e| format!("the checkpoint is damaged ({e})"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ops::ControlFlow;

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
    fn a_state_comes_back_and_nothing_else_is_taken_for_it() {
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
        assert!(with(Key { data: Fingerprint::of(b"x"), ..key() }).contains("other pictures"));
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

    /// With checksums that hold, since damage is found by those; what comes through must fit the
    /// training or be refused.
    #[test]
    fn checkpoints_that_somebody_made() {
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
            let content = &bytes[..bytes.len().saturating_sub(CHECKSUM)];
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
