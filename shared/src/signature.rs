//! Signatures of heads and bases: minisign files beside them, and the trusted public keys.
//!
//! `FILE.minisig` has the format of `minisign -S`: ed25519 over the BLAKE2b-512 of the file, and
//! over the trusted comment, which holds the version. A [`SignedFile`] is read once, so that the
//! verified bytes are the ones that are parsed.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minisign_verify::{Error as MinisignError, PublicKey, Signature};

use crate::{Error, Fingerprint, Result};

/// Maximum length of a key or signature file, in bytes.
const MAX_BYTES: u64 = 8192;

/// The number of a key, printed as by minisign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl KeyId {
    /// Parses the number in a key or signature file: its second line has two bytes of algorithm,
    /// then the number.
    fn in_file(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.lines().nth(1)?).ok()?;
        bytes.get(2..10)?.first_chunk().copied().map(Self)
    }
}

/// The facts in the signature of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignatureInfo {
    /// The key of the signature.
    pub key: KeyId,
    /// The version, which increases from file to file.
    pub version: u64,
}

impl fmt::Display for SignatureInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {} by key {}", self.version, self.key)
    }
}

/// The content of a file at one time, with its signature if there is one.
#[derive(Clone, Debug)]
pub struct SignedFile {
    /// The path it was read from.
    pub path: PathBuf,
    /// The whole content.
    pub bytes: Vec<u8>,
    /// SHA-256 of the bytes.
    pub digest: Fingerprint,
    /// The content of the signature file beside it, if there is one.
    pub signature: Option<String>,
}

impl SignedFile {
    /// Reads a file of at most `limit` bytes, and its signature file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Untrusted`] if the signature file is not text.
    pub fn read(path: &Path, limit: u64) -> Result<Self> {
        let bytes = crate::durable_fs::read_limited(path, limit)?;
        let beside = signature_path(path);
        let signature = match crate::durable_fs::read_limited(&beside, MAX_BYTES) {
            Ok(text) => Some(
                String::from_utf8(text)
                    .map_err(|_| untrusted(path, "its signature file is not text"))?,
            ),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(Self { path: path.to_owned(), digest: Fingerprint::of(&bytes), bytes, signature })
    }

    /// Returns the facts in the signature, if it can be parsed, without verifying it.
    pub fn unverified_info(&self) -> Option<SignatureInfo> {
        let text = self.signature.as_deref()?;
        let key = KeyId::in_file(text)?;
        let version = version(Signature::decode(text).ok()?.trusted_comment())?;
        Some(SignatureInfo { key, version })
    }
}

/// Returns the path of the signature of a file: `FILE.minisig`.
pub fn signature_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Returns the trusted comment of a signature: tab-separated fields as in minisign, and `version`.
pub fn comment(timestamp: u64, version: u64, path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A character that ends the line or the field would make the file impossible to verify.
    let name: String = name.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    format!("timestamp:{timestamp}\tfile:{name}\tversion:{version}\thashed")
}

/// Parses the version in a trusted comment: the field `version`, or the `timestamp` that minisign
/// itself writes.
fn version(comment: &str) -> Option<u64> {
    let field = |name: &str| {
        comment.split('\t').find_map(|field| field.strip_prefix(name)?.strip_prefix(':'))
    };
    field("version").or_else(|| field("timestamp"))?.parse().ok()
}

/// The trusted public keys.
#[derive(Clone, Debug)]
pub struct TrustedKeys(Vec<(KeyId, PublicKey)>);

impl TrustedKeys {
    /// Reads public keys, each from a file of `host keygen` or `minisign -G`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::PublicKey`] if a file is not a public key.
    pub fn load<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let load =
            |path: &Path| Self::parse(path, &crate::durable_fs::read_limited(path, MAX_BYTES)?);
        let keys = paths.iter().map(|path| load(path.as_ref())).collect::<Result<Vec<_>>>()?;
        Ok(Self(keys.into_iter().flat_map(|keys| keys.0).collect()))
    }

    /// Parses one key from the bytes of its file; `path` is used in errors only.
    ///
    /// # Errors
    /// [`Error::PublicKey`] if the bytes are not a public key.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        let found = KeyId::in_file(&text).zip(PublicKey::decode(&text).ok());
        found.map(|key| Self(vec![key])).ok_or_else(|| Error::PublicKey { path: path.to_owned() })
    }

    /// Returns the numbers of the keys.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(|(id, _)| *id)
    }

    /// Checks that one of the keys signed the file, and returns which one and the version.
    ///
    /// # Errors
    /// [`Error::Untrusted`] with the reason.
    pub fn verify(&self, file: &SignedFile) -> Result<SignatureInfo> {
        let refuse = |reason: &str| untrusted(&file.path, reason);
        let Some(text) = &file.signature else {
            let beside = signature_path(&file.path);
            return Err(refuse(&format!(
                "it is not signed: there is no {}; sign it with host sign",
                beside.display()
            )));
        };
        let signature = Signature::decode(text)
            .map_err(|_| refuse("its signature file is not in the format of minisign"))?;
        let mut outcome = MinisignError::UnexpectedKeyId;
        for (id, key) in &self.0 {
            match key.verify(&file.bytes, &signature, false) {
                Ok(()) => {
                    let version = version(signature.trusted_comment());
                    let version = version
                        .ok_or_else(|| refuse("its signature has no version; sign it again"))?;
                    return Ok(SignatureInfo { key: *id, version });
                }
                // Another key may match.
                Err(MinisignError::UnexpectedKeyId) => {}
                Err(e) => outcome = e,
            }
        }
        Err(match outcome {
            MinisignError::UnexpectedKeyId => {
                let by = KeyId::in_file(text).map_or("?".into(), |id| id.to_string());
                let ids: Vec<String> = self.ids().map(|id| id.to_string()).collect();
                refuse(&format!("it is signed by key {by}; trusted: {}", ids.join(", ")))
            }
            MinisignError::UnexpectedAlgorithm => refuse(
                "its signature has the legacy format without a hash; sign it again with host sign",
            ),
            _ => refuse(
                "its signature does not match: \
                 the file or its .minisig was altered or is of another version",
            ),
        })
    }
}

fn untrusted(path: &Path, reason: &str) -> Error {
    Error::Untrusted { path: path.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Key and signature from the tests of minisign-verify, made by minisign.
    const KEY: &str = "untrusted comment: minisign public key E7620F1842B4E81F\n\
                       RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key\n\
        RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJy\
        lDOocrCo8KLzZwo=\n\
        trusted comment: timestamp:1556193335\tfile:test\n\
        y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n";
    const LEGACY: &str = "untrusted comment: signature from minisign secret key\n\
        RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC\
        351vwIasSSbXxwA=\n\
        trusted comment: timestamp:1555779966\tfile:test\n\
        QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==\n";

    fn keys(directory: &Path, text: &str) -> Result<TrustedKeys> {
        let path = directory.join("key.pub");
        std::fs::write(&path, text).unwrap();
        TrustedKeys::load(&[path])
    }

    #[test]
    fn signatures_of_minisign_are_verified_and_others_refused() {
        let directory = tempfile::tempdir().unwrap();
        let keys = keys(directory.path(), KEY).unwrap();
        let path = directory.path().join("test");
        let verify = |content: &[u8], signature: Option<&str>| {
            std::fs::write(&path, content).unwrap();
            let beside = signature_path(&path);
            match signature {
                Some(text) => std::fs::write(beside, text).unwrap(),
                None => std::fs::remove_file(beside).unwrap_or_default(),
            }
            let file = SignedFile::read(&path, 100).unwrap();
            keys.verify(&file).map_err(|e| e.to_string())
        };
        let signed = verify(b"test", Some(SIGNATURE)).unwrap();
        assert_eq!(signed.to_string(), "version 1556193335 by key E7620F1842B4E81F");
        let refused = |content: &[u8], signature: Option<&str>, part: &str| {
            let error = verify(content, signature).unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        refused(b"Test", Some(SIGNATURE), "altered");
        refused(b"test", None, "not signed");
        refused(b"test", Some(LEGACY), "legacy format");
        refused(b"test", Some(""), "format of minisign");
        refused(b"test", Some(&SIGNATURE.replace("1556193335", "1556193336")), "altered");
        // The number of the key is not signed; with another number the signature is not that key's.
        refused(b"test", Some(&SIGNATURE.replace("RUQf", "RUQg")), "trusted: E7620F1842B4E81F");
        for cut in 0..SIGNATURE.len() - 2 {
            assert!(verify(b"test", Some(&SIGNATURE[..cut])).is_err(), "{cut}");
        }
    }

    #[test]
    fn files_without_a_public_key_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for wrong in ["", "\n\n", &KEY[..60], SIGNATURE, "no key\nat all\n"] {
            assert!(
                matches!(keys(directory.path(), wrong), Err(Error::PublicKey { .. })),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn signature_versions_are_in_the_trusted_comment() {
        let comment = comment(17, 4, Path::new("x/he\tad\n"));
        assert_eq!(comment, "timestamp:17\tfile:he_ad_\tversion:4\thashed");
        assert_eq!(version(&comment), Some(4));
        assert_eq!(version("timestamp:17\tfile:version"), Some(17));
        for none in [
            "",
            "version:",
            "version:-1\ttimestamp:4",
            "version:99999999999999999999",
            "file:version:3",
        ] {
            assert_eq!(version(none), None, "{none}");
        }
    }

    fn file(bytes: &[u8], signature: &str) -> SignedFile {
        let signature = Some(signature.to_owned());
        SignedFile {
            path: "test".into(),
            bytes: bytes.to_vec(),
            digest: Fingerprint::of(bytes),
            signature,
        }
    }

    proptest! {
        /// A change of the signed lines never gives another version.
        #[test]
        fn a_changed_signature_never_has_another_version(
            at in 54usize..290, to in any::<char>(), second in 54usize..290,
        ) {
            let key = (KeyId::in_file(KEY).unwrap(), PublicKey::decode(KEY).unwrap());
            let keys = TrustedKeys(vec![key]);
            let mut text: Vec<char> = SIGNATURE.chars().collect();
            prop_assert!(text.len() > 290);
            text[at] = to;
            let other = text[second];
            text[at / 2 + 30] = other;
            let text: String = text.into_iter().collect();
            if let Ok(signed) = keys.verify(&file(b"test", &text)) {
                prop_assert_eq!(signed.version, 1_556_193_335);
            }
        }

        #[test]
        fn no_text_makes_signature_parsing_panic(
            key in ".{0,200}(\n.{0,200}){0,4}",
            signature in ".{0,200}(\n.{0,200}){0,6}",
            bytes: Vec<u8>,
        ) {
            prop_assert!(KeyId::in_file(&key).is_none() || PublicKey::decode(&key).is_err());
            let key = (KeyId::in_file(KEY).unwrap(), PublicKey::decode(KEY).unwrap());
            let file = file(&bytes, &signature);
            prop_assert!(file.unverified_info().is_none());
            prop_assert!(TrustedKeys(vec![key]).verify(&file).is_err());
        }
    }
}
