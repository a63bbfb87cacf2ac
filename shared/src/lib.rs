//! What `host` and `edge` must agree on, to the bit.
//!
//! The way of a picture: [`decode`] turns file bytes into a [`Frame`]; [`contract::Preprocess`] crops, resizes and
//! quantises it; [`Base`] maps the quantised input to a feature map; [`head::Head`] maps that to scores and a
//! decision. `ARCHITECTURE.md` fixes the arithmetic of each step in words.

pub mod base;
pub mod cli;
pub mod contract;
pub mod conv;
pub mod decode;
mod error;
pub mod fingerprint;
pub mod frame;
pub mod fs;
pub mod head;
pub mod options;
pub mod pipeline;
pub mod pixels;
pub mod resize;
pub mod result;
mod simd;
pub mod trust;

pub use base::Base;
pub use error::{Error, HeadFileError, Result};
pub use fingerprint::Fingerprint;
pub use frame::Frame;
pub use head::Head;
