//! The operations that an instruction set provides. Algorithms are generic over these traits; each
//! file of `arch` implements them for one instruction set.
//!
//! A value of a type that implements [`Isa`] or [`Dot`] is the proof that the CPU has the
//! instructions: only `detect` makes one. Vectors ([`I16`], [`I32`]) are made from that value, so a
//! vector is a proof as well and its operations need no `unsafe` of their caller.

use crate::kernels::layout::{
    BLOCK, CHANNEL_STEP, CHUNK, DotStep, DotWeights, InputBlock, Patch, TAPS, WeightPair,
};
use crate::kernels::requantize::requantize_block;

/// An instruction set. Only [`Isa::tile`] and [`Isa::product`] need code of their own; the rest can
/// be the generic code, compiled for the instruction set by [`Isa::run`].
pub(super) trait Isa: Copy + Eq + Send + Sync {
    /// Whether weights of neighboring channels are interleaved (`[channel / 2][output][2]`) or not
    /// (`[channel][output]`).
    const PAIRS: bool;

    /// Lanes in which inputs and weights are transformed.
    type I16: I16<Self>;

    /// Lanes in which sums are transformed.
    type I32: I32<Self>;

    /// The instruction set, if this CPU has it.
    fn detect() -> Option<Self>;

    /// Runs a task in a function that is compiled for this instruction set.
    #[inline(always)]
    fn run<T: Task>(self, task: T) {
        task.run(self);
    }

    /// Direct convolution of `P` neighboring pixels with one block of weights: adds the products to
    /// `sums`, modulo 2^32.
    ///
    /// `rows` are the three input rows, each from the pixel left of the first: at least `P + 2`
    /// pixels of `channels` values, a multiple of [`CHANNEL_STEP`]. `weights` is one block,
    /// `[tap][channel][output]` with `9 * channels * 16` values, its channels in pairs if
    /// [`Isa::PAIRS`].
    fn tile<const P: usize>(
        self,
        rows: [&[i16]; 3],
        channels: usize,
        weights: &[i8],
        sums: &mut [[i32; BLOCK]; P],
    );

    /// One matrix product of Winograd, modulo 2^32: `sums[p]` becomes the sum over all channels `c`
    /// of `inputs[p][c] * weights[c][output]`, plus its old value if `add`.
    ///
    /// `inputs` holds, for each `p` at `p * CHUNK`, whole blocks of as many channels as `weights`.
    /// [`Isa::PAIRS`] is the order within a pair of weights.
    fn product<const P: usize>(
        self,
        inputs: &[InputBlock],
        weights: &[WeightPair],
        sums: &mut [[i32; BLOCK]; P],
        add: bool,
    );

    /// Requantizes a block of sums after adding its bias, as [`requantize_block`]. Called within
    /// tasks.
    #[inline(always)]
    fn requantize(
        self,
        sums: &[i32; BLOCK],
        bias: &[i32; BLOCK],
        multipliers: &[f32; BLOCK],
    ) -> [u8; BLOCK] {
        requantize_block(sums, bias, multipliers)
    }

    /// Asks the CPU to load the cache line at `address`, which may be any address; does nothing
    /// where hardware prefetching suffices.
    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        let _ = address;
    }
}

/// Code to be compiled for an instruction set by [`Isa::run`].
///
/// Implementations of `run` are `#[inline(always)]`, and so is everything generic that they call: a
/// function that is not inlined has no target feature, so each vector operation in it would become
/// a call. The same holds for closures, hence there are none in tasks.
pub(super) trait Task {
    /// Does the work.
    fn run<I: Isa>(self, isa: I);
}

/// Dot products of four i8, for instruction sets that have them. A value of the type is the proof
/// that the CPU has the instructions.
pub(super) trait Dot: Copy + Eq + Send + Sync {
    /// Whether the operations exist; they are called only if so.
    const EXISTS: bool = true;

    /// Whether layers take less time with it than with Winograd.
    const PREFERRED: bool = true;

    /// The instructions, if this CPU has them.
    fn detect() -> Option<Self>;

    /// Adds to `sums` the products of `P` neighboring pixels with the weights; `P` is at most
    /// `DOT_PIXELS`.
    ///
    /// `input`, whose bytes are i8, begins one row above and one pixel left of the first pixel; the
    /// next row is `stride` bytes further, the next block of channels `plane` bytes, and there is
    /// one for each of `weights`.
    fn tile<const P: usize>(
        self,
        input: &[u8],
        plane: usize,
        stride: usize,
        weights: &[DotWeights],
        sums: &mut [[i32; BLOCK]; P],
    );

    /// Adds to `sums` the products of patches, whose bytes are i8, with the weights.
    fn patches<const P: usize>(
        self,
        input: &[Patch; P],
        weights: &[DotStep; 2],
        sums: &mut [[i32; BLOCK]; P],
    );
}

/// Stands for [`Dot`] in kernels whose CPUs lack dot products.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct NoDot;

impl Dot for NoDot {
    const EXISTS: bool = false;
    const PREFERRED: bool = false;

    fn detect() -> Option<Self> {
        Some(Self)
    }

    fn tile<const P: usize>(
        self,
        _input: &[u8],
        _plane: usize,
        _stride: usize,
        _weights: &[DotWeights],
        _sums: &mut [[i32; BLOCK]; P],
    ) {
        unreachable!("the kernel has no dot products");
    }

    fn patches<const P: usize>(
        self,
        _input: &[Patch; P],
        _weights: &[DotStep; 2],
        _sums: &mut [[i32; BLOCK]; P],
    ) {
        unreachable!("the kernel has no dot products");
    }
}

/// Panics unless the lengths are those that [`Isa::tile`] requires, so that implementations may
/// read without bounds checks.
#[inline(always)]
pub(super) fn assert_tile<const P: usize>(rows: [&[i16]; 3], channels: usize, weights: &[i8]) {
    assert!(
        channels > 0
            && channels.is_multiple_of(CHANNEL_STEP)
            && weights.len() == TAPS * channels * BLOCK
    );
    assert!(rows.iter().all(|row| row.len() >= (P + 2) * channels));
}

/// As [`assert_tile`], for [`Isa::product`].
#[inline(always)]
pub(super) fn assert_product<const P: usize>(inputs: &[InputBlock], weights: &[WeightPair]) {
    let blocks = weights.len() / (BLOCK / 2);
    assert!(weights.len().is_multiple_of(BLOCK / 2) && inputs.len() >= (P - 1) * CHUNK + blocks);
}

/// A vector of i16, made from its instruction set `S`. Sums and differences wrap.
pub(super) trait I16<S>: Copy {
    /// Number of lanes; a divisor of [`BLOCK`].
    const LANES: usize;

    /// All lanes 0.
    fn zero(isa: S) -> Self;

    /// Widens as many values as there are lanes.
    fn from_u8(isa: S, values: &[u8]) -> Self;

    /// As [`I16::from_u8`].
    fn from_i8(isa: S, values: &[i8]) -> Self;

    fn add(self, other: Self) -> Self;

    fn sub(self, other: Self) -> Self;

    /// Stores as many values as there are lanes.
    fn store(self, values: &mut [i16]);
}

/// A vector of i32, made from its instruction set `S`. All arithmetic is modulo 2^32.
pub(super) trait I32<S>: Copy {
    /// Number of lanes; a divisor of [`BLOCK`].
    const LANES: usize;

    /// All lanes 0.
    fn zero(isa: S) -> Self;

    /// Loads as many values as there are lanes.
    fn load(isa: S, values: &[i32]) -> Self;

    fn add(self, other: Self) -> Self;

    fn sub(self, other: Self) -> Self;

    fn mul(self, factor: i32) -> Self;

    fn shl<const N: i32>(self) -> Self;

    /// Arithmetic shift.
    fn shr<const N: i32>(self) -> Self;

    fn max(self, other: Self) -> Self;

    /// Stores as many values as there are lanes.
    fn store(self, values: &mut [i32]);
}
