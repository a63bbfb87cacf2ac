//! x86-64 with AVX2: `vpmaddwd` multiplies pairs of channels and adds them in i32, so it cannot saturate.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm_packus_epi16, _mm_storeu_si128, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_castsi256_si128, _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_cvtps_epi32,
    _mm256_extracti128_si256, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_max_epi32, _mm256_min_ps,
    _mm256_mul_ps, _mm256_mullo_epi32, _mm256_packs_epi32, _mm256_permute4x64_epi64, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srai_epi32, _mm256_storeu_si256, _mm256_sub_epi16,
    _mm256_sub_epi32,
};

use super::isa::{I16, I32, Isa};
use super::map::BLOCK;
use super::winograd::{self, Aligned, Finish, Inputs, POSITIONS, Sums, TAPS, Weights};

/// Proof that the CPU has AVX2.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

impl Isa for Avx2 {
    const PAIRS: bool = true;
    type I16 = W16;
    type I32 = W32;

    #[inline(always)]
    fn tile<const P: usize>(self, rows: [&[i16]; 3], channels: usize, weights: &[i8], sums: &mut [[i32; BLOCK]; P]) {
        assert!(rows.iter().all(|row| row.len() >= (P + 2) * channels));
        assert!(weights.len() == 9 * channels * BLOCK && channels.is_multiple_of(2));
        // SAFETY: `self` exists only where AVX2 does; the lengths that `tile` relies on are asserted above.
        unsafe { tile(rows, channels, weights, sums) }
    }

    #[inline(always)]
    fn products<const P: usize>(
        self,
        inputs: [&[Aligned<Inputs>]; P],
        weights: &[Aligned<Weights>],
        sums: &mut [Aligned<Sums>; P],
        add: bool,
    ) {
        assert!(inputs.iter().all(|input| input.len() == weights.len()));
        // SAFETY: `self` exists only where AVX2 does; the lengths that `products` relies on are asserted above.
        unsafe { products(inputs, weights, sums, add) }
    }

    #[inline(always)]
    fn transform_input(self, source: &[u8], stride: usize, target: &mut Inputs) {
        // SAFETY: `self` exists only where AVX2 does.
        unsafe { transform_input(source, stride, target) }
    }

    #[inline(always)]
    fn transform_weights(self, source: &[[i8; 2 * BLOCK]; TAPS], target: &mut Weights, pair: usize) {
        // SAFETY: `self` exists only where AVX2 does.
        unsafe { transform_weights(source, target, pair) }
    }

    #[inline(always)]
    fn transform_output(self, sums: &Sums, finish: &Finish, out: &mut [u8], stride: usize) {
        // SAFETY: `self` exists only where AVX2 does.
        unsafe { transform_output(sums, finish, out, stride) }
    }

    #[inline(always)]
    fn requantise(self, sums: &[i32; BLOCK], bias: &[i32; BLOCK], multipliers: &[f32; BLOCK]) -> [u8; BLOCK] {
        // SAFETY: `self` exists only where AVX2 does.
        unsafe { requantise(sums, bias, multipliers) }
    }
}

#[target_feature(enable = "avx2")]
fn transform_input(source: &[u8], stride: usize, target: &mut Inputs) {
    winograd::transform_input::<W16>(source, stride, target);
}

#[target_feature(enable = "avx2")]
fn transform_weights(source: &[[i8; 2 * BLOCK]; TAPS], target: &mut Weights, pair: usize) {
    winograd::transform_weights::<W16>(source, target, pair);
}

#[target_feature(enable = "avx2")]
fn transform_output(sums: &Sums, finish: &Finish, out: &mut [u8], stride: usize) {
    winograd::transform_output::<W32>(sums, finish, out, stride);
}

#[target_feature(enable = "avx2")]
fn requantise(sums: &[i32; BLOCK], bias: &[i32; BLOCK], multipliers: &[f32; BLOCK]) -> [u8; BLOCK] {
    W32::requantise(sums, bias, multipliers)
}

/// # Safety
/// Each of `inputs` is as long as `weights`.
#[target_feature(enable = "avx2")]
unsafe fn products<const P: usize>(
    inputs: [&[Aligned<Inputs>]; P],
    weights: &[Aligned<Weights>],
    sums: &mut [Aligned<Sums>; P],
    add: bool,
) {
    for position in 0..POSITIONS {
        let mut low = [_mm256_setzero_si256(); P];
        let mut high = [_mm256_setzero_si256(); P];
        if add {
            for tile in 0..P {
                let sums = sums[tile].0[position].as_ptr();
                // SAFETY: a block is sixteen i32, two vectors of eight.
                unsafe {
                    low[tile] = _mm256_loadu_si256(sums.cast());
                    high[tile] = _mm256_loadu_si256(sums.add(8).cast());
                }
            }
        }
        for (block, weights) in weights.iter().enumerate() {
            // SAFETY: each input has the block.
            let inputs = inputs.map(|input| unsafe { input.get_unchecked(block).0[position].as_ptr() });
            for (pair, weights) in weights.0[position].iter().enumerate() {
                // SAFETY: thirty-two weights are two vectors.
                let (w_low, w_high) = unsafe {
                    let weights = weights.as_ptr();
                    (_mm256_loadu_si256(weights.cast()), _mm256_loadu_si256(weights.add(BLOCK).cast()))
                };
                for tile in 0..P {
                    // SAFETY: two channels of a block for each of its pairs.
                    let input = unsafe { inputs[tile].add(2 * pair).cast::<i32>().read_unaligned() };
                    let input = _mm256_set1_epi32(input);
                    low[tile] = _mm256_add_epi32(low[tile], _mm256_madd_epi16(input, w_low));
                    high[tile] = _mm256_add_epi32(high[tile], _mm256_madd_epi16(input, w_high));
                }
            }
        }
        for tile in 0..P {
            let sums = sums[tile].0[position].as_mut_ptr();
            // SAFETY: a block is sixteen i32, two vectors of eight.
            unsafe {
                _mm256_storeu_si256(sums.cast(), low[tile]);
                _mm256_storeu_si256(sums.add(8).cast(), high[tile]);
            }
        }
    }
}

/// # Safety
/// Each row holds `(P + 2) * channels` values, `weights` holds `9 * channels * BLOCK`, `channels` is even.
#[target_feature(enable = "avx2")]
unsafe fn tile<const P: usize>(rows: [&[i16]; 3], channels: usize, weights: &[i8], sums: &mut [[i32; BLOCK]; P]) {
    let mut low = [_mm256_setzero_si256(); P];
    let mut high = [_mm256_setzero_si256(); P];
    let mut weights = weights.as_ptr();
    for row in rows {
        // The three taps of a row are neighbours, so they are one run of 3 * channels values.
        let row = row.as_ptr();
        for at in (0..3 * channels).step_by(2) {
            // SAFETY: 32 bytes of weights are read for each of the 3 * 3 * channels / 2 pairs.
            let (w_low, w_high) = unsafe {
                let w_low = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.cast()));
                let w_high = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(BLOCK).cast()));
                (w_low, w_high)
            };
            // SAFETY: stays within `weights`, or one past its end after the last pair.
            weights = unsafe { weights.add(2 * BLOCK) };
            for pixel in 0..P {
                // SAFETY: at + 1 + pixel * channels < (P + 2) * channels.
                let pair = unsafe { row.add(pixel * channels + at).cast::<i32>().read_unaligned() };
                let pair = _mm256_set1_epi32(pair);
                low[pixel] = _mm256_add_epi32(low[pixel], _mm256_madd_epi16(pair, w_low));
                high[pixel] = _mm256_add_epi32(high[pixel], _mm256_madd_epi16(pair, w_high));
            }
        }
    }
    for (sums, (low, high)) in sums.iter_mut().zip(low.into_iter().zip(high)) {
        let sums = sums.as_mut_ptr();
        // SAFETY: a block is sixteen i32, two vectors of eight.
        unsafe {
            _mm256_storeu_si256(sums.cast(), low);
            _mm256_storeu_si256(sums.add(8).cast(), high);
        }
    }
}

/// Sixteen i16. Used only in functions of [`Avx2`], which proves that the CPU has these instructions.
#[derive(Clone, Copy)]
pub(super) struct W16(__m256i);

impl I16 for W16 {
    const LANES: usize = 16;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    fn from_u8(values: &[u8]) -> Self {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has AVX2 (see the type); sixteen values are there.
        unsafe { Self(_mm256_cvtepu8_epi16(_mm_loadu_si128(values.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn from_i8(values: &[i8]) -> Self {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has AVX2 (see the type); sixteen values are there.
        unsafe { Self(_mm256_cvtepi8_epi16(_mm_loadu_si128(values.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_add_epi16(self.0, other.0)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_sub_epi16(self.0, other.0)) }
    }

    #[inline(always)]
    fn store(self, values: &mut [i16]) {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has AVX2 (see the type); there is room for sixteen values.
        unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), self.0) }
    }
}

/// Eight i32. As [`W16`].
#[derive(Clone, Copy)]
pub(super) struct W32(__m256i);

impl I32 for W32 {
    const LANES: usize = 8;

    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    fn load(values: &[i32]) -> Self {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has AVX2 (see the type); eight values are there.
        unsafe { Self(_mm256_loadu_si256(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_add_epi32(self.0, other.0)) }
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_sub_epi32(self.0, other.0)) }
    }

    #[inline(always)]
    fn mul(self, factor: i32) -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_mullo_epi32(self.0, _mm256_set1_epi32(factor))) }
    }

    #[inline(always)]
    fn shl<const N: i32>(self) -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_slli_epi32::<N>(self.0)) }
    }

    #[inline(always)]
    fn shr<const N: i32>(self) -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_srai_epi32::<N>(self.0)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_max_epi32(self.0, other.0)) }
    }

    #[inline(always)]
    fn store(self, values: &mut [i32]) {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has AVX2 (see the type); there is room for eight values.
        unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), self.0) }
    }

    /// The lower bound comes from packing, which saturates: after `min` only numbers below i32 are out of the range of the
    /// conversion, and those become the lowest i32. It rounds to nearest even, as Rust leaves `mxcsr`.
    #[inline(always)]
    fn requantise(sums: &[i32; BLOCK], bias: &[i32; BLOCK], multipliers: &[f32; BLOCK]) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        // SAFETY: the CPU has AVX2 (see the type); `out` is one vector.
        unsafe {
            let (low, high) =
                (requantise_half(sums, bias, multipliers, 0), requantise_half(sums, bias, multipliers, 8));
            // Packing works in halves of a vector, whose quarters are put back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
        out
    }
}

/// Eight sums from `at` to integers of at most 255.
#[target_feature(enable = "avx2")]
fn requantise_half(sums: &[i32; BLOCK], bias: &[i32; BLOCK], multipliers: &[f32; BLOCK], at: usize) -> __m256i {
    let (sums, bias, multipliers) = (&sums[at..][..8], &bias[at..][..8], &multipliers[at..][..8]);
    // SAFETY: each slice holds eight values.
    let (sums, bias, multipliers) = unsafe {
        (
            _mm256_loadu_si256(sums.as_ptr().cast()),
            _mm256_loadu_si256(bias.as_ptr().cast()),
            _mm256_loadu_ps(multipliers.as_ptr()),
        )
    };
    let real = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(sums, bias)), multipliers);
    _mm256_cvtps_epi32(_mm256_min_ps(real, _mm256_set1_ps(255.0)))
}
