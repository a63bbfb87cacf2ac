//! aarch64 with the dot product extension (ARMv8.2: Cortex-A55, A76): `sdot` adds four products of
//! i8 to an i32.

use std::arch::aarch64::{int8x16_t, int32x4_t, vdupq_n_s8, vdupq_n_s32, vld1q_s8, vst1q_s32};
use std::arch::asm;

use crate::kernels::isa::Dot;
use crate::kernels::layout::{BLOCK, DOT_PIXELS, DotStep, DotWeights, Patch};

/// Proof that the CPU has the extension.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) struct Sdot(());

impl Dot for Sdot {
    fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }

    #[inline(always)]
    fn tile<const P: usize>(
        self,
        input: &[u8],
        plane: usize,
        stride: usize,
        weights: &[DotWeights],
        sums: &mut [[i32; BLOCK]; P],
    ) {
        const { assert!(P <= DOT_PIXELS) };
        assert!(!weights.is_empty());
        assert!(input.len() >= (weights.len() - 1) * plane + 2 * stride + (P + 2) * BLOCK);
        // SAFETY: `self` exists only where the extension does; the length that `tile` relies on is
        // asserted above.
        unsafe {
            // With many pixels, half of the outputs at a time: sums and pixels stay in registers,
            // and weights serve more pixels.
            if P > 4 {
                tile::<P, 2, 0>(input, plane, stride, weights, sums);
                tile::<P, 2, 2>(input, plane, stride, weights, sums);
            } else {
                tile::<P, 4, 0>(input, plane, stride, weights, sums);
            }
        }
    }

    #[inline(always)]
    fn patches<const P: usize>(
        self,
        input: &[Patch; P],
        weights: &[DotStep; 2],
        sums: &mut [[i32; BLOCK]; P],
    ) {
        // SAFETY: `self` exists only where the extension does.
        unsafe {
            patches::<P, 2, 0>(input, weights, sums);
            patches::<P, 2, 2>(input, weights, sums);
        }
    }
}

/// `sums[i] += sum over j of weights[4 * i + j] * values[4 * LANE + j]`. In assembly, since
/// the intrinsic is not stable.
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

/// Sums of `P` pixels and `V` vectors of four outputs.
type Sums<const P: usize, const V: usize> = [[int32x4_t; V]; P];

/// `V` vectors of outputs from the one at `FIRST` on.
///
/// # Safety
/// `input` holds `(weights.len() - 1) * plane + 2 * stride + (P + 2) * BLOCK` values.
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const P: usize, const V: usize, const FIRST: usize>(
    input: &[u8],
    plane: usize,
    stride: usize,
    weights: &[DotWeights],
    sums: &mut [[i32; BLOCK]; P],
) {
    let mut acc = [[vdupq_n_s32(0); V]; P];
    for (block, weights) in weights.iter().enumerate() {
        // The three taps of a row share its pixels.
        for (row, weights) in weights.as_chunks::<3>().0.iter().enumerate() {
            // SAFETY: as for the pixels.
            let input = unsafe { input.as_ptr().add(block * plane + row * stride) };
            let mut pixels = [vdupq_n_s8(0); DOT_PIXELS + 2];
            for (x, pixel) in pixels.iter_mut().enumerate().take(P + 2) {
                // SAFETY: x is below P + 2, so this is within the length that the caller
                // guarantees.
                *pixel = unsafe { vld1q_s8(input.add(x * BLOCK).cast()) };
            }
            step::<P, V, FIRST>(&mut acc, &pixels, &weights[0]);
            step::<P, V, FIRST>(&mut acc, &pixels[1..], &weights[1]);
            step::<P, V, FIRST>(&mut acc, &pixels[2..], &weights[2]);
        }
    }
    store::<P, V, FIRST>(acc, sums);
}

/// As [`tile`].
#[target_feature(enable = "neon,dotprod")]
fn patches<const P: usize, const V: usize, const FIRST: usize>(
    input: &[Patch; P],
    weights: &[DotStep; 2],
    sums: &mut [[i32; BLOCK]; P],
) {
    let mut acc = [[vdupq_n_s32(0); V]; P];
    for (half, weights) in weights.iter().enumerate() {
        let mut pixels = [vdupq_n_s8(0); P];
        for (pixel, patch) in pixels.iter_mut().zip(input) {
            let patch: &[u8; BLOCK] = &patch.as_chunks().0[half];
            // SAFETY: it is one vector.
            *pixel = unsafe { vld1q_s8(patch.as_ptr().cast()) };
        }
        step::<P, V, FIRST>(&mut acc, &pixels, weights);
    }
    store::<P, V, FIRST>(acc, sums);
}

#[inline]
#[target_feature(enable = "neon")]
fn store<const P: usize, const V: usize, const FIRST: usize>(
    acc: Sums<P, V>,
    sums: &mut [[i32; BLOCK]; P],
) {
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.as_chunks_mut::<4>().0[FIRST..].iter_mut().zip(acc) {
            // SAFETY: the chunk holds four i32.
            unsafe { vst1q_s32(sums.as_mut_ptr(), acc) };
        }
    }
}

/// Sixteen inputs of `P` pixels against some outputs.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn step<const P: usize, const V: usize, const FIRST: usize>(
    acc: &mut Sums<P, V>,
    pixels: &[int8x16_t],
    weights: &DotStep,
) {
    quarter::<0, P, V, FIRST>(acc, pixels, weights);
    quarter::<1, P, V, FIRST>(acc, pixels, weights);
    quarter::<2, P, V, FIRST>(acc, pixels, weights);
    quarter::<3, P, V, FIRST>(acc, pixels, weights);
}

/// Four of those inputs.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn quarter<const LANE: usize, const P: usize, const V: usize, const FIRST: usize>(
    acc: &mut Sums<P, V>,
    pixels: &[int8x16_t],
    weights: &DotStep,
) {
    let weights = &weights.as_chunks::<BLOCK>().0[4 * LANE..][..4][FIRST..][..V];
    let mut vectors = [vdupq_n_s8(0); V];
    for (vector, weights) in vectors.iter_mut().zip(weights) {
        // SAFETY: it is one vector.
        *vector = unsafe { vld1q_s8(weights.as_ptr()) };
    }
    for (acc, pixel) in acc.iter_mut().zip(pixels) {
        for (acc, weights) in acc.iter_mut().zip(vectors) {
            sdot::<LANE>(acc, weights, *pixel);
        }
    }
}
