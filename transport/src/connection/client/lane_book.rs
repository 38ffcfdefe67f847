//! The bulk lanes of a client's connection: which there are, and when the next is opened.

use std::time::{Duration, Instant};

use super::after;

/// The longest pause before a lane is opened again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Lanes lost in a row, none of which brought a slice, after which what needs one is given up.
const HOPELESS: u32 = 32;

#[derive(Debug, Default)]
pub(super) struct LaneBook {
    seats: Vec<Seat>,
    /// Lanes have numbers of their own, those that are over included.
    last: u32,
    /// After a loss: when the next lane is opened, and the pause after the loss after that.
    pause: Option<(Instant, Duration)>,
    /// Since when there is no lane, though one is wanted.
    none_since: Option<Instant>,
    /// Lanes that were open and are gone, less those that were opened since.
    lacking: u32,
    /// Lanes in a row that brought nothing.
    useless: u32,
}

#[derive(Debug)]
struct Seat {
    lane: u32,
    open: bool,
    idle: bool,
    over: bool,
}

impl LaneBook {
    /// Lanes that are open or being opened.
    pub(super) fn len(&self) -> u32 {
        self.seats.len() as u32
    }

    /// Begins the next lane, if that is due.
    pub(super) fn begin(&mut self, now: Instant) -> Option<u32> {
        if self.pause.is_some_and(|(at, _)| at > now) {
            return None;
        }
        if !self.seats.iter().any(|s| s.open) {
            self.none_since.get_or_insert(now);
        }
        self.last += 1;
        self.seats.push(Seat { lane: self.last, open: false, idle: false, over: false });
        Some(self.last)
    }

    /// When a lane that is wanted can be opened.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pause.map(|(at, _)| at)
    }

    /// Lanes that are open.
    pub(super) fn open(&self) -> u32 {
        self.seats.iter().filter(|s| s.open && !s.over).count() as u32
    }

    /// A lane has brought something.
    pub(super) fn is_of_use(&mut self) {
        self.useless = 0;
    }

    /// Since when there is no lane, though one is wanted.
    pub(super) fn none_since(&self) -> Option<Instant> {
        self.none_since
    }

    /// Whether one lane after another is lost before it has brought anything.
    pub(super) fn is_hopeless(&self) -> bool {
        self.useless >= HOPELESS
    }

    /// What has waited was given up: what comes next has its own time.
    pub(super) fn forgive(&mut self) {
        self.useless = 0;
        self.none_since = None;
    }

    /// A lane is open. Whether it is in the place of one that was lost.
    pub(super) fn opened(&mut self, lane: u32) -> bool {
        self.none_since = None;
        if let Some(seat) = self.find(lane) {
            (seat.open, seat.idle) = (true, true);
        }
        let instead = self.lacking > 0;
        self.lacking = self.lacking.saturating_sub(1);
        instead
    }

    /// A lane is to end.
    pub(super) fn end(&mut self, lane: u32) {
        if let Some(seat) = self.find(lane) {
            seat.over = true;
        }
    }

    /// A lane is gone: another is opened after a pause, which grows while lanes are `useless`. Whether it was there.
    pub(super) fn gone(&mut self, lane: u32, useless: bool, first_pause: Duration, now: Instant) -> bool {
        let Some(at) = self.seats.iter().position(|s| s.lane == lane) else { return false };
        let seat = self.seats.remove(at);
        self.lacking += u32::from(seat.open);
        if !self.seats.iter().any(|s| s.open) {
            self.none_since.get_or_insert(now);
        }
        self.useless = if useless { self.useless + 1 } else { 0 };
        let pause = self.pause.map_or(first_pause, |(_, pause)| if useless { pause } else { first_pause });
        self.pause = Some((after(now, pause), pause.saturating_mul(2).min(LONGEST_PAUSE)));
        true
    }

    pub(super) fn is_over(&self, lane: u32) -> bool {
        !self.seats.iter().any(|s| s.lane == lane && !s.over)
    }

    pub(super) fn set_idle(&mut self, lane: u32, idle: bool) {
        if let Some(seat) = self.find(lane) {
            seat.idle = idle;
        }
    }

    /// How many open lanes have nothing arriving.
    pub(super) fn idle(&self) -> usize {
        self.seats.iter().filter(|s| s.open && s.idle && !s.over).count()
    }

    fn find(&mut self, lane: u32) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|s| s.lane == lane)
    }
}
