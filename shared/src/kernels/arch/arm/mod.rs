//! Instruction sets of 32-bit ARM.

pub(in crate::kernels) mod neon;
