//! Matrix products by the `gemm` crate, over strided views.

use crate::threads;
use gemm::Parallelism;
use std::mem::MaybeUninit;

/// A read-only matrix inside a slice.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of consecutive values, `row_stride` apart.
    pub fn rows(data: &'a [f32], row_stride: usize) -> Self {
        Self { data, row_stride, column_stride: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.data.len()
    }
}

/// `(rows of the result, columns of the result, length of the sums)`.
pub type Size = (usize, usize, usize);

/// `out = scale · a · b`; rows of `out` are `row_stride` apart. Every element of those rows' first columns is written.
pub fn matmul(
    out: &mut [MaybeUninit<f32>],
    row_stride: usize,
    size: Size,
    a: View<'_>,
    b: View<'_>,
    scale: f32,
) {
    check(out.len(), row_stride, size, &a, &b);
    // SAFETY: `check` saw that every index of the three matrices lies inside its slice; `out` is only written.
    unsafe { raw(out.as_mut_ptr().cast(), row_stride, false, size, a, b, scale) }
}

/// `out += scale · a · b`.
pub fn matmul_add(out: &mut [f32], row_stride: usize, size: Size, a: View<'_>, b: View<'_>, scale: f32) {
    check(out.len(), row_stride, size, &a, &b);
    // SAFETY: as above.
    unsafe { raw(out.as_mut_ptr(), row_stride, true, size, a, b, scale) }
}

/// `out = scale · a · b` into values that are already there.
pub fn matmul_over(out: &mut [f32], row_stride: usize, size: Size, a: View<'_>, b: View<'_>, scale: f32) {
    check(out.len(), row_stride, size, &a, &b);
    // SAFETY: as above.
    unsafe { raw(out.as_mut_ptr(), row_stride, false, size, a, b, scale) }
}

fn check(out: usize, row_stride: usize, (m, n, k): Size, a: &View<'_>, b: &View<'_>) {
    assert!(m == 0 || n == 0 || (m - 1) * row_stride + n <= out, "matmul: the result does not fit");
    assert!(a.holds(m, k) && b.holds(k, n), "matmul: an argument is too small");
}

/// The product at a raw destination, for results that several tasks write interleaved.
///
/// # Safety
/// `out` must be valid for writes (and reads, if `add`) at `i * row_stride + j` for all `i < m`, `j < n`, and no other task
/// may touch those elements meanwhile; `a` and `b` must hold `m x k` and `k x n`.
pub unsafe fn raw(
    out: *mut f32,
    row_stride: usize,
    add: bool,
    size: Size,
    a: View<'_>,
    b: View<'_>,
    scale: f32,
) {
    let (m, n, k) = size;
    debug_assert!(a.holds(m, k) && b.holds(k, n));
    let threads = threads::current();
    // Below this many multiply-adds, waking another thread costs more than it saves.
    let parallelism =
        if threads > 1 && m * n * k > 1 << 21 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: the caller's promise, which is the one that `gemm` asks for.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            row_stride as isize,
            add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
