//! Exact int8 VGG16 image classification.
//!
//! The path of an image: [`image::decode`] decodes file bytes to an [`Image`];
//! [`preprocess::Preprocess`] crops, resizes and quantizes it; [`Backbone`] computes the feature
//! map of the quantized input; [`head::Head`] computes scores and a decision from it.

pub mod backbone;
pub mod classifier;
pub mod durable_fs;
mod error;
pub mod fingerprint;
pub mod head;
pub mod image;
pub mod kernels;
mod multiversion;
pub mod pixel;
pub mod preprocess;
pub mod signature;

pub use backbone::Backbone;
pub use classifier::{Classification, Classifier};
pub use error::{Error, HeadFileError, Result};
pub use fingerprint::Fingerprint;
pub use head::Head;
pub use image::Image;
pub use kernels::Kernel;
