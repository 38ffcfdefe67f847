//! The receiving half of a channel.

use std::io;
use std::sync::atomic::Ordering;

use rustls::{AlertDescription, Error};

use super::Untrusted;
use super::heartbeat::Heartbeat;
use super::record::{ALERT, DATA, Direction, HANDSHAKE, HEAD, HEARTBEAT, RECORD, body_len};
use super::stream::{Open, explain, lock};
use crate::auth::Refused;
use crate::link::Stream;

pub(super) struct Opener {
    direction: Direction,
    /// Received: `start..end`, of which `start..plain` is opened and yet to be delivered.
    buf: Vec<u8>,
    start: usize,
    plain: usize,
    /// What follows the opened bytes of their record: kind, padding, tag.
    tail: usize,
    end: usize,
    /// The last read filled all there was: there is more where that came from.
    filled: bool,
    over: bool,
    /// Waits in a row with nothing here, none of them after a large read.
    waits: u32,
    /// Records in a row that held nothing for who reads.
    barren: u32,
    /// What is told with the next call.
    failed: Option<io::Error>,
}

/// Received bytes that are held: from enough for small frames to enough for bulk.
const FIRST_INPUT: usize = 4 << 10;
const MOST_INPUT: usize = 256 << 10;

/// Waits without bulk in between, after which its memory is given back.
pub(super) const SMALL_WAITS: u32 = 16;

/// Records that may come without content in a row: session tickets, new keys. Each costs work, and moves nothing on.
const MOST_BARREN: u32 = 32;

impl Opener {
    /// `buf`: what came already.
    pub(super) fn new(direction: Direction, buf: Vec<u8>) -> Self {
        let end = buf.len();
        Self {
            direction,
            buf,
            start: 0,
            plain: 0,
            tail: 0,
            end,
            filled: false,
            over: false,
            waits: 0,
            barren: 0,
            failed: None,
        }
    }

    /// Delivers what there is into one buffer and then the other. 0: the other side has closed.
    pub(super) fn receive<'a>(
        &mut self,
        lane: &dyn Stream,
        open: &Open,
        mut first: &'a mut [u8],
        mut then: &'a mut [u8],
    ) -> io::Result<usize> {
        let mut delivered = 0;
        loop {
            for out in [&mut first, &mut then] {
                let n = out.len().min(self.plain - self.start);
                let (now, later) = std::mem::take(out).split_at_mut(n);
                now.copy_from_slice(&self.buf[self.start..self.start + n]);
                self.start += n;
                delivered += n;
                *out = later;
            }
            if self.start < self.plain {
                return Ok(delivered);
            }
            self.start += std::mem::take(&mut self.tail);
            self.plain = self.start;
            if self.over {
                return Ok(delivered);
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            match self.next_record(open, first) {
                Ok(Some(n)) => {
                    if n > 0 || self.plain > self.start {
                        self.barren = 0;
                    }
                    if self.barren > MOST_BARREN {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            "too many TLS records that hold nothing",
                        ));
                    }
                    first = &mut std::mem::take(&mut first)[n..];
                    delivered += n;
                    continue;
                }
                Ok(None) => {}
                Err(error) if delivered == 0 => return Err(error),
                // After what came before it.
                Err(error) => self.failed = Some(error),
            }
            if delivered > 0 {
                return Ok(delivered);
            }
            let space = self.space();
            let most = space.len();
            match lane.recv(space, &mut []) {
                Ok(0) => self.over = true,
                Ok(n) => {
                    self.end += n;
                    self.filled = n == most;
                    if n > FIRST_INPUT {
                        self.waits = 0;
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Opens the next record, if all of it is there: how many bytes of it are in `out` already, from its front on. Those of a
    /// record that may be longer than `out` are opened where they are, and yet to be delivered.
    fn next_record(&mut self, open: &Open, out: &mut [u8]) -> io::Result<Option<usize>> {
        let received = &mut self.buf[self.start..self.end];
        let Some((head, rest)) = received.split_first_chunk_mut::<HEAD>() else { return Ok(None) };
        let length = body_len(*head)?;
        let Some(body) = rest.get_mut(..length) else { return Ok(None) };
        let there = length <= out.len();
        let (content, kind) = if there { self.direction.open_into(body, out)? } else { self.direction.open(body)? };
        if kind == DATA && !there {
            self.start += HEAD;
            self.plain = self.start + content;
            self.tail = length - content;
            return Ok(Some(0));
        }
        let message = if there { &out[..content] } else { &body[..content] };
        let message = if kind == DATA { Vec::new() } else { message.to_vec() };
        self.start += HEAD + length;
        self.plain = self.start;
        if kind == DATA {
            return Ok(Some(content));
        }
        self.take(kind, &message, open)?;
        Ok(Some(0))
    }

    /// A record that is for this end of the channel.
    fn take(&mut self, kind: u8, content: &[u8], open: &Open) -> io::Result<()> {
        self.barren += 1;
        match kind {
            ALERT => {
                alert(content)?;
                self.over = true;
            }
            HANDSHAKE => {
                let told = told(content)?;
                if told.renewed {
                    self.direction = Direction::new(lock(&open.keys).next_receive().map_err(io::Error::other)?)?;
                }
                if told.asked {
                    open.renew.store(true, Ordering::Release);
                }
            }
            HEARTBEAT => match Heartbeat::decode(content)? {
                // The last one is answered: it says all that those before it would.
                Heartbeat::Request(number) => open.asked.store(number, Ordering::Release),
                Heartbeat::Response(number) if number > open.batches.load(Ordering::Acquire) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a TLS heartbeat answers what was not asked",
                    ));
                }
                Heartbeat::Response(number) => {
                    if open.read.fetch_max(number, Ordering::AcqRel) < number {
                        // It moves things on.
                        self.barren = 0;
                    }
                    open.stalled.store(false, Ordering::Release);
                }
            },
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS record of an unknown kind")),
        }
        Ok(())
    }

    /// Where to read to: room for a whole record at least, from where the unopened bytes end.
    fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.plain, self.end) = (0, 0, 0);
        }
        if self.start > 0 && self.buf.len() - self.end < HEAD + RECORD {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            (self.start, self.plain) = (0, 0);
        }
        if self.buf.len() < FIRST_INPUT || (self.filled && self.buf.len() < MOST_INPUT) {
            let size = (self.buf.len() * 4).clamp(FIRST_INPUT, MOST_INPUT);
            self.buf.resize(size.max(self.end + FIRST_INPUT), 0);
        } else if self.end == self.buf.len() {
            self.buf.resize(self.end + HEAD + RECORD, 0);
        }
        &mut self.buf[self.end..]
    }

    /// Whoever reads is about to wait: bulk that came once does not keep its memory for the lane's life.
    pub(super) fn rest(&mut self) {
        if self.start == self.end && self.tail == 0 && self.buf.len() > FIRST_INPUT {
            self.waits += 1;
            if self.waits > SMALL_WAITS {
                self.waits = 0;
                self.filled = false;
                self.buf = Vec::new();
                (self.start, self.plain, self.end) = (0, 0, 0);
            }
        }
    }

    /// Bytes of memory that it holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.buf.capacity()
    }

    /// Whether something can be delivered without the lane.
    pub(super) fn has_something(&self) -> bool {
        let received = &self.buf[self.start + self.tail.min(self.end - self.start)..self.end];
        let whole = received.first_chunk::<HEAD>().map(|h| HEAD + usize::from(u16::from_be_bytes([h[3], h[4]])));
        self.start < self.plain
            || self.over
            || self.failed.is_some()
            || whole.is_some_and(|whole| received.len() >= whole)
    }
}

fn alert(alert: &[u8]) -> io::Result<()> {
    match alert {
        [_, 0] => Ok(()),
        [_, code] => {
            let (why, message) = explain(&Error::AlertReceived(AlertDescription::from(*code)));
            Err(match why {
                Refused::Handshake => io::Error::new(io::ErrorKind::ConnectionAborted, message),
                _ => io::Error::other(Untrusted(message)),
            })
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS alert of another length than two bytes")),
    }
}

/// What the other side's messages after the handshake ask for.
#[derive(Default)]
struct Told {
    /// Its keys have changed.
    renewed: bool,
    /// Ours are to.
    asked: bool,
}

fn told(mut messages: &[u8]) -> io::Result<Told> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "a TLS message that cannot come after the handshake");
    let mut told = Told::default();
    while let Some((&[kind, a, b, c], rest)) = messages.split_first_chunk::<4>() {
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let (message, rest) = rest.split_at_checked(length).ok_or_else(bad)?;
        match (kind, message) {
            // A ticket: sessions outlive connections by their own means.
            (4, _) => {}
            // Nothing may follow within the record: it would be sealed with the new keys.
            (24, [asked @ (0 | 1)]) if rest.is_empty() => (told.renewed, told.asked) = (true, *asked == 1),
            _ => return Err(bad()),
        }
        messages = rest;
    }
    if messages.is_empty() { Ok(told) } else { Err(bad()) }
}
