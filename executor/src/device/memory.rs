//! Memory that tensors lie in: the host's, or a device's own, which only the device reads and writes.

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use genie_transport::memory::{PeerTarget, Placed, Region, SharedBytes, Slab, copy_counted};

use super::DeviceError;

/// Bytes in a device's own memory. Dropping it gives them back.
///
/// Whoever shares a buffer has waited until what was written is there: a reader never waits for a writer.
pub trait Buffer: Any + Debug + Send + Sync {
    /// How many bytes.
    fn bytes(&self) -> u64;

    /// Where they are, in the device's own terms; no two buffers that live at once have the same.
    fn address(&self) -> u64;

    /// Writes `from` to byte `offset` and what follows; it is there when this returns.
    ///
    /// # Errors
    /// [`DeviceError`]; the bytes may be anything then. A range that does not lie within is [`DeviceError::Internal`].
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), DeviceError>;

    /// Reads from byte `offset` on until `to` is full.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), DeviceError>;

    /// As [`Self::read`], to memory that others may see or write.
    ///
    /// # Safety
    /// `to` leads to `bytes` bytes that stay in place until this returns, of which no reference exists.
    ///
    /// # Errors
    /// As [`Self::write`].
    unsafe fn read_to(&self, offset: u64, to: *mut u8, bytes: usize) -> Result<(), DeviceError>;

    /// Copies `bytes` of a buffer of the same device to byte `offset`.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn copy(&self, offset: u64, from: &dyn Buffer, from_offset: u64, bytes: u64) -> Result<(), DeviceError>;

    /// Copies `bytes` of a buffer of another device to byte `offset`, without the host between them. `false`: there is no such way, and
    /// nothing was done.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn copy_from_peer(
        &self,
        offset: u64,
        from: &(dyn Buffer + 'static),
        from_offset: u64,
        bytes: u64,
    ) -> Result<bool, DeviceError>;

    /// A copy of all bytes in the host's memory, of the kind from which they come back the quickest.
    ///
    /// # Errors
    /// As [`Self::write`], or [`DeviceError::NoHostMemory`].
    fn to_pinned(&self) -> Result<Region, DeviceError>;

    /// Makes every byte 0.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn clear(&self) -> Result<(), DeviceError>;

    /// Host memory for `bytes` bytes on their way to or from the device, from which copies are quick; `None` where there is none
    /// to spare, or none that is quicker than any other.
    fn stage(&self, bytes: usize) -> Option<Slab>;

    /// From now on copies to and from memory that a client shares are quick, where the device can see to that.
    fn reach(&self, shared: &SharedBytes);

    /// Begins to read parts of the same device's memory, one after another, until `to` is full. The parts are held until then.
    ///
    /// # Errors
    /// As [`Self::write`]; what goes wrong later, [`Coming::wait`] tells.
    fn fetch(&self, parts: Vec<Memory>, to: Slab) -> Result<Box<dyn Coming>, DeviceError>;

    /// As [`Self::write`], but returns before the bytes are there: `from` is kept until they are.
    ///
    /// # Errors
    /// As [`Self::write`]; what goes wrong later, [`Self::settle`] tells.
    fn send(&self, offset: u64, from: Region) -> Result<(), DeviceError>;

    /// All of it as network cards know it, where they can be told of it.
    fn placed(&self) -> Option<Placed>;

    /// Whether the device is done with what lay there before: nobody but the device itself writes there earlier.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn is_ready(&self) -> Result<bool, DeviceError>;

    /// A network card has written a slice to it, or is let read one.
    fn note_direct(&self, written: bool);

    /// Begins to take the checksum of `bytes` bytes from `offset` on, a slice's at the most, that a network card has written and said so.
    /// The caller keeps the buffer until it is known, or the sum was dropped.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn sum(&self, offset: u64, bytes: u64) -> Result<Box<dyn Sum>, DeviceError>;

    /// Waits until everything that was sent, and everything that network cards wrote and said so, is there.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn settle(&self) -> Result<(), DeviceError>;

    /// The device that it belongs to: buffers copy from those with the same.
    fn device(&self) -> usize;

    /// Whether its bytes are lost, because the device failed: they do not come back.
    fn is_lost(&self) -> bool;
}

/// Bytes on their way from a device's memory. Dropped before they are there, it waits for them.
pub trait Coming: Debug + Send {
    /// The slab's bytes, once they are there.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    fn wait(self: Box<Self>) -> Result<Region, DeviceError>;
}

/// A checksum that a device takes of its memory. Dropped early, it waits until the device is done with that.
pub trait Sum: Send {
    /// CRC32C of the bytes, once it is known.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    fn poll(&mut self) -> Result<Poll<u32>, DeviceError>;

    /// As [`Self::poll`], once it is known.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    fn wait(&mut self) -> Result<u32, DeviceError>;
}

/// Bytes that pass through the host at a time.
const PIECE: u64 = 4 << 20;

/// Memory with one owner, who may write it; it may hold old bytes.
#[derive(Debug)]
pub enum Space {
    /// In the host's memory.
    Host(Slab),
    /// In a device's own. There is no other handle on it.
    Device(Arc<dyn Buffer>),
}

/// Memory that nobody writes; cloning it copies no bytes.
#[derive(Clone, Debug)]
pub enum Memory {
    /// In the host's memory.
    Host(Region),
    /// A part of a device's own.
    Device(Arc<dyn Buffer>, Range<u64>),
}

impl Space {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Host(slab) => slab.len() as u64,
            Self::Device(buffer) => buffer.bytes(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes `from` to byte `offset` and what follows.
    ///
    /// # Errors
    /// As [`Buffer::write`].
    pub fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        match self {
            Self::Host(slab) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let to = start.checked_add(from.len()).and_then(|end| slab.get_mut(start..end));
                copy_counted(to.ok_or_else(outside)?, from);
                Ok(())
            }
            Self::Device(buffer) => buffer.write(offset, from),
        }
    }

    /// Copies all of `from`, wherever it lies, to byte `offset` and what follows.
    ///
    /// # Errors
    /// As [`Buffer::write`], and no memory to pass the bytes through where they go from one device to another.
    pub fn copy(&mut self, offset: u64, from: &Memory) -> Result<(), DeviceError> {
        match (&mut *self, from) {
            (Self::Device(buffer), Memory::Host(region)) => {
                if let Some(shared) = region.shared() {
                    buffer.reach(shared);
                }
                buffer.write(offset, region)
            }
            (Self::Host(_), Memory::Host(region)) => self.write(offset, region),
            (Self::Host(slab), Memory::Device(..)) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let len = usize::try_from(from.len()).unwrap_or(usize::MAX);
                let to = start.checked_add(len).and_then(|end| slab.get_mut(start..end)).ok_or_else(outside)?;
                from.read(0, to)
            }
            (Self::Device(to), Memory::Device(buffer, range)) if to.device() == buffer.device() => {
                to.copy(offset, &**buffer, range.start, range.end - range.start)
            }
            (Self::Device(to), Memory::Device(buffer, range)) => {
                if to.copy_from_peer(offset, &**buffer, range.start, range.end - range.start)? {
                    return Ok(());
                }
                carry(buffer, range.clone(), to, offset)
            }
        }
    }

    /// Makes every byte 0.
    ///
    /// # Errors
    /// As [`Buffer::clear`].
    pub fn clear(&mut self) -> Result<(), DeviceError> {
        match self {
            Self::Host(slab) => {
                slab.fill(0);
                Ok(())
            }
            Self::Device(buffer) => buffer.clear(),
        }
    }

    /// Ends writing: from here on it can be shared and read.
    pub fn freeze(self) -> Memory {
        match self {
            Self::Host(slab) => Memory::Host(slab.freeze()),
            Self::Device(buffer) => {
                let range = 0..buffer.bytes();
                Memory::Device(buffer, range)
            }
        }
    }
}

impl Memory {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Host(region) => region.len() as u64,
            Self::Device(_, range) => range.end - range.start,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The region, if it is the host's.
    pub fn host(&self) -> Option<&Region> {
        match self {
            Self::Host(region) => Some(region),
            Self::Device(..) => None,
        }
    }

    /// Where its first byte is: in the host's memory, or in its device's own terms.
    pub fn address(&self) -> u64 {
        match self {
            Self::Host(region) => region.as_ptr() as u64,
            Self::Device(buffer, range) => buffer.address() + range.start,
        }
    }

    /// How many handles there are on this memory.
    pub fn holders(&self) -> usize {
        match self {
            Self::Host(region) => region.holders(),
            Self::Device(buffer, _) => Arc::strong_count(buffer),
        }
    }

    /// Whether another process can write it: see [`Region::is_peer_writable`].
    pub fn is_peer_writable(&self) -> bool {
        matches!(self, Self::Host(region) if region.is_peer_writable())
    }

    /// Whether the bytes are lost, because their device failed.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Device(buffer, _) if buffer.is_lost())
    }

    /// A part of it. `None` if the range does not lie within it.
    pub fn slice(&self, range: Range<u64>) -> Option<Self> {
        match self {
            Self::Host(region) => {
                let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
                region.slice(range).map(Self::Host)
            }
            Self::Device(buffer, own) => (range.start <= range.end && range.end <= own.end - own.start)
                .then(|| Self::Device(buffer.clone(), own.start + range.start..own.start + range.end)),
        }
    }

    /// Reads from byte `offset` on until `to` is full.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        let end = offset.checked_add(to.len() as u64).filter(|&end| end <= self.len()).ok_or_else(outside)?;
        match self {
            // Both are within a region's length, which is a `usize`.
            Self::Host(region) => copy_counted(to, region.get(offset as usize..end as usize).ok_or_else(outside)?),
            Self::Device(buffer, range) => buffer.read(range.start + offset, to)?,
        }
        Ok(())
    }

    /// Copies all bytes to the next of a client's memory. A device writes them there itself.
    ///
    /// # Errors
    /// As [`Buffer::read`].
    pub fn fill(&self, target: &mut PeerTarget) -> Result<(), DeviceError> {
        match self {
            Self::Host(region) => {
                target.write(region);
                Ok(())
            }
            Self::Device(buffer, range) => {
                buffer.reach(target.shared());
                let bytes = usize::try_from(self.len()).unwrap_or(usize::MAX);
                // SAFETY: the target leads to as many bytes as it says, of memory that it keeps mapped, and to which nobody here has
                // a reference.
                target.fill(bytes, |to, n| unsafe { buffer.read_to(range.start, to, n) })
            }
        }
    }

    /// Shows all bytes to `show`, piece by piece from the front, each with its offset.
    ///
    /// # Errors
    /// As [`Buffer::read`], or what `show` gives.
    pub fn pieces<E: From<DeviceError>>(&self, mut show: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        if let Self::Host(region) = self {
            return show(0, region);
        }
        let mut through = vec![0; self.len().min(PIECE) as usize];
        let mut at = 0;
        while at < self.len() {
            let piece = &mut through[..(self.len() - at).min(PIECE) as usize];
            self.read(at, piece)?;
            show(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Its bytes in the host's memory: itself, or a copy.
    ///
    /// # Errors
    /// As [`Buffer::read`], or [`DeviceError::NoHostMemory`].
    pub fn to_host(&self) -> Result<Region, DeviceError> {
        if let Self::Host(region) = self {
            return Ok(region.clone());
        }
        let slab = usize::try_from(self.len()).ok().and_then(Slab::try_zeroed);
        let mut slab = slab.ok_or(DeviceError::NoHostMemory { wanted: self.len() })?;
        self.read(0, &mut slab)?;
        Ok(slab.freeze())
    }

    /// As [`Self::to_host`], for a copy that comes back to its device.
    ///
    /// # Errors
    /// As [`Self::to_host`].
    pub fn to_pinned(&self) -> Result<Region, DeviceError> {
        match self {
            Self::Device(buffer, range) if *range == (0..buffer.bytes()) => buffer.to_pinned(),
            part => part.to_host(),
        }
    }

    /// The memory, to be written again by this session, if this is the last handle on it and it is all of it; else as it was. Memory that
    /// somebody else made never is, nor what was lent to another session.
    pub fn try_thaw(self, session: u64) -> Result<Space, Self> {
        match self {
            Self::Host(region) => region.try_thaw_for(session).map(Space::Host).map_err(Self::Host),
            Self::Device(buffer, range) if Arc::strong_count(&buffer) == 1 && range == (0..buffer.bytes()) => {
                Ok(Space::Device(buffer))
            }
            shared => Err(shared),
        }
    }
}

impl From<Region> for Memory {
    fn from(region: Region) -> Self {
        Self::Host(region)
    }
}

/// Copies bytes of one device to another's, through the host: one piece comes while the one before it goes.
fn carry(from: &Arc<dyn Buffer>, range: Range<u64>, to: &Arc<dyn Buffer>, offset: u64) -> Result<(), DeviceError> {
    let mut coming: Option<(u64, Box<dyn Coming>)> = None;
    let mut at = range.start;
    while at < range.end || coming.is_some() {
        let bytes = (range.end - at).min(PIECE);
        let next = if bytes > 0 {
            let slab = from.stage(bytes as usize).or_else(|| Slab::try_zeroed(bytes as usize));
            let slab = slab.ok_or(DeviceError::NoHostMemory { wanted: bytes })?;
            let next = from.fetch(vec![Memory::Device(from.clone(), at..at + bytes)], slab)?;
            Some((offset + (at - range.start), next))
        } else {
            None
        };
        at += bytes;
        if let Some((place, one)) = std::mem::replace(&mut coming, next) {
            to.send(place, one.wait()?)?;
        }
    }
    to.settle()
}

fn outside() -> DeviceError {
    DeviceError::Internal("bytes beyond the end of memory were asked for".to_owned())
}
