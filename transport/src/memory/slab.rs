//! Owned, aligned memory and its frozen, shared form.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use memmap2::MmapMut;

use super::pool::Shelf;
use super::regions::PeerBytes;
use super::shared::SharedBytes;

/// Alignment of every slab: a page, so that any element type, any vector width and any registration fits.
pub(super) const ALIGN: usize = 4096;

/// Memory with one owner, who may write it. Zeroed when fresh; recycled slabs hold old bytes.
///
/// Dropping it gives the memory back to its [`super::Pool`], or frees it where there is none.
pub struct Slab {
    block: Block,
    len: usize,
}

impl Slab {
    /// A zeroed slab outside any pool, if the system has the memory.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        Block::new(len).map(|block| Self { block, len })
    }

    /// A zeroed slab outside any pool.
    pub fn zeroed(len: usize) -> Self {
        let Some(block) = Block::new(len) else { handle_alloc_error(Layout::new::<u8>()) };
        Self { block, len }
    }

    /// A slab over memory that `owner` keeps, and gives back when it is dropped: pinned memory of a device, or a caller's own. It
    /// has the alignment of other slabs if it begins on a page.
    ///
    /// # Safety
    /// `at` leads to `len` initialised bytes, which stay in place, and which nobody else touches, until `owner` is dropped.
    pub unsafe fn of_owner(at: NonNull<u8>, len: usize, owner: Box<dyn Send + Sync>) -> Self {
        Self { block: Block::known(at, len, Backing::Owned { _owner: owner }), len }
    }

    /// From now on this shelf's, which it goes to at once.
    pub(super) fn shelve(mut self, shelf: &Arc<Shelf>) {
        self.block.shelf = Arc::downgrade(shelf);
        shelf.take_in(self.block.capacity);
    }

    /// A slab over memory that a server maps, too. The caller has made it, and gives it to nobody else.
    pub(crate) fn shared(bytes: Arc<SharedBytes>) -> Self {
        let (ptr, len) = (bytes.start(), bytes.len());
        let block = Block::known(ptr, len, Backing::Shared(bytes));
        Self { block, len }
    }

    /// Where its bytes are, for a [`super::Landing`], which owns the slab while it uses this.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.block.ptr
    }

    /// Makes the pages of shared memory present. Whether it is shared.
    pub(crate) fn populate(&self) -> bool {
        let Backing::Shared(bytes) = &self.block.backing else { return false };
        bytes.memory().populate();
        true
    }

    /// Joins the next `bytes` of its pages to large ones, if it is shared: for memory that is used again.
    pub(crate) fn join(&self, bytes: usize) {
        if let Backing::Shared(shared) = &self.block.backing {
            shared.memory().join(bytes);
        }
    }

    /// Whether a server may read its bytes now.
    pub(crate) fn is_used(&self) -> bool {
        matches!(&self.block.backing, Backing::Shared(bytes) if bytes.is_used())
    }

    pub(super) fn from_block(block: Block, len: usize) -> Self {
        debug_assert!(len <= block.capacity);
        Self { block, len }
    }

    /// Ends writing: from here on it can be shared and read.
    pub fn freeze(self) -> Region {
        let len = self.len;
        Region { holder: Holder::Slab(Arc::new(self)), range: 0..len }
    }
}

impl Deref for Slab {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the block holds at least `len` initialised bytes (zeroed at allocation), and `&self` means that nobody
        // writes them.
        unsafe { std::slice::from_raw_parts(self.block.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Slab {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.block.ptr.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for Slab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slab").field("len", &self.len).finish()
    }
}

/// Shared memory that nobody writes; cloning it copies no bytes.
#[derive(Clone, Debug)]
pub struct Region {
    holder: Holder,
    range: Range<usize>,
}

/// What keeps a region's bytes alive.
#[derive(Clone)]
enum Holder {
    Slab(Arc<Slab>),
    /// Memory that somebody else made: a mapped file.
    Foreign(Arc<dyn AsRef<[u8]> + Send + Sync>),
    /// Memory that a client shares, and may write.
    Peer(Arc<PeerBytes>),
}

/// What a block says of sockets that may still refer to its pages: [`NOBODY`]'s, one session's, or [`MANY`]'s.
const NOBODY: u64 = 0;
/// Of several sessions, or of one that never said that it has read them: nobody may write those pages any more.
const MANY: u64 = u64::MAX;

impl Region {
    /// Lends its pages to sockets of a session (a number of its own, neither 0 nor `u64::MAX`), which the other side reads later than they
    /// were sent. From now on that session alone may have the memory again ([`super::Pool::take_for`]), so that whoever reads
    /// late, or says too early that it has read, sees nothing of others. Whether they can be lent: they are pages of a pool's own, with
    /// nothing else beside it on them.
    pub fn lend(&self, session: u64) -> bool {
        let Holder::Slab(slab) = &self.holder else { return false };
        if !matches!(slab.block.backing, Backing::Map { .. }) {
            return false;
        }
        let mark = |lent: u64| (lent != session).then_some(if lent == NOBODY { session } else { MANY });
        // Whoever has it already has it.
        let _ = slab.block.lent.fetch_update(Ordering::AcqRel, Ordering::Acquire, mark);
        true
    }

    /// Its pages were lent, and it is not known when they will have been read: the memory is never used again, but unmapped.
    pub fn spoil(&self) {
        if let Holder::Slab(slab) = &self.holder {
            slab.block.lent.store(MANY, Ordering::Release);
        }
    }

    /// A region with a copy of these bytes, for small data and tests.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut slab = Slab::zeroed(bytes.len());
        slab.copy_from_slice(bytes);
        slab.freeze()
    }

    /// A region over bytes that `owner` keeps alive and in place: a mapped file. Nothing is copied. The owner must give the
    /// same bytes each time; should it ever give fewer than at first, the bytes beyond them are gone from the region too.
    pub fn from_owner(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let range = 0..owner.as_ref().len();
        Self { holder: Holder::Foreign(Arc::new(owner)), range }
    }

    /// A region over memory that a client shares.
    pub(super) fn of_peer(bytes: PeerBytes) -> Self {
        let range = 0..bytes.as_ref().len();
        Self { holder: Holder::Peer(Arc::new(bytes)), range }
    }

    /// Whether its bytes lie in memory that another process can write. What is checked there may be something else a moment
    /// later: indices, hashes and whatever is shown to others are taken from a copy.
    pub fn is_peer_writable(&self) -> bool {
        matches!(self.holder, Holder::Peer(_))
    }

    /// The shared memory that its bytes lie in, where a client shares them.
    pub fn shared(&self) -> Option<&SharedBytes> {
        match &self.holder {
            Holder::Peer(bytes) => Some(bytes.shared()),
            Holder::Slab(_) | Holder::Foreign(_) => None,
        }
    }

    /// A part of it. `None` if the range does not lie within it.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        (range.start <= range.end && range.end <= self.len()).then(|| Self {
            holder: self.holder.clone(),
            range: self.range.start + range.start..self.range.start + range.end,
        })
    }

    /// The slab, to be written again, if this is the last handle on it; else the region as it was. Foreign memory never is, nor what was
    /// lent.
    pub fn try_thaw(self) -> Result<Slab, Self> {
        self.try_thaw_for(NOBODY)
    }

    /// As [`Self::try_thaw`], for a session that writes; of what was lent it gets what was lent to itself.
    pub fn try_thaw_for(self, session: u64) -> Result<Slab, Self> {
        let Self { holder, range } = self;
        let lent_elsewhere = |slab: &Slab| ![NOBODY, session].contains(&slab.block.lent.load(Ordering::Acquire));
        match holder {
            // A server still reads them, or a client may.
            Holder::Slab(slab) if slab.is_used() || lent_elsewhere(&slab) => {
                Err(Self { holder: Holder::Slab(slab), range })
            }
            Holder::Slab(slab) => Arc::try_unwrap(slab).map_err(|slab| Self { holder: Holder::Slab(slab), range }),
            Holder::Foreign(_) | Holder::Peer(_) => Err(Self { holder, range }),
        }
    }

    /// How many handles there are on this memory.
    pub fn holders(&self) -> usize {
        match &self.holder {
            Holder::Slab(slab) => Arc::strong_count(slab),
            Holder::Foreign(owner) => Arc::strong_count(owner),
            Holder::Peer(bytes) => Arc::strong_count(bytes),
        }
    }
}

impl Deref for Region {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let bytes = match &self.holder {
            Holder::Slab(slab) => &**slab,
            Holder::Foreign(owner) => (**owner).as_ref(),
            Holder::Peer(bytes) => (**bytes).as_ref(),
        };
        // The range lies within the bytes: `freeze`, `from_owner` and `slice` see to it.
        bytes.get(self.range.clone()).unwrap_or_default()
    }
}

impl std::fmt::Debug for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Slab(slab) => slab.fmt(f),
            Self::Foreign(_) => f.write_str("Foreign"),
            Self::Peer(_) => f.write_str("Peer"),
        }
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// What a block is.
enum Backing {
    Heap,
    /// A large one.
    /// Held for its end, which unmaps it.
    Map {
        _map: MmapMut,
    },
    /// One that a server maps, too.
    Shared(Arc<SharedBytes>),
    /// Somebody else's, who gives it back.
    Owned {
        _owner: Box<dyn Send + Sync>,
    },
}

/// Who may be given a block that was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextUser {
    Anybody,
    /// Sockets of this session may refer to its pages.
    Session(u64),
    /// It is to be unmapped: who still refers to its pages keeps them as they are.
    Nobody,
}

/// An allocation that knows the shelf it goes back to.
pub(super) struct Block {
    pub(super) ptr: NonNull<u8>,
    pub(super) capacity: usize,
    pub(super) shelf: Weak<Shelf>,
    /// Whose sockets may refer to its pages.
    lent: AtomicU64,
    backing: Backing,
}

// SAFETY: a block is plain memory owned by exactly one `Slab` (or shelf) at a time.
unsafe impl Send for Block {}
// SAFETY: through `&Block` nothing can be written.
unsafe impl Sync for Block {}

/// From here on a block is mapped, not on the heap: its pages come when they are first written, and are not zeroed twice (an
/// aligned allocation of zeroes is written by the allocator, page by page).
const MAPPED: usize = 1 << 20;

impl Block {
    /// Zeroed memory, page-aligned. `None` if the system has none.
    pub(super) fn new(capacity: usize) -> Option<Self> {
        if capacity < MAPPED {
            let capacity = capacity.max(1);
            // SAFETY: the layout's size is not zero.
            let ptr = unsafe { alloc_zeroed(Self::layout(capacity)) };
            return Some(Self::known(NonNull::new(ptr)?, capacity, Backing::Heap));
        }
        let mut map = MmapMut::map_anon(capacity).ok()?;
        // Streaming through weights is a little faster in large pages. A kernel that has none says so, and need not have.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let ptr = NonNull::new(map.as_mut_ptr())?;
        Some(Self::known(ptr, capacity, Backing::Map { _map: map }))
    }

    fn known(ptr: NonNull<u8>, capacity: usize, backing: Backing) -> Self {
        #[cfg(feature = "rdma")]
        super::extents::add(ptr.as_ptr(), capacity, true);
        Self { ptr, capacity, shelf: Weak::new(), lent: AtomicU64::new(NOBODY), backing }
    }

    /// Who may have it next.
    pub(super) fn next_user(&self) -> NextUser {
        match self.lent.load(Ordering::Acquire) {
            NOBODY => NextUser::Anybody,
            MANY => NextUser::Nobody,
            session => NextUser::Session(session),
        }
    }

    fn layout(capacity: usize) -> Layout {
        // Never the fallback: a capacity under `MAPPED` with this alignment is a layout.
        Layout::from_size_align(capacity, ALIGN).unwrap_or(Layout::new::<u8>())
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let Some(shelf) = self.block.shelf.upgrade() else { return };
        let (ptr, lent) = (NonNull::dangling(), AtomicU64::new(NOBODY));
        let empty = Block { ptr, capacity: 0, shelf: Weak::new(), lent, backing: Backing::Heap };
        shelf.put_back(std::mem::replace(&mut self.block, empty));
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        #[cfg(feature = "rdma")]
        if self.capacity != 0 {
            super::extents::remove(self.ptr.as_ptr());
        }
        if self.capacity != 0 && matches!(self.backing, Backing::Heap) {
            // SAFETY: allocated by `Block::new` with this very layout, and owned by nobody else.
            unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.capacity)) }
        }
    }
}
