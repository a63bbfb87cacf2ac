//! Requantization of sums to u8 in portable code.

use crate::kernels::layout::BLOCK;

/// Steps 3 and 4 of the convolution (`docs/exactness.md`) for an output zero point of 0.
///
/// Clamping comes before rounding, which is the same since both bounds are integers; rounding to
/// nearest even is that of an addition of 1.5 * 2^23, which every CPU does alike and which needs no
/// rounding instruction.
#[inline(always)]
pub(super) fn requantize(sum: i32, multiplier: f32) -> u8 {
    const ROUND: f32 = 12_582_912.0;
    let real = (sum as f32 * multiplier).clamp(0.0, 255.0);
    ((real + ROUND).to_bits() & 0xff) as u8
}

/// [`requantize`] for each output of a block, after adding its bias modulo 2^32.
#[inline(always)]
pub(super) fn requantize_block(
    sums: &[i32; BLOCK],
    bias: &[i32; BLOCK],
    multipliers: &[f32; BLOCK],
) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    for (((out, &sum), &bias), &multiplier) in out.iter_mut().zip(sums).zip(bias).zip(multipliers) {
        *out = requantize(sum.wrapping_add(bias), multiplier);
    }
    out
}
