//! Implementations of the instruction sets, one file each. A module exists on its architecture
//! only.

#[cfg(target_arch = "aarch64")]
pub(in crate::kernels) mod aarch64;
#[cfg(all(target_arch = "arm", vgg_edge_neon))]
pub(in crate::kernels) mod arm;
pub(in crate::kernels) mod portable;
#[cfg(target_arch = "x86_64")]
pub(in crate::kernels) mod x86_64;
