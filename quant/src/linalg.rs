//! Dense linear algebra in f64 for the rounding of weights: a Gram matrix and its Cholesky factor.
//!
//! Own code, because the result must not depend on the CPU: libraries (faer, nalgebra with BLAS)
//! choose blocking and fused multiply-add by the features of the CPU, and the last bits decide how
//! a weight is rounded.

use std::ops::Range;

use rayon::prelude::*;

use vgg_edge::multiversion;

/// Rows of a tile.
const ROWS: usize = 4;
/// Columns of a tile.
const COLUMNS: usize = 8;
/// Rows of a parallel task; a multiple of [`ROWS`].
const TASK: usize = 64;
/// Columns that are factored at a time.
const PANEL: usize = 128;

/// A symmetric matrix, of which the lower triangle is stored in row-major order, padded to whole
/// tiles.
#[derive(Clone, Debug)]
pub struct Symmetric {
    n: usize,
    stride: usize,
    data: Vec<f64>,
}

/// A block of vectors: `vectors[k]` holds one value for each row of the matrix, in groups of
/// [`COLUMNS`].
struct Vectors {
    count: usize,
    /// `[row / COLUMNS][vector][row % COLUMNS]`.
    data: Vec<f64>,
}

impl Vectors {
    fn new(count: usize, rows: usize) -> Self {
        Self { count, data: vec![0.0; count * rows.next_multiple_of(COLUMNS)] }
    }

    fn set(&mut self, vector: usize, row: usize, value: f64) {
        self.data[(row / COLUMNS * self.count + vector) * COLUMNS + row % COLUMNS] = value;
    }

    fn group(&self, group: usize) -> &[f64] {
        &self.data[group * self.count * COLUMNS..][..self.count * COLUMNS]
    }
}

impl Symmetric {
    /// Creates a matrix of zeros.
    pub fn zero(n: usize) -> Self {
        let stride = n.next_multiple_of(COLUMNS);
        Self { n, stride, data: vec![0.0; stride * n.next_multiple_of(ROWS)] }
    }

    /// Returns the number of rows, and of columns.
    pub fn size(&self) -> usize {
        self.n
    }

    /// Returns the value at a row and a column, in either triangle.
    pub fn at(&self, row: usize, column: usize) -> f64 {
        self.data[row.max(column) * self.stride + row.min(column)]
    }

    /// Adds a value to the diagonal.
    pub fn add_to_diagonal(&mut self, value: f64) {
        for i in 0..self.n {
            self.data[i * self.stride + i] += value;
        }
    }

    /// Adds `v v^T` for each of the vectors; each is `n` values.
    ///
    /// Sums of integers below 2^53 are exact, and therefore independent of the order.
    pub fn add_outer<'a>(&mut self, vectors: impl ExactSizeIterator<Item = &'a [f64]>) {
        let mut packed = Vectors::new(vectors.len(), self.n);
        for (k, vector) in vectors.enumerate() {
            for (row, &value) in vector.iter().enumerate() {
                packed.set(k, row, value);
            }
        }
        self.update(0, &packed, 1.0);
    }

    /// Adds `sign * v v^T` to the rows and columns from `from` (a multiple of [`TASK`]), for
    /// vectors that begin there.
    fn update(&mut self, from: usize, vectors: &Vectors, sign: f64) {
        let stride = self.stride;
        self.data[from * stride..].par_chunks_mut(TASK * stride).enumerate().for_each(
            |(task, rows)| {
                update_rows(rows, stride, from, task * TASK, vectors, sign);
            },
        );
    }

    /// Reorders rows and columns: the new index `i` is the old `order[i]`.
    pub fn permuted(&self, order: &[usize]) -> Self {
        let mut out = Self::zero(self.n);
        out.data.par_chunks_mut(self.stride).zip(order).enumerate().for_each(
            |(i, (row, &from))| {
                for j in 0..=i {
                    row[j] = self.at(from, order[j]);
                }
            },
        );
        out
    }

    /// Returns the lower triangular `l` with `l l^T` equal to this matrix; `None` if it is not
    /// positive definite.
    pub fn cholesky(mut self) -> Option<Lower> {
        let (n, stride) = (self.n, self.stride);
        for start in (0..n).step_by(PANEL) {
            let end = (start + PANEL).min(n);
            // The diagonal block, without tiles.
            for j in start..end {
                let (before, row) = self.data.split_at_mut(j * stride);
                eliminate(row, before, stride, start..j);
                let pivot = row[j] - dot(&row[start..j], &row[start..j]);
                if pivot.is_nan() || pivot <= 0.0 {
                    return None;
                }
                row[j] = pivot.sqrt();
            }
            // The rows below it, each on its own.
            let (above, below) = self.data.split_at_mut(end * stride);
            let rows = n - end;
            below[..rows * stride]
                .par_chunks_mut(stride)
                .for_each(|row| eliminate(row, above, stride, start..end));
            if rows > 0 {
                let mut vectors = Vectors::new(end - start, rows);
                for (row, values) in below[..rows * stride].chunks_exact(stride).enumerate() {
                    for (k, &value) in values[start..end].iter().enumerate() {
                        vectors.set(k, row, value);
                    }
                }
                self.update(end, &vectors, -1.0);
            }
        }
        Some(Lower { n, stride, data: self.data })
    }
}

/// Solves `columns` of one row, with the rows of the factor above it.
fn eliminate(row: &mut [f64], above: &[f64], stride: usize, columns: Range<usize>) {
    let start = columns.start;
    for k in columns {
        let sum = dot(&row[start..k], &above[k * stride + start..k * stride + k]);
        row[k] = (row[k] - sum) / above[k * stride + k];
    }
}

/// Returns the dot product in a fixed tree: four running sums, added in pairs.
#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    let (a_head, a_tail) = a.as_chunks::<4>();
    let (b_head, b_tail) = b.as_chunks::<4>();
    for (a, b) in a_head.iter().zip(b_head) {
        for lane in 0..4 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let mut total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (a, b) in a_tail.iter().zip(b_tail) {
        total += a * b;
    }
    total
}

multiversion! {
    /// Updates the rows `first..` of the part of the matrix that starts at row and column `from`.
    fn update_rows(
        rows: &mut [f64], stride: usize, from: usize, first: usize, vectors: &Vectors, sign: f64,
    ) {
        for group in 0..(first + rows.len() / stride).div_ceil(COLUMNS) {
            if from + group * COLUMNS >= stride {
                break;
            }
            let columns = vectors.group(group);
            for (tile, rows) in rows.chunks_exact_mut(ROWS * stride).enumerate() {
                let row = first + tile * ROWS;
                // Above the diagonal, or beyond the last row.
                let is_above = row + ROWS <= group * COLUMNS;
                if is_above || row / COLUMNS * vectors.count * COLUMNS >= vectors.data.len() {
                    continue;
                }
                let mut sums = [[0.0; COLUMNS]; ROWS];
                let values = vectors.group(row / COLUMNS);
                let part = row % COLUMNS;
                let pairs = values.chunks_exact(COLUMNS).zip(columns.chunks_exact(COLUMNS));
                for (value, column) in pairs {
                    for r in 0..ROWS {
                        for c in 0..COLUMNS {
                            sums[r][c] += value[part + r] * column[c];
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    let to = &mut rows[r * stride + from + group * COLUMNS..][..COLUMNS];
                    for (to, sum) in to.iter_mut().zip(sums) {
                        *to += sign * sum;
                    }
                }
            }
        }
    }
}

/// A lower triangular matrix.
pub struct Lower {
    n: usize,
    stride: usize,
    data: Vec<f64>,
}

impl Lower {
    /// Returns the transpose, upper triangular, by rows: row `i` holds the columns `i..n`.
    pub fn transposed(&self) -> Vec<Vec<f64>> {
        (0..self.n)
            .into_par_iter()
            .map(|i| (i..self.n).map(|j| self.data[j * self.stride + i]).collect())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_cholesky_factor_reproduces_the_matrix(
            n in 1usize..200, count in 1usize..30, seed in any::<u32>(),
        ) {
            let mut random = fastrand::Rng::with_seed(seed.into());
            let mut next = || f64::from(random.i8(..));
            let vectors: Vec<Vec<f64>> =
                (0..count).map(|_| (0..n).map(|_| next()).collect()).collect();
            let mut matrix = Symmetric::zero(n);
            matrix.add_outer(vectors.iter().map(Vec::as_slice));
            for i in 0..n {
                for j in 0..n {
                    let wanted: f64 = vectors.iter().map(|v| v[i] * v[j]).sum();
                    prop_assert_eq!(matrix.at(i, j), wanted);
                }
            }
            let order: Vec<usize> = (0..n).rev().collect();
            prop_assert_eq!(matrix.permuted(&order).at(0, n - 1), matrix.at(n - 1, 0));
            matrix.add_to_diagonal(100.0);
            let upper = matrix.clone().cholesky().unwrap().transposed();
            for i in 0..n {
                for j in 0..=i {
                    let back: f64 = (0..=j).map(|k| upper[k][i - k] * upper[k][j - k]).sum();
                    let limit = 1e-6 * 16384.0 * count as f64;
                    prop_assert!((back - matrix.at(i, j)).abs() < limit, "{i} {j}");
                }
            }
        }
    }

    #[test]
    fn cholesky_refuses_an_indefinite_matrix() {
        let mut matrix = Symmetric::zero(3);
        matrix.add_outer([[1.0, 2.0, 3.0].as_slice()].into_iter());
        matrix.add_to_diagonal(-5.0);
        assert!(matrix.cholesky().is_none());
    }
}
