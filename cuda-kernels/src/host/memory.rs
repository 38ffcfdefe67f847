//! Buffers for kernels under test: what lies behind their end faults.

use std::ops::{Deref, DerefMut};

/// Bytes that end at a page which must not be touched, and before which there is another. They start at a multiple of
/// [`Guarded::ALIGN`], as a GPU's allocations do, so up to that many bytes behind the end can be read unseen.
pub struct Guarded {
    map: *mut libc::c_void,
    mapped: usize,
    at: *mut u8,
    len: usize,
}

// SAFETY: it owns its mapping alone.
unsafe impl Send for Guarded {}
// SAFETY: through `&Guarded` its bytes can be read only.
unsafe impl Sync for Guarded {}

const PAGE: usize = 4096;

impl Guarded {
    /// What its address is a multiple of.
    pub const ALIGN: usize = 16;

    /// `len` bytes, every one `poison`.
    ///
    /// # Panics
    /// If the system has no memory.
    pub fn new(len: usize, poison: u8) -> Self {
        let body = len.next_multiple_of(PAGE).max(PAGE);
        let mapped = body + 2 * PAGE;
        // SAFETY: a new mapping, which touches no other memory.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert_ne!(map, libc::MAP_FAILED, "no memory for a buffer of {len} bytes");
        // SAFETY: within the mapping: the page before, the body, the page behind.
        let body_at = unsafe { map.cast::<u8>().add(PAGE) };
        // SAFETY: whole pages of this mapping, which nobody uses yet.
        let opened = unsafe { libc::mprotect(body_at.cast(), body, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(opened, 0, "a mapping that was just made can be opened");
        // SAFETY: `len` rounded up to `ALIGN` is no more than the body.
        let at = unsafe { body_at.add(body - len.next_multiple_of(Self::ALIGN)) };
        // SAFETY: `len` bytes of the body lie there.
        unsafe { at.write_bytes(poison, len) };
        Self { map, mapped, at, len }
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut new = Self::new(bytes.len(), 0);
        new.copy_from_slice(bytes);
        new
    }

    /// Its address, for a [`crate::View`].
    pub fn address(&self) -> u64 {
        self.at as u64
    }
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:p}", self.len, self.at)
    }
}

impl Deref for Guarded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes of the mapping that it owns. Kernels write them only while their launch runs, and
        // whoever launches says that nobody else uses them meanwhile.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, which nobody else has.
        unsafe { libc::munmap(self.map, self.mapped) };
    }
}
