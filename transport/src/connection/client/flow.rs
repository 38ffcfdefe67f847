//! Which requests are under way: credits, transfers, and what is sent again.

use super::super::bulk_out::Outgoing;
use super::super::requests::{Bulk, SECOND_CHANCES};
use super::{Client, ClientError, State};
use crate::wire::Control;

impl Client {
    /// Opens the landing of a get, or begins to send a put's slices.
    pub(super) fn begin_bulk(&mut self, id: u64, landed: Vec<u8>) {
        let Some(slot) = self.requests.get(id) else { return };
        match &slot.bulk {
            Bulk::None => {}
            Bulk::In(landing) => self.landings.open(slot.wire, landing.clone()),
            Bulk::Out { pieces, slice_bytes } => {
                self.bulk.push(Outgoing::new(slot.wire, pieces.clone(), *slice_bytes).skipping(landed));
            }
        }
    }

    /// Sends every request that waits, oldest first, as far as the credits go.
    pub(super) fn resume_flow(&mut self) {
        let credits = self.welcome.map_or(1, |w| w.credits);
        if !matches!(self.state, State::Ready) {
            return;
        }
        let mending = self.is_mending();
        for id in self.requests.waiting() {
            if self.in_flight >= credits {
                return;
            }
            let Some(slot) = self.requests.get(id).filter(|s| !s.sent && (s.ever_sent || !mending)) else { continue };
            if slot.frame.is_empty() {
                slot.fail(ClientError::Interrupted);
                continue;
            }
            slot.sent = true;
            slot.ever_sent = true;
            slot.forget_replies();
            self.outbox.push(&slot.frame, &[], &slot.payload);
            if slot.once {
                slot.frame.clear();
            }
            self.in_flight += 1;
            let (wire, asks, cancelled) = (slot.wire, slot.asks, slot.cancelled);
            if !asks {
                self.begin_bulk(id, Vec::new());
            }
            if cancelled {
                self.push_control(wire, &Control::Cancel);
            }
        }
    }

    /// The connection is gone: what was sent must be sent again.
    pub(super) fn interrupt(&mut self) {
        self.bulk.clear();
        self.orphans.extend(self.abandoned.drain(..).map(|a| (a.wire, a.used)));
        self.outbox.clear();
        self.in_flight = 0;
        for id in self.requests.waiting() {
            if let Some(slot) = self.requests.get(id).filter(|s| s.sent) {
                slot.send_again();
            }
        }
    }

    /// A get lacks slices that the server does not keep: asks for all of it again, since the tensor may have changed meanwhile. Under
    /// an id of its own, so that slices of the first answer that are still on their way are told from those of the second.
    pub(super) fn begin_again(&mut self, transfer: u64) {
        let id = self.requests.of_wire(transfer);
        let Some(slot) = self.requests.get(id) else { return };
        let Bulk::In(landing) = &slot.bulk else { return };
        if slot.is_over() || slot.is_awaited() {
            return;
        }
        slot.again += 1;
        if slot.again > SECOND_CHANCES {
            slot.fail(ClientError::Corrupt(SECOND_CHANCES));
            return;
        }
        landing.reset();
        slot.quiet = None;
        self.landings.end(transfer);
        self.requests.rename(id);
        self.push_control(transfer, &Control::Cancel);
        self.resume_flow();
    }

    /// Whether a request that came corrupted has not ended yet.
    pub(super) fn is_mending(&mut self) -> bool {
        self.mending = self.mending && self.requests.is_mending();
        self.mending
    }

    /// A terminal reply has come: its credit can be used again.
    pub(super) fn credit_back(&mut self) {
        self.progressed = true;
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.mending || self.in_flight + 1 >= self.welcome.map_or(1, |w| w.credits) {
            self.resume_flow();
        }
    }
}
