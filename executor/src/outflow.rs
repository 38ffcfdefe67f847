//! Gets from a device's memory: slices are copied to the host while those before them are sent.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt::{self, Debug, Formatter};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use genie_transport::connection::{Peer, Source, There};
use genie_transport::memory::{Placed, Slab, crc32c_of_both};
use genie_transport::wire::{PIECES, limits};

use crate::core::Core;
use crate::device::{Buffer, Coming, DeviceError, Memory, Sum};

/// Copies of one transfer that are under way at a time: one is waited for while the next goes on.
const UNDER_WAY: usize = 2;

/// Checksums of slices that a device takes at a time: each has memory of its own, and a place in front of others' uploads.
const SUMS: usize = 32;

/// Bytes of a device that a connection asked for.
pub(crate) struct Outflow {
    core: Weak<Core>,
    /// The connection, which has this until all is sent.
    peer: Weak<Peer>,
    id: u64,
    /// One after another, all of one device.
    parts: Vec<Memory>,
    bytes: u64,
    slice_bytes: u32,
    /// Whether the client's network card is let at the memory itself.
    direct: AtomicBool,
    /// Whose memory is used.
    device: Arc<dyn Buffer>,
    /// What the session pays for it until it is sent.
    paid: Arc<dyn Any + Send + Sync>,
    /// How often it was woken since it last found nothing to do; the first wakes it.
    woken: AtomicUsize,
}

impl Outflow {
    /// All bytes of the parts, as transfer `id` in slices of this size. `None`: they are not a device's.
    pub(crate) fn new(
        core: &Arc<Core>,
        (peer, id): (&Arc<Peer>, u64),
        (parts, slice_bytes): (Vec<Memory>, u32),
        paid: Arc<dyn Any + Send + Sync>,
    ) -> Option<Arc<Self>> {
        let device = parts.iter().find_map(|part| match part {
            Memory::Device(buffer, _) => Some(buffer.clone()),
            Memory::Host(_) => None,
        })?;
        let bytes = parts.iter().map(Memory::len).sum();
        let direct = AtomicBool::new(peer.is_one_sided() && parts.iter().all(|part| placed(part).is_some()));
        let (core, peer, woken) = (Arc::downgrade(core), Arc::downgrade(peer), AtomicUsize::new(0));
        Some(Arc::new(Self { core, peer, id, parts, bytes, slice_bytes, direct, device, paid, woken }))
    }

    /// Whether the device gives anything at all: whoever asks hears of it if not, before slices are promised.
    pub(crate) fn probe(&self) -> Result<(), DeviceError> {
        let mut some = [0; 64];
        let first = self.parts.first().filter(|first| !first.is_empty());
        first.map_or(Ok(()), |first| first.read(0, &mut some[..first.len().min(64) as usize]))
    }

    /// Brings what is wanted until nothing is.
    fn bring(self: &Arc<Self>, peer: &Peer) {
        let source: Arc<dyn Source> = self.clone();
        let mut coming: VecDeque<(u64, Box<dyn Coming>)> = VecDeque::new();
        loop {
            let more = if coming.len() < UNDER_WAY { self.wanted(peer, &source) } else { None };
            let brought = match more {
                Some(run) if self.direct.load(Ordering::Acquire) => self.show(peer, &source, run),
                Some(run) => {
                    let offset = run.start;
                    self.fetch(run).map(|one| coming.push_back((offset, one)))
                }
                None => match coming.pop_front() {
                    Some((offset, one)) => one.wait().map(|bytes| peer.brought(self.id, &source, offset, bytes)),
                    None => return,
                },
            };
            if let Err(error) = brought {
                tracing::warn!(peer = peer.id(), transfer = self.id, %error, "a get was given up");
                return peer.lost(self.id, &source);
            }
        }
    }

    fn wanted(&self, peer: &Peer, source: &Arc<dyn Source>) -> Option<Range<u64>> {
        peer.bulk().wanted(self.id, source, u64::from(limits::SLICE_BYTES))
    }

    /// Lets the client's network card read these slices where they lie.
    fn show(&self, peer: &Peer, source: &Arc<dyn Source>, run: Range<u64>) -> Result<(), DeviceError> {
        // Where nobody takes checksums, nothing else says that the bytes are lost.
        self.device.is_ready()?;
        let slices = run.clone().step_by(self.slice_bytes.max(1) as usize).map(|offset| {
            let parts = cut(&self.parts, offset, u64::from(self.slice_bytes).min(run.end - offset));
            let places: Option<Vec<_>> = parts.iter().map(placed).collect();
            Some((offset, places.filter(|places| places.len() <= PIECES)?, parts))
        });
        let Some(slices) = slices.collect::<Option<Vec<_>>>() else {
            // On another way all of it is wanted again.
            self.direct.store(false, Ordering::Release);
            return self.bring_now(peer, source, run);
        };
        let mut slices = slices.into_iter();
        while !slices.as_slice().is_empty() {
            let (mut begun, mut shown) = (0, Vec::new());
            while begun < SUMS
                && let Some((offset, places, parts)) = slices.next()
            {
                let sums = if peer.is_checked() { sums(&parts)? } else { Vec::new() };
                begun += sums.len();
                shown.push((offset, places, sums, parts));
            }
            for (offset, places, sums, parts) in shown {
                let mut crc = None;
                for (mut sum, part) in sums.into_iter().zip(&parts) {
                    let next = sum.wait()?;
                    crc = Some(crc.map_or(next, |before| crc32c_of_both(before, next, part.len())));
                }
                self.device.note_direct(false);
                // The session pays for as long as the client may read.
                let keep = Box::new((parts, self.paid.clone()));
                peer.lies_there(self.id, source, offset, There { places, crc: crc.unwrap_or_default(), keep });
            }
        }
        Ok(())
    }

    /// Brings these bytes, and waits for them.
    fn bring_now(&self, peer: &Peer, source: &Arc<dyn Source>, run: Range<u64>) -> Result<(), DeviceError> {
        let offset = run.start;
        let bytes = self.fetch(run)?.wait()?;
        peer.brought(self.id, source, offset, bytes);
        Ok(())
    }

    /// Begins to copy these bytes to the host.
    fn fetch(&self, run: Range<u64>) -> Result<Box<dyn Coming>, DeviceError> {
        let wanted = run.end - run.start;
        let len = usize::try_from(wanted).ok();
        let slab = len.and_then(|len| self.device.stage(len).or_else(|| Slab::try_zeroed(len)));
        let slab = slab.ok_or(DeviceError::NoHostMemory { wanted })?;
        self.device.fetch(cut(&self.parts, run.start, wanted), slab)
    }
}

impl Source for Outflow {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn unreachable(&self) {
        self.direct.store(false, Ordering::Release);
    }

    fn wake(self: Arc<Self>) {
        if self.woken.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let Some(core) = self.core.upgrade() else { return };
        core.spawn(move |_| {
            loop {
                let before = self.woken.load(Ordering::Acquire);
                if let Some(peer) = self.peer.upgrade() {
                    self.bring(&peer);
                }
                // Woken once more meanwhile, it looks again.
                if self.woken.compare_exchange(before, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    return;
                }
            }
        });
    }
}

impl Debug for Outflow {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outflow").field("id", &self.id).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// A part of a device's memory as network cards know it.
fn placed(part: &Memory) -> Option<Placed> {
    let Memory::Device(buffer, range) = part else { return None };
    let all = buffer.placed().filter(|all| !all.memory().is_refused())?;
    let (from, len) = (usize::try_from(range.start).ok()?, usize::try_from(range.end - range.start).ok()?);
    all.part(from, len)
}

/// The checksums of parts of a device's memory, which were begun.
fn sums(parts: &[Memory]) -> Result<Vec<Box<dyn Sum>>, DeviceError> {
    let of = |part: &Memory| match part {
        Memory::Device(buffer, range) => buffer.sum(range.start, range.end - range.start),
        Memory::Host(_) => Err(DeviceError::Internal("the host's memory is no device's".to_owned())),
    };
    parts.iter().map(of).collect()
}

/// The parts of the segments that hold `length` bytes from `offset` on.
pub(crate) fn cut(segments: &[Memory], offset: u64, length: u64) -> Vec<Memory> {
    let mut start = 0_u64;
    let mut pieces = Vec::new();
    for segment in segments {
        let len = segment.len();
        let from = offset.saturating_sub(start).min(len);
        let to = offset.saturating_add(length).saturating_sub(start).min(len);
        if from < to
            && let Some(piece) = segment.slice(from..to)
        {
            pieces.push(piece);
        }
        start += len;
    }
    pieces
}
