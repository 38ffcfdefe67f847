//! A server's bulk lane, from its welcome on.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bulk_in::{BulkIn, Loan, Want};
use super::bulk_out::{BulkLane, OutSlice};
use super::lending::{Lending, ServedLane};
use super::outbox::Sink;
use super::peer::{Driver, Peer};
use super::seats::LaneSeat;
use super::service::{Service, Settings};
use crate::wire::DecodeError;

/// Slices sent in one turn: a reader that keeps up would never let the sink be full.
const SLICES_A_TURN: usize = 16;

/// Why sending has paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing is left.
    All,
    /// The sink takes no more for now.
    Full,
    /// More can be sent at once, after others had their turn.
    Turn,
}

/// The machine. Its driver, again and again: ends it if [`Self::is_over`], calls [`Self::poll`], reads into [`Self::want`] (then
/// [`Self::filled`], or [`Self::idle`]), calls [`Self::flush`] and [`Self::overdue`], and waits until [`Self::deadline`] or until
/// its [`Driver`] is woken. Dropped or [`Self::end`]ed, the lane alone is over: what it lost goes over the others.
pub struct BulkMachine {
    input: BulkIn,
    output: BulkLane,
    patience: Duration,
    silence: Duration,
    /// Slices that have begun to come, and since when the last one does.
    slice: (u64, Instant),
    /// Bytes that were sent, and since when all were or more are.
    sent: (u64, Instant),
    all_sent: bool,
    held: bool,
    /// Dropped last: a slice that has come in part is given up before the client hears of it, and may send it another way.
    seat: LaneSeat,
}

impl BulkMachine {
    /// The lane with this place in its connection.
    pub fn new(seat: LaneSeat, driver: Arc<dyn Driver>, settings: &Settings, now: Instant) -> Self {
        seat.drive(driver);
        Self {
            input: BulkIn::new(true).checked(seat.peer().is_checked()),
            output: BulkLane::new(seat.lane()),
            patience: settings.patience,
            silence: settings.silence(),
            slice: (0, now),
            sent: (0, now),
            all_sent: true,
            held: false,
            seat,
        }
    }

    /// Its connection.
    pub fn peer(&self) -> &Arc<Peer> {
        self.seat.peer()
    }

    /// Whether the lane, or its connection, is to end.
    pub fn is_over(&self) -> bool {
        self.seat.is_over()
    }

    /// Finds places for what has come, and passes on what happened.
    pub fn poll<S: Service>(&mut self, service: &S, now: Instant) {
        let peer = self.seat.peer();
        while let Some(event) = self.input.poll(peer.landings(), now) {
            peer.bulk_event(service, &event, now);
        }
    }

    /// What to read next.
    pub fn want(&mut self) -> Want<'_> {
        let want = self.input.want();
        self.held = matches!(want, Want::Hold);
        want
    }

    /// Whether nothing is to be read for now: a slice waits for its request.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Nothing was there to be read.
    pub fn idle(&mut self) {
        self.input.idle();
    }

    /// `n` bytes were read. Call [`Self::poll`] before the next [`Self::want`].
    ///
    /// # Errors
    /// What came makes no sense: the lane must be ended. If it came as it was sent, the client is wrong, not the network: its
    /// connection ends with the lane.
    pub fn filled(&mut self, n: usize) -> Result<(), DecodeError> {
        let result = self.input.filled(n);
        self.took(result)
    }

    fn took(&mut self, result: Result<(), DecodeError>) -> Result<(), DecodeError> {
        self.seat.set_idle(!self.input.in_slice());
        self.seat.set_came(self.input.finished());
        match &result {
            Ok(()) | Err(DecodeError::Magic(_) | DecodeError::HeaderChecksum { .. }) => {}
            Err(error) => self.seat.peer().goodbye(error.clone().into()),
        }
        result
    }

    /// Sends slices until the sink is full, none is left for this lane, or others should have a turn.
    ///
    /// # Errors
    /// The sink's, if the lane is gone.
    pub fn flush(&mut self, sink: &mut dyn Sink, now: Instant) -> io::Result<Flushed> {
        let peer = self.seat.peer();
        let sending = self.output.wants_to_send(peer.bulk());
        self.all_sent = !sending || self.output.flush(peer.bulk(), sink, SLICES_A_TURN, now)?;
        if self.all_sent || self.output.sent() != self.sent.0 {
            self.sent = (self.output.sent(), now);
            if sending {
                peer.moved_on();
            }
        }
        Ok(match self.all_sent {
            true => Flushed::All,
            false if self.output.is_sending() => Flushed::Full,
            false => Flushed::Turn,
        })
    }

    /// As a driver by operations sees it.
    pub fn served<S: Service>(self, service: Arc<S>) -> Box<dyn ServedLane> {
        Box::new(Served { lane: self, service })
    }

    /// Why the lane must be ended, if it must: a slice, and what is to be sent, have their time, since whoever dribbles holds up
    /// others that send the same.
    pub fn overdue(&mut self, now: Instant) -> Option<String> {
        if self.held || self.input.begun() != self.slice.0 {
            self.slice = (self.input.begun(), now);
        }
        let (what, than) = if self.input.in_slice() && self.slice.1 + self.patience * 3 < now {
            ("a slice took longer", self.patience * 3)
        } else if !self.all_sent && self.sent.1 + self.silence < now {
            ("nothing was read of what was asked for for longer", self.silence)
        } else {
            return None;
        };
        Some(format!("{what} than {} s", than.as_secs_f32()))
    }

    /// When to look again even if nothing has come.
    pub fn deadline(&self, now: Instant) -> Instant {
        self.input.deadline().unwrap_or(now + self.patience)
    }

    /// The lane is over, and why. What came before counts.
    pub fn end<S: Service>(mut self, service: &S, reason: &str, now: Instant) {
        self.poll(service, now);
        self.seat.ends(service, reason);
    }
}

/// A lane with the service that it is of.
struct Served<S> {
    lane: BulkMachine,
    service: Arc<S>,
}

impl<S: Service> ServedLane for Served<S> {
    fn is_over(&self) -> bool {
        self.lane.is_over()
    }

    fn overdue(&mut self, now: Instant) -> Option<String> {
        self.lane.overdue(now)
    }

    fn deadline(&self, now: Instant) -> Instant {
        self.lane.deadline(now)
    }

    fn end(self: Box<Self>, reason: &str, now: Instant) {
        self.lane.end(&*self.service, reason, now);
    }
}

impl<S: Service> Lending for Served<S> {
    fn poll(&mut self, now: Instant) {
        self.lane.poll(&*self.service, now);
    }

    fn lend(&mut self) -> Option<Loan> {
        let loan = self.lane.input.lend();
        self.lane.held = self.lane.input.deadline().is_some();
        loan
    }

    fn lend_head(&mut self) -> Option<Loan> {
        self.lane.input.lend_head()
    }

    fn give_back(&mut self, loan: Loan, n: usize, _: Instant) -> Result<(), DecodeError> {
        let result = self.lane.input.give_back(loan, n);
        self.lane.took(result)
    }

    fn is_recalled(&self) -> bool {
        self.lane.input.is_recalled(self.lane.peer().landings())
    }

    fn lend_slice(&mut self, now: Instant) -> Option<OutSlice> {
        let BulkMachine { output, seat, sent, all_sent, .. } = &mut self.lane;
        let slice = output.lend(seat.peer().bulk(), now);
        *all_sent = !output.is_sending();
        if *all_sent {
            sent.1 = now;
        }
        slice
    }

    fn give_slice(&mut self, slice: OutSlice, n: usize, now: Instant) {
        let BulkMachine { output, seat, sent, .. } = &mut self.lane;
        output.give_back(slice, n);
        if output.sent() != sent.0 {
            *sent = (output.sent(), now);
            seat.peer().moved_on();
        }
    }

    fn has_more(&self) -> bool {
        self.lane.output.wants_to_send(self.lane.peer().bulk())
    }
}
