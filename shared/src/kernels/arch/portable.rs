//! Plain Rust, for any CPU; written so that compilers turn loops over lanes into vectors where the
//! CPU has some.

use crate::kernels::isa::{I16, I32, Isa};
use crate::kernels::layout::{BLOCK, CHUNK, InputBlock, WeightPair};

/// Requires nothing of the CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) struct Portable;

impl Isa for Portable {
    const PAIRS: bool = false;
    type I16 = Lane<i16>;
    type I32 = Lane<i32>;

    fn detect() -> Option<Self> {
        Some(Self)
    }

    #[inline(always)]
    fn tile<const P: usize>(
        self,
        rows: [&[i16]; 3],
        channels: usize,
        weights: &[i8],
        sums: &mut [[i32; BLOCK]; P],
    ) {
        for (tap, weights) in weights.chunks_exact(channels * BLOCK).enumerate() {
            let row = &rows[tap / 3][tap % 3 * channels..];
            for (channel, weights) in weights.as_chunks::<BLOCK>().0.iter().enumerate() {
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    add_products(row[pixel * channels + channel], &weights.map(i16::from), sums);
                }
            }
        }
    }

    #[inline(always)]
    fn product<const P: usize>(
        self,
        inputs: &[InputBlock],
        weights: &[WeightPair],
        sums: &mut [[i32; BLOCK]; P],
        add: bool,
    ) {
        // Sums of their own, in registers where the CPU has enough of them.
        let mut own = [[0; BLOCK]; P];
        for (pair, weights) in weights.iter().enumerate() {
            for (odd, weights) in weights.0.as_chunks::<BLOCK>().0.iter().enumerate() {
                for (tile, own) in own.iter_mut().enumerate() {
                    let input = &inputs[tile * CHUNK + pair / (BLOCK / 2)];
                    add_products(input.0[pair % (BLOCK / 2) * 2 + odd], weights, own);
                }
            }
        }
        for (sums, own) in sums.iter_mut().zip(own) {
            for (sum, own) in sums.iter_mut().zip(own) {
                *sum = if add { sum.wrapping_add(own) } else { own };
            }
        }
    }
}

#[inline(always)]
fn add_products(input: i16, weights: &[i16; BLOCK], sums: &mut [i32; BLOCK]) {
    for (sum, &weight) in sums.iter_mut().zip(weights) {
        // A product of two i16 fits; the running sum is modulo 2^32.
        *sum = sum.wrapping_add(i32::from(input) * i32::from(weight));
    }
}

/// One lane: the loops over lanes are loops over numbers, which compilers turn into vectors of the
/// target CPU. It serves any instruction set.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Lane<T>(T);

impl<S> I16<S> for Lane<i16> {
    const LANES: usize = 1;

    #[inline(always)]
    fn zero(_: S) -> Self {
        Self(0)
    }

    #[inline(always)]
    fn from_u8(_: S, values: &[u8]) -> Self {
        Self(values[0].into())
    }

    #[inline(always)]
    fn from_i8(_: S, values: &[i8]) -> Self {
        Self(values[0].into())
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }

    #[inline(always)]
    fn store(self, values: &mut [i16]) {
        values[0] = self.0;
    }
}

impl<S> I32<S> for Lane<i32> {
    const LANES: usize = 1;

    #[inline(always)]
    fn zero(_: S) -> Self {
        Self(0)
    }

    #[inline(always)]
    fn load(_: S, values: &[i32]) -> Self {
        Self(values[0])
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }

    #[inline(always)]
    fn mul(self, factor: i32) -> Self {
        Self(self.0.wrapping_mul(factor))
    }

    #[inline(always)]
    fn shl<const N: i32>(self) -> Self {
        Self(self.0 << N)
    }

    #[inline(always)]
    fn shr<const N: i32>(self) -> Self {
        Self(self.0 >> N)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }

    #[inline(always)]
    fn store(self, values: &mut [i32]) {
        values[0] = self.0;
    }
}

/// Dot products in plain Rust, to test their algorithm on any CPU; programs have no use for them,
/// since Winograd is faster.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) struct PortableDot;

#[cfg(not(test))]
pub(in crate::kernels) use crate::kernels::isa::NoDot as PortableDot;

#[cfg(test)]
mod dot {
    use super::PortableDot;
    use crate::kernels::isa::Dot;
    use crate::kernels::layout::{BLOCK, DotStep, DotWeights, Patch};

    impl PortableDot {
        fn step(input: &[u8], weights: &DotStep, sums: &mut [i32; BLOCK]) {
            for (index, &weight) in weights.iter().enumerate() {
                let value = input[index / (4 * BLOCK) * 4 + index % 4].cast_signed();
                sums[index / 4 % BLOCK] += i32::from(value) * i32::from(weight);
            }
        }
    }

    impl Dot for PortableDot {
        const PREFERRED: bool = false;

        fn detect() -> Option<Self> {
            Some(Self)
        }

        fn tile<const P: usize>(
            self,
            input: &[u8],
            plane: usize,
            stride: usize,
            weights: &[DotWeights],
            sums: &mut [[i32; BLOCK]; P],
        ) {
            for (block, weights) in weights.iter().enumerate() {
                for (tap, weights) in weights.iter().enumerate() {
                    for (pixel, sums) in sums.iter_mut().enumerate() {
                        let at = block * plane + tap / 3 * stride + (pixel + tap % 3) * BLOCK;
                        Self::step(&input[at..], weights, sums);
                    }
                }
            }
        }

        fn patches<const P: usize>(
            self,
            input: &[Patch; P],
            weights: &[DotStep; 2],
            sums: &mut [[i32; BLOCK]; P],
        ) {
            for (patch, sums) in input.iter().zip(sums) {
                for (input, weights) in patch.chunks_exact(BLOCK).zip(weights) {
                    Self::step(input, weights, sums);
                }
            }
        }
    }
}
