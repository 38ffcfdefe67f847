//! Lanes on rings over the loopback: whole transfers, and operations that end before their time.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::lane::{Broken, LaneIo};
use super::ring::{Owner, Ring, probe, set_up};
use super::zero_copy::ZeroCopy;
use super::{Need, Unavailable};
use crate::connection::{BulkEvent, BulkIn, BulkLane, BulkOut, Landings, Lending, Loan, OutSlice, Outgoing};
use crate::memory::{Landing, Pool, Region};
use crate::wire::{DecodeError, SLICE_FRAME_BYTES, SliceHead};

const SLICE: u32 = 64 << 10;
const TRANSFER: u64 = 7;

/// A machine without io_uring has its tcp link tested, and this one not.
fn is_there() -> bool {
    let there = super::available();
    if let Err(reason) = there {
        eprintln!("not tested: {reason}");
    }
    there.is_ok()
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// One end of a lane with all that it needs. The ring is dropped before the socket.
struct End {
    ring: Ring,
    io: LaneIo,
    lane: Halves,
    _socket: TcpStream,
}

struct Halves {
    input: BulkIn,
    output: BulkLane,
    landings: Landings,
    out: BulkOut,
    events: Vec<BulkEvent>,
    received: usize,
}

impl Lending for Halves {
    fn poll(&mut self, now: Instant) {
        while let Some(event) = self.input.poll(&self.landings, now) {
            self.events.push(event);
        }
    }

    fn lend(&mut self) -> Option<Loan> {
        self.input.lend()
    }

    fn lend_head(&mut self) -> Option<Loan> {
        self.input.lend_head()
    }

    fn give_back(&mut self, loan: Loan, n: usize, _: Instant) -> Result<(), DecodeError> {
        self.received += n;
        self.input.give_back(loan, n)
    }

    fn is_recalled(&self) -> bool {
        self.input.is_recalled(&self.landings)
    }

    fn lend_slice(&mut self, now: Instant) -> Option<OutSlice> {
        self.output.lend(&self.out, now)
    }

    fn give_slice(&mut self, slice: OutSlice, n: usize, _: Instant) {
        self.output.give_back(slice, n);
    }

    fn has_more(&self) -> bool {
        self.output.wants_to_send(&self.out)
    }
}

impl End {
    fn new(socket: TcpStream, zero_copy: ZeroCopy) -> Self {
        let mut ring = Ring::new(Owner::Anyone, 1).unwrap();
        let file = ring.add_file(socket.as_raw_fd()).unwrap().unwrap();
        let io = LaneIo::new(file, zero_copy);
        let out = BulkOut::default();
        out.open_lane(1);
        let (input, output, landings) = (BulkIn::new(true), BulkLane::new(1), Landings::default());
        let lane = Halves { input, output, landings, out, events: Vec::new(), received: 0 };
        Self { ring, io, lane, _socket: socket }
    }

    /// Begins what can be begun, and waits a little for what ends.
    fn turn(&mut self) -> Result<(), Broken> {
        let now = Instant::now();
        let Self { ring, io, lane, .. } = self;
        io.receive(ring, lane, now)?;
        io.send(ring, lane, now)?;
        ring.wait(Duration::from_millis(2))?;
        while let Some(ended) = ring.next() {
            io.ended(ended, lane, now)?;
        }
        lane.poll(now);
        Ok(())
    }

    /// Memory for a transfer from this pool.
    fn land(&self, pool: &Pool, bytes: usize) -> Arc<Landing> {
        let landing = Landing::new(vec![pool.take(bytes).unwrap()], SLICE);
        self.lane.landings.open(TRANSFER, landing.clone());
        landing
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < end, "{what} never came");
    }
}

fn moves_whole(zero_copy: bool) {
    if !is_there() {
        return;
    }
    let (a, b) = pair();
    let (mut from, mut to) = (End::new(a, ZeroCopy::Chosen(zero_copy)), End::new(b, ZeroCopy::Chosen(false)));
    let sent = content((3 << 20) + 5);
    let region = Region::copy_of(&sent);
    let pool = Pool::new(8 << 20);
    let landing = to.land(&pool, sent.len());
    from.lane.out.push(Outgoing::new(TRANSFER, vec![Bytes::from_owner(region.clone())], SLICE));
    until("the last slice", || {
        from.turn().unwrap();
        to.turn().unwrap();
        to.lane.events.contains(&BulkEvent::Complete(TRANSFER))
    });
    assert!(landing.finish().unwrap()[0][..] == sent[..]);
    until("the sender's memory", || {
        from.turn().unwrap();
        from.lane.out.end(TRANSFER);
        region.holders() == 1
    });
    assert!(!from.io.holds_sent());
    assert_eq!(from.lane.output.sent(), to.lane.received as u64);
}

#[test]
fn a_transfer_arrives_whole() {
    moves_whole(false);
}

#[test]
fn a_zero_copy_transfer_arrives_whole_and_gives_its_memory_back() {
    moves_whole(true);
}

/// A head, and the first bytes of its payload; the operation for the rest is in flight.
fn half_a_slice(to: &mut End, from: &mut TcpStream, payload: &[u8]) {
    let head = SliceHead::encode(TRANSFER, 0, 2 * u64::from(SLICE), payload);
    from.write_all(&head).unwrap();
    from.write_all(&payload[..1000]).unwrap();
    until("the head", || {
        to.turn().unwrap();
        to.lane.received == SLICE_FRAME_BYTES && to.lane.input.in_slice()
    });
    // The payload's operation begins with the turn after its head's end, and takes what is there.
    (0..10).for_each(|_| to.turn().unwrap());
}

/// What the lane is dropped in the middle of: the memory is the pool's again, and the kernel writes it no more, although the
/// rest of the slice arrives.
#[test]
fn a_dropped_lane_gives_memory_back_that_nobody_writes() {
    if !is_there() {
        return;
    }
    let (mut from, b) = pair();
    let mut same = b.try_clone().unwrap();
    let pool = Pool::new(2 * u64::from(SLICE));
    let mut to = End::new(b, ZeroCopy::Chosen(false));
    let landing = to.land(&pool, 2 * SLICE as usize);
    let payload = vec![9; SLICE as usize];
    half_a_slice(&mut to, &mut from, &payload);
    let head = SliceHead::decode(&SliceHead::encode(TRANSFER, 0, 2 * u64::from(SLICE), &payload)).unwrap();
    assert!(matches!(landing.claim(&head), crate::memory::Claim::Busy), "the operation has it");
    to.lane.landings.end(TRANSFER);
    drop(landing);
    assert!(pool.used() > 0, "the operation in flight holds the slab, whoever else has let it go");
    drop(to);
    assert_eq!(pool.used(), 0, "the kernel has ended the operation");
    let mut slab = pool.take(2 * SLICE as usize).unwrap();
    slab.fill(1);
    from.write_all(&payload[1000..]).unwrap();
    // All of it is there for whoever reads the socket next: no operation has taken any.
    same.set_nonblocking(false).unwrap();
    same.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut rest = vec![0; payload.len() - 1000];
    same.read_exact(&mut rest).expect("the rest of the slice lies in the socket");
    assert!(slab.iter().all(|&b| b == 1), "the slab was written after it was given back");
}

/// A transfer that is given up takes its memory back from an operation that waits for a sender who says nothing more.
#[test]
fn a_transfer_that_ends_takes_its_memory_from_the_operation() {
    if !is_there() {
        return;
    }
    let (mut from, b) = pair();
    let pool = Pool::new(2 * u64::from(SLICE));
    let mut to = End::new(b, ZeroCopy::Chosen(false));
    let landing = to.land(&pool, 2 * SLICE as usize);
    let payload = vec![9; SLICE as usize];
    half_a_slice(&mut to, &mut from, &payload);
    to.lane.landings.end(TRANSFER);
    drop(landing);
    until("the memory", || {
        to.turn().unwrap();
        pool.used() == 0
    });
    // The rest is drained, and the lane is as good as before.
    from.write_all(&payload[1000..]).unwrap();
    let landing = to.land(&pool, SLICE as usize);
    from.write_all(&SliceHead::encode(TRANSFER, 0, u64::from(SLICE), &payload)).unwrap();
    from.write_all(&payload).unwrap();
    until("the next slice", || {
        to.turn().unwrap();
        to.lane.events.contains(&BulkEvent::Complete(TRANSFER))
    });
    assert!(landing.finish().unwrap()[0][..] == payload[..]);
}

#[test]
fn a_peer_that_dies_in_a_slice_leaves_it_missing() {
    if !is_there() {
        return;
    }
    let (mut from, b) = pair();
    let pool = Pool::new(2 * u64::from(SLICE));
    let mut to = End::new(b, ZeroCopy::Chosen(false));
    let landing = to.land(&pool, 2 * SLICE as usize);
    half_a_slice(&mut to, &mut from, &vec![9; SLICE as usize]);
    drop(from);
    let mut broken = Ok(());
    until("the end", || {
        broken = to.turn();
        broken.is_err()
    });
    assert!(matches!(broken, Err(Broken::Closed)), "{broken:?}");
    drop(to);
    assert_eq!(landing.landed_bits(), [0]);
    drop(landing);
    assert_eq!(pool.used(), 0);
}

/// A client's session may be moved to another thread. The kernel cancels what a thread had asked for when that thread ends.
#[test]
fn a_lane_goes_on_when_the_thread_that_began_has_ended() {
    if !is_there() {
        return;
    }
    let (a, b) = pair();
    let mut to = End::new(b, ZeroCopy::Chosen(false));
    let payload = vec![9; 2 * SLICE as usize];
    let pool = Pool::new(1 << 20);
    let landing = to.land(&pool, payload.len());
    let mut from = End::new(a, ZeroCopy::Chosen(false));
    from.lane.out.push(Outgoing::new(TRANSFER, vec![payload.clone().into()], SLICE));
    let mut to = std::thread::spawn(move || {
        to.turn().unwrap();
        to
    })
    .join()
    .unwrap();
    until("the transfer", || {
        from.turn().unwrap();
        to.turn().unwrap();
        to.lane.events.contains(&BulkEvent::Complete(TRANSFER))
    });
    assert!(landing.finish().unwrap()[0][..] == payload[..]);
}

#[test]
fn a_kernel_that_refuses_is_told_apart() {
    let answer = |code| probe(|_| Err(io::Error::from_raw_os_error(code)));
    for (code, reason, says) in [
        (libc::ENOSYS, Unavailable::Missing, "no io_uring"),
        (libc::EPERM, Unavailable::Closed, "kernel.io_uring_disabled"),
        (libc::EACCES, Unavailable::Closed, "seccomp"),
        (libc::EINVAL, Unavailable::Lacks(Need::DeferredWork), "Linux 6.1"),
        (libc::EMFILE, Unavailable::Limit(libc::EMFILE), "limit"),
    ] {
        assert_eq!(answer(code), Err(reason));
        let text = reason.to_string();
        assert!(text.contains(says) && text.contains("tcp://"), "{text}");
    }
    if is_there() {
        assert_eq!(probe(set_up), Ok(()));
    }
}
