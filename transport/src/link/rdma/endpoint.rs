//! A connected queue pair: messages with credits, and one-sided operations beside them.
//!
//! Messages lie in a ring of buffers on either side. A side sends no more of them than the other has said it has room for, so
//! that none ever finds no buffer; each message's immediate tells how many buffers are free again. One-sided operations share
//! the send queue; they complete in the order in which they were posted.

mod farewell;
mod parts;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use rdma_sys as sys;
use sys::{ibv_wc_opcode as opcode, ibv_wr_opcode as wr};

pub(super) use self::parts::Parts;
use super::cm::Id;
use super::events::Cause;
use super::faults::REFUSED;
use super::verbs::{QueuePair, Registration, Window, status};
use crate::link::Trespass;
use crate::memory::Slab;
use crate::wire::Immediate;

/// Bytes of a message.
const MESSAGE: usize = 4096;

/// Messages that this side has room for, and that it may have on their way.
const MESSAGES: usize = 64;

/// Work requests that may be on their way.
const SENDS: usize = 512;

/// Up to so many bytes a message carries itself: nothing is copied into the ring, and the device need not fetch them.
const INLINE: u32 = 256;

/// Pieces of memory that a message is gathered from, at the most.
const GATHERED: usize = 8;

/// One request in so many tells of its completion, and that of all before it.
const SIGNALLED: u64 = 16;

/// Marks a receive in a completion's id.
const RECEIVED: u64 = 1 << 63;

/// An operation that its owner is told of.
pub(super) type Token = u64;

pub(super) struct Endpoint {
    qp: QueuePair,
    id: Id,
    // Deregistered after the queue pair is gone.
    key: Registration,
    ring: *mut u8,
    _ring: Slab,
    /// Messages that the peer has room for.
    credits: u32,
    peer_messages: u32,
    message: usize,
    /// Buffers that were posted again, and that the peer was not told of.
    owed: u32,
    /// Work requests: posted, completed; the last one that tells of its completion.
    posted: u64,
    retired: u64,
    signalled: u64,
    /// Messages posted through the ring, and for each of its places the request that it is lent to.
    sent: usize,
    lent: [u64; MESSAGES],
    tokens: VecDeque<(u64, Token)>,
    done: VecDeque<Token>,
    /// Receives that are posted.
    receives: usize,
    inbox: VecDeque<Got>,
    written: VecDeque<u8>,
    /// Whether slices are written over it: only then may the peer tell of windows.
    has_windows: bool,
    ended: bool,
    end_sent: bool,
    broken: Option<Broken>,
    /// This side's device has refused what the other side's asked of it.
    trespassed: bool,
    shut: bool,
}

// SAFETY: `ring` leads into `_ring`, which moves with it; whoever has the endpoint is the one who uses it.
unsafe impl Send for Endpoint {}

/// A message that came.
#[derive(Clone, Copy, Debug)]
struct Got {
    place: usize,
    len: usize,
    taken: usize,
}

#[derive(Clone, Debug)]
struct Broken {
    sort: io::ErrorKind,
    why: String,
}

impl Endpoint {
    /// The descriptors that tell of completions, and of the connection's end.
    pub(super) fn fds(&self) -> [i32; 2] {
        [self.qp.completions.fd(), self.id.fd()]
    }

    /// Takes what has completed. Whether there was anything.
    pub(super) fn poll(&mut self) -> io::Result<bool> {
        let mut room = [const { MaybeUninit::<sys::ibv_wc>::uninit() }; 16];
        let mut any = false;
        loop {
            let (mut n, mut bad, mut cause) = (0, None, Cause::Unknown);
            for wc in self.qp.completions.poll(&mut room)? {
                n += 1;
                let is_receive = wc.wr_id & RECEIVED != 0;
                if wc.status != sys::ibv_wc_status::IBV_WC_SUCCESS {
                    if wc.status == sys::ibv_wc_status::IBV_WC_REM_ACCESS_ERR && !is_receive {
                        REFUSED.fetch_add(1, Ordering::AcqRel);
                    }
                    // After the first failure there is nothing but flushes.
                    bad.get_or_insert(wc.status);
                    cause = cause.or(Cause::of(wc.status, is_receive));
                }
                if !is_receive {
                    self.retired = self.retired.max(wc.wr_id + 1).min(self.posted);
                    continue;
                }
                self.receives = self.receives.saturating_sub(1);
                if bad.is_some() {
                    continue;
                }
                // SAFETY: both variants of the union are 32 bits; without an immediate it means nothing, and is not looked at.
                let raw = u32::from_be(unsafe { wc.imm_data_invalidated_rkey_union.imm_data });
                let with = wc.wc_flags & sys::ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
                let one_sided = wc.opcode == opcode::IBV_WC_RECV_RDMA_WITH_IMM;
                let place = (wc.wr_id & !RECEIVED) as usize;
                let len = if one_sided { 0 } else { wc.byte_len as usize };
                if let Err(e) = received(
                    &mut self.inbox,
                    self.has_windows.then_some(&mut self.written),
                    (&mut self.credits, self.peer_messages),
                    &mut self.ended,
                    Got { place, len, taken: 0 },
                    with.then_some((raw, one_sided)),
                ) {
                    self.broken.get_or_insert(e);
                    let _ = self.qp.fail();
                }
            }
            if let Some(code) = bad {
                // A queue pair goes down by this side's will, by a request of its own that failed, with its device, or because the
                // device has refused a request of the peer's. Buffers that come back tell nothing of it: the device's events do.
                if self.broken.is_none() && !self.shut {
                    let cause = if cause == Cause::Unknown { self.qp.cause() } else { cause };
                    self.trespassed = cause.is_trespass(self.qp.domain.facts().silent);
                }
                let (sort, why) =
                    (io::ErrorKind::ConnectionAborted, format!("the RDMA connection failed: {}", status(code)));
                self.broken.get_or_insert(Broken { sort, why });
            }
            while self.tokens.front().is_some_and(|&(at, _)| at < self.retired) {
                if let (Some((_, token)), None) = (self.tokens.pop_front(), &self.broken) {
                    self.done.push_back(token);
                }
            }
            any |= n > 0;
            if n < room.len() {
                break;
            }
        }
        // Buffers that brought no bytes are lent again at once.
        while self.inbox.front().is_some_and(|got| got.len == 0) {
            self.pop()?;
        }
        Ok(any)
    }

    /// Whether something waits for its taker.
    pub(super) fn has_news(&self) -> bool {
        !self.inbox.is_empty()
            || !self.written.is_empty()
            || !self.done.is_empty()
            || self.ended
            || self.broken.is_some()
    }

    /// Why nothing more will come.
    pub(super) fn failure(&self) -> io::Result<()> {
        if self.trespassed {
            return Err(Trespass.into());
        }
        match &self.broken {
            Some(Broken { sort, why }) => Err(io::Error::new(*sort, why.clone())),
            None => Ok(()),
        }
    }

    /// Copies what came into a buffer: how many bytes.
    pub(super) fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(got) = self.inbox.front_mut().filter(|_| filled < to.len()) {
            let n = (got.len - got.taken).min(to.len() - filled);
            // SAFETY: `received` has checked place and length against the ring; the buffer is this side's until it is lent again.
            let from = unsafe { std::slice::from_raw_parts(self.ring.add(got.place * MESSAGE + got.taken), n) };
            to[filled..filled + n].copy_from_slice(from);
            got.taken += n;
            filled += n;
            if got.taken == got.len {
                self.pop()?;
            }
        }
        Ok(filled)
    }

    /// Whether the peer has said that nothing follows, and nothing of what came before is left.
    pub(super) fn is_at_end(&self) -> bool {
        self.ended && self.inbox.is_empty()
    }

    /// The peer may write slices, and tell of them, from here on.
    pub(super) fn expect_windows(&mut self) {
        self.has_windows = true;
    }

    /// The next window whose slice was written.
    pub(super) fn next_written(&mut self) -> Option<u8> {
        self.written.pop_front()
    }

    /// The next of the operations that its owner is told of.
    pub(super) fn next_done(&mut self) -> Option<Token> {
        self.done.pop_front()
    }

    /// Takes bytes from the front of these buffers: how many.
    pub(super) fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        let mut taken = 0;
        while taken < total && self.may_send(2) {
            let len = (total - taken).min(self.message);
            let Some(()) = self.send_from(bufs, taken, len)? else { break };
            taken += len;
        }
        if taken == 0 && total > 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Gives credits back where the peer would soon have none.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        if self.owed as usize >= MESSAGES / 2 && self.may_send(1) {
            self.send_empty(false)?;
        }
        Ok(())
    }

    /// Nothing will be sent any more, and the peer is told so.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if !self.end_sent && self.may_send(1) {
            self.end_sent = true;
            self.send_empty(true)?;
        }
        Ok(())
    }

    /// Room in the send queue for as many one-sided operations.
    pub(super) fn room(&self) -> usize {
        // Messages keep theirs.
        (SENDS - 2 * MESSAGES).saturating_sub((self.posted - self.retired) as usize)
    }

    /// Whether a message may be sent, beside those that keep the credits flowing.
    pub(super) fn has_credit(&self) -> bool {
        self.may_send(3)
    }

    /// Writes memory of this side into the peer's: a part of a slice, whose head follows.
    ///
    /// # Safety
    /// The memory behind `from` stays as it is until a later operation that is told of is done.
    pub(super) unsafe fn post_write(&mut self, from: &[sys::ibv_sge], to: (u64, u32)) -> io::Result<()> {
        let mut request = request(wr::IBV_WR_RDMA_WRITE, from);
        request.wr.rdma = sys::rdma_t { remote_addr: to.0, rkey: to.1 };
        // SAFETY: this function's contract.
        unsafe { self.post(request, None) }
    }

    /// Writes a slice's head into its window's place, and tells the peer.
    ///
    /// Not in one list with the slice's writes: soft-RoCE was seen to stand still where lanes broke in the middle of such a list.
    pub(super) fn post_head(&mut self, head: &[u8], to: (u64, u32), window: u8, token: Token) -> io::Result<()> {
        let owed = u16::try_from(self.owed).unwrap_or(u16::MAX);
        let immediate = Immediate { credits: owed, end: false, window: Some(window) };
        self.credits = self.credits.saturating_sub(1);
        let (sge, inline) = self.lend(&[IoSlice::new(head)], 0, head.len())?;
        let list = [sge];
        let mut request = request(wr::IBV_WR_RDMA_WRITE_WITH_IMM, &list);
        request.wr.rdma = sys::rdma_t { remote_addr: to.0, rkey: to.1 };
        request.imm_data_invalidated_rkey_union.imm_data = immediate.encode().to_be();
        request.send_flags |= inline;
        self.owed -= u32::from(owed);
        // SAFETY: `lend` gave memory that is this request's until it has completed, or that the device need not read again.
        unsafe { self.post(request, Some(token)) }
    }

    /// Reads the peer's memory into this side's.
    ///
    /// # Safety
    /// Nobody else reads or writes the memory behind `to` until `token`, or that of a later operation, is done.
    pub(super) unsafe fn post_read(
        &mut self,
        to: &[sys::ibv_sge],
        from: (u64, u32),
        token: Option<Token>,
    ) -> io::Result<()> {
        let mut request = request(wr::IBV_WR_RDMA_READ, to);
        request.wr.rdma = sys::rdma_t { remote_addr: from.0, rkey: from.1 };
        // SAFETY: this function's contract.
        unsafe { self.post(request, token) }
    }

    /// Gives the peer a right on a part of registered memory: the key. The right holds before any later message arrives.
    ///
    /// # Safety
    /// Nobody uses the memory otherwise than the access allows until the right was revoked.
    pub(super) unsafe fn post_bind(
        &mut self,
        window: &mut Window,
        memory: &Registration,
        (at, len): (u64, u64),
        access: u32,
    ) -> io::Result<u32> {
        let key = window.next_key();
        let mut request = request(wr::IBV_WR_BIND_MW, &[]);
        request.bind_mw_tso_union.bind_mw = sys::bind_mw_t {
            mw: window.raw(),
            rkey: key,
            bind_info: sys::ibv_mw_bind_info { mr: memory.raw(), addr: at, length: len, mw_access_flags: access },
        };
        // SAFETY: this function's contract; the window and the registration outlive the queue pair's use of them: they are
        // held by the grant, and that by the lane, which the queue pair goes down before.
        unsafe { self.post(request, None) }?;
        window.bound(key);
        Ok(key)
    }

    /// Takes a right back. Once `token` is done, the memory is this side's alone.
    pub(super) fn post_revoke(&mut self, key: u32, token: Option<Token>) -> io::Result<()> {
        let mut request = request(wr::IBV_WR_LOCAL_INV, &[]);
        request.imm_data_invalidated_rkey_union.invalidated_rkey = key;
        // SAFETY: the request names no memory of this process.
        unsafe { self.post(request, token) }
    }

    /// The next completion wakes who waits for the descriptors. Whether there is something already to be read, or room to write.
    pub(super) fn arm(&mut self, read: bool, write: bool) -> io::Result<bool> {
        self.qp.completions.notify()?;
        let polled = self.poll()?;
        self.settle()?;
        Ok(polled || (read && self.has_news()) || (write && (self.broken.is_some() || self.may_send(2))))
    }

    /// Where the other side is.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.id.peer()
    }

    /// Whether the connection is broken.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Quiets the descriptors, and looks whether the other side is still there.
    pub(super) fn disarm(&mut self) {
        while self.qp.completions.hush() {}
        if self.broken.is_none() && self.id.is_gone() {
            // What came before the end is taken first.
            let _ = self.poll();
            let (sort, why) = (io::ErrorKind::ConnectionReset, "the other side is gone".to_owned());
            self.broken.get_or_insert(Broken { sort, why });
            let _ = self.qp.fail();
        }
    }

    /// The connection breaks, as if the network had.
    pub(super) fn give_up(&mut self) {
        let why = "the connection was made to break".to_owned();
        self.broken.get_or_insert(Broken { sort: io::ErrorKind::ConnectionAborted, why });
        // It breaks for the peer, too, who is told when the lane goes.
        let _ = self.qp.fail();
    }

    /// Marks an operation as done that needed no request.
    pub(super) fn finish(&mut self, token: Token) {
        self.done.push_back(token);
    }

    fn may_send(&self, credits: u32) -> bool {
        self.broken.is_none()
            && self.credits >= credits
            && self.is_free(self.sent)
            && self.posted - self.retired < SENDS as u64
    }

    /// Whether the next place of the ring is this side's.
    fn is_free(&self, sent: usize) -> bool {
        sent < MESSAGES || self.lent[sent % MESSAGES] < self.retired
    }

    /// Sends `len` of the buffers' bytes from `skip` on as one message.
    fn send_from(&mut self, bufs: &[IoSlice<'_>], skip: usize, len: usize) -> io::Result<Option<()>> {
        let (sge, inline) = self.lend(bufs, skip, len)?;
        self.send(&[sge], inline, false).map(Some)
    }

    fn send_empty(&mut self, end: bool) -> io::Result<()> {
        self.send(&[], 0, end)
    }

    fn send(&mut self, from: &[sys::ibv_sge], inline: u32, end: bool) -> io::Result<()> {
        let owed = u16::try_from(self.owed).unwrap_or(u16::MAX);
        let mut request = request(wr::IBV_WR_SEND_WITH_IMM, from);
        let immediate = Immediate { credits: owed, end, window: None };
        request.imm_data_invalidated_rkey_union.imm_data = immediate.encode().to_be();
        request.send_flags |= inline;
        if end {
            request.send_flags |= sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
        self.credits -= 1;
        self.owed -= u32::from(owed);
        // SAFETY: as in `post_head`.
        unsafe { self.post(request, None) }
    }

    /// Bytes for one message: in the next place of the ring; whoever takes it has asked `is_free`. With the flag for a message
    /// that the device takes whole when it is posted.
    fn lend(&mut self, bufs: &[IoSlice<'_>], skip: usize, len: usize) -> io::Result<(sys::ibv_sge, u32)> {
        let place = self.sent % MESSAGES;
        // SAFETY: the send half of the ring begins behind the receive half, and holds as many places.
        let at = unsafe { self.ring.add((MESSAGES + place) * MESSAGE) };
        let (mut skip, mut filled) = (skip, 0);
        for buf in bufs {
            let from = buf.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(buf.len());
            let n = from.len().min(len - filled);
            // SAFETY: `filled + n` is at most `len`, which is at most `MESSAGE`: it stays within the place, which no request
            // uses (`is_free`).
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), at.add(filled), n) };
            filled += n;
        }
        let inline = len <= self.qp.inline();
        if !inline {
            self.lent[place] = self.posted;
            self.sent += 1;
        }
        let sge = sys::ibv_sge { addr: at as u64, length: len as u32, lkey: self.key.local() };
        Ok((sge, if inline { sys::ibv_send_flags::IBV_SEND_INLINE.0 } else { 0 }))
    }

    /// # Safety
    /// As for [`QueuePair::post`].
    unsafe fn post(&mut self, mut request: sys::ibv_send_wr, token: Option<Token>) -> io::Result<()> {
        self.failure()?;
        request.wr_id = self.posted;
        if token.is_some() || self.posted - self.signalled >= SIGNALLED {
            request.send_flags |= sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
        }
        if request.send_flags & sys::ibv_send_flags::IBV_SEND_SIGNALED.0 != 0 {
            self.signalled = self.posted;
        }
        // SAFETY: this function's contract.
        if let Err(error) = unsafe { self.qp.post(&mut request) } {
            let (sort, why) = (error.kind(), format!("the device took no request: {error}"));
            self.broken = Some(Broken { sort, why });
            let _ = self.qp.fail();
            return Err(error);
        }
        if let Some(token) = token {
            self.tokens.push_back((self.posted, token));
        }
        self.posted += 1;
        Ok(())
    }

    /// The first message was taken: its buffer is lent again.
    fn pop(&mut self) -> io::Result<()> {
        let Some(got) = self.inbox.pop_front() else { return Ok(()) };
        // SAFETY: the buffer is in the ring, and nothing refers to it any more.
        let posted = unsafe {
            self.qp.post_receive(
                RECEIVED | got.place as u64,
                self.ring.add(got.place * MESSAGE),
                MESSAGE as u32,
                self.key.local(),
            )
        };
        match posted {
            Ok(()) => {
                self.receives += 1;
                self.owed += 1;
                Ok(())
            }
            Err(error) => {
                self.broken.get_or_insert(Broken { sort: error.kind(), why: error.to_string() });
                Err(error)
            }
        }
    }
}

/// A message has come into a buffer of the ring. All of it is the peer's word.
fn received(
    inbox: &mut VecDeque<Got>,
    written: Option<&mut VecDeque<u8>>,
    (credits, most): (&mut u32, u32),
    ended: &mut bool,
    got: Got,
    immediate: Option<(u32, bool)>,
) -> Result<(), Broken> {
    let refuse = |why: &str| Broken {
        sort: io::ErrorKind::InvalidData,
        why: format!("the peer does not follow the protocol: {why}"),
    };
    if got.place >= MESSAGES || got.len > MESSAGE {
        return Err(refuse("a message outside the ring"));
    }
    let (raw, one_sided) = immediate.ok_or_else(|| refuse("a message without an immediate"))?;
    let immediate = Immediate::decode(raw, one_sided).map_err(|e| refuse(&e.to_string()))?;
    *credits += u32::from(immediate.credits);
    if *credits > most {
        return Err(refuse("more credits than it has buffers"));
    }
    if *ended {
        return Err(refuse("a message after the end"));
    }
    *ended |= immediate.end;
    match (immediate.window, written) {
        (Some(window), Some(written)) => written.push_back(window),
        // Nobody would ever take it: a write of no bytes needs no right.
        (Some(_), None) => return Err(refuse("a window on a lane that has none")),
        (None, _) => {}
    }
    inbox.push_back(got);
    Ok(())
}

fn request(opcode: wr::Type, list: &[sys::ibv_sge]) -> sys::ibv_send_wr {
    // SAFETY: all zeroes is a valid `ibv_send_wr`.
    let mut request: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
    request.opcode = opcode;
    request.sg_list = list.as_ptr().cast_mut();
    request.num_sge = list.len() as i32;
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A write of no bytes needs no right: a stranger told of windows on a lane where nobody takes them, and it had news for ever.
    #[test]
    fn windows_are_heard_of_only_where_slices_are_written() {
        let told = Immediate { credits: 1, end: false, window: Some(3) }.encode();
        let hear = |written: Option<&mut VecDeque<u8>>| {
            let (mut inbox, mut credits, mut ended) = (VecDeque::new(), 0, false);
            let got = Got { place: 0, len: 0, taken: 0 };
            received(&mut inbox, written, (&mut credits, 64), &mut ended, got, Some((told, true)))
        };
        let mut written = VecDeque::new();
        hear(Some(&mut written)).unwrap();
        assert_eq!(written, [3]);
        assert_eq!(hear(None).unwrap_err().sort, io::ErrorKind::InvalidData);
    }
}
