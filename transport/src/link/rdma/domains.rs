//! Which lanes share a protection domain: those of one connection.

use std::collections::HashMap;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rdma_sys as sys;

use super::cache::Cache;
use super::devices::Devices;
use super::verbs::Domain;

/// A connection's protection domain, and what is registered in it.
pub(super) struct Membership {
    pub(super) domain: Arc<Domain>,
    pub(super) cache: Cache,
    pub(super) devices: Devices,
}

impl Membership {
    /// A domain of its own on this device.
    pub(super) fn new(context: NonNull<sys::ibv_context>) -> io::Result<Arc<Self>> {
        super::cm::keep_devices();
        // SAFETY: devices are kept open for the life of the process.
        let domain = unsafe { Domain::new(context) }?;
        Ok(Arc::new(Self { cache: Cache::new(domain.clone()), devices: Devices::new(domain.clone()), domain }))
    }
}

/// The domains of a listener's connections, by the key that the client made for each.
///
/// The key is the client's secret: a lane that knows it belongs to the connection, or its client has given it away.
#[derive(Default)]
pub(super) struct Domains {
    known: Mutex<HashMap<[u8; 16], Weak<Membership>>>,
}

impl Domains {
    /// The domain for this key, on this device.
    pub(super) fn of(&self, key: [u8; 16], context: NonNull<sys::ibv_context>) -> io::Result<Arc<Membership>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&key).and_then(Weak::upgrade).filter(|m| m.domain.is_on(context)) {
            return Ok(found);
        }
        known.retain(|_, m| m.strong_count() > 0);
        let fresh = Membership::new(context)?;
        // All zeroes is what a client sends that wants every lane apart.
        if key != [0; 16] {
            known.insert(key, Arc::downgrade(&fresh));
        }
        Ok(fresh)
    }
}
