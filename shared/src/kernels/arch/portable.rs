//! Plain Rust, for any CPU; written so that compilers turn lanes into vectors where there are some.

use crate::kernels::algo::winograd::{CHUNK, Input, Weight};
use crate::kernels::isa::{I16, I32, Isa};
use crate::kernels::layout::BLOCK;

/// Needs nothing of the CPU.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Portable;

impl Isa for Portable {
    const PAIRS: bool = false;
    type I16 = Lane<i16>;
    type I32 = Lane<i32>;

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
        inputs: &[Input],
        weights: &[Weight],
        sums: &mut [[i32; BLOCK]; P],
        add: bool,
    ) {
        // In registers where the CPU has enough of them.
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
/// CPU at hand.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Lane<T>(T);

impl I16 for Lane<i16> {
    const LANES: usize = 1;

    #[inline(always)]
    fn zero() -> Self {
        Self(0)
    }

    #[inline(always)]
    fn from_u8(values: &[u8]) -> Self {
        Self(values[0].into())
    }

    #[inline(always)]
    fn from_i8(values: &[i8]) -> Self {
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

impl I32 for Lane<i32> {
    const LANES: usize = 1;

    #[inline(always)]
    fn zero() -> Self {
        Self(0)
    }

    #[inline(always)]
    fn load(values: &[i32]) -> Self {
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
