//! The KV cache: what attention has seen so far, in blocks that forks share.

use std::sync::Arc;

use genie_graph::{DType, Dim, Op, Symbol, TensorType};
use genie_transport::memory::{OutOfMemory, Pool, Region, Slab};

use super::{Buffer, DeviceError, Memory, Space};

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
/// shared (with a fork, or with memory from [`KvCache::segments`]) first takes a copy of that one block.
pub struct KvCache {
    spec: KvSpec,
    block_bytes: usize,
    from: Arc<dyn Allocator>,
    len: u64,
    blocks: Vec<Block>,
}

impl KvCache {
    /// An empty cache whose blocks come from `from`. Takes no memory yet.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] if not even the size of one block can be written down.
    pub fn new(spec: KvSpec, from: Arc<dyn Allocator>) -> Result<Self, DeviceError> {
        let block_bytes = spec.block_bytes().ok_or_else(|| out_of_memory(&*from, u64::MAX))?;
        Ok(Self { spec, block_bytes, from, len: 0, blocks: Vec::new() })
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
        let shared = self.blocks.iter().take(end).skip(first).filter(|b| b.is_shared()).count();
        ((new + shared) as u64).saturating_mul(self.block_bytes as u64)
    }

    /// A cache of the same content that shares this one's blocks. Costs no tensor memory until one of them appends.
    #[must_use]
    pub fn fork(&self) -> Self {
        let blocks = self.blocks.iter().take(self.spec.blocks(self.len)).cloned().collect();
        Self { spec: self.spec, block_bytes: self.block_bytes, from: self.from.clone(), len: self.len, blocks }
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
        let end = self.len.checked_add(tokens).ok_or_else(|| out_of_memory(&*self.from, u64::MAX))?;
        self.try_reserve(self.spec.blocks(end)).inspect_err(|_| self.blocks.truncate(had))
    }

    /// The blocks that hold its tokens, in order, as shared memory: nothing is copied, and appending to the cache afterwards
    /// leaves what was given as it is. Bytes of the last block beyond [`KvCache::len`] mean nothing.
    pub fn segments(&self) -> Vec<Memory> {
        let held = self.spec.blocks(self.len);
        self.blocks.iter().take(held).map(Block::shared).collect()
    }

    /// Replaces the content by `len` tokens in `blocks`, as [`KvCache::segments`] gave them. The blocks are taken over as they
    /// are, wherever they came from.
    ///
    /// # Errors
    /// [`DeviceError::CacheImport`] if number or size of the blocks is wrong; the cache is as it was.
    pub fn import(&mut self, len: u64, blocks: Vec<Space>) -> Result<(), DeviceError> {
        let expected = self.spec.blocks(len);
        let wrong = (0..expected.max(blocks.len()))
            .find(|&i| i >= expected || blocks.get(i).is_none_or(|b| b.len() != self.block_bytes as u64));
        if let Some(block) = wrong {
            let got = blocks.get(block).map_or(0, Space::len);
            return Err(DeviceError::CacheImport {
                tokens: len,
                expected_blocks: expected,
                block_bytes: self.block_bytes as u64,
                block,
                got,
            });
        }
        self.blocks = blocks.into_iter().map(Block::from).collect();
        self.len = len;
        Ok(())
    }

    /// Whether all its blocks are buffers that name this as their device.
    pub(super) fn lies_on(&self, device: usize) -> bool {
        self.blocks.iter().all(|block| matches!(block, Block::Device(buffer) if buffer.device() == device))
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
            to.push(block.address(i >= first));
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
        if wanted > self.from.limit() {
            return Err(out_of_memory(&*self.from, wanted));
        }
        self.blocks.reserve(missing);
        for _ in 0..missing {
            let mut block = self.from.take(self.block_bytes)?;
            // Recycled memory holds what another session left, and blocks can be exported.
            block.clear()?;
            self.blocks.push(block.into());
        }
        let first = self.first_written();
        for block in self.blocks.iter_mut().take(count).skip(first) {
            if block.is_shared() {
                let mut copy = self.from.take(self.block_bytes)?;
                copy.copy(0, &block.shared())?;
                *block = copy.into();
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

/// Where a cache's blocks come from.
pub trait Allocator: Send + Sync {
    /// Memory for a block. It may hold old bytes.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`]; nothing changed.
    fn take(&self, bytes: usize) -> Result<Space, DeviceError>;

    /// Bytes that are taken.
    fn used(&self) -> u64;

    /// The most that can be taken.
    fn limit(&self) -> u64;
}

impl Allocator for Pool {
    fn take(&self, bytes: usize) -> Result<Space, DeviceError> {
        Ok(Space::Host(Self::take(self, bytes)?))
    }

    fn used(&self) -> u64 {
        Self::used(self)
    }

    fn limit(&self) -> u64 {
        Self::limit(self)
    }
}

fn out_of_memory(from: &dyn Allocator, wanted: u64) -> DeviceError {
    OutOfMemory { wanted, used: from.used(), limit: from.limit() }.into()
}

/// A block, which forks and readers may share.
#[derive(Clone)]
enum Block {
    Host(Arc<Slab>),
    Device(Arc<dyn Buffer>),
}

impl Block {
    fn is_shared(&self) -> bool {
        match self {
            Self::Host(slab) => Arc::strong_count(slab) > 1,
            Self::Device(buffer) => Arc::strong_count(buffer) > 1,
        }
    }

    /// Its bytes for others, who keep them as they are.
    fn shared(&self) -> Memory {
        match self {
            Self::Host(slab) => Memory::Host(Region::from_owner(SharedBlock(slab.clone()))),
            Self::Device(buffer) => Memory::Device(buffer.clone(), 0..buffer.bytes()),
        }
    }

    /// Where it is; to be written only if `writable` was said and nobody shares it.
    fn address(&mut self, writable: bool) -> *mut u8 {
        match self {
            Self::Host(slab) => {
                let alone = if writable { Arc::get_mut(slab) } else { None };
                let place = alone.map(|slab| slab.as_mut_ptr());
                place.unwrap_or_else(|| slab.as_ptr().cast_mut())
            }
            // The host never uses it as a pointer.
            Self::Device(buffer) => std::ptr::without_provenance_mut(buffer.address() as usize),
        }
    }
}

impl From<Space> for Block {
    fn from(space: Space) -> Self {
        match space {
            Space::Host(slab) => Self::Host(Arc::new(slab)),
            Space::Device(buffer) => Self::Device(buffer),
        }
    }
}

/// A block that a region keeps alive.
struct SharedBlock(Arc<Slab>);

impl AsRef<[u8]> for SharedBlock {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
