//! x86-64 with AVX2: `vpmaddwd` multiplies pairs of channels and adds them in i32, so it cannot saturate.

use std::arch::x86_64::{
    _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_madd_epi16, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_storeu_si256,
};

use super::stack::{BLOCK, Tile};

/// Proof that the CPU has AVX2.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

impl Tile for Avx2 {
    const PAIRS: bool = true;

    #[inline(always)]
    fn tile<const P: usize>(self, rows: [&[i16]; 3], channels: usize, weights: &[i8], sums: &mut [[i32; BLOCK]; P]) {
        assert!(rows.iter().all(|row| row.len() >= (P + 2) * channels));
        assert!(weights.len() == 9 * channels * BLOCK && channels.is_multiple_of(2));
        // SAFETY: `self` exists only where AVX2 does; the lengths that `tile` relies on are asserted above.
        unsafe { tile(rows, channels, weights, sums) }
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
        // The three taps of a row are neighbours in NHWC, so they are one run of 3 * channels values.
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
