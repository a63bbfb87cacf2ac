//! 3x3 convolutions by Winograd's method: F(2x2, 3x3) of Lavin and Gray 2016, arXiv:1509.09308.
//!
//! A map is cut into tiles of 2x2 outputs, each with the 4x4 inputs that it depends on. Inputs `d`
//! and kernel `g` of a tile are transformed to 4x4 values each, which are multiplied one by one;
//! the sums of the products over the channels are transformed to the outputs:
//!
//! ```text
//! V = B^T d B,  U = G g G^T,  M = sum_channels U V,  Y = A^T M A
//! ```
//!
//! That takes 16 multiplications where the definition takes 36. For each of the 16 *planes*, the
//! values of all tiles and channels are matrices, of which `M` is a product. Each step is linear,
//! so that the backward pass is made of the transposed steps in reverse.
//!
//! Maps are channels last, `[images, height, width, channels]`; planes `[16, tiles, channels]`.

use gemm_common::pulp::Arch;
use rayon::prelude::*;

use super::conv::MapShape;
use super::product::{Matrix, add_product_alone, product_alone};

/// Pixels under a kernel.
const TAPS: usize = 9;

/// Values of a transformed tile.
const PLANES: usize = 16;

/// Values of planes that are held at once (16 MiB), if a single image has not more.
const CHUNK: usize = 4 << 20;

/// One dimension of a transform: row `r` has the coefficients of plane `r` in that dimension, for
/// as many values as it spans.
struct Transform<const N: usize> {
    matrix: [[f32; N]; 4],
    /// Pixels that a tile of a map begins before its outputs.
    padding: usize,
}

/// `B^T`
const INPUT: Transform<4> = Transform {
    matrix: [
        [1.0, 0.0, -1.0, 0.0],
        [0.0, 1.0, 1.0, 0.0],
        [0.0, -1.0, 1.0, 0.0],
        [0.0, 1.0, 0.0, -1.0],
    ],
    padding: 1,
};

/// `G`
const KERNEL: Transform<3> = Transform {
    matrix: [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]],
    padding: 0,
};

/// `A`
const OUTPUT: Transform<2> =
    Transform { matrix: [[1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [0.0, -1.0]], padding: 0 };

impl<const N: usize> Transform<N> {
    /// Coefficient of a plane for the value at `row` and `column` of a tile.
    fn coefficient(&self, plane: usize, row: usize, column: usize) -> f32 {
        self.matrix[plane / 4][row] * self.matrix[plane % 4][column]
    }

    /// Row, column and coefficient of each value of a tile that a plane depends on.
    fn values_of(&self, plane: usize) -> Vec<(usize, usize, f32)> {
        let places = (0..N).flat_map(|row| (0..N).map(move |column| (row, column)));
        let values =
            places.map(|(row, column)| (row, column, self.coefficient(plane, row, column)));
        values.filter(|(_, _, coefficient)| *coefficient != 0.0).collect()
    }

    /// Plane and coefficient of each plane that depends on a value of a tile.
    fn planes_of(&self, row: usize, column: usize) -> Vec<(usize, f32)> {
        let planes = (0..PLANES).map(|plane| (plane, self.coefficient(plane, row, column)));
        planes.filter(|(_, coefficient)| *coefficient != 0.0).collect()
    }

    /// Computes a plane of some images, `[tiles, channels]`.
    fn gather(&self, map: &[f32], grid: Grid, plane: usize, out: &mut [f32]) {
        let values = self.values_of(plane);
        let mut terms = Vec::with_capacity(PLANES);
        let images = map.chunks_exact(grid.image());
        for (map, out) in images.zip(out.chunks_exact_mut(grid.tiles() * grid.channels)) {
            for (tile, out) in out.chunks_exact_mut(grid.channels).enumerate() {
                out.fill(0.0);
                terms.clear();
                terms.extend(values.iter().filter_map(|&(row, column, coefficient)| {
                    Some((grid.pixel(tile, row, column, self.padding)?, coefficient))
                }));
                add_all(out, map, &terms);
            }
        }
    }

    /// Adds all planes of some images to their pixels: the transpose of [`gather`](Self::gather).
    fn scatter(&self, planes: &[f32], grid: Grid, map: &mut [f32]) {
        let places = (0..N).flat_map(|row| (0..N).map(move |column| (row, column)));
        let places: Vec<_> =
            places.map(|(row, column)| (row, column, self.planes_of(row, column))).collect();
        let plane_len = planes.len() / PLANES;
        let image_len = grid.tiles() * grid.channels;
        map.par_chunks_exact_mut(grid.image()).enumerate().for_each(|(image, map)| {
            let mut terms = Vec::with_capacity(PLANES);
            for tile in 0..grid.tiles() {
                let at = image * image_len + tile * grid.channels;
                for (row, column, planes_of_value) in &places {
                    let Some(first) = grid.pixel(tile, *row, *column, self.padding) else {
                        continue;
                    };
                    terms.clear();
                    terms.extend(planes_of_value.iter().map(|(p, c)| (p * plane_len + at, *c)));
                    add_all(&mut map[first..first + grid.channels], planes, &terms);
                }
            }
        });
    }
}

/// The tiles of a map.
#[derive(Clone, Copy)]
struct Grid {
    height: usize,
    width: usize,
    channels: usize,
}

impl Grid {
    fn new([height, width, _]: MapShape, channels: usize) -> Self {
        Self { height, width, channels }
    }

    /// Values of an image.
    fn image(self) -> usize {
        self.height * self.width * self.channels
    }

    /// Tiles of an image.
    fn tiles(self) -> usize {
        self.height.div_ceil(2) * self.width.div_ceil(2)
    }

    /// Where the first channel of a pixel of a tile is in the image; `None` outside of it.
    fn pixel(self, tile: usize, row: usize, column: usize, padding: usize) -> Option<usize> {
        let columns = self.width.div_ceil(2);
        let y = (tile / columns * 2 + row).checked_sub(padding).filter(|y| *y < self.height)?;
        let x = (tile % columns * 2 + column).checked_sub(padding).filter(|x| *x < self.width)?;
        Some((y * self.width + x) * self.channels)
    }
}

/// Inputs and outputs of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Channels {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Channels {
    /// Images whose planes are held at once.
    fn images_at_once(self, shape: MapShape) -> usize {
        let grid = Grid::new(shape, self.inputs.max(self.outputs));
        (CHUNK / (PLANES * grid.tiles() * grid.channels).max(1)).max(1)
    }
}

/// Computes the sums of a convolution over some images; `kernel` is `[outputs, inputs, 3, 3]`.
pub(super) fn convolve(
    map: &[f32],
    shape: MapShape,
    channels: Channels,
    kernel: &[f32],
) -> Vec<f32> {
    let Channels { inputs, outputs } = channels;
    let kernel = transform_kernel(kernel, channels);
    let (from, to) = (Grid::new(shape, inputs), Grid::new(shape, outputs));
    let images = channels.images_at_once(shape);
    let mut sums = vec![0.0; map.len() / inputs * outputs];
    let (mut input_planes, mut products) = (Vec::new(), Vec::new());
    let chunks = map.chunks(images * from.image());
    for (map, sums) in chunks.zip(sums.chunks_mut(images * to.image())) {
        let tiles = map.len() / from.image() * from.tiles();
        input_planes.resize(PLANES * tiles * inputs, 0.0);
        products.resize(PLANES * tiles * outputs, 0.0);
        (products.par_chunks_exact_mut(tiles * outputs))
            .zip(input_planes.par_chunks_exact_mut(tiles * inputs))
            .zip(kernel.par_chunks_exact(outputs * inputs))
            .enumerate()
            .for_each(|(plane, ((products, input), kernel))| {
                INPUT.gather(map, from, plane, input);
                let kernel = Matrix::new(kernel, outputs).transposed();
                product_alone(Matrix::new(input, tiles), kernel, products);
            });
        OUTPUT.scatter(&products, to, sums);
    }
    sums
}

/// Returns the gradients of a convolution by its kernel and, if `by_map` is set, by its map, given
/// the gradient by its sums.
pub(super) fn convolve_backward(
    map: &[f32],
    shape: MapShape,
    channels: Channels,
    kernel: &[f32],
    upstream: &[f32],
    by_map: bool,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let Channels { inputs, outputs } = channels;
    let kernel = if by_map { transform_kernel(kernel, channels) } else { Vec::new() };
    let (from, to) = (Grid::new(shape, inputs), Grid::new(shape, outputs));
    let images = channels.images_at_once(shape);
    let mut kernel_planes = vec![0.0; PLANES * inputs * outputs];
    let mut map_gradient = vec![0.0; if by_map { map.len() } else { 0 }];
    let (mut input_planes, mut upstream_planes) = (Vec::new(), Vec::new());
    let chunks = map.chunks(images * from.image()).zip(upstream.chunks(images * to.image()));
    for (chunk, (map, upstream)) in chunks.enumerate() {
        let tiles = map.len() / from.image() * from.tiles();
        input_planes.resize(PLANES * tiles * inputs, 0.0);
        upstream_planes.resize(PLANES * tiles * outputs, 0.0);
        (kernel_planes.par_chunks_exact_mut(inputs * outputs))
            .zip(input_planes.par_chunks_exact_mut(tiles * inputs))
            .zip(upstream_planes.par_chunks_exact_mut(tiles * outputs))
            .enumerate()
            .for_each(|(plane, ((by_kernel, input), upstream_plane))| {
                INPUT.gather(map, from, plane, input);
                OUTPUT.gather(upstream, to, plane, upstream_plane);
                let upstream = Matrix::new(upstream_plane, tiles);
                add_product_alone(upstream.transposed(), Matrix::new(input, tiles), by_kernel);
                if by_map {
                    let size = inputs * outputs;
                    let kernel = Matrix::new(&kernel[plane * size..][..size], outputs);
                    product_alone(upstream, kernel, input);
                }
            });
        if by_map {
            let first = chunk * images * from.image();
            INPUT.scatter(&input_planes, from, &mut map_gradient[first..first + map.len()]);
        }
    }
    (kernel_gradient(&kernel_planes, channels), by_map.then_some(map_gradient))
}

/// The planes of a kernel, `[16, outputs, inputs]`.
fn transform_kernel(kernel: &[f32], Channels { inputs, outputs }: Channels) -> Vec<f32> {
    let size = inputs * outputs;
    let mut taps = vec![0.0; kernel.len()];
    taps.par_chunks_exact_mut(size).enumerate().for_each(|(tap, out)| {
        out.iter_mut().zip(kernel[tap..].iter().step_by(TAPS)).for_each(|(to, from)| *to = *from);
    });
    let mut planes = vec![0.0; PLANES * size];
    planes.par_chunks_exact_mut(size).enumerate().for_each(|(plane, out)| {
        let values = KERNEL.values_of(plane).into_iter();
        let terms: Vec<_> = values.map(|(r, c, factor)| ((r * 3 + c) * size, factor)).collect();
        add_all(out, &taps, &terms);
    });
    planes
}

/// The gradient by a kernel, `[outputs, inputs, 3, 3]`, from that by its planes.
fn kernel_gradient(planes: &[f32], Channels { inputs, outputs }: Channels) -> Vec<f32> {
    let size = inputs * outputs;
    let mut taps = vec![0.0; TAPS * size];
    taps.par_chunks_exact_mut(size).enumerate().for_each(|(tap, out)| {
        let planes_of_tap = KERNEL.planes_of(tap / 3, tap % 3).into_iter();
        let terms: Vec<_> = planes_of_tap.map(|(plane, factor)| (plane * size, factor)).collect();
        add_all(out, planes, &terms);
    });
    let mut gradient = vec![0.0; TAPS * size];
    gradient.par_chunks_exact_mut(TAPS * inputs).enumerate().for_each(|(output, out)| {
        for (input, out) in out.chunks_exact_mut(TAPS).enumerate() {
            let from = taps[output * inputs + input..].iter().step_by(size);
            out.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        }
    });
    gradient
}

/// As [`add_terms`], with the widest vector instructions of the processor, whose sums are the same.
fn add_all(out: &mut [f32], source: &[f32], terms: &[(usize, f32)]) {
    Arch::new().dispatch(|| add_terms(out, source, terms));
}

/// Adds slices of `source` as long as `out`, each given by its start and a factor.
#[inline(always)]
fn add_terms(out: &mut [f32], source: &[f32], terms: &[(usize, f32)]) {
    let len = out.len();
    let slice = |at: usize| &source[at..at + len];
    let fours = terms.chunks_exact(4);
    let rest = fours.remainder();
    for four in fours {
        // In one pass, so that `out` is read and written once.
        let [a, b, c, d] = [0, 1, 2, 3].map(|term| slice(four[term].0));
        let [fa, fb, fc, fd] = [0, 1, 2, 3].map(|term| four[term].1);
        for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *out += fa * a + fb * b + (fc * c + fd * d);
        }
    }
    for &(at, factor) in rest {
        out.iter_mut().zip(slice(at)).for_each(|(out, value)| *out += factor * value);
    }
}
