//! Errors of the library: one line each, with the file, the problem and a remedy.

use std::path::{Path, PathBuf};

use crate::Fingerprint;
use crate::container::EnvelopeError;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The errors of this crate. `Display` gives one line for the user of a program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The operation, as a verb: "read", "write".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The bytes are not an image in a supported format, or the image cannot be used as asked.
    #[error("not a readable image: {0}")]
    Image(String),
    /// The image is larger than the decoder allows.
    #[error(
        "image of {width}x{height} is too large: at most {} pixels and {} per side; \
         scale it down first",
        crate::image::decode::MAX_PIXELS,
        crate::image::decode::MAX_SIDE
    )]
    ImageTooLarge {
        /// Width in pixels, as the file declares it.
        width: u64,
        /// Height in pixels, as the file declares it.
        height: u64,
    },
    /// The description of a raw frame's layout cannot be parsed.
    #[error("{0}")]
    Layout(String),
    /// The ONNX file cannot be used as a backbone ("base").
    #[error("{path}: not a usable base: {reason}")]
    Base {
        /// The ONNX file.
        path: PathBuf,
        /// The part that is missing or wrong.
        reason: String,
    },
    /// The head belongs to another backbone.
    #[error(
        "head was trained on base {wanted}, but {path} is base {found}; \
         use the base it was trained on (--base) or train again"
    )]
    WrongBase {
        /// The base file in use.
        path: PathBuf,
        /// Fingerprint in the head.
        wanted: Fingerprint,
        /// Fingerprint of the base in use.
        found: Fingerprint,
    },
    /// The head file cannot be used.
    #[error("{path}: {source}")]
    HeadFile {
        /// The head file.
        path: PathBuf,
        /// The reason.
        source: HeadFileError,
    },
    /// The signature of a file is missing or not valid.
    #[error("{path}: not trusted: {reason}")]
    Untrusted {
        /// The head or base.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The file does not hold a public key.
    #[error("{path}: not a public key; create keys with host keygen or minisign -G")]
    PublicKey {
        /// The file.
        path: PathBuf,
    },
    /// The backbone does not allow the input size.
    #[error(
        "input size {size} is not allowed by the base: \
         use a multiple of {multiple} from {min} to {max}"
    )]
    Size {
        /// The requested size in pixels.
        size: u32,
        /// Allowed sizes are multiples of this.
        multiple: u32,
        /// Smallest allowed size.
        min: u32,
        /// Largest allowed size.
        max: u32,
    },
    /// The kernel does not exist, or the CPU cannot run it.
    #[error("{0}")]
    Kernel(String),
    /// The engine failed on a graph that it had accepted: a defect, with the engine's message.
    #[error("the inference engine failed: {0}")]
    Engine(String),
}

/// The reasons why a head file cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeadFileError {
    /// The magic bytes are missing.
    #[error("not a head file (no VGGEHEAD at its start); make one with `host train`")]
    Magic,
    /// The format version is not supported.
    #[error(
        "head file of format {found}, but this program reads formats up to {wanted}; \
         train the head again with this version"
    )]
    Version {
        /// Version in the file.
        found: u32,
        /// Version this program writes, the newest it reads.
        wanted: u32,
    },
    /// The file is truncated, or has bytes after its end.
    #[error(
        "head file is truncated or has trailing bytes: \
         {found} bytes instead of {expected}; copy it again"
    )]
    Length {
        /// Length according to the header, in bytes.
        expected: u64,
        /// Length of the file, in bytes.
        found: u64,
    },
    /// The file is larger than any head may be.
    #[error("head file of {found} bytes is over the limit of {limit}")]
    TooLarge {
        /// Length in bytes.
        found: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The checksum does not match: the file was altered.
    #[error("head file is damaged (its checksum does not match); copy it again")]
    Checksum,
    /// The payload does not decode, or its parts contradict each other.
    #[error("head file is inconsistent: {0}")]
    Inconsistent(String),
}

impl From<EnvelopeError> for HeadFileError {
    fn from(error: EnvelopeError) -> Self {
        match error {
            EnvelopeError::Magic => Self::Magic,
            EnvelopeError::Version { found, newest, .. } => Self::Version { found, wanted: newest },
            EnvelopeError::Length { expected, found } => Self::Length { expected, found },
            EnvelopeError::TooLarge { found, limit } => Self::TooLarge { found, limit },
            EnvelopeError::Checksum => Self::Checksum,
        }
    }
}

impl Error {
    /// Returns a constructor of [`Error::Io`] for `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
