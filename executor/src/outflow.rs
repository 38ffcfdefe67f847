//! Gets from a device's memory: slices are copied to the host while those before them are sent.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt::{self, Debug, Formatter};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use genie_transport::connection::{Peer, Source};
use genie_transport::memory::Slab;
use genie_transport::wire::limits;

use crate::core::Core;
use crate::device::{Buffer, Coming, DeviceError, Memory};

/// Copies of one transfer that are under way at a time: one is waited for while the next goes on.
const UNDER_WAY: usize = 2;

/// Bytes of a device that a connection asked for.
pub(crate) struct Outflow {
    core: Weak<Core>,
    /// The connection, which has this until all is sent.
    peer: Weak<Peer>,
    id: u64,
    /// One after another, all of one device.
    parts: Vec<Memory>,
    bytes: u64,
    /// Whose memory is used.
    device: Arc<dyn Buffer>,
    /// What the session pays for it until it is sent.
    _paid: Arc<dyn Any + Send + Sync>,
    /// How often it was woken since it last found nothing to do; the first wakes it.
    woken: AtomicUsize,
}

impl Outflow {
    /// All bytes of the parts, as transfer `id`. `None`: they are not a device's.
    pub(crate) fn new(
        core: &Arc<Core>,
        (peer, id): (&Arc<Peer>, u64),
        parts: Vec<Memory>,
        paid: Arc<dyn Any + Send + Sync>,
    ) -> Option<Arc<Self>> {
        let device = parts.iter().find_map(|part| match part {
            Memory::Device(buffer, _) => Some(buffer.clone()),
            Memory::Host(_) => None,
        })?;
        let bytes = parts.iter().map(Memory::len).sum();
        let (core, peer) = (Arc::downgrade(core), Arc::downgrade(peer));
        Some(Arc::new(Self { core, peer, id, parts, bytes, device, _paid: paid, woken: AtomicUsize::new(0) }))
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
