//! Plain Rust, for any CPU.

use super::stack::{BLOCK, Tile};

/// Needs nothing of the CPU.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Tile for Portable {
    const PAIRS: bool = true;

    #[inline(always)]
    fn tile<const P: usize>(self, rows: [&[i16]; 3], channels: usize, weights: &[i8], sums: &mut [[i32; BLOCK]; P]) {
        for (tap, weights) in weights.chunks_exact(channels * BLOCK).enumerate() {
            let row = &rows[tap / 3][tap % 3 * channels..];
            for (pair, weights) in weights.chunks_exact(2 * BLOCK).enumerate() {
                for (pixel, sums) in sums.iter_mut().enumerate() {
                    let at = pixel * channels + 2 * pair;
                    let (a, b) = (i32::from(row[at]), i32::from(row[at + 1]));
                    for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact(2)) {
                        // Two products of u8 and i8 fit easily; the running sum is modulo 2^32.
                        let products = a * i32::from(weights[0]) + b * i32::from(weights[1]);
                        *sum = sum.wrapping_add(products);
                    }
                }
            }
        }
    }
}
