//! A convolution in training: 3x3, stride 1, zero padding 1, then 2x2 max pooling if there is any,
//! then ReLU, which gives the same values and gradients as ReLU before the pooling.
//!
//! Maps are channels last, `[images, height, width, channels]`. The convolution is a product of
//! *patches*, the nine pixels around each place in one row, with the kernel. A patch is nine times
//! as large as its pixel, so that products take a few images at a time and the backward pass
//! unfolds the patches again rather than keep those of a batch.

use quant::FloatLayer;
use rayon::prelude::*;

use super::network::{Parameter, relu, relu_backward, sum_rows};
use super::pooling::{max_pool, max_pool_backward};
use super::product::{Matrix, add_product, product};

/// Shape of a map: height, width, channels.
pub type MapShape = [usize; 3];

/// Pixels under a kernel.
const TAPS: usize = 9;

/// Patch values that are unfolded at once (16 MiB), if a single image has not more.
const CHUNK: usize = 4 << 20;

/// The layer.
pub(super) struct Conv {
    inputs: usize,
    outputs: usize,
    /// `[outputs, inputs, 3, 3]`
    pub(super) kernel: Parameter,
    /// `[outputs]`
    pub(super) bias: Parameter,
    /// Whether 2x2 max pooling follows.
    pool: bool,
}

/// What a layer gives, and what its backward pass needs of that.
pub(super) struct Activation {
    /// The map after pooling and ReLU.
    pub(super) map: Vec<f32>,
    /// Which of four values was the largest, if there was pooling.
    largest: Option<Vec<u8>>,
}

impl Conv {
    /// A layer like this one, with kernel and bias from elsewhere.
    pub(super) fn new(layer: &FloatLayer, [kernel, bias]: &[Vec<f32>; 2]) -> Self {
        Self {
            inputs: layer.inputs,
            outputs: layer.outputs,
            kernel: Parameter::kernel(kernel.clone()),
            bias: Parameter::offset(bias.clone()),
            pool: layer.pool,
        }
    }

    /// The shape of what comes out, from that of what goes in.
    pub(super) fn output_shape(&self, [height, width, _]: MapShape) -> MapShape {
        let by = if self.pool { 2 } else { 1 };
        [height / by, width / by, self.outputs]
    }

    /// Convolution, pooling, ReLU.
    pub(super) fn activate(&self, map: &[f32], shape: MapShape) -> Activation {
        let sums = self.convolve(map, shape);
        let (mut map, largest) = if self.pool {
            let [height, width, _] = shape;
            let (map, largest) = max_pool(&sums, [height, width, self.outputs]);
            (map, Some(largest))
        } else {
            (sums, None)
        };
        relu(&mut map);
        Activation { map, largest }
    }

    /// Replaces the gradients by those of `activation`, which `map` has given; `upstream` is the
    /// gradient by it. Returns the gradient by `map` if `by_input` says so.
    pub(super) fn backward(
        &mut self,
        map: &[f32],
        shape: MapShape,
        activation: &Activation,
        mut upstream: Vec<f32>,
        by_input: bool,
    ) -> Option<Vec<f32>> {
        relu_backward(&activation.map, &mut upstream);
        if let Some(largest) = &activation.largest {
            let [height, width, _] = shape;
            upstream = max_pool_backward(&upstream, largest, [height, width, self.outputs]);
        }
        self.convolve_backward(map, shape, &upstream, by_input)
    }

    /// The sums of the convolution.
    fn convolve(&self, map: &[f32], shape: MapShape) -> Vec<f32> {
        let [height, width, _] = shape;
        let kernel = self.by_taps();
        let kernel = Matrix::new(&kernel, self.outputs).transposed();
        let mut sums = vec![0.0; map.len() / self.inputs * self.outputs];
        let images = self.images_at_once(shape);
        let mut patches = Vec::new();
        let chunks = map.chunks(images * height * width * self.inputs);
        for (map, sums) in chunks.zip(sums.chunks_mut(images * height * width * self.outputs)) {
            unfold(map, shape, &mut patches);
            product(Matrix::new(&patches, sums.len() / self.outputs), kernel, sums);
        }
        for pixel in sums.chunks_exact_mut(self.outputs) {
            pixel.iter_mut().zip(&self.bias.values).for_each(|(sum, bias)| *sum += bias);
        }
        sums
    }

    /// Replaces the gradients, given that by the sums; returns that by the map if `by_input` says
    /// so.
    fn convolve_backward(
        &mut self,
        map: &[f32],
        shape: MapShape,
        upstream: &[f32],
        by_input: bool,
    ) -> Option<Vec<f32>> {
        let [height, width, _] = shape;
        let kernel = if by_input { self.by_taps() } else { Vec::new() };
        let mut kernel_gradient = vec![0.0; self.kernel.values.len()];
        let mut map_gradient = vec![0.0; if by_input { map.len() } else { 0 }];
        let images = self.images_at_once(shape);
        let [in_step, out_step] =
            [self.inputs, self.outputs].map(|channels| images * height * width * channels);
        let mut patches = Vec::new();
        for (chunk, (map, upstream)) in
            map.chunks(in_step).zip(upstream.chunks(out_step)).enumerate()
        {
            unfold(map, shape, &mut patches);
            let places = upstream.len() / self.outputs;
            let upstream = Matrix::new(upstream, places);
            let rows = Matrix::new(&patches, places);
            add_product(upstream.transposed(), rows, &mut kernel_gradient);
            if by_input {
                product(upstream, Matrix::new(&kernel, self.outputs), &mut patches);
                let first = chunk * in_step;
                fold(&patches, shape, &mut map_gradient[first..first + map.len()]);
            }
        }
        self.set_kernel_gradient(&kernel_gradient);
        self.bias.gradient = sum_rows(upstream, self.outputs);
        by_input.then_some(map_gradient)
    }

    /// Images whose patches are unfolded at once.
    fn images_at_once(&self, [height, width, _]: MapShape) -> usize {
        (CHUNK / (height * width * TAPS * self.inputs).max(1)).max(1)
    }

    /// The kernel in the order of a patch: `[outputs, 3, 3, inputs]`.
    fn by_taps(&self) -> Vec<f32> {
        let size = TAPS * self.inputs;
        let mut out = vec![0.0; self.kernel.values.len()];
        for (from, to) in self.kernel.values.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
            for (input, taps) in from.chunks_exact(TAPS).enumerate() {
                taps.iter().enumerate().for_each(|(tap, v)| to[tap * self.inputs + input] = *v);
            }
        }
        out
    }

    /// The inverse of [`by_taps`](Self::by_taps), for the gradient.
    fn set_kernel_gradient(&mut self, by_taps: &[f32]) {
        let size = TAPS * self.inputs;
        let outputs = self.kernel.gradient.chunks_exact_mut(size);
        for (to, from) in outputs.zip(by_taps.chunks_exact(size)) {
            for (input, taps) in to.chunks_exact_mut(TAPS).enumerate() {
                let from = from[input..].iter().step_by(self.inputs);
                taps.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

/// Writes the patches of some images, `[images, height, width, 3, 3, channels]`; pixels outside an
/// image are 0.
fn unfold(map: &[f32], [height, width, channels]: MapShape, patches: &mut Vec<f32>) {
    let image = height * width * channels;
    patches.resize(TAPS * map.len(), 0.0);
    patches.par_chunks_exact_mut(TAPS * image).zip(map.par_chunks_exact(image)).for_each(
        |(patches, map)| {
            for (place, patch) in patches.chunks_exact_mut(TAPS * channels).enumerate() {
                let (y, x) = (place / width, place % width);
                for (ky, taps) in patch.chunks_exact_mut(3 * channels).enumerate() {
                    match row_of_patch(y, x, ky, [height, width]) {
                        // The pixels of a row are neighbors in the map too.
                        Some((first, skipped, pixels)) => {
                            let (from, at) = (first * channels, skipped * channels);
                            let len = pixels * channels;
                            taps[..at].fill(0.0);
                            taps[at..at + len].copy_from_slice(&map[from..from + len]);
                            taps[at + len..].fill(0.0);
                        }
                        None => taps.fill(0.0),
                    }
                }
            }
        },
    );
}

/// Adds to each pixel of some images its values in all patches: the backward pass of [`unfold`].
fn fold(patches: &[f32], [height, width, channels]: MapShape, map: &mut [f32]) {
    let image = height * width * channels;
    patches.par_chunks_exact(TAPS * image).zip(map.par_chunks_exact_mut(image)).for_each(
        |(patches, map)| {
            for (place, patch) in patches.chunks_exact(TAPS * channels).enumerate() {
                let (y, x) = (place / width, place % width);
                for (ky, taps) in patch.chunks_exact(3 * channels).enumerate() {
                    if let Some((first, skipped, pixels)) = row_of_patch(y, x, ky, [height, width])
                    {
                        let (to, at) = (first * channels, skipped * channels);
                        let len = pixels * channels;
                        let pairs = map[to..to + len].iter_mut().zip(&taps[at..at + len]);
                        pairs.for_each(|(to, from)| *to += from);
                    }
                }
            }
        },
    );
}

/// Row `ky` of the patch around a place: the first pixel of it within the image, how many before
/// that are outside, and how many are within; `None` if all are outside.
fn row_of_patch(
    y: usize,
    x: usize,
    ky: usize,
    [height, width]: [usize; 2],
) -> Option<(usize, usize, usize)> {
    let row = (y + ky).checked_sub(1).filter(|row| *row < height)?;
    let first = x.saturating_sub(1);
    let last = (x + 1).min(width - 1);
    Some((row * width + first, first + 1 - x, last - first + 1))
}
