//! The quantized 3x3 convolutions of the backbone: algorithms that are generic over the instruction
//! set, and one small file for each instruction set.
//!
//! [`Stack`] runs a chain of [`ConvLayer`]s, each with ReLU and, where requested, 2x2 max pooling.
//! The arithmetic is specified in `docs/exactness.md`; [`algo::reference`] is that specification in
//! code, and every kernel is tested against it.
//!
//! Each module uses only modules above it in this list:
//!
//! | module | contents |
//! |---|---|
//! | `layout` | constants, feature maps, types and orders of packed data |
//! | `layer` | [`ConvLayer`] and its checks |
//! | `requantize` | requantization in portable code |
//! | `isa` | the operations that an instruction set provides, as traits |
//! | `packed` | a layer packed for a kernel, the parameters of a run |
//! | `algo` | `winograd`, `dot`, `direct`, generic over the instruction set; [`algo::reference`] |
//! | `arch` | the implementations of the traits of `isa`, one file for each instruction set |
//! | `algorithm` | [`Algorithm`] and where each is exact |
//! | `dispatch` | [`Kernel`]: the list of implementations, and which of them the CPU has |
//! | `stack` | [`Stack`] |

pub mod algo;
mod algorithm;
mod arch;
mod dispatch;
#[cfg(test)]
mod imports;
mod isa;
mod layer;
mod layout;
mod packed;
mod requantize;
mod stack;
#[cfg(test)]
pub(crate) mod tests;

pub use algorithm::Algorithm;
pub use dispatch::{KERNEL_VARIABLE, Kernel};
pub use layer::{ConvLayer, LayerError};
pub use stack::{Arena, Batch, Stack};
