//! Names that a class may have.

use crate::dataset;

/// Maximum length of a class name, in bytes: file systems take 255.
pub const MAX_BYTES: usize = 120;

/// Why a name cannot be a class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClassNameError {
    /// An empty name.
    #[error("a class needs a name")]
    Empty,
    /// Whitespace around the name.
    #[error("a class name must not start or end with a space")]
    Space,
    /// A hidden directory.
    #[error("a class name must not start with a dot: such directories are hidden")]
    Hidden,
    /// A path, or control characters.
    #[error("a class name must be a directory name, without slashes and control characters")]
    NotAName,
    /// Too long for file systems.
    #[error("a class name has at most {MAX_BYTES} bytes")]
    TooLong,
    /// A name that would make the data directory a split one.
    #[error("{0} cannot be a class name: host train takes such a directory for a data split")]
    Split(String),
}

/// Checks that a class may have this name.
///
/// # Errors
/// [`ClassNameError`].
pub fn check_class(name: &str) -> Result<(), ClassNameError> {
    if name.trim().is_empty() {
        Err(ClassNameError::Empty)
    } else if name.trim() != name {
        Err(ClassNameError::Space)
    } else if name.starts_with('.') {
        Err(ClassNameError::Hidden)
    } else if name.contains(['/', '\\']) || name.chars().any(char::is_control) {
        Err(ClassNameError::NotAName)
    } else if name.len() > MAX_BYTES {
        Err(ClassNameError::TooLong)
    } else if dataset::is_training_name(name) {
        Err(ClassNameError::Split(name.to_owned()))
    } else {
        Ok(())
    }
}
