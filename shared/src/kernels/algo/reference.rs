//! The exactness contract in the plainest code: slow, and the bits that every kernel must give.

use crate::kernels::layer::ConvLayer;

/// Convolution, requantization and ReLU, without pooling: u8 `[inputs, height, width]` to u8
/// `[outputs, height, width]`.
pub fn convolve(layer: &ConvLayer, input: &[u8], height: usize, width: usize) -> Vec<u8> {
    let zero_point = i32::from(layer.zero_point);
    let mut out = Vec::with_capacity(layer.outputs * height * width);
    for (output, weights) in layer.weights.chunks_exact(9 * layer.inputs).enumerate() {
        for y in 0..height {
            for x in 0..width {
                let mut sum = layer.bias[output];
                for (plane, filter) in
                    input.chunks_exact(height * width).zip(weights.chunks_exact(9))
                {
                    for (tap, &weight) in filter.iter().enumerate() {
                        let (row, column) =
                            ((y + tap / 3).wrapping_sub(1), (x + tap % 3).wrapping_sub(1));
                        if row < height && column < width {
                            sum += (i32::from(plane[row * width + column]) - zero_point)
                                * i32::from(weight);
                        }
                    }
                }
                let real = sum as f32 * layer.multipliers[output];
                out.push(real.round_ties_even().clamp(0.0, 255.0) as u8);
            }
        }
    }
    out
}

/// 2x2 max pooling with stride 2 of any number of planes of `height` by `width`; an odd last row or
/// column is dropped, as in Keras.
pub fn max_pool(input: &[u8], height: usize, width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(input.len() / 4);
    for plane in input.chunks_exact(height * width) {
        for y in 0..height / 2 {
            for x in 0..width / 2 {
                let at = 2 * y * width + 2 * x;
                let (above, below) = (&plane[at..at + 2], &plane[at + width..at + width + 2]);
                out.push(above[0].max(above[1]).max(below[0]).max(below[1]));
            }
        }
    }
    out
}

/// A chain of layers with their pooling: u8 `[inputs, height, width]` to u8 `[outputs, height,
/// width]` of the last layer.
pub fn run(layers: &[ConvLayer], input: &[u8], height: usize, width: usize) -> Vec<u8> {
    let (mut map, mut height, mut width) = (input.to_vec(), height, width);
    for layer in layers {
        map = convolve(layer, &map, height, width);
        if layer.pool {
            map = max_pool(&map, height, width);
            (height, width) = (height / 2, width / 2);
        }
    }
    map
}
