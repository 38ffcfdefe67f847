//! Attention, and the cache of keys and values.
//!
//! A row's cache is a list of blocks of [`Op::KV_BLOCK`] tokens, each `[layers, 2, kv_heads, KV_BLOCK, head_dim]` of one float type:
//! keys at index 0, values at 1. Blocks are addressed, and lengths read, from memory on the GPU when a launch runs: it can be
//! replayed while the cache grows. A row whose length is negative is not in use: nothing is appended to it, and of its results
//! nothing is written. Past its table nothing is written either, and nothing is seen.
//!
//! Scores are compared and weights summed in f32. On matrix units (q and keys of the same type, f16 or bf16) a weight is rounded to
//! that type before it meets its value.

mod cache;
mod decode;
mod prefill;

use bytemuck::{Pod, Zeroable};
use genie_graph::{DType, Op};

pub use cache::{Append, Rope, append};
pub use decode::{New, Scratch, decode, decode_scratch};
pub use prefill::prefill;

use crate::kernel::Kernel;
use crate::view::{Address, Check, LaunchError, View};

/// The heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Elements a head, 1 to 256.
    pub head_dim: u32,
}

/// A tensor `[batch, tokens, width]` whose tokens are `stride` elements apart: a part of the columns of another, or one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strided {
    /// From the first element on; at least as many as reach the last.
    pub view: View,
    /// Elements from token to token, at least the width.
    pub stride: u64,
}

/// One layer of the rows' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// i64 `[batch, max_blocks]`: addresses of each row's blocks, multiples of 16. Those that no token needs may be anything.
    pub blocks: View,
    /// Blocks that a row's table has room for.
    pub max_blocks: u32,
    /// i32 `[batch]`: tokens in the cache before this step.
    pub lens: View,
    /// The blocks' element type.
    pub dtype: DType,
    /// Which layer.
    pub layer: u32,
}

/// What is attended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cache, this step's tokens appended.
    Cached(Cache),
    /// This step's own keys and values, `[batch, tokens, kv_heads * head_dim]` of q's type, with the same stride.
    Fresh {
        /// Keys.
        k: Strided,
        /// Values.
        v: Strided,
    },
}

/// An attention of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Rows of the batch.
    pub batch: u32,
    /// Tokens of this step, the same for each row.
    pub tokens: u32,
    /// Its heads.
    pub heads: Heads,
    /// Factor on q.k.
    pub scale: f32,
    /// Whether a token sees only those up to itself; else all of this step's too.
    pub causal: bool,
    /// `[batch, tokens, heads * head_dim]`, f32, f16 or bf16.
    pub q: Strided,
    /// `[batch, tokens, heads * head_dim]` of q's type, each token next to the one before; may be q, if that is so, too.
    pub y: View,
}

/// What of a GPU decides how work is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Multiprocessors.
    pub sms: u32,
    /// Bytes of shared memory that a block may ask for (`CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`).
    pub shared: u32,
}

/// The twin of `AttentionParams` in `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    q: Address,
    k: Address,
    v: Address,
    y: Address,
    blocks: Address,
    lens: Address,
    positions: Address,
    frequencies: Address,
    partials: Address,
    arrived: Address,
    q_stride: u64,
    kv_stride: u64,
    key_offset: u64,
    value_offset: u64,
    batch: u32,
    tokens: u32,
    kv_heads: u32,
    group: u32,
    head_dim: u32,
    max_blocks: u32,
    causal: u32,
    q_type: u32,
    kv_type: u32,
    slots: u32,
    splits: u32,
    wide: u32,
    scale: f32,
    interleaved: u32,
}

const BLOCK: u64 = Op::KV_BLOCK;
/// The kernels' threads a block, except where fewer warps are enough.
const THREADS: u32 = 128;
/// Heads that the kernels take.
const MOST_HEAD_DIM: u32 = 256;

/// A code of `Type` in `attention.cuh`.
fn type_code(check: Check, what: &'static str, dtype: DType) -> Result<u32, LaunchError> {
    match dtype {
        DType::F32 => Ok(0),
        DType::F16 => Ok(1),
        DType::BF16 => Ok(2),
        other => Err(check.wrong_type(what, other)),
    }
}

impl Heads {
    fn check(self, check: Check) -> Result<(), LaunchError> {
        let Self { heads, kv_heads, head_dim } = self;
        let of = |n: u32| u64::from(n);
        check.size("kv_heads", of(kv_heads), (1..=65_535).contains(&kv_heads), "1 to 65535")?;
        let is_multiple = heads > 0 && heads.is_multiple_of(kv_heads);
        check.size("heads", of(heads), is_multiple, "a positive multiple of kv_heads")?;
        check.size("head_dim", of(head_dim), (1..=MOST_HEAD_DIM).contains(&head_dim), "1 to 256")
    }

    fn group(self) -> u32 {
        self.heads / self.kv_heads
    }

    fn width(self) -> u64 {
        u64::from(self.heads) * u64::from(self.head_dim)
    }

    fn kv_width(self) -> u64 {
        u64::from(self.kv_heads) * u64::from(self.head_dim)
    }
}

impl Strided {
    /// A tensor whose tokens, `width` wide, lie next to each other.
    pub const fn dense(view: View, width: u64) -> Self {
        Self { view, stride: width }
    }

    fn check(self, check: Check, what: &'static str, tokens: u64, width: u64) -> Result<(), LaunchError> {
        let fits = self.stride >= width && self.stride <= i64::MAX as u64;
        check.size("stride", self.stride, fits, "at least the width of a token")?;
        let reach =
            if tokens == 0 { 0 } else { check.product(what, &[tokens - 1, self.stride])?.saturating_add(width) };
        if self.view.elements < reach {
            return Err(LaunchError::Elements { kernel: check.0, what, expected: reach, got: self.view.elements });
        }
        check.aligned(what, self.view, self.view.dtype.bytes())
    }

    /// Whether each token starts at a multiple of `elements` elements.
    fn is_aligned(self, elements: u64) -> bool {
        self.view.is_aligned(elements * self.view.dtype.bytes()) && self.stride.is_multiple_of(elements)
    }
}

impl Cache {
    fn check(&self, check: Check, batch: u32) -> Result<(), LaunchError> {
        type_code(check, "the cache", self.dtype)?;
        let rooms = u64::from(self.max_blocks);
        check.size("max_blocks", rooms, (1..=i32::MAX as u64 / BLOCK).contains(&rooms), "1 to 2^25 - 1")?;
        if self.blocks.dtype != DType::I64 {
            return Err(check.wrong_type("blocks", self.blocks.dtype));
        }
        if self.lens.dtype != DType::I32 {
            return Err(check.wrong_type("lens", self.lens.dtype));
        }
        check.tensor("blocks", self.blocks, u64::from(batch) * rooms)?;
        check.tensor("lens", self.lens, batch.into())
    }

    /// Elements before the layer's keys and values of head 0 in a block.
    fn offsets(&self, check: Check, heads: Heads) -> Result<(u64, u64), LaunchError> {
        let half = heads.kv_width() * BLOCK;
        let keys = check.product("layer", &[self.layer.into(), 2, half])?;
        check.size("layer", self.layer.into(), keys < i64::MAX as u64 / 8, "a layer of a cache that exists")?;
        Ok((keys, keys + half))
    }
}

/// How many queries a kernel has at a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    /// On matrix units, heads padded to so many elements.
    Matrix { dim: u32 },
    /// In f32.
    Rows { dim: u32 },
}

/// The smallest of `dims`, which ends with [`MOST_HEAD_DIM`], that takes the head.
fn padded(head_dim: u32, dims: &[u32]) -> u32 {
    dims.iter().copied().find(|&dim| dim >= head_dim).unwrap_or(MOST_HEAD_DIM)
}

impl Attention {
    /// Checks everything but scratch and grid. `None`: there is nothing to do. With a cache, `new` is what it has not yet.
    fn plan(&self, check: Check, source: &Source, new: Option<&New>) -> Result<Option<(Params, Path)>, LaunchError> {
        self.heads.check(check)?;
        let Self { batch, tokens, heads, .. } = *self;
        check.size("batch", batch.into(), batch <= 65_535, "at most 65535")?;
        let queries = check.product("tokens", &[tokens.into(), heads.group().into()])?;
        check.size("tokens", tokens.into(), queries < 1 << 30, "fewer than 2^30 queries a head")?;
        let all = u64::from(batch) * u64::from(tokens);
        let q_type = type_code(check, "q", self.q.view.dtype)?;
        self.q.check(check, "q", all, heads.width())?;
        check.same_type("y", self.y, self.q.view)?;
        check.tensor("y", self.y, check.product("y", &[all, heads.width()])?)?;
        let mut params = Params {
            q: self.q.view.at,
            y: self.y.at,
            q_stride: self.q.stride,
            batch,
            tokens,
            kv_heads: heads.kv_heads,
            group: heads.group(),
            head_dim: heads.head_dim,
            causal: self.causal.into(),
            q_type,
            kv_type: q_type,
            scale: self.scale,
            ..Params::zeroed()
        };
        let y = Strided::dense(self.y, heads.width());
        let mut inputs = vec![self.q, y];
        let kv_dtype = match source {
            Source::Cached(cache) => {
                cache.check(check, batch)?;
                params.kv_type = type_code(check, "the cache", cache.dtype)?;
                (params.key_offset, params.value_offset) = cache.offsets(check, heads)?;
                (params.blocks, params.lens, params.max_blocks) = (cache.blocks.at, cache.lens.at, cache.max_blocks);
                if let Some(rope) = new.and_then(|new| new.rope) {
                    rope.check(check, heads, all)?;
                    params.frequencies = rope.frequencies.at;
                    params.positions = rope.positions.map_or(0, |view| view.at);
                    params.interleaved = rope.is_interleaved().into();
                }
                cache.dtype
            }
            Source::Fresh { .. } => self.q.view.dtype,
        };
        let own = match source {
            Source::Fresh { k, v } => Some((k, v)),
            Source::Cached(_) => new.map(|new| (&new.k, &new.v)),
        };
        if let Some((k, v)) = own {
            for (what, input) in [("k", k), ("v", v)] {
                check.same_type(what, input.view, self.q.view)?;
                input.check(check, what, all, heads.kv_width())?;
                inputs.push(*input);
            }
            check.size("stride of v", v.stride, v.stride == k.stride, "that of k")?;
            (params.k, params.v, params.kv_stride) = (k.view.at, v.view.at, k.stride);
        }
        if all == 0 {
            return Ok(None);
        }
        let packs_of = |n: u64| u64::from(heads.head_dim).is_multiple_of(n) && inputs.iter().all(|i| i.is_aligned(n));
        params.wide = packs_of(4).into();
        let path = if kv_dtype == self.q.view.dtype && kv_dtype != DType::F32 && packs_of(8) {
            // Scores there are in units of log2(e).
            params.scale *= std::f32::consts::LOG2_E;
            Path::Matrix { dim: padded(heads.head_dim, &[32, 64, 96, 128, 256]) }
        } else {
            Path::Rows { dim: padded(heads.head_dim, &[64, 128, 256]) }
        };
        Ok(Some((params, path)))
    }

    /// Queries that share a key/value head.
    fn queries(&self) -> u32 {
        self.tokens * self.heads.group()
    }
}

/// The kernel for a type and a head's padded size, of those listed.
fn pick(dtype: DType, dim: u32, kernels: [[&'static Kernel; 5]; 2]) -> &'static Kernel {
    let place = [32, 64, 96, 128, 256].iter().position(|&d| d == dim).unwrap_or(4);
    kernels[usize::from(dtype == DType::BF16)][place]
}

/// Bytes of a row of keys in shared memory: see `TILE_STRIDE`.
fn tile_row(dim: u32) -> u32 {
    (dim + 8) * 2
}
