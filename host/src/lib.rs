//! Trains image classifiers on the frozen, quantized VGG16 base: the library behind the program
//! `host`.
//!
//! [`dataset`] lists labeled images, [`features`] runs them through the backbone, [`trainer`] fits
//! dense layers to the feature maps, and [`train`] puts these together into a head file.
//! [`augment`] makes random variants of images, [`metrics`] measures heads, and [`cli`] is the
//! command line. Work takes settings objects and a cancellation token, never flags or signals.

pub mod augment;
mod checkpoint;
pub mod cli;
pub mod dataset;
pub mod features;
mod labeling;
pub mod metrics;
pub mod progress;
mod report;
pub mod train;
pub mod trainer;

/// Name of the program, in messages and in the files it writes.
pub const PROGRAM: &str = "host";
