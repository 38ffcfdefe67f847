//! Shared mappings that large pages fit.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;

/// Bytes of a large page.
pub(super) const LARGE: usize = 2 << 20;

/// A file's first bytes, mapped to be read and written by all who map it. From [`LARGE`] bytes on it begins at a multiple of that:
/// pages of a file are joined to a large one only where address and offset agree, and the system puts a mapping at any page.
#[derive(Debug)]
pub(super) struct Aligned {
    start: NonNull<u8>,
    /// Addresses that are this mapping's: those before `start` and behind its end lead nowhere.
    whole: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and is unmapped once, by its only owner.
unsafe impl Send for Aligned {}
// SAFETY: it gives a pointer and nothing else.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// Maps `len` bytes of this file, which has as many.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new(file: &impl AsRawFd, len: usize) -> io::Result<Self> {
        let shared = libc::PROT_READ | libc::PROT_WRITE;
        if len < LARGE {
            // SAFETY: the system chooses where, so nothing else lies there.
            let start = unsafe { map(std::ptr::null_mut(), len, shared, libc::MAP_SHARED, file.as_raw_fd()) }?;
            return Ok(Self { start, whole: start, bytes: len });
        }
        let bytes = len.checked_add(LARGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: as above.
        let whole = unsafe { map(std::ptr::null_mut(), bytes, libc::PROT_NONE, nothing, -1) }?;
        // From here on its end unmaps it, whatever fails.
        let mut mapping = Self { start: whole, whole, bytes };
        // SAFETY: there are LARGE bytes more than `len`, and fewer than that lie before the next multiple of it.
        mapping.start = unsafe { whole.add(whole.as_ptr().align_offset(LARGE)) };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: it replaces addresses that were reserved above, that nobody else knows, and that lead nowhere.
        unsafe { map(mapping.start.as_ptr(), len, shared, flags, file.as_raw_fd()) }?;
        Ok(mapping)
    }

    /// The first byte. Page-aligned.
    #[inline]
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody uses it any more: pointers into it do not outlive their owner.
        unsafe { libc::munmap(self.whole.as_ptr().cast(), self.bytes) };
    }
}

/// # Safety
/// With `MAP_FIXED`, nobody uses what lies at `at`.
unsafe fn map(at: *mut u8, len: usize, access: i32, flags: i32, file: RawFd) -> io::Result<NonNull<u8>> {
    // SAFETY: the caller answers for what is replaced; a new mapping touches nothing else.
    let start = unsafe { libc::mmap(at.cast(), len, access, flags, file, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use rustix::fs::MemfdFlags;

    use super::*;

    /// Mappings lay where the system put them, at no multiple of a large page: none of their pages was ever joined, and nobody was told.
    #[test]
    fn what_is_large_begins_where_large_pages_do() {
        for len in [4096, LARGE - 4096, LARGE, LARGE + 4096, 5 * LARGE] {
            let file = rustix::fs::memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, len as u64).unwrap();
            // Several, so that none is aligned by luck.
            let mappings: Vec<_> = (0..3).map(|_| Aligned::new(&file, len).unwrap()).collect();
            for mapping in &mappings {
                let start = mapping.start().as_ptr();
                assert!(len < LARGE || (start as usize).is_multiple_of(LARGE), "{len} bytes at {start:?}");
                // SAFETY: within the mapping of a file with as many bytes.
                unsafe {
                    start.add(len - 1).write(7);
                    assert_eq!(mappings[0].start().as_ptr().add(len - 1).read(), 7);
                    start.add(len - 1).write(8);
                }
            }
        }
    }
}
