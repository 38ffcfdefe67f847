//! Products with a weight `[N, K]` (one row an output): the layout of `nn.Linear`.
//!
//! Every output element is one dot product, always summed the same way: lane l takes the elements k = l (mod lanes) in
//! order, and the lanes are then added by a fixed tree. Neither the number of activation rows nor the tile nor the thread that
//! an element falls to changes its bits, so a token decoded in a batch of eight, decoded alone, or prefilled (replayed) with
//! its whole prompt is the same token.

use std::ops::Range;

use super::lanes::{Element, Kernel, Lanes};

/// Weight rows a tile.
pub(super) const TILE: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// How far beyond the next tile memory is asked for: a tile of short rows of 16-bit weights is done before memory answers.
const AHEAD_BYTES: usize = 8192;

/// `y[r, n] = x[r, :] . w[n, :] (+ bias[n]) (+ residual[r, n])` for all `rows` and the `n` of `range`.
///
/// Demands: `x` f32 `[rows, k]`, `w` `[n, k]`, `y` f32 `[rows, n]`, `bias` f32 `[n]` or null, `residual` f32 `[rows, n]` or
/// null are valid; nobody else writes the columns `range` of `y` or reads them meanwhile; `panel` is f32 `[TILE, k]` of the
/// caller's own, or null (then 16-bit weights are converted again for each few rows).
pub(super) struct OutIn<E> {
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

impl<E: Element> Kernel for OutIn<E> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let Range { start, end } = self.range;
        let whole = start + (end - start) / TILE * TILE;
        let convert = size_of::<E>() < 4 && !self.panel.is_null() && self.rows > 2 * S::COLUMNS;
        // SAFETY: the rows and columns lie within what the struct demands.
        unsafe {
            let mut n = start;
            while n < whole {
                let w = self.w.add(n * self.k);
                if convert {
                    widen::<S, E>(w, self.panel, TILE * self.k);
                    self.weight_rows::<S, f32, TILE>(self.panel, n);
                } else {
                    self.weight_rows::<S, E, TILE>(w, n);
                }
                n += TILE;
            }
            while n < end {
                self.weight_rows::<S, E, 1>(self.w.add(n * self.k), n);
                n += 1;
            }
        }
    }
}

impl<E: Element> OutIn<E> {
    /// All activation rows times the `R` weight rows at `w`, which are outputs `n..n + R`.
    #[inline(always)]
    unsafe fn weight_rows<S: Lanes, W: Element, const R: usize>(&self, w: *const W, n: usize) {
        let mut row = 0;
        // SAFETY: as the caller's.
        unsafe {
            while row < self.rows {
                // Tiles of nearly the same size: a last one of a single row would take as long as a full one.
                let left = self.rows - row;
                let columns = left.div_ceil(left.div_ceil(S::COLUMNS));
                match columns {
                    1 => self.tile::<S, W, R, 1>(w, n, row),
                    2 => self.tile::<S, W, R, 2>(w, n, row),
                    3 => self.tile::<S, W, R, 3>(w, n, row),
                    4 => self.tile::<S, W, R, 4>(w, n, row),
                    5 => self.tile::<S, W, R, 5>(w, n, row),
                    _ => self.tile::<S, W, R, 6>(w, n, row),
                }
                row += columns;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Lanes, W: Element, const R: usize, const C: usize>(&self, w: *const W, n: usize, row: usize) {
        // SAFETY: as the caller's.
        unsafe {
            let x = self.x.add(row * self.k);
            // The first activation rows bring the next tile into the cache, for whoever comes to it.
            let sums = if row == 0 {
                dots::<S, W, R, C, true>(w, self.k, x, self.k, self.k)
            } else {
                dots::<S, W, R, C, false>(w, self.k, x, self.k, self.k)
            };
            for (c, sums) in sums.iter().enumerate() {
                let at = (row + c) * self.n + n;
                for (r, &sum) in sums.iter().enumerate() {
                    let mut value = sum;
                    if !self.bias.is_null() {
                        value += *self.bias.add(n + r);
                    }
                    if !self.residual.is_null() {
                        value += *self.residual.add(at + r);
                    }
                    *self.y.add(at + r) = value;
                }
            }
        }
    }
}

/// `C` activation rows (`ldx` apart) dot `R` weight rows (`ldw` apart), all of `k` elements: `[c][r]`. `AHEAD`: the weight
/// rows after these come next, and are asked for in the order of memory. A core's own prefetching does not keep up with several
/// short streams: without this, or asking row by row, weights come at half the speed of a plain read.
///
/// # Safety
/// The rows are valid, and the machine has `S`.
#[inline(always)]
pub(super) unsafe fn dots<S: Lanes, W: Element, const R: usize, const C: usize, const AHEAD: bool>(
    w: *const W,
    ldw: usize,
    x: *const f32,
    ldx: usize,
    k: usize,
) -> [[f32; R]; C] {
    // SAFETY: `i` stays below `k`; the rest is the caller's.
    unsafe {
        let mut acc = [[S::splat(0.0); R]; C];
        let mut weights = [S::splat(0.0); R];
        let whole = k - k % S::N;
        let mut i = 0;
        while i < whole {
            for r in 0..R {
                weights[r] = W::load::<S>(w.add(r * ldw + i));
                // Each line once.
                if AHEAD && (r * S::N * size_of::<W>()).is_multiple_of(LINE) {
                    // A hint only: the address may lie beyond the weight.
                    let next = w.wrapping_add(R * (ldw + i) + r * S::N).cast::<u8>();
                    S::prefetch(next.wrapping_add(AHEAD_BYTES));
                }
            }
            for c in 0..C {
                let x = S::load(x.add(c * ldx + i));
                for r in 0..R {
                    acc[c][r] = S::fma(weights[r], x, acc[c][r]);
                }
            }
            i += S::N;
        }
        if i < k {
            for r in 0..R {
                weights[r] = W::load_part::<S>(w.add(r * ldw + i), k - i);
            }
            for c in 0..C {
                let x = S::load_part(x.add(c * ldx + i), k - i);
                for r in 0..R {
                    acc[c][r] = S::fma(weights[r], x, acc[c][r]);
                }
            }
        }
        let mut sums = [[0.0; R]; C];
        for c in 0..C {
            // Four sums at once cost what one does.
            for (r, four) in sums[c].chunks_mut(4).enumerate() {
                match *four {
                    [_, _, _, _] => {
                        let from = &acc[c][4 * r..];
                        four.copy_from_slice(&S::sum4([from[0], from[1], from[2], from[3]]));
                    }
                    _ => (0..four.len()).for_each(|i| four[i] = S::sum(acc[c][4 * r + i])),
                }
            }
        }
        sums
    }
}

/// Converts `count` elements to f32 (exactly).
///
/// # Safety
/// Both are valid for `count` elements and do not overlap, and the machine has `S`.
#[inline(always)]
pub(super) unsafe fn widen<S: Lanes, E: Element>(from: *const E, to: *mut f32, count: usize) {
    let whole = count - count % S::N;
    let mut i = 0;
    // SAFETY: `i` stays below `count`.
    unsafe {
        while i < whole {
            S::store(to.add(i), E::load::<S>(from.add(i)));
            i += S::N;
        }
        if i < count {
            S::store_part(to.add(i), E::load_part::<S>(from.add(i), count - i), count - i);
        }
    }
}
