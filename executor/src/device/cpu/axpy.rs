//! Products with a matrix `[K, N]` (one column an output): the layout of GPT-2's `Conv1D` and of `matmul`.
//!
//! Every output element is summed over k in order, each product fused into the sum where the machine can; neither the number
//! of activation rows nor the tile nor the thread changes its bits.

use std::ops::Range;

use super::lanes::{Element, Kernel, Lanes};

/// Matrix rows taken at once: for each, a splatted activation stays in a register.
const UNROLL: usize = 4;
/// Activation rows that share one load of the matrix.
const ROWS: usize = 4;
/// Columns whose sums are kept in the innermost cache while all of k passes.
const COLUMNS: usize = 1024;

/// `y[r, n] = sum over k of x[r, k] * w[k, n] (+ bias[n]) (+ residual[r, n])` for all `rows` and the `n` of `range`.
///
/// Demands: `x` f32 `[rows, k]` with rows `ldx` apart, `w` `[k, n]` with rows `ldw` apart, `y` f32 `[rows, n]` with rows `ldy`
/// apart, `bias` f32 `[n]` or null, `residual` like `y` or null are valid; nobody else writes the columns `range` of `y` or
/// reads them meanwhile.
pub(super) struct InOut<E> {
    pub(super) x: *const f32,
    pub(super) ldx: usize,
    pub(super) w: *const E,
    pub(super) ldw: usize,
    pub(super) bias: *const f32,
    pub(super) residual: *const f32,
    pub(super) y: *mut f32,
    pub(super) ldy: usize,
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) range: Range<usize>,
}

impl<E: Element> Kernel for InOut<E> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let mut start = self.range.start;
        while start < self.range.end {
            let count = (self.range.end - start).min(COLUMNS);
            // SAFETY: the columns lie within `range`.
            unsafe {
                for row in 0..self.rows {
                    self.y.add(row * self.ldy + start).write_bytes(0, count);
                }
                let whole = self.k - self.k % UNROLL;
                let mut k = 0;
                while k < whole {
                    self.add_products::<S, UNROLL>(k, start, count);
                    k += UNROLL;
                }
                while k < self.k {
                    self.add_products::<S, 1>(k, start, count);
                    k += 1;
                }
                self.finish(start, count);
            }
            start += count;
        }
    }
}

impl<E: Element> InOut<E> {
    #[inline(always)]
    unsafe fn add_products<S: Lanes, const U: usize>(&self, k: usize, start: usize, count: usize) {
        // SAFETY: as the caller's: matrix rows k..k + U and columns start..start + count are there.
        unsafe {
            let w = self.w.add(k * self.ldw + start);
            let mut row = 0;
            while row < self.rows {
                let rows = (self.rows - row).min(ROWS);
                let x = self.x.add(row * self.ldx + k);
                let y = self.y.add(row * self.ldy + start);
                match rows {
                    1 => accumulate::<S, E, U, 1>(x, self.ldx, w, self.ldw, y, self.ldy, count),
                    2 => accumulate::<S, E, U, 2>(x, self.ldx, w, self.ldw, y, self.ldy, count),
                    3 => accumulate::<S, E, U, 3>(x, self.ldx, w, self.ldw, y, self.ldy, count),
                    _ => accumulate::<S, E, U, ROWS>(x, self.ldx, w, self.ldw, y, self.ldy, count),
                }
                row += rows;
            }
        }
    }

    #[inline(always)]
    unsafe fn finish(&self, start: usize, count: usize) {
        if self.bias.is_null() && self.residual.is_null() {
            return;
        }
        for row in 0..self.rows {
            for n in start..start + count {
                // SAFETY: as the caller's.
                unsafe {
                    let y = self.y.add(row * self.ldy + n);
                    if !self.bias.is_null() {
                        *y += *self.bias.add(n);
                    }
                    if !self.residual.is_null() {
                        *y += *self.residual.add(row * self.ldy + n);
                    }
                }
            }
        }
    }
}

/// `y[r, :count] += x[r, 0] * w[0, :] + ... + x[r, U - 1] * w[U - 1, :]` for `R` rows.
///
/// # Safety
/// All rows are valid, `y` is the caller's own, and the machine has `S`.
#[inline(always)]
pub(super) unsafe fn accumulate<S: Lanes, E: Element, const U: usize, const R: usize>(
    x: *const f32,
    ldx: usize,
    w: *const E,
    ldw: usize,
    y: *mut f32,
    ldy: usize,
    count: usize,
) {
    // SAFETY: `n` stays below `count`; the rest is the caller's.
    unsafe {
        let mut factors = [[S::splat(0.0); U]; R];
        for r in 0..R {
            for u in 0..U {
                factors[r][u] = S::splat(*x.add(r * ldx + u));
            }
        }
        let mut weights = [S::splat(0.0); U];
        let whole = count - count % S::N;
        let mut n = 0;
        while n < whole {
            for u in 0..U {
                weights[u] = E::load::<S>(w.add(u * ldw + n));
            }
            for r in 0..R {
                let at = y.add(r * ldy + n);
                let mut sum = S::load(at);
                for u in 0..U {
                    sum = S::fma(factors[r][u], weights[u], sum);
                }
                S::store(at, sum);
            }
            n += S::N;
        }
        if n < count {
            for u in 0..U {
                weights[u] = E::load_part::<S>(w.add(u * ldw + n), count - n);
            }
            for r in 0..R {
                let at = y.add(r * ldy + n);
                let mut sum = S::load_part(at, count - n);
                for u in 0..U {
                    sum = S::fma(factors[r][u], weights[u], sum);
                }
                S::store_part(at, sum, count - n);
            }
        }
    }
}
