//! The KV cache: what attention has seen so far, in blocks that forks share.

use std::sync::Arc;

use genie_graph::{DType, Dim, Op, Symbol, TensorType};
use genie_transport::memory::{Pool, Region, Slab};

use super::DeviceError;

/// Tokens in one block.
const BLOCK: u64 = Op::KV_BLOCK;

/// The dimensions of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvSpec {
    /// Attention layers that append to it.
    pub layers: u64,
    /// Key/value heads a layer.
    pub kv_heads: u64,
    /// Elements a head.
    pub head_dim: u64,
    /// Element type: f32, f16 or bf16.
    pub dtype: DType,
}

impl KvSpec {
    /// The spec of a graph's cache input, `float [Position, layers, 2, kv_heads, BLOCK, head_dim]`; `None` for other types.
    pub fn of(ty: &TensorType) -> Option<Self> {
        match ty.shape.0[..] {
            [
                Dim::Symbol(Symbol::Position),
                Dim::Fixed(layers),
                Dim::Fixed(2),
                Dim::Fixed(kv_heads),
                Dim::Fixed(BLOCK),
                Dim::Fixed(head_dim),
            ] if ty.dtype.is_float() => Some(Self { layers, kv_heads, head_dim, dtype: ty.dtype }),
            _ => None,
        }
    }

    /// Bytes of one block, `[layers, 2, kv_heads, BLOCK, head_dim]`; `None` where they do not fit.
    pub fn block_bytes(&self) -> Option<usize> {
        let bytes = [self.layers, 2, self.kv_heads, BLOCK, self.head_dim, self.dtype.bytes()]
            .into_iter()
            .try_fold(1_u64, u64::checked_mul)?;
        usize::try_from(bytes).ok()
    }

    /// Blocks that this many tokens take.
    pub fn blocks(&self, tokens: u64) -> usize {
        usize::try_from(tokens.div_ceil(BLOCK)).unwrap_or(usize::MAX)
    }
}

impl std::fmt::Display for KvSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} layers of {} heads of {} {}", self.layers, self.kv_heads, self.head_dim, self.dtype)
    }
}

/// The keys and values of the tokens that one session has run.
///
/// It is a list of blocks of [`Op::KV_BLOCK`] tokens, `[layers, 2, kv_heads, BLOCK, head_dim]` each (index 2: 0 keys,
/// 1 values), of which the first [`KvCache::len`] tokens count. A fork shares the blocks; whoever appends to a block that is
/// shared (with a fork, or with a region from [`KvCache::segments`]) first takes a copy of that one block.
pub struct KvCache {
    spec: KvSpec,
    block_bytes: usize,
    pool: Pool,
    len: u64,
    blocks: Vec<Arc<Slab>>,
}

impl KvCache {
    /// An empty cache whose blocks come from `pool`. Takes no memory yet.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] if not even the size of one block can be written down.
    pub fn new(spec: KvSpec, pool: Pool) -> Result<Self, DeviceError> {
        let block_bytes = spec.block_bytes().ok_or_else(|| out_of_memory(&pool, u64::MAX))?;
        Ok(Self { spec, block_bytes, pool, len: 0, blocks: Vec::new() })
    }

    /// What it was made for.
    pub fn spec(&self) -> KvSpec {
        self.spec
    }

    /// Tokens in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of its blocks; those shared with forks count for each.
    pub fn bytes(&self) -> u64 {
        self.blocks.len() as u64 * self.block_bytes as u64
    }

    /// Bytes that an append of `tokens` would allocate beyond what it has: new blocks, and a copy of the last one if shared.
    pub fn growth(&self, tokens: u64) -> u64 {
        let end = self.spec.blocks(self.len.saturating_add(tokens));
        let new = end.saturating_sub(self.blocks.len());
        let first = self.first_written();
        let shared = self.blocks.iter().take(end).skip(first).filter(|b| Arc::strong_count(b) > 1).count();
        ((new + shared) as u64).saturating_mul(self.block_bytes as u64)
    }

    /// A cache of the same content that shares this one's blocks. Costs no tensor memory until one of them appends.
    #[must_use]
    pub fn fork(&self) -> Self {
        let blocks = self.blocks.iter().take(self.spec.blocks(self.len)).cloned().collect();
        Self { spec: self.spec, block_bytes: self.block_bytes, pool: self.pool.clone(), len: self.len, blocks }
    }

    /// Forgets all but the first `len` tokens and gives back the blocks beyond them. Does nothing where it holds fewer.
    pub fn truncate(&mut self, len: u64) {
        self.len = self.len.min(len);
        self.blocks.truncate(self.spec.blocks(self.len));
    }

    /// Makes sure that `tokens` more can be appended without allocating: takes blocks and copies the shared one.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`]; the cache is as it was.
    pub fn reserve(&mut self, tokens: u64) -> Result<(), DeviceError> {
        let had = self.blocks.len();
        let end = self.len.checked_add(tokens).ok_or_else(|| out_of_memory(&self.pool, u64::MAX))?;
        self.try_reserve(self.spec.blocks(end)).inspect_err(|_| self.blocks.truncate(had))
    }

    /// The blocks that hold its tokens, in order, as shared memory: nothing is copied, and appending to the cache afterwards
    /// leaves the regions as they are. Bytes of the last block beyond [`KvCache::len`] mean nothing.
    pub fn segments(&self) -> Vec<Region> {
        let held = self.spec.blocks(self.len);
        self.blocks.iter().take(held).map(|b| Region::from_owner(SharedBlock(Arc::clone(b)))).collect()
    }

    /// Replaces the content by `len` tokens in `blocks`, as [`KvCache::segments`] gave them. The slabs are taken over as they
    /// are, whatever pool they came from.
    ///
    /// # Errors
    /// [`DeviceError::CacheImport`] if number or size of the blocks is wrong; the cache is as it was.
    pub fn import(&mut self, len: u64, blocks: Vec<Slab>) -> Result<(), DeviceError> {
        let expected = self.spec.blocks(len);
        let wrong = (0..expected.max(blocks.len()))
            .find(|&i| i >= expected || blocks.get(i).is_none_or(|b| b.len() != self.block_bytes));
        if let Some(block) = wrong {
            let got = blocks.get(block).map_or(0, |b| b.len() as u64);
            return Err(DeviceError::CacheImport {
                tokens: len,
                expected_blocks: expected,
                block_bytes: self.block_bytes as u64,
                block,
                got,
            });
        }
        self.blocks = blocks.into_iter().map(Arc::new).collect();
        self.len = len;
        Ok(())
    }

    /// Counts `tokens` more, which were written to the blocks after a [`KvCache::reserve`].
    pub(super) fn advance(&mut self, tokens: u64) {
        debug_assert!(self.spec.blocks(self.len + tokens) <= self.blocks.len());
        self.len += tokens;
    }

    /// Gives back the blocks that a reservation took and no token uses.
    pub(super) fn shrink(&mut self) {
        self.blocks.truncate(self.spec.blocks(self.len));
    }

    /// Appends the address of each block to `to`. Those from the block of token [`KvCache::len`] on, as far as reserved, may
    /// be written through their address for as long as the cache is exclusively borrowed; the others are shared and may not.
    pub(super) fn addresses(&mut self, to: &mut Vec<*mut u8>) {
        let first = self.first_written();
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let writable = if i < first { None } else { Arc::get_mut(block).map(|b| b.as_mut_ptr()) };
            to.push(writable.unwrap_or_else(|| block.as_ptr().cast_mut()));
        }
    }

    /// The block that the next token goes to.
    fn first_written(&self) -> usize {
        usize::try_from(self.len / BLOCK).unwrap_or(usize::MAX)
    }

    fn try_reserve(&mut self, count: usize) -> Result<(), DeviceError> {
        let missing = count.saturating_sub(self.blocks.len());
        // Asked in one piece first, so that a hopeless wish costs nothing.
        let wanted = (missing as u64).saturating_mul(self.block_bytes as u64);
        if wanted > self.pool.limit() {
            return Err(out_of_memory(&self.pool, wanted));
        }
        self.blocks.reserve(missing);
        for _ in 0..missing {
            let mut block = self.pool.take(self.block_bytes)?;
            // A recycled slab holds what another session left, and blocks can be exported.
            block.fill(0);
            self.blocks.push(Arc::new(block));
        }
        let first = self.first_written();
        for block in self.blocks.iter_mut().take(count).skip(first) {
            if Arc::get_mut(block).is_none() {
                let mut copy = self.pool.take(self.block_bytes)?;
                copy.copy_from_slice(block);
                *block = Arc::new(copy);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blocks = self.blocks.len();
        f.debug_struct("KvCache").field("spec", &self.spec).field("len", &self.len).field("blocks", &blocks).finish()
    }
}

fn out_of_memory(pool: &Pool, wanted: u64) -> DeviceError {
    genie_transport::memory::OutOfMemory { wanted, used: pool.used(), limit: pool.limit() }.into()
}

/// A block that a region keeps alive.
struct SharedBlock(Arc<Slab>);

impl AsRef<[u8]> for SharedBlock {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
