//! Files mapped into memory, as regions.

use std::fs::File;
use std::path::Path;

use genie_transport::memory::Region;
use memmap2::Mmap;

use crate::ModelError;

/// Maps a whole file for reading. An empty file gives an empty region. Nobody may shorten the file while the region lives.
///
/// # Errors
/// [`ModelError::Io`] if it cannot be opened or mapped.
#[allow(unsafe_code)] // the one place: memmap2 has no safe way to map a file
pub fn map_file(path: &Path) -> Result<Region, ModelError> {
    let file = File::open(path).map_err(ModelError::io(path))?;
    if file.metadata().map_err(ModelError::io(path))?.len() == 0 {
        return Ok(Region::copy_of(&[]));
    }
    // SAFETY: the mapping is private and read-only, and every number read from it is checked where it is used, on the value
    // itself, not on a second read. What remains is another process that truncates or rewrites the file while it is mapped:
    // the user, who owns both, must not; the file is opened for reading only, so nothing here does.
    let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io(path))?;
    Ok(Region::from_owner(map))
}
