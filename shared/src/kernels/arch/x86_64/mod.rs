//! Instruction sets of x86-64.

pub(in crate::kernels) mod avx2;
