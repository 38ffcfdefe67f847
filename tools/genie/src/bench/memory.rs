//! The memory that a client's tensors lie in.

use std::ops::DerefMut;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::ValueEnum;
use genie_transport::Uri;
use genie_transport::client::blocking::Session;
use genie_transport::memory::Slab;
use memmap2::MmapMut;

use crate::connect::scheme;

/// Where the client's payloads lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Memory {
    /// Genie's own, aligned; its pages are large where the system has large ones. The floor has the same.
    Heap,
    /// What the allocator gives to a program that knows nothing of Genie: small pages, mostly. The floor has the same.
    Malloc,
    /// Whole pages, locked in place.
    Pinned,
    /// The region that a shm:// link shares with the server.
    Shared,
    /// A GPU's.
    Device,
}

impl Memory {
    /// As it is written.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Heap => "heap",
            Self::Malloc => "malloc",
            Self::Pinned => "pinned",
            Self::Shared => "shared",
            Self::Device => "device",
        }
    }

    /// Whether this machine and this link have it; said before anything is measured.
    pub(super) fn check(self, uri: &Uri) -> Result<()> {
        match self {
            Self::Heap | Self::Malloc | Self::Pinned => Ok(()),
            Self::Shared if scheme(uri) == "shm" => Ok(()),
            Self::Shared => {
                bail!(
                    "--memory shared is what a shm:// link shares with its server: {uri} cannot see it; use heap or pinned"
                )
            }
            Self::Device => {
                bail!("--memory device needs CUDA, and this program is built without it: use heap or pinned")
            }
        }
    }

    /// So many bytes of it, none of them zero, for a session to send.
    pub(super) fn bytes(self, session: &mut Session, length: usize) -> Result<Bytes> {
        match self {
            Self::Shared => {
                let mut slab = session.shared(length)?;
                fill(&mut slab);
                Ok(Bytes::from_owner(slab.freeze()))
            }
            _ => self.own_bytes(length),
        }
    }

    fn own_bytes(self, length: usize) -> Result<Bytes> {
        match self {
            Self::Pinned => {
                let mut pages = MmapMut::map_anon(length).context("mapping memory")?;
                pages.lock().with_context(|| {
                    format!("locking {length} bytes in place: the limit of locked memory is too low (ulimit -l)")
                })?;
                fill(&mut pages);
                Ok(Bytes::from_owner(pages))
            }
            _ => self.plain_bytes(length),
        }
    }

    /// What a floor moves beside it: the same kind, where a program without Genie can have it.
    pub(super) fn plain_bytes(self, length: usize) -> Result<Bytes> {
        if self == Self::Malloc {
            let mut bytes = vec![0; length];
            fill(&mut bytes);
            return Ok(bytes.into());
        }
        let mut slab = slab(length)?;
        fill(&mut slab);
        Ok(Bytes::from_owner(slab.freeze()))
    }

    /// What a floor copies to: the same kind again, all of it present.
    pub(super) fn place(self, length: usize) -> Result<Place> {
        let mut place: Place =
            if self == Self::Malloc { Box::new(vec![0; length].into_boxed_slice()) } else { Box::new(slab(length)?) };
        place.fill(1);
        Ok(place)
    }
}

/// Memory to be written.
pub(super) type Place = Box<dyn DerefMut<Target = [u8]> + Send>;

fn slab(length: usize) -> Result<Slab> {
    Slab::try_zeroed(length).with_context(|| format!("no memory for {length} bytes"))
}

/// A pattern that shows whether something moved to another place.
fn fill(bytes: &mut [u8]) {
    bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i % 251) as u8 + 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_has_not_is_refused() {
        let uri = "tcp://127.0.0.1:1".parse().unwrap();
        let refused = |memory: Memory| memory.check(&uri).unwrap_err().to_string();
        assert!(refused(Memory::Shared).contains("shm://"));
        assert!(refused(Memory::Device).contains("CUDA"));
        assert!(Memory::Heap.check(&uri).is_ok());
        assert!(Memory::Shared.check(&"shm:///tmp/s".parse().unwrap()).is_ok());
    }

    #[test]
    fn pinned_memory_holds_the_same_bytes() {
        let heap = Memory::Heap.own_bytes(10_000).unwrap();
        assert_eq!(heap, Memory::Pinned.own_bytes(10_000).unwrap());
        assert_eq!(heap, Memory::Malloc.own_bytes(10_000).unwrap());
        assert!(heap.iter().all(|b| *b != 0));
    }
}
