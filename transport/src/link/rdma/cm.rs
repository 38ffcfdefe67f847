//! The connection manager: who a queue pair talks to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::time::Duration;

use rdma_sys as sys;
use sys::rdma_cm_event_type as kind;

use super::options::Options;
use super::verbs::{QueuePair, checked, nonblocking};
use crate::wire::{PRIVATE_BYTES, Private};

/// An event channel and one end of a connection, or a place to listen.
pub(super) struct Id {
    id: NonNull<sys::rdma_cm_id>,
    // Destroyed after the id.
    channel: Channel,
}

// SAFETY: the library locks what threads share; an id has one owner.
unsafe impl Send for Id {}

pub(super) struct Channel(NonNull<sys::rdma_event_channel>);

// SAFETY: as for `Id`.
unsafe impl Send for Channel {}

/// What happened to a connection. Acknowledged when dropped.
pub(super) struct Event(NonNull<sys::rdma_cm_event>);

impl Channel {
    fn new() -> io::Result<Self> {
        // SAFETY: takes nothing; the result is checked.
        let raw = unsafe { sys::rdma_create_event_channel() };
        let channel = Self(NonNull::new(raw).ok_or_else(no_devices)?);
        nonblocking(channel.fd())?;
        Ok(channel)
    }

    fn fd(&self) -> RawFd {
        // SAFETY: the object lives until `drop`.
        unsafe { self.0.as_ref() }.fd
    }

    /// The next event, if there is one.
    fn next(&self) -> io::Result<Option<Event>> {
        let mut event = null_mut();
        // SAFETY: the channel is there and does not block.
        match checked(unsafe { sys::rdma_get_cm_event(self.0.as_ptr(), &raw mut event) }) {
            Ok(()) => Ok(NonNull::new(event).map(Event)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The next event, if it has come, and is of this kind; any other is why there will be none.
    fn expect(&self, wanted: kind::Type) -> io::Result<Option<Event>> {
        match self.next()? {
            Some(event) if event.kind() == wanted => Ok(Some(event)),
            Some(event) => Err(event.as_error()),
            None => Ok(None),
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by `new`; every id on it was destroyed before (it is a later field of `Id`).
        unsafe { sys::rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

impl Event {
    pub(super) fn kind(&self) -> kind::Type {
        self.raw().event
    }

    fn raw(&self) -> &sys::rdma_cm_event {
        // SAFETY: the library owns the event until it is acknowledged, in `drop`.
        unsafe { self.0.as_ref() }
    }

    /// The private data of a request or a response, with the padding behind it.
    fn private(&self) -> io::Result<Private> {
        // SAFETY: this is asked of connected events alone, whose parameters are `conn`.
        let conn = unsafe { &self.raw().param.conn };
        let len = usize::from(conn.private_data_len);
        if conn.private_data.is_null() || len < PRIVATE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the other side of the connection is no Genie"));
        }
        // SAFETY: the library says that so many bytes are there until the event is acknowledged.
        let bytes = unsafe { std::slice::from_raw_parts(conn.private_data.cast::<u8>(), len) };
        Private::decode(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Reads that the peer answers, and that it has outstanding, at the most.
    fn reads(&self) -> (u8, u8) {
        // SAFETY: as in `private`.
        let conn = unsafe { &self.raw().param.conn };
        (conn.responder_resources, conn.initiator_depth)
    }

    fn as_error(&self) -> io::Error {
        let status = self.raw().status;
        let (sort, text) = match self.kind() {
            kind::RDMA_CM_EVENT_REJECTED => (io::ErrorKind::ConnectionRefused, "nobody listens there with RDMA".into()),
            kind::RDMA_CM_EVENT_ADDR_ERROR | kind::RDMA_CM_EVENT_ROUTE_ERROR => {
                (io::ErrorKind::HostUnreachable, format!("no RDMA device leads there ({status})"))
            }
            kind::RDMA_CM_EVENT_UNREACHABLE => {
                (io::ErrorKind::HostUnreachable, format!("the host does not answer over RDMA ({status})"))
            }
            other => (io::ErrorKind::ConnectionAborted, format!("the connection manager says {other} ({status})")),
        };
        io::Error::new(sort, text)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: taken from the channel by `next`, and acknowledged once.
        unsafe { sys::rdma_ack_cm_event(self.0.as_ptr()) };
    }
}

/// `RDMA_OPTION_ID` and `RDMA_OPTION_ID_REUSEADDR` of `rdma_cma.h`.
const OPTION_ID: i32 = 0;
const REUSE_ADDRESS: i32 = 1;

/// How long finding the way may take.
const RESOLVE: Duration = Duration::from_secs(2);

impl Id {
    fn new() -> io::Result<Self> {
        let channel = Channel::new()?;
        let mut id = null_mut();
        // SAFETY: the channel is there, and `id` is a place for the result.
        checked(unsafe {
            sys::rdma_create_id(channel.0.as_ptr(), &raw mut id, null_mut(), sys::rdma_port_space::RDMA_PS_TCP)
        })?;
        Ok(Self { id: NonNull::new(id).ok_or(io::ErrorKind::OutOfMemory)?, channel })
    }

    /// Begins to find the device and the way to an address: [`Self::is_resolved`] tells when they are found.
    pub(super) fn resolve(address: SocketAddr) -> io::Result<Self> {
        let id = Self::new()?;
        let mut to = Address::from(address);
        // SAFETY: the id is there; `to` is a socket address of the family that it names.
        checked(unsafe { sys::rdma_resolve_addr(id.raw(), null_mut(), to.raw(), RESOLVE.as_millis() as i32) })
            .map_err(|e| explain(address, &e))?;
        Ok(id)
    }

    /// Whether the device and the way to the address are found. `routed`: whether the first of them is, which this notes.
    pub(super) fn is_resolved(&self, address: SocketAddr, routed: &mut bool) -> io::Result<bool> {
        if !*routed {
            let found = self.channel.expect(kind::RDMA_CM_EVENT_ADDR_RESOLVED).map_err(|e| explain(address, &e))?;
            if found.is_none() {
                return Ok(false);
            }
            *routed = true;
            // SAFETY: the address was resolved.
            checked(unsafe { sys::rdma_resolve_route(self.raw(), RESOLVE.as_millis() as i32) })?;
        }
        let found = self.channel.expect(kind::RDMA_CM_EVENT_ROUTE_RESOLVED).map_err(|e| explain(address, &e))?;
        if found.is_some() {
            keep_devices();
        }
        Ok(found.is_some())
    }

    /// Waits until there may be an event, for so long at the most.
    pub(super) fn wait(&self, longest: Duration) {
        let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
        let millis = i32::try_from(longest.as_millis()).unwrap_or(i32::MAX).max(1);
        // SAFETY: `poll` is one valid entry.
        unsafe { libc::poll(&raw mut poll, 1, millis) };
    }

    /// Listens on an address.
    pub(super) fn listen(address: SocketAddr) -> io::Result<Self> {
        let id = Self::new()?;
        // The port may be held by connections of a server that ended a moment ago.
        let mut yes: libc::c_int = 1;
        // SAFETY: the id is there, and `yes` is what the option wants.
        checked(unsafe {
            sys::rdma_set_option(id.raw(), OPTION_ID, REUSE_ADDRESS, (&raw mut yes).cast(), size_of::<libc::c_int>())
        })?;
        let mut at = Address::from(address);
        // SAFETY: the id is there; `at` is a socket address of the family that it names.
        checked(unsafe { sys::rdma_bind_addr(id.raw(), at.raw()) })?;
        // SAFETY: the id is bound.
        checked(unsafe { sys::rdma_listen(id.raw(), 1024) })?;
        if id.context().is_none() && !address.ip().is_unspecified() {
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no RDMA device has this address"));
        }
        keep_devices();
        Ok(id)
    }

    /// The device, once it is known.
    pub(super) fn context(&self) -> Option<NonNull<sys::ibv_context>> {
        // SAFETY: the id lives until `drop`.
        NonNull::new(unsafe { self.id.as_ref() }.verbs)
    }

    pub(super) fn port(&self) -> u16 {
        // SAFETY: the id is there.
        u16::from_be(unsafe { sys::rdma_get_src_port(self.raw()) })
    }

    /// Where the other side of a connection is.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        // SAFETY: the id lives until `drop`.
        let at = unsafe { &self.id.as_ref().route.addr.dst_addr_union };
        // SAFETY: every kind of address begins with its family, and any bits are an address of the kind that it names.
        unsafe {
            match libc::c_int::from(at.dst_addr.sa_family) {
                libc::AF_INET => {
                    let ip = IpAddr::from(at.dst_sin.sin_addr.s_addr.to_ne_bytes());
                    Some(SocketAddr::new(ip, u16::from_be(at.dst_sin.sin_port)))
                }
                libc::AF_INET6 => {
                    let ip = IpAddr::from(at.dst_sin6.sin6_addr.s6_addr);
                    Some(SocketAddr::new(ip, u16::from_be(at.dst_sin6.sin6_port)))
                }
                _ => None,
            }
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.channel.fd()
    }

    /// The next client that knocks at a listener, with what it says of itself. One that says nothing sensible is turned away.
    pub(super) fn knock(&self) -> io::Result<Option<Knock>> {
        let Some(event) = self.channel.next()? else { return Ok(None) };
        if event.kind() != kind::RDMA_CM_EVENT_CONNECT_REQUEST {
            return Err(event.as_error());
        }
        let raw = NonNull::new(event.raw().id).ok_or(io::ErrorKind::InvalidData)?;
        let (said, reads) = (event.private(), event.reads());
        // Acknowledged before the id moves to a channel of its own: moving waits for that.
        drop(event);
        let own = Channel::new();
        // SAFETY: the id is new, and this is its one owner from here on.
        let id = match own {
            Ok(channel) => {
                // SAFETY: both are there; no event of the id is unacknowledged.
                let moved = checked(unsafe { sys::rdma_migrate_id(raw.as_ptr(), channel.0.as_ptr()) });
                let id = Self { id: raw, channel };
                moved.map(|()| id)?
            }
            Err(error) => {
                // SAFETY: nobody else knows the id.
                unsafe { sys::rdma_destroy_id(raw.as_ptr()) };
                return Err(error);
            }
        };
        match said {
            Ok(said) => Ok(Some(Knock { id, said, reads })),
            Err(error) => {
                // SAFETY: the id has a request that was not answered.
                unsafe { sys::rdma_reject(id.raw(), std::ptr::null(), 0) };
                Err(error)
            }
        }
    }

    /// Asks whoever listens there for a connection to a queue pair: [`Self::connected`] tells what comes of it.
    pub(super) fn ask(
        &self,
        qp: &QueuePair,
        ours: &Private,
        options: &Options,
        ready: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        self.initialise(qp)?;
        ready()?;
        let said = ours.encode();
        let reads = qp.domain.facts().reads;
        let mut param = parameters(qp, &said, (reads, reads), options);
        // SAFETY: the route is resolved; `param` and the private data outlive the call.
        checked(unsafe { sys::rdma_connect(self.raw(), &raw mut param) })
    }

    /// What the other side says of itself, once it has taken the connection.
    pub(super) fn connected(&self, qp: &QueuePair, options: &Options) -> io::Result<Option<Private>> {
        let Some(event) = self.channel.expect(kind::RDMA_CM_EVENT_CONNECT_RESPONSE)? else { return Ok(None) };
        let theirs = event.private()?;
        let reads = qp.domain.facts().reads;
        // A response's numbers are what this side may use: it granted no more than was asked for.
        let (granted, asked) = event.reads();
        drop(event);
        self.start(qp, (granted.min(reads), asked.min(reads)), options)?;
        // SAFETY: the response was accepted, and the queue pair is ready.
        checked(unsafe { sys::rdma_establish(self.raw()) })?;
        Ok(Some(theirs))
    }

    fn initialise(&self, qp: &QueuePair) -> io::Result<()> {
        let access = sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0 | sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ.0;
        self.modify(qp, sys::ibv_qp_state::IBV_QPS_INIT, |attr, mask| {
            attr.qp_access_flags = access;
            *mask |= sys::ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS.0 as i32;
        })
    }

    /// Ready to receive, and to send.
    fn start(&self, qp: &QueuePair, (answered, asked): (u8, u8), options: &Options) -> io::Result<()> {
        self.modify(qp, sys::ibv_qp_state::IBV_QPS_RTR, |attr, _| {
            attr.path_mtu = attr.path_mtu.min(options.mtu_code());
            attr.max_dest_rd_atomic = answered;
        })?;
        self.modify(qp, sys::ibv_qp_state::IBV_QPS_RTS, |attr, _| {
            attr.timeout = options.timeout;
            attr.retry_cnt = options.retries;
            attr.rnr_retry = options.rnr_retries;
            attr.max_rd_atomic = asked;
        })
    }

    fn modify(
        &self,
        qp: &QueuePair,
        state: sys::ibv_qp_state::Type,
        change: impl FnOnce(&mut sys::ibv_qp_attr, &mut i32),
    ) -> io::Result<()> {
        // SAFETY: all zeroes is a valid `ibv_qp_attr`.
        let mut attr: sys::ibv_qp_attr = unsafe { std::mem::zeroed() };
        let mut mask = 0;
        attr.qp_state = state;
        // SAFETY: the id is there; both places are of the right types.
        checked(unsafe { sys::rdma_init_qp_attr(self.raw(), &raw mut attr, &raw mut mask) })?;
        change(&mut attr, &mut mask);
        qp.modify(&mut attr, mask)
    }

    /// Whether the other side has ended the connection.
    pub(super) fn is_gone(&self) -> bool {
        loop {
            match self.channel.next() {
                Ok(Some(event)) => match event.kind() {
                    kind::RDMA_CM_EVENT_ESTABLISHED | kind::RDMA_CM_EVENT_TIMEWAIT_EXIT => {}
                    _ => return true,
                },
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Tells the other side that the connection is over.
    pub(super) fn disconnect(&self) {
        // SAFETY: the id is there. One that is not connected says so, and there is nobody to tell.
        unsafe { sys::rdma_disconnect(self.raw()) };
    }

    fn raw(&self) -> *mut sys::rdma_cm_id {
        self.id.as_ptr()
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // Events that came meanwhile are acknowledged: destroying waits for that.
        while let Ok(Some(_)) = self.channel.next() {}
        // SAFETY: this is the id's one owner; its queue pair was not made by the connection manager.
        unsafe { sys::rdma_destroy_id(self.raw()) };
    }
}

/// A client that asks for a connection. Dropped, it is turned away.
pub(super) struct Knock {
    pub(super) id: Id,
    pub(super) said: Private,
    reads: (u8, u8),
}

impl Knock {
    /// Accepts the connection onto a queue pair.
    pub(super) fn accept(
        self,
        qp: &QueuePair,
        ours: &Private,
        options: &Options,
        ready: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Id> {
        let most = qp.domain.facts().reads;
        // What a client has outstanding is what this side answers, and the other way round.
        let (answers, asks) = (self.reads.0.min(most), self.reads.1.min(most));
        self.id.initialise(qp)?;
        ready()?;
        self.id.start(qp, (asks, answers), options)?;
        let said = ours.encode();
        let mut param = parameters(qp, &said, (asks, answers), options);
        // SAFETY: the id has a request; `param` and the private data outlive the call.
        checked(unsafe { sys::rdma_accept(self.id.raw(), &raw mut param) })?;
        Ok(self.id)
    }
}

fn parameters(
    qp: &QueuePair,
    said: &[u8; PRIVATE_BYTES],
    (answered, asked): (u8, u8),
    options: &Options,
) -> sys::rdma_conn_param {
    sys::rdma_conn_param {
        private_data: said.as_ptr().cast(),
        private_data_len: PRIVATE_BYTES as u8,
        responder_resources: answered,
        initiator_depth: asked,
        flow_control: 1,
        retry_count: options.retries,
        rnr_retry_count: options.rnr_retries,
        srq: 0,
        qp_num: qp.number(),
    }
}

/// The connection manager opens devices with its first id and may close them with its last: this holds them for the life of
/// the process.
pub(super) fn keep_devices() {
    static KEPT: OnceLock<usize> = OnceLock::new();
    KEPT.get_or_init(|| {
        let mut count = 0;
        // SAFETY: `count` is a place for a number. The list is kept for ever.
        let list = unsafe { sys::rdma_get_devices(&raw mut count) };
        list as usize
    });
}

fn no_devices() -> io::Error {
    let why = io::Error::last_os_error();
    io::Error::new(
        io::ErrorKind::Unsupported,
        format!("this machine has no RDMA ({why}): load a driver for its network card, or soft-RoCE (see README)"),
    )
}

fn explain(address: SocketAddr, error: &io::Error) -> io::Error {
    let hint = "is there an RDMA device on the network that leads there (`ibv_devices`, `rdma link`)?";
    io::Error::new(error.kind(), format!("{address}: {error}; {hint}"))
}

/// A socket address as C has it.
enum Address {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl Address {
    fn raw(&mut self) -> *mut libc::sockaddr {
        match self {
            Self::V4(v4) => std::ptr::from_mut(v4).cast(),
            Self::V6(v6) => std::ptr::from_mut(v6).cast(),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let port = address.port().to_be();
        match address.ip() {
            IpAddr::V4(ip) => Self::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: port,
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                sin_zero: [0; 8],
            }),
            IpAddr::V6(ip) => Self::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: port,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
                sin6_scope_id: if let SocketAddr::V6(v6) = address { v6.scope_id() } else { 0 },
            }),
        }
    }
}
