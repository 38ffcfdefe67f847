//! Asking a server which links it offers, and how far away it is.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::{Framer, Side, same_host};
use crate::link::Stream;
use crate::link::wait::Waiter;
use crate::wire::{AskLinks, Control, DecodeError, Kind, Links, body_crc, encode_header};

/// How long a server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions to one server over one link, and how long all but the first may take together.
const QUESTIONS: u32 = 8;
const BUDGET: Duration = Duration::from_millis(10);

/// The id of this host's boot, which tells processes of one host from others; `None` where the system does not say.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim_end().to_owned()).filter(|id| !id.is_empty())
}

/// One server, asked over several links.
pub(super) struct Probe {
    ask: AskLinks,
    boot: Option<String>,
}

/// What a server said over one link.
pub(super) struct Told {
    pub(super) links: Links,
    /// The shortest of some round trips.
    pub(super) round_trip: Duration,
}

impl Probe {
    pub(super) fn new() -> io::Result<Self> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|e| io::Error::other(e.to_string()))?;
        let boot = boot_id();
        let host = boot.as_deref().map_or([0; 16], |boot| same_host(nonce, boot, Side::Client));
        Ok(Self { ask: AskLinks { nonce, host }, boot })
    }

    /// Whether the server has proved to be on this host.
    pub(super) fn is_here(&self, links: &Links) -> bool {
        self.boot.as_deref().is_some_and(|boot| same_host(self.ask.nonce, boot, Side::Server) == links.host)
    }

    /// Asks over a lane that has not greeted yet; it may greet afterwards.
    ///
    /// # Errors
    /// The lane's, or an answer that is none: the lane is of no use then.
    pub(super) fn ask(&self, stream: &Arc<dyn Stream>) -> io::Result<Told> {
        let mut lane = Lane { stream: &**stream, framer: Framer::new(0), waiter: Waiter::default(), heard: false };
        let began = Instant::now();
        let links = lane.question(&self.ask)?;
        let mut round_trip = began.elapsed();
        let until = Instant::now() + BUDGET;
        for _ in 1..QUESTIONS {
            let began = Instant::now();
            if began + round_trip > until {
                break;
            }
            lane.question(&self.ask)?;
            round_trip = round_trip.min(began.elapsed());
        }
        Ok(Told { links, round_trip })
    }
}

/// What answers is the beginning of TLS.
#[derive(Debug, thiserror::Error)]
#[error("the server speaks TLS there")]
pub(super) struct SpeaksTls;

impl SpeaksTls {
    pub(super) fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// How every record begins in which TLS says that it does not understand: an alert, of whichever version.
const ALERT: [u8; 2] = [21, 3];

struct Lane<'a> {
    stream: &'a dyn Stream,
    framer: Framer,
    waiter: Waiter,
    /// Whether anything has come yet.
    heard: bool,
}

impl Lane<'_> {
    fn question(&mut self, ask: &AskLinks) -> io::Result<Links> {
        let until = Instant::now() + PATIENCE;
        self.send(&Control::AskLinks(*ask), until)?;
        loop {
            if let Some(frame) = self.framer.next_frame().map_err(io::Error::other)? {
                frame.intact.map_err(|corrupted| io::Error::other(DecodeError::from(corrupted)))?;
                return match Control::decode(&frame.header, frame.meta).map_err(io::Error::other)? {
                    Control::Links(links) => Ok(links),
                    Control::Goodbye(error) => Err(io::Error::other(error)),
                    _ => {
                        Err(io::Error::other(format!("a {:?} is no answer", frame.header.kind.unwrap_or(Kind::Links))))
                    }
                };
            }
            let space = self.framer.space_of_frame();
            match self.stream.recv(space, &mut []) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    if !std::mem::replace(&mut self.heard, true) && space[..n].starts_with(&ALERT) {
                        return Err(io::Error::other(SpeaksTls));
                    }
                    self.framer.filled(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(true, false, until)?,
                Err(e) => return Err(e),
            }
        }
    }

    fn send(&mut self, message: &Control, until: Instant) -> io::Result<()> {
        let mut meta = Vec::new();
        let (kind, flags) = message.encode(&mut meta);
        let mut bytes = encode_header(kind, flags, 0, meta.len() as u32, 0, body_crc(&meta, &[])).to_vec();
        bytes.append(&mut meta);
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.send(&[IoSlice::new(&bytes[sent..])]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(false, true, until)?,
                Err(e) => return Err(e),
            }
        }
        while self.stream.has_unsent() && !self.stream.push()? {
            self.wait(false, true, until)?;
        }
        Ok(())
    }

    fn wait(&mut self, read: bool, write: bool, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let text = format!("no answer within {} s", PATIENCE.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        if !self.stream.arm(read, write) {
            self.waiter.wait(std::iter::once(self.stream.interest(read, write)), left);
        }
        self.stream.disarm();
        Ok(())
    }
}
