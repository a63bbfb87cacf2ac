//! x86-64 with AVX2: `vpmaddwd` multiplies pairs of channels and adds them in i32, so it cannot
//! saturate.

use std::arch::asm;
use std::arch::x86_64::{
    __m256i, _MM_HINT_T0, _mm_loadu_si128, _mm_packus_epi16, _mm_prefetch, _mm_storeu_si128,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_castsi256_si128, _mm256_cvtepi8_epi16,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_cvtps_epi32, _mm256_extracti128_si256,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_max_epi32, _mm256_min_ps,
    _mm256_mul_ps, _mm256_mullo_epi32, _mm256_packs_epi32, _mm256_permute4x64_epi64,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_slli_epi32, _mm256_srai_epi32,
    _mm256_storeu_si256, _mm256_sub_epi16, _mm256_sub_epi32,
};

use crate::kernels::isa::{I16, I32, Isa, Task, assert_product, assert_tile};
use crate::kernels::layout::{BLOCK, CHUNK, InputBlock, TILES, WeightPair};

/// Proof that the CPU has AVX2.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) struct Avx2(());

impl Isa for Avx2 {
    const PAIRS: bool = true;
    type I16 = W16;
    type I32 = W32;

    fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    #[inline(always)]
    fn run<T: Task>(self, task: T) {
        // SAFETY: `self` exists only where AVX2 does.
        unsafe { run(self, task) }
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
        // SAFETY: `self` exists only where AVX2 does; the lengths that `tile` relies on are
        // asserted.
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
        // SAFETY: `self` exists only where AVX2 does; what `product` relies on is asserted.
        unsafe { product(inputs, weights, sums, add) }
    }

    /// The lower bound comes from packing, which saturates: after `min` only numbers below i32 are
    /// out of the range of the conversion, and those become the lowest i32. It rounds to nearest
    /// even, as Rust leaves `mxcsr`.
    #[inline(always)]
    fn requantize(
        self,
        sums: &[i32; BLOCK],
        bias: &[i32; BLOCK],
        multipliers: &[f32; BLOCK],
    ) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        // SAFETY: `self` exists only where AVX2 does; `out` is one vector.
        unsafe {
            let (low, high) = (
                requantize_half(sums, bias, multipliers, 0),
                requantize_half(sums, bias, multipliers, 8),
            );
            // Packing works in halves of a vector, whose quarters are put back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packus_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
        out
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // SAFETY: every x86-64 CPU has the instruction, which faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

/// Compiles a task for AVX2: it is inlined here, with everything that it calls.
#[target_feature(enable = "avx2")]
fn run<T: Task>(isa: Avx2, task: T) {
    task.run(isa);
}

/// # Safety
/// `weights` are whole blocks of channels, and `inputs` holds as many blocks at each of `P` places
/// [`CHUNK`] apart.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn product<const P: usize>(
    inputs: &[InputBlock],
    weights: &[WeightPair],
    sums: &mut [[i32; BLOCK]; P],
    add: bool,
) {
    let mut low = [_mm256_setzero_si256(); P];
    let mut high = [_mm256_setzero_si256(); P];
    if add {
        for tile in 0..P {
            let sums = sums[tile].as_ptr();
            // SAFETY: a block is sixteen i32, two vectors of eight.
            unsafe {
                low[tile] = _mm256_loadu_si256(sums.cast());
                high[tile] = _mm256_loadu_si256(sums.add(8).cast());
            }
        }
    }
    let mut inputs = inputs.as_ptr();
    if P == TILES {
        // SAFETY: as this function.
        unsafe { product_of_four(inputs, weights, &mut low, &mut high) };
    } else {
        for weights in weights.as_chunks::<{ BLOCK / 2 }>().0 {
            for (pair, weights) in weights.iter().enumerate() {
                // SAFETY: thirty-two weights are two vectors.
                let (w_low, w_high) = unsafe {
                    let weights = weights.0.as_ptr();
                    (
                        _mm256_loadu_si256(weights.cast()),
                        _mm256_loadu_si256(weights.add(BLOCK).cast()),
                    )
                };
                for tile in 0..P {
                    // SAFETY: each place has as many blocks as `weights`, and a block two channels
                    // for each of its pairs.
                    let input = unsafe { inputs.add(tile * CHUNK).cast::<i32>().add(pair).read() };
                    let input = _mm256_set1_epi32(input);
                    low[tile] = _mm256_add_epi32(low[tile], _mm256_madd_epi16(input, w_low));
                    high[tile] = _mm256_add_epi32(high[tile], _mm256_madd_epi16(input, w_high));
                }
            }
            // SAFETY: stays within `inputs`, or one past its end after the last block.
            inputs = unsafe { inputs.add(1) };
        }
    }
    for tile in 0..P {
        let sums = sums[tile].as_mut_ptr();
        // SAFETY: a block is sixteen i32, two vectors of eight.
        unsafe {
            _mm256_storeu_si256(sums.cast(), low[tile]);
            _mm256_storeu_si256(sums.add(8).cast(), high[tile]);
        }
    }
}

/// One pair of channels in [`product_of_four`]: its weights at `$w` of theirs, its inputs at `$x`
/// of each tile.
macro_rules! pair {
    ($w:literal, $next:literal, $x:literal) => {
        concat!(
            "vmovdqa ymm8, [{w} + ",
            $w,
            "]\n",
            "vmovdqa ymm9, [{w} + ",
            $next,
            "]\n",
            "vbroadcastss ymm10, [{x} + ",
            $x,
            "]\n",
            "vpmaddwd ymm11, ymm10, ymm8\n",
            "vpmaddwd ymm10, ymm10, ymm9\n",
            "vpaddd ymm6, ymm6, ymm13\n",
            "vpaddd ymm7, ymm7, ymm12\n",
            "vbroadcastss ymm12, [{x} + {tile1} + ",
            $x,
            "]\n",
            "vpmaddwd ymm13, ymm12, ymm8\n",
            "vpmaddwd ymm12, ymm12, ymm9\n",
            "vpaddd ymm0, ymm0, ymm11\n",
            "vpaddd ymm1, ymm1, ymm10\n",
            "vbroadcastss ymm10, [{x} + {tile2} + ",
            $x,
            "]\n",
            "vpmaddwd ymm11, ymm10, ymm8\n",
            "vpmaddwd ymm10, ymm10, ymm9\n",
            "vpaddd ymm2, ymm2, ymm13\n",
            "vpaddd ymm3, ymm3, ymm12\n",
            "vbroadcastss ymm12, [{x} + {tile3} + ",
            $x,
            "]\n",
            "vpmaddwd ymm13, ymm12, ymm8\n",
            "vpmaddwd ymm12, ymm12, ymm9\n",
            "vpaddd ymm4, ymm4, ymm11\n",
            "vpaddd ymm5, ymm5, ymm10\n",
        )
    };
}

/// The inner loop of [`product`] for four tiles. Compilers put each addition behind its product,
/// and add products to each other first, which needs more registers than there are; on Zen 3 this
/// order, two products and then the two sums of the tile before, takes three quarters of the time.
/// `vbroadcastss` rather than its integer twin is part of that.
///
/// # Safety
/// As [`product`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn product_of_four(
    inputs: *const InputBlock,
    weights: &[WeightPair],
    low: &mut [__m256i],
    high: &mut [__m256i],
) {
    if weights.is_empty() {
        return;
    }
    // SAFETY: reads all of `weights`, and for each block of them 32 bytes of four tiles, which the
    // caller guarantees; writes nothing but registers.
    unsafe {
        asm!(
            "vpxor xmm12, xmm12, xmm12",
            "vpxor xmm13, xmm13, xmm13",
            ".p2align 5",
            "2:",
            pair!(0, 32, 0),
            pair!(64, 96, 4),
            pair!(128, 160, 8),
            pair!(192, 224, 12),
            pair!(256, 288, 16),
            pair!(320, 352, 20),
            pair!(384, 416, 24),
            pair!(448, 480, 28),
            "add {w}, {block}",
            "add {x}, {input}",
            "dec {left}",
            "jne 2b",
            "vpaddd ymm6, ymm6, ymm13",
            "vpaddd ymm7, ymm7, ymm12",
            w = inout(reg) weights.as_ptr() => _,
            x = inout(reg) inputs => _,
            left = inout(reg) weights.len() / (BLOCK / 2) => _,
            block = const BLOCK / 2 * size_of::<WeightPair>(),
            input = const size_of::<InputBlock>(),
            tile1 = const CHUNK * size_of::<InputBlock>(),
            tile2 = const 2 * CHUNK * size_of::<InputBlock>(),
            tile3 = const 3 * CHUNK * size_of::<InputBlock>(),
            inout("ymm0") low[0],
            inout("ymm1") high[0],
            inout("ymm2") low[1],
            inout("ymm3") high[1],
            inout("ymm4") low[2],
            inout("ymm5") high[2],
            inout("ymm6") low[3],
            inout("ymm7") high[3],
            out("ymm8") _,
            out("ymm9") _,
            out("ymm10") _,
            out("ymm11") _,
            out("ymm12") _,
            out("ymm13") _,
            options(nostack, readonly),
        );
    }
}

/// # Safety
/// Each row holds `(P + 2) * channels` values, `weights` holds `9 * channels * BLOCK`, `channels`
/// is even.
#[target_feature(enable = "avx2")]
unsafe fn tile<const P: usize>(
    rows: [&[i16]; 3],
    channels: usize,
    weights: &[i8],
    sums: &mut [[i32; BLOCK]; P],
) {
    let mut low = [_mm256_setzero_si256(); P];
    let mut high = [_mm256_setzero_si256(); P];
    let mut weights = weights.as_ptr();
    for row in rows {
        // The three taps of a row are neighbors, so they are one run of 3 * channels values.
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

/// Sixteen i16. Made from an [`Avx2`] only, so a value is a proof that the CPU has AVX2.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct W16(__m256i);

impl I16<Avx2> for W16 {
    const LANES: usize = 16;

    #[inline(always)]
    fn zero(_: Avx2) -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    fn from_u8(_: Avx2, values: &[u8]) -> Self {
        assert!(values.len() == Self::LANES);
        // SAFETY: the CPU has AVX2 (see the type); sixteen values are there.
        unsafe { Self(_mm256_cvtepu8_epi16(_mm_loadu_si128(values.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn from_i8(_: Avx2, values: &[i8]) -> Self {
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
pub(in crate::kernels) struct W32(__m256i);

impl I32<Avx2> for W32 {
    const LANES: usize = 8;

    #[inline(always)]
    fn zero(_: Avx2) -> Self {
        // SAFETY: the CPU has AVX2 (see the type).
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    fn load(_: Avx2, values: &[i32]) -> Self {
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
}

/// Turns eight sums from `at` into integers of at most 255.
#[target_feature(enable = "avx2")]
fn requantize_half(
    sums: &[i32; BLOCK],
    bias: &[i32; BLOCK],
    multipliers: &[f32; BLOCK],
    at: usize,
) -> __m256i {
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
