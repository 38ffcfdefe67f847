//! Files mapped into memory, as regions.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

use super::slab::Region;

/// Maps a whole file for reading: its bytes can be sent without being read first. An empty file gives an empty region. Nobody
/// may shorten the file while the region lives.
///
/// # Errors
/// The system's, if it cannot be opened or mapped.
pub fn map_file(path: &Path) -> io::Result<Region> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Region::copy_of(&[]));
    }
    // SAFETY: the mapping is private and read-only, and every number read from it is checked where it is used, on the value
    // itself, not on a second read. What remains is another process that truncates or rewrites the file while it is mapped:
    // the user, who owns both, must not; the file is opened for reading only, so nothing here does.
    let map = unsafe { Mmap::map(&file) }?;
    Ok(Region::from_owner(Mapped::new(map)))
}

/// A mapped file. Devices that register memory are told of it as one allocation.
struct Mapped(Mmap);

impl Mapped {
    fn new(map: Mmap) -> Self {
        #[cfg(feature = "rdma")]
        super::extents::add(map.as_ptr(), map.len(), false);
        Self(map)
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(feature = "rdma")]
impl Drop for Mapped {
    fn drop(&mut self) {
        super::extents::remove(self.0.as_ptr());
    }
}
