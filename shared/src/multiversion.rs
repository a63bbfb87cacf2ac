//! Compiles plain Rust for AVX2 as well, and runs that version where the CPU has it.
//!
//! The compiler neither reorders floating-point operations nor fuses a product with a sum, so both
//! versions give the same bits; only the number of lanes differs.

/// Defines `fn $name($($arg: $type),*)`, which chooses between two compilations of its body.
#[macro_export]
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) {
            #[inline(always)]
            fn plain($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) {
                    plain($($arg),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the CPU has AVX2, the only requirement of the function.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}
