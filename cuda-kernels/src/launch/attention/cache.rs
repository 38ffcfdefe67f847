//! Appending to the cache.

use bytemuck::{Pod, Zeroable};
use genie_graph::{DType, RopeStyle};

use super::{Cache, Heads, Strided, type_code};
use crate::kernel::{self, Launch};
use crate::view::{Address, Check, LaunchError, View};

/// A step's keys and values on their way into the cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Append {
    /// Rows of the batch.
    pub batch: u32,
    /// Tokens of this step.
    pub tokens: u32,
    /// The heads; `heads` counts only where q is turned.
    pub heads: Heads,
    /// `[batch, tokens, kv_heads * head_dim]`, f32, f16 or bf16.
    pub k: Strided,
    /// The same, of the same type and stride.
    pub v: Strided,
    /// Where they go: token s of row b to place lens\[b\] + s.
    pub cache: Cache,
    /// Turns keys (and queries) by their positions.
    pub rope: Option<Rope>,
    /// With `rope`, queries to be turned too, `[batch, tokens, heads * head_dim]` of k's type, and where to, dense. In place is
    /// allowed, if q is dense.
    pub q: Option<(Strided, View)>,
}

/// A rotary embedding on the way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Which elements are pairs.
    pub style: RopeStyle,
    /// f32 `[head_dim / 2]`: angle a position, of each pair.
    pub frequencies: View,
    /// i32 `[batch, tokens]`; without it a token's place in the cache.
    pub positions: Option<View>,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    q: Address,
    k: Address,
    v: Address,
    q_out: Address,
    blocks: Address,
    lens: Address,
    positions: Address,
    frequencies: Address,
    q_stride: u64,
    kv_stride: u64,
    key_offset: u64,
    value_offset: u64,
    tokens: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    max_blocks: u32,
    interleaved: u32,
    wide: u32,
    padding: u32,
}

const THREADS: u64 = 256;

/// Appends k and v to one layer of the caches, converted to their type; with a [`Rope`], what the rotation of k gives, rounded to k's
/// type first, as by two kernels.
///
/// # Errors
/// [`LaunchError`].
pub fn append(append: &Append) -> Result<Option<Launch>, LaunchError> {
    let check = Check("kv_append");
    let Append { batch, tokens, heads, k, v, cache, rope, q } = *append;
    heads.check(check)?;
    cache.check(check, batch)?;
    let from = type_code(check, "k", k.view.dtype)?;
    let to = type_code(check, "the cache", cache.dtype)?;
    let all = check.product("tokens", &[batch.into(), tokens.into()])?;
    check.size("tokens", all, all < 1 << 31, "fewer than 2^31 in all")?;
    check.same_type("v", v.view, k.view)?;
    k.check(check, "k", all, heads.kv_width())?;
    v.check(check, "v", all, heads.kv_width())?;
    check.size("stride of v", v.stride, v.stride == k.stride, "that of k")?;
    let (key_offset, value_offset) = cache.offsets(check, heads)?;
    let mut params = Params {
        k: k.view.at,
        v: v.view.at,
        blocks: cache.blocks.at,
        lens: cache.lens.at,
        kv_stride: k.stride,
        key_offset,
        value_offset,
        tokens,
        heads: heads.heads,
        kv_heads: heads.kv_heads,
        head_dim: heads.head_dim,
        max_blocks: cache.max_blocks,
        ..Params::zeroed()
    };
    let mut moved = vec![k, v];
    if let Some(rope) = rope {
        rope.check(check, heads, all)?;
        params.frequencies = rope.frequencies.at;
        params.positions = rope.positions.map_or(0, |view| view.at);
        params.interleaved = rope.is_interleaved().into();
        if let Some((q, out)) = q {
            check.same_type("q", q.view, k.view)?;
            check.same_type("turned q", out, k.view)?;
            q.check(check, "q", all, heads.width())?;
            check.tensor("turned q", out, check.product("q", &[all, heads.width()])?)?;
            (params.q, params.q_out, params.q_stride) = (q.view.at, out.at, q.stride);
            moved.extend([q, Strided::dense(out, heads.width())]);
        }
    }
    if all == 0 {
        return Ok(None);
    }
    let wide = heads.head_dim.is_multiple_of(8) && moved.iter().all(|m| m.is_aligned(4));
    params.wide = wide.into();
    let pieces = u64::from(heads.head_dim).div_ceil(if wide { 8 } else { 2 });
    let turned = if params.q_out == 0 { 0 } else { u64::from(heads.heads) };
    let units = pieces * (turned + 2 * u64::from(heads.kv_heads));
    let blocks = units.div_ceil(THREADS);
    check.size("heads", heads.heads.into(), blocks <= 65_535, "fewer: a token takes more than 65535 blocks")?;
    let kernels = [
        [&kernel::KV_APPEND_F32_F32, &kernel::KV_APPEND_F32_F16, &kernel::KV_APPEND_F32_BF16],
        [&kernel::KV_APPEND_F16_F32, &kernel::KV_APPEND_F16_F16, &kernel::KV_APPEND_F16_BF16],
        [&kernel::KV_APPEND_BF16_F32, &kernel::KV_APPEND_BF16_F16, &kernel::KV_APPEND_BF16_BF16],
    ];
    let kernel = kernels[from as usize][to as usize];
    let threads = units.min(THREADS).next_multiple_of(32) as u32;
    let blocks = units.div_ceil(threads.into()) as u32;
    Ok(Some(Launch::new(kernel, [all as u32, blocks, 1], [threads, 1, 1], 0, &params)))
}

impl Rope {
    /// For `all` tokens.
    pub(super) fn check(self, check: Check, heads: Heads, all: u64) -> Result<(), LaunchError> {
        check.size("head_dim", heads.head_dim.into(), heads.head_dim.is_multiple_of(2), "even, to be turned")?;
        for (what, view, dtype, elements) in [
            ("frequencies", Some(self.frequencies), DType::F32, u64::from(heads.head_dim) / 2),
            ("positions", self.positions, DType::I32, all),
        ] {
            let Some(view) = view else { continue };
            if view.dtype != dtype {
                return Err(check.wrong_type(what, view.dtype));
            }
            check.tensor(what, view, elements)?;
        }
        Ok(())
    }

    pub(super) fn is_interleaved(self) -> bool {
        self.style == RopeStyle::Interleaved
    }
}
