//! Attention over a KV cache, or over this step's own keys and values.
//!
//! A query row is worked on block by block of [`BLOCK`] keys, with a running maximum and sum (Milakov and Gimelshein 2018).
//! Blocks start at fixed positions and each row's arithmetic depends on its own length alone: the same row gives the same bits
//! in a prefill, in a decode step and in any batch.

use genie_graph::{DType, Op};
use half::{bf16, f16};

use super::axpy::accumulate;
use super::convert::Scalar;
use super::dot::{TILE, dots};
use super::lanes::{Element, Kernel, Lanes};
use super::math;
use super::norm::sum;
use super::plan::V;
use super::step::Context;
use super::team::Share;

/// Keys that are scored together.
const BLOCK: usize = Op::KV_BLOCK as usize;

/// Query rows that are worked on together.
const ROWS: usize = 16;

/// The heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// Where a cache's layer lies in its blocks, `[layers, 2, kv_heads, BLOCK, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layer {
    /// The cache input.
    pub(super) cache: V,
    pub(super) dtype: DType,
    pub(super) layer: usize,
}

impl Layer {
    /// Elements before the rows of a head's keys (`which` 0) or values (1) in a block.
    fn offset(self, shape: Heads, which: usize, head: usize) -> usize {
        ((self.layer * 2 + which) * shape.kv_heads + head) * BLOCK * shape.head_dim
    }
}

/// Appends k and v, f32 `[batch, tokens, kv_heads * head_dim]`, to each batch row's cache.
pub(super) struct Append {
    pub(super) k: V,
    pub(super) v: V,
    pub(super) to: Layer,
    pub(super) shape: Heads,
    pub(super) batch: usize,
    pub(super) tokens: usize,
}

impl Append {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.k);
        read(self.v);
        write(self.to.cache);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `dtype` is the caches' type.
        unsafe {
            match self.to.dtype {
                DType::F16 => self.copy::<f16>(context, share),
                DType::BF16 => self.copy::<bf16>(context, share),
                _ => self.copy::<f32>(context, share),
            }
        }
    }

    unsafe fn copy<E: Scalar>(&self, context: &Context<'_>, share: Share) {
        let Heads { kv_heads, head_dim, .. } = self.shape;
        for item in share.split(self.batch * self.tokens * 2, 1) {
            let (row, token, which) = (item / 2 / self.tokens, item / 2 % self.tokens, item % 2);
            let Some(cache) = context.cache(self.to.cache, row) else { continue };
            let at = cache.len + token;
            let Some(&block) = context.blocks.get(cache.first + at / BLOCK) else { continue };
            // SAFETY: the run reserved blocks for `tokens` more, which are this cache's alone; offsets stay within a block.
            unsafe {
                let from = context.get::<f32>(if which == 0 { self.k } else { self.v });
                let from = from.add((row * self.tokens + token) * kv_heads * head_dim);
                for head in 0..kv_heads {
                    let to = block.cast::<E>().add(self.to.offset(self.shape, which, head) + at % BLOCK * head_dim);
                    for i in 0..head_dim {
                        to.add(i).write(E::from_wide((*from.add(head * head_dim + i)).wide()));
                    }
                }
            }
        }
    }
}

/// Where keys and values come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source {
    /// A cache, this step's tokens already appended.
    Cached(Layer),
    /// f32 `[batch, tokens, kv_heads * head_dim]`.
    Fresh { k: V, v: V },
}

/// q f32 `[batch, tokens, heads * head_dim]` -> y of the same type.
pub(super) struct Attend {
    pub(super) q: V,
    pub(super) source: Source,
    pub(super) y: V,
    /// f32 `[members, Attend::scratch(head_dim)]`.
    pub(super) scratch: V,
    pub(super) shape: Heads,
    pub(super) batch: usize,
    pub(super) tokens: usize,
    pub(super) scale: f32,
    pub(super) causal: bool,
}

impl Attend {
    /// Elements of working space that a member needs: scores, sums of values, maxima and totals for [`ROWS`] rows.
    pub(super) fn scratch(head_dim: usize) -> Option<usize> {
        head_dim.checked_add(BLOCK + 2)?.checked_mul(ROWS)?.checked_next_multiple_of(16)
    }

    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.q);
        match self.source {
            Source::Cached(layer) => read(layer.cache),
            Source::Fresh { k, v } => [k, v].into_iter().for_each(read),
        }
        write(self.y);
        write(self.scratch);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's.
        unsafe {
            match self.source {
                Source::Cached(Layer { dtype: DType::F16, .. }) => self.over::<f16>(context, share),
                Source::Cached(Layer { dtype: DType::BF16, .. }) => self.over::<bf16>(context, share),
                _ => self.over::<f32>(context, share),
            }
        }
    }

    unsafe fn over<E: Element>(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's.
        unsafe { if self.tokens == 1 { self.decode::<E>(context, share) } else { self.prefill::<E>(context, share) } }
    }

    /// One token a row: the query heads that share a key/value head go together.
    unsafe fn decode<E: Element>(&self, context: &Context<'_>, share: Share) {
        let Heads { heads, kv_heads, .. } = self.shape;
        let group = heads / kv_heads;
        let mine = share.split(self.batch * heads, 1);
        let mut at = mine.start;
        while at < mine.end {
            let (row, head) = (at / heads, at % heads);
            let rows = (group - head % group).min(mine.end - at).min(ROWS);
            // SAFETY: as the caller's.
            unsafe { self.rows::<E>(context, share, Rows { row, head, token: 0, rows, of_heads: true }) };
            at += rows;
        }
    }

    /// Many tokens a row: tiles of the queries of one head.
    unsafe fn prefill<E: Element>(&self, context: &Context<'_>, share: Share) {
        let tiles = self.tokens.div_ceil(ROWS);
        // Later tiles see more keys: dealt out in turn, every member gets early and late ones.
        for item in (share.index..self.batch * self.shape.heads * tiles).step_by(share.count) {
            let (row, head, tile) = (item / tiles / self.shape.heads, item / tiles % self.shape.heads, item % tiles);
            let token = tile * ROWS;
            let rows = (self.tokens - token).min(ROWS);
            // SAFETY: as the caller's.
            unsafe { self.rows::<E>(context, share, Rows { row, head, token, rows, of_heads: false }) };
        }
    }

    unsafe fn rows<E: Element>(&self, context: &Context<'_>, share: Share, rows: Rows) {
        let Heads { heads, kv_heads, head_dim } = self.shape;
        let kv_head = rows.head / (heads / kv_heads);
        let q_at = ((rows.row * self.tokens + rows.token) * heads + rows.head) * head_dim;
        let (before, keys) = match self.source {
            Source::Cached(layer) => {
                let Some(cache) = context.cache(layer.cache, rows.row) else { return };
                let k = layer.offset(self.shape, 0, kv_head);
                let v = layer.offset(self.shape, 1, kv_head);
                (cache.len, Keys::Blocks { blocks: &context.blocks[cache.first..], k, v })
            }
            Source::Fresh { k, v } => {
                let at = (rows.row * self.tokens * kv_heads + kv_head) * head_dim;
                // SAFETY: as the caller's.
                let (k, v) = unsafe { (context.get::<f32>(k).add(at), context.get::<f32>(v).add(at)) };
                (0, Keys::Rows { k: k.cast::<E>(), v: v.cast::<E>(), step: kv_heads * head_dim })
            }
        };
        let (visible, more) =
            if self.causal { (before + rows.token + 1, !rows.of_heads) } else { (before + self.tokens, false) };
        // SAFETY: the values have the sizes that the planner took from the graph, the cache those that the run reserved.
        unsafe {
            let scratch =
                context.get_mut::<f32>(self.scratch).add(share.index * Self::scratch(head_dim).unwrap_or_default());
            context.isa.run(RowsKernel {
                q: context.get::<f32>(self.q).add(q_at),
                y: context.get_mut::<f32>(self.y).add(q_at),
                apart: if rows.of_heads { head_dim } else { heads * head_dim },
                rows: rows.rows,
                visible,
                more,
                head_dim,
                scale: self.scale,
                keys,
                scores: scratch,
                sums: scratch.add(ROWS * BLOCK),
                maxima: scratch.add(ROWS * (BLOCK + head_dim)),
                totals: scratch.add(ROWS * (BLOCK + head_dim + 1)),
            });
        }
    }
}

/// Query rows that are worked on together: of batch row `row`, `rows` heads from `head` on of token `token`, or `rows` tokens
/// from `token` on of head `head`.
struct Rows {
    row: usize,
    head: usize,
    token: usize,
    rows: usize,
    of_heads: bool,
}

/// The keys and values of one head.
enum Keys<'a, E> {
    /// In a cache's blocks, at these offsets (in elements), rows next to each other.
    Blocks { blocks: &'a [*mut u8], k: usize, v: usize },
    /// In rows `step` apart.
    Rows { k: *const E, v: *const E, step: usize },
}

impl<E> Keys<'_, E> {
    /// Keys and values of block `block`, and how far apart rows are.
    #[inline(always)]
    unsafe fn block(&self, block: usize, head_dim: usize) -> (*const E, *const E, usize) {
        // SAFETY: the caller asks for blocks that hold visible keys only.
        unsafe {
            match *self {
                Self::Blocks { blocks, k, v } => {
                    let base = blocks[block].cast_const().cast::<E>();
                    (base.add(k), base.add(v), head_dim)
                }
                Self::Rows { k, v, step } => (k.add(block * BLOCK * step), v.add(block * BLOCK * step), step),
            }
        }
    }
}

/// Demands: `rows` queries at `q` and as many results at `y`, `apart` elements apart; row r sees `visible` keys, and r more if
/// `more`; scratch of the caller's own.
struct RowsKernel<'a, E> {
    q: *const f32,
    y: *mut f32,
    apart: usize,
    rows: usize,
    visible: usize,
    more: bool,
    head_dim: usize,
    scale: f32,
    keys: Keys<'a, E>,
    /// `[ROWS, BLOCK]`
    scores: *mut f32,
    /// `[ROWS, head_dim]`
    sums: *mut f32,
    /// `[ROWS]`
    maxima: *mut f32,
    /// `[ROWS]`
    totals: *mut f32,
}

impl<E: Element> Kernel for RowsKernel<'_, E> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: as the struct demands.
        unsafe {
            self.sums.write_bytes(0, self.rows * self.head_dim);
            for row in 0..self.rows {
                self.maxima.add(row).write(f32::NEG_INFINITY);
                self.totals.add(row).write(0.0);
            }
            let most = self.visible_to(self.rows - 1);
            for block in 0..most.div_ceil(BLOCK) {
                let start = block * BLOCK;
                let (k, v, step) = self.keys.block(block, self.head_dim);
                self.score::<S>(k, step, (most - start).min(BLOCK));
                for row in 0..self.rows {
                    self.weigh::<S>(row, self.seen(row, start));
                }
                self.add_values::<S>(v, step, start);
            }
            for row in 0..self.rows {
                let factor = 1.0 / *self.totals.add(row);
                for i in 0..self.head_dim {
                    *self.y.add(row * self.apart + i) = *self.sums.add(row * self.head_dim + i) * factor;
                }
            }
        }
    }
}

impl<E: Element> RowsKernel<'_, E> {
    #[inline(always)]
    fn visible_to(&self, row: usize) -> usize {
        self.visible + if self.more { row } else { 0 }
    }

    /// Keys of the block from `start` on that the row sees.
    #[inline(always)]
    fn seen(&self, row: usize, start: usize) -> usize {
        self.visible_to(row).saturating_sub(start).min(BLOCK)
    }

    /// Products of all rows with `count` keys.
    #[inline(always)]
    unsafe fn score<S: Lanes>(&self, k: *const E, step: usize, count: usize) {
        let whole = count / TILE * TILE;
        let mut key = 0;
        // SAFETY: as the struct demands; `count` keys are there.
        unsafe {
            while key < whole {
                self.score_keys::<S, TILE>(k.add(key * step), step, key);
                key += TILE;
            }
            while key < count {
                self.score_keys::<S, 1>(k.add(key * step), step, key);
                key += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn score_keys<S: Lanes, const R: usize>(&self, k: *const E, step: usize, key: usize) {
        let mut row = 0;
        // SAFETY: as the caller's.
        unsafe {
            while row < self.rows {
                if row + 3 <= self.rows && S::COLUMNS >= 3 {
                    self.score_tile::<S, R, 3>(k, step, key, row);
                    row += 3;
                } else {
                    self.score_tile::<S, R, 1>(k, step, key, row);
                    row += 1;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn score_tile<S: Lanes, const R: usize, const C: usize>(
        &self,
        k: *const E,
        step: usize,
        key: usize,
        row: usize,
    ) {
        // SAFETY: as the caller's.
        unsafe {
            let products =
                dots::<S, E, f32, R, C, false>(k, step, self.q.add(row * self.apart), self.apart, self.head_dim);
            for (c, products) in products.iter().enumerate() {
                for (r, product) in products.iter().enumerate() {
                    *self.scores.add((row + c) * BLOCK + key + r) = product * self.scale;
                }
            }
        }
    }

    /// Turns the first `seen` scores of a row into weights relative to the row's new maximum, the others into zeros.
    #[inline(always)]
    unsafe fn weigh<S: Lanes>(&self, row: usize, seen: usize) {
        if seen == 0 {
            return;
        }
        // SAFETY: as the struct demands.
        unsafe {
            let scores = &mut *self.scores.add(row * BLOCK).cast::<[f32; BLOCK]>();
            scores[seen..].fill(f32::NEG_INFINITY);
            // Eight maxima side by side: comparing in turn would wait for each comparison. NaN is never larger.
            let mut maxima = [f32::NEG_INFINITY; 8];
            for eight in scores.chunks_exact(8) {
                for (max, &score) in maxima.iter_mut().zip(eight) {
                    *max = if score > *max { score } else { *max };
                }
            }
            let before = *self.maxima.add(row);
            let max = maxima.iter().fold(before, |a, &b| if b > a { b } else { a });
            for score in scores.iter_mut() {
                *score = math::exp(*score - max);
            }
            let fade = math::exp(before - max);
            *self.maxima.add(row) = max;
            *self.totals.add(row) = *self.totals.add(row) * fade + sum::<S>(scores.as_ptr(), BLOCK);
            for i in 0..self.head_dim {
                *self.sums.add(row * self.head_dim + i) *= fade;
            }
        }
    }

    /// Adds the values of the block from `start` on, each row those that it sees: a weight of zero would not hide infinity.
    #[inline(always)]
    unsafe fn add_values<S: Lanes>(&self, v: *const E, step: usize, start: usize) {
        let mut row = 0;
        while row < self.rows {
            let seen = self.seen(row, start);
            let together = row + 3 <= self.rows && self.seen(row + 2, start) == seen;
            // SAFETY: as the struct demands.
            unsafe {
                if together {
                    self.add_rows::<S, 3>(v, step, row, seen);
                } else {
                    self.add_rows::<S, 1>(v, step, row, seen);
                }
            }
            row += if together { 3 } else { 1 };
        }
    }

    #[inline(always)]
    unsafe fn add_rows<S: Lanes, const R: usize>(&self, v: *const E, step: usize, row: usize, seen: usize) {
        const UNROLL: usize = 4;
        let d = self.head_dim;
        let whole = seen / UNROLL * UNROLL;
        let mut key = 0;
        // SAFETY: as the caller's: `seen` values are there.
        unsafe {
            let (weights, sums) = (self.scores.add(row * BLOCK), self.sums.add(row * d));
            while key < whole {
                accumulate::<S, E, UNROLL, R, false>(weights.add(key), BLOCK, v.add(key * step), step, sums, d, d);
                key += UNROLL;
            }
            while key < seen {
                accumulate::<S, E, 1, R, false>(weights.add(key), BLOCK, v.add(key * step), step, sums, d, d);
                key += 1;
            }
        }
    }
}
