//! From the weights of a VGG16 to the exact int8 base.
//!
//! [`import`] reads the files of Keras, torchvision and ONNX exporters into a [`FloatBase`];
//! [`quantize`](quantize::quantize) converts it to integers with calibration images; [`onnx`]
//! writes either; [`compare`] measures the error.
//!
//! Every step gives the same bits on every CPU and with every number of threads: f32 sums have a
//! fixed order ([`float`]), statistics are integers or sums in the order of the images, and the
//! linear algebra is own f64 code without fused multiply-add ([`linalg`]). The same weights and
//! images give the same file.

pub mod calibrate;
pub mod compare;
mod error;
pub mod float;
pub mod import;
pub mod linalg;
pub mod onnx;
pub mod quantize;
pub mod round;
pub mod tail;
#[cfg(test)]
mod tests;
pub mod weights;

pub use error::{Error, Result, WeightsError};
pub use weights::{FloatBase, FloatLayer, Normalization};
