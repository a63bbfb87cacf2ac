//! Matrix products, by the `f32` kernels of the crate `gemm`.

use gemm_common::Parallelism;

/// Multiplications from which on a product is worth several threads.
const PARALLEL: usize = 192 * 192 * 192;

/// A matrix over borrowed values, row by row or, transposed, column by column.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// The matrix `[rows, values / rows]` whose rows are stored one after the other.
    ///
    /// # Panics
    /// If the values are not whole rows.
    pub(super) fn new(values: &'a [f32], rows: usize) -> Self {
        assert!(rows > 0 && values.len().is_multiple_of(rows), "a matrix has whole rows");
        Self { values, rows, columns: values.len() / rows, transposed: false }
    }

    /// The transposed matrix; no value is moved.
    pub(super) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, transposed: !self.transposed, ..self }
    }

    /// Distance from one row and from one column to the next.
    fn strides(&self) -> (isize, isize) {
        let length = if self.transposed { self.rows } else { self.columns };
        let along = length as isize;
        if self.transposed { (1, along) } else { (along, 1) }
    }
}

/// Writes `left * right` into `out`, row by row.
pub(super) fn product(left: Matrix, right: Matrix, out: &mut [f32]) {
    let work = left.rows.saturating_mul(right.columns).saturating_mul(left.columns);
    let threads = if work >= PARALLEL { Parallelism::Rayon(0) } else { Parallelism::None };
    multiply(left, right, out, false, threads);
}

/// As [`product`], on the calling thread.
pub(super) fn product_alone(left: Matrix, right: Matrix, out: &mut [f32]) {
    multiply(left, right, out, false, Parallelism::None);
}

/// Adds `left * right` to `out`, on the calling thread.
pub(super) fn add_product_alone(left: Matrix, right: Matrix, out: &mut [f32]) {
    multiply(left, right, out, true, Parallelism::None);
}

/// Each value of `out` is one sum over all columns of `left`, whose order depends on the shapes and
/// the processor only: threads divide the output.
fn multiply(left: Matrix, right: Matrix, out: &mut [f32], add: bool, threads: Parallelism) {
    let (rows, inner, columns) = (left.rows, left.columns, right.columns);
    assert_eq!(inner, right.rows, "inner dimensions of a product");
    assert_eq!(out.len(), rows * columns, "size of a product");
    let (left_row, left_column) = left.strides();
    let (right_row, right_column) = right.strides();
    // The kernels prefer an output that is stored column by column, as the transposed product is:
    // right^T * left^T. Which of the two is computed decides the order of sums.
    let swap = columns > 1;
    let (a, a_row, a_column, a_rows) = if swap {
        (right.values, right_column, right_row, columns)
    } else {
        (left.values, left_row, left_column, rows)
    };
    let (b, b_row, b_column, b_columns) = if swap {
        (left.values, left_column, left_row, rows)
    } else {
        (right.values, right_row, right_column, columns)
    };
    let out_column = if swap { columns as isize } else { 1 };
    let kept = if add { 1.0 } else { 0.0 };
    let kernel = gemm_f32::gemm::f32::get_gemm_fn();
    // SAFETY: the strides stay within the slices, whose lengths were checked when the matrices were
    // made and, for `out`, above; `out` is borrowed mutably, so nothing else reads or writes it.
    unsafe {
        #[rustfmt::skip]
        kernel(
            a_rows, b_columns, inner,
            out.as_mut_ptr(), out_column, 1, add,
            a.as_ptr(), a_column, a_row,
            b.as_ptr(), b_column, b_row,
            kept, 1.0, false, false, false, threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every orientation against three loops, for shapes with and without remainders.
    #[test]
    fn products_match_three_loops() {
        for (rows, inner, columns) in [(1, 1, 1), (5, 7, 1), (1, 9, 4), (13, 31, 17), (40, 3, 64)] {
            let value = |index: usize, step: usize| ((index * step) % 23) as f32 - 11.0;
            let left: Vec<f32> = (0..rows * inner).map(|i| value(i, 7)).collect();
            let right: Vec<f32> = (0..inner * columns).map(|i| value(i, 5)).collect();
            let flip = |values: &[f32], rows: usize| -> Vec<f32> {
                let columns = values.len() / rows;
                (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
            };
            let (left_flipped, right_flipped) = (flip(&left, rows), flip(&right, inner));
            let lefts = [Matrix::new(&left, rows), Matrix::new(&left_flipped, inner).transposed()];
            let rights =
                [Matrix::new(&right, inner), Matrix::new(&right_flipped, columns).transposed()];
            // Sums of small integers are exact in any order.
            let expected: Vec<f32> = (0..rows * columns)
                .map(|i| {
                    let (row, column) = (i / columns, i % columns);
                    (0..inner).map(|k| left[row * inner + k] * right[k * columns + column]).sum()
                })
                .collect();
            for (left, right) in lefts.into_iter().flat_map(|l| rights.map(|r| (l, r))) {
                let mut out = vec![f32::NAN; rows * columns];
                product(left, right, &mut out);
                assert_eq!(out, expected);
                product_alone(left, right, &mut out);
                assert_eq!(out, expected);
                add_product_alone(left, right, &mut out);
                assert!(out.iter().zip(&expected).all(|(out, e)| *out == 2.0 * e));
            }
        }
    }
}
