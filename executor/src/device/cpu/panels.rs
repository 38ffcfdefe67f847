//! Products with a matrix `[K, N]` whose columns are taken a panel at a time: the panel is packed once, wherever its numbers come
//! from, and then serves all rows from registers.
//!
//! Every output element is summed over k in order, each product fused into the sum where the machine can; neither the number of
//! rows nor the tile nor the thread changes its bits.

use super::lanes::{Lanes, MAX_LANES};

/// Vectors across a panel.
const ACROSS: usize = 4;
/// Matrix rows of a panel: with [`ACROSS`] vectors of 16 it fits the second-level cache beside the activations.
const DEPTH: usize = 256;
/// Columns of a panel of the widest vectors.
pub(super) const WIDEST: usize = ACROSS * MAX_LANES;
/// Elements of a panel of the widest vectors.
pub(super) const PANEL: usize = DEPTH * WIDEST;

/// Columns of a panel.
#[inline(always)]
pub(super) const fn width<S: Lanes>() -> usize {
    ACROSS * S::N
}

/// A matrix `[K, N]` that can be packed.
pub(super) trait Pack {
    /// Writes `count` numbers of matrix row `k`, from column `start` on, to `to`, then zeros up to [`width`].
    ///
    /// # Safety
    /// The matrix has the row and the columns, `to` is valid for `width` numbers, and the machine has `S`.
    unsafe fn row<S: Lanes>(&self, k: usize, start: usize, count: usize, to: *mut f32);
}

/// Rows that are multiplied with a matrix: `y[r, n] = sum over k of x[r, k] * matrix[k, n]`.
///
/// Demands: `x` is valid for `[rows, k]`, `y` for `[rows, n]`, and nobody else writes the columns asked for or reads them
/// meanwhile; `panel` has [`PANEL`] numbers, the caller's own.
pub(super) struct Panels {
    pub(super) x: *const f32,
    pub(super) y: *mut f32,
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) panel: *mut f32,
}

impl Panels {
    /// The columns `start..start + count` of y, at most [`width`] of them.
    ///
    /// # Safety
    /// As the struct demands; the matrix has `k` rows and these columns, and the machine has `S`.
    #[inline(always)]
    pub(super) unsafe fn columns<S: Lanes>(&self, matrix: &impl Pack, start: usize, count: usize) {
        let mut k = 0;
        while k < self.k {
            let depth = (self.k - k).min(DEPTH);
            // SAFETY: rows k..k + depth are there, and the panel has room for them.
            unsafe {
                for i in 0..depth {
                    matrix.row::<S>(k + i, start, count, self.panel.add(i * width::<S>()));
                }
                let mut row = 0;
                while row < self.rows {
                    // Tiles of nearly the same size: a last one of a single row would take as long as a full one.
                    let left = self.rows - row;
                    let rows = left.div_ceil(left.div_ceil(S::COLUMNS));
                    match rows {
                        1 => self.tile::<S, 1>(row, k, depth, start, count),
                        2 => self.tile::<S, 2>(row, k, depth, start, count),
                        3 => self.tile::<S, 3>(row, k, depth, start, count),
                        4 => self.tile::<S, 4>(row, k, depth, start, count),
                        5 => self.tile::<S, 5>(row, k, depth, start, count),
                        _ => self.tile::<S, 6>(row, k, depth, start, count),
                    }
                    row += rows;
                }
            }
            k += depth;
        }
    }

    /// Adds the panel's products to `R` rows of y; at k = 0 the sums start.
    #[inline(always)]
    unsafe fn tile<S: Lanes, const R: usize>(&self, row: usize, k: usize, depth: usize, start: usize, count: usize) {
        // SAFETY: as the caller's; parts of vectors beyond `count` are neither read nor written.
        unsafe {
            let x = self.x.add(row * self.k + k);
            let y = self.y.add(row * self.n + start);
            let full = count == ACROSS * S::N;
            let mut acc = [[S::splat(0.0); ACROSS]; R];
            if k > 0 {
                for r in 0..R {
                    for v in 0..ACROSS {
                        let at = y.wrapping_add(r * self.n + v * S::N);
                        let left = count.saturating_sub(v * S::N);
                        acc[r][v] = if full || left >= S::N { S::load(at) } else { S::load_part(at, left) };
                    }
                }
            }
            let mut weights = [S::splat(0.0); ACROSS];
            for i in 0..depth {
                for v in 0..ACROSS {
                    weights[v] = S::load(self.panel.add((i * ACROSS + v) * S::N));
                }
                for r in 0..R {
                    let x = S::splat(*x.add(r * self.k + i));
                    for v in 0..ACROSS {
                        acc[r][v] = S::fma(x, weights[v], acc[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..ACROSS {
                    let at = y.wrapping_add(r * self.n + v * S::N);
                    let left = count.saturating_sub(v * S::N);
                    if full || left >= S::N {
                        S::store(at, acc[r][v]);
                    } else {
                        S::store_part(at, acc[r][v], left);
                    }
                }
            }
        }
    }
}
