//! From the weights of a VGG16 to the exact int8 base.
//!
//! [`import`] reads weights as Keras, torchvision and ONNX exporters write them into a
//! [`FloatBase`]; [`quantize`](quantize::quantize) makes integers of it with the help of
//! calibration pictures; [`onnx`] writes either; [`compare`] tells what was lost.
//!
//! Every step gives the same bits on every CPU and with every number of threads: f32 sums run in a
//! fixed order ([`float`]), statistics are integers or sums in the order of the pictures, and the
//! linear algebra is our own f64 code without fused multiply-add ([`linalg`]). The same weights and
//! pictures give the same file.

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

pub use error::{Error, Result};
pub use weights::{FloatBase, FloatLayer, Normalization};
