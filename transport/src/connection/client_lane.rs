//! A client's bulk lane, from its greeting on.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::bulk_in::{BulkIn, Loan, Want};
use super::bulk_out::{BulkLane, OutSlice};
use super::client::{Client, ClientError, LaneCounts, after};
use super::framer::Framer;
use super::lending::Lending;
use super::outbox::Sink;
use crate::wire::{Control, DecodeError, Effect, ErrorCode};

/// How long a lane may take to be welcomed.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// Slices sent in one turn. A receiver that keeps up would never let the sink be full, and small requests wait for the turn's end.
const SLICES_A_TURN: usize = 1;

/// The machine. Its driver, again and again: drops it if [`Self::is_over`], calls [`Self::timeout`] and [`Self::flush`], reads into
/// [`Self::want`] (then [`Self::filled`], or [`Self::idle`]), and waits until [`Self::deadline`]. On any error the lane is gone,
/// its connection is not: the driver calls [`Client::lane_over`] with [`Self::came`].
pub struct ClientLane {
    lane: u32,
    state: State,
    counts: Arc<LaneCounts>,
    /// When bytes last went or came, or there was nothing to do; `busy`: there is something to do since.
    moved: Instant,
    busy: bool,
    /// Slices that it was known to have carried.
    carried: u64,
}

enum State {
    /// So much of the hello is sent; the welcome has not come.
    Opening {
        hello: Vec<u8>,
        sent: usize,
        framer: Framer,
        until: Instant,
    },
    Open {
        input: Box<BulkIn>,
        output: BulkLane,
    },
}

impl ClientLane {
    /// The lane that [`Client::next_lane`] named.
    pub fn new(client: &Client, lane: u32, now: Instant) -> Self {
        let hello = client.lane_hello(lane).unwrap_or_default();
        // A welcome has no payload.
        let (framer, until) = (Framer::new(0), now + GREETING_TIMEOUT);
        let state = State::Opening { hello, sent: 0, framer, until };
        Self { lane, state, counts: client.lane_counts(lane), moved: now, busy: false, carried: 0 }
    }

    /// Its number.
    pub fn lane(&self) -> u32 {
        self.lane
    }

    /// Slices that came over it from their first byte to their last.
    pub fn came(&self) -> u64 {
        match &self.state {
            State::Opening { .. } => 0,
            State::Open { input, .. } => input.finished(),
        }
    }

    /// Whether it was decided that the lane ends.
    pub fn is_over(&self, client: &Client) -> bool {
        client.is_lane_over(self.lane)
    }

    /// Whether the server has welcomed it: from then on it can be driven by operations, too.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// So many sends were not copied by the kernel either.
    pub fn count_zero_copied(&self, sends: u64) {
        self.counts.zero_copied.fetch_add(sends, Ordering::Relaxed);
    }

    /// As a driver by operations sees it, once it is open.
    pub fn lending<'a>(&'a mut self, client: &'a mut Client) -> impl Lending + 'a {
        Lent { lane: self, client }
    }

    /// Whether [`Self::flush`] has something to do.
    pub fn wants_to_send(&self, client: &Client) -> bool {
        match &self.state {
            State::Opening { hello, sent, .. } => *sent < hello.len(),
            State::Open { output, .. } => output.wants_to_send(client.bulk()),
        }
    }

    /// Sends the greeting, or slices until the sink is full or others should have their turn. Whether anything went.
    ///
    /// # Errors
    /// The sink's, if the lane is gone.
    pub fn flush(&mut self, client: &Client, sink: &mut dyn Sink, now: Instant) -> io::Result<bool> {
        let went = match &mut self.state {
            State::Opening { hello, sent, .. } => {
                let before = *sent;
                while *sent < hello.len() {
                    match sink.send(&[IoSlice::new(&hello[*sent..])]) {
                        Ok(n) => *sent += n,
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                        Err(e) => return Err(e),
                    }
                }
                (*sent - before) as u64
            }
            State::Open { output, .. } => {
                if !output.wants_to_send(client.bulk()) {
                    return Ok(false);
                }
                let (bytes, slices) = (output.sent(), output.slices());
                let done = output.flush(client.bulk(), sink, SLICES_A_TURN, now);
                self.counts.slices_up.fetch_add(output.slices() - slices, Ordering::Relaxed);
                let went = output.sent() - bytes;
                done.map(|all| {
                    self.busy |= !all;
                    went
                })?
            }
        };
        client.counters().up.fetch_add(went, Ordering::Relaxed);
        self.counts.up.fetch_add(went, Ordering::Relaxed);
        if went > 0 {
            self.moved = now;
        }
        Ok(went > 0)
    }

    /// What to read next.
    pub fn want(&mut self, client: &mut Client, now: Instant) -> Want<'_> {
        self.poll(client, now);
        match &mut self.state {
            // Slices may follow the welcome at once: they are not the framer's to take.
            State::Opening { framer, .. } => Want::Read { first: framer.space_of_frame(), then: &mut [] },
            State::Open { input, .. } => input.want(),
        }
    }

    /// Whether there is nothing to read until a deadline: another lane writes the same slice.
    pub fn is_held(&self) -> bool {
        matches!(&self.state, State::Open { input, .. } if input.deadline().is_some())
    }

    /// Nothing was there to be read.
    pub fn idle(&mut self) {
        if let State::Open { input, .. } = &mut self.state {
            input.idle();
        }
    }

    /// `n` bytes of [`Self::want`] were filled; 0: the server has closed the lane.
    ///
    /// # Errors
    /// The lane is gone, or cannot be trusted any further.
    pub fn filled(&mut self, n: usize, client: &mut Client, now: Instant) -> Result<(), ClientError> {
        if n == 0 {
            return Err(gone("the server closed it"));
        }
        client.counters().down.fetch_add(n as u64, Ordering::Relaxed);
        self.counts.down.fetch_add(n as u64, Ordering::Relaxed);
        self.moved = now;
        match &mut self.state {
            State::Opening { framer, .. } => {
                framer.filled(n);
                let Some(frame) = framer.next_frame()? else { return Ok(()) };
                frame.intact.map_err(DecodeError::from)?;
                match Control::decode(&frame.header, frame.meta)? {
                    Control::LaneWelcome(lane) if lane == self.lane => {}
                    Control::Goodbye(error) => {
                        if error.code == ErrorCode::Busy {
                            client.lane_refused(self.lane, now);
                        }
                        return Err(error.into());
                    }
                    _ => return Err(DecodeError::Range("a bulk lane was not welcomed").into()),
                }
                client.lane_opened(self.lane);
                let checked = client.is_checked();
                let input = Box::new(BulkIn::new(false).checked(checked));
                self.state = State::Open { input, output: BulkLane::new(self.lane) };
                Ok(())
            }
            State::Open { input, .. } => {
                let before = input.finished();
                let result = input.filled(n);
                self.counts.slices_down.fetch_add(input.finished() - before, Ordering::Relaxed);
                // Whatever comes after it, what came whole counts.
                self.poll(client, now);
                result.map_err(Into::into)
            }
        }
    }

    /// When [`Self::timeout`] has something to say, or a slice that was held is to be looked at again.
    pub fn deadline(&self, client: &Client) -> Option<Instant> {
        match &self.state {
            State::Opening { until, .. } => Some(*until),
            State::Open { input, .. } => {
                // Until the server is heard, which wakes the driver anyway, there is nothing to say.
                let tells = (self.busy || input.in_slice()) && client.heard() > self.moved;
                let stands_still = tells.then(|| after(self.moved, client.lane_patience()));
                input.deadline().into_iter().chain(stands_still).min()
            }
        }
    }

    /// Whether the lane has taken too long.
    ///
    /// # Errors
    /// It has.
    pub fn timeout(&mut self, client: &Client, now: Instant) -> Result<(), ClientError> {
        match &mut self.state {
            State::Opening { until, .. } if *until <= now => Err(gone("it was not welcomed in time")),
            State::Opening { .. } => Ok(()),
            State::Open { input, output } => {
                let busy = output.is_sending() || input.in_slice();
                if !std::mem::replace(&mut self.busy, busy) || !busy {
                    self.moved = now;
                }
                // Where nothing at all is heard, it is not this lane's fault.
                let patience = client.lane_patience();
                if now < after(self.moved, patience) || client.heard() <= self.moved {
                    return Ok(());
                }
                Err(gone("it stands still while the server is heard"))
            }
        }
    }

    fn poll(&mut self, client: &mut Client, now: Instant) {
        if let State::Open { input, .. } = &mut self.state {
            while let Some(event) = input.poll(client.landings(), now) {
                client.bulk_event(&event);
            }
            client.lane_idles(self.lane, !input.in_slice());
            let carried =
                self.counts.slices_up.load(Ordering::Relaxed) + self.counts.slices_down.load(Ordering::Relaxed);
            if std::mem::replace(&mut self.carried, carried) != carried {
                client.lane_carries();
            }
        }
    }
}

/// A lane with the client that it is of.
struct Lent<'a> {
    lane: &'a mut ClientLane,
    client: &'a mut Client,
}

impl Lending for Lent<'_> {
    fn poll(&mut self, now: Instant) {
        self.lane.poll(self.client, now);
    }

    fn lend(&mut self) -> Option<Loan> {
        let State::Open { input, .. } = &mut self.lane.state else { return None };
        input.lend()
    }

    fn lend_head(&mut self) -> Option<Loan> {
        let State::Open { input, .. } = &mut self.lane.state else { return None };
        input.lend_head()
    }

    fn give_back(&mut self, loan: Loan, n: usize, now: Instant) -> Result<(), DecodeError> {
        let Self { lane, client } = self;
        let State::Open { input, .. } = &mut lane.state else { return Ok(()) };
        if n > 0 {
            client.counters().down.fetch_add(n as u64, Ordering::Relaxed);
            lane.counts.down.fetch_add(n as u64, Ordering::Relaxed);
            lane.moved = now;
        }
        let before = input.finished();
        let result = input.give_back(loan, n);
        lane.counts.slices_down.fetch_add(input.finished() - before, Ordering::Relaxed);
        // Whatever comes after it, what came whole counts.
        lane.poll(client, now);
        result
    }

    fn is_recalled(&self) -> bool {
        matches!(&self.lane.state, State::Open { input, .. } if input.is_recalled(self.client.landings()))
    }

    fn lend_slice(&mut self, now: Instant) -> Option<OutSlice> {
        let State::Open { output, .. } = &mut self.lane.state else { return None };
        let slice = output.lend(self.client.bulk(), now);
        self.lane.busy |= output.is_sending();
        slice
    }

    fn give_slice(&mut self, slice: OutSlice, n: usize, now: Instant) {
        let State::Open { output, .. } = &mut self.lane.state else { return };
        let (bytes, slices) = (output.sent(), output.slices());
        output.give_back(slice, n);
        let went = output.sent() - bytes;
        self.lane.counts.slices_up.fetch_add(output.slices() - slices, Ordering::Relaxed);
        self.client.counters().up.fetch_add(went, Ordering::Relaxed);
        self.lane.counts.up.fetch_add(went, Ordering::Relaxed);
        if went > 0 {
            self.lane.moved = now;
        }
    }

    fn has_more(&self) -> bool {
        self.lane.wants_to_send(self.client)
    }
}

fn gone(why: &str) -> ClientError {
    ClientError::Unreachable { reason: format!("a bulk lane is gone: {why}"), effect: Effect::Unknown }
}
