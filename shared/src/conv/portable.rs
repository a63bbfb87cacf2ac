//! Plain Rust, for any CPU; written so that compilers turn lanes into vectors where there are some.

use super::isa::Isa;
use super::map::BLOCK;

/// Needs nothing of the CPU.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Isa for Portable {
    const PAIRS: bool = false;

    #[inline(always)]
    fn tile<const P: usize>(self, rows: [&[i16]; 3], channels: usize, weights: &[i8], sums: &mut [[i32; BLOCK]; P]) {
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
    fn products<const P: usize>(self, inputs: [&[i16]; P], weights: &[i16], sums: &mut [[i32; BLOCK]; P]) {
        // In registers where the CPU has enough of them.
        let mut own = *sums;
        for (channel, weights) in weights.as_chunks::<BLOCK>().0.iter().enumerate() {
            for (own, input) in own.iter_mut().zip(inputs) {
                add_products(input[channel], weights, own);
            }
        }
        *sums = own;
    }
}

#[inline(always)]
fn add_products(input: i16, weights: &[i16; BLOCK], sums: &mut [i32; BLOCK]) {
    for (sum, &weight) in sums.iter_mut().zip(weights) {
        // A product of two i16 fits; the running sum is modulo 2^32.
        *sum = sum.wrapping_add(i32::from(input) * i32::from(weight));
    }
}
