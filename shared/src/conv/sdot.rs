//! aarch64 with the dot product extension (ARMv8.2: Cortex-A55, A76): `sdot` adds four products of i8 to an i32.

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vdupq_n_s32, vdupq_n_u8, veorq_u8, vld1q_s8, vld1q_u8, vreinterpretq_s8_u8, vst1q_s32,
};
use std::arch::asm;

use super::dot::{Dot, PIXELS as MOST, Weights};
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
        // The three taps of a row share its pixels.
        for (row, weights) in weights.as_chunks::<3>().0.iter().enumerate() {
            // SAFETY: as for the pixels.
            let input = unsafe { input.as_ptr().add(block * plane + row * stride) };
            let mut pixels = [vreinterpretq_s8_u8(half); MOST + 2];
            for (x, pixel) in pixels.iter_mut().enumerate().take(P + 2) {
                // SAFETY: x is below P + 2, so that this is within what the caller vouches for.
                let q = unsafe { vld1q_u8(input.add(x * BLOCK)) };
                *pixel = vreinterpretq_s8_u8(veorq_u8(q, half));
            }
            tap::<0, P>(&mut acc, &pixels, &weights[0]);
            tap::<1, P>(&mut acc, &pixels, &weights[1]);
            tap::<2, P>(&mut acc, &pixels, &weights[2]);
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.chunks_exact_mut(4).zip(acc) {
            // SAFETY: the chunk holds four i32.
            unsafe { vst1q_s32(sums.as_mut_ptr(), acc) };
        }
    }
}

/// Sixteen channels of `P` pixels, from the one at `X` on, against sixteen outputs.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn tap<const X: usize, const P: usize>(
    acc: &mut [[int32x4_t; 4]; P],
    pixels: &[int8x16_t; MOST + 2],
    weights: &[i8; BLOCK * BLOCK],
) {
    step::<X, 0, P>(acc, pixels, weights);
    step::<X, 1, P>(acc, pixels, weights);
    step::<X, 2, P>(acc, pixels, weights);
    step::<X, 3, P>(acc, pixels, weights);
}

/// Four of those channels.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn step<const X: usize, const LANE: usize, const P: usize>(
    acc: &mut [[int32x4_t; 4]; P],
    pixels: &[int8x16_t; MOST + 2],
    weights: &[i8; BLOCK * BLOCK],
) {
    let weights = weights.as_chunks::<BLOCK>().0;
    // SAFETY: each of the sixteen vectors is one of i8.
    let load = |index: usize| unsafe { vld1q_s8(weights[4 * LANE + index].as_ptr()) };
    let weights = [load(0), load(1), load(2), load(3)];
    for (acc, pixel) in acc.iter_mut().zip(&pixels[X..]) {
        for (acc, weights) in acc.iter_mut().zip(weights) {
            sdot::<LANE>(acc, weights, *pixel);
        }
    }
}
