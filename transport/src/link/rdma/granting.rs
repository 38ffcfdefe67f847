//! The server's side of a bulk lane: rights are given slice by slice, and revoked before the slice is looked at.
//!
//! A slice that a client uploads: *granted* (its lease is claimed, its memory's window bound, the client told), then *written* (the
//! client's immediate has come) or *released* (the client will not write it), then *revoked* (the window is invalid, and the queue
//! pair has said so). Only then is the slice's memory this side's again: its checksum is taken, and the lease lands or is dropped.
//! A slice that a client downloads takes the same way with a right to read, and ends when the client releases it.

use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::cache::STARVED;
use super::faults::{Faults, LaneFault};
use super::lane::Lane;
use super::rights::{Right, Rights, revoke};
use super::verbs::{Registration, access};
use crate::connection::{BulkEvent, Framer, Outbox, Peer, Taken};
use crate::link::{LULL, RemoteBulk, Stream};
use crate::memory::{Landing, OnDevice, Slab, SliceLease, Summing, copy_counted};
use crate::wire::{
    DecodeError, Flags, Heads, OneSided, PIECES, Pieces, SLICE_FRAME_BYTES, SliceHead, body_crc, encode_header,
};

/// Slices of each direction that are granted at a time.
const GRANTS: usize = 32;

/// After so long it is looked again whether devices have taken checksums.
const SUMMING: Duration = Duration::from_micros(50);

/// Bytes that a head's place has.
const HEAD_PLACE: usize = 64;

/// Slices that are looked at in one turn, each of them byte by byte.
const LANDED: usize = 4;

/// Tokens: which direction, and the window.
const WRITES: u64 = 1 << 8;
const READS: u64 = 2 << 8;

pub(super) struct Granting {
    lane: Arc<Lane>,
    /// The lane's, in its connection.
    number: u32,
    // Rights go before what they are rights on; see `drop`.
    writes: Vec<Write>,
    reads: Vec<Read>,
    rights: Rights,
    heads: Arc<Registration>,
    heads_at: *const u8,
    _heads: Slab,
    framer: Framer,
    out: Outbox,
    /// Slices in a device's memory that nobody can write any more, whose checksums it takes.
    summed: Vec<Summed>,
    open: Vec<(u64, Arc<Landing>)>,
    changes: Option<u64>,
    /// Where the search for the next slice begins: which of `open`, and which of its slices.
    next: usize,
    slices: Vec<(u64, u32)>,
    /// A slice that is to be sent, and waits for room to be copied through.
    unsent: Option<Taken>,
    /// There was no such room: when to look again, should it be another lane that makes some.
    starved: Option<Instant>,
    /// When a slice last moved on.
    moved: Instant,
    patience: Duration,
}

// SAFETY: `heads_at` leads into `_heads`, which moves with it, and only ever names it for volatile reads.
unsafe impl Send for Granting {}

enum Write {
    Free,
    Granted(Grant),
    /// The client was asked to release it.
    Recalled(Grant),
    /// With the head, if the slice was written.
    Revoking(Grant, Option<SliceHead>),
}

struct Grant {
    rights: Vec<Right>,
    staged: Option<Slab>,
    lease: SliceLease,
}

/// The device is done with the bytes before the lease goes.
struct Summed {
    sum: Box<dyn Summing>,
    lease: SliceLease,
}

enum Read {
    Free,
    Offered(Offer),
    Revoking(Offer),
}

struct Offer {
    rights: Vec<Right>,
    _staged: Option<Slab>,
    /// Keeps the bytes.
    slice: Taken,
}

impl Granting {
    pub(super) fn new(lane: Arc<Lane>, number: u32, patience: Duration, now: Instant) -> io::Result<Self> {
        let mut heads = Slab::try_zeroed(GRANTS * HEAD_PLACE).ok_or(io::ErrorKind::OutOfMemory)?;
        let at = heads.as_mut_ptr();
        let allowed = access::LOCAL_WRITE | access::REMOTE_WRITE;
        // SAFETY: the slab is read by volatile reads alone from here on (`head_of`), and is dropped after its registration.
        let registered = unsafe { lane.membership().domain.register(at, heads.len(), allowed) }?;
        let rights = Rights::new(lane.clone());
        lane.endpoint().expect_windows();
        let mut all = Self {
            lane,
            number,
            writes: std::iter::repeat_with(|| Write::Free).take(GRANTS).collect(),
            reads: std::iter::repeat_with(|| Read::Free).take(GRANTS).collect(),
            rights,
            heads: Arc::new(registered),
            heads_at: at,
            _heads: heads,
            framer: Framer::new(0),
            out: Outbox::default(),
            summed: Vec::new(),
            open: Vec::new(),
            changes: None,
            next: 0,
            slices: Vec::new(),
            unsent: None,
            starved: None,
            moved: now,
            patience,
        };
        all.say(&OneSided::Heads(Heads { address: at as u64, rkey: all.heads.remote(), count: GRANTS as u32 }));
        Ok(all)
    }

    /// What the client says in frames.
    fn hear(&mut self, now: Instant) -> io::Result<bool> {
        let mut any = false;
        loop {
            match self.lane.recv(self.framer.space(), &mut []) {
                Ok(0) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Ok(n) => self.framer.filled(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(e) => return Err(e),
            }
            any = true;
            let mut framer = std::mem::replace(&mut self.framer, Framer::new(0));
            let heard = self.frames(&mut framer, now);
            self.framer = framer;
            heard?;
        }
    }

    fn frames(&mut self, framer: &mut Framer, now: Instant) -> io::Result<()> {
        while let Some(frame) = framer.next_frame().map_err(refuse)? {
            frame.intact.map_err(|corrupted| refuse(DecodeError::from(corrupted)))?;
            let OneSided::Release { window, read } = OneSided::decode(&frame.header, frame.meta).map_err(refuse)?
            else {
                return Err(refuse(DecodeError::Range("a message that only a server sends")));
            };
            let place = usize::from(window);
            self.moved = now;
            if read {
                let Some(at @ Read::Offered(_)) = self.reads.get_mut(place) else {
                    return Err(refuse(DecodeError::Range("a slice is released that was not offered")));
                };
                if let Read::Offered(offer) = std::mem::replace(at, Read::Free) {
                    self.reads[place] = Read::Revoking(offer);
                    self.revoke_read(place)?;
                }
            } else {
                self.take_back(place, None)?;
            }
        }
        Ok(())
    }

    /// What the client's immediates say: slices were written.
    fn written(&mut self, now: Instant) -> io::Result<bool> {
        let mut any = false;
        loop {
            let Some(window) = self.lane.endpoint().next_written() else { return Ok(any) };
            any = true;
            self.moved = now;
            let place = usize::from(window);
            let (Some(Write::Granted(grant)) | Some(Write::Recalled(grant))) = self.writes.get(place) else {
                return Err(refuse(DecodeError::Range("a slice was written that was not granted")));
            };
            let head = SliceHead::decode(&self.head_of(place)).map_err(refuse)?;
            if (SliceHead { crc: 0, ..head }) != (SliceHead { crc: 0, ..*grant.lease.head() }) {
                return Err(refuse(DecodeError::Range("a slice's head is not that of its grant")));
            }
            self.pass(head.len as usize, true)?;
            self.take_back(place, Some(head))?;
        }
    }

    /// A copy of the head in a window's place. The client may go on writing there: nothing is looked at twice.
    fn head_of(&self, place: usize) -> [u8; SLICE_FRAME_BYTES] {
        let mut head = [0; SLICE_FRAME_BYTES];
        for (i, byte) in head.iter_mut().enumerate() {
            // SAFETY: `place` is below `GRANTS`, so that this lies within the slab; volatile, since the client's device may write it.
            *byte = unsafe { self.heads_at.add(place * HEAD_PLACE + i).read_volatile() };
        }
        head
    }

    /// Begins to revoke the rights on a slice that was written (with its head) or released.
    fn take_back(&mut self, place: usize, head: Option<SliceHead>) -> io::Result<()> {
        match self.writes.get_mut(place).map(|w| std::mem::replace(w, Write::Free)) {
            Some(Write::Granted(grant) | Write::Recalled(grant)) => {
                self.writes[place] = Write::Revoking(grant, head);
            }
            // Released, and then written all the same, or the other way round.
            _ => return Err(refuse(DecodeError::Range("a grant ends that there is not"))),
        }
        let Write::Revoking(grant, _) = &mut self.writes[place] else { return Ok(()) };
        revoke(&mut self.lane.endpoint(), &mut grant.rights, WRITES | place as u64)
    }

    fn revoke_read(&mut self, place: usize) -> io::Result<()> {
        let Some(Read::Revoking(offer)) = self.reads.get_mut(place) else { return Ok(()) };
        revoke(&mut self.lane.endpoint(), &mut offer.rights, READS | place as u64)
    }

    /// Rights that are revoked: their memory is this side's again.
    fn revoked(&mut self, peer: &Peer, events: &mut Vec<BulkEvent>) -> bool {
        let mut any = false;
        let mut landed = 0;
        while landed < LANDED {
            let Some(token) = self.lane.endpoint().next_done() else { return any };
            any = true;
            let place = (token & 0xff) as usize;
            if token & READS != 0 {
                if let Some(at) = self.reads.get_mut(place)
                    && let Read::Revoking(offer) = std::mem::replace(at, Read::Free)
                {
                    self.rights.ended(offer.rights);
                    peer.moved_on();
                }
                continue;
            }
            let Some(at) = self.writes.get_mut(place) else { continue };
            if let Write::Revoking(Grant { rights, staged, lease }, head) = std::mem::replace(at, Write::Free) {
                self.rights.ended(rights);
                let Some(head) = head else { continue };
                let flips = self.lane.faults().is_some_and(Faults::flips);
                if lease.is_on_device() {
                    events.extend(self.land_on_device(lease, head.crc ^ u32::from(flips), peer.is_checked()));
                } else {
                    landed += 1;
                    events.extend(land(lease, staged, &head, flips, peer.is_checked()));
                }
            }
        }
        any
    }

    /// A slice was written into a device's memory, and nobody can write it any more.
    fn land_on_device(&mut self, mut lease: SliceLease, crc: u32, checked: bool) -> Option<BulkEvent> {
        lease.announce(crc);
        match lease.written(checked) {
            Some(sum) => {
                self.summed.push(Summed { sum, lease });
                None
            }
            None => {
                let transfer = lease.head().transfer;
                lease.landed().then_some(BulkEvent::Complete(transfer))
            }
        }
    }

    /// Slices whose checksums are known.
    fn sums(&mut self, events: &mut Vec<BulkEvent>) -> bool {
        let mut any = false;
        let mut at = 0;
        while at < self.summed.len() {
            let Poll::Ready(crc) = self.summed[at].sum.poll() else {
                at += 1;
                continue;
            };
            any = true;
            let Summed { sum, lease } = self.summed.swap_remove(at);
            drop(sum);
            let head = *lease.head();
            // Where the device has failed there is nothing to check: whoever waits for the transfer hears of that.
            if crc.is_some_and(|crc| !head.is_of(crc)) {
                events.push(BulkEvent::Corrupt { transfer: head.transfer, offset: head.offset });
            } else if lease.landed() {
                events.push(BulkEvent::Complete(head.transfer));
            }
        }
        any
    }

    /// Slices that nobody wants any more are asked back.
    fn recall(&mut self, peer: &Peer) {
        let changes = peer.landings().changes();
        if self.changes.replace(changes) == Some(changes) {
            return;
        }
        peer.landings().list(&mut self.open);
        self.slices.retain(|(id, _)| self.open.iter().any(|(open, _)| open == id));
        for place in 0..self.writes.len() {
            let Write::Granted(grant) = &self.writes[place] else { continue };
            let (transfer, landing) = (grant.lease.head().transfer, grant.lease.landing());
            if self.open.iter().any(|(id, open)| *id == transfer && Arc::ptr_eq(open, landing)) {
                continue;
            }
            if let Write::Granted(grant) = std::mem::replace(&mut self.writes[place], Write::Free) {
                self.writes[place] = Write::Recalled(grant);
                self.say(&OneSided::Recall(place as u8));
            }
        }
    }

    /// Grants slices that are missing, transfers in turn, for as long as there are windows.
    fn grant(&mut self, now: Instant) -> io::Result<bool> {
        let mut any = false;
        let mut idle = 0;
        while idle < self.open.len() && self.out.waiting() < 64 << 10 {
            let Some(place) = self.writes.iter().position(|w| matches!(w, Write::Free)) else { break };
            if self.lane.endpoint().room() < 2 * PIECES || self.summed.len() >= GRANTS {
                break;
            }
            self.next = (self.next + 1) % self.open.len();
            let (transfer, landing) = &self.open[self.next];
            let transfer = *transfer;
            let from = self.slices.iter().find(|(id, _)| *id == transfer).map_or(0, |s| s.1);
            let Some(lease) = landing.claim_missing(transfer, from) else {
                idle += 1;
                continue;
            };
            idle = 0;
            let head = *lease.head();
            let after = (head.offset / u64::from(landing.slice_bytes()).max(1)) as u32 + 1;
            let Some((grant, pieces)) = self.bind_write(lease)? else {
                self.starved = Some(now + STARVED);
                break;
            };
            match self.slices.iter_mut().find(|(id, _)| *id == transfer) {
                Some(slice) => slice.1 = after,
                None => self.slices.push((transfer, after)),
            }
            if !self.outstanding() {
                self.moved = now;
            }
            self.writes[place] = Write::Granted(grant);
            let SliceHead { offset, total, len, .. } = head;
            self.say(&OneSided::Grant { transfer, offset, total, len, window: place as u8, pieces });
            any = true;
        }
        Ok(any)
    }

    /// `None`: there is no room for it now, where it goes or to copy it through.
    fn bind_write(&mut self, mut lease: SliceLease) -> io::Result<Option<(Grant, Pieces)>> {
        match lease.on_device() {
            OnDevice::Here(places) => {
                // SAFETY: the lease is held by the grant until the rights are revoked, and with it the memory, which is its alone.
                // Where there is no way the memory has said so: the slice takes the one below.
                if let Ok(reached) = unsafe { self.rights.reach_device(&places, access::REMOTE_WRITE) } {
                    lease.lies_there();
                    // SAFETY: as above.
                    let (rights, pieces) = unsafe { self.rights.bind(reached, access::REMOTE_WRITE) }?;
                    return Ok(Some((Grant { rights, staged: None, lease }, pieces)));
                }
            }
            OnDevice::Later => return Ok(None),
            OnDevice::No => {}
        }
        let Some(mut lease) = lease.staged() else { return Ok(None) };
        let len = lease.left();
        let places: Vec<(*mut u8, usize)> = lease.places().map(|(at, len)| (at.as_ptr(), len)).collect();
        // SAFETY: the lease (or the staging slab) is held by the grant until the rights are revoked, and nobody else uses its
        // memory: a lease is exclusive, and a slab has one owner.
        let there = unsafe { self.rights.reach(&places, access::REMOTE_WRITE) };
        let (reached, staged) = match there {
            Some(reached) => (reached, None),
            None => {
                let Some(slab) = self.lane.membership().cache.staging(len)? else { return Ok(None) };
                // SAFETY: as above.
                unsafe { self.rights.reach_staged(slab, access::REMOTE_WRITE) }?
            }
        };
        // SAFETY: as above.
        let (rights, pieces) = unsafe { self.rights.bind(reached, access::REMOTE_WRITE) }?;
        Ok(Some((Grant { rights, staged, lease }, pieces)))
    }

    /// Offers slices that are to be sent, for as long as there are windows.
    fn offer(&mut self, peer: &Peer, now: Instant) -> io::Result<bool> {
        let mut any = false;
        while self.out.waiting() < 64 << 10 {
            let Some(place) = self.reads.iter().position(|r| matches!(r, Read::Free)) else { break };
            if self.lane.endpoint().room() < 2 * PIECES {
                break;
            }
            let Some(slice) = self.unsent.take().or_else(|| peer.bulk().take(self.number, now)) else { break };
            let mut head = SliceHead::decode(&slice.head()).map_err(refuse)?;
            let (offer, pieces) = match self.bind_read(slice)? {
                Ok(bound) => bound,
                Err(slice) if slice.there.is_some() => {
                    peer.bulk().unreachable(slice.transfer, slice.offset);
                    any = true;
                    continue;
                }
                Err(slice) => {
                    self.unsent = Some(slice);
                    self.starved = Some(now + STARVED);
                    break;
                }
            };
            if !self.outstanding() {
                self.moved = now;
            }
            if offer.slice.there.is_some() && self.lane.faults().is_some_and(Faults::flips) {
                head.crc ^= 1;
            }
            self.reads[place] = Read::Offered(offer);
            self.say(&OneSided::Readable { head, window: place as u8, pieces });
            self.pass(head.len as usize, false)?;
            any = true;
        }
        Ok(any)
    }

    /// The slice again: there is no room to copy it through, though it must be; or it lies where nobody can read it.
    fn bind_read(&mut self, slice: Taken) -> io::Result<Result<(Offer, Pieces), Taken>> {
        if let Some(there) = &slice.there {
            // SAFETY: a right to read; the offer holds the slice, whose bytes nobody writes, until the rights are revoked.
            let Ok(reached) = (unsafe { self.rights.reach_device(&there.places, access::REMOTE_READ) }) else {
                return Ok(Err(slice));
            };
            // SAFETY: as above.
            let (rights, pieces) = unsafe { self.rights.bind(reached, access::REMOTE_READ) }?;
            return Ok(Ok((Offer { rights, _staged: None, slice }, pieces)));
        }
        let places: Vec<(*mut u8, usize)> = slice.bytes().map(|view| (view.as_ptr().cast_mut(), view.len())).collect();
        let flips = self.lane.faults().is_some_and(Faults::flips);
        // SAFETY: a right to read; the offer holds the bytes, which nobody writes, until the rights are revoked.
        let there = if flips { None } else { unsafe { self.rights.reach(&places, access::REMOTE_READ) } };
        let (reached, staged) = match there {
            Some(reached) => (reached, None),
            None => {
                let len = places.iter().map(|p| p.1).sum();
                let Some((mut slab, memory)) = self.lane.membership().cache.staging(len)? else {
                    return Ok(Err(slice));
                };
                let mut filled = 0;
                for view in slice.bytes() {
                    copy_counted(&mut slab[filled..filled + view.len()], view);
                    filled += view.len();
                }
                if let (true, Some(byte)) = (flips, slab.last_mut()) {
                    *byte ^= 1;
                }
                // SAFETY: as above; the slab is the offer's, too.
                unsafe { self.rights.reach_staged((slab, memory), access::REMOTE_READ) }?
            }
        };
        // SAFETY: as above.
        let (rights, pieces) = unsafe { self.rights.bind(reached, access::REMOTE_READ) }?;
        Ok(Ok((Offer { rights, _staged: staged, slice }, pieces)))
    }

    /// A slice has passed; for tests the lane may break by it.
    fn pass(&mut self, bytes: usize, inward: bool) -> io::Result<()> {
        self.lane.pass(bytes, inward)?;
        match self.lane.faults().and_then(|faults| faults.pass_slice(bytes)) {
            None => Ok(()),
            Some(LaneFault::Garble) => {
                self.out.push(&[0xa5; 64], &[], &[]);
                Ok(())
            }
            Some(LaneFault::Cut) => {
                self.lane.endpoint().give_up();
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        }
    }

    fn is_held(&self) -> bool {
        self.lane.faults().is_some_and(Faults::is_held)
    }

    fn say(&mut self, message: &OneSided) {
        let mut meta = Vec::with_capacity(64);
        let (kind, id) = message.encode(&mut meta);
        let head = encode_header(kind, Flags::default(), id, meta.len() as u32, 0, body_crc(&meta, &[]));
        self.out.push(&head, &meta, &[]);
    }

    /// Whether the client has something to do.
    fn outstanding(&self) -> bool {
        self.writes.iter().any(|w| matches!(w, Write::Granted(_) | Write::Recalled(_)))
            || self.reads.iter().any(|r| matches!(r, Read::Offered(_)))
    }
}

impl RemoteBulk for Granting {
    fn turn(&mut self, peer: &Peer, events: &mut Vec<BulkEvent>, now: Instant) -> io::Result<bool> {
        self.lane.endpoint().poll()?;
        let mut moved = self.hear(now)?;
        moved |= self.written(now)?;
        moved |= self.revoked(peer, events);
        moved |= self.sums(events);
        self.recall(peer);
        self.starved = None;
        if !self.is_held() {
            moved |= self.grant(now)?;
            moved |= self.offer(peer, now)?;
        }
        let mut sink: &dyn Stream = &*self.lane;
        self.out.flush(&mut sink)?;
        self.lane.endpoint().failure()?;
        if self.outstanding() && now >= self.moved + self.patience {
            let message = format!("no slice that was granted moved within {} s", self.patience.as_secs_f32());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        Ok(moved)
    }

    fn is_moving(&self, now: Instant) -> bool {
        self.outstanding() && now < self.moved + LULL
    }

    fn deadline(&self) -> Option<Instant> {
        if self.is_held() {
            return Some(Instant::now() + Duration::from_millis(5));
        }
        let overdue = self.outstanding().then(|| self.moved + self.patience);
        let summed = (!self.summed.is_empty()).then(|| Instant::now() + SUMMING);
        self.starved.into_iter().chain(overdue).chain(summed).min()
    }
}

impl Drop for Granting {
    fn drop(&mut self) {
        // From here on the client's device is refused whatever it asks for; only then do rights, leases and memory go.
        self.lane.endpoint().shut();
    }
}

/// A slice was written, and nobody can write it any more.
fn land(
    mut lease: SliceLease,
    mut staged: Option<Slab>,
    head: &SliceHead,
    flips: bool,
    checked: bool,
) -> Option<BulkEvent> {
    lease.announce(head.crc);
    if flips {
        let spoilt = staged.as_deref_mut().unwrap_or_else(|| lease.spare());
        spoilt.first_mut().into_iter().for_each(|byte| *byte ^= 1);
    }
    lease.fill(staged.as_deref());
    let SliceHead { transfer, offset, .. } = *head;
    if checked && !lease.is_intact() {
        return Some(BulkEvent::Corrupt { transfer, offset });
    }
    lease.landed().then_some(BulkEvent::Complete(transfer))
}

fn refuse(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
