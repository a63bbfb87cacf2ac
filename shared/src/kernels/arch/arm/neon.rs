//! 32-bit ARM with Advanced SIMD: `vmlal.s16`, as in `neon` on 64 bits. Compilers do not use it by
//! themselves, and Rust's intrinsics for 32 bits are not stable, so the products are in assembly;
//! the transforms are the portable loops, which compilers do turn into vectors.

use std::arch::asm;

use crate::kernels::arch::portable::{Lane, Portable};
use crate::kernels::isa::{Isa, assert_product, assert_tile};
use crate::kernels::layout::{BLOCK, CHANNEL_STEP, CHUNK, InputBlock, WeightPair};

/// Proof that the CPU has Advanced SIMD: the type exists only in programs that are compiled for it
/// (`.cargo/config.toml`), which do not run on other CPUs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) struct Neon(());

impl Isa for Neon {
    const PAIRS: bool = false;
    type I16 = Lane<i16>;
    type I32 = Lane<i32>;

    fn detect() -> Option<Self> {
        Some(Self(()))
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
        let (pairs, odd) = sums.as_chunks_mut::<2>();
        for (pair, sums) in pairs.iter_mut().enumerate() {
            let rows = rows.map(|row| &row[2 * pair * channels..]);
            // SAFETY: from here on each row still holds four pixels; the other lengths are asserted
            // above.
            unsafe { two_pixels(rows, channels, weights, sums) }
        }
        if let [sums] = odd {
            let rows = rows.map(|row| &row[(P - 1) * channels..]);
            Portable.tile(rows, channels, weights, std::array::from_mut(sums));
        }
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
        if !add {
            *sums = [[0; BLOCK]; P];
        }
        if weights.is_empty() {
            return;
        }
        let (pairs, odd) = sums.as_chunks_mut::<2>();
        for (pair, sums) in pairs.iter_mut().enumerate() {
            // SAFETY: there are weights, and whole blocks of them; the inputs of both tiles are
            // asserted above.
            unsafe { two_tiles(&inputs[2 * pair * CHUNK..], weights, sums) }
        }
        if let [sums] = odd {
            // SAFETY: as for two.
            unsafe { one_tile(&inputs[(P - 1) * CHUNK..], weights, sums) }
        }
    }
}

// Sixteen sums of one tile or pixel are in q8 to q11, those of the other in q12 to q15. Inputs are
// in d0 to d3: a factor that is one lane of a vector must be in the first eight registers.

/// Products of four weights and one input, added to four sums.
macro_rules! vmlal {
    ($sums:literal, $weights:literal, $x:literal) => {
        concat!("vmlal.s16 q", $sums, ", d", $weights, ", ", $x, "\n")
    };
}

/// As `vmlal` of sixteen weights, in four registers.
macro_rules! multiply {
    (
        $q0:literal $q1:literal $q2:literal $q3:literal,
        $w0:literal $w1:literal $w2:literal $w3:literal,
        $x:literal
    ) => {
        concat!(
            vmlal!($q0, $w0, $x),
            vmlal!($q1, $w1, $x),
            vmlal!($q2, $w2, $x),
            vmlal!($q3, $w3, $x)
        )
    };
}

/// Products of one tile with the weights in one of three sets of registers.
macro_rules! one {
    (a, $x:literal, $y:literal) => { multiply!(8 9 10 11, 4 5 6 7, $x) };
    (b, $x:literal, $y:literal) => { multiply!(8 9 10 11, 8 9 10 11, $x) };
    (c, $x:literal, $y:literal) => { multiply!(8 9 10 11, 12 13 14 15, $x) };
}

/// As `one` for two tiles.
macro_rules! two {
    (a, $x:literal, $y:literal) => {
        concat!(multiply!(8 9 10 11, 4 5 6 7, $x), multiply!(12 13 14 15, 4 5 6 7, $y))
    };
    (b, $x:literal, $y:literal) => {
        concat!(multiply!(8 9 10 11, 8 9 10 11, $x), multiply!(12 13 14 15, 8 9 10 11, $y))
    };
    (c, $x:literal, $y:literal) => {
        concat!(multiply!(8 9 10 11, 12 13 14 15, $x), multiply!(12 13 14 15, 12 13 14 15, $y))
    };
}

/// The weights of one channel into one of three sets of registers.
macro_rules! weights {
    (a) => {
        "vld1.16 {{d4-d7}}, [{w}:256]!\n"
    };
    (b) => {
        "vld1.16 {{d8-d11}}, [{w}:256]!\n"
    };
    (c) => {
        "vld1.16 {{d12-d15}}, [{w}:256]!\n"
    };
}

/// Eight channels, whose inputs are in d0 and d1, of the other tile in d2 and d3. Weights are
/// loaded two channels ahead, for cores that work in order.
macro_rules! eight_channels {
    ($products:ident) => {
        concat!(
            weights!(a),
            weights!(b),
            weights!(c),
            $products!(a, "d0[0]", "d2[0]"),
            weights!(a),
            $products!(b, "d0[1]", "d2[1]"),
            weights!(b),
            $products!(c, "d0[2]", "d2[2]"),
            weights!(c),
            $products!(a, "d0[3]", "d2[3]"),
            weights!(a),
            $products!(b, "d1[0]", "d3[0]"),
            weights!(b),
            $products!(c, "d1[1]", "d3[1]"),
            $products!(a, "d1[2]", "d3[2]"),
            $products!(b, "d1[3]", "d3[3]"),
        )
    };
}

/// Adds to `sums` the products of one tile's inputs.
///
/// # Safety
/// `weights` are whole blocks of channels and at least one; `inputs` holds as many blocks.
#[inline(always)]
unsafe fn one_tile(inputs: &[InputBlock], weights: &[WeightPair], sums: &mut [i32; BLOCK]) {
    // SAFETY: each round reads eight channels of `inputs` and of `weights`, which are aligned as
    // the loads declare; `sums` is sixteen values.
    unsafe {
        asm!(
            "vldmia {s}, {{d16-d23}}",
            "2:",
            "vld1.16 {{d0-d1}}, [{x}:128]!",
            eight_channels!(one),
            "subs {left}, {left}, #1",
            "bne 2b",
            "vstmia {s}, {{d16-d23}}",
            s = in(reg) sums.as_mut_ptr(),
            x = inout(reg) inputs.as_ptr() => _,
            w = inout(reg) weights.as_ptr() => _,
            left = inout(reg) weights.len() / 4 => _,
            out("q0") _, out("q2") _, out("q3") _,
            out("q4") _, out("q5") _, out("q6") _, out("q7") _,
            out("q8") _, out("q9") _, out("q10") _, out("q11") _,
            options(nostack),
        );
    }
}

/// As [`one_tile`] of two tiles, whose inputs are [`CHUNK`] apart.
///
/// # Safety
/// As [`one_tile`], for both.
#[inline(always)]
unsafe fn two_tiles(inputs: &[InputBlock], weights: &[WeightPair], sums: &mut [[i32; BLOCK]; 2]) {
    // SAFETY: as in `one_tile`; `sums` is twice sixteen values.
    unsafe {
        asm!(
            "vldmia {s}, {{d16-d31}}",
            "2:",
            "vld1.16 {{d0-d1}}, [{x}:128]!",
            "vld1.16 {{d2-d3}}, [{y}:128]!",
            eight_channels!(two),
            "subs {left}, {left}, #1",
            "bne 2b",
            "vstmia {s}, {{d16-d31}}",
            s = in(reg) sums.as_mut_ptr(),
            x = inout(reg) inputs.as_ptr() => _,
            y = inout(reg) inputs.as_ptr().add(CHUNK) => _,
            w = inout(reg) weights.as_ptr() => _,
            left = inout(reg) weights.len() / 4 => _,
            out("q0") _, out("q1") _, out("q2") _, out("q3") _,
            out("q4") _, out("q5") _, out("q6") _, out("q7") _,
            out("q8") _, out("q9") _, out("q10") _, out("q11") _,
            out("q12") _, out("q13") _, out("q14") _, out("q15") _,
            options(nostack),
        );
    }
}

/// Sixteen weights of one channel, widened, and their products with two pixels.
macro_rules! channel {
    ($x:literal, $y:literal) => {
        concat!(
            "vld1.8 {{d8-d9}}, [{w}]!\n",
            "vmovl.s8 q2, d8\n",
            "vmovl.s8 q3, d9\n",
            two!(a, $x, $y)
        )
    };
}

/// Direct convolution of two neighboring pixels.
///
/// # Safety
/// Each row holds `4 * channels` values, `weights` holds `9 * channels * BLOCK`, `channels` is a
/// multiple of four and not 0.
#[inline(always)]
unsafe fn two_pixels(
    rows: [&[i16]; 3],
    channels: usize,
    weights: &[i8],
    sums: &mut [[i32; BLOCK]; 2],
) {
    let mut weights = weights.as_ptr();
    *sums = [[0; BLOCK]; 2];
    for row in rows {
        // SAFETY: the three taps of a row are one run of 3 * channels values, read four at a time,
        // of the other pixel `channels` later; sixteen weights are read for each channel; `sums` is
        // twice sixteen values.
        unsafe {
            asm!(
                "vldmia {s}, {{d16-d31}}",
                "2:",
                "vld1.16 {{d0}}, [{x}]!",
                "vld1.16 {{d2}}, [{y}]!",
                channel!("d0[0]", "d2[0]"),
                channel!("d0[1]", "d2[1]"),
                channel!("d0[2]", "d2[2]"),
                channel!("d0[3]", "d2[3]"),
                "subs {left}, {left}, #1",
                "bne 2b",
                "vstmia {s}, {{d16-d31}}",
                s = in(reg) sums.as_mut_ptr(),
                x = inout(reg) row.as_ptr() => _,
                y = inout(reg) row.as_ptr().add(channels) => _,
                w = inout(reg) weights,
                left = inout(reg) 3 * channels / CHANNEL_STEP => _,
                out("q0") _, out("q1") _, out("q2") _, out("q3") _, out("q4") _,
                out("q8") _, out("q9") _, out("q10") _, out("q11") _,
                out("q12") _, out("q13") _, out("q14") _, out("q15") _,
                options(nostack),
            );
        }
    }
}
