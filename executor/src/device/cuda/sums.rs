//! Checksums of bytes in a GPU's memory, which the GPU takes itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use genie_cuda_kernels::gpu::{Event, Gpu, GpuError, Stream};
use genie_cuda_kernels::launch::checksum::{Crc32c, crc32c, remainders_of};
use genie_cuda_kernels::{Address, View};
use genie_graph::DType;
use genie_transport::wire::limits;

use super::pinned::Pinned;
use super::pool::Pool;
use crate::device::{DeviceError, Sum};

/// Remainders of the largest slice.
const MOST: usize = remainders_of(limits::SLICE_BYTES as u64) as usize;

/// Places for results that are kept while nobody uses them.
const SPARE: usize = 256;

/// Where results come to lie, kept for the next.
#[derive(Debug, Default)]
pub(super) struct Sums(Mutex<Vec<Slot>>);

/// Memory for one result, on both sides.
#[derive(Debug)]
struct Slot {
    gpu: Arc<dyn Gpu>,
    at: Address,
    host: Pinned,
}

impl Slot {
    fn new(pool: &Pool) -> Result<Self, DeviceError> {
        let host = Pinned::new(pool, MOST * 4)?;
        pool.with(|gpu| {
            let slot = Self { gpu: pool.gpu().clone(), at: gpu.allocate(MOST as u64 * 4)?, host };
            // It is had in the order of another stream than it is used in.
            let born = gpu.event()?;
            gpu.record(Stream::Compute, &born)?;
            gpu.wait(Stream::Upload, &born)?;
            Ok(slot)
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: it came from this GPU, and whoever had it waited until it was not used any more.
        unsafe { self.gpu.free(self.at) };
    }
}

/// A checksum on its way. Dropped early, it waits for the GPU.
pub(super) struct GpuSum {
    pool: Arc<Pool>,
    slot: Option<Slot>,
    done: Event,
    /// It has passed.
    known: bool,
    bytes: u64,
}

impl GpuSum {
    /// Begins to take that of `bytes` bytes, a slice's at the most.
    ///
    /// # Safety
    /// They are live until it is known, or this was dropped.
    pub(super) unsafe fn begin(pool: &Arc<Pool>, at: Address, bytes: u64) -> Result<Self, DeviceError> {
        let tiles = remainders_of(bytes);
        if tiles as usize > MOST {
            return Err(DeviceError::Internal("a checksum of more than a slice was asked for".to_owned()));
        }
        let spare = pool.sums.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let slot = spare.map_or_else(|| Slot::new(pool), Ok)?;
        let results = View::new(slot.at, DType::I32, tiles);
        let launch = crc32c(View::new(at, DType::U8, bytes), results).map_err(GpuError::from)?;
        let done = pool.with(|gpu| Ok(gpu.event()?))?;
        let sum = Self { pool: pool.clone(), slot: Some(slot), done, known: false, bytes };
        pool.with(|gpu| {
            // Not the compute stream: a step that is under way there would come first.
            if let (Some(launch), Some(slot)) = (&launch, &sum.slot) {
                // SAFETY: the bytes are as the caller has them; the slot is this one's until the event has passed.
                unsafe {
                    gpu.launch(Stream::Upload, launch)?;
                    gpu.copy_out(Stream::Upload, slot.host.at.as_ptr(), slot.at, tiles as usize * 4)?;
                }
            }
            Ok(gpu.record(Stream::Upload, &sum.done)?)
        })?;
        Ok(sum)
    }
}

impl Sum for GpuSum {
    fn poll(&mut self) -> Result<Poll<u32>, DeviceError> {
        if !self.pool.with(|gpu| Ok(gpu.is_past(&self.done)?))? {
            return Ok(Poll::Pending);
        }
        self.known = true;
        Ok(Poll::Ready(self.value()))
    }

    fn wait(&mut self) -> Result<u32, DeviceError> {
        self.pool.with(|gpu| Ok(gpu.synchronize(&self.done)?))?;
        self.known = true;
        Ok(self.value())
    }
}

impl GpuSum {
    /// From the remainders, which are here.
    fn value(&self) -> u32 {
        let mut crc = Crc32c::new();
        if let Some(slot) = &self.slot {
            let bytes = &slot.host.bytes()[..remainders_of(self.bytes) as usize * 4];
            let remainders: Vec<_> = bytes.as_chunks().0.iter().map(|four| u32::from_le_bytes(*four)).collect();
            crc.add(self.bytes, &remainders);
        }
        crc.value()
    }
}

impl Drop for GpuSum {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let gpu = self.pool.gpu();
        // Recorded anew: before it was recorded once, something may have been put into the stream already.
        let wait = || gpu.record(Stream::Upload, &self.done).and_then(|()| gpu.synchronize(&self.done));
        // A GPU that broke has stopped writing, and its slot goes.
        if self.known || wait().is_ok() {
            let mut spare = self.pool.sums.0.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.len() < SPARE {
                spare.push(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use genie_cuda_kernels::gpu::{HostGpu, HostSettings};
    use genie_transport::memory::{Landing, OnDevice, SliceLease, Summing, crc32c};
    use genie_transport::wire::SliceHead;

    use super::*;
    use crate::device::cuda::CudaDevice;
    use crate::device::{Device, Space};
    use crate::staged::Staged;

    const SLICE: u32 = 1 << 16;
    /// Of two tensors: a slice lies in both.
    const BYTES: [u64; 2] = [100_001, 70_000];

    fn scene() -> (HostGpu, Arc<Staged>, Arc<Landing>, Vec<u8>) {
        let (gpu, _, staged, landing, bytes) = whole_scene();
        (gpu, staged, landing, bytes)
    }

    fn whole_scene() -> (HostGpu, CudaDevice, Arc<Staged>, Arc<Landing>, Vec<u8>) {
        let gpu = HostGpu::new(HostSettings { total_bytes: 64 << 20, ..HostSettings::default() });
        let device = CudaDevice::with_staging(0, Arc::new(gpu.clone()), None, 4 << 20).unwrap();
        let buffer = |bytes| match device.allocate_reachable(bytes).unwrap() {
            Space::Device(buffer) => buffer,
            Space::Host(_) => panic!("a GPU's memory is its own"),
        };
        let staged = Staged::new(BYTES.map(buffer).to_vec(), |_| None);
        let total = BYTES.iter().sum::<u64>();
        let landing = Landing::staged(total, SLICE, staged.clone());
        let bytes = (0..total).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        (gpu, device, staged, landing, bytes)
    }

    /// As a network card does: the slice's bytes, where it lies.
    fn write(lease: &mut SliceLease, bytes: &[u8]) -> SliceHead {
        let places = loop {
            match lease.on_device() {
                OnDevice::Here(places) => break places,
                OnDevice::Later => {}
                OnDevice::No => panic!("the memory is reachable"),
            }
        };
        lease.lies_there();
        let SliceHead { transfer, offset, total, len, .. } = *lease.head();
        let slice = &bytes[offset as usize..][..len as usize];
        let mut rest = slice;
        for place in places {
            let part;
            (part, rest) = rest.split_at(place.len());
            // SAFETY: the stand-in's memory is this process's; the place is so long, and nobody else uses it.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), place.address() as *mut u8, part.len()) };
        }
        assert!(rest.is_empty());
        SliceHead::decode(&SliceHead::encode(transfer, offset, total, slice)).unwrap()
    }

    fn known(sum: &mut dyn Summing) -> Option<u32> {
        loop {
            if let Poll::Ready(crc) = sum.poll() {
                return crc;
            }
        }
    }

    #[test]
    fn slices_that_a_network_card_wrote_have_their_checksums() {
        let (gpu, staged, landing, bytes) = scene();
        for slice in 0..3 {
            let mut lease = landing.claim_missing(7, slice).unwrap();
            let head = write(&mut lease, &bytes);
            let mut sum = lease.written(true).unwrap();
            let crc = known(&mut *sum).unwrap();
            assert!(head.is_of(crc) && !head.is_of(crc ^ 1), "slice {slice}");
            drop(sum);
            assert!(landing.finish().is_none());
            assert_eq!(lease.landed(), slice == 2);
        }
        landing.finish().unwrap();
        let (spaces, _) = staged.settle().unwrap();
        let back: Vec<u8> = spaces.into_iter().flat_map(|space| space.freeze().to_host().unwrap().to_vec()).collect();
        assert!(back == bytes);
        assert_eq!(gpu.copies_in(), 0);
    }

    #[test]
    fn a_checksum_that_nobody_waits_for_gives_its_place_back() {
        let (_gpu, device, staged, landing, bytes) = whole_scene();
        let spare = || device.inner.pool().sums.0.lock().unwrap().len();
        for _ in 0..3 {
            let mut lease = landing.claim_missing(7, 0).unwrap();
            write(&mut lease, &bytes);
            let sum = lease.written(true);
            assert_eq!(spare(), 0);
            drop(sum);
            drop(lease);
            assert_eq!(spare(), 1);
        }
        assert_eq!(landing.missing(9), [0, u64::from(SLICE), 2 * u64::from(SLICE)]);
        drop((landing, staged));
    }

    #[test]
    fn a_gpu_that_fails_meanwhile_ends_the_transfer() {
        let (gpu, staged, landing, bytes) = scene();
        let mut lease = landing.claim_missing(7, 1).unwrap();
        write(&mut lease, &bytes);
        gpu.fail(GpuError::Fault { during: "a kernel", reason: "illegal address".to_owned() });
        let mut sum = lease.written(true).unwrap();
        assert_eq!(known(&mut *sum), None);
        drop(sum);
        assert!(!lease.landed(), "others are missing");
        assert!(
            matches!(landing.claim_missing(7, 0).unwrap().on_device(), OnDevice::No),
            "nothing more is written there"
        );
        assert!(matches!(staged.settle(), Err(DeviceError::Lost { .. })));
    }

    #[test]
    fn a_part_of_a_tensor_is_summed_by_itself() {
        let gpu = HostGpu::new(HostSettings { total_bytes: 64 << 20, ..HostSettings::default() });
        let device = CudaDevice::with_staging(0, Arc::new(gpu), None, 4 << 20).unwrap();
        let Space::Device(buffer) = device.allocate_reachable(200_000).unwrap() else { panic!("a GPU's") };
        let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        buffer.write(0, &bytes).unwrap();
        for (from, n) in [(0, 200_000), (1, 70_001), (131, 5)] {
            let crc = buffer.sum(from, n).unwrap().wait().unwrap();
            assert_eq!(crc, crc32c(&bytes[from as usize..(from + n) as usize], &[]));
        }
        assert!(buffer.sum(0, 200_001).is_err());
    }
}
