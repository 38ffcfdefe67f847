//! What all of the server's parts share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use genie_transport::memory::Pool;
use genie_transport::wire::{ErrorCode, RemoteError};

use crate::config::{Config, Mode};
use crate::device::{Device, DeviceError, Space};
use crate::error::fail;
use crate::evicted::Evicted;
use crate::known::KnownPrograms;
use crate::names::Names;
use crate::outage::Outage;
use crate::registry::Registry;
use crate::replies::Replies;
use crate::scheduler::{Job, Queue, Scratch, Task, shutting_down, step};
use crate::sets::Sets;
use crate::stats::{Stats, add};
use crate::weights::WeightStore;

/// Ticks in which owners are judged after a change.
const JUDGED: u32 = 3;

/// See the module.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) registry: Registry,
    pub(crate) names: Names,
    pub(crate) evicted: Evicted,
    pub(crate) sets: Sets,
    pub(crate) programs: KnownPrograms,
    pub(crate) stats: Stats,
    pub(crate) replies: Arc<Replies>,
    devices: Vec<Slot>,
    numbers: AtomicU64,
    /// As of which of the guard's changes owners were judged, and how often they are judged still: a request that was under way may
    /// open one more session for somebody who is gone.
    judged: Mutex<(u64, u32)>,
    closing: AtomicBool,
}

/// A device with what the server keeps for it.
struct Slot {
    device: Arc<dyn Device>,
    outage: Outage,
    weights: WeightStore,
    /// Held by whoever brings a weight back.
    bringing: Mutex<()>,
    /// Held by whoever evicts. Two at once would take each other's weights for ones that are held.
    evicting: Mutex<()>,
    queue: Queue,
    /// Of whoever calls [`step`].
    scratch: Mutex<Scratch>,
}

impl Core {
    pub(crate) fn new(config: Config) -> Arc<Self> {
        let slot = |device: &Arc<dyn Device>| Slot {
            device: device.clone(),
            outage: Outage::default(),
            weights: WeightStore::default(),
            bringing: Mutex::default(),
            evicting: Mutex::default(),
            queue: Queue::default(),
            scratch: Mutex::default(),
        };
        Arc::new(Self {
            registry: Registry::new(&config),
            names: Names::new(config.names_quota),
            evicted: Evicted::new(config.evicted_bytes),
            sets: Sets::new(config.sets_bytes),
            programs: KnownPrograms::new(config.max_programs),
            stats: Stats::default(),
            replies: Replies::new(config.replies_bytes, config.max_sessions),
            devices: config.devices.iter().map(slot).collect(),
            numbers: AtomicU64::new(1),
            judged: Mutex::default(),
            closing: AtomicBool::new(false),
            config,
        })
    }

    /// The device with this index, if a client may mean it.
    pub(crate) fn device(&self, index: u16) -> Result<&Arc<dyn Device>, RemoteError> {
        let message = || format!("there is no device {index}: this server has {}", self.devices.len());
        let slot = self.devices.get(usize::from(index)).ok_or_else(|| fail(ErrorCode::NoSuchDevice, message()))?;
        slot.outage.permit(&*slot.device)?;
        Ok(&slot.device)
    }

    /// A device that exists, whether it is out or not.
    pub(crate) fn hardware(&self, device: u16) -> &dyn Device {
        &*self.slot(device).device
    }

    /// Whether a device that exists is out.
    pub(crate) fn outage(&self, device: u16) -> &Outage {
        &self.slot(device).outage
    }

    /// The weights of a device that exists.
    pub(crate) fn weights(&self, device: u16) -> &WeightStore {
        &self.slot(device).weights
    }

    /// The turn of who brings an evicted weight back to a device that exists.
    pub(crate) fn bringing(&self, device: u16) -> MutexGuard<'_, ()> {
        self.slot(device).bringing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue of a device that exists.
    pub(crate) fn queue(&self, device: u16) -> &Queue {
        &self.slot(device).queue
    }

    /// What [`step`] keeps between two calls.
    pub(crate) fn scratch(&self, device: u16) -> MutexGuard<'_, Scratch> {
        self.slot(device).scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many devices there are.
    pub(crate) fn device_count(&self) -> u16 {
        // `Executor::new` refuses more.
        self.devices.len() as u16
    }

    fn slot(&self, device: u16) -> &Slot {
        // Indices come from `device`, which refuses those that do not exist, and devices never go away.
        &self.devices[usize::from(device)]
    }

    /// A number that nothing else of this server has.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Memory for a resident that comes from elsewhere, after evicting what nobody holds where that is needed and enough.
    pub(crate) fn allocate(&self, device: u16, bytes: u64) -> Result<Space, RemoteError> {
        self.with_room(device, bytes, || self.slot(device).device.allocate_for_upload(bytes))
    }

    /// The same for one of this session's, and of the memory that was lent to it, where there is some.
    pub(crate) fn allocate_own(&self, device: u16, bytes: u64, session: u64) -> Result<Space, RemoteError> {
        self.with_room(device, bytes, || self.slot(device).device.allocate_for_session(bytes, session))
    }

    /// A session is over, and what it had was freed.
    pub(crate) fn forget_session(&self, session: u64) {
        self.devices.iter().for_each(|slot| slot.device.forget_session(session));
    }

    /// As [`Self::allocate`], for bytes that a network card is to write there itself, where it can.
    pub(crate) fn allocate_reachable(&self, device: u16, bytes: u64) -> Result<Space, RemoteError> {
        self.with_room(device, bytes, || self.slot(device).device.allocate_reachable(bytes))
    }

    /// Does what needs `wanted` bytes of a device's memory, again after each eviction where memory is short.
    pub(crate) fn with_room<T>(
        &self,
        device: u16,
        wanted: u64,
        mut attempt: impl FnMut() -> Result<T, DeviceError>,
    ) -> Result<T, RemoteError> {
        loop {
            match attempt() {
                Err(DeviceError::OutOfMemory(short)) => {
                    if !self.make_room(device, wanted) {
                        return Err(DeviceError::OutOfMemory(short).into());
                    }
                }
                other => return Ok(other?),
            }
        }
    }

    /// Lets go of what idle programs keep, then evicts until `wanted` bytes are free, and something at least; nothing at all where it
    /// would not be enough. Whether there is more room than before. Only who needs room waits for the copies that this makes.
    pub(crate) fn make_room(&self, device: u16, wanted: u64) -> bool {
        let Slot { device: hardware, weights, evicting, .. } = self.slot(device);
        let Some(wanted) = Pool::charge(wanted) else { return false };
        let _turn = match evicting.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let turn = evicting.lock().unwrap_or_else(PoisonError::into_inner);
                // What somebody else has just made may be enough.
                if hardware.info().free_bytes >= wanted {
                    return true;
                }
                turn
            }
        };
        let evictable = weights.evictable_bytes().saturating_add(self.names.evictable_bytes(device));
        let evictable = evictable.saturating_add(self.programs.idle_bytes(device));
        if hardware.info().free_bytes.saturating_add(evictable) < wanted {
            return false;
        }
        let mut evicted = self.programs.give_back(device);
        while !evicted || hardware.info().free_bytes < wanted {
            let Some(bytes) = self.evict_weight(device).or_else(|| self.names.evict(device)) else { break };
            evicted = true;
            add(&self.stats.evictions, 1);
            add(&self.stats.evicted_bytes, bytes);
        }
        evicted
    }

    /// Does work that takes long, off the caller's thread where there are threads.
    pub(crate) fn spawn(self: &Arc<Self>, work: impl FnOnce(&Arc<Self>) + Send + 'static) {
        if self.config.mode == Mode::Threads {
            let core = self.clone();
            rayon::spawn(move || {
                work(&core);
                core.check_devices();
            });
        } else {
            work(self);
            self.check_devices();
        }
    }

    /// Puts bulk work into a device's queue.
    pub(crate) fn submit(self: &Arc<Self>, device: u16, task: Task) -> Result<(), RemoteError> {
        self.queue(device).push_task(task).map_err(|_| shutting_down())
    }

    /// Sees to devices that have failed, and does what waits for them where the caller's thread is the one to do it.
    pub(crate) fn drain(self: &Arc<Self>) {
        self.check_devices();
        if self.config.mode != Mode::Inline {
            return;
        }
        // Work on one device can bring work for another.
        while (0..self.device_count()).any(|device| step(self, device)) {}
    }

    /// Whether the server is shutting down.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Ends what waits; what runs comes to its end. `false` if it was done before.
    pub(crate) fn close(self: &Arc<Self>) -> bool {
        if self.closing.swap(true, Ordering::AcqRel) {
            return false;
        }
        let mut waiting: Vec<Job> = Vec::new();
        for slot in &self.devices {
            let (jobs, tasks) = slot.queue.close();
            waiting.extend(jobs);
            // A task answers its request itself: copies that were asked for are still made.
            tasks.into_iter().for_each(|task| task(self));
        }
        waiting.into_iter().for_each(|job| job.fail(self, shutting_down()));
        true
    }

    /// Lets go of what nobody has come back for.
    pub(crate) fn tick(self: &Arc<Self>, now: Instant) {
        for session in self.registry.expire(now) {
            add(&self.stats.sessions_expired, 1);
            tracing::info!(session = session.number, "session lease ended");
            self.end_session(&session);
        }
        self.end_unwelcome();
        self.programs.tick(now);
        self.retry_devices(now);
        for slot in &self.devices {
            slot.weights.forget_partial(|upload| upload.is_older_than(self.config.default_lease, now));
        }
    }

    /// Ends the sessions of owners who would not come in any more: nobody takes them up, and what they run goes on.
    fn end_unwelcome(self: &Arc<Self>) {
        let guard = &self.config.settings.guard;
        let changes = guard.changes();
        {
            let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
            if judged.0 != changes {
                *judged = (changes, JUDGED);
            }
            if judged.1 == 0 {
                return;
            }
            judged.1 -= 1;
        }
        let (sessions, mut judge) = (self.registry.all(), guard.judge());
        for session in sessions.iter().filter(|s| !judge.is_current_owner(&s.owner)) {
            tracing::info!(session = session.number, owner = session.owner.name(), "session ended: its owner is out");
            let peer = session.lock().peer.clone();
            self.end_session(session);
            if let Some(peer) = peer {
                let message = "what this session was opened by was changed or taken back: connect again";
                peer.goodbye(fail(ErrorCode::Unauthorized, message));
            }
        }
    }
}
