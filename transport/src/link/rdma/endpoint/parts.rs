//! How a queue pair becomes an endpoint: made, lent its buffers, connected.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::{Endpoint, GATHERED, INLINE, MESSAGE, MESSAGES, RECEIVED, SENDS};
use crate::link::rdma::cm::{Id, Knock};
use crate::link::rdma::options::Options;
use crate::link::rdma::verbs::{Depth, Domain, QueuePair, Registration, access};
use crate::memory::Slab;
use crate::wire::Private;

/// What an endpoint is made of, before it is connected. Dropped in this order.
pub(in crate::link::rdma) struct Parts {
    pub(in crate::link::rdma) qp: QueuePair,
    registered: Registration,
    ring: Slab,
    at: *mut u8,
}

// SAFETY: as for `Endpoint`, which it becomes.
unsafe impl Send for Parts {}

impl Endpoint {
    /// Asks whoever listens where the route leads for a connection.
    pub(in crate::link::rdma) fn ask(
        id: &Id,
        domain: &Arc<Domain>,
        key: [u8; 16],
        options: &Options,
    ) -> io::Result<Parts> {
        let parts = Self::parts(domain)?;
        let ours = Private { messages: MESSAGES as u16, message_bytes: MESSAGE as u32, domain: key };
        id.ask(&parts.qp, &ours, options, || post_all(&parts.qp, parts.at, parts.registered.local()))?;
        Ok(parts)
    }

    /// The connection that was asked for has come about.
    pub(in crate::link::rdma) fn connected(parts: Parts, id: Id, theirs: &Private) -> Self {
        Self::new(parts, id, theirs)
    }

    /// Takes the connection that a client asks for.
    pub(in crate::link::rdma) fn accept(knock: Knock, domain: &Arc<Domain>, options: &Options) -> io::Result<Self> {
        // Whole until it is an endpoint's: should this fail, the queue pair goes before what it was lent.
        let parts = Self::parts(domain)?;
        let ours = Private { messages: MESSAGES as u16, message_bytes: MESSAGE as u32, domain: [0; 16] };
        let theirs = knock.said;
        let id = knock.accept(&parts.qp, &ours, options, || post_all(&parts.qp, parts.at, parts.registered.local()))?;
        Ok(Self::new(parts, id, &theirs))
    }

    fn parts(domain: &Arc<Domain>) -> io::Result<Parts> {
        let most = domain.facts().queue;
        let depth = Depth {
            send: (SENDS as u32).min(most),
            receive: (MESSAGES as u32).min(most),
            pieces: (GATHERED as u32).min(domain.facts().pieces),
            inline: INLINE,
        };
        if (depth.send as usize) < SENDS || (depth.receive as usize) < MESSAGES {
            let message = format!("{}'s queues hold {most} requests, but {SENDS} are needed", domain.facts().device);
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let qp = QueuePair::new(domain, depth)?;
        let mut ring = Slab::try_zeroed(2 * MESSAGES * MESSAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let at = ring.as_mut_ptr();
        // SAFETY: the ring is dropped after its registration (the fields' order), and is used as `post` and `post_receive` ask.
        let registered = unsafe { domain.register(at, ring.len(), access::LOCAL_WRITE) }?;
        Ok(Parts { qp, ring, at, registered })
    }

    fn new(parts: Parts, id: Id, theirs: &Private) -> Self {
        Self {
            qp: parts.qp,
            id,
            key: parts.registered,
            ring: parts.at,
            _ring: parts.ring,
            credits: u32::from(theirs.messages),
            peer_messages: u32::from(theirs.messages),
            message: MESSAGE.min(theirs.message_bytes as usize),
            owed: 0,
            posted: 0,
            retired: 0,
            signalled: 0,
            sent: 0,
            lent: [0; MESSAGES],
            tokens: VecDeque::with_capacity(SENDS),
            done: VecDeque::with_capacity(SENDS),
            receives: MESSAGES,
            inbox: VecDeque::with_capacity(MESSAGES),
            written: VecDeque::with_capacity(MESSAGES),
            has_windows: false,
            ended: false,
            end_sent: false,
            broken: None,
            trespassed: false,
            shut: false,
        }
    }
}

/// Lends every buffer of the receive half.
fn post_all(qp: &QueuePair, ring: *mut u8, key: u32) -> io::Result<()> {
    for place in 0..MESSAGES {
        // SAFETY: the ring holds `2 * MESSAGES` places, and nothing refers to these before their messages were received.
        unsafe { qp.post_receive(RECEIVED | place as u64, ring.add(place * MESSAGE), MESSAGE as u32, key) }?;
    }
    Ok(())
}
