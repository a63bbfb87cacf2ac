//! aarch64 (ARMv8.0): `smlal` multiplies i16 and accumulates in i32, so it cannot saturate.

use std::arch::aarch64::{
    int16x4_t, int16x8_t, int32x4_t, vaddq_s16, vaddq_s32, vcombine_s16, vcombine_u8,
    vcvtnq_s32_f32, vcvtq_f32_s32, vdup_n_s16, vdupq_n_s16, vdupq_n_s32, vget_high_s16,
    vget_low_s8, vget_low_s16, vld1_s8, vld1_s16, vld1_u8, vld1q_f32, vld1q_s8, vld1q_s16,
    vld1q_s32, vmaxq_s32, vmlal_lane_s16, vmovl_high_s8, vmovl_s8, vmovl_u8, vmulq_f32,
    vmulq_n_s32, vqmovn_s32, vqmovun_s16, vreinterpretq_s16_u16, vshlq_n_s32, vshrq_n_s32,
    vst1q_s16, vst1q_s32, vst1q_u8, vsubq_s16, vsubq_s32,
};

use crate::kernels::isa::{I16, I32, Isa, assert_product, assert_tile};
use crate::kernels::layout::{BLOCK, CHANNEL_STEP, CHUNK, InputBlock, WeightPair};

/// Proof that the CPU has Advanced SIMD, which every aarch64 Linux has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) struct Neon(());

impl Isa for Neon {
    const PAIRS: bool = false;
    type I16 = S16;
    type I32 = S32;

    fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    #[inline(always)]
    fn tile<const P: usize>(
        self,
        rows: [&[i16]; 3],
        channels: usize,
        weights: &[i8],
        sums: &mut [[i32; BLOCK]; P],
    ) {
        assert_tile::<P>(rows, channels, weights);
        // SAFETY: `self` exists only where NEON does; the lengths that `tile` relies on are
        // asserted above.
        unsafe { tile(rows, channels, weights, sums) }
    }

    #[inline(always)]
    fn product<const P: usize>(
        self,
        inputs: &[InputBlock],
        weights: &[WeightPair],
        sums: &mut [[i32; BLOCK]; P],
        add: bool,
    ) {
        assert_product::<P>(inputs, weights);
        // SAFETY: `self` exists only where NEON does; what `product` relies on is asserted above.
        unsafe { product(inputs, weights, sums, add) }
    }

    /// Conversion (to nearest even) and both steps to u8 saturate.
    #[inline(always)]
    fn requantize(
        self,
        sums: &[i32; BLOCK],
        bias: &[i32; BLOCK],
        multipliers: &[f32; BLOCK],
    ) -> [u8; BLOCK] {
        let quarter = |at: usize| {
            // SAFETY: `self` exists only where NEON does; each array holds four values from
            // `at`, which is at most 12.
            unsafe {
                let sum =
                    vaddq_s32(vld1q_s32(sums.as_ptr().add(at)), vld1q_s32(bias.as_ptr().add(at)));
                let real = vmulq_f32(vcvtq_f32_s32(sum), vld1q_f32(multipliers.as_ptr().add(at)));
                vqmovn_s32(vcvtnq_s32_f32(real))
            }
        };
        let mut out = [0; BLOCK];
        // SAFETY: `self` exists only where NEON does; `out` is one vector.
        unsafe {
            let low = vqmovun_s16(vcombine_s16(quarter(0), quarter(4)));
            let high = vqmovun_s16(vcombine_s16(quarter(8), quarter(12)));
            vst1q_u8(out.as_mut_ptr(), vcombine_u8(low, high));
        }
        out
    }
}

/// # Safety
/// Each row holds `(P + 2) * channels` values, `weights` holds `9 * channels * BLOCK`, `channels`
/// is a multiple of four.
#[target_feature(enable = "neon")]
unsafe fn tile<const P: usize>(
    rows: [&[i16]; 3],
    channels: usize,
    weights: &[i8],
    sums: &mut [[i32; BLOCK]; P],
) {
    let mut acc = [[vdupq_n_s32(0); 4]; P];
    let mut weights = weights.as_ptr();
    for row in rows {
        // The three taps of a row are neighbors, so they are one run of 3 * channels values.
        let row = row.as_ptr();
        for at in (0..3 * channels).step_by(CHANNEL_STEP) {
            let mut pixels = [vdup_n_s16(0); P];
            for (pixel, values) in pixels.iter_mut().enumerate() {
                // SAFETY: at + 3 + pixel * channels < (P + 2) * channels.
                *values = unsafe { vld1_s16(row.add(pixel * channels + at)) };
            }
            // SAFETY: sixteen weights are read for each of the 9 * channels channels.
            let load = |channel: usize| unsafe {
                let w = vld1q_s8(weights.add(channel * BLOCK));
                (vmovl_s8(vget_low_s8(w)), vmovl_high_s8(w))
            };
            step::<0, P>(&mut acc, pixels, load(0));
            step::<1, P>(&mut acc, pixels, load(1));
            step::<2, P>(&mut acc, pixels, load(2));
            step::<3, P>(&mut acc, pixels, load(3));
            // SAFETY: stays within `weights`, or one past its end after the last channels.
            weights = unsafe { weights.add(CHANNEL_STEP * BLOCK) };
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.chunks_exact_mut(4).zip(acc) {
            // SAFETY: the chunk holds four i32.
            unsafe { vst1q_s32(sums.as_mut_ptr(), acc) };
        }
    }
}

/// # Safety
/// `weights` are whole blocks of channels, and `inputs` holds as many blocks at each of `P` places
/// [`CHUNK`] apart.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn product<const P: usize>(
    inputs: &[InputBlock],
    weights: &[WeightPair],
    sums: &mut [[i32; BLOCK]; P],
    add: bool,
) {
    let mut acc = [[vdupq_n_s32(0); 4]; P];
    if add {
        for (sums, acc) in sums.iter().zip(&mut acc) {
            for (sums, acc) in sums.chunks_exact(4).zip(acc) {
                // SAFETY: the chunk holds four i32.
                *acc = unsafe { vld1q_s32(sums.as_ptr()) };
            }
        }
    }
    let mut inputs = inputs.as_ptr();
    for weights in weights.as_chunks::<{ BLOCK / 2 }>().0 {
        let weights = weights.as_ptr().cast::<i16>();
        for at in (0..BLOCK).step_by(4) {
            let mut values = [vdup_n_s16(0); P];
            for (tile, values) in values.iter_mut().enumerate() {
                // SAFETY: each place has a block for each of `weights`, and a block sixteen
                // channels.
                *values = unsafe { vld1_s16(inputs.add(tile * CHUNK).cast::<i16>().add(at)) };
            }
            // SAFETY: sixteen weights stand at each of sixteen channels.
            let load = |channel: usize| unsafe {
                let weights = weights.add((at + channel) * BLOCK);
                (vld1q_s16(weights), vld1q_s16(weights.add(8)))
            };
            // All loads first: cores that work in order would wait for each.
            let weights = [load(0), load(1), load(2), load(3)];
            step::<0, P>(&mut acc, values, weights[0]);
            step::<1, P>(&mut acc, values, weights[1]);
            step::<2, P>(&mut acc, values, weights[2]);
            step::<3, P>(&mut acc, values, weights[3]);
        }
        // SAFETY: stays within `inputs`, or one past its end after the last block.
        inputs = unsafe { inputs.add(1) };
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.chunks_exact_mut(4).zip(acc) {
            // SAFETY: the chunk holds four i32.
            unsafe { vst1q_s32(sums.as_mut_ptr(), acc) };
        }
    }
}

/// One channel of `P` pixels or tiles against sixteen weights.
#[inline]
#[target_feature(enable = "neon")]
fn step<const LANE: i32, const P: usize>(
    acc: &mut [[int32x4_t; 4]; P],
    pixels: [int16x4_t; P],
    (low, high): (int16x8_t, int16x8_t),
) {
    for (acc, pixel) in acc.iter_mut().zip(pixels) {
        acc[0] = vmlal_lane_s16::<LANE>(acc[0], vget_low_s16(low), pixel);
        acc[1] = vmlal_lane_s16::<LANE>(acc[1], vget_high_s16(low), pixel);
        acc[2] = vmlal_lane_s16::<LANE>(acc[2], vget_low_s16(high), pixel);
        acc[3] = vmlal_lane_s16::<LANE>(acc[3], vget_high_s16(high), pixel);
    }
}

/// Eight i16. Made from a [`Neon`] only, so a value is a proof that the CPU has NEON.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct S16(int16x8_t);

impl I16<Neon> for S16 {
    const LANES: usize = 8;

    #[inline(always)]
    fn zero(_: Neon) -> Self {
        // SAFETY: the CPU has NEON (see the type).
        unsafe { Self(vdupq_n_s16(0)) }
    }

    #[inline(always)]
    fn from_u8(_: Neon, values: &[u8]) -> Self {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has NEON (see the type); eight values are there.
        unsafe { Self(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(values.as_ptr())))) }
    }

    #[inline(always)]
    fn from_i8(_: Neon, values: &[i8]) -> Self {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has NEON (see the type); eight values are there.
        unsafe { Self(vmovl_s8(vld1_s8(values.as_ptr()))) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the CPU has NEON (see the type).
        unsafe { Self(vaddq_s16(self.0, other.0)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the CPU has NEON (see the type).
        unsafe { Self(vsubq_s16(self.0, other.0)) }
    }

    #[inline(always)]
    fn store(self, values: &mut [i16]) {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has NEON (see the type); there is room for eight values.
        unsafe { vst1q_s16(values.as_mut_ptr(), self.0) }
    }
}

/// Four i32. As [`S16`].
#[derive(Clone, Copy)]
pub(in crate::kernels) struct S32(int32x4_t);

impl I32<Neon> for S32 {
    const LANES: usize = 4;

    #[inline(always)]
    fn zero(_: Neon) -> Self {
        // SAFETY: the CPU has NEON (see the type).
        unsafe { Self(vdupq_n_s32(0)) }
    }

    #[inline(always)]
    fn load(_: Neon, values: &[i32]) -> Self {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has NEON (see the type); four values are there.
        unsafe { Self(vld1q_s32(values.as_ptr())) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the CPU has NEON (see the type).
        unsafe { Self(vaddq_s32(self.0, other.0)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the CPU has NEON (see the type).
        unsafe { Self(vsubq_s32(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul(self, factor: i32) -> Self {
        // SAFETY: the CPU has NEON (see the type).
        unsafe { Self(vmulq_n_s32(self.0, factor)) }
    }

    #[inline(always)]
    fn shl<const N: i32>(self) -> Self {
        // SAFETY: the CPU has NEON (see the type).
        unsafe { Self(vshlq_n_s32::<N>(self.0)) }
    }

    #[inline(always)]
    fn shr<const N: i32>(self) -> Self {
        // SAFETY: the CPU has NEON (see the type).
        unsafe { Self(vshrq_n_s32::<N>(self.0)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the CPU has NEON (see the type).
        unsafe { Self(vmaxq_s32(self.0, other.0)) }
    }

    #[inline(always)]
    fn store(self, values: &mut [i32]) {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has NEON (see the type); there is room for four values.
        unsafe { vst1q_s32(values.as_mut_ptr(), self.0) }
    }
}
