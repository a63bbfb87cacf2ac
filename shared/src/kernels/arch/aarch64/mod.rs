//! Instruction sets of 64-bit ARM.

pub(in crate::kernels) mod neon;
pub(in crate::kernels) mod sdot;
