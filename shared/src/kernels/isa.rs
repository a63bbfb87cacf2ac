//! What an instruction set adds, and which one runs.

use super::requantize_block;
use crate::kernels::algo::direct::{CHANNEL_STEP, Source};
use crate::kernels::algo::dot;
use crate::kernels::algo::winograd::{
    self, CHUNK, Chunk, Finish, Input, Inputs, Sums, TAPS, Weight, Weights,
};
use crate::kernels::arch::portable;
use crate::kernels::dispatch::Kernel;
use crate::kernels::layout::{BLOCK, Map};

/// The inner loops. Only the two that multiply must be written; the others are the generic code,
/// which an instruction set compiles for itself by calling it from a function with its
/// `target_feature`.
///
/// A value of the type is the proof that the CPU has the instructions.
pub(super) trait Isa: Copy + Send + Sync {
    /// Whether values of neighboring channels lie side by side (`[channel / 2][output][2]`) or not
    /// (`[channel][output]`).
    const PAIRS: bool;

    /// Direct convolution of `P` neighboring pixels by one block of weights: adds the products to
    /// `sums`, which wrap.
    ///
    /// `rows` are the three input rows, each from the pixel left of the first: `channels` values a
    /// pixel, a multiple of four, at least `P + 2` pixels. `weights` is one block as
    /// [`crate::kernels::algo::direct::places`] orders it.
    fn tile<const P: usize>(
        self,
        rows: [&[i16]; 3],
        channels: usize,
        weights: &[i8],
        sums: &mut [[i32; BLOCK]; P],
    );

    /// One matrix product of Winograd: `sums[p]`, which wrap, become the sums over all channels `c`
    /// of `inputs[p][c] * weights[c][output]`, added to what they were if `add`.
    ///
    /// `inputs` holds whole blocks of channels for as many pairs as `weights`, for each `p` at `p *
    /// CHUNK`. Pairs of weights are in the order that [`Isa::PAIRS`] says.
    fn product<const P: usize>(
        self,
        inputs: &[Input],
        weights: &[Weight],
        sums: &mut [[i32; BLOCK]; P],
        add: bool,
    );

    /// Lanes in which inputs and weights are transformed.
    type I16: I16;

    /// Lanes in which sums are transformed.
    type I32: I32;

    /// See [`winograd::products`].
    #[inline(always)]
    fn products(self, chunk: &Chunk, sums: &mut Sums) {
        winograd::products(self, chunk, sums);
    }

    /// See [`winograd::transform_input`].
    #[inline(always)]
    fn transform_input(self, source: &[u8], stride: usize, target: &mut Inputs, place: usize) {
        winograd::transform_input::<Self::I16>(source, stride, target, place);
    }

    /// See [`winograd::transform_weights`].
    #[inline(always)]
    fn transform_weights(
        self,
        source: &[[i8; 2 * BLOCK]; TAPS],
        target: &mut Weights,
        pair: usize,
    ) {
        winograd::transform_weights::<Self::I16>(source, target, pair);
    }

    /// See [`winograd::transform_output`].
    #[inline(always)]
    fn transform_output(
        self,
        sums: &Sums,
        of: usize,
        finish: &Finish,
        out: &mut [u8],
        stride: usize,
    ) {
        winograd::transform_output::<Self::I32>(sums, of, finish, out, stride);
    }

    /// See [`requantize_block`].
    #[inline(always)]
    fn requantize(
        self,
        sums: &[i32; BLOCK],
        bias: &[i32; BLOCK],
        multipliers: &[f32; BLOCK],
    ) -> [u8; BLOCK] {
        Self::I32::requantize(sums, bias, multipliers)
    }
}

/// Panics unless the lengths are what [`Isa::tile`] asks for, so that kernels may read without
/// looking.
#[inline(always)]
pub(super) fn assert_tile<const P: usize>(rows: [&[i16]; 3], channels: usize, weights: &[i8]) {
    assert!(
        channels > 0
            && channels.is_multiple_of(CHANNEL_STEP)
            && weights.len() == 9 * channels * BLOCK
    );
    assert!(rows.iter().all(|row| row.len() >= (P + 2) * channels));
}

/// As [`assert_tile`] for [`Isa::product`].
#[inline(always)]
pub(super) fn assert_product<const P: usize>(inputs: &[Input], weights: &[Weight]) {
    let blocks = weights.len() / (BLOCK / 2);
    assert!(weights.len().is_multiple_of(BLOCK / 2) && inputs.len() >= (P - 1) * CHUNK + blocks);
}

/// A vector of i16. Sums and differences wrap.
pub(super) trait I16: Copy {
    /// How many; a divisor of [`BLOCK`].
    const LANES: usize;

    fn zero() -> Self;

    /// From as many values as there are lanes.
    fn from_u8(values: &[u8]) -> Self;

    /// As [`I16::from_u8`].
    fn from_i8(values: &[i8]) -> Self;

    fn add(self, other: Self) -> Self;

    fn sub(self, other: Self) -> Self;

    /// Into as many values as there are lanes.
    fn store(self, values: &mut [i16]);
}

/// A vector of i32. All arithmetic is modulo 2^32.
pub(super) trait I32: Copy {
    /// How many; a divisor of [`BLOCK`].
    const LANES: usize;

    fn zero() -> Self;

    /// From as many values as there are lanes.
    fn load(values: &[i32]) -> Self;

    fn add(self, other: Self) -> Self;

    fn sub(self, other: Self) -> Self;

    fn mul(self, factor: i32) -> Self;

    fn shl<const N: i32>(self) -> Self;

    /// With the sign.
    fn shr<const N: i32>(self) -> Self;

    fn max(self, other: Self) -> Self;

    /// Into as many values as there are lanes.
    fn store(self, values: &mut [i32]);

    /// As [`requantize_block`].
    #[inline(always)]
    fn requantize(
        sums: &[i32; BLOCK],
        bias: &[i32; BLOCK],
        multipliers: &[f32; BLOCK],
    ) -> [u8; BLOCK] {
        requantize_block(sums, bias, multipliers)
    }
}

/// Which [`Isa`] to use; the match is made once a layer.
#[derive(Clone, Copy)]
pub(super) enum AnyIsa {
    Portable(portable::Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(crate::kernels::arch::x86_64::avx2::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(crate::kernels::arch::aarch64::neon::Neon),
    #[cfg(all(target_arch = "arm", vgg_edge_neon))]
    Armv7(crate::kernels::arch::arm::neon::Armv7),
}

impl AnyIsa {
    pub fn new(kernel: Kernel) -> Self {
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => crate::kernels::arch::x86_64::avx2::Avx2::new().map(Self::Avx2),
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon | Kernel::Sdot => {
                crate::kernels::arch::aarch64::neon::Neon::new().map(Self::Neon)
            }
            #[cfg(all(target_arch = "arm", vgg_edge_neon))]
            Kernel::Neon => Some(Self::Armv7(crate::kernels::arch::arm::neon::Armv7)),
            _ => None,
        }
        .unwrap_or(Self::Portable(portable::Portable))
    }
}

/// Runs an expression with the instruction set under its own type.
macro_rules! with_isa {
    ($any:expr, $isa:ident => $body:expr) => {
        match $any {
            AnyIsa::Portable($isa) => $body,
            #[cfg(target_arch = "x86_64")]
            AnyIsa::Avx2($isa) => $body,
            #[cfg(target_arch = "aarch64")]
            AnyIsa::Neon($isa) => $body,
            #[cfg(all(target_arch = "arm", vgg_edge_neon))]
            AnyIsa::Armv7($isa) => $body,
        }
    };
}
pub(super) use with_isa;

/// Which [`crate::kernels::algo::dot::Dot`] to use.
#[derive(Clone, Copy)]
pub(super) enum AnyDot {
    #[cfg(test)]
    Portable(dot::PortableDot),
    #[cfg(target_arch = "aarch64")]
    Sdot(crate::kernels::arch::aarch64::sdot::Sdot),
}

impl AnyDot {
    pub fn new(kernel: Kernel) -> Option<Self> {
        match kernel {
            #[cfg(test)]
            Kernel::Portable => Some(Self::Portable(dot::PortableDot)),
            #[cfg(target_arch = "aarch64")]
            Kernel::Sdot => crate::kernels::arch::aarch64::sdot::Sdot::new().map(Self::Sdot),
            _ => None,
        }
    }

    #[allow(clippy::too_many_arguments, reason = "as `dot::convolve`")]
    #[cfg_attr(
        not(any(test, target_arch = "aarch64")),
        allow(unused_variables, reason = "no CPU of this kind has it")
    )]
    pub fn convolve<I: Isa>(
        self,
        isa: I,
        packed: &super::Packed,
        memory: &mut dot::Patches,
        input: &Source,
        from: Map,
        parallel: bool,
        out: &mut [u8],
        to: Map,
    ) {
        match self {
            #[cfg(test)]
            Self::Portable(own) => {
                dot::convolve(own, isa, packed, memory, input, from, parallel, out, to)
            }
            #[cfg(target_arch = "aarch64")]
            Self::Sdot(own) => {
                dot::convolve(own, isa, packed, memory, input, from, parallel, out, to)
            }
        }
    }
}
