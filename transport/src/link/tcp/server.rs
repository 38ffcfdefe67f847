//! The server's lanes: one task a socket.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::socket::{TcpSink, path_of, recv, recv_two, tune};
use crate::connection::{
    BulkIn, BulkLane, ControlLane, Directory, Driver, LaneEnd, Peer, Service, Settings, Step, Want,
};
use crate::uri::Uri;
use crate::wire::{ErrorCode, RemoteError};

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Without authentication nobody but this machine may connect.
    #[error(
        "refusing to listen on {0}: without authentication the server is for this machine alone; listen on 127.0.0.1 or [::1], \
         or reach it through an SSH tunnel (tokens and certificates are not in this version)"
    )]
    NotLoopback(SocketAddr),
    /// The system refuses.
    #[error("cannot listen on {uri}: {source}; is another server running there?")]
    Io {
        /// The address asked for.
        uri: Uri,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound address.
#[derive(Debug)]
pub struct Listener {
    inner: tokio::net::TcpListener,
}

impl Listener {
    /// Binds. Call within a tokio runtime.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn bind(uri: &Uri) -> Result<Self, Refusal> {
        let failed = |source| Refusal::Io { uri: uri.clone(), source };
        let Uri::Tcp { host, port } = uri;
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let mut addresses = (host.as_str(), *port).to_socket_addrs().map_err(failed)?;
        let address = addresses.next().ok_or_else(|| failed(none()))?;
        if !address.ip().is_loopback() {
            return Err(Refusal::NotLoopback(address));
        }
        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            // A burst of thousands of clients is queued rather than refused; the kernel caps it by net.core.somaxconn.
            socket.listen(16_384)?;
            tokio::net::TcpListener::from_std(socket.into())
        };
        Ok(Self { inner: bind().map_err(failed)? })
    }

    /// Where it listens, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// The system's.
    pub fn uri(&self) -> io::Result<Uri> {
        let address = self.inner.local_addr()?;
        Ok(Uri::Tcp { host: address.ip().to_string(), port: address.port() })
    }
}

/// Serves a [`Service`] over TCP.
pub struct Server<S: Service> {
    service: Arc<S>,
    directory: Arc<Directory>,
    /// Lanes that poll right now: never as many as there are cores.
    polling: Arc<AtomicUsize>,
    cores: usize,
}

impl<S: Service> Server<S> {
    /// A server of this service.
    pub fn new(service: Arc<S>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { service, directory: Arc::default(), polling: Arc::default(), cores }
    }

    /// The open connections.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Accepts connections until the future is dropped. The lanes go on until their clients leave.
    pub async fn run(&self, listener: Listener) {
        loop {
            match listener.inner.accept().await {
                Ok((stream, _)) => self.accept(stream),
                Err(error) => {
                    // Out of descriptors: those who wait are served when others leave.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn accept(&self, stream: TcpStream) {
        let socket = match stream.into_std() {
            Ok(stream) => LaneSocket { io: Arc::new(stream), watch: None },
            Err(error) => return tracing::warn!(%error, "cannot accept a connection"),
        };
        let lane = Lane {
            service: self.service.clone(),
            directory: self.directory.clone(),
            polling: self.polling.clone(),
            // On one core a poll only takes time from the client.
            most_polling: self.cores / 2,
            socket,
        };
        tokio::spawn(async move {
            match lane.run().await {
                Ok(LaneEnd::Refused(error)) => tracing::info!(%error, "a connection was ended"),
                Ok(LaneEnd::Left) => {}
                Err(error) => tracing::debug!(%error, "a connection broke"),
            }
        });
    }
}

struct Lane<S: Service> {
    service: Arc<S>,
    directory: Arc<Directory>,
    polling: Arc<AtomicUsize>,
    most_polling: usize,
    socket: LaneSocket,
}

impl Driver for Notify {
    fn wake(&self) {
        self.notify_one();
    }
}

/// How long a client may take to read why its connection ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Reads in a row before other tasks get a turn.
const TURN: usize = 64;

impl<S: Service> Lane<S> {
    async fn run(mut self) -> io::Result<LaneEnd> {
        tune(&SockRef::from(&*self.socket.io), path_of(&self.socket.io))?;
        let wake = Arc::new(Notify::new());
        let sink = Box::new(TcpSink::new(self.socket.io.clone()));
        let (service, directory) = (self.service.clone(), self.directory.clone());
        let Some(mut control) = ControlLane::new(service, directory, sink, wake.clone(), Instant::now()) else {
            return Ok(LaneEnd::Left);
        };
        match self.control(&mut control, &wake).await {
            Ok(Step::Bulk(peer, lane)) => {
                // It counts as part of its connection from here on.
                drop(control);
                let wake = Arc::new(Notify::new());
                if !peer.add_lane(lane, wake.clone(), self.service.settings().max_lanes as usize) {
                    return Ok(LaneEnd::Left);
                }
                let end = self.bulk(&peer, &wake).await;
                peer.remove_lane(lane);
                // A lane that breaks takes its connection down: the client resumes the session and sends what is missing.
                peer.close();
                end.map(|()| LaneEnd::Left)
            }
            Ok(Step::End(end)) => {
                control.closed(Instant::now());
                Ok(end)
            }
            Ok(Step::Continue) => Ok(LaneEnd::Left),
            Err(error) => {
                control.closed(Instant::now());
                Err(error)
            }
        }
    }

    fn pace(&self) -> Pace {
        Pace::new(self.service.settings().spin, self.polling.clone(), self.most_polling)
    }

    async fn control(&mut self, lane: &mut ControlLane<S>, wake: &Notify) -> io::Result<Step> {
        let mut pace = self.pace();
        let mut turn = 0;
        loop {
            let held = lane.is_held();
            let got = match (held, lane.has_pending()) {
                (true, _) => Err(io::ErrorKind::WouldBlock.into()),
                (false, true) => Ok(None),
                (false, false) => recv(&*self.socket.io, lane.space()).map(Some),
            };
            match got {
                Ok(Some(0)) => return Ok(Step::End(LaneEnd::Left)),
                Ok(n) => {
                    let now = Instant::now();
                    pace.arrived(now);
                    let mut step = lane.filled(n.unwrap_or(0), now);
                    turn += 1;
                    if turn % TURN == 0 {
                        // A lane that never falls idle is held to its times, and gets rid of its replies, all the same.
                        if let (Step::Continue, true) = (&step, now >= lane.deadline()) {
                            step = lane.timeout(now);
                        }
                        if let Some(peer) = lane.peer() {
                            peer.flush()?;
                        }
                        tokio::task::yield_now().await;
                    }
                    match step {
                        Step::Continue => {}
                        Step::Bulk(..) => return Ok(step),
                        Step::End(_) => {
                            self.drain_out(lane.peer()).await;
                            return Ok(step);
                        }
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let closed = lane.peer().is_some_and(|p| p.is_closed());
                    if closed {
                        self.drain_out(lane.peer()).await;
                        return Ok(Step::End(LaneEnd::Left));
                    }
                    if pace.poll_on() {
                        self.socket.unwatch();
                        continue;
                    }
                    self.park(lane, wake, held).await?;
                    if Instant::now() >= lane.deadline()
                        && let step @ (Step::End(_) | Step::Bulk(..)) = lane.timeout(Instant::now())
                    {
                        self.drain_out(lane.peer()).await;
                        return Ok(step);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until there may be something to read, something to write, or a deadline to keep.
    #[expect(
        clippy::needless_pass_by_ref_mut,
        reason = "a shared reference to a lane is not Send, and the future must be"
    )]
    async fn park(&mut self, lane: &mut ControlLane<S>, wake: &Notify, held: bool) -> io::Result<()> {
        let socket = self.socket.watch()?;
        let writing = match lane.peer() {
            Some(peer) if peer.backlog() > 0 => !peer.flush()?,
            _ => false,
        };
        let deadline = lane.deadline().into();
        let interest = match (held, writing) {
            (true, _) => Interest::WRITABLE,
            (false, true) => Interest::READABLE | Interest::WRITABLE,
            (false, false) => Interest::READABLE,
        };
        tokio::select! {
            ready = socket.ready(interest) => {
                let mut ready = ready?;
                // The reactor believes in a readiness until it is told otherwise: bytes are read past it.
                if ready.ready().is_readable() && !held && would_block(recv_peek(socket.get_ref())) {
                    ready.clear_ready_matching(Ready::READABLE);
                }
                if ready.ready().is_writable() && lane.peer().is_some_and(|p| p.flush().is_ok_and(|all| !all)) {
                    ready.clear_ready_matching(Ready::WRITABLE);
                }
            }
            () = wake.notified() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
        Ok(())
    }

    /// The last words go out, if the client takes them soon.
    async fn drain_out(&mut self, peer: Option<&Arc<Peer>>) {
        let Ok(socket) = self.socket.watch() else { return };
        let until = Instant::now() + LAST_WORDS;
        if let Some(peer) = peer {
            Self::flush_out(peer, socket, until).await;
        }
        // Closing a socket with unread bytes resets it, and what was said last is lost with it: they are read away.
        if SockRef::from(&**socket.get_ref()).shutdown(std::net::Shutdown::Write).is_err() {
            return;
        }
        let mut away = vec![0; 16 << 10];
        while Instant::now() < until {
            match recv(&**socket.get_ref(), &mut away) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    match tokio::time::timeout_at(until.into(), socket.readable()).await {
                        Ok(Ok(mut ready)) => ready.clear_ready_matching(Ready::READABLE),
                        _ => return,
                    }
                }
                Ok(1..) => {}
                _ => return,
            }
        }
    }

    async fn flush_out(peer: &Peer, socket: &AsyncFd<Arc<std::net::TcpStream>>, until: Instant) {
        while !peer.flush().unwrap_or(true) && Instant::now() < until {
            if let Ok(Ok(mut ready)) = tokio::time::timeout(Duration::from_millis(100), socket.writable()).await
                && !peer.flush().unwrap_or(true)
            {
                ready.clear_ready();
            }
        }
    }

    async fn bulk(&mut self, peer: &Arc<Peer>, wake: &Notify) -> io::Result<()> {
        let mut sink = TcpSink::new(self.socket.io.clone());
        let (mut input, mut output) = (BulkIn::new(true), BulkLane::default());
        let Settings { patience, silence, .. } = *self.service.settings();
        // A slice, and what is to be sent, have their time: whoever dribbles holds up others that send the same.
        let (mut slice, mut slice_began) = (0, Instant::now());
        let (mut sent, mut sent_at) = (0, Instant::now());
        let mut pace = self.pace();
        let mut turn = 0;
        loop {
            if peer.is_closed() {
                return Ok(());
            }
            let now = Instant::now();
            while let Some(event) = input.poll(peer.landings(), now) {
                peer.bulk_event(&*self.service, &event, now);
            }
            let mut moved = false;
            let mut held = false;
            match input.want() {
                Want::Hold => held = true,
                Want::Read { first, then } => match recv_two(&*self.socket.io, first, then) {
                    Ok(0) => return Ok(()),
                    Ok(n) => {
                        moved = true;
                        input.filled(n).map_err(|e| {
                            peer.goodbye(e.clone().into());
                            io::Error::new(io::ErrorKind::InvalidData, e)
                        })?;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                },
            }
            let sending = output.is_sending() || !peer.bulk().is_empty();
            let all_sent = !sending || output.flush(peer.bulk(), &mut sink)?;
            if all_sent || output.sent() != sent {
                (sent, sent_at) = (output.sent(), now);
                if sending {
                    peer.moved_on();
                }
            }
            if held || input.begun() != slice {
                (slice, slice_began) = (input.begun(), now);
            }
            turn += 1;
            if moved {
                pace.arrived(now);
                if turn % TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
            let slow = if input.in_slice() && slice_began + patience * 3 < now {
                Some(("a slice took longer", patience * 3))
            } else if !all_sent && sent_at + silence < now {
                Some(("nothing was read of what was asked for for longer", silence))
            } else {
                None
            };
            if let Some((what, than)) = slow {
                let message = format!("{what} than {} s: look at the network", than.as_secs_f32());
                peer.goodbye(RemoteError::new(ErrorCode::TimedOut, message));
                return Ok(());
            }
            if moved {
                continue;
            }
            if !held && all_sent && pace.poll_on() {
                self.socket.unwatch();
                continue;
            }
            self.park_bulk(wake, held, all_sent, input.deadline().unwrap_or(now + patience)).await?;
        }
    }

    async fn park_bulk(&mut self, wake: &Notify, held: bool, all_sent: bool, deadline: Instant) -> io::Result<()> {
        let interest = match (held, all_sent) {
            (true, true) => None,
            (true, false) => Some(Interest::WRITABLE),
            (false, true) => Some(Interest::READABLE),
            (false, false) => Some(Interest::READABLE | Interest::WRITABLE),
        };
        let socket = self.socket.watch()?;
        let ready = async {
            match interest {
                None => std::future::pending().await,
                Some(interest) => socket.ready(interest).await,
            }
        };
        tokio::select! {
            ready = ready => {
                let mut ready = ready?;
                if ready.ready().is_readable() && would_block(recv_peek(socket.get_ref())) {
                    ready.clear_ready_matching(Ready::READABLE);
                }
                if ready.ready().is_writable() && !all_sent && !can_write(socket.get_ref()) {
                    ready.clear_ready_matching(Ready::WRITABLE);
                }
            }
            () = wake.notified() => {}
            () = tokio::time::sleep_until(deadline.into()) => {}
        }
        Ok(())
    }
}

/// A lane's socket, watched by the reactor only while the lane may park.
///
/// A socket that the reactor watches wakes the reactor's thread for every arrival, even while the lane itself polls: on two
/// cores that thread then takes the core of one of the two ends. 64-byte echo, p50: 10.5 us watched, 8.0 us not, where the floor was 7.6.
struct LaneSocket {
    io: Arc<std::net::TcpStream>,
    watch: Option<AsyncFd<Arc<std::net::TcpStream>>>,
}

impl LaneSocket {
    fn watch(&mut self) -> io::Result<&AsyncFd<Arc<std::net::TcpStream>>> {
        match &mut self.watch {
            Some(watch) => Ok(watch),
            none => {
                // SAFETY: the `Arc` keeps the socket open for as long as the registration lives, and its descriptor never
                // changes.
                let watch = unsafe { AsyncFd::register(self.io.clone()) }?;
                Ok(none.insert(watch))
            }
        }
    }

    fn unwatch(&mut self) {
        self.watch = None;
    }
}

/// Whether something can be read, or the other side has closed.
fn recv_peek(socket: &std::net::TcpStream) -> io::Result<()> {
    let mut byte = [std::mem::MaybeUninit::uninit(); 1];
    SockRef::from(socket).recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT).map(|_| ())
}

fn would_block(result: io::Result<()>) -> bool {
    result.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
}

/// Whether something can be written.
fn can_write(socket: &std::net::TcpStream) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: `poll` is one valid entry, and a timeout of 0 returns at once.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

/// How dense the traffic of a lane is, and so how long to poll before parking.
struct Pace {
    spin: Duration,
    last: Option<Instant>,
    /// Moving average of the time between arrivals, in nanoseconds.
    gap: u64,
    /// Lanes of the server that poll now, and how many may; `polling`: this one is counted.
    all: Arc<AtomicUsize>,
    most: usize,
    polling: bool,
    looks: u32,
}

/// Where the average of the gaps starts, and its ceiling: traffic that is not dense.
const SPARSE: u64 = 1_000_000_000;

impl Pace {
    fn new(spin: Duration, all: Arc<AtomicUsize>, most: usize) -> Self {
        Self { spin, last: None, gap: SPARSE, all, most, polling: false, looks: 0 }
    }

    fn arrived(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let gap = u64::try_from((now - last).as_nanos()).unwrap_or(SPARSE).min(SPARSE);
            // One dense pair is not dense traffic: the average falls by a quarter an arrival.
            self.gap = self.gap - self.gap / 4 + gap / 4;
        }
    }

    /// Whether to look again at once instead of parking.
    fn poll_on(&mut self) -> bool {
        // Worth it where the next arrival is likely before the bound. Whoever polls already goes on for longer: to park costs a
        // registration with the reactor, and traffic at the edge would pay for one with every request.
        let dense = Duration::from_nanos(self.gap) < if self.polling { self.spin * 4 } else { self.spin };
        self.looks = self.looks.wrapping_add(1);
        // The clock costs a tenth of a look at the socket: it is read now and then.
        let late = || self.last.is_none_or(|last| last.elapsed() >= self.spin);
        if !dense || (self.looks.is_multiple_of(16) && late()) {
            self.stop();
            return false;
        }
        if !self.polling {
            let room = |n: usize| (n < self.most).then_some(n + 1);
            self.polling = self.all.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok();
        }
        std::hint::spin_loop();
        self.polling
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.polling) {
            self.all.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.stop();
    }
}
