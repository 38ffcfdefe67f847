//! Memory that the server can see, too.

use std::ffi::c_void;
use std::sync::Arc;

use genie_transport::memory::Region;

use crate::arguments::Place;
use crate::core::Core;
use crate::handles::Table;
use crate::session::{genie_session, sessions};
use crate::status::{Failure, entry, genie_error, genie_status};

/// Memory of Genie's: what `genie_memory_alloc` made, or what a get brought. Freed by `genie_memory_free`.
pub struct genie_memory {
    _opaque: [u8; 0],
}

pub(crate) struct Memory {
    core: Arc<Core>,
    region: Region,
}

static MEMORIES: Table<Memory> = Table::new(9, "genie_memory");

/// What was got, as C's.
pub(crate) fn add(core: Arc<Core>, region: Region) -> Result<*mut genie_memory, Failure> {
    MEMORIES.add(Memory { core, region })
}

/// Makes `size` bytes of memory, zeroed, that the server reads and writes itself where the link shares memory (shm://, and genie:// on one
/// host): a put from it, or from a part of it, copies nothing, and neither does a get to it. Over other links it is ordinary memory, and
/// both work the same. It takes long for much memory (seconds for some GB), and holds up the session's other calls meanwhile: allocate
/// once, at the beginning, and use it again.
///
/// `*memory` is the caller's, to be freed by `genie_memory_free`. While a tensor that was put from it lives, its bytes must not be
/// written: over shared memory the tensor lies there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_memory_alloc(
    session: *const genie_session,
    size: usize,
    memory: *mut *mut genie_memory,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(memory, "memory") }?;
        if size == 0 || isize::try_from(size).is_err() {
            return Err(Failure::argument(format!("there is no memory of {size} bytes")));
        }
        let core = sessions().get(session)?.core.clone();
        let region = core.with(|s| s.shared(size))?.freeze();
        place.set(add(core, region)?);
        Ok(())
    })
}

/// Where the memory is, and how large, in bytes; either may be NULL. It begins on a page. What `genie_memory_alloc` made may be written
/// (see there), what a get brought only read. `*data` is valid until `genie_memory_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_memory_data(
    memory: *const genie_memory,
    data: *mut *mut c_void,
    size: *mut usize,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let (data, size) = unsafe {
            (crate::arguments::optional_place(data, "data")?, crate::arguments::optional_place(size, "size")?)
        };
        let memory = MEMORIES.get(memory)?;
        if let Some(data) = data {
            data.set(memory.region.as_ptr().cast_mut().cast());
        }
        if let Some(size) = size {
            size.set(memory.region.len());
        }
        Ok(())
    })
}

/// Frees memory: its bytes must not be touched from here on. What the server still has of it stays mapped there. NULL is nothing, and is
/// GENIE_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_memory_free(memory: *mut genie_memory, error: *mut genie_error) -> genie_status {
    entry(error, || {
        if memory.is_null() {
            return Ok(());
        }
        // What is the last one's is kept for the next get of its size, where the session is still there.
        if let Some(Memory { core, region }) = Arc::into_inner(MEMORIES.remove(memory)?)
            && let Err(gone) = core.with(|session| {
                session.recycle(region);
                Ok(())
            })
        {
            tracing::trace!(status = ?gone.status, "memory was freed after its session");
        }
        Ok(())
    })
}
