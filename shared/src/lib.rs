//! Exact int8 VGG16 image classification.
//!
//! A *backbone* is the convolutional part of VGG16 in int8, an ONNX file (`--base` on the command
//! line). A *head* is a small classifier on the backbone's feature map, trained with `host train`.
//! A [`Classifier`] joins both:
//!
//! ```
//! use vgg_edge::{Backbone, Classifier, Head, Image};
//!
//! # fn main() -> vgg_edge::Result<()> {
//! # let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
//! # let directory = tempfile::tempdir().unwrap();
//! # for (from, to) in [
//! #     ("models", "models"),
//! #     ("shared/src/head/format2.postcard", "surfaces.head"),
//! #     ("samples/surfaces/val/brick/000.jpg", "wall.jpg"),
//! # ] {
//! #     std::os::unix::fs::symlink(root.join(from), directory.path().join(to)).unwrap();
//! # }
//! # std::env::set_current_dir(&directory).unwrap();
//! let backbone = Backbone::open("models/vgg16-notop-int8.onnx")?;
//! let head = Head::open("surfaces.head")?;
//! let mut classifier = Classifier::new(&backbone, head)?;
//!
//! let image = Image::open("wall.jpg")?;
//! let result = classifier.classify(&image)?;
//! println!("{} {:.3}", result.label, result.score);
//! # assert_eq!(result.scores.len(), 3);
//! # Ok(())
//! # }
//! ```
//!
//! # From image to decision
//!
//! | step | type | result |
//! |---|---|---|
//! | decode | [`Image`], or [`pixel::RawFrame`] for camera formats | RGB8 or raw rows |
//! | crop, resize, quantize | [`preprocess::Quantizer`] | u8 `[3, size, size]` |
//! | convolutions | [`Backbone`], [`backbone::Runner`] | u8 `[size / 32, size / 32, 512]` |
//! | dense layers | [`Head`] | one score per label, 0 to 1 |
//! | threshold | [`Head::decide`] | a label, or [`head::UNKNOWN`] |
//!
//! # Exactness
//!
//! The same file, image and head give the same bits on every CPU, with every [`Kernel`], every
//! number of threads and every batch size: decoding, resizing and convolutions use integers, and
//! the sums of the head have a fixed order.
//!
//! # Conventions
//!
//! The library does not print and has no settings of its own. Two functions read environment
//! variables, and no others: [`Kernel::detect`] and [`backbone::find`]. Every file is written
//! atomically ([`durable_fs`]); every file that is read has a size limit. Fallible functions return
//! [`Error`], whose `Display` is one line for users.
//!
//! Runnable programs are in `shared/examples`: `classify_image`, `classify_raw_frames`, `batch` and
//! `features`.

pub mod backbone;
pub mod classifier;
pub mod container;
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
