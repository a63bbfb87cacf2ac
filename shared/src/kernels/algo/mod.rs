//! Convolution algorithms, generic over the instruction set.

pub(in crate::kernels) mod direct;
#[cfg_attr(
    not(any(test, target_arch = "aarch64")),
    allow(dead_code, reason = "only aarch64 has an instruction set for it")
)]
pub(in crate::kernels) mod dot;
pub mod reference;
pub(in crate::kernels) mod winograd;
