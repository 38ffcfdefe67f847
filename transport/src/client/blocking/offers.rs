//! Weights that the server may have.

use super::super::{ClientError, api};
use super::{Pending, Session};
use crate::wire::{ContentHash, Offered, Request, TensorSpec, limits};

/// An offer in flight.
#[derive(Debug)]
#[must_use]
pub struct PendingOffer {
    device: u16,
    parts: Vec<Part>,
}

/// What one request offers.
#[derive(Debug)]
struct Part {
    entries: Vec<(ContentHash, TensorSpec)>,
    /// It went by the set's hash: `entries` follow if the server does not know that.
    as_set: bool,
    pending: Pending,
}

/// What became of a part.
enum Asked {
    Known(Vec<Offered>),
    Singly(Pending),
}

impl Session {
    /// Asks which contents the server has; those become residents of this session. Where the server has all of them, and somebody has
    /// offered the same before, one hash tells it which.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn offer(&mut self, device: u16, entries: &[(ContentHash, TensorSpec)]) -> Result<Vec<Offered>, ClientError> {
        let pending = self.start_offer(device, entries);
        self.finish_offer(pending)
    }

    /// Begins to ask which contents the server has.
    pub fn start_offer(&mut self, device: u16, entries: &[(ContentHash, TensorSpec)]) -> PendingOffer {
        let takes_sets = api::takes_sets(self.engine.client().welcome());
        let part = |entries: &[(ContentHash, TensorSpec)]| {
            let (entries, as_set) = (entries.to_vec(), takes_sets && entries.len() > 1);
            let pending = if as_set {
                self.start(&Request::OfferSet { device, hash: ContentHash::of_set(&entries) }, None)
            } else {
                self.start(&Request::Offer { device, entries: entries.clone() }, None)
            };
            Part { entries, as_set, pending }
        };
        PendingOffer { device, parts: entries.chunks(limits::OFFERED).map(part).collect() }
    }

    /// Waits for the answers to an offer, in its order.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_offer(&mut self, offer: PendingOffer) -> Result<Vec<Offered>, ClientError> {
        let device = offer.device;
        // All that must be asked again is, before any of these answers is waited for.
        let asked: Vec<_> = offer.parts.into_iter().map(|part| self.hear_set(device, part)).collect();
        // Whatever became of one, the others are waited for, too.
        let heard: Vec<_> = asked
            .into_iter()
            .map(|asked| match asked? {
                Asked::Known(offered) => Ok(offered),
                Asked::Singly(pending) => self.finish(pending.id, api::offered),
            })
            .collect();
        if heard.iter().all(Result::is_ok) {
            return Ok(heard.into_iter().flatten().flatten().collect());
        }
        // What some parts brought nobody will know of.
        let mut error = None;
        for part in heard {
            match part {
                Ok(offered) => {
                    for one in offered {
                        // What the error will be is known; the session may be gone, and these with it.
                        if let Offered::Present(handle) = one {
                            let _ = self.free(handle);
                        }
                    }
                }
                Err(other) => drop(error.get_or_insert(other)),
            }
        }
        error.map_or_else(|| Ok(Vec::new()), Err)
    }

    fn hear_set(&mut self, device: u16, part: Part) -> Result<Asked, ClientError> {
        let Part { entries, as_set, pending } = part;
        if !as_set {
            return Ok(Asked::Singly(pending));
        }
        match self.finish(pending.id, |reply| api::offered_set(reply, entries.len()))? {
            Some(offered) => Ok(Asked::Known(offered)),
            None => Ok(Asked::Singly(self.start(&Request::Offer { device, entries }, None))),
        }
    }
}
