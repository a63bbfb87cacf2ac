//! Resizing in integers, byte for byte equal to each pass of Pillow.
//!
//! Own code for exactness: `fast_image_resize` picks SIMD code by CPU and does not promise equal
//! bits. The algorithm is that of Pillow's `Resample.c` (8 bits per channel): a separable filter
//! whose support grows with the reduction, coefficients in 22-bit fixed point, the horizontal pass
//! first. (Pillow 13 starts with the vertical pass for some sizes; there, single pixels differ by
//! 1.)

use serde::{Deserialize, Serialize};

use crate::multiversion;
use crate::pixel::Pixels;

/// The resampling filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Filter {
    /// Pillow's `Image.BILINEAR`: a triangle that widens with the reduction, so it does not alias.
    Bilinear,
    /// Pillow's `Image.NEAREST`: the default of Keras's `load_img`.
    Nearest,
}

impl Filter {
    /// Returns the name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bilinear => "bilinear",
            Self::Nearest => "nearest",
        }
    }

    /// Returns the filter with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Bilinear, Self::Nearest].into_iter().find(|filter| filter.name() == name)
    }
}

/// A part of an image, in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// Left edge.
    pub x: usize,
    /// Upper edge.
    pub y: usize,
    /// Width, at least 1.
    pub width: usize,
    /// Height, at least 1.
    pub height: usize,
}

impl Rect {
    /// Returns the intersection with `outer`; `None` if it is empty.
    pub fn within(self, outer: Self) -> Option<Self> {
        let cut = |at: usize, len: usize, from: usize, size: usize| {
            let (start, end) = (at.max(from), at.saturating_add(len).min(from + size));
            (start < end).then(|| (start, end - start))
        };
        let (x, width) = cut(self.x, self.width, outer.x, outer.width)?;
        let (y, height) = cut(self.y, self.height, outer.y, outer.height)?;
        Some(Self { x, y, width, height })
    }
}

/// Resizes the part `rect` of an image to `width` x `height` pixels of RGB8, row by row. Only rows
/// of that part are read.
///
/// # Panics
/// If `rect` does not lie within the image, or a size is 0.
pub fn resize(
    pixels: &dyn Pixels,
    rect: Rect,
    width: usize,
    height: usize,
    filter: Filter,
) -> Vec<u8> {
    assert!(rect.x + rect.width <= pixels.width() && rect.y + rect.height <= pixels.height());
    assert!(rect.width > 0 && rect.height > 0 && width > 0 && height > 0);
    match filter {
        Filter::Nearest => nearest(pixels, rect, width, height),
        Filter::Bilinear => bilinear(pixels, rect, width, height),
    }
}

/// A row of the source in planes, each followed by zeros, since vectors of weights may extend
/// beyond the last pixel.
struct Row {
    width: usize,
    planes: [Vec<i16>; 3],
}

impl Row {
    fn new(width: usize, margin: usize) -> Self {
        Self { width, planes: std::array::from_fn(|_| vec![0; width + margin]) }
    }

    fn read(&mut self, pixels: &dyn Pixels, y: usize, x: usize) {
        let width = self.width;
        pixels.row(y, x, self.planes.each_mut().map(|plane| &mut plane[..width]));
    }
}

fn nearest(pixels: &dyn Pixels, rect: Rect, width: usize, height: usize) -> Vec<u8> {
    let columns = nearest_indices(rect.width, width);
    let mut row = Row::new(rect.width, 0);
    let mut out = Vec::with_capacity(3 * width * height);
    for y in nearest_indices(rect.height, height) {
        row.read(pixels, rect.y + y, rect.x);
        for &x in &columns {
            out.extend(row.planes.each_ref().map(|plane| plane[x] as u8));
        }
    }
    out
}

/// Returns the source pixel of each target pixel, as in Pillow's affine transform (`Geometry.c`,
/// `ImagingScaleAffine`). It adds the step once per pixel in f64, so the sum is computed the same
/// way here.
fn nearest_indices(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut at = step * 0.5;
    (0..to)
        .map(|_| {
            let index = (at as usize).min(from - 1);
            at += step;
            index
        })
        .collect()
}

/// Fixed-point bits of a coefficient: 32 minus 8 for the pixel and 2 for the overshoot of other
/// filters (Pillow).
const PRECISION: u32 = 32 - 8 - 2;

/// Values of a vector; weights are padded to whole vectors.
const LANES: usize = 8;

/// The coefficients of one axis: the first source pixel and the weights of each target pixel.
///
/// Every target pixel has the same number of weights, padded with zeros to whole vectors, and
/// target pixels are padded to whole vectors too, so that inner loops have neither remainders nor
/// checks.
struct Axis {
    first: Vec<usize>,
    weights: Vec<[i32; LANES]>,
    /// Vectors of weights per target pixel.
    vectors: usize,
}

impl Axis {
    fn new(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let filter_scale = scale.max(1.0);
        // The triangle reaches one pixel to each side, in units of the larger grid.
        let support = filter_scale;
        // Casts to integer round towards zero, as in C; negative values are raised to 0 first.
        let span = |target: usize| {
            let center = (target as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            (center, first, ((center + support + 0.5) as usize).min(from))
        };
        let most = (0..to).map(span).map(|(_, first, end)| end - first).max().unwrap_or_default();
        let vectors = most.div_ceil(LANES);
        let filled = to.next_multiple_of(LANES);
        let mut axis =
            Self { first: vec![0; filled], weights: vec![[0; LANES]; filled * vectors], vectors };
        let mut real = Vec::new();
        for (target, weights) in axis.weights.chunks_exact_mut(vectors).enumerate().take(to) {
            let (center, first, end) = span(target);
            let step = 1.0 / filter_scale;
            real.clear();
            let mut sum = 0.0;
            for source in first..end {
                let distance = (source as f64 - center + 0.5) * step;
                let weight = (1.0 - distance.abs()).max(0.0);
                real.push(weight);
                sum += weight;
            }
            axis.first[target] = first;
            for (weight, &real) in weights.as_flattened_mut().iter_mut().zip(&real) {
                let real = if sum == 0.0 { real } else { real / sum };
                *weight = (0.5 + real * f64::from(1u32 << PRECISION)) as i32;
            }
        }
        axis
    }

    /// Returns the number of zeros after the last source pixel that weights may extend to.
    fn margin(&self) -> usize {
        self.vectors * LANES
    }

    fn of(&self, target: usize) -> (usize, &[i32]) {
        (self.first[target], self.weights[target * self.vectors..][..self.vectors].as_flattened())
    }
}

/// Adds neighbors in `a`, then in `b`, in each half of four: a horizontal addition on x86.
#[inline(always)]
fn fold(a: &[i32; LANES], b: &[i32; LANES]) -> [i32; LANES] {
    [
        a[0] + a[1],
        a[2] + a[3],
        b[0] + b[1],
        b[2] + b[3],
        a[4] + a[5],
        a[6] + a[7],
        b[4] + b[5],
        b[6] + b[7],
    ]
}

/// Computes eight pixels of a horizontal pass from the first source pixel of each and its `N`
/// vectors of weights. The horizontal additions are shared, which takes a fifth of the steps.
#[inline(always)]
fn eight<const N: usize>(
    plane: &[i16],
    first: &[usize; LANES],
    weights: &[[[i32; LANES]; N]; LANES],
) -> [u8; LANES] {
    let mut sums = [[0i32; LANES]; LANES];
    for pixel in 0..LANES {
        let values = &plane[first[pixel]..][..N * LANES];
        for vector in 0..N {
            for lane in 0..LANES {
                sums[pixel][lane] +=
                    i32::from(values[vector * LANES + lane]) * weights[pixel][vector][lane];
            }
        }
    }
    let [a, b, c, d, e, f, g, h] = &sums;
    let left = fold(&fold(a, b), &fold(c, d));
    let right = fold(&fold(e, f), &fold(g, h));
    let mut out = [0u8; LANES];
    for lane in 0..LANES / 2 {
        out[lane] = clamp((1 << (PRECISION - 1)) + left[lane] + left[lane + LANES / 2]);
        out[lane + LANES / 2] =
            clamp((1 << (PRECISION - 1)) + right[lane] + right[lane + LANES / 2]);
    }
    out
}

/// Computes a row of a horizontal pass with `N` vectors of weights per pixel.
#[inline(always)]
fn vectors<const N: usize>(columns: &Axis, plane: &[i16], out: &mut [u8]) {
    let firsts = columns.first.as_chunks().0;
    let weights = columns.weights.as_chunks().0.as_chunks().0;
    for ((out, first), weights) in out.chunks_mut(LANES).zip(firsts).zip(weights) {
        out.copy_from_slice(&eight::<N>(plane, first, weights)[..out.len()]);
    }
}

multiversion! {
    /// Computes one row of a horizontal pass over a plane.
    fn pass(columns: &Axis, plane: &[i16], out: &mut [u8]) {
        match columns.vectors {
            1 => vectors::<1>(columns, plane, out),
            2 => vectors::<2>(columns, plane, out),
            3 => vectors::<3>(columns, plane, out),
            4 => vectors::<4>(columns, plane, out),
            // A reduction by more than 16.
            _ => for (x, out) in out.iter_mut().enumerate() {
                let (first, weights) = columns.of(x);
                let values = plane[first..].iter().zip(weights);
                let products = values.map(|(&value, &weight)| i32::from(value) * weight);
                *out = clamp((1 << (PRECISION - 1)) + products.sum::<i32>());
            },
        }
    }
}

multiversion! {
    /// Computes one row of the result, in planes, from the rows that it covers.
    fn blend(rows: &[u8], weights: &[i32], sums: &mut [i32]) {
        sums.fill(1 << (PRECISION - 1));
        for (row, &weight) in rows.chunks_exact(sums.len()).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
    }
}

fn bilinear(pixels: &dyn Pixels, rect: Rect, width: usize, height: usize) -> Vec<u8> {
    // Pillow skips a pass that changes nothing, which gives the same as running it: its weights are
    // 1 and 0.
    let columns = Axis::new(rect.width, width);
    let rows = Axis::new(rect.height, height);

    let mut row = Row::new(rect.width, columns.margin());
    let mut wide = vec![0u8; 3 * width * rect.height];
    for (y, out) in wide.chunks_exact_mut(3 * width).enumerate() {
        row.read(pixels, rect.y + y, rect.x);
        for (plane, out) in row.planes.iter().zip(out.chunks_exact_mut(width)) {
            pass(&columns, plane, out);
        }
    }

    let mut out = vec![0u8; 3 * width * height];
    let mut sums = vec![0i32; 3 * width];
    for (y, out) in out.chunks_exact_mut(3 * width).enumerate() {
        let (first, weights) = rows.of(y);
        blend(&wide[3 * width * first..], weights, &mut sums);
        let (r, rest) = sums.split_at(width);
        let (g, b) = rest.split_at(width);
        for (((pixel, &r), &g), &b) in out.chunks_exact_mut(3).zip(r).zip(g).zip(b) {
            pixel.copy_from_slice(&[clamp(r), clamp(g), clamp(b)]);
        }
    }
    out
}

#[inline(always)]
fn clamp(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Image;

    /// Pixels of a generator that Pillow was given as well: the hashes below depend on it.
    fn frame(width: usize, height: usize, seed: u32) -> Image {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 7) as u8
        };
        Image::new(width, height, (0..3 * width * height).map(|_| next()).collect()).unwrap()
    }

    fn whole(frame: &Image) -> Rect {
        Rect { x: 0, y: 0, width: frame.width(), height: frame.height() }
    }

    /// The triangle filter in f64, without separation or intermediate rounding: within two steps of
    /// the fixed-point result.
    fn real(frame: &Image, width: usize, height: usize, x: usize, y: usize, channel: usize) -> f64 {
        let weights = |from: usize, to: usize, at: usize| -> Vec<f64> {
            let scale = from as f64 / to as f64;
            let center = (at as f64 + 0.5) * scale;
            let w: Vec<f64> = (0..from)
                .map(|s| (1.0 - ((s as f64 + 0.5 - center) / scale.max(1.0)).abs()).max(0.0))
                .collect();
            let sum: f64 = w.iter().sum();
            w.into_iter().map(|v| v / sum).collect()
        };
        let (wx, wy) = (weights(frame.width(), width, x), weights(frame.height(), height, y));
        let mut sum = 0.0;
        for (j, wy) in wy.iter().enumerate() {
            for (i, wx) in wx.iter().enumerate() {
                sum += wx * wy * f64::from(frame.rgb()[3 * (j * frame.width() + i) + channel]);
            }
        }
        sum
    }

    /// Limit of the sides of images that are compared with [`real`], whose work grows with the
    /// fourth power.
    const SIDE: usize = if cfg!(miri) { 7 } else { 40 };

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 48 }))]
        #[test]
        fn resizing_is_close_to_the_real_filter(
            w in 1..SIDE, h in 1..SIDE, tw in 1..SIDE, th in 1..SIDE, seed: u32,
        ) {
            let frame = frame(w, h, seed);
            let out = resize(&frame, whole(&frame), tw, th, Filter::Bilinear);
            for y in 0..th {
                for x in 0..tw {
                    for channel in 0..3 {
                        let got = f64::from(out[3 * (y * tw + x) + channel]);
                        prop_assert!((got - real(&frame, tw, th, x, y, channel)).abs() <= 1.51);
                    }
                }
            }
        }

        #[test]
        fn resizing_to_the_same_size_changes_nothing(
            w in 1usize..20, h in 1usize..20, seed: u32, bilinear: bool,
        ) {
            let frame = frame(w, h, seed);
            let filter = if bilinear { Filter::Bilinear } else { Filter::Nearest };
            prop_assert_eq!(resize(&frame, whole(&frame), w, h, filter), frame.rgb());
        }

        #[test]
        fn resizing_a_part_equals_resizing_an_image_of_its_own(
            x in 0usize..9, y in 0usize..9, w in 1usize..9, h in 1usize..9, seed: u32,
        ) {
            let frame = frame(20, 20, seed);
            let rect = Rect { x, y, width: w, height: h };
            let cut: Vec<u8> = (y..y + h)
                .flat_map(|row| frame.rgb()[3 * (row * 20 + x)..][..3 * w].to_vec())
                .collect();
            let cut = Image::new(w, h, cut).unwrap();
            for filter in [Filter::Bilinear, Filter::Nearest] {
                let expected = resize(&cut, whole(&cut), 7, 5, filter);
                prop_assert_eq!(resize(&frame, rect, 7, 5, filter), expected);
            }
        }
    }

    /// SHA-256 prefixes of the results of Pillow 13.0 for the same images: `im.resize((tw, h),
    /// f).resize((tw, th), f)`.
    #[test]
    fn resizing_equals_pillow() {
        #[rustfmt::skip]
        let golden = [
            (97, 61, 64, 64, 1, Filter::Bilinear, "ed7196b23a469c91"),
            (97, 61, 64, 64, 1, Filter::Nearest, "a24301f07610b4f2"),
            (640, 480, 64, 64, 2, Filter::Bilinear, "50c6bc2feaa6a6f8"),
            (640, 480, 64, 64, 2, Filter::Nearest, "d496fce9f402deb9"),
            (5, 7, 64, 96, 3, Filter::Bilinear, "9b07bf14f63cdde6"),
            (5, 7, 64, 96, 3, Filter::Nearest, "9da5d855d35eecc9"),
            (33, 200, 32, 32, 4, Filter::Bilinear, "88384cd9348a6bd8"),
            (33, 200, 32, 32, 4, Filter::Nearest, "471b289fd18ade37"),
            (1, 1, 32, 32, 5, Filter::Bilinear, "3ce1f878cee69d12"),
            (1, 1, 32, 32, 5, Filter::Nearest, "3ce1f878cee69d12"),
            (300, 300, 224, 224, 6, Filter::Bilinear, "5353148936ffe1b5"),
            (300, 300, 224, 224, 6, Filter::Nearest, "7f82116ef564527f"),
            (1000, 31, 128, 64, 7, Filter::Bilinear, "d3b5428043f77d39"),
            (1000, 31, 128, 64, 7, Filter::Nearest, "5582b0ed6c456e8a"),
            (3, 1000, 64, 64, 8, Filter::Bilinear, "e469a2f4ca7721e5"),
            (3, 1000, 64, 64, 8, Filter::Nearest, "82df850603d0030a"),
        ];
        // Miri checks memory accesses, and takes minutes for the larger ones.
        for (w, h, tw, th, seed, filter, hash) in
            golden.into_iter().filter(|&(w, h, ..)| !cfg!(miri) || w * h < 100)
        {
            let frame = frame(w, h, seed);
            let out = resize(&frame, whole(&frame), tw, th, filter);
            let got = crate::Fingerprint::of(&out).to_string();
            assert_eq!(&got[..16], hash, "{w}x{h} to {tw}x{th}, {filter:?}");
        }
    }
}
