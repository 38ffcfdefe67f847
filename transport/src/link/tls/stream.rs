//! A TLS channel as a lane's stream.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use rustls::pki_types::{DnsName, ServerName};
use rustls::{AlertDescription, CertificateError, Error};

use super::Untrusted;
use super::config::{TlsClient, TlsServer};
use super::handshake::{Established, Handshake, Keys, Progress};
use super::opener::Opener;
use super::record::Direction;
use super::sealer::Sealer;
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
    /// The other side has said something.
    heard: AtomicBool,
    role: Role,
    /// Both ends are on one host.
    by_pages: bool,
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
pub(super) struct Open {
    sealer: Mutex<Sealer>,
    opener: Mutex<Opener>,
    pub(super) keys: Mutex<Keys>,
    channel: Channel,
    /// Sealed bytes wait to be sent.
    pub(super) unsent: AtomicBool,
    /// The other side wants this one to change its keys.
    pub(super) renew: AtomicBool,
    /// What the other side last asked whether it was read; 0: nothing that is not answered.
    pub(super) asked: AtomicU64,
    /// Batches of records that were handed over as pages, and how many of them the other side has read, as it answered.
    pub(super) batches: AtomicU64,
    pub(super) read: AtomicU64,
    /// Nothing is sealed until more was read.
    pub(super) stalled: AtomicBool,
}

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

    /// Both ends are on one host: what is large is handed over as pages where it can be, see [`super::ring`]. A server's lane does so once
    /// it is a bulk lane: one that carries replies is not read while these wait, and who does not read hears no answer.
    pub(crate) fn by_pages(&mut self) {
        self.by_pages = true;
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
        Self {
            lane,
            handshake,
            open,
            greeting: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            role,
            by_pages: false,
        }
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
        let (handshake, progress) = handshake.drive(&*self.lane, &self.heard)?;
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
            if self.by_pages && matches!(self.role, Role::Client) {
                lock(&open.sealer).by_pages();
            }
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
            Some(open) => {
                let stalled = open.stalled.load(Ordering::Acquire);
                // A server that does not read for now holds a slice, and not for long.
                let listens = stalled && matches!(self.role, Role::Client);
                (read || listens, write && !stalled || self.has_unsent())
            }
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
        let received = lock(&open.opener).receive(&*self.lane, open, first, then);
        if open.asked.load(Ordering::Acquire) != 0 {
            lock(&open.sealer).answer(&*self.lane, open)?;
        }
        received
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
                sealer.answer(&*self.lane, open)?;
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
        let held = self.open.get().is_some_and(|open| {
            // Whoever has the sealer now, sends. One that waits for an answer goes on with the memory that it has.
            if !open.stalled.load(Ordering::Acquire)
                && let Ok(mut sealer) = open.sealer.try_lock()
            {
                sealer.rest();
            }
            let mut opener = lock(&open.opener);
            opener.rest();
            read && opener.has_something()
        });
        // What is waited for, not on which descriptor and how. Asked in any case: what is armed is disarmed.
        let (read, write) = self.wants(read, write);
        self.lane.arm(read, write) || held
    }

    fn disarm(&self) {
        self.lane.disarm();
    }

    fn begin_bulk(&self) {
        self.lane.begin_bulk();
        if let Some(open) = self.open.get().filter(|_| self.by_pages) {
            lock(&open.sealer).by_pages();
        }
    }

    fn channel(&self) -> Channel {
        self.open.get().map(|open| open.channel.clone()).unwrap_or_default()
    }

    fn is_open(&self) -> bool {
        self.open.get().is_some()
    }

    fn is_sealed(&self) -> bool {
        true
    }

    fn ready(&self) -> Ready {
        self.lane.ready()
    }

    fn finish(&self) {
        if let Some(open) = self.open.get() {
            let mut sealer = lock(&open.sealer);
            // A lane that is gone has nothing left to finish.
            if sealer.finish(&*self.lane, open).is_err() {
                tracing::debug!("a channel's end was not said");
            }
        }
        self.lane.finish();
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // Too slow, or gone in the middle: counted, but not worth a line each. Who said nothing only looked whether anybody is here.
        if let Role::Server { guard, counted, .. } = &self.role
            && self.heard.load(Ordering::Acquire)
            && !counted.load(Ordering::Acquire)
        {
            guard.count(Refused::Handshake);
        }
    }
}

impl Open {
    fn new(done: Established, from: Option<Arc<str>>) -> io::Result<Self> {
        let Established { keys, send, receive, rest, channel, .. } = done;
        Ok(Self {
            sealer: Mutex::new(Sealer::new(Direction::new(send)?)),
            opener: Mutex::new(Opener::new(Direction::new(receive)?, rest)),
            keys: Mutex::new(keys),
            channel: Channel { from, ..channel },
            unsent: AtomicBool::new(false),
            renew: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            read: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
        })
    }
}

/// Why a handshake has failed, for people.
pub(super) fn explain(error: &Error) -> (Refused, String) {
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::super::heartbeat::Heartbeat;
    use super::super::record::HEARTBEAT;
    use super::*;

    fn pair() -> (TlsStream, TlsStream) {
        let folder = tempfile::tempdir().unwrap();
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        let CertifiedKey { cert: made, signing_key } = generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        std::fs::write(&cert, made.pem()).unwrap();
        std::fs::write(&key, signing_key.serialize_pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        [&near, &far].into_iter().for_each(|s| s.set_nonblocking(true).unwrap());
        let client = TlsStream::client(Box::new(near), &TlsClient::load(&cert, None).unwrap(), "localhost").unwrap();
        let tls = TlsServer::load(&cert, &key, None).unwrap();
        (client, TlsStream::server(Box::new(far), &tls, Arc::new(Guard::open()), None).unwrap())
    }

    /// Both handshakes, to their end.
    fn open(client: &TlsStream, server: &TlsStream) {
        while client.open.get().is_none() || server.open.get().is_none() {
            for stream in [client, server] {
                assert_eq!(again(stream.recv(&mut [0], &mut [])), 0);
            }
        }
    }

    fn again(result: io::Result<usize>) -> usize {
        match result {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            other => other.unwrap(),
        }
    }

    fn held(stream: &TlsStream) -> usize {
        let open = stream.open.get().unwrap();
        lock(&open.sealer).held() + lock(&open.opener).held()
    }

    fn rest(streams: [&TlsStream; 2]) {
        for _ in 0..100 {
            for stream in streams {
                stream.arm(true, false);
                stream.disarm();
            }
        }
    }

    /// A channel that had carried bulk once kept three quarters of a megabyte for as long as it lived.
    #[test]
    fn a_channel_that_lies_idle_gives_its_memory_back() {
        let (client, server) = pair();
        let (bytes, mut got) = (vec![7; 1 << 20], vec![0; 1 << 20]);
        let (mut sent, mut come) = (0, 0);
        while come < bytes.len() {
            // Records that do not fit where they belong are held: what comes in small pieces fills the buffer.
            sent += again(client.send(&[IoSlice::new(&bytes[sent..])]));
            client.push().unwrap();
            let end = (come + 10_000).min(got.len());
            come += again(server.recv(&mut got[come..end], &mut []));
        }
        assert!(got == bytes);
        assert!(held(&client) > 100_000 && held(&server) > 30_000, "{} {}", held(&client), held(&server));
        rest([&client, &server]);
        assert!(held(&client) + held(&server) < 32_000, "{} {}", held(&client), held(&server));
        // And it goes on.
        client.send(&[IoSlice::new(b"more")]).unwrap();
        let n = loop {
            match again(server.recv(&mut got, &mut [])) {
                0 => {}
                n => break n,
            }
        };
        assert_eq!(&got[..n], b"more");
    }

    /// What was handed over is read by the other process where it lies: it stays there until that process has said that it was read,
    /// and until then no more is taken than there is room for.
    #[test]
    fn pages_that_were_handed_over_stay_until_they_were_read() {
        let (mut client, server) = pair();
        client.by_pages();
        open(&client, &server);
        let bytes: Vec<u8> = (0..9_000_000u32).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
        let (mut got, mut sent, mut come, mut stalls) = (vec![0; bytes.len()], 0, 0, 0);
        while come < bytes.len() {
            loop {
                let n = again(client.send(&[IoSlice::new(&bytes[sent..])]));
                sent += n;
                if n == 0 {
                    break;
                }
            }
            assert!(sent - come < 3 << 20, "{sent} sent, {come} read");
            if client.open.get().unwrap().stalled.load(Ordering::Relaxed) {
                stalls += 1;
                let waits = client.interest(false, true);
                assert!(waits.read && !waits.write, "only an answer moves it on");
                rest([&client, &server]);
                assert!(held(&client) >= 2 << 20, "what was not read is not given up");
            }
            // As much as is there, or a part of it.
            let part = if stalls % 2 == 0 { 100_000 } else { bytes.len() };
            loop {
                let end = (come + part).min(bytes.len());
                let n = again(server.recv(&mut got[come..end], &mut []));
                come += n;
                if n == 0 || n < part {
                    break;
                }
            }
            assert_eq!(again(client.recv(&mut [0], &mut [])), 0, "answers are not for who reads");
            client.push().unwrap();
        }
        assert!(got == bytes);
        assert!(stalls > 3, "{stalls}");
        rest([&client, &server]);
        assert!(held(&client) < 16_000, "{}", held(&client));
        // What goes on goes by another ring.
        got.fill(0);
        let (mut sent, mut come) = (0, 0);
        while come < 1 << 20 {
            sent += again(client.send(&[IoSlice::new(&bytes[sent..1 << 20])]));
            come += again(server.recv(&mut got[come..1 << 20], &mut []));
            assert_eq!(again(client.recv(&mut [0], &mut [])), 0);
        }
        assert!(got[..1 << 20] == bytes[..1 << 20]);
    }

    /// A server hands pages over on bulk lanes alone, and while it holds a slice it does not look for an answer that it would not read.
    #[test]
    fn a_server_hands_pages_over_once_its_lane_is_a_bulk_lane() {
        let (client, mut server) = pair();
        server.by_pages();
        open(&client, &server);
        let bytes: Vec<u8> = (0..4_000_000u32).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
        let has_ring = |bulk: bool| {
            let (mut got, mut sent, mut come) = (vec![0; bytes.len()], 0, 0);
            let mut most = 0;
            while come < bytes.len() {
                sent += again(server.send(&[IoSlice::new(&bytes[sent..])]));
                most = most.max(held(&server));
                if server.open.get().unwrap().stalled.load(Ordering::Relaxed) {
                    assert!(bulk && !server.interest(false, true).read && server.interest(true, true).read);
                }
                let end = (come + 300_000).min(got.len());
                come += again(client.recv(&mut got[come..end], &mut []));
                client.push().unwrap();
                assert_eq!(again(server.recv(&mut [0], &mut [])), 0, "answers are not for who reads");
                server.push().unwrap();
            }
            assert!(got == bytes);
            most >= 2 << 20
        };
        assert!(!has_ring(false));
        server.begin_bulk();
        assert!(has_ring(true));
    }

    #[test]
    fn an_answer_to_no_question_ends_the_channel() {
        let (client, server) = pair();
        open(&client, &server);
        let says = client.open.get().unwrap();
        lock(&says.sealer).say(HEARTBEAT, &Heartbeat::Response(1).encode()).unwrap();
        client.push().unwrap();
        let error = loop {
            match server.recv(&mut [0], &mut []) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => break other.unwrap_err(),
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
