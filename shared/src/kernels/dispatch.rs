//! Which code runs: found by CPU features, overridden by name.

use crate::{Error, Result};

/// The environment variable that overrides [`Kernel::detect`].
pub const KERNEL_VARIABLE: &str = "VGG_EDGE_KERNEL";

/// An implementation of the convolutions. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Plain Rust, for any CPU.
    Portable,
    /// x86-64 with AVX2: i16 multiply-add of pairs.
    Avx2,
    /// ARM's Advanced SIMD: i16 widening multiply-accumulate. On aarch64 (ARMv8.0), and on 32 bits
    /// in programs that are compiled for it.
    Neon,
    /// aarch64 with the dot product extension (ARMv8.2).
    Sdot,
}

impl Kernel {
    /// All kernels, slowest first, whether or not this CPU has them.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Neon, Self::Sdot];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Sdot => "sdot",
        }
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => crate::kernels::arch::x86_64::avx2::Avx2::new().is_some(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => crate::kernels::arch::aarch64::neon::Neon::new().is_some(),
            #[cfg(all(target_arch = "arm", vgg_edge_neon))]
            Self::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Self::Sdot => {
                crate::kernels::arch::aarch64::neon::Neon::new().is_some()
                    && crate::kernels::arch::aarch64::sdot::Sdot::new().is_some()
            }
            #[allow(
                unreachable_patterns,
                reason = "which kernels are left depends on the architecture"
            )]
            _ => false,
        }
    }

    /// The kernels this CPU can run, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kernel| kernel.is_available())
    }

    /// The kernel of that name.
    ///
    /// # Errors
    /// [`Error::Kernel`] for a name that does not exist or a kernel that this CPU lacks.
    pub fn from_name(name: &str) -> Result<Self> {
        let names = |list: &mut dyn Iterator<Item = Self>| {
            list.map(Self::name).collect::<Vec<_>>().join(", ")
        };
        let Some(kernel) = Self::ALL.into_iter().find(|kernel| kernel.name() == name) else {
            return Err(Error::Kernel(format!(
                "no kernel is called {name:?}; there are {}",
                names(&mut Self::ALL.into_iter())
            )));
        };
        if kernel.is_available() {
            Ok(kernel)
        } else {
            Err(Error::Kernel(format!(
                "this CPU cannot run the kernel {name:?}; it can run {}",
                names(&mut Self::available())
            )))
        }
    }

    /// The kernel that [`KERNEL_VARIABLE`] names, else the best one for this CPU.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the variable names one that cannot be run: an override never falls back
    /// silently.
    pub fn detect() -> Result<Self> {
        match std::env::var(KERNEL_VARIABLE) {
            Ok(name) if !name.is_empty() => {
                Self::from_name(&name).map_err(|e| Error::Kernel(format!("{KERNEL_VARIABLE}: {e}")))
            }
            _ => Ok(Self::available().last().unwrap_or(Self::Portable)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_refusals() {
        for kernel in Kernel::available() {
            assert_eq!(Kernel::from_name(kernel.name()).unwrap(), kernel);
        }
        assert!(
            Kernel::from_name("fast")
                .unwrap_err()
                .to_string()
                .contains("there are portable, avx2, neon, sdot")
        );
        let missing = Kernel::ALL.into_iter().find(|kernel| !kernel.is_available()).unwrap();
        assert!(Kernel::from_name(missing.name()).unwrap_err().to_string().contains("cannot run"));
    }
}
