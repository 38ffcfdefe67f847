//! Products with a matrix `[K, N]` (one column an output): the layout of GPT-2's `Conv1D` and of `matmul`.
//!
//! Every output element is summed over k in order, each product fused into the sum where the machine can; neither the number
//! of activation rows nor the tile nor the thread changes its bits. Few rows stream the matrix past sums kept in the cache;
//! many rows first copy a panel of it, which then serves them all from registers.

use std::ops::Range;

use super::lanes::{Element, Kernel, Lanes};
use super::panels::{Pack, Panels, width};

/// Matrix rows taken at once when streaming: for each, a splatted activation stays in a register.
const UNROLL: usize = 4;
/// Activation rows that share one load of the matrix when streaming.
const ROWS: usize = 4;
/// Columns whose sums are kept in the innermost cache while all of k passes.
const COLUMNS: usize = 2048;

/// `y[r, n] = sum over k of x[r, k] * w[k, n] (+ bias[n]) (+ residual[r, n])` for all `rows` and the `n` of `range`.
///
/// Demands: `x` f32 `[rows, k]`, `w` `[k, n]`, `y` f32 `[rows, n]`, `bias` f32 `[n]` or null, `residual` like `y` or null are
/// valid; nobody else writes the columns `range` of `y` or reads them meanwhile; `panel` is f32 `[super::panels::PANEL]` of the caller's own,
/// or null (then many rows stream too).
pub(super) struct InOut<E> {
    pub(super) x: *const f32,
    pub(super) w: *const E,
    pub(super) bias: *const f32,
    pub(super) residual: *const f32,
    pub(super) y: *mut f32,
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) range: Range<usize>,
    pub(super) panel: *mut f32,
}

impl<E: Element> Kernel for InOut<E> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: as the struct demands.
        unsafe {
            if self.rows > S::COLUMNS && !self.panel.is_null() {
                self.by_panels::<S>();
            } else {
                self.streaming::<S>();
            }
            self.finish();
        }
    }
}

impl<E: Element> InOut<E> {
    #[inline(always)]
    unsafe fn streaming<S: Lanes>(&self) {
        let mut start = self.range.start;
        while start < self.range.end {
            let count = (self.range.end - start).min(COLUMNS);
            // SAFETY: the columns lie within `range`.
            unsafe {
                for row in 0..self.rows {
                    self.y.add(row * self.n + start).write_bytes(0, count);
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
            }
            start += count;
        }
    }

    #[inline(always)]
    unsafe fn add_products<S: Lanes, const U: usize>(&self, k: usize, start: usize, count: usize) {
        let n = self.n;
        // SAFETY: as the caller's: matrix rows k..k + U and columns start..start + count are there.
        unsafe {
            let w = self.w.add(k * n + start);
            let mut row = 0;
            while row < self.rows {
                let rows = (self.rows - row).min(ROWS);
                let x = self.x.add(row * self.k + k);
                let y = self.y.add(row * n + start);
                match rows {
                    // The first rows bring the next matrix rows into the cache.
                    1 if row == 0 => accumulate::<S, E, U, 1, true>(x, self.k, w, n, y, n, count),
                    1 => accumulate::<S, E, U, 1, false>(x, self.k, w, n, y, n, count),
                    2 if row == 0 => accumulate::<S, E, U, 2, true>(x, self.k, w, n, y, n, count),
                    2 => accumulate::<S, E, U, 2, false>(x, self.k, w, n, y, n, count),
                    3 if row == 0 => accumulate::<S, E, U, 3, true>(x, self.k, w, n, y, n, count),
                    3 => accumulate::<S, E, U, 3, false>(x, self.k, w, n, y, n, count),
                    _ if row == 0 => accumulate::<S, E, U, ROWS, true>(x, self.k, w, n, y, n, count),
                    _ => accumulate::<S, E, U, ROWS, false>(x, self.k, w, n, y, n, count),
                }
                row += rows;
            }
        }
    }

    #[inline(always)]
    unsafe fn by_panels<S: Lanes>(&self) {
        let matrix = Matrix { w: self.w, n: self.n };
        let panels = Panels { x: self.x, y: self.y, rows: self.rows, k: self.k, n: self.n, panel: self.panel };
        let mut start = self.range.start;
        while start < self.range.end {
            let count = (self.range.end - start).min(width::<S>());
            // SAFETY: as the struct demands.
            unsafe { panels.columns::<S>(&matrix, start, count) };
            start += count;
        }
    }

    #[inline(always)]
    unsafe fn finish(&self) {
        if self.bias.is_null() && self.residual.is_null() {
            return;
        }
        for row in 0..self.rows {
            for n in self.range.clone() {
                // SAFETY: as the struct demands.
                unsafe {
                    let y = self.y.add(row * self.n + n);
                    if !self.bias.is_null() {
                        *y += *self.bias.add(n);
                    }
                    if !self.residual.is_null() {
                        *y += *self.residual.add(row * self.n + n);
                    }
                }
            }
        }
    }
}

/// A matrix as it lies in memory. Demands: `w` is valid for all the rows and columns, of `n`, that are packed.
pub(super) struct Matrix<E> {
    pub(super) w: *const E,
    pub(super) n: usize,
}

impl<E: Element> Pack for Matrix<E> {
    #[inline(always)]
    unsafe fn row<S: Lanes>(&self, k: usize, start: usize, count: usize, to: *mut f32) {
        // SAFETY: as the caller's; the prefetched address is only a hint.
        unsafe {
            let from = self.w.add(k * self.n + start);
            let ahead = from.wrapping_add(16 * self.n).cast::<u8>();
            for line in (0..count * size_of::<E>()).step_by(64) {
                S::prefetch(ahead.wrapping_add(line));
            }
            for at in (0..width::<S>()).step_by(S::N) {
                let left = count.saturating_sub(at);
                let vector = if left >= S::N {
                    E::load::<S>(from.add(at))
                } else {
                    E::load_part::<S>(from.wrapping_add(at), left)
                };
                S::store(to.add(at), vector);
            }
        }
    }
}

/// `y[r, :count] += x[r, 0] * w[0, :] + ... + x[r, U - 1] * w[U - 1, :]` for `R` rows. `AHEAD`: the `w` rows after these come
/// next, and are asked for in the order of memory.
///
/// # Safety
/// All rows are valid, `y` is the caller's own, and the machine has `S`.
#[inline(always)]
pub(super) unsafe fn accumulate<S: Lanes, E: Element, const U: usize, const R: usize, const AHEAD: bool>(
    x: *const f32,
    ldx: usize,
    w: *const E,
    ldw: usize,
    y: *mut f32,
    ldy: usize,
    count: usize,
) {
    // SAFETY: `n` stays below `count`; the rest is the caller's. Prefetched addresses are hints only.
    unsafe {
        let mut factors = [[S::splat(0.0); U]; R];
        for r in 0..R {
            for u in 0..U {
                factors[r][u] = S::splat(*x.add(r * ldx + u));
            }
        }
        let mut weights = [S::splat(0.0); U];
        // The next rows' lines, row by row; two groups on where rows are short, for memory takes its time.
        let groups = if count * U * size_of::<E>() < 8192 { 2 } else { 1 };
        let mut ahead = w.wrapping_add(groups * U * ldw);
        let mut passed = 0;
        let whole = count - count % S::N;
        let mut n = 0;
        while n < whole {
            for u in 0..U {
                weights[u] = E::load::<S>(w.add(u * ldw + n));
                if AHEAD && (u * S::N * size_of::<E>()).is_multiple_of(64) {
                    S::prefetch(ahead.wrapping_add(passed).cast());
                    passed += 64 / size_of::<E>();
                    if passed >= count {
                        passed = 0;
                        ahead = ahead.wrapping_add(ldw);
                    }
                }
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
