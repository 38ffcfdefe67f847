//! The one door for payload copies in user space.

use std::sync::atomic::{AtomicU64, Ordering};

static COPIED: AtomicU64 = AtomicU64::new(0);

/// Copies payload bytes and counts them in `genie_copied_bytes_total`.
///
/// # Panics
/// If the lengths differ, as `copy_from_slice` does.
pub fn copy_counted(to: &mut [u8], from: &[u8]) {
    COPIED.fetch_add(from.len() as u64, Ordering::Relaxed);
    to.copy_from_slice(from);
}

/// Appends payload bytes and counts them.
pub fn extend_counted(to: &mut Vec<u8>, from: &[u8]) {
    COPIED.fetch_add(from.len() as u64, Ordering::Relaxed);
    to.extend_from_slice(from);
}

/// Counts payload bytes that are copied in some other way.
pub(super) fn count_copied(bytes: usize) {
    COPIED.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Payload bytes that this process has copied in user space.
pub fn copied_bytes() -> u64 {
    COPIED.load(Ordering::Relaxed)
}
