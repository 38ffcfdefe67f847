//! Model files as regions.

use std::path::Path;

use genie_transport::memory::{self, Region};

use crate::ModelError;

/// Maps a whole file for reading. Nobody may shorten it while the region lives.
///
/// # Errors
/// [`ModelError::Io`] if it cannot be opened or mapped.
pub fn map_file(path: &Path) -> Result<Region, ModelError> {
    memory::map_file(path).map_err(ModelError::io(path))
}
