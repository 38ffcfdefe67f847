//! Memory that operations in flight own.
//!
//! A [`Slab`] is memory that one owner may write; [`Slab::freeze`] turns it into a [`Region`], which many may read and
//! nobody may write. A [`Pool`] recycles slabs, so that steady state allocates (and page-faults) nothing. A [`Landing`] is
//! slabs that a sliced transfer fills: it hands out a [`SliceLease`] a slice, which the operation that reads from the
//! network owns until it completes.

mod aligned;
mod checksum;
mod copy;
mod exported;
#[cfg(feature = "rdma")]
mod extents;
mod landing;
mod map;
mod pool;
mod regions;
mod ring;
mod shared;
mod slab;

pub use checksum::{Crc32c, crc32c, crc32c_of_both, crc32c_words};
pub use copy::{copied_bytes, copy_counted, extend_counted};
pub use exported::{Exported, Placed};
#[cfg(feature = "rdma")]
pub use extents::{Extent, extent_of, extents_gone, is_live};
pub use landing::{Claim, Landing, OnDevice, Sink, SliceLease, Summing};
pub use map::map_file;
pub use pool::{OutOfMemory, Pool};
pub use regions::{NoRegion, PeerTarget, Regions};
pub use ring::Ring;
pub use shared::{Attachment, NotShared, SharedBytes, SharedMemory};
pub use slab::{Region, Slab};
