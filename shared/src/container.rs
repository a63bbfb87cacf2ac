//! The envelope of binary files: magic bytes, format version, payload, checksum.
//!
//! ```text
//! magic      8 bytes
//! version    u32, little-endian
//! length     u64, little-endian: bytes of the payload (only if `has_length`)
//! payload
//! checksum   SHA-256 of everything before it, 32 bytes
//! ```
//!
//! Heads use all of it. Checkpoints have no length. Feature files have several checksummed
//! sections after the first payload, so they use the header only.

use std::path::Path;

use crate::{Fingerprint, Result, durable_fs};

/// Length of the checksum, in bytes.
pub const CHECKSUM_LEN: usize = 32;

/// Length of the magic bytes and the version, in bytes.
const PREFIX_LEN: usize = 8 + 4;

/// The layout of one kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The first bytes of every file of this kind.
    pub magic: [u8; 8],
    /// The version that is written, and the newest that is read.
    pub version: u32,
    /// The oldest version that is read.
    pub oldest: u32,
    /// Whether the header holds the length of the payload.
    pub has_length: bool,
    /// Upper limit of the file length, in bytes.
    pub max_len: u64,
}

/// The reasons why bytes are not a valid file of an [`Envelope`].
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The magic bytes are missing: the file is of another kind.
    #[error("a file of another kind")]
    Magic,
    /// The format version is not supported.
    #[error("format {found}, but this program reads formats {oldest} to {newest}")]
    Version {
        /// Version in the file.
        found: u32,
        /// The oldest version that is read.
        oldest: u32,
        /// The newest version that is read.
        newest: u32,
    },
    /// The file is truncated, or has bytes after its end.
    #[error("truncated or with trailing bytes: {found} bytes instead of {expected}")]
    Length {
        /// Length according to the header; without a length in the header the least possible.
        expected: u64,
        /// Length of the file, in bytes.
        found: u64,
    },
    /// The file is longer than [`Envelope::max_len`].
    #[error("{found} bytes are over the limit of {limit}")]
    TooLarge {
        /// Length in bytes.
        found: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The checksum does not match: the file was altered.
    #[error("its checksum does not match")]
    Checksum,
}

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version of the file, within the supported range.
    pub version: u32,
    /// The length of the payload in bytes, if the header holds it. It is not checked.
    pub payload_len: Option<u64>,
}

impl Envelope {
    /// Length of the header, in bytes.
    pub const fn header_len(&self) -> usize {
        if self.has_length { PREFIX_LEN + 8 } else { PREFIX_LEN }
    }

    /// Returns the version of bytes that start with the magic bytes, supported or not.
    pub fn version_of(&self, bytes: &[u8]) -> Option<u32> {
        let version = bytes.strip_prefix(&self.magic)?.first_chunk()?;
        Some(u32::from_le_bytes(*version))
    }

    /// Returns a header; `payload_len` is ignored if the header does not hold it.
    pub fn header(&self, payload_len: u64) -> Vec<u8> {
        let mut header = [&self.magic[..], &self.version.to_le_bytes()].concat();
        if self.has_length {
            header.extend_from_slice(&payload_len.to_le_bytes());
        }
        header
    }

    /// Parses the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`EnvelopeError::Magic`]; [`EnvelopeError::Length`] if `bytes` end within the header;
    /// [`EnvelopeError::Version`].
    pub fn parse_header(&self, bytes: &[u8]) -> Result<Header, EnvelopeError> {
        if !bytes.starts_with(&self.magic) {
            return Err(EnvelopeError::Magic);
        }
        let truncated = EnvelopeError::Length {
            expected: (self.header_len() + CHECKSUM_LEN) as u64,
            found: bytes.len() as u64,
        };
        let header = bytes.get(..self.header_len()).ok_or(truncated)?;
        let version = self.version_of(header).ok_or(truncated)?;
        if !(self.oldest..=self.version).contains(&version) {
            let (oldest, newest) = (self.oldest, self.version);
            return Err(EnvelopeError::Version { found: version, oldest, newest });
        }
        let payload_len =
            header[PREFIX_LEN..].first_chunk().map(|length| u64::from_le_bytes(*length));
        Ok(Header { version, payload_len })
    }

    /// Returns the bytes of a file. `fill` appends the payload to the header that it is given.
    ///
    /// # Errors
    /// [`EnvelopeError::TooLarge`], and the errors of `fill`.
    pub fn encode<E: From<EnvelopeError>>(
        &self,
        fill: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let mut bytes = fill(self.header(0))?;
        let header = self.header((bytes.len() - self.header_len()) as u64);
        bytes[..header.len()].copy_from_slice(&header);
        let checksum = Fingerprint::of(&bytes);
        bytes.extend_from_slice(&checksum.0);
        let found = bytes.len() as u64;
        if found > self.max_len {
            return Err(EnvelopeError::TooLarge { found, limit: self.max_len }.into());
        }
        Ok(bytes)
    }

    /// Checks the bytes of a file, and returns its version and payload.
    ///
    /// The version is checked before length and checksum, so that a file of another version is
    /// reported as such.
    ///
    /// # Errors
    /// [`EnvelopeError`], one variant for each kind of damage.
    pub fn decode<'a>(&self, bytes: &'a [u8]) -> Result<(u32, &'a [u8]), EnvelopeError> {
        let header = self.parse_header(bytes)?;
        let found = bytes.len() as u64;
        let least = (self.header_len() + CHECKSUM_LEN) as u64;
        let expected = match header.payload_len {
            Some(payload_len) => payload_len.saturating_add(least),
            None => found.max(least),
        };
        if expected > self.max_len {
            return Err(EnvelopeError::TooLarge { found: expected, limit: self.max_len });
        }
        if expected != found {
            return Err(EnvelopeError::Length { expected, found });
        }
        let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_LEN);
        if Fingerprint::of(content).0 != checksum {
            return Err(EnvelopeError::Checksum);
        }
        Ok((header.version, &content[self.header_len()..]))
    }

    /// Reads a whole file of at most [`Envelope::max_len`] bytes; [`Envelope::decode`] checks it.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn read(&self, path: &Path) -> Result<Vec<u8>> {
        durable_fs::read_limited(path, self.max_len)
    }

    /// Writes the bytes of [`Envelope::encode`] atomically.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        debug_assert!(bytes.starts_with(&self.magic));
        durable_fs::write_bytes(path, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Envelope =
        Envelope { magic: *b"ENVELOPE", version: 3, oldest: 2, has_length: true, max_len: 60 };
    const SHORT: Envelope = Envelope { has_length: false, ..FULL };

    fn encode(envelope: &Envelope, payload: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
        envelope.encode(|mut bytes| {
            bytes.extend_from_slice(payload);
            Ok(bytes)
        })
    }

    #[test]
    fn the_layout_is_as_documented() {
        let content = [&b"ENVELOPE\x03\0\0\0\x05\0\0\0\0\0\0\0hello"[..]].concat();
        let expected = [&content[..], &Fingerprint::of(&content).0].concat();
        assert_eq!(encode(&FULL, b"hello").unwrap(), expected);
        let content = b"ENVELOPE\x03\0\0\0hello";
        let expected = [&content[..], &Fingerprint::of(content).0].concat();
        assert_eq!(encode(&SHORT, b"hello").unwrap(), expected);
    }

    #[test]
    fn damage_to_an_envelope_is_found() {
        for envelope in [FULL, SHORT] {
            let good = encode(&envelope, b"hello").unwrap();
            assert_eq!(envelope.decode(&good), Ok((3, &b"hello"[..])));
            assert_eq!(envelope.version_of(&good), Some(3));
            for len in 0..good.len() {
                envelope.decode(&good[..len]).unwrap_err();
            }
            for at in 0..good.len() {
                let mut bytes = good.clone();
                bytes[at] ^= 1;
                let error = envelope.decode(&bytes).err();
                match at {
                    0..8 => assert_eq!(error, Some(EnvelopeError::Magic)),
                    // Version 2 is read as well, so only the checksum finds it.
                    8 => assert_eq!(error, Some(EnvelopeError::Checksum)),
                    9..12 => assert!(matches!(error, Some(EnvelopeError::Version { .. }))),
                    _ => assert!(error.is_some()),
                }
            }
        }
    }

    #[test]
    fn envelopes_have_a_limit() {
        assert_eq!(encode(&FULL, &[0; 8]).unwrap().len(), 60);
        let error = EnvelopeError::TooLarge { found: 61, limit: 60 };
        assert_eq!(encode(&FULL, &[0; 9]), Err(error));
        let mut huge = encode(&FULL, b"hello").unwrap();
        huge[12..20].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(FULL.decode(&huge), Err(EnvelopeError::TooLarge { .. })));
    }
}
