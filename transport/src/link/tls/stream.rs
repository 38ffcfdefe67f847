//! A TLS channel as a lane's stream.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use rustls::pki_types::{DnsName, ServerName};
use rustls::{AlertDescription, CertificateError, Error};

use super::Untrusted;
use super::config::{TlsClient, TlsServer};
use super::handshake::{Established, Handshake, Keys, Progress};
use super::record::{ALERT, DATA, Direction, HANDSHAKE, HEAD, PLAIN, RECORD, body_len};
use crate::auth::{Channel, Guard, Refused};
use crate::link::wait::Interest;
use crate::link::{Ready, Stream};

/// A lane that is a TLS channel. The handshake goes on with every call, without waiting; until it is over nothing is received, and
/// no more than a greeting is taken to be sent.
pub struct TlsStream {
    lane: Box<dyn Stream>,
    handshake: Mutex<Option<Box<Handshake>>>,
    open: OnceLock<Open>,
    /// A handshake's words wait to be sent.
    greeting: AtomicBool,
    role: Role,
}

enum Role {
    Client,
    /// Whoever is refused is told by this guard.
    Server {
        guard: Arc<Guard>,
        from: Option<Arc<str>>,
        /// It was counted already, or has come in.
        counted: AtomicBool,
    },
}

/// A channel whose handshake is over.
struct Open {
    sealer: Mutex<Sealer>,
    opener: Mutex<Opener>,
    keys: Mutex<Keys>,
    channel: Channel,
    /// Sealed bytes wait to be sent.
    unsent: AtomicBool,
    /// The other side wants this one to change its keys.
    renew: AtomicBool,
}

struct Sealer {
    direction: Direction,
    /// Sealed; sent up to `sent`.
    out: Vec<u8>,
    sent: usize,
    finished: bool,
}

struct Opener {
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
    /// What is told with the next call.
    failed: Option<io::Error>,
}

/// What is sealed before the lane is asked to take it: little enough to be in the cache still.
const BATCH: usize = 8 * PLAIN;
/// Received bytes that are held: from enough for small frames to enough for bulk.
const FIRST_INPUT: usize = 4 << 10;
const MOST_INPUT: usize = 256 << 10;
/// What a refused peer may still send before its lane is closed on it.
const MOST_AWAY: usize = 1 << 20;

impl TlsStream {
    /// A client's end of a fresh lane to `host`.
    ///
    /// # Errors
    /// The name cannot be one that a certificate is for.
    pub fn client(lane: Box<dyn Stream>, tls: &TlsClient, host: &str) -> io::Result<Self> {
        let name = match host.parse::<IpAddr>() {
            Ok(address) => ServerName::IpAddress(address.into()),
            Err(_) => ServerName::DnsName(DnsName::try_from(host.to_owned()).map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("no certificate can be for '{host}'"))
            })?),
        };
        let handshake = Handshake::client(tls, name).map_err(io::Error::other)?;
        Ok(Self::new(lane, handshake, Role::Client))
    }

    /// A server's end of a lane that was accepted, `from` where.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn server(
        lane: Box<dyn Stream>,
        tls: &TlsServer,
        guard: Arc<Guard>,
        from: Option<Arc<str>>,
    ) -> io::Result<Self> {
        let handshake = Handshake::server(tls).map_err(io::Error::other)?;
        Ok(Self::new(lane, handshake, Role::Server { guard, from, counted: AtomicBool::new(false) }))
    }

    fn new(lane: Box<dyn Stream>, handshake: Handshake, role: Role) -> Self {
        let (handshake, open) = (Mutex::new(Some(Box::new(handshake))), OnceLock::new());
        Self { lane, handshake, open, greeting: AtomicBool::new(false), role }
    }

    /// The channel, if its handshake is over, after as much of it as can be done now.
    fn established(&self) -> io::Result<&Open> {
        if let Some(open) = self.open.get() {
            return Ok(open);
        }
        let mut slot = lock(&self.handshake);
        // Another thread may have gone the last step.
        let Some(handshake) = slot.take() else {
            return self.open.get().ok_or_else(|| io::ErrorKind::ConnectionAborted.into());
        };
        if handshake.failure().is_some() {
            return self.send_away(handshake, &mut slot);
        }
        let (handshake, progress) = handshake.drive(&*self.lane)?;
        if let Some(handshake) = handshake {
            self.greeting.store(handshake.has_output(), Ordering::Release);
            if let Some(error) = handshake.failure() {
                let error = self.refused(error);
                if matches!(self.role, Role::Client) {
                    return Err(error);
                }
                tracing::debug!(%error, "a handshake failed");
            }
            *slot = Some(handshake);
        }
        if let Progress::Done(mut done) = progress {
            let early = std::mem::take(&mut done.early);
            let open = Open::new(*done, self.from())?;
            if !early.is_empty() {
                lock(&open.sealer).send(&*self.lane, &open, &[IoSlice::new(&early)])?;
            }
            if let Role::Server { counted, .. } = &self.role {
                counted.store(true, Ordering::Release);
            }
            self.greeting.store(false, Ordering::Release);
            return Ok(self.open.get_or_init(|| open));
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// What to wait for of the lane, for whoever waits for this: a handshake reads and writes whatever that is.
    fn wants(&self, read: bool, write: bool) -> (bool, bool) {
        match self.open.get() {
            Some(_) => (read, write || self.has_unsent()),
            None => (true, self.has_unsent()),
        }
    }

    fn from(&self) -> Option<Arc<str>> {
        match &self.role {
            Role::Client => None,
            Role::Server { from, .. } => from.clone(),
        }
    }

    /// Counts and logs what went wrong with a handshake, and says it.
    fn refused(&self, error: &Error) -> io::Error {
        let (why, message) = explain(error);
        if let Role::Server { guard, counted, .. } = &self.role {
            counted.store(true, Ordering::Release);
            let channel = Channel { from: self.from(), ..Channel::default() };
            guard.refuse(why, &channel, "", &message, Instant::now());
        }
        match why {
            Refused::Handshake => io::Error::new(io::ErrorKind::InvalidData, message),
            _ => io::Error::other(Untrusted(message)),
        }
    }

    /// The last words of a failed handshake go out; what comes is read away, since closing a socket with unread bytes would
    /// take the last words back.
    fn send_away(&self, mut handshake: Box<Handshake>, slot: &mut Option<Box<Handshake>>) -> io::Result<&Open> {
        handshake.flush(&*self.lane)?;
        self.greeting.store(handshake.has_output(), Ordering::Release);
        if !handshake.has_output() {
            self.lane.finish();
        }
        *slot = Some(handshake);
        let mut away = [0; 4096];
        let mut total = 0;
        loop {
            match self.lane.recv(&mut away, &mut []) {
                Ok(0) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Ok(n) if total + n <= MOST_AWAY => total += n,
                Ok(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Err(e) => return Err(e),
            }
        }
    }
}

impl Stream for TlsStream {
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        let open = self.established()?;
        lock(&open.opener).receive(&*self.lane, open, first, then)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.established() {
            Ok(open) => lock(&open.sealer).send(&*self.lane, open, bufs),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let held = lock(&self.handshake).as_mut().is_some_and(|handshake| handshake.hold(bufs));
                if held { Ok(bufs.iter().map(|b| b.len()).sum()) } else { Err(e) }
            }
            Err(e) => Err(e),
        }
    }

    fn has_unsent(&self) -> bool {
        self.open.get().map_or(&self.greeting, |open| &open.unsent).load(Ordering::Acquire)
    }

    fn push(&self) -> io::Result<bool> {
        match self.established() {
            Ok(open) => {
                let mut sealer = lock(&open.sealer);
                sealer.flush(&*self.lane, open)?;
                Ok(sealer.is_empty())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(!self.has_unsent()),
            Err(e) => Err(e),
        }
    }

    fn interest(&self, read: bool, write: bool) -> Interest {
        let (read, write) = self.wants(read, write);
        self.lane.interest(read, write)
    }

    fn arm(&self, read: bool, write: bool) -> bool {
        let held = read && self.open.get().is_some_and(|open| lock(&open.opener).has_something());
        // What is waited for, not on which descriptor and how. Asked in any case: what is armed is disarmed.
        let (read, write) = self.wants(read, write);
        self.lane.arm(read, write) || held
    }

    fn disarm(&self) {
        self.lane.disarm();
    }

    fn begin_bulk(&self) {
        self.lane.begin_bulk();
    }

    fn channel(&self) -> Channel {
        self.open.get().map(|open| open.channel.clone()).unwrap_or_default()
    }

    fn ready(&self) -> Ready {
        self.lane.ready()
    }

    fn finish(&self) {
        if let Some(open) = self.open.get() {
            let mut sealer = lock(&open.sealer);
            // A lane that is gone has nothing left to finish.
            if sealer.say(ALERT, &[1, 0]).and_then(|()| sealer.flush(&*self.lane, open)).is_err() {
                tracing::debug!("a channel's end was not said");
            }
            sealer.finished = true;
        }
        self.lane.finish();
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // Silent, too slow, or gone in the middle: counted, but not worth a line each.
        if let Role::Server { guard, counted, .. } = &self.role
            && !counted.load(Ordering::Acquire)
        {
            guard.count(Refused::Handshake);
        }
    }
}

impl Open {
    fn new(done: Established, from: Option<Arc<str>>) -> io::Result<Self> {
        let Established { keys, send, receive, rest, channel, .. } = done;
        let sealer = Sealer { direction: Direction::new(send)?, out: Vec::new(), sent: 0, finished: false };
        let end = rest.len();
        let opener = Opener {
            direction: Direction::new(receive)?,
            buf: rest,
            start: 0,
            plain: 0,
            tail: 0,
            end,
            filled: false,
            over: false,
            failed: None,
        };
        Ok(Self {
            sealer: Mutex::new(sealer),
            opener: Mutex::new(opener),
            keys: Mutex::new(keys),
            channel: Channel { from, ..channel },
            unsent: AtomicBool::new(false),
            renew: AtomicBool::new(false),
        })
    }
}

impl Sealer {
    fn send(&mut self, lane: &dyn Stream, open: &Open, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush(lane, open)?;
        if !self.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.direction.is_worn() || open.renew.swap(false, Ordering::AcqRel) {
            self.renew(open)?;
        }
        let all: usize = bufs.iter().map(|b| b.len()).sum();
        let mut parts = Parts { bufs, at: 0 };
        let mut taken = 0;
        while taken < all.min(BATCH) {
            let length = (all - taken).min(PLAIN);
            self.direction.seal(DATA, parts.take(length), length, &mut self.out)?;
            taken += length;
        }
        // What is sealed counts as sent: the rest of it goes with the next call.
        self.flush(lane, open)?;
        Ok(taken)
    }

    /// Says that keys change, and changes them.
    fn renew(&mut self, open: &Open) -> io::Result<()> {
        // KeyUpdate, the other side need not change its own.
        self.say(HANDSHAKE, &[24, 0, 0, 1, 0])?;
        self.direction = Direction::new(lock(&open.keys).next_send().map_err(io::Error::other)?)?;
        Ok(())
    }

    fn say(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        self.direction.seal(kind, std::iter::once(bytes), bytes.len(), &mut self.out)
    }

    fn flush(&mut self, lane: &dyn Stream, open: &Open) -> io::Result<()> {
        while !self.is_empty() {
            match lane.send(&[IoSlice::new(&self.out[self.sent..])]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    open.unsent.store(true, Ordering::Release);
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.sent = 0;
        open.unsent.store(false, Ordering::Release);
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.sent == self.out.len()
    }
}

impl Opener {
    fn receive<'a>(
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
            match self.next_record(open) {
                Ok(true) => continue,
                Ok(false) => {}
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
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Opens the next record, if all of it is there.
    fn next_record(&mut self, open: &Open) -> io::Result<bool> {
        let received = &mut self.buf[self.start..self.end];
        let Some((head, rest)) = received.split_first_chunk_mut::<HEAD>() else { return Ok(false) };
        let length = body_len(*head)?;
        let Some(body) = rest.get_mut(..length) else { return Ok(false) };
        let (content, kind) = self.direction.open(body)?;
        self.start += HEAD;
        match kind {
            DATA => {
                self.plain = self.start + content;
                self.tail = length - content;
                return Ok(true);
            }
            ALERT => self.alert(&self.buf[self.start..self.start + content])?,
            HANDSHAKE => {
                let message = self.start..self.start + content;
                let told = told(&self.buf[message])?;
                if told.renewed {
                    self.direction = Direction::new(lock(&open.keys).next_receive().map_err(io::Error::other)?)?;
                }
                if told.asked {
                    open.renew.store(true, Ordering::Release);
                }
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS record of an unknown kind")),
        }
        if kind == ALERT {
            self.over = true;
        }
        self.start += length;
        self.plain = self.start;
        Ok(true)
    }

    fn alert(&self, alert: &[u8]) -> io::Result<()> {
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

    /// Whether something can be delivered without the lane.
    fn has_something(&self) -> bool {
        let received = &self.buf[self.start + self.tail.min(self.end - self.start)..self.end];
        let whole = received.first_chunk::<HEAD>().map(|h| HEAD + usize::from(u16::from_be_bytes([h[3], h[4]])));
        self.start < self.plain
            || self.over
            || self.failed.is_some()
            || whole.is_some_and(|whole| received.len() >= whole)
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

/// Buffers, cut where records are.
struct Parts<'a, 'b> {
    bufs: &'a [IoSlice<'b>],
    /// Of the first.
    at: usize,
}

impl<'a> Parts<'a, '_> {
    /// The next `length` bytes.
    fn take(&mut self, mut length: usize) -> impl Iterator<Item = &'a [u8]> {
        std::iter::from_fn(move || {
            while length > 0 {
                let (buf, rest) = self.bufs.split_first()?;
                let n = length.min(buf.len() - self.at);
                let bytes = &buf[self.at..self.at + n];
                self.at += n;
                length -= n;
                if self.at == buf.len() {
                    (self.bufs, self.at) = (rest, 0);
                }
                if n > 0 {
                    return Some(bytes);
                }
            }
            None
        })
    }
}

/// Why a handshake has failed, for people.
fn explain(error: &Error) -> (Refused, String) {
    use AlertDescription as Alert;
    let certificate = |reason: &str| (Refused::Certificate, format!("TLS: {reason}"));
    match error {
        Error::NoCertificatesPresented => (
            Refused::NoCertificate,
            "TLS: the server asks for a certificate, and the client has shown none: give --tls-cert and --tls-key"
                .into(),
        ),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            certificate("the other side's certificate has expired: renew it")
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            certificate("the other side's certificate is not valid yet: look at both clocks")
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => certificate(
            "the other side's certificate was not signed by the authority that is trusted here: compare --ca or --client-ca",
        ),
        Error::InvalidCertificate(other) => {
            certificate(&format!("the other side's certificate does not do: {other:?}"))
        }
        Error::AlertReceived(Alert::CertificateRequired) => (
            Refused::NoCertificate,
            "TLS: the server asks for a client certificate: give --tls-cert and --tls-key".into(),
        ),
        Error::AlertReceived(Alert::CertificateExpired) => {
            certificate("this side's certificate has expired, says the other: renew it")
        }
        Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => {
            certificate("this side's certificate is by an authority that the other does not trust")
        }
        Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown),
        ) => certificate(&format!("the other side does not take this side's certificate ({alert:?})")),
        other => (Refused::Handshake, format!("TLS: {other}; does the other side speak TLS 1.3 there?")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
