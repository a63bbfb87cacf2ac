//! aarch64 with the dot product extension (ARMv8.2: Cortex-A55, A76): `sdot` adds four products of i8 to an i32.

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vdupq_n_s32, vdupq_n_u8, veorq_u8, vld1q_s8, vld1q_u8, vreinterpretq_s8_u8, vst1q_s32,
};
use std::arch::asm;

use super::dot::{Dot, Weights};
use super::map::BLOCK;

/// Proof that the CPU has the extension.
#[derive(Clone, Copy)]
pub(super) struct Sdot(());

impl Sdot {
    pub(super) fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }
}

impl Dot for Sdot {
    #[inline(always)]
    fn tile<const P: usize>(
        self,
        input: &[u8],
        plane: usize,
        stride: usize,
        weights: &[Weights],
        sums: &mut [[i32; BLOCK]; P],
    ) {
        assert!(!weights.is_empty());
        assert!(input.len() >= (weights.len() - 1) * plane + 2 * stride + (P + 2) * BLOCK);
        // SAFETY: `self` exists only where the extension does; the length that `tile` relies on is asserted above.
        unsafe { tile(input, plane, stride, weights, sums) }
    }
}

/// `sums[i] += sum over j of weights[4 * i + j] * values[4 * LANE + j]`. In assembler, for the intrinsic is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const LANE: usize>(sums: &mut int32x4_t, weights: int8x16_t, values: int8x16_t) {
    // SAFETY: the instruction touches its registers only, and the function has its target feature.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {weights:v}.16b, {values:v}.4b[{lane}]",
            sums = inout(vreg) *sums,
            weights = in(vreg) weights,
            values = in(vreg) values,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
}

/// # Safety
/// `input` holds `(weights.len() - 1) * plane + 2 * stride + (P + 2) * BLOCK` values.
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const P: usize>(
    input: &[u8],
    plane: usize,
    stride: usize,
    weights: &[Weights],
    sums: &mut [[i32; BLOCK]; P],
) {
    let mut acc = [[vdupq_n_s32(0); 4]; P];
    let half = vdupq_n_u8(128);
    for (block, weights) in weights.iter().enumerate() {
        for (tap, weights) in weights.iter().enumerate() {
            let at = block * plane + tap / 3 * stride + tap % 3 * BLOCK;
            let mut values = [vreinterpretq_s8_u8(half); P];
            for (pixel, values) in values.iter_mut().enumerate() {
                // SAFETY: at + (pixel + 1) * BLOCK is within what the caller vouches for.
                let q = unsafe { vld1q_u8(input.as_ptr().add(at + pixel * BLOCK)) };
                *values = vreinterpretq_s8_u8(veorq_u8(q, half));
            }
            let weights = weights.as_ptr();
            // SAFETY: there are sixteen vectors of weights.
            let load = |index: usize| unsafe { vld1q_s8(weights.add(index * BLOCK)) };
            step::<0, P>(&mut acc, values, load);
            step::<1, P>(&mut acc, values, load);
            step::<2, P>(&mut acc, values, load);
            step::<3, P>(&mut acc, values, load);
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.chunks_exact_mut(4).zip(acc) {
            // SAFETY: the chunk holds four i32.
            unsafe { vst1q_s32(sums.as_mut_ptr(), acc) };
        }
    }
}

/// Four channels of `P` pixels against sixteen outputs.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn step<const LANE: usize, const P: usize>(
    acc: &mut [[int32x4_t; 4]; P],
    values: [int8x16_t; P],
    load: impl Fn(usize) -> int8x16_t,
) {
    let weights = [load(4 * LANE), load(4 * LANE + 1), load(4 * LANE + 2), load(4 * LANE + 3)];
    for (acc, values) in acc.iter_mut().zip(values) {
        for (acc, weights) in acc.iter_mut().zip(weights) {
            sdot::<LANE>(acc, weights, values);
        }
    }
}
