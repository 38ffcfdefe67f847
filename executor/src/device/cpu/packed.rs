//! Products of few activation rows with a weight in blocks: its numbers are worked out in registers, and stored nowhere.
//!
//! They are the numbers that [`super::quant::Blocks`] gives, summed as [`super::dot`] sums, so that few rows and many give the same bits.

use std::ops::Range;

use genie_graph::QuantFormat;

use super::dot::{AHEAD_BYTES, OutIn, TILE, all_sums};
use super::lanes::{Kernel, Lanes};
use super::quant::{BLOCK, Block, Q4, Q4Least, Q8};

/// The most activation rows that are multiplied so: for more it pays to store the numbers of a tile.
pub(super) const FEW_ROWS: usize = 2;

/// As [`OutIn`], whose demands hold but for its `w`, with rows of w from `blocks` instead; at most [`FEW_ROWS`] rows of x.
pub(super) struct OutInBlocks {
    pub(super) format: QuantFormat,
    /// `[n, k / 32]` blocks.
    pub(super) blocks: *const u8,
    pub(super) product: OutIn<f32, f32>,
}

impl Kernel for OutInBlocks {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: as the struct demands.
        unsafe {
            match self.format {
                QuantFormat::Q8_0 => self.outputs::<S, Q8>(),
                QuantFormat::Q4_0 => self.outputs::<S, Q4>(),
                QuantFormat::Q4_1 => self.outputs::<S, Q4Least>(),
            }
        }
    }
}

impl OutInBlocks {
    #[inline(always)]
    unsafe fn outputs<S: Lanes, F: Block>(&self) {
        let Range { start, end } = self.product.range;
        let mut n = start;
        // SAFETY: as the struct demands.
        unsafe {
            while n + TILE <= end {
                self.tile::<S, F, TILE>(n);
                n += TILE;
            }
            while n < end {
                self.tile::<S, F, 1>(n);
                n += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Lanes, F: Block, const R: usize>(&self, n: usize) {
        // SAFETY: as the struct demands.
        unsafe {
            if self.product.rows == 1 {
                self.product.finish(n, 0, self.dots::<S, F, R, 1>(n));
            } else {
                self.product.finish(n, 0, self.dots::<S, F, R, FEW_ROWS>(n));
            }
        }
    }

    /// The first `C` rows of x dot the rows `n..n + R` of w.
    #[inline(always)]
    unsafe fn dots<S: Lanes, F: Block, const R: usize, const C: usize>(&self, n: usize) -> [[f32; R]; C] {
        let OutIn { x, k, .. } = self.product;
        let row_bytes = k / BLOCK * F::BYTES;
        // SAFETY: as the struct demands; vectors divide a block, and blocks a row.
        unsafe {
            let w = self.blocks.add(n * row_bytes);
            let mut acc = [[S::splat(0.0); R]; C];
            let mut scales = [[S::splat(0.0); 2]; R];
            let mut activations = [S::splat(0.0); C];
            for block in 0..k / BLOCK {
                for r in 0..R {
                    scales[r] = F::scales::<S>(w.add(r * row_bytes + block * F::BYTES));
                    // A hint only: the rows after these come next, in the order of memory.
                    S::prefetch(w.wrapping_add(R * row_bytes + (R * block + r) * F::BYTES + AHEAD_BYTES));
                }
                let mut at = 0;
                while at < BLOCK {
                    for c in 0..C {
                        activations[c] = S::load(x.add(c * k + block * BLOCK + at));
                    }
                    for r in 0..R {
                        let weights = F::vector::<S>(w.add(r * row_bytes + block * F::BYTES), at, scales[r]);
                        for c in 0..C {
                            acc[c][r] = S::fma(weights, activations[c], acc[c][r]);
                        }
                    }
                    at += S::N;
                }
            }
            all_sums::<S, R, C>(acc)
        }
    }
}
