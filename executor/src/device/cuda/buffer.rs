//! A tensor's bytes in a GPU's memory.

use std::any::Any;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use genie_cuda_kernels::Address;
use genie_cuda_kernels::gpu::{Event, Gpu, GpuError, Stream};
use genie_transport::memory::{Placed, Region, SharedBytes, Slab};

use super::pinned::Pinned;
use super::pool::Pool;
use super::reachable::Block;
use super::staging::Sent;
use super::sums::GpuSum;
use crate::device::{Buffer, Coming, DeviceError, Memory, Sum};

/// Bytes that go from one GPU to another at a time: a millisecond, or some.
const PEER_PIECE: u64 = 16 << 20;

/// See the module. Given back, its memory is free once the GPU has done what was put into its compute stream until then.
///
/// Its memory comes to be in the order of one stream, its home, at the moment `born`. That is the upload stream for what the network
/// fills: there it has to wait for no kernel, and the driver hands out none that a kernel still uses. Whatever another stream is to do
/// with it first waits for `born` ([`Self::order`]); kernels that use what was uploaded need not, as whoever starts them has seen on
/// the host, behind `born`, that the upload is done. It is given back in the order of the compute stream, which comes after `born`,
/// too.
#[derive(Debug)]
pub(super) struct GpuBuffer {
    pool: Arc<Pool>,
    at: Address,
    bytes: u64,
    charge: u64,
    /// What it is a part of, if that is memory that network cards are told of.
    block: Option<Block>,
    /// From this moment of a stream on the memory is this buffer's, as the last thing put into that stream left it.
    born: Event,
    /// The streams, as bits, in which everything from now on comes after `born`.
    after: AtomicU8,
    /// Copies from the host that may be under way.
    sent: Mutex<Option<Sent>>,
}

impl GpuBuffer {
    /// A buffer at home in a stream. For [`Pool::take_in`], which holds the pool meanwhile.
    pub(super) fn new(gpu: &dyn Gpu, pool: Arc<Pool>, home: Stream, bytes: u64, charge: u64) -> Result<Self, GpuError> {
        let born = gpu.event()?;
        let at = gpu.allocate_in(home, charge)?;
        if let Err(error) = gpu.record(home, &born) {
            // From elsewhere the compute stream has nothing to wait for, so that it could free too early: the GPU keeps that to its end.
            if home == Stream::Compute {
                // SAFETY: it was just allocated in that stream, and nothing uses it.
                unsafe { gpu.free(at) };
            }
            return Err(error);
        }
        let after = AtomicU8::new(bit(home));
        Ok(Self { pool, at, bytes, charge, block: None, born, after, sent: Mutex::default() })
    }

    /// A buffer of memory that network cards are told of, at home in the compute stream.
    pub(super) fn within(
        gpu: &dyn Gpu,
        pool: Arc<Pool>,
        block: Block,
        bytes: u64,
        charge: u64,
    ) -> Result<Self, GpuError> {
        // Another buffer may have had it: what was put into the stream for that comes first.
        let (at, born) = (block.at(), gpu.event()?);
        gpu.record(Stream::Compute, &born)?;
        let after = AtomicU8::new(bit(Stream::Compute));
        Ok(Self { pool, at, bytes, charge, block: Some(block), born, after, sent: Mutex::default() })
    }

    /// Makes what is put into a stream from now on come after the memory is this buffer's.
    fn order(&self, gpu: &dyn Gpu, stream: Stream) -> Result<(), GpuError> {
        if self.after.load(Ordering::Acquire) & bit(stream) == 0 {
            gpu.wait(stream, &self.born)?;
            // Only now: who sees the bit comes after the wait.
            self.after.fetch_or(bit(stream), Ordering::Release);
        }
        Ok(())
    }

    /// As [`Self::order`], for kernels that write it.
    pub(super) fn order_kernels(&self, gpu: &dyn Gpu) -> Result<(), GpuError> {
        self.order(gpu, Stream::Compute)
    }

    /// The address of `bytes` bytes at `offset`.
    fn range(&self, offset: u64, bytes: u64) -> Result<Address, DeviceError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.at + offset),
            _ => Err(DeviceError::Internal("bytes beyond the end of a buffer were asked for".to_owned())),
        }
    }

    /// Waits for what was sent.
    fn wait(&self) -> Result<(), GpuError> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner).take();
        sent.map_or(Ok(()), |sent| self.pool.staging.settle(&sent))
    }
}

fn bit(stream: Stream) -> u8 {
    1 << stream as u8
}

/// Waits until what was put into `stream` is done.
fn finish(gpu: &dyn Gpu, stream: Stream) -> Result<(), GpuError> {
    let event = gpu.event()?;
    gpu.record(stream, &event)?;
    gpu.synchronize(&event)
}

impl Buffer for GpuBuffer {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn address(&self) -> u64 {
        self.at
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        let to = self.range(offset, from.len() as u64)?;
        self.pool.with(|gpu| {
            self.order(gpu, Stream::Upload)?;
            // SAFETY: both are live: this waits until the copy is done.
            unsafe { gpu.copy_in(Stream::Upload, to, from.as_ptr(), from.len()) }?;
            Ok(finish(gpu, Stream::Upload)?)
        })
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: `to` is this function's.
        unsafe { self.read_to(offset, to.as_mut_ptr(), to.len()) }
    }

    unsafe fn read_to(&self, offset: u64, to: *mut u8, bytes: usize) -> Result<(), DeviceError> {
        let from = self.range(offset, bytes as u64)?;
        self.pool.with(|gpu| {
            self.order(gpu, Stream::Download)?;
            // SAFETY: both are live, `to` as the caller has it: this waits until the copy is done.
            unsafe { gpu.copy_out(Stream::Download, to, from, bytes) }?;
            Ok(finish(gpu, Stream::Download)?)
        })
    }

    fn copy(&self, offset: u64, from: &dyn Buffer, from_offset: u64, bytes: u64) -> Result<(), DeviceError> {
        let to = self.range(offset, bytes)?;
        let end = from_offset.checked_add(bytes).filter(|&end| end <= from.bytes());
        if end.is_none() || from.device() != self.device() {
            return Err(DeviceError::Internal("a copy from beyond a buffer, or from another device's".to_owned()));
        }
        self.pool.with(|gpu| {
            self.order(gpu, Stream::Compute)?;
            // SAFETY: both are live: this waits until the copy is done.
            unsafe { gpu.copy(Stream::Compute, to, from.address() + from_offset, bytes) }?;
            Ok(finish(gpu, Stream::Compute)?)
        })
    }

    fn copy_from_peer(
        &self,
        offset: u64,
        from: &(dyn Buffer + 'static),
        from_offset: u64,
        bytes: u64,
    ) -> Result<bool, DeviceError> {
        let Some(from) = (from as &dyn Any).downcast_ref::<Self>() else { return Ok(false) };
        let (to, source) = (self.range(offset, bytes)?, from.range(from_offset, bytes)?);
        if !from.pool.gpu().reaches(&**self.pool.gpu()) {
            return Ok(false);
        }
        // The other's streams order nothing of this one's: what was put into them before the memory was this buffer's is done first.
        self.pool.with(|gpu| Ok(gpu.synchronize(&self.born)?))?;
        // In pieces: what others get meanwhile comes between them.
        for done in (0..bytes).step_by(PEER_PIECE as usize) {
            from.pool.with_peer(&self.pool, |gpu, peer| {
                let piece = (bytes - done).min(PEER_PIECE);
                // SAFETY: both are live, and nobody uses this buffer: this waits until the copy is done.
                unsafe { gpu.copy_to_peer(Stream::Download, peer, to + done, source + done, piece) }?;
                Ok(finish(gpu, Stream::Download)?)
            })?;
        }
        Ok(true)
    }

    fn to_pinned(&self) -> Result<Region, DeviceError> {
        let len = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        let mut pinned = Pinned::new(&self.pool, len)?;
        self.read(0, pinned.bytes_mut())?;
        Ok(Region::from_owner(pinned))
    }

    fn clear(&self) -> Result<(), DeviceError> {
        self.pool.with(|gpu| {
            self.order(gpu, Stream::Compute)?;
            // SAFETY: the buffer is given back to the compute stream, after this.
            unsafe { gpu.fill(Stream::Compute, self.at, 0, self.bytes) }?;
            gpu.record(Stream::Compute, &self.born)?;
            // It is another moment now, and nobody else has the buffer.
            self.after.store(bit(Stream::Compute), Ordering::Release);
            Ok(())
        })
    }

    fn stage(&self, bytes: usize) -> Option<Slab> {
        self.pool.staging.take(bytes)
    }

    fn reach(&self, shared: &SharedBytes) {
        self.pool.staging.reach(shared);
    }

    fn fetch(&self, parts: Vec<Memory>, to: Slab) -> Result<Box<dyn Coming>, DeviceError> {
        let own = |part: &Memory| matches!(part, Memory::Device(buffer, _) if buffer.device() == self.device());
        if !parts.iter().all(own) {
            return Err(DeviceError::Internal("another device's memory was to be fetched".to_owned()));
        }
        let buffers = || {
            parts.iter().filter_map(|part| match part {
                Memory::Device(buffer, _) => (&**buffer as &dyn Any).downcast_ref::<Self>(),
                Memory::Host(_) => None,
            })
        };
        self.pool.with(|gpu| Ok(buffers().try_for_each(|buffer| buffer.order(gpu, Stream::Download))?))?;
        self.pool.with(|_| Ok(Box::new(self.pool.staging.fetch(&self.pool, parts, to)?) as Box<dyn Coming>))
    }

    fn send(&self, offset: u64, from: Region) -> Result<(), DeviceError> {
        let to = self.range(offset, from.len() as u64)?;
        self.pool.with(|gpu| {
            self.order(gpu, Stream::Upload)?;
            // Held, so that what is kept is the last of two that are sent at once.
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the buffer is live until the copy is done: its drop waits for it.
            Ok(unsafe { self.pool.staging.send(to, from, &mut sent) }?)
        })
    }

    fn placed(&self) -> Option<Placed> {
        self.block.as_ref()?.placed(self.bytes)
    }

    fn is_ready(&self) -> Result<bool, DeviceError> {
        self.pool.with(|gpu| Ok(gpu.is_past(&self.born)?))
    }

    fn note_direct(&self, written: bool) {
        self.pool.staging.note_direct(written);
    }

    fn sum(&self, offset: u64, bytes: u64) -> Result<Box<dyn Sum>, DeviceError> {
        let at = self.range(offset, bytes)?;
        self.pool.with(|gpu| Ok(gpu.settle_network_writes()?))?;
        // SAFETY: the caller keeps the buffer until the sum is known, or was dropped.
        Ok(Box::new(unsafe { GpuSum::begin(&self.pool, at, bytes) }?))
    }

    fn settle(&self) -> Result<(), DeviceError> {
        self.pool.with(|gpu| {
            if self.block.is_some() {
                gpu.settle_network_writes()?;
            }
            Ok(self.wait()?)
        })
    }

    fn device(&self) -> usize {
        self.pool.id()
    }

    fn is_lost(&self) -> bool {
        self.pool.is_lost()
    }
}

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        // A GPU that broke has stopped copying, too.
        let gpu = self.pool.gpu();
        let _ = self.wait();
        // Nothing was sent to it, perhaps, so that nobody has waited. A GPU that broke frees in no order.
        let _ = self.order(&**gpu, Stream::Compute);
        if self.block.is_none() {
            // SAFETY: it came from this GPU; copies from the host are done, kernels that use it are in the compute stream, and that comes
            // after the allocation. From before a revival the GPU knows it, and frees nothing.
            unsafe { gpu.free(self.at) };
        }
        self.pool.give_back(self.charge);
    }
}
