//! Backward passes against differences of the forward passes, and convolutions against loops.

use quant::FloatLayer;
use vgg_edge::head::Pool;

use super::super::conv::{Activation, Conv, MapShape};
use super::super::head_network::HeadNetwork;
use super::super::network::Network;
use super::super::pooling::{max_pool, max_pool_backward, pool_all, pool_all_backward};
use super::super::tail_network::{TailNetwork, TailWeights};
use super::*;

/// Half of the distance of a difference.
const STEP: f32 = 5e-3;

/// The sum of the outputs, each times its factor: a loss whose gradient by the outputs is
/// `factors`.
fn weighted(outputs: &[f32], factors: &[f32]) -> f64 {
    assert_eq!(outputs.len(), factors.len());
    outputs.iter().zip(factors).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Checks some values of a gradient against differences; `loss` is of the values with one moved.
/// Returns whether any of them is far from 0.
fn check(
    what: &str,
    values: &[f32],
    gradient: &[f32],
    mut loss: impl FnMut(&[f32]) -> f64,
) -> bool {
    assert_eq!(values.len(), gradient.len());
    let mut moved = values.to_vec();
    let mut largest = 0.0f64;
    for at in (0..values.len()).step_by(values.len().div_ceil(40)) {
        let mut loss_at = |value: f32| {
            moved[at] = value;
            loss(&moved)
        };
        let difference = loss_at(values[at] + STEP) - loss_at(values[at] - STEP);
        let difference = difference / f64::from(2.0 * STEP);
        moved[at] = values[at];
        let gradient = f64::from(gradient[at]);
        assert!(
            (gradient - difference).abs() < 4e-3 + 0.01 * difference.abs(),
            "{what}, value {at}: gradient {gradient}, difference {difference}"
        );
        largest = largest.max(gradient.abs());
    }
    largest > 0.05
}

fn dense(stream: &mut random::Stream, inputs: usize, outputs: usize, norm: bool) -> DenseWeights {
    let norm = norm.then(|| BatchNorm {
        gamma: uniform(stream, outputs, 0.5).iter().map(|v| v + 1.0).collect(),
        ..BatchNorm::new(outputs)
    });
    let kernel = uniform(stream, inputs * outputs, 0.7);
    DenseWeights { inputs, outputs, kernel, bias: uniform(stream, outputs, 0.2), norm }
}

/// All parameters of heads with and without batch normalization, and the features.
#[test]
fn dense_and_batch_norm_gradients_match_differences() {
    let mut meaningful = 0;
    for (norm, rows, hidden) in [(false, 5, 4), (true, 5, 4), (false, 1, 3), (true, 6, 1)] {
        let mut stream = random::Random::new(3).weights;
        let (inputs, outputs) = (6, 3);
        let layers = [
            dense(&mut stream, inputs, hidden, norm),
            dense(&mut stream, hidden, outputs, norm),
            dense(&mut stream, outputs, outputs, false),
        ];
        let features = uniform(&mut stream, rows * inputs, 1.0);
        let factors = uniform(&mut stream, rows * outputs, 1.0);

        let mut network = HeadNetwork::new(&layers);
        network.forward(features.clone(), rows, None);
        let by_features = network.propagate(factors.clone(), true).unwrap();
        let what = format!("batch norm {norm}, {rows} rows");
        let logits =
            |features: &[f32]| HeadNetwork::new(&layers).forward(features.to_vec(), rows, None);
        let loss = |features: &[f32]| weighted(&logits(features), &factors);
        let found = check(&format!("{what}, features"), &features, &by_features, loss);
        meaningful += usize::from(found);
        for (index, parameter) in network.parameters().iter().enumerate() {
            let what = format!("{what}, parameter {index}");
            let loss = |values: &[f32]| {
                let mut network = HeadNetwork::new(&layers);
                network.parameters_mut()[index].values = values.to_vec();
                weighted(&network.forward(features.clone(), rows, None), &factors)
            };
            let found = check(&what, &parameter.values, &parameter.gradient, loss);
            meaningful += usize::from(found);
        }
    }
    assert!(meaningful > 20, "gradients near 0 show nothing: {meaningful}");
}

/// With dropout, values that a mask drops have a gradient of 0 and the others a larger one.
#[test]
fn dropout_gradients_match_differences() {
    let mut stream = random::Random::new(5).weights;
    let layers = [dense(&mut stream, 6, 8, false), dense(&mut stream, 8, 3, false)];
    let (rows, dropout) = (5, random::Random::new(7).dropout);
    let features = uniform(&mut stream, rows * 6, 1.0);
    let factors = uniform(&mut stream, rows * 3, 1.0);
    let logits = |network: &mut HeadNetwork, features: &[f32]| {
        let stream = &mut dropout.clone();
        network.forward(features.to_vec(), rows, Some(network::Dropout { rate: 0.4, stream }))
    };
    let mut network = HeadNetwork::new(&layers);
    logits(&mut network, &features);
    let gradient = network.propagate(factors.clone(), true).unwrap();
    let loss =
        |features: &[f32]| weighted(&logits(&mut HeadNetwork::new(&layers), features), &factors);
    assert!(check("dropout", &features, &gradient, loss), "gradients near 0 show nothing");
}

fn conv_layer(
    stream: &mut random::Stream,
    inputs: usize,
    outputs: usize,
    pool: bool,
) -> FloatLayer {
    FloatLayer {
        name: "conv".into(),
        inputs,
        outputs,
        kernel: uniform(stream, 9 * inputs * outputs, 0.5),
        bias: uniform(stream, outputs, 0.2),
        pool,
    }
}

fn conv(layer: &FloatLayer) -> Conv {
    Conv::new(layer, &[layer.kernel.clone(), layer.bias.clone()])
}

/// Convolution, ReLU and pooling of one image, in seven loops.
fn naive(layer: &FloatLayer, map: &[f32], [height, width, channels]: MapShape) -> Vec<f32> {
    let mut sums = vec![0.0; height * width * layer.outputs];
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        for output in 0..layer.outputs {
            let mut sum = f64::from(layer.bias[output]);
            for (ky, kx) in (0..3).flat_map(|ky| (0..3).map(move |kx| (ky, kx))) {
                let (Some(y), Some(x)) = ((y + ky).checked_sub(1), (x + kx).checked_sub(1)) else {
                    continue;
                };
                if y >= height || x >= width {
                    continue;
                }
                for input in 0..channels {
                    let weight = layer.kernel[((output * channels + input) * 3 + ky) * 3 + kx];
                    sum += f64::from(weight) * f64::from(map[(y * width + x) * channels + input]);
                }
            }
            sums[(y * width + x) * layer.outputs + output] = sum.max(0.0) as f32;
        }
    }
    if !layer.pool {
        return sums;
    }
    let (rows, columns) = (height / 2, width / 2);
    let pooled = (0..rows * columns * layer.outputs).map(|at| {
        let (place, output) = (at / layer.outputs, at % layer.outputs);
        let (y, x) = (place / columns * 2, place % columns * 2);
        let value = |dy, dx| sums[((y + dy) * width + x + dx) * layer.outputs + output];
        value(0, 0).max(value(0, 1)).max(value(1, 0)).max(value(1, 1))
    });
    pooled.collect()
}

const SHAPES: [MapShape; 5] = [[4, 6, 3], [5, 3, 2], [2, 2, 8], [1, 1, 4], [7, 7, 17]];

#[test]
fn convolutions_match_loops() {
    let mut stream = random::Random::new(1).weights;
    for shape in SHAPES {
        let [height, width, channels] = shape;
        for (outputs, pool) in [(5, false), (1, false), (4, true)] {
            if pool && height.min(width) < 2 {
                continue;
            }
            let layer = conv_layer(&mut stream, channels, outputs, pool);
            let size = height * width * channels;
            let maps = uniform(&mut stream, 3 * size, 1.0);
            let found = conv(&layer).activate(&maps, shape).map;
            let expected: Vec<f32> =
                maps.chunks_exact(size).flat_map(|map| naive(&layer, map, shape)).collect();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-4, "{shape:?}: {found}, {expected}");
            }
        }
    }
}

/// Batches whose patches are unfolded in several pieces: an image alone gives the same bits.
#[test]
fn convolutions_of_batches_match_those_of_images() {
    let mut stream = random::Random::new(2).weights;
    // One image has 2.3 million patch values, so that one is taken at a time.
    let shape = [40, 40, 160];
    let layer = conv_layer(&mut stream, 160, 3, true);
    let size: usize = shape.iter().product();
    let maps = uniform(&mut stream, 3 * size, 1.0);
    let mut conv = conv(&layer);
    let whole = conv.activate(&maps, shape).map;
    let parts: Vec<f32> =
        maps.chunks_exact(size).flat_map(|map| conv.activate(map, shape).map).collect();
    assert!(whole == parts);

    let upstream = uniform(&mut stream, whole.len(), 0.1);
    let mut backward = |maps: &[f32], upstream: &[f32]| {
        let activation: Activation = conv.activate(maps, shape);
        let gradient = conv.backward(maps, shape, &activation, upstream.to_vec(), true);
        (gradient.unwrap(), conv.kernel.gradient.clone())
    };
    let (by_maps, by_kernel) = backward(&maps, &upstream);
    let mut sum = vec![0.0; by_kernel.len()];
    for (image, upstream) in upstream.chunks_exact(whole.len() / 3).enumerate() {
        let (by_map, part) = backward(&maps[image * size..][..size], upstream);
        assert!(by_maps[image * size..][..size] == by_map);
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    for (whole, sum) in by_kernel.iter().zip(sum) {
        assert!((whole - sum).abs() < 1e-3, "{whole}, {sum}");
    }
}

#[test]
fn convolution_gradients_match_differences() {
    let mut stream = random::Random::new(4).weights;
    for shape in SHAPES {
        let [height, width, channels] = shape;
        for pool in [false, true] {
            if pool && height.min(width) < 2 {
                continue;
            }
            let mut layer = conv_layer(&mut stream, channels, 3, pool);
            // Kinks of ReLU and maxima are tested apart: here nearly all sums are above 0.
            layer.bias.iter_mut().for_each(|bias| *bias += 2.0);
            let maps = uniform(&mut stream, 2 * height * width * channels, 0.5);
            let mut trained = conv(&layer);
            let activation = trained.activate(&maps, shape);
            let factors = uniform(&mut stream, activation.map.len(), 1.0);
            let by_maps =
                trained.backward(&maps, shape, &activation, factors.clone(), true).unwrap();
            let loss = |layer: &FloatLayer, maps: &[f32]| {
                weighted(&conv(layer).activate(maps, shape).map, &factors)
            };
            let what = format!("{shape:?}, pooling {pool}");
            check_most(&format!("{what}, map"), &maps, &by_maps, |maps| loss(&layer, maps));
            let (kernel, bias) = (&trained.kernel.gradient, &trained.bias.gradient);
            check_most(&format!("{what}, kernel"), &layer.kernel, kernel, |kernel| {
                loss(&FloatLayer { kernel: kernel.to_vec(), ..layer.clone() }, &maps)
            });
            check_most(&format!("{what}, bias"), &layer.bias, bias, |bias| {
                loss(&FloatLayer { bias: bias.to_vec(), ..layer.clone() }, &maps)
            });
            assert!(trained.backward(&maps, shape, &activation, factors, false).is_none());
        }
    }
}

/// As [`check`], but for a few values with a kink of ReLU or of a maximum within the difference.
fn check_most(what: &str, values: &[f32], gradient: &[f32], mut loss: impl FnMut(&[f32]) -> f64) {
    let mut moved = values.to_vec();
    let (mut wrong, mut checked) = (0, 0);
    for at in (0..values.len()).step_by(values.len().div_ceil(60)) {
        let mut loss_at = |value: f32| {
            moved[at] = value;
            loss(&moved)
        };
        let difference = loss_at(values[at] + STEP) - loss_at(values[at] - STEP);
        let difference = difference / f64::from(2.0 * STEP);
        moved[at] = values[at];
        let error = (f64::from(gradient[at]) - difference).abs();
        wrong += usize::from(error > 4e-3 + 0.01 * difference.abs());
        checked += 1;
    }
    assert!(wrong * 10 <= checked, "{what}: {wrong} of {checked} differ");
    assert!(gradient.iter().any(|g| g.abs() > 0.05), "{what}: gradients near 0 show nothing");
}

#[test]
fn max_pooling_sends_gradients_to_the_first_maximum() {
    // Two channels; an odd last row and column are left out.
    let shape = [3, 5, 2];
    #[rustfmt::skip]
    let map = [
        1.0, 9.0,  2.0, 9.0,   5.0, -1.0,  5.0, -2.0,   70.0, 70.0,
        2.0, 9.0,  0.0, 9.0,   5.0, -3.0,  5.0, -1.0,   70.0, 70.0,
        80.0, 80.0,  80.0, 80.0,  80.0, 80.0,  80.0, 80.0,  80.0, 80.0,
    ];
    let (pooled, largest) = max_pool(&map, shape);
    assert_eq!(pooled, [2.0, 9.0, 5.0, -1.0]);
    let gradient = max_pool_backward(&[10.0, 20.0, 30.0, 40.0], &largest, shape);
    let mut expected = [0.0; 30];
    (expected[2], expected[1], expected[4], expected[5]) = (10.0, 20.0, 30.0, 40.0);
    assert_eq!(gradient, expected);
}

#[test]
fn pooling_gradients_match_differences() {
    let mut stream = random::Random::new(6).weights;
    let shape = [3, 4, 5];
    let maps = uniform(&mut stream, 2 * shape.iter().product::<usize>(), 1.0);
    for pool in [Pool::Flatten, Pool::Avg, Pool::Max] {
        let pooled = pool_all(maps.clone(), pool, shape);
        // Large enough for an average over twelve places.
        let factors = uniform(&mut stream, pooled.features.len(), 3.0);
        let gradient = pool_all_backward(factors.clone(), &pooled, pool, shape);
        check_most(&format!("{pool:?}"), &maps, &gradient, |maps| {
            weighted(&pool_all(maps.to_vec(), pool, shape).features, &factors)
        });
    }
    let tie = pool_all(vec![3.0; 8], Pool::Max, [2, 2, 2]);
    let gradient = pool_all_backward(vec![1.0, 2.0], &tie, Pool::Max, [2, 2, 2]);
    assert_eq!(gradient, [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

/// The whole of a tail and its head, each pooling between them.
#[test]
fn tail_gradients_match_differences() {
    for pool in [Pool::Flatten, Pool::Avg, Pool::Max] {
        let mut stream = random::Random::new(8).weights;
        let shape = [4, 4, 3];
        let mut tail = [conv_layer(&mut stream, 3, 4, false), conv_layer(&mut stream, 4, 6, true)];
        tail.iter_mut().flat_map(|layer| &mut layer.bias).for_each(|bias| *bias += 1.5);
        let inputs = if pool == Pool::Flatten { 24 } else { 6 };
        let weights = TailWeights {
            tail: tail.iter().map(|layer| [layer.kernel.clone(), layer.bias.clone()]).collect(),
            head: vec![dense(&mut stream, inputs, 5, false), dense(&mut stream, 5, 3, false)],
        };
        let rows = 3;
        let features = uniform(&mut stream, rows * 48, 0.5);
        let factors = uniform(&mut stream, rows * 3, 1.0);
        let network = || TailNetwork::new(&tail, &weights, shape, pool);
        let mut trained = network();
        let logits = trained.forward(features.clone(), rows, None);
        assert_eq!(logits, trained.logits(features.clone(), rows));
        trained.backward(factors.clone());
        for (index, parameter) in trained.parameters().iter().enumerate() {
            let what = format!("{pool:?}, parameter {index}");
            check_most(&what, &parameter.values, &parameter.gradient, |values| {
                let mut network = network();
                network.parameters_mut()[index].values = values.to_vec();
                weighted(&network.logits(features.clone(), rows), &factors)
            });
        }
    }
}
