//! Errors of this crate: one line each, with the file, the problem and a remedy.

use std::path::PathBuf;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The errors of this crate. `Display` gives one line for the user of a program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read, or another part of the library failed.
    #[error(transparent)]
    Shared(#[from] vgg_edge::Error),
    /// The file does not hold the convolutions of VGG16 in a known format.
    #[error("{path}: {reason}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: WeightsError,
    },
    /// The file does not say how its images were preprocessed.
    #[error(
        "{path}: nothing in it says how images are preprocessed; name it with --preprocess \
         (caffe for Keras, torchvision, tutorial for RGB / 255)"
    )]
    NoPreprocess {
        /// The file.
        path: PathBuf,
    },
    /// The calibration images cannot be used.
    #[error("calibration: {0}")]
    Calibration(String),
    /// The int8 base cannot be split or put together.
    #[error("the int8 base: {0}")]
    Int8Base(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The integer base would not be sound.
    #[error("cannot quantize {layer}: {reason}")]
    Layer {
        /// The layer.
        layer: String,
        /// The reason.
        reason: String,
    },
}

/// The reasons why a file does not hold the weights of VGG16.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file cannot be parsed, or is in another format.
    #[error("{0}")]
    Format(String),
    /// The file holds another network.
    #[error("not VGG16: {0}")]
    NotVgg16(String),
    /// A tensor is missing, of another type, or not readable.
    #[error("{name}: {reason}")]
    Tensor {
        /// The name of the tensor or its layer in the file.
        name: String,
        /// The reason.
        reason: String,
    },
    /// The metadata or the preprocessing is not valid.
    #[error("{0}")]
    Metadata(String),
    /// The model is quantized already.
    #[error("it is quantized already; use the f32 weights")]
    Quantized,
}

impl WeightsError {
    /// Returns an error about a tensor.
    pub(crate) fn tensor(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), reason: reason.into() }
    }
}
