//! Errors of this crate: one line that says what, where, and what to do.

use std::path::PathBuf;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, worded for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, or a part that is shared failed.
    #[error(transparent)]
    Shared(#[from] vgg_edge::Error),
    /// The file does not hold the convolutions of VGG16 in a form that is known.
    #[error("{path}: {reason}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The file does not say how its pictures were pre-processed.
    #[error(
        "{path}: nothing in it says how pictures were pre-processed; name it with --preprocess (caffe for Keras, torchvision, tutorial for RGB / 255)"
    )]
    NoPreprocess {
        /// The file.
        path: PathBuf,
    },
    /// The calibration pictures do not serve.
    #[error("calibration: {0}")]
    Calibration(String),
    /// The caller wants no more.
    #[error("interrupted")]
    Interrupted,
    /// The integer base would not be sound.
    #[error("cannot quantize {layer}: {reason}")]
    Layer {
        /// The layer.
        layer: String,
        /// What is wrong with it.
        reason: String,
    },
}
