//! A client that speaks the protocol by hand, so that it can speak it badly.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_transport::Uri;
use genie_transport::auth::{lane_key, lane_proof};
use genie_transport::connection::{Framer, Recorded};
use genie_transport::link::tls::TlsClient;
use genie_transport::link::wait::Waiter;
use genie_transport::link::{Stream, dialer_with};
use genie_transport::wire::{
    Caps, Control, ErrorCode, Flags, HEADER_BYTES, Kind, LaneHello, OpenedSession, RemoteError, Reply, Request,
    Welcome, body_crc, encode_header, limits,
};

use crate::answer::{Outcome, Told, own};

/// How long anything is waited for: a server that has not answered by then never will.
const LONGEST: Duration = Duration::from_secs(120);

/// How long a greeting is tried again that came too late.
const TRIED: Duration = Duration::from_secs(60);

/// One lane.
pub struct Raw {
    lane: Lane,
    framer: Framer,
    /// Ids of requests count up.
    last: u64,
}

/// What carries its bytes.
enum Lane {
    /// A plain socket, as any program opens one.
    Socket(TcpStream),
    /// A control lane of one of the links.
    Link(Arc<dyn Stream>),
}

impl Raw {
    /// Connects, and says nothing.
    ///
    /// # Panics
    /// Like all here, if it cannot: the test cannot go on.
    pub fn dial(server: SocketAddr) -> Self {
        Self::over(TcpStream::connect(server).expect("the server listens"))
    }

    /// A lane over this socket.
    ///
    /// # Panics
    /// If the socket refuses a timeout.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LONGEST)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self::on(Lane::Socket(stream))
    }

    fn on(lane: Lane) -> Self {
        Self { lane, framer: Framer::new(limits::CONTROL_PAYLOAD_BYTES), last: 0 }
    }

    /// Connects over the link that this address names, and says nothing of the protocol.
    ///
    /// # Panics
    /// If the server is not there.
    pub fn dial_link(server: &Uri, tls: Option<&TlsClient>) -> Self {
        Self::on(Lane::Link(dialer_with(server, tls.cloned()).control().expect("the server listens")))
    }

    /// The socket.
    ///
    /// # Panics
    /// If a link has it.
    pub fn socket(&self) -> &TcpStream {
        match &self.lane {
            Lane::Socket(socket) => socket,
            Lane::Link(_) => panic!("the socket is the link's own"),
        }
    }

    /// The channel's exporter value, which proofs are bound to; `None`: it is not encrypted, or its handshake is not over.
    pub fn binding(&self) -> Option<[u8; 32]> {
        match &self.lane {
            Lane::Socket(_) => None,
            Lane::Link(link) => link.channel().binding,
        }
    }

    /// Connects and greets.
    ///
    /// # Panics
    /// If it is not welcomed.
    pub fn greet(server: SocketAddr) -> (Self, Welcome) {
        match Self::begin(server, &Control::Hello(Caps::OURS)) {
            (raw, Some(Control::Welcome(welcome))) => (raw, welcome),
            (_, other) => panic!("no welcome came, but {other:?}"),
        }
    }

    /// A lane that began with this, and what the server said to it. On a busy machine this may come too late for a server of little
    /// patience, or have to make room in a crowd: it is then said again, over another.
    fn begin(server: SocketAddr, said: &Control) -> (Self, Option<Control>) {
        let until = Instant::now() + TRIED;
        loop {
            let mut raw = Self::dial(server);
            raw.send(&control(said));
            match raw.hear_control() {
                Some(Control::Goodbye(error)) if error.code == ErrorCode::TimedOut && Instant::now() < until => {}
                answer => return (raw, answer),
            }
        }
    }

    /// Connects, greets, and opens a session with this quota (0: the default).
    ///
    /// # Panics
    /// If it is refused.
    pub fn open(server: SocketAddr, quota: u64) -> (Self, Welcome, OpenedSession) {
        let (mut raw, welcome) = Self::greet(server);
        match raw.ask(&Request::Open { quota, lease_ms: 0 }) {
            Ok(Told::Opened(opened)) => (raw, welcome, opened),
            other => panic!("no session was opened: {other:?}"),
        }
    }

    /// Adds a bulk lane to a connection.
    ///
    /// # Panics
    /// If it is not welcomed.
    pub fn bulk(server: SocketAddr, welcome: &Welcome) -> Self {
        Self::bulk_lane(server, welcome, 1)
    }

    /// Adds a bulk lane with this number.
    ///
    /// # Panics
    /// If it is not welcomed.
    pub fn bulk_lane(server: SocketAddr, welcome: &Welcome, lane: u32) -> Self {
        let (raw, answer) = Self::begin(server, &Control::LaneHello(lane_hello(welcome, lane)));
        assert_eq!(answer, Some(Control::LaneWelcome(lane)));
        raw
    }

    /// Sends bytes, whatever they are. A server that has closed meanwhile is heard of by [`Self::hear`].
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = match &mut self.lane {
            Lane::Socket(socket) => socket.write_all(bytes),
            Lane::Link(link) => send_all(&**link, bytes),
        };
    }

    /// A fresh id for a request.
    pub fn id(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Sends a request, and gives its id.
    pub fn start(&mut self, asked: &Request<'_>) -> u64 {
        let id = self.id();
        self.send(&request(id, asked));
        id
    }

    /// Sends a request and waits for its end.
    pub fn ask(&mut self, asked: &Request<'_>) -> Outcome {
        let id = self.start(asked);
        self.end_of(id)
    }

    /// Waits for the end of a request; what else comes is passed over.
    ///
    /// # Panics
    /// If the server closes before it.
    pub fn end_of(&mut self, id: u64) -> Outcome {
        loop {
            let heard = self.hear().unwrap_or_else(|| panic!("the server closed before the end of request {id}"));
            let header = &heard.header;
            if header.id == id && header.flags.has(Flags::REPLY) && !header.flags.has(Flags::MORE) {
                return own(Reply::decode(header, &heard.meta, &heard.payload)?);
            }
            if header.kind == Ok(Kind::Goodbye) {
                panic!("goodbye before the end of request {id}: {:?}", Control::decode(header, &heard.meta));
            }
        }
    }

    /// The next frame; `None`: the server has closed.
    ///
    /// # Panics
    /// If neither comes, or what comes is no frame.
    pub fn hear(&mut self) -> Option<Recorded> {
        loop {
            if let Some(frame) = self.framer.next_frame().expect("the server speaks the protocol") {
                frame.intact.expect("the server's checksums are right");
                let (meta, payload) = (frame.meta.to_vec(), frame.payload.to_vec());
                return Some(Recorded { header: frame.header, meta, payload });
            }
            let got = match &mut self.lane {
                Lane::Socket(socket) => socket.read(self.framer.space()),
                Lane::Link(link) => wait(&**link, true, || link.recv(self.framer.space(), &mut [])),
            };
            match got {
                Ok(0) => return None,
                Ok(n) => self.framer.filled(n),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => return None,
                Err(e) => panic!("nothing came within {LONGEST:?}: {e}"),
            }
        }
    }

    /// The next message of the connection.
    ///
    /// # Panics
    /// If it is none.
    pub fn hear_control(&mut self) -> Option<Control> {
        let heard = self.hear()?;
        Some(Control::decode(&heard.header, &heard.meta).expect("a message of the connection"))
    }

    /// The server says goodbye, and closes; why.
    ///
    /// # Panics
    /// If it does anything else.
    pub fn goodbye(&mut self) -> RemoteError {
        loop {
            let heard = self.hear().expect("a goodbye before the end");
            if let Ok(Control::Goodbye(error)) = Control::decode(&heard.header, &heard.meta) {
                assert!(self.hear().is_none(), "nothing follows a goodbye");
                return error;
            }
        }
    }
}

/// What comes of an attempt that is made again, whenever the link has woken whoever waits to receive or else to send, until it
/// can be.
fn wait<T>(link: &dyn Stream, receives: bool, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + LONGEST;
    let mut waiter = Waiter::default();
    loop {
        match attempt() {
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                if !link.arm(receives, !receives) {
                    // A handshake reads where its caller writes, and may have been driven by another call: not for long.
                    waiter.wait(std::iter::once(link.interest(receives, !receives)), Duration::from_millis(20));
                }
                link.disarm();
            }
            end => return end,
        }
    }
}

fn send_all(link: &dyn Stream, bytes: &[u8]) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes.len() {
        sent += wait(link, false, || link.send(&[IoSlice::new(&bytes[sent..])]))?;
    }
    // A greeting goes out with the end of the handshake, where there is one.
    let is_open = || !link.is_sealed() || link.channel().binding.is_some();
    wait(link, false, || if link.push()? && is_open() { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) })
}

/// A frame with good checksums.
pub fn frame(kind: Kind, id: u64, meta: &[u8], payload: &[u8]) -> Vec<u8> {
    let crc = body_crc(meta, payload);
    let head = encode_header(kind, Flags::default(), id, meta.len() as u32, payload.len() as u32, crc);
    [&head[..], meta, payload].concat()
}

/// A request's frame.
pub fn request(id: u64, request: &Request<'_>) -> Vec<u8> {
    let (mut meta, mut payload) = (Vec::new(), Vec::new());
    let kind = request.encode(&mut meta, &mut payload);
    frame(kind, id, &meta, request.payload().unwrap_or(&payload))
}

/// What opens bulk lane `lane` of a connection without tokens, for the first time.
pub fn lane_hello(welcome: &Welcome, lane: u32) -> LaneHello {
    let proof = lane_proof(&lane_key(None, &welcome.lane_key), welcome.connection, lane, lane);
    LaneHello { connection: welcome.connection, lane, attempt: lane, proof }
}

/// A message of the connection as a frame.
pub fn control(message: &Control) -> Vec<u8> {
    let mut meta = Vec::new();
    let (kind, flags) = message.encode(&mut meta);
    let head = encode_header(kind, flags, 0, meta.len() as u32, 0, body_crc(&meta, &[]));
    [&head[..], &meta].concat()
}

/// Replaces bytes of a frame from `at` on, and makes both checksums good again: what is wrong with it is not that it was
/// corrupted on the way.
///
/// # Panics
/// If the frame has not so many bytes.
pub fn spoil(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = body_crc(&frame[HEADER_BYTES..], &[]);
    frame[24..28].copy_from_slice(&crc.to_le_bytes());
    let crc = body_crc(&frame[..28], &[]);
    frame[28..32].copy_from_slice(&crc.to_le_bytes());
}
