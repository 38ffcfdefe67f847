//! Rights of the peer's on pieces of this side's memory: made, bound, revoked.

use std::io;
use std::sync::Arc;

use super::endpoint::Endpoint;
use super::lane::Lane;
use super::verbs::{Registration, Window, access};
use crate::memory::{Placed, Slab};
use crate::wire::{PIECES, Piece, Pieces};

/// What a lane makes rights of.
pub(super) struct Rights {
    lane: Arc<Lane>,
    /// Windows that are bound to nothing.
    spare: Vec<Window>,
}

/// A piece of memory that the peer is to be given a right on.
pub(super) struct Reached {
    at: *mut u8,
    len: usize,
    registration: Registered,
}

enum Registered {
    /// With others' memory, for a window.
    Shared(Arc<Registration>),
    /// Where the device has no windows: with the right itself.
    Own(Registration),
}

/// A right of the peer's on a piece of memory.
pub(super) enum Right {
    Window {
        window: Window,
        key: u32,
        _memory: Arc<Registration>,
    },
    /// Where the device has no windows: the piece, registered for this one slice. Dropping it revokes it.
    Registered(#[expect(dead_code, reason = "held for its drop")] Registration),
}

impl Rights {
    pub(super) fn new(lane: Arc<Lane>) -> Self {
        Self { lane, spare: Vec::new() }
    }

    /// What registers these pieces of memory, and what the peer may do with them. `None`: they cannot be reached where they lie.
    ///
    /// # Safety
    /// As for [`Endpoint::post_bind`], once they are bound; without windows, from here on.
    pub(super) unsafe fn reach(&self, places: &[(*mut u8, usize)], allowed: u32) -> Option<Vec<Reached>> {
        if places.len() > PIECES {
            return None;
        }
        // SAFETY: this function's contract.
        let one = |&(at, len): &(*mut u8, usize)| unsafe { self.reach_one(at, len, allowed) };
        places.iter().map(one).collect()
    }

    /// As [`Self::reach`], for memory of a device; the reason where it cannot be reached.
    ///
    /// # Safety
    /// As for [`Self::reach`].
    pub(super) unsafe fn reach_device(&self, places: &[Placed], allowed: u32) -> Result<Vec<Reached>, String> {
        if places.len() > PIECES {
            return Err(format!("it lies in {} pieces", places.len()));
        }
        let devices = &self.lane.membership().devices;
        let one = |placed: &Placed| {
            let registration = if self.lane.has_windows() {
                Registered::Shared(devices.of(placed)?)
            } else {
                // SAFETY: this function's contract.
                Registered::Own(unsafe { devices.part(placed, allowed) }?)
            };
            // An address of the device's: it is told to the network card and to the peer, and never followed here.
            Ok(Reached { at: placed.address() as *mut u8, len: placed.len(), registration })
        };
        places.iter().map(one).collect()
    }

    /// As [`Self::reach`], for a slab that is registered like this.
    ///
    /// # Safety
    /// As for [`Self::reach`].
    pub(super) unsafe fn reach_staged(
        &self,
        (mut slab, memory): (Slab, Arc<Registration>),
        allowed: u32,
    ) -> io::Result<(Vec<Reached>, Option<Slab>)> {
        let (at, len) = (slab.as_mut_ptr(), slab.len());
        let registration = if self.lane.has_windows() {
            Registered::Shared(memory)
        } else {
            // SAFETY: this function's contract.
            Registered::Own(unsafe { self.register(at, len, allowed) }?)
        };
        Ok((vec![Reached { at, len, registration }], Some(slab)))
    }

    /// # Safety
    /// As for [`Self::reach`].
    unsafe fn reach_one(&self, at: *mut u8, len: usize, allowed: u32) -> Option<Reached> {
        let registration = if self.lane.has_windows() {
            Registered::Shared(self.lane.membership().cache.of(at, len, true).ok().flatten()?)
        } else {
            // SAFETY: this function's contract.
            Registered::Own(unsafe { self.register(at, len, allowed) }.ok()?)
        };
        Some(Reached { at, len, registration })
    }

    /// # Safety
    /// As for [`Self::reach`].
    unsafe fn register(&self, at: *mut u8, len: usize, allowed: u32) -> io::Result<Registration> {
        // SAFETY: this function's contract.
        unsafe { self.lane.membership().domain.register(at, len, access::LOCAL_WRITE | allowed) }
    }

    /// Gives the peer rights on these pieces.
    ///
    /// # Safety
    /// As for [`Endpoint::post_bind`].
    pub(super) unsafe fn bind(&mut self, pieces: Vec<Reached>, allowed: u32) -> io::Result<(Vec<Right>, Pieces)> {
        let membership = self.lane.membership().clone();
        let mut rights = Vec::with_capacity(pieces.len());
        let mut told = Pieces::default();
        for Reached { at, len, registration } in pieces {
            let bytes = u32::try_from(len).map_err(io::Error::other)?;
            let key = match registration {
                Registered::Shared(memory) => {
                    let mut window = match self.spare.pop() {
                        Some(window) => window,
                        None => Window::new(&membership.domain)?,
                    };
                    let place = (at as u64, len as u64);
                    // SAFETY: this function's contract.
                    let key = unsafe { self.lane.endpoint().post_bind(&mut window, &memory, place, allowed) }?;
                    rights.push(Right::Window { window, key, _memory: memory });
                    key
                }
                Registered::Own(registration) => {
                    let key = registration.remote();
                    rights.push(Right::Registered(registration));
                    key
                }
            };
            if !told.push(Piece { address: at as u64, rkey: key, len: bytes }) {
                return Err(io::Error::other("more pieces than a slice may have"));
            }
        }
        Ok((rights, told))
    }

    /// These rights are revoked.
    pub(super) fn ended(&mut self, rights: Vec<Right>) {
        self.spare.extend(rights.into_iter().filter_map(Right::window));
    }
}

impl Right {
    fn window(self) -> Option<Window> {
        match self {
            Self::Window { window, .. } => Some(window),
            Self::Registered(_) => None,
        }
    }
}

/// Revokes rights; `token` is done when none of them holds.
pub(super) fn revoke(endpoint: &mut Endpoint, rights: &mut Vec<Right>, token: u64) -> io::Result<()> {
    let windows = rights.iter().filter(|r| matches!(r, Right::Window { .. })).count();
    if windows == 0 {
        rights.clear();
        endpoint.finish(token);
        return Ok(());
    }
    for (i, right) in rights.iter().enumerate() {
        if let Right::Window { key, .. } = right {
            endpoint.post_revoke(*key, (i + 1 == windows).then_some(token))?;
        }
    }
    Ok(())
}
