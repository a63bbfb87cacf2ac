//! Convolution algorithms, generic over the instruction set.

pub(in crate::kernels) mod direct;
pub(in crate::kernels) mod dot;
pub mod reference;
pub(in crate::kernels) mod winograd;
