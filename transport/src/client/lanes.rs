//! The lanes of a client's connection, and one round of moving bytes over them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::shares::{Shares, Told};
use crate::connection::{Client, ClientError};
use crate::link::dial::gone;
use crate::link::tls::TlsClient;
use crate::link::wait::Interest;
use crate::link::{Bulk, Dial, Stream, dialer_with};
use crate::uri::Uri;

/// A client with its lanes. Not tied to any runtime: whoever owns it calls [`Self::turn`] when a lane is ready.
pub(super) struct Lanes {
    pub(super) client: Client,
    uri: Uri,
    dial: Box<dyn Dial>,
    control: Option<Arc<dyn Stream>>,
    bulk: Vec<Box<dyn Bulk>>,
    /// The time for which it was seen to that what is due is done.
    timed: Option<Instant>,
    /// When bulk lanes that have nothing to do are looked at again: a look at each costs a small request a third of its time.
    bulk_look: Instant,
    shares: Arc<Shares>,
    /// What the control lane knows of them.
    told: Told,
    /// How often their uses were forgotten.
    uses_forgotten: u64,
}

/// From one look at bulk lanes that have nothing to do to the next.
const BULK_LOOK: Duration = Duration::from_millis(1);

impl Lanes {
    pub(super) fn new(uri: Uri, tls: Option<TlsClient>, client: Client) -> Self {
        Self {
            client,
            dial: dialer_with(&uri, tls),
            uri,
            control: None,
            bulk: Vec::new(),
            timed: None,
            bulk_look: Instant::now(),
            shares: Arc::default(),
            told: Told::default(),
            uses_forgotten: 0,
        }
    }

    /// Moves what can be moved without waiting. Whether anything was.
    pub(super) fn turn(&mut self, now: Instant) -> bool {
        let moved = self.turn_once(now);
        self.forget_uses();
        moved
    }

    fn turn_once(&mut self, now: Instant) -> bool {
        if self.client.dead().is_some() {
            self.drop_lanes();
            return false;
        }
        if self.control.is_none() && self.client.wants_connection(now) {
            match self.dial.control() {
                Ok(stream) => {
                    self.client.set_sealed(stream.is_sealed());
                    self.control = Some(stream);
                    self.told = Told::default();
                    // Opening it may have taken seconds.
                    self.client.connected(Instant::now());
                }
                Err(error) => match gone(&error) {
                    untrusted @ ClientError::Untrusted { .. } => self.client.refused(untrusted),
                    _ => self.client.lost(&format!("{}: {error}", self.uri), Instant::now()),
                },
            }
        }
        if self.control.is_none() {
            return false;
        }
        match self.move_bytes(now) {
            Ok(moved) => moved,
            Err(error) => {
                self.drop_lanes();
                if matches!(error, ClientError::Untrusted { .. }) {
                    self.client.refused(error);
                    return true;
                }
                let reason = match &error {
                    // Said once more, it would say so twice.
                    ClientError::Unreachable { reason, .. } => reason.clone(),
                    other => other.to_string(),
                };
                self.client.lost(&reason, now);
                true
            }
        }
    }

    /// Before any request of the next session is begun.
    fn forget_uses(&mut self) {
        if self.uses_forgotten != self.client.uses_forgotten() {
            self.uses_forgotten = self.client.uses_forgotten();
            self.shares.forget_uses(self.uses_forgotten);
        }
    }

    /// Looks up to `looks` times, a breath apart, whether a turn is worth it; how many looks are left.
    pub(super) fn watch(&self, looks: u32) -> u32 {
        match &self.control {
            // Bulk lanes that have something to do are looked at by turns alone.
            Some(control) if self.bulk.is_empty() || self.client.is_bulk_quiet() => control.watch(looks),
            _ => {
                std::hint::spin_loop();
                looks.saturating_sub(1)
            }
        }
    }

    /// The control lane, where frames may go out at once.
    pub(super) fn split(&mut self) -> (&mut Client, Option<&dyn Stream>) {
        (&mut self.client, self.control.as_deref())
    }

    /// What the session shares with its server.
    pub(super) fn shares(&self) -> &Arc<Shares> {
        &self.shares
    }

    /// Whether it can share anything, over the lane that it has now.
    pub(super) fn can_share(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.can_share())
    }

    /// Tells the server of what was shared since the last time, before any byte that is sent later. Not before it has the session: what
    /// is shared has an era of uses, and the next one begins if the session turns out to be lost.
    pub(super) fn tell_shares(&mut self, now: Instant) {
        if let Err(error) = self.tell() {
            self.broken(&error, now);
        }
    }

    fn tell(&mut self) -> io::Result<()> {
        match &self.control {
            Some(control) if self.client.is_ready() => self.shares.tell(&**control, &mut self.told),
            _ => Ok(()),
        }
    }

    /// A send on the control lane failed.
    pub(super) fn broken(&mut self, error: &io::Error, now: Instant) {
        self.drop_lanes();
        self.client.lost(&error.to_string(), now);
        self.forget_uses();
    }

    /// The driver is about to wait: what for. Whether there is no need to.
    pub(super) fn arm(&mut self, out: &mut Vec<Interest>) -> bool {
        out.clear();
        let mut ready = false;
        if let Some(control) = &self.control {
            let write = self.client.has_output() || control.has_unsent();
            out.push(control.interest(true, write));
            ready |= control.arm(true, write);
        }
        for lane in &mut self.bulk {
            ready |= lane.arm(&self.client, out);
        }
        ready
    }

    /// The driver has waited.
    pub(super) fn disarm(&mut self) {
        // It may be one of them that ended the wait.
        self.bulk_look = Instant::now();
        if let Some(control) = &self.control {
            control.disarm();
        }
        self.bulk.iter_mut().for_each(|lane| lane.disarm());
    }

    /// When to turn even if no lane is ready.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let lanes = self.bulk.iter().filter_map(|lane| lane.deadline(&self.client));
        self.client.deadline().into_iter().chain(lanes).min()
    }

    fn move_bytes(&mut self, now: Instant) -> Result<bool, ClientError> {
        let mut moved = false;
        // A driver that polls does not read the clock for every turn.
        if self.timed.replace(now) != Some(now) {
            self.client.timeout(now)?;
        }
        self.tell().map_err(|e| gone(&e))?;
        let Some(control) = &self.control else { return Ok(false) };
        if self.client.has_output() {
            let mut sink: &dyn Stream = &**control;
            self.client.flush(&mut sink).map_err(|e| gone(&e))?;
        }
        if control.has_unsent() {
            control.push().map_err(|e| gone(&e))?;
        }
        match control.recv(self.client.space(), &mut []) {
            Ok(0) => return Err(gone(&io::ErrorKind::ConnectionAborted.into())),
            Ok(n) => {
                moved = true;
                if self.client.is_greeting() {
                    self.client.set_channel(control.channel());
                }
                let was_ready = self.client.is_ready();
                self.client.filled(n, now)?;
                if !was_ready && self.client.is_ready() {
                    // Requests may be sent at once from here on.
                    self.forget_uses();
                    self.tell().map_err(|e| gone(&e))?;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(gone(&e)),
        }
        while let Some(lane) = self.client.next_lane(now) {
            match self.dial.bulk(&self.client, lane, now) {
                Ok(lane) => self.bulk.push(lane),
                Err(error) => self.client.lane_over(lane, 0, &error.to_string(), now),
            }
            moved = true;
        }
        if self.client.is_bulk_quiet() && now < self.bulk_look {
            return Ok(moved);
        }
        self.bulk_look = now + BULK_LOOK;
        let Self { client, bulk, .. } = self;
        let counters = client.counters().clone();
        let came = || counters.down.load(Ordering::Relaxed);
        bulk.retain_mut(|lane| {
            let before = came();
            let turn = lane.turn(client, now);
            if came() != before {
                client.lane_heard(now);
            }
            let over = match turn {
                _ if client.is_lane_over(lane.lane()) => "it was taken out".to_owned(),
                Ok(did) => {
                    moved |= did;
                    return true;
                }
                Err(error) => error.to_string(),
            };
            client.lane_over(lane.lane(), lane.came(), &over, now);
            moved = true;
            false
        });
        Ok(moved)
    }

    fn drop_lanes(&mut self) {
        if let Some(control) = self.control.take() {
            // Last words, if any, go out with the lane's own buffer.
            let mut sink: &dyn Stream = &*control;
            if let Err(error) = self.client.flush(&mut sink).and_then(|_| control.push()) {
                tracing::debug!(%error, "the last words were not sent");
            }
        }
        self.bulk.clear();
    }
}
