//! Errors of a labeling session.

use std::io;
use std::path::PathBuf;

use vgg_edge::head::MAX_LABELS;

use super::LABELS;
use super::class_name::ClassNameError;

/// Why a request of the user was refused or failed, as a sentence for the page.
///
/// Unless the variant says otherwise, the image is where it was.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A directory or file that cannot be opened, created, listed or read.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The action, an infinitive.
        action: &'static str,
        /// The directory or file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The images are inside the data directory.
    #[error(
        "{} is inside {}, where host train would take it for a class; choose another directory \
         with --to",
        directory.display(),
        data.display()
    )]
    InsideData {
        /// The directory of images.
        directory: PathBuf,
        /// The data directory.
        data: PathBuf,
    },
    /// A name that a class cannot have.
    #[error(transparent)]
    ClassName(#[from] ClassNameError),
    /// One of the given names is not possible.
    #[error("class {class:?}: {source}")]
    GivenClass {
        /// The name.
        class: String,
        /// The reason.
        source: ClassNameError,
    },
    /// More classes than a head can have.
    #[error("{0} classes; a head has at most {MAX_LABELS}")]
    TooManyClasses(usize),
    /// A new class that differs from another one by case only.
    #[error("there is already a class {0}, which is easily confused with the new one")]
    SimilarClass(String),
    /// A class that was not offered.
    #[error("there is no class {0}")]
    UnknownClass(String),
    /// A second decision on an image.
    #[error("this image has already been labeled, perhaps in another window")]
    AlreadyDecided,
    /// An image that has vanished.
    #[error(
        "{file} is no longer in {}: another program has moved or removed it",
        directory.display()
    )]
    Gone {
        /// The image.
        file: String,
        /// The directory of images.
        directory: PathBuf,
    },
    /// An image that could not be moved.
    #[error("{file} could not be moved and stays where it was: {source}")]
    NotMoved {
        /// The image.
        file: String,
        /// The error of the system.
        source: io::Error,
    },
    /// A decision that could not be logged, and was taken back.
    #[error(
        "{LABELS} in {} cannot be written: {source}; {file} stays where it was",
        directory.display()
    )]
    NotLogged {
        /// The image.
        file: String,
        /// The directory of the log.
        directory: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A decision that could not be logged, nor taken back: the image is moved.
    #[error(
        "{LABELS} in {} cannot be written: {source}; {file} was moved nevertheless, and cannot be \
         moved back: {back}",
        directory.display()
    )]
    NotMovedBack {
        /// The image.
        file: String,
        /// The directory of the log.
        directory: PathBuf,
        /// The error of the log.
        source: io::Error,
        /// The error of moving back.
        back: io::Error,
    },
    /// No step is left.
    #[error("there is nothing to undo")]
    NothingToUndo,
    /// A step whose result has vanished.
    #[error("{0} is no longer where it was moved to, so this step cannot be undone")]
    NotUndoable(String),
    /// A step that could not be undone now.
    #[error("{file} could not be moved back: {reason}")]
    UndoFailed {
        /// The image.
        file: String,
        /// The error.
        reason: UndoError,
    },
    /// A step that was undone, but not logged.
    #[error("{file} is back, but {LABELS} cannot be written: {source}")]
    UndoNotLogged {
        /// The image.
        file: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// Why an image could not be moved back.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// The name is taken again.
    #[error("there is a new file of this name")]
    NameTaken,
    /// The error of the system.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for UndoError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AlreadyExists => Self::NameTaken,
            _ => Self::Io(error),
        }
    }
}
