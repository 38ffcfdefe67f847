//! What a client shares, as its server knows it.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::copy::count_copied;
use super::shared::SharedBytes;
use super::slab::Region;

/// Shared memory that one client has registered, by the number that it gave each.
#[derive(Debug, Default)]
pub struct Regions {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// What was refused is kept with the reason: who uses it is told.
    by_number: HashMap<u64, Result<Arc<SharedBytes>, String>>,
    bytes: u64,
}

/// A client that registers more gets no further.
const MOST: usize = 4096;
/// All together: mappings cost address space, and their tables memory. 16 TiB.
const MOST_BYTES: u64 = 1 << 44;

/// Shared memory cannot be used as it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoRegion {
    /// Never registered, or no more.
    #[error("the client shares no memory of number {0} on this connection: share it again")]
    Unknown(u64),
    /// Registered, but not taken.
    #[error("the shared memory of number {0} was not taken: {1}")]
    Refused(u64, String),
    /// Beyond its end.
    #[error("{length} bytes from {offset} on do not lie within shared memory of {total}")]
    Outside {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Bytes that there are.
        total: u64,
    },
}

impl Regions {
    /// Takes what a client shares, whose uses are of this era. What is wrong with it, whoever asks for it is told.
    pub fn share(&self, number: u64, file: OwnedFd, bytes: u64, era: u32) {
        let mut known = self.lock();
        let taken = if known.by_number.contains_key(&number) {
            Err("the number is taken".to_owned())
        } else if known.by_number.len() >= MOST || known.bytes.saturating_add(bytes) > MOST_BYTES {
            Err(format!("a client shares at most {MOST} pieces of memory, of {MOST_BYTES} bytes together"))
        } else {
            SharedBytes::adopt(file, bytes, era).map(Arc::new).map_err(|error| error.to_string())
        };
        match &taken {
            Ok(_) => known.bytes += bytes,
            Err(reason) => tracing::warn!(number, bytes, reason, "a client's shared memory is not taken"),
        }
        // Those that are refused are bounded, too: one more is forgotten.
        if taken.is_ok() || known.by_number.len() < MOST {
            known.by_number.entry(number).or_insert(taken);
        }
    }

    /// Forgets it. Residents that lie in it keep it mapped.
    pub fn unshare(&self, number: u64) {
        let mut known = self.lock();
        if let Some(Ok(gone)) = known.by_number.remove(&number) {
            known.bytes = known.bytes.saturating_sub(gone.memory().len() as u64);
        }
    }

    /// The bytes, where they lie. The client has taken a use for them, which ends with the region; on an error, at once.
    ///
    /// # Errors
    /// [`NoRegion`].
    pub fn passed(&self, number: u64, offset: u64, length: u64) -> Result<Region, NoRegion> {
        let used = Used(self.find(number)?);
        let range = within(&used.0, offset, length)?;
        Ok(Region::of_peer(PeerBytes { used, range }))
    }

    /// Where to write bytes for the client.
    ///
    /// # Errors
    /// As [`Self::passed`].
    pub fn target(&self, number: u64, offset: u64, length: u64) -> Result<PeerTarget, NoRegion> {
        let bytes = self.find(number)?;
        let range = within(&bytes, offset, length)?;
        Ok(PeerTarget { bytes, range, filled: 0 })
    }

    fn find(&self, number: u64) -> Result<Arc<SharedBytes>, NoRegion> {
        match self.lock().by_number.get(&number) {
            None => Err(NoRegion::Unknown(number)),
            Some(Err(reason)) => Err(NoRegion::Refused(number, reason.clone())),
            Some(Ok(bytes)) => Ok(bytes.clone()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn within(bytes: &SharedBytes, offset: u64, length: u64) -> Result<Range<usize>, NoRegion> {
    let total = bytes.len() as u64;
    match offset.checked_add(length) {
        // Both are at most the mapping's length, which is a usize.
        Some(end) if end <= total => Ok(offset as usize..end as usize),
        _ => Err(NoRegion::Outside { offset, length, total }),
    }
}

/// A use that the client has taken and this side gives back.
#[derive(Debug)]
struct Used(Arc<SharedBytes>);

impl Drop for Used {
    fn drop(&mut self) {
        self.0.give_use_back();
    }
}

/// Bytes in memory that a client may write at any time.
#[derive(Debug)]
pub(super) struct PeerBytes {
    used: Used,
    range: Range<usize>,
}

impl PeerBytes {
    /// The memory that they lie in.
    pub(super) fn shared(&self) -> &SharedBytes {
        &self.used.0
    }
}

impl AsRef<[u8]> for PeerBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range lies within the mapping (`within`), which `used` keeps, and which can neither shrink nor fault (its
        // seals). A client that keeps its side of the contract does not write while a use is out. One that does all the same
        // changes numbers that are being computed with: `Region::is_peer_writable` tells who must not trust what it has
        // checked, and takes a copy first.
        unsafe { std::slice::from_raw_parts(self.used.0.start().as_ptr().add(self.range.start), self.range.len()) }
    }
}

/// Memory of a client that this side fills for it.
#[derive(Debug)]
pub struct PeerTarget {
    bytes: Arc<SharedBytes>,
    range: Range<usize>,
    filled: usize,
}

impl PeerTarget {
    /// The memory that it lies in.
    pub fn shared(&self) -> &SharedBytes {
        &self.bytes
    }

    /// Lets a device write the next `bytes` bytes, or as many as there is room for: `write` gets where and how many, and returns
    /// when the device is done.
    ///
    /// # Errors
    /// `write`'s; the bytes may be anything then, and are the next ones still.
    pub fn fill<E>(&mut self, bytes: usize, write: impl FnOnce(*mut u8, usize) -> Result<(), E>) -> Result<(), E> {
        let n = bytes.min(self.range.len() - self.filled);
        // SAFETY: the range lies within the mapping, which `self` keeps; `filled + n` is at most its length.
        let at = unsafe { self.bytes.start().as_ptr().add(self.range.start + self.filled) };
        write(at, n)?;
        self.filled += n;
        Ok(())
    }

    /// Copies the next bytes there, as far as there is room, and counts them.
    pub fn write(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(self.range.len() - self.filled);
        count_copied(n);
        // SAFETY: the range lies within the mapping, which `self` keeps; `filled + n` is at most its length. The client's bytes
        // and this side's do not overlap, unless the bytes are that client's own (it asks for what it passed): then `copy`
        // does what is right.
        unsafe {
            std::ptr::copy(bytes.as_ptr(), self.bytes.start().as_ptr().add(self.range.start + self.filled), n);
        }
        self.filled += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(regions: &Regions, number: u64, bytes: &SharedBytes) {
        let file = bytes.memory().fd().unwrap().try_clone_to_owned().unwrap();
        regions.share(number, file, bytes.memory().len() as u64, bytes.era());
    }

    #[test]
    fn bytes_are_read_where_they_lie_and_the_use_ends_with_the_last_reader() {
        let (regions, ours) = (Regions::default(), SharedBytes::new(8192).unwrap());
        share(&regions, 3, &ours);
        // SAFETY: the mapping has 8192 bytes, and nobody reads them yet.
        unsafe { std::ptr::write_bytes(ours.start().as_ptr(), 7, 8192) };
        ours.take_use();
        let region = regions.passed(3, 100, 1000).unwrap();
        assert!(region.is_peer_writable());
        assert_eq!(&*region, [7; 1000]);
        regions.unshare(3);
        assert_eq!(regions.passed(3, 0, 1).unwrap_err(), NoRegion::Unknown(3));
        let part = region.slice(0..10).unwrap();
        drop(region);
        assert!(ours.is_used());
        assert_eq!(&*part, [7; 10]);
        assert!(part.is_peer_writable());
        drop(part);
        assert!(!ours.is_used());
    }

    #[test]
    fn what_does_not_lie_within_is_refused_and_the_use_given_back() {
        let (regions, ours) = (Regions::default(), SharedBytes::new(4096).unwrap());
        share(&regions, 1, &ours);
        for (offset, length) in [(0, 4097), (4096, 1), (u64::MAX, 2), (1, u64::MAX)] {
            ours.take_use();
            assert!(matches!(regions.passed(1, offset, length), Err(NoRegion::Outside { .. })));
            assert!(!ours.is_used());
        }
    }

    #[test]
    fn what_was_refused_says_why() {
        let regions = Regions::default();
        let (read, _write) = std::io::pipe().unwrap();
        regions.share(5, read.into(), 8192, 0);
        let error = regions.passed(5, 0, 1).unwrap_err();
        assert!(matches!(&error, NoRegion::Refused(5, why) if why.contains("memfd")), "{error}");
    }

    #[test]
    fn a_target_takes_no_more_than_it_has() {
        let (regions, ours) = (Regions::default(), SharedBytes::new(4096).unwrap());
        share(&regions, 1, &ours);
        let mut target = regions.target(1, 10, 20).unwrap();
        target.write(&[1; 15]);
        target.write(&[2; 15]);
        drop(target);
        // SAFETY: the mapping has 4096 bytes, and nobody writes them any more.
        let bytes = unsafe { std::slice::from_raw_parts(ours.start().as_ptr(), 40) };
        assert_eq!((bytes[9], &bytes[10..25], &bytes[25..30], bytes[30]), (0, &[1; 15][..], &[2; 5][..], 0));
    }
}
