//! Memory of GPUs, registered once in each protection domain.
//!
//! By its dmabuf descriptor where GPU, kernel and network card have that; else by its address, which the kernel module `nvidia-peermem`
//! makes known to network cards; else not at all, and slices go through slabs of the host. To register it takes as long as many
//! slices do: it is done for a large stretch at a time, and undone when the connection or the memory goes.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::faults::UNREGISTRABLE;
use super::verbs::{Domain, Registration, access};
use crate::memory::{Exported, Placed};

/// What a domain has registered.
pub(super) struct Devices {
    /// No other of this process has it.
    id: u64,
    domain: Arc<Domain>,
    known: Mutex<Vec<Weak<Exported>>>,
}

/// A stretch of a GPU's memory as this domain has it.
struct Known {
    registration: Arc<Registration>,
    way: Way,
}

/// How a network card is told of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Dmabuf,
    Address,
}

impl Devices {
    pub(super) fn new(domain: Arc<Domain>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), domain, known: Mutex::default() }
    }

    /// The registration of all the memory that this is a part of; its reason where it has none.
    pub(super) fn of(&self, placed: &Placed) -> Result<Arc<Registration>, String> {
        self.find(placed.memory()).map(|known| known.registration.clone())
    }

    /// A registration of this part alone, which the peer may use as `allowed` says until it is dropped.
    ///
    /// # Safety
    /// As for [`Domain::register`].
    pub(super) unsafe fn part(&self, placed: &Placed, allowed: u32) -> Result<Registration, String> {
        let way = self.find(placed.memory())?.way;
        // SAFETY: as the caller has it.
        unsafe { by(way, &self.domain, placed, access::LOCAL_WRITE | allowed) }
    }

    fn find(&self, memory: &Arc<Exported>) -> Result<Arc<Known>, String> {
        memory.attach(self.id, || {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|memory| memory.strong_count() > 0);
            known.push(Arc::downgrade(memory));
            drop(known);
            self.register(memory)
        })
    }

    fn register(&self, memory: &Arc<Exported>) -> Result<Known, String> {
        let windows = if self.domain.facts().windows { access::WINDOWS } else { 0 };
        let all = Placed::new(memory, 0, memory.len()).ok_or("it has no bytes")?;
        let device = &self.domain.facts().device;
        let mut reasons = Vec::new();
        for way in [Way::Dmabuf, Way::Address] {
            // SAFETY: the memory is there for as long as anything is attached to it, as the registration will be. The peer reaches
            // nothing of it but through windows: who binds one answers for its use.
            match unsafe { by(way, &self.domain, &all, access::LOCAL_WRITE | windows) } {
                Ok(registration) => {
                    if is_new(format!("{device} {way:?} {reasons:?}")) {
                        tracing::info!(
                            device,
                            ?way,
                            not = reasons.join("; "),
                            "the network card reaches GPU memory itself"
                        );
                    }
                    return Ok(Known { registration: Arc::new(registration), way });
                }
                Err(why) => reasons.push(why),
            }
        }
        let why = reasons.join("; ");
        if is_new(format!("{device} {why}")) {
            tracing::warn!(
                device,
                why,
                "the network card does not reach GPU memory: tensors go through slabs of the host"
            );
        }
        Err(why)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        let known = std::mem::take(&mut *self.known.lock().unwrap_or_else(PoisonError::into_inner));
        known.iter().filter_map(Weak::upgrade).for_each(|memory| memory.detach(self.id));
    }
}

/// # Safety
/// As for [`Domain::register`].
unsafe fn by(way: Way, domain: &Arc<Domain>, placed: &Placed, access: u32) -> Result<Registration, String> {
    if UNREGISTRABLE.load(Ordering::Acquire) {
        return Err("it was told to fail".to_owned());
    }
    let (at, len) = (placed.address(), placed.len());
    match way {
        Way::Dmabuf => {
            let fd = placed.memory().dmabuf().map_err(|why| format!("no dmabuf: {why}"))?;
            let registered = domain.register_dmabuf(fd.as_raw_fd(), placed.offset() as u64, len, at, access);
            registered.map_err(|error| format!("no dmabuf: {error}"))
        }
        Way::Address => {
            // SAFETY: as the caller has it.
            let registered: io::Result<_> = unsafe { domain.register(at as *mut u8, len, access) };
            registered.map_err(|error| format!("nor by address (nvidia-peermem): {error}"))
        }
    }
}

/// Whether this was not said yet in this process.
fn is_new(said: String) -> bool {
    static SAID: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    SAID.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(said)
}
