//! The kernels by name, and which of them this CPU can run. Only this module knows the
//! implementations of the instruction sets.

#[cfg(target_arch = "aarch64")]
use crate::kernels::arch::aarch64::{neon::Neon, sdot::Sdot};
#[cfg(all(target_arch = "arm", vgg_edge_neon))]
use crate::kernels::arch::arm::neon::Neon;
use crate::kernels::arch::portable::{Portable, PortableDot};
#[cfg(target_arch = "x86_64")]
use crate::kernels::arch::x86_64::avx2::Avx2;
use crate::kernels::isa::{Dot, Isa, NoDot};
use crate::{Error, Result};

/// The environment variable that overrides [`Kernel::detect`].
pub const KERNEL_VARIABLE: &str = "VGG_EDGE_KERNEL";

/// An implementation of the convolutions. All give the same bits.
///
/// A value is the proof that this CPU can run the kernel: a kernel that the CPU lacks cannot be
/// constructed.
///
/// - `portable`: plain Rust, for any CPU.
/// - `avx2`: x86-64 with AVX2; multiply-add of pairs of i16.
/// - `neon`: ARM with Advanced SIMD; widening multiply-accumulate of i16. On aarch64 (ARMv8.0), and
///   on 32 bits in programs that are compiled for it.
/// - `sdot`: aarch64 with the dot product extension (ARMv8.2); dot products of four i8.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Tokens);

/// Defines [`Tokens`] from one line for each kernel, slowest first: its variant, its name, its
/// instruction set and its dot products ([`NoDot`] if it has none), after the condition under which
/// the code is compiled.
macro_rules! kernels {
    ($($(#[$condition:meta])* $variant:ident, $name:literal, $isa:ident, $dot:ident;)*) => {
        /// The instruction set and the dot products of a kernel, each the proof that the CPU has
        /// them.
        #[derive(Clone, Copy, PartialEq, Eq)]
        enum Tokens {
            $($(#[$condition])* $variant($isa, $dot),)*
        }

        impl Tokens {
            const NAMES: &'static [&'static str] = &[$($name),*];

            fn detect(name: &str) -> Option<Self> {
                match name {
                    $(
                        $(#[$condition])*
                        $name => Some(Self::$variant($isa::detect()?, $dot::detect()?)),
                    )*
                    _ => None,
                }
            }

            fn name(self) -> &'static str {
                match self {
                    $($(#[$condition])* Self::$variant(..) => $name,)*
                }
            }

            fn visit<V: Visitor>(self, visitor: V) -> V::Output {
                match self {
                    $($(#[$condition])* Self::$variant(isa, dot) => visitor.visit(isa, dot),)*
                }
            }
        }
    };
}

kernels! {
    Portable, "portable", Portable, PortableDot;
    #[cfg(target_arch = "x86_64")]
    Avx2, "avx2", Avx2, NoDot;
    #[cfg(any(target_arch = "aarch64", all(target_arch = "arm", vgg_edge_neon)))]
    Neon, "neon", Neon, NoDot;
    #[cfg(target_arch = "aarch64")]
    Sdot, "sdot", Neon, Sdot;
}

/// Code that is generic over the parts of a kernel.
pub(super) trait Visitor {
    /// The result of the code.
    type Output;

    /// Runs the code.
    fn visit<I: Isa, D: Dot>(self, isa: I, dot: D) -> Self::Output;
}

impl Kernel {
    /// The kernel in plain Rust, which every CPU can run.
    pub const PORTABLE: Self = Self(Tokens::Portable(Portable, PortableDot));

    /// The names of all kernels, slowest first, whether or not this CPU can run them.
    pub const NAMES: &'static [&'static str] = Tokens::NAMES;

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// The kernels that this CPU can run, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::NAMES.iter().filter_map(|name| Tokens::detect(name).map(Self))
    }

    /// The kernel of that name.
    ///
    /// # Errors
    /// [`Error::Kernel`] for an unknown name or a kernel that this CPU cannot run.
    pub fn from_name(name: &str) -> Result<Self> {
        if let Some(tokens) = Tokens::detect(name) {
            return Ok(Self(tokens));
        }
        Err(Error::Kernel(if Self::NAMES.contains(&name) {
            let available: Vec<_> = Self::available().map(Self::name).collect();
            format!("this CPU cannot run the kernel {name:?}; it can run {}", available.join(", "))
        } else {
            format!("unknown kernel {name:?}; the kernels are {}", Self::NAMES.join(", "))
        }))
    }

    /// The kernel named by [`KERNEL_VARIABLE`], else the fastest that this CPU can run.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the variable names one that cannot be run: an override never falls back
    /// silently.
    pub fn detect() -> Result<Self> {
        match std::env::var(KERNEL_VARIABLE) {
            Ok(name) if !name.is_empty() => {
                Self::from_name(&name).map_err(|e| Error::Kernel(format!("{KERNEL_VARIABLE}: {e}")))
            }
            _ => Ok(Self::available().last().unwrap_or(Self::PORTABLE)),
        }
    }

    /// Runs code that is generic over the parts of the kernel.
    pub(super) fn visit<V: Visitor>(self, visitor: V) -> V::Output {
        self.0.visit(visitor)
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_gives_its_kernel_or_an_error() {
        for name in Kernel::NAMES {
            match Kernel::from_name(name) {
                Ok(kernel) => {
                    assert_eq!(kernel.name(), *name);
                    assert!(Kernel::available().any(|available| available == kernel));
                }
                Err(Error::Kernel(text)) => {
                    assert!(text.contains("this CPU cannot run"), "{text}");
                    assert!(Kernel::available().all(|available| available.name() != *name));
                }
                #[allow(unreachable_patterns, reason = "other errors are not of this module")]
                Err(e) => panic!("{e}"),
            }
        }
    }

    #[test]
    fn a_kernel_of_another_architecture_is_an_error() {
        let missing = Kernel::NAMES.iter().filter(|name| Tokens::detect(name).is_none());
        assert!(missing.count() > 0, "no architecture has every kernel");
    }

    #[test]
    fn an_unknown_kernel_is_an_error_that_lists_the_names() {
        let text = Kernel::from_name("fast").unwrap_err().to_string();
        assert!(text.contains(&Kernel::NAMES.join(", ")), "{text}");
    }

    #[test]
    fn the_portable_kernel_is_available_everywhere() {
        assert_eq!(Kernel::available().next(), Some(Kernel::PORTABLE));
        assert_eq!(Kernel::from_name("portable").unwrap(), Kernel::PORTABLE);
    }
}
