//! The state folder: what a device must still know after a power cut.
//!
//! | file | what |
//! |---|---|
//! | `state.json` | highest versions, the pair that runs, the one before, the one that was rolled back from |
//! | `kept/head-SHA256.postcard`, `kept/base-SHA256.onnx`, each with its `.minisig` | copies of these pairs |
//! | `lock`, `running` | locks: of a change of `state.json`, and of the one `edge run` that uses the folder |
//!
//! Copies go by content, so each is written once however often devices start, and a base that
//! several heads share is there once. `state.json` is written last and renamed into place: before
//! that the old pair counts, after that the new one.

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

/// What a file is to a pair.
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

/// A head and its base, by content.
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

/// The newest file of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Newest {
    version: u64,
    #[serde(with = "hexadecimal")]
    sha256: Fingerprint,
}

/// The content of `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    format: u32,
    /// By the key's number: the highest version that was accepted.
    #[serde(default)]
    versions: BTreeMap<String, BTreeMap<ModelPart, Newest>>,
    /// The pair that runs: the last that was found good, or that was rolled back to.
    #[serde(default)]
    pub current: Option<ModelId>,
    /// The pair before that.
    #[serde(default)]
    pub previous: Option<ModelId>,
    /// The pair that was rolled back from. It stays where it was put, and is not run.
    #[serde(default)]
    pub held: Option<ModelId>,
}

impl Record {
    /// Whether a file may follow those that were accepted from the trusted keys: it must be newer,
    /// or the very same.
    ///
    /// What counts is the highest version of all keys that are trusted now. So an old file of an
    /// old key is refused after a new key has signed, and what a stolen key signed no longer counts
    /// once the key is not trusted.
    ///
    /// # Errors
    /// The reason.
    pub fn check(
        &self,
        part: ModelPart,
        signed: SignatureInfo,
        digest: Fingerprint,
        trusted: impl Iterator<Item = KeyId>,
    ) -> Result<(), String> {
        let newest =
            trusted.filter_map(|key| self.versions.get(&key.to_string())?.get(&part).copied());
        let Some(newest) = newest.max_by_key(|newest| newest.version) else { return Ok(()) };
        let (version, name) = (signed.version, part.name());
        match version.cmp(&newest.version) {
            std::cmp::Ordering::Less => Err(format!(
                "version {version} is older than version {}, which this device had already; sign the {name} again to go back",
                newest.version
            )),
            std::cmp::Ordering::Equal if digest != newest.sha256 => Err(format!(
                "version {version} is that of another {name}, which this device had already; sign it anew"
            )),
            _ => Ok(()),
        }
    }

    /// Notes an accepted file.
    pub fn accept(&mut self, part: ModelPart, signed: SignatureInfo, digest: Fingerprint) {
        let newest = Newest { version: signed.version, sha256: digest };
        self.versions.entry(signed.key.to_string()).or_default().insert(part, newest);
    }

    /// Notes the pair that runs from now on.
    pub fn run(&mut self, pair: ModelId) {
        if self.current != Some(pair) {
            self.previous = self.current.replace(pair);
        }
        self.held = None;
    }

    /// Goes back to the pair before, and holds back the one that runs.
    ///
    /// # Errors
    /// If there is none.
    pub fn roll_back(&mut self) -> Result<ModelId> {
        let (Some(current), Some(previous)) = (self.current, self.previous) else {
            bail!(
                "there is no pair to go back to; one is kept once a second head or base was accepted"
            );
        };
        (self.current, self.previous, self.held) = (Some(previous), Some(current), Some(current));
        Ok(previous)
    }
}

/// The folder.
#[derive(Clone, Debug)]
pub struct ModelStore {
    folder: PathBuf,
}

impl ModelStore {
    /// Opens the folder, and makes it if there is none. A folder that can only be read is good
    /// enough until there is something to write.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(folder: &Path) -> Result<Self> {
        for folder in [folder, &folder.join("kept")] {
            if !folder.is_dir() {
                std::fs::create_dir_all(folder)
                    .map_err(Error::io("make the state folder", folder))?;
            }
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// Makes this process the one that runs from the folder, for as long as the result lives.
    ///
    /// # Errors
    /// If another one does.
    pub fn claim(&self) -> Result<File> {
        let file = self.lock_file("running")?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "{}: another edge run uses this state folder; give each its own",
                    self.folder.display()
                )
            }
            Err(TryLockError::Error(e)) => {
                Err(Error::io("lock", self.folder.join("running"))(e).into())
            }
        }
    }

    /// Whether an `edge run` uses the folder.
    pub fn is_running(&self) -> bool {
        self.claim().is_err()
    }

    /// What is known; nothing at first.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged. Nothing is taken for granted then: an older head
    /// might be let in.
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
                "{name}: damaged; removing it forgets which versions this device had, and the kept pairs"
            )
        };
        let record: Record = serde_json::from_slice(&bytes).with_context(damaged)?;
        if record.format != FORMAT {
            bail!("{}: format {}, this program knows {FORMAT}", path.display(), record.format);
        }
        Ok(record)
    }

    /// Changes what is known, if `change` changes it; one process at a time.
    ///
    /// # Errors
    /// Those of `change`, and if the file cannot be read or written. Nothing has changed then.
    pub fn update<R>(&self, change: impl FnOnce(&mut Record) -> Result<R>) -> Result<R> {
        let lock = self.lock_file("lock")?;
        lock.lock().map_err(Error::io("lock", self.folder.join("lock")))?;
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

    /// Keeps a copy of a file under its content, with its signature.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, part: ModelPart, file: &SignedFile) -> Result<()> {
        let path = self.kept(part, file.digest);
        // What is there may have rotted on the card, or been written by a program that lost power
        // in its own way.
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

    /// A copy that was kept, found to be what it was.
    ///
    /// # Errors
    /// If it cannot be read, or has changed.
    pub fn read_kept(&self, part: ModelPart, digest: Fingerprint, limit: u64) -> Result<SignedFile> {
        let file = SignedFile::read(&self.kept(part, digest), limit)?;
        if file.digest != digest {
            bail!("{}: damaged", file.path.display());
        }
        Ok(file)
    }

    /// Removes copies of pairs that nobody can go back to, and what a power cut left half written.
    /// What cannot be removed stays, and is tried again next time.
    pub fn sweep(&self) {
        // Under the lock, so that no file that somebody writes just now is taken for a torn one.
        let Ok(lock) = self.lock_file("lock") else { return };
        let Ok(record) = lock.lock().map_err(anyhow::Error::from).and_then(|()| self.read()) else {
            return;
        };
        let pairs = [record.current, record.previous].into_iter().flatten();
        let kept: BTreeSet<OsString> = pairs
            .flat_map(|pair| {
                [self.kept(ModelPart::Head, pair.head), self.kept(ModelPart::Base, pair.base)]
            })
            .flat_map(|path| [signature_path(&path), path])
            .filter_map(|path| path.file_name().map(ToOwned::to_owned))
            .collect();
        for folder in [self.folder.clone(), self.folder.join("kept")] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let text = name.to_string_lossy();
                let torn = text.starts_with(".vgg-edge-") && text.ends_with(".tmp");
                let ours = (text.starts_with("head-") || text.starts_with("base-"))
                    && !kept.contains(&name);
                if torn || ours {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
    }

    /// `state.json`.
    pub fn record_path(&self) -> PathBuf {
        self.folder.join("state.json")
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn kept(&self, part: ModelPart, digest: Fingerprint) -> PathBuf {
        let name = match part {
            ModelPart::Head => format!("head-{digest}.postcard"),
            ModelPart::Base => format!("base-{digest}.onnx"),
        };
        self.folder.join("kept").join(name)
    }

    /// A lock needs a file that can be opened, no more; it may be there on a card that can only be
    /// read.
    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.folder.join(name);
        let opened = File::open(&path).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                OpenOptions::new().read(true).append(true).create(true).open(&path)
            }
            _ => Err(e),
        });
        Ok(opened.map_err(Error::io("open", &path))?)
    }
}

/// Writes a file that the service can read, whoever runs `edge rollback` under whatever umask.
/// Nothing in the folder is secret; the folder itself is the service's.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    vgg_edge::durable_fs::write_atomic::<Error>(path, |file| {
        let readable = std::fs::Permissions::from_mode(0o644);
        file.get_ref().set_permissions(readable).map_err(Error::io("write", path))?;
        file.write_all(bytes).map_err(Error::io("write", path))
    })?;
    Ok(())
}

/// Fingerprints as people and `sha256sum` write them.
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

    fn pair(head: &str, base: &str) -> ModelId {
        ModelId { head: Fingerprint::of(head.as_bytes()), base: Fingerprint::of(base.as_bytes()) }
    }

    fn runs(state: &ModelStore, pair: ModelId) -> Result<()> {
        state.update(|record| {
            record.run(pair);
            Ok(())
        })
    }

    fn file(folder: &Path, content: &str) -> SignedFile {
        let path = folder.join("file");
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
            // Another key that is trusted beside the first is bound by the same versions.
            assert_eq!(check(&record, by(new, version), digest, &[old, new]), good, "{version}");
        }
        // Bases count by themselves.
        assert!(record.check(ModelPart::Base, by(old, 1), b, [old].into_iter()).is_ok());
        // A stolen key signs the highest number there is; without it the others go on.
        record.accept(ModelPart::Head, by(old, u64::MAX), b);
        assert!(!check(&record, by(new, 9), a, &[old, new]));
        assert!(check(&record, by(new, 9), a, &[new]));
    }

    #[test]
    fn rolling_back_holds_what_ran_and_twice_is_there_and_back() {
        let [a, b, c] = ["a", "b", "c"].map(|head| pair(head, "base"));
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
        let folder = tempfile::tempdir().unwrap();
        let state = ModelStore::open(&folder.path().join("state")).unwrap();
        assert_eq!(state.read().unwrap().current, None);
        runs(&state, pair("a", "base")).unwrap();
        let stamp = || {
            std::fs::metadata(state.record_path())
                .map(|m| std::os::unix::fs::MetadataExt::ino(&m))
                .unwrap()
        };
        let before = stamp();
        runs(&state, pair("a", "base")).unwrap();
        assert_eq!(stamp(), before);
        assert_eq!(state.read().unwrap().current, Some(pair("a", "base")));
        let failed = state.update::<()>(|record| {
            record.run(pair("b", "base"));
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
            assert!(runs(&state, pair("b", "base")).is_err());
            assert_eq!(std::fs::read_to_string(state.record_path()).unwrap(), damage);
        }
    }

    #[test]
    fn copies_go_by_content_and_are_swept_when_nobody_needs_them() {
        let folder = tempfile::tempdir().unwrap();
        let state = ModelStore::open(&folder.path().join("state")).unwrap();
        let [head, newer, newest, base] =
            ["h1", "h2", "h3", "b"].map(|content| file(folder.path(), content));
        for head in [&head, &newer, &newest] {
            state.keep(ModelPart::Head, head).unwrap();
            state.keep(ModelPart::Base, &base).unwrap();
            runs(&state, ModelId { head: head.digest, base: base.digest }).unwrap();
        }
        std::fs::write(state.folder().join("kept/.vgg-edge-x.tmp"), "torn").unwrap();
        state.sweep();
        let names = std::fs::read_dir(state.folder().join("kept")).unwrap().count();
        assert_eq!(names, 6, "two heads and a base, each with its signature");
        assert!(!state.kept(ModelPart::Head, head.digest).exists());
        let found = state.read_kept(ModelPart::Head, newest.digest, 100).unwrap();
        assert_eq!(
            (found.bytes, found.signature),
            (newest.bytes.clone(), newest.signature.clone())
        );
        // A card that rots is found out, and mended by the next copy.
        std::fs::write(&found.path, "h4").unwrap();
        assert!(state.read_kept(ModelPart::Head, newest.digest, 100).is_err());
        state.keep(ModelPart::Head, &newest).unwrap();
        assert!(state.read_kept(ModelPart::Head, newest.digest, 100).is_ok());
    }

    #[test]
    fn one_run_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let state = ModelStore::open(folder.path()).unwrap();
        let claim = state.claim().unwrap();
        assert!(state.is_running());
        assert!(state.claim().unwrap_err().to_string().contains("another edge run"));
        // Not in the way of a change.
        runs(&state, pair("a", "b")).unwrap();
        drop(claim);
        assert!(!state.is_running());
    }
}
