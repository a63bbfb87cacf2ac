//! Errors of the shared crate: one line that says what, where, and what to do.

use std::path::{Path, PathBuf};

use crate::Fingerprint;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, worded for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// What was tried, as a verb: "read", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The bytes are not a picture in a format that is supported.
    #[error("not a readable picture: {0}")]
    Picture(String),
    /// The picture is larger than the decoder allows.
    #[error(
        "picture of {width}x{height} is too large: at most {} pixels and {} a side; scale it down first",
        crate::image::decode::MAX_PIXELS,
        crate::image::decode::MAX_SIDE
    )]
    PictureTooLarge {
        /// Width in pixels, as the file declares it.
        width: u64,
        /// Height in pixels, as the file declares it.
        height: u64,
    },
    /// The ONNX file is not a base that this program can run.
    #[error("{path}: not a usable base: {reason}")]
    Base {
        /// The ONNX file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The head belongs to another base.
    #[error(
        "head was trained on base {wanted}, but {path} is base {found}; use the base it was trained on (--base) or train again"
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
        /// What is wrong with it.
        source: HeadFileError,
    },
    /// The file is not signed as it must be.
    #[error("{path}: not trusted: {reason}")]
    Untrusted {
        /// The head or base.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is no public key.
    #[error("{path}: not a public key; host keygen and minisign -G write them")]
    PublicKey {
        /// The file.
        path: PathBuf,
    },
    /// The size is not one that the base allows.
    #[error(
        "input size {size} is not allowed by the base: take a multiple of {multiple} from {min} to {max}"
    )]
    Size {
        /// What was asked for, in pixels.
        size: u32,
        /// Sizes are multiples of this.
        multiple: u32,
        /// Smallest size.
        min: u32,
        /// Largest size.
        max: u32,
    },
    /// The kernel name is not known, or the CPU cannot run it.
    #[error("{0}")]
    Kernel(String),
    /// The engine failed on a graph that it had accepted: a defect, told with its text.
    #[error("the inference engine failed: {0}")]
    Engine(String),
}

/// What can be wrong with a head file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeadFileError {
    /// The first bytes are not those of a head file.
    #[error("not a head file (no VGGEHEAD at its start); make one with `host train`")]
    Magic,
    /// The format is of another version.
    #[error(
        "head file of format {found}, but this program reads formats up to {wanted}; train the head again with this version"
    )]
    Version {
        /// Version in the file.
        found: u32,
        /// Version this program writes, the newest it reads.
        wanted: u32,
    },
    /// The file ends before it should, or goes on after.
    #[error(
        "head file is cut or has bytes too many: {expected} bytes announced, {found} there; copy it again"
    )]
    Length {
        /// Bytes that the header announces in all.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// The file is larger than any head may be.
    #[error("head file of {found} bytes is over the limit of {limit}")]
    TooLarge {
        /// Bytes announced or found.
        found: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The checksum does not match: a bit has flipped.
    #[error("head file is damaged (its checksum does not match); copy it again")]
    Checksum,
    /// The payload does not decode, or its parts contradict each other.
    #[error("head file is inconsistent: {0}")]
    Inconsistent(String),
}

impl Error {
    /// An [`Error::Io`] maker for `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
