//! Products with a weight `[N, K]` (one row an output): the layout of `nn.Linear`.
//!
//! Every output element is one dot product, always summed the same way: lane l takes the elements (with bf16, the pairs of
//! elements) k = l (mod lanes) in order, and the lanes are then added by a fixed tree. Neither the number of activation rows nor the tile nor the thread that
//! an element falls to changes its bits, so a token decoded in a batch of eight, decoded alone, or prefilled (replayed) with
//! its whole prompt is the same token.

use std::ops::Range;

use super::lanes::{Factor, Kernel, Lanes};

/// Weight rows a tile.
pub(super) const TILE: usize = 4;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// How far beyond the next tile memory is asked for: a tile of short rows of 16-bit weights is done before memory answers.
pub(super) const AHEAD_BYTES: usize = 8192;

/// `y[r, n] = x[r, :] . w[n, :] (+ bias[n]) (+ residual[r, n])` for all `rows` and the `n` of `range`.
///
/// Demands: `x` `[rows, k]`, `w` `[n, k]`, `y` f32 `[rows, n]`, `bias` f32 `[n]` or null, `residual` f32 `[rows, n]` or null are
/// valid; nobody else writes the columns `range` of `y` or reads them meanwhile.
pub(super) struct OutIn<W, X> {
    pub(super) x: *const X,
    pub(super) w: *const W,
    pub(super) bias: *const f32,
    pub(super) residual: *const f32,
    pub(super) y: *mut f32,
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) range: Range<usize>,
    /// Whether the weight's next rows come from memory, and are worth asking for early.
    pub(super) streamed: bool,
}

impl<W: Factor<X>, X: 'static> Kernel for OutIn<W, X> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let Range { start, end } = self.range;
        let mut n = start;
        // SAFETY: the weight rows lie within what the struct demands.
        unsafe {
            while n + TILE <= end {
                self.weight_rows::<S, TILE>(n);
                n += TILE;
            }
            while n < end {
                self.weight_rows::<S, 1>(n);
                n += 1;
            }
        }
    }
}

impl<W: Factor<X>, X: 'static> OutIn<W, X> {
    /// The outputs `n..n + R` of all activation rows.
    #[inline(always)]
    unsafe fn weight_rows<S: Lanes, const R: usize>(&self, n: usize) {
        let mut row = 0;
        // SAFETY: as the caller's.
        unsafe {
            while row < self.rows {
                // Tiles of nearly the same size: a last one of a single row would take as long as a full one.
                let left = self.rows - row;
                let columns = left.div_ceil(left.div_ceil(S::COLUMNS));
                match columns {
                    1 => self.tile::<S, R, 1>(n, row),
                    2 => self.tile::<S, R, 2>(n, row),
                    3 => self.tile::<S, R, 3>(n, row),
                    4 => self.tile::<S, R, 4>(n, row),
                    5 => self.tile::<S, R, 5>(n, row),
                    _ => self.tile::<S, R, 6>(n, row),
                }
                row += columns;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Lanes, const R: usize, const C: usize>(&self, n: usize, row: usize) {
        // SAFETY: as the caller's.
        unsafe {
            let w = self.w.add(n * self.k);
            let x = self.x.add(row * self.k);
            // The first activation rows bring the next tile into the cache, for whoever comes to it.
            let sums = if row == 0 && self.streamed {
                dots::<S, W, X, R, C, true>(w, self.k, x, self.k, self.k)
            } else {
                dots::<S, W, X, R, C, false>(w, self.k, x, self.k, self.k)
            };
            self.finish(n, row, sums);
        }
    }

    /// Writes the outputs `n..n + R` of the activation rows `row..row + C`, whose products are summed.
    ///
    /// # Safety
    /// They lie within what the struct demands.
    #[inline(always)]
    pub(super) unsafe fn finish<const R: usize, const C: usize>(&self, n: usize, row: usize, sums: [[f32; R]; C]) {
        for (c, sums) in sums.iter().enumerate() {
            let at = (row + c) * self.n + n;
            for (r, &sum) in sums.iter().enumerate() {
                // SAFETY: as the caller's.
                unsafe {
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
pub(super) unsafe fn dots<S: Lanes, W: Factor<X>, X: 'static, const R: usize, const C: usize, const AHEAD: bool>(
    w: *const W,
    ldw: usize,
    x: *const X,
    ldx: usize,
    k: usize,
) -> [[f32; R]; C] {
    // SAFETY: `i` stays below `k`; the rest is the caller's.
    unsafe {
        let mut acc = [[S::splat(0.0); R]; C];
        let mut weights = [S::splat(0.0); R];
        let step = W::IN_LANE * S::N;
        let whole = k - k % step;
        for round in 0..W::rounds::<S>() {
            let mut i = 0;
            while i < whole {
                for r in 0..R {
                    weights[r] = W::operand::<S>(W::weights::<S>(w.add(r * ldw + i)), round);
                    // Each line once.
                    if AHEAD && round == 0 && (r * step * size_of::<W>()).is_multiple_of(LINE) {
                        // A hint only: the address may lie beyond the weight.
                        let next = w.wrapping_add(R * (ldw + i) + r * step).cast::<u8>();
                        S::prefetch(next.wrapping_add(AHEAD_BYTES));
                    }
                }
                for c in 0..C {
                    let x = W::operand::<S>(W::activations::<S>(x.add(c * ldx + i)), round);
                    for r in 0..R {
                        acc[c][r] = W::multiply::<S>(weights[r], x, acc[c][r]);
                    }
                }
                i += step;
            }
            if i < k {
                for r in 0..R {
                    weights[r] = W::operand::<S>(W::weights_part::<S>(w.add(r * ldw + i), k - i), round);
                }
                for c in 0..C {
                    let x = W::operand::<S>(W::activations_part::<S>(x.add(c * ldx + i), k - i), round);
                    for r in 0..R {
                        acc[c][r] = W::multiply::<S>(weights[r], x, acc[c][r]);
                    }
                }
            }
        }
        all_sums::<S, R, C>(acc)
    }
}

/// The sums of the lanes of each vector.
///
/// # Safety
/// The machine has `S`.
#[inline(always)]
pub(super) unsafe fn all_sums<S: Lanes, const R: usize, const C: usize>(acc: [[S::V; R]; C]) -> [[f32; R]; C] {
    let mut sums = [[0.0; R]; C];
    for c in 0..C {
        // Four sums at once cost what one does.
        for (r, four) in sums[c].chunks_mut(4).enumerate() {
            // SAFETY: as the caller's.
            unsafe {
                match *four {
                    [_, _, _, _] => {
                        let from = &acc[c][4 * r..];
                        four.copy_from_slice(&S::sum4([from[0], from[1], from[2], from[3]]));
                    }
                    _ => (0..four.len()).for_each(|i| four[i] = S::sum(acc[c][4 * r + i])),
                }
            }
        }
    }
    sums
}
