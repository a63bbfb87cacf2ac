//! One suite for every kernel that this CPU has, against [`reference`].

use std::sync::Arc;

use proptest::prelude::*;

use crate::kernels::algo::{reference, winograd};
use crate::kernels::requantize::requantize;
use crate::kernels::stack::IsExactFor;
use crate::kernels::{Algorithm, Arena, Batch, ConvLayer, Kernel, LayerError, Stack};

/// A stream of random numbers that its seed alone determines.
pub(crate) struct Numbers(fastrand::Rng);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.u64(..1 << 48)
    }
}

/// The distribution of weights and inputs of a case.
#[derive(Clone, Copy, Debug)]
enum Values {
    Random,
    /// Weights -128, inputs 255, zero point 0: the lowest sums.
    Lowest,
    /// Weights 127, inputs 255: the highest sums.
    Highest,
    /// Only the extremes, mixed.
    Extremes,
}

fn layer(
    numbers: &mut Numbers,
    inputs: usize,
    outputs: usize,
    pool: bool,
    first: bool,
    values: Values,
) -> ConvLayer {
    let weights: Vec<i8> = (0..inputs * outputs * 9)
        .map(|_| match values {
            Values::Random => numbers.next() as i8,
            Values::Lowest => -128,
            Values::Highest => 127,
            Values::Extremes => [-128, 127, 0][numbers.next() as usize % 3],
        })
        .collect();
    let layer = ConvLayer {
        name: "test".into(),
        inputs,
        outputs,
        weights: Arc::from(weights),
        bias: (0..outputs).map(|_| numbers.next() as i32 % 100_000).collect(),
        zero_point: if first && matches!(values, Values::Random | Values::Extremes) {
            numbers.next() as u8
        } else {
            0
        },
        // From everything saturating to everything zero.
        multipliers: (0..outputs).map(|_| 2f32.powi(-(numbers.next() as i32 % 24))).collect(),
        pool,
    };
    layer.check().unwrap();
    layer
}

fn input(numbers: &mut Numbers, len: usize, values: Values) -> Vec<u8> {
    (0..len)
        .map(|_| match values {
            Values::Random => numbers.next() as u8,
            Values::Lowest | Values::Highest => 255,
            Values::Extremes => [0, 255][numbers.next() as usize % 2],
        })
        .collect()
}

/// Channels last, as [`Stack::run`] gives it, from channels first.
fn channels_last(map: &[u8], channels: usize) -> Vec<u8> {
    let pixels = map.len() / channels;
    (0..map.len()).map(|i| map[(i % channels) * pixels + i / channels]).collect()
}

/// Runs a batch by each algorithm that is exact for the layers, and compares it with the reference
/// image by image.
fn check(
    kernel: Kernel,
    layers: Vec<ConvLayer>,
    input: &[u8],
    height: usize,
    width: usize,
    threads: usize,
) {
    let where_exact = |algorithm: Algorithm| -> Vec<Algorithm> {
        let choose = |(index, layer)| {
            if kernel.visit(IsExactFor { algorithm, index, layer }) {
                algorithm
            } else {
                Algorithm::Direct
            }
        };
        layers.iter().enumerate().map(choose).collect()
    };
    let image_len = layers[0].inputs * height * width;
    let pool = (threads > 1)
        .then(|| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    let mut arena = Arena::default();
    let mut expected = Vec::new();
    for image in input.chunks_exact(image_len) {
        let map = reference::run(&layers, image, height, width);
        expected.extend(channels_last(&map, layers.last().unwrap().outputs));
    }
    let batch = Batch { planes: input, height, width };
    for algorithms in [Algorithm::Winograd, Algorithm::Dot, Algorithm::Direct].map(where_exact) {
        let stack = Stack::with_algorithms(layers.clone(), kernel, &algorithms);
        assert!(stack.layers().all(|layer| layer.weights.is_empty()));
        let unpacked = stack.layers_with_weights();
        let weights = unpacked.iter().map(|layer| &layer.weights);
        assert!(weights.eq(layers.iter().map(|layer| &layer.weights)));
        let (channels, out_height, out_width) = stack.output_shape(height, width);
        let mut out = vec![0xaa; input.len() / image_len * channels * out_height * out_width];
        // Twice: what the first run leaves in the arena must not show.
        for _ in 0..if cfg!(miri) { 1 } else { 2 } {
            match &pool {
                Some(pool) => pool.install(|| stack.run(&mut arena, batch, true, &mut out)),
                None => stack.run(&mut arena, batch, false, &mut out),
            }
            assert!(
                out == expected,
                "{} differs from the reference: {algorithms:?}",
                kernel.name()
            );
        }
    }
}

fn suite(name: &str) {
    assert!(Kernel::NAMES.contains(&name));
    let Ok(kernel) = Kernel::from_name(name) else {
        eprintln!("skipped: this CPU cannot run {name}");
        return;
    };
    // Miri looks for access out of bounds, which does not depend on values, and executes some
    // 200,000 steps a second: two blocks of channels, and tiles that reach beyond the image.
    if cfg!(miri) {
        let mut numbers = Numbers::new(1);
        let layers = vec![
            layer(&mut numbers, 1, 17, false, true, Values::Random),
            layer(&mut numbers, 17, 2, true, false, Values::Random),
        ];
        let input = input(&mut numbers, 5 * 3, Values::Random);
        return check(kernel, layers, &input, 5, 3, 1);
    }
    let values = prop_oneof![
        4 => Just(Values::Random),
        1 => Just(Values::Lowest),
        1 => Just(Values::Highest),
        2 => Just(Values::Extremes),
    ];
    let case = (
        (prop_oneof![Just(3), 1usize..40], 1usize..40, 1usize..20, 1usize..20),
        (1usize..9, 1usize..9),
        (any::<[bool; 3]>(), values, any::<u64>(), 1usize..4, 1usize..4),
    );
    // PROPTEST_CASES lowers it, for emulated CPUs.
    let config = ProptestConfig::default();
    let config =
        ProptestConfig { cases: config.cases.min(96), failure_persistence: None, ..config };
    proptest!(config, |((
        (c0, c1, c2, c3), (half_height, half_width), (pools, values, seed, threads, images)
    ) in case)| {
        // Up to three pools, and odd sizes.
        let (height, width) = (half_height * 2 + 7, half_width * 2 + 8);
        let mut numbers = Numbers::new(seed);
        let layers = vec![
            layer(&mut numbers, c0, c1, pools[0], true, values),
            layer(&mut numbers, c1, c2, pools[1], false, values),
            layer(&mut numbers, c2, c3, pools[2], false, values),
        ];
        let input = input(&mut numbers, images * c0 * height * width, values);
        check(kernel, layers, &input, height, width, threads);
    });
    // The widest layer of the base at its extremes: 512 channels, sums near their bounds, the
    // smallest maps.
    for values in [Values::Lowest, Values::Highest, Values::Extremes, Values::Random] {
        for size in [1, 2, 4] {
            let mut numbers = Numbers::new(7);
            let layers = vec![layer(&mut numbers, 512, 64, size > 1, true, values)];
            let input = input(&mut numbers, 512 * size * size, values);
            check(kernel, layers, &input, size, size, 2);
        }
    }
    // The largest sums for which Winograd is exact: 114 channels of 9 products of 255 and 128 are
    // just below 2^25.
    for (values, channels) in
        [(Values::Lowest, 114), (Values::Highest, 115), (Values::Extremes, 256)]
    {
        let mut numbers = Numbers::new(8);
        let layers = vec![
            layer(&mut numbers, 3, channels, false, true, values),
            layer(&mut numbers, channels, 32, true, false, values),
        ];
        assert!(winograd::is_exact_for(&layers[1]), "{values:?}");
        let input = input(&mut numbers, 3 * 13 * 12, values);
        check(kernel, layers, &input, 13, 12, 1);
    }
}

#[test]
fn layers_beyond_the_range_of_winograd_are_detected() {
    let layer = |channels, values| layer(&mut Numbers::new(1), channels, 5, false, false, values);
    assert!(
        winograd::is_exact_for(&layer(114, Values::Lowest))
            && !winograd::is_exact_for(&layer(115, Values::Lowest))
    );
    assert!(
        winograd::is_exact_for(&layer(115, Values::Highest))
            && !winograd::is_exact_for(&layer(116, Values::Highest))
    );
    let mut shifted = layer(4, Values::Random);
    shifted.zero_point = 1;
    assert!(!winograd::is_exact_for(&shifted));
}

macro_rules! suites {
    ($($name:ident: $kernel:literal,)*) => {
        $(#[test] fn $name() { suite($kernel); })*

        #[test]
        fn every_kernel_has_a_suite() {
            assert_eq!(Kernel::NAMES, [$($kernel),*]);
        }
    };
}

suites! {
    portable_equals_reference: "portable",
    avx2_equals_reference: "avx2",
    neon_equals_reference: "neon",
    sdot_equals_reference: "sdot",
}

proptest! {
    #[test]
    fn requantize_rounds_to_nearest_even_and_clamps(
        sum: i32,
        exponent in -31i32..0,
        mantissa in 1.0f32..2.0,
    ) {
        let multiplier = mantissa * 2f32.powi(exponent);
        let expected = (sum as f32 * multiplier).round_ties_even().clamp(0.0, 255.0) as u8;
        prop_assert_eq!(requantize(sum, multiplier), expected);
    }
}

#[test]
fn requantize_at_ties() {
    for (sum, expected) in [
        (-1, 0),
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 2),
        (5, 2),
        (7, 4),
        (509, 254),
        (511, 255),
        (i32::MAX, 255),
        (i32::MIN, 0),
    ] {
        assert_eq!(requantize(sum, 0.5), expected, "{sum} / 2");
    }
}

#[test]
fn layers_that_could_overflow_are_refused() {
    let mut bad = layer(&mut Numbers::new(1), 4, 2, false, false, Values::Highest);
    bad.bias[1] = i32::MAX;
    assert!(matches!(bad.check(), Err(LayerError::Overflow { channel: 1, .. })));
}

#[test]
fn layers_with_wrong_lengths_or_multipliers_are_refused() {
    let good = layer(&mut Numbers::new(1), 4, 2, false, false, Values::Highest);
    good.check().unwrap();
    for multiplier in [f32::NAN, f32::INFINITY, 0.0, -0.5] {
        let mut bad = good.clone();
        bad.multipliers[0] = multiplier;
        assert!(matches!(bad.check(), Err(LayerError::Multiplier { channel: 0, .. })));
    }
    let mut bad = good.clone();
    bad.bias.pop();
    assert!(matches!(bad.check(), Err(LayerError::PerChannel { biases: 1, .. })));
    let bad = ConvLayer { inputs: 3, ..good.clone() };
    assert!(matches!(bad.check(), Err(LayerError::Weights { inputs: 3, .. })));
    let bad = ConvLayer { outputs: 0, ..good };
    assert!(matches!(bad.check(), Err(LayerError::NoChannels { .. })));
}
