//! The state directory: what a device must still know after a power cut.
//!
//! - `state.json`: the highest versions, the running model, the one before, and the one that was
//!   rolled back from.
//! - `kept/head-SHA256.postcard`, `kept/base-SHA256.onnx`, each with its `.minisig`: copies of
//!   models.
//! - `lock`, `running`: locks, for changes of `state.json` and for the one `edge run` that uses the
//!   directory.
//!
//! Copies are named by content, so each is written once however often devices start, and a base
//! that several heads share is stored once. `state.json` is written last and renamed into place:
//! before that the old model counts, after that the new one.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use vgg_edge::signature::{KeyId, SignatureInfo, SignedFile, signature_path};
use vgg_edge::{Error, Fingerprint};

/// Version of `state.json`.
const FORMAT: u32 = 1;

/// Largest `state.json`, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// One of the two files of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelPart {
    /// The head.
    Head,
    /// The base.
    Base,
}

impl ModelPart {
    fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Base => "base",
        }
    }
}

/// A model, by the content of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// SHA-256 of the head's file.
    #[serde(with = "hexadecimal")]
    pub head: Fingerprint,
    /// SHA-256 of the base's file.
    #[serde(with = "hexadecimal")]
    pub base: Fingerprint,
}

impl std::fmt::Display for ModelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "head {} on base {}", self.head.short(), self.base.short())
    }
}

/// The newest file that a key signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Newest {
    version: u64,
    #[serde(with = "hexadecimal")]
    sha256: Fingerprint,
}

/// A version that may not follow those that were accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// An older version than the newest.
    #[error(
        "version {version} is older than version {newest}, which this device accepted before; \
         sign the {} with a newer version", part.name()
    )]
    Older {
        /// The file.
        part: ModelPart,
        /// Its version.
        version: u64,
        /// The newest version that was accepted.
        newest: u64,
    },
    /// The newest version, but of another file.
    #[error(
        "version {version} is that of another {}, which this device accepted before; \
         sign it with a newer version", part.name()
    )]
    Reused {
        /// The file.
        part: ModelPart,
        /// Its version.
        version: u64,
    },
}

/// The content of `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    format: u32,
    /// The highest version that was accepted, by the ID of its key.
    #[serde(default)]
    versions: BTreeMap<String, BTreeMap<ModelPart, Newest>>,
    /// The running model: the last that passed its test, or that was rolled back to.
    #[serde(default)]
    pub current: Option<ModelId>,
    /// The model before that.
    #[serde(default)]
    pub previous: Option<ModelId>,
    /// The model that was rolled back from. Its files stay installed, and it does not run.
    #[serde(default)]
    pub held: Option<ModelId>,
}

impl Record {
    /// Checks that a file may follow those that were accepted from the trusted keys: it must be
    /// newer, or the very same.
    ///
    /// The highest version of all keys that are trusted now counts. So an old file of an old key is
    /// refused after a new key has signed, and the versions of a stolen key no longer count once it
    /// is not trusted.
    ///
    /// # Errors
    /// [`VersionError`] if it may not.
    pub fn check(
        &self,
        part: ModelPart,
        signed: SignatureInfo,
        digest: Fingerprint,
        trusted: impl Iterator<Item = KeyId>,
    ) -> Result<(), VersionError> {
        let newest =
            trusted.filter_map(|key| self.versions.get(&key.to_string())?.get(&part).copied());
        let Some(newest) = newest.max_by_key(|newest| newest.version) else { return Ok(()) };
        let version = signed.version;
        match version.cmp(&newest.version) {
            Ordering::Less => Err(VersionError::Older { part, version, newest: newest.version }),
            Ordering::Equal if digest != newest.sha256 => {
                Err(VersionError::Reused { part, version })
            }
            _ => Ok(()),
        }
    }

    /// Records an accepted file.
    pub fn accept(&mut self, part: ModelPart, signed: SignatureInfo, digest: Fingerprint) {
        let newest = Newest { version: signed.version, sha256: digest };
        self.versions.entry(signed.key.to_string()).or_default().insert(part, newest);
    }

    /// Records the model that runs from now on.
    pub fn run(&mut self, model: ModelId) {
        if self.current != Some(model) {
            self.previous = self.current.replace(model);
        }
        self.held = None;
    }

    /// Goes back to the previous model, and holds back the running one.
    ///
    /// # Errors
    /// If there is no previous model.
    pub fn roll_back(&mut self) -> Result<ModelId> {
        let (Some(current), Some(previous)) = (self.current, self.previous) else {
            bail!(
                "no earlier model to roll back to; one is stored once a second head or base runs"
            );
        };
        (self.current, self.previous, self.held) = (Some(previous), Some(current), Some(current));
        Ok(previous)
    }
}

/// The state directory.
#[derive(Clone, Debug)]
pub struct ModelStore {
    directory: PathBuf,
}

impl ModelStore {
    /// Opens the directory, and creates it if it does not exist. A read-only directory is good
    /// enough until there is something to write.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn open(directory: &Path) -> Result<Self> {
        for path in [directory, &directory.join("kept")] {
            if !path.is_dir() {
                std::fs::create_dir_all(path)
                    .map_err(Error::io("create the state directory", path))?;
            }
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// Makes this process the one that runs from the directory, for as long as the result lives.
    ///
    /// # Errors
    /// If another process does.
    pub fn claim(&self) -> Result<File> {
        let file = self.lock_file("running")?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "{}: another edge run uses this state directory; each needs its own",
                    self.directory.display()
                )
            }
            Err(TryLockError::Error(e)) => {
                Err(Error::io("lock", self.directory.join("running"))(e).into())
            }
        }
    }

    /// Whether an `edge run` uses the directory.
    pub fn is_running(&self) -> bool {
        self.claim().is_err()
    }

    /// Reads the record; it is empty at first.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged. It is not taken for an empty one: an older head
    /// might be accepted.
    pub fn read(&self) -> Result<Record> {
        let path = self.record_path();
        let bytes = match vgg_edge::durable_fs::read_limited(&path, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Record { format: FORMAT, ..Record::default() });
            }
            Err(e) => return Err(e.into()),
        };
        let damaged = || {
            let name = path.display();
            format!(
                "{name}: damaged; removing it discards the record of versions and stored models"
            )
        };
        let record: Record = serde_json::from_slice(&bytes).with_context(damaged)?;
        if record.format != FORMAT {
            bail!("{}: format {} is not supported, only {FORMAT}", path.display(), record.format);
        }
        Ok(record)
    }

    /// Updates the record, and writes it if `change` changes it; one process at a time.
    ///
    /// # Errors
    /// Those of `change`, and if the file cannot be read or written. Nothing has changed then.
    pub fn update<R>(&self, change: impl FnOnce(&mut Record) -> Result<R>) -> Result<R> {
        let lock = self.lock_file("lock")?;
        lock.lock().map_err(Error::io("lock", self.directory.join("lock")))?;
        let before = self.read()?;
        let mut record = before.clone();
        let result = change(&mut record)?;
        if record != before {
            let mut text = serde_json::to_string_pretty(&record)?;
            text.push('\n');
            write(&self.record_path(), text.as_bytes())?;
        }
        Ok(result)
    }

    /// Stores a copy of a file, named by its content, with its signature.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, part: ModelPart, file: &SignedFile) -> Result<()> {
        let path = self.kept(part, file.digest);
        // An existing file may have decayed on the card, or been written by a program that lost
        // power without the care taken here.
        let same = |path: &Path, bytes: &[u8]| {
            vgg_edge::durable_fs::read_limited(path, bytes.len() as u64)
                .is_ok_and(|found| found == bytes)
        };
        let beside = signature_path(&path);
        if let Some(text) = &file.signature
            && !same(&beside, text.as_bytes())
        {
            write(&beside, text.as_bytes())?;
        }
        if !same(&path, &file.bytes) {
            write(&path, &file.bytes)?;
        }
        Ok(())
    }

    /// Reads a stored copy and verifies its content.
    ///
    /// # Errors
    /// If it cannot be read, or has changed.
    pub fn read_kept(
        &self,
        part: ModelPart,
        digest: Fingerprint,
        limit: u64,
    ) -> Result<SignedFile> {
        let file = SignedFile::read(&self.kept(part, digest), limit)?;
        if file.digest != digest {
            bail!("{}: damaged", file.path.display());
        }
        Ok(file)
    }

    /// Removes copies of models that can no longer be rolled back to, and files that a power cut
    /// left incomplete. A file that cannot be removed stays until the next attempt.
    pub fn sweep(&self) {
        // Under the lock, so that a file that is being written is not taken for an incomplete one.
        let Ok(lock) = self.lock_file("lock") else { return };
        let Ok(record) = lock.lock().map_err(anyhow::Error::from).and_then(|()| self.read()) else {
            return;
        };
        let models = [record.current, record.previous].into_iter().flatten();
        let kept: BTreeSet<OsString> = models
            .flat_map(|model| {
                [self.kept(ModelPart::Head, model.head), self.kept(ModelPart::Base, model.base)]
            })
            .flat_map(|path| [signature_path(&path), path])
            .filter_map(|path| path.file_name().map(ToOwned::to_owned))
            .collect();
        for directory in [self.directory.clone(), self.directory.join("kept")] {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let text = name.to_string_lossy();
                let incomplete = text.starts_with(".vgg-edge-") && text.ends_with(".tmp");
                let unused = (text.starts_with("head-") || text.starts_with("base-"))
                    && !kept.contains(&name);
                if incomplete || unused {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
    }

    /// `state.json`.
    pub fn record_path(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// The path of the directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn kept(&self, part: ModelPart, digest: Fingerprint) -> PathBuf {
        let name = match part {
            ModelPart::Head => format!("head-{digest}.postcard"),
            ModelPart::Base => format!("base-{digest}.onnx"),
        };
        self.directory.join("kept").join(name)
    }

    /// Opens the file of a lock. It need not be writable: it may exist on a read-only card.
    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.directory.join(name);
        let opened = File::open(&path).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                OpenOptions::new().read(true).append(true).create(true).open(&path)
            }
            _ => Err(e),
        });
        Ok(opened.map_err(Error::io("open", &path))?)
    }
}

/// Writes a file that the service can read, whichever user runs `edge rollback`, with whatever
/// umask. Nothing in the directory is secret; the directory itself is the service's.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    vgg_edge::durable_fs::write_atomic::<Error>(path, |file| {
        let readable = std::fs::Permissions::from_mode(0o644);
        file.get_ref().set_permissions(readable).map_err(Error::io("write", path))?;
        file.write_all(bytes).map_err(Error::io("write", path))
    })?;
    Ok(())
}

/// Fingerprints as `sha256sum` prints them.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use vgg_edge::Fingerprint;

    pub fn serialize<S: Serializer>(value: &Fingerprint, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Fingerprint, D::Error> {
        let text = String::deserialize(deserializer)?;
        Fingerprint::parse(&text).ok_or_else(|| D::Error::custom("not a SHA-256"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(head: &str, base: &str) -> ModelId {
        ModelId { head: Fingerprint::of(head.as_bytes()), base: Fingerprint::of(base.as_bytes()) }
    }

    fn runs(state: &ModelStore, model: ModelId) -> Result<()> {
        state.update(|record| {
            record.run(model);
            Ok(())
        })
    }

    fn file(directory: &Path, content: &str) -> SignedFile {
        let path = directory.join("file");
        std::fs::write(&path, content).unwrap();
        std::fs::write(signature_path(&path), format!("signature of {content}")).unwrap();
        SignedFile::read(&path, 100).unwrap()
    }

    #[test]
    fn versions_never_go_back_and_follow_the_keys_that_are_trusted() {
        let [old, new] = [KeyId([1; 8]), KeyId([2; 8])];
        let [a, b] = [Fingerprint::of(b"a"), Fingerprint::of(b"b")];
        let by = |key, version| SignatureInfo { key, version };
        let mut record = Record::default();
        let check = |record: &Record, signed, digest, keys: &[KeyId]| {
            record.check(ModelPart::Head, signed, digest, keys.iter().copied()).is_ok()
        };
        assert!(check(&record, by(old, 0), a, &[old]));
        record.accept(ModelPart::Head, by(old, 7), a);
        for (version, digest, good) in [(6, a, false), (7, a, true), (7, b, false), (8, b, true)] {
            assert_eq!(check(&record, by(old, version), digest, &[old]), good, "{version}");
            // A second trusted key is bound by the same versions.
            assert_eq!(check(&record, by(new, version), digest, &[old, new]), good, "{version}");
        }
        // Bases have versions of their own.
        assert!(record.check(ModelPart::Base, by(old, 1), b, [old].into_iter()).is_ok());
        // A stolen key signs the highest version there is; without it the others continue.
        record.accept(ModelPart::Head, by(old, u64::MAX), b);
        assert!(!check(&record, by(new, 9), a, &[old, new]));
        assert!(check(&record, by(new, 9), a, &[new]));
    }

    #[test]
    fn rollback_holds_the_running_model_and_twice_is_there_and_back() {
        let [a, b, c] = ["a", "b", "c"].map(|head| model(head, "base"));
        let mut record = Record::default();
        assert!(record.roll_back().is_err());
        record.run(a);
        record.run(a);
        assert!(record.roll_back().is_err());
        record.run(b);
        assert_eq!(record.roll_back().unwrap(), a);
        assert_eq!((record.current, record.previous, record.held), (Some(a), Some(b), Some(b)));
        assert_eq!(record.roll_back().unwrap(), b);
        assert_eq!((record.current, record.previous, record.held), (Some(b), Some(a), Some(a)));
        record.run(c);
        assert_eq!((record.current, record.previous, record.held), (Some(c), Some(b), None));
    }

    #[test]
    fn the_record_is_written_whole_and_only_when_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let state = ModelStore::open(&directory.path().join("state")).unwrap();
        assert_eq!(state.read().unwrap().current, None);
        runs(&state, model("a", "base")).unwrap();
        let stamp = || {
            std::fs::metadata(state.record_path())
                .map(|m| std::os::unix::fs::MetadataExt::ino(&m))
                .unwrap()
        };
        let before = stamp();
        runs(&state, model("a", "base")).unwrap();
        assert_eq!(stamp(), before);
        assert_eq!(state.read().unwrap().current, Some(model("a", "base")));
        let failed = state.update::<()>(|record| {
            record.run(model("b", "base"));
            bail!("no")
        });
        assert!(failed.is_err() && stamp() == before);
        for damage in [
            "",
            "{",
            "{\"format\":2}",
            "{\"format\":1,\"held\":{\"head\":\"../x\",\"base\":\"\"}}",
            "[]",
        ] {
            std::fs::write(state.record_path(), damage).unwrap();
            assert!(state.read().is_err(), "{damage}");
            assert!(runs(&state, model("b", "base")).is_err());
            assert_eq!(std::fs::read_to_string(state.record_path()).unwrap(), damage);
        }
    }

    #[test]
    fn copies_are_named_by_content_and_swept_when_unused() {
        let directory = tempfile::tempdir().unwrap();
        let state = ModelStore::open(&directory.path().join("state")).unwrap();
        let [head, newer, newest, base] =
            ["h1", "h2", "h3", "b"].map(|content| file(directory.path(), content));
        for head in [&head, &newer, &newest] {
            state.keep(ModelPart::Head, head).unwrap();
            state.keep(ModelPart::Base, &base).unwrap();
            runs(&state, ModelId { head: head.digest, base: base.digest }).unwrap();
        }
        std::fs::write(state.directory().join("kept/.vgg-edge-x.tmp"), "incomplete").unwrap();
        state.sweep();
        let names = std::fs::read_dir(state.directory().join("kept")).unwrap().count();
        assert_eq!(names, 6, "two heads and a base, each with its signature");
        assert!(!state.kept(ModelPart::Head, head.digest).exists());
        let found = state.read_kept(ModelPart::Head, newest.digest, 100).unwrap();
        assert_eq!(
            (found.bytes, found.signature),
            (newest.bytes.clone(), newest.signature.clone())
        );
        // A copy that decays is detected, and repaired by the next one.
        std::fs::write(&found.path, "h4").unwrap();
        assert!(state.read_kept(ModelPart::Head, newest.digest, 100).is_err());
        state.keep(ModelPart::Head, &newest).unwrap();
        assert!(state.read_kept(ModelPart::Head, newest.digest, 100).is_ok());
    }

    #[test]
    fn one_run_per_state_directory() {
        let directory = tempfile::tempdir().unwrap();
        let state = ModelStore::open(directory.path()).unwrap();
        let claim = state.claim().unwrap();
        assert!(state.is_running());
        assert!(state.claim().unwrap_err().to_string().contains("another edge run"));
        // Not in the way of a change.
        runs(&state, model("a", "b")).unwrap();
        drop(claim);
        assert!(!state.is_running());
    }
}
