//! Instruction sets, one file each.

#[cfg(target_arch = "aarch64")]
pub(in crate::kernels) mod aarch64;
#[cfg(all(target_arch = "arm", vgg_edge_neon))]
pub(in crate::kernels) mod arm;
pub(in crate::kernels) mod portable;
#[cfg(target_arch = "x86_64")]
pub(in crate::kernels) mod x86_64;
