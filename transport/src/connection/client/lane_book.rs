//! The bulk lanes of a client's connection: which there are, and when the next is opened.

use std::time::{Duration, Instant};

use super::after;

/// The longest pause before a lane is opened again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Lanes lost in a row, none of which brought a slice, after which what needs one is given up.
const HOPELESS: u32 = 32;

/// How long the server's word holds that there are lanes enough, at first; each time that it says so again, twice as long.
const REFUSED: Duration = Duration::from_secs(1);

/// The longest that it holds.
const REFUSED_LONGEST: Duration = Duration::from_secs(60);

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
    refused: Option<Refused>,
}

/// The server would not have one more lane. It may have counted one that is gone meanwhile, so that is asked again.
#[derive(Debug)]
struct Refused {
    /// As many as it took.
    most: u32,
    /// When to ask for one more, and how long to wait after the next refusal.
    until: Instant,
    pause: Duration,
}

#[derive(Debug)]
struct Seat {
    lane: u32,
    open: bool,
    idle: bool,
    over: bool,
    /// The server has lanes enough.
    refused: bool,
}

impl LaneBook {
    /// Lanes that are open or being opened.
    pub(super) fn len(&self) -> u32 {
        self.seats.len() as u32
    }

    /// Begins the next lane, if so many are `wanted`, and that is due.
    pub(super) fn begin(&mut self, wanted: u32, now: Instant) -> Option<u32> {
        if self.len() >= wanted || self.due(wanted).is_some_and(|at| at > now) {
            return None;
        }
        if !self.seats.iter().any(|s| s.open) {
            self.none_since.get_or_insert(now);
        }
        self.last += 1;
        self.seats.push(Seat { lane: self.last, open: false, idle: false, over: false, refused: false });
        Some(self.last)
    }

    /// When a lane can be opened, if so many are `wanted`; `None`: at once, or never.
    pub(super) fn due(&self, wanted: u32) -> Option<Instant> {
        let pause = self.pause.map(|(at, _)| at);
        match &self.refused {
            _ if self.len() >= wanted => None,
            // One more than it took is asked for at a time.
            Some(refused) if self.len() >= refused.most => {
                let asked = (self.len() > refused.most).then(|| after(refused.until, refused.pause));
                Some(asked.unwrap_or(refused.until)).max(pause)
            }
            _ => pause,
        }
    }

    /// Whether one lane more would be one that the server did not take.
    pub(super) fn is_enough(&self) -> bool {
        self.refused.as_ref().is_some_and(|refused| self.len() >= refused.most)
    }

    /// The server would not have this lane, which was begun: it has enough. Whether that is news.
    pub(super) fn refused(&mut self, lane: u32, now: Instant) -> bool {
        if let Some(seat) = self.find(lane) {
            seat.refused = true;
        }
        let most = self.len().saturating_sub(1).max(1);
        match &mut self.refused {
            // Several were asked for at once.
            Some(refused) if refused.until > now => {
                refused.most = refused.most.min(most);
                false
            }
            known => {
                let pause = known.as_ref().map_or(REFUSED, |refused| refused.pause);
                let next = pause.saturating_mul(2).min(REFUSED_LONGEST);
                known.replace(Refused { most, until: after(now, pause), pause: next }).is_none()
            }
        }
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
        if self.refused.as_ref().is_some_and(|refused| self.open() > refused.most) {
            self.refused = None;
        }
        let instead = self.lacking > 0;
        self.lacking = self.lacking.saturating_sub(1);
        instead
    }

    pub(super) fn is_open(&self, lane: u32) -> bool {
        self.seats.iter().any(|s| s.lane == lane && s.open)
    }

    /// A lane is to end.
    pub(super) fn end(&mut self, lane: u32) {
        if let Some(seat) = self.find(lane) {
            seat.over = true;
        }
    }

    /// A lane is gone: another is opened after a pause, which grows while lanes are `useless`. One that the server did not take says
    /// nothing of those that it has taken. Whether it was there.
    pub(super) fn gone(&mut self, lane: u32, useless: bool, first_pause: Duration, now: Instant) -> bool {
        let Some(at) = self.seats.iter().position(|s| s.lane == lane) else { return false };
        let seat = self.seats.remove(at);
        self.lacking += u32::from(seat.open);
        if !self.seats.iter().any(|s| s.open) {
            self.none_since.get_or_insert(now);
        }
        match (seat.refused, useless) {
            (true, _) => {}
            (false, true) => self.useless += 1,
            (false, false) => self.useless = 0,
        }
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
