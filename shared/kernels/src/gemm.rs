//! f32 products through the `gemm` crate.

use gemm::Parallelism;

/// A read-only matrix of f32 inside a slice.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows of `cols` values, `row_stride` apart.
    ///
    /// # Panics
    /// When `data` is shorter than the matrix: a fault of the caller, checked because `gemm` would read past the end.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check_len(data.len(), rows, cols, row_stride);
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The same values, rows and columns exchanged.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

fn check_len(len: usize, rows: usize, cols: usize, row_stride: usize) {
    let last = rows.saturating_sub(1).checked_mul(row_stride).and_then(|start| start.checked_add(cols));
    let fits = rows == 0 || cols == 0 || last.is_some_and(|needed| needed <= len);
    assert!(fits, "matrix of {rows} x {cols}, rows {row_stride} apart, in a slice of {len}");
}

/// How many threads one product may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The caller's.
    One,
    /// All of rayon's.
    All,
}

/// `dst = scale · a · b`, or `dst += scale · a · b` when `accumulate`. `dst` is `[a.rows, b.cols]`, rows `dst_stride` apart.
///
/// # Panics
/// When the shapes do not fit or `dst` is too short.
pub fn matmul(
    dst: &mut [f32],
    dst_stride: usize,
    a: Mat<'_>,
    b: Mat<'_>,
    scale: f32,
    accumulate: bool,
    threads: Threads,
) {
    assert_eq!(a.cols, b.rows, "inner dimensions of a matrix product differ");
    check_len(dst.len(), a.rows, b.cols, dst_stride);
    assert!(dst_stride >= b.cols || a.rows <= 1, "rows of {} values, {dst_stride} apart", b.cols);
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: the lengths of all three slices were checked against shapes and strides above (`Mat` is only built
    // by `new` and `t`), `dst` is exclusively borrowed, and f32 has no invalid values.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            dst.as_mut_ptr(),
            1,
            dst_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            if accumulate { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37 + seed).sin() * 3.0).collect()
    }

    #[test]
    fn matmul_takes_strides_and_transposes() {
        let (a, b) = (values(12, 0.1), values(12, 0.7));
        let mut dst = vec![1.0; 9];
        matmul(&mut dst, 3, Mat::new(&a, 3, 4, 4), Mat::new(&b, 3, 4, 4).t(), 2.0, true, Threads::One);
        for i in 0..3 {
            for j in 0..3 {
                let plain: f32 = (0..4).map(|k| a[i * 4 + k] * b[j * 4 + k]).sum();
                assert!((dst[i * 3 + j] - (1.0 + 2.0 * plain)).abs() < 1e-4);
            }
        }
    }

    #[test]
    #[should_panic(expected = "in a slice of 11")]
    fn a_matrix_longer_than_its_slice_is_refused() {
        Mat::new(&[0.0; 11], 3, 4, 4);
    }
}
