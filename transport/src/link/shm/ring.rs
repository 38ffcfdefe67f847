//! A ring of bytes in shared memory: one side writes, the other reads.
//!
//! Positions count bytes since the beginning and never wrap back; a byte lies at its position modulo the capacity. Each side
//! keeps its own position in its own memory and only publishes it: what the other side publishes is checked before it is used,
//! and nothing that is written to the shared memory can make this side read or write outside the ring. There is no lock, so a
//! side that dies in the middle leaves nothing behind that the other would wait for.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::memory::SharedMemory;

/// Bytes that a ring holds.
pub(super) const CAPACITY: usize = 128 << 10;

/// Bytes of memory for a ring's positions and flags.
pub(super) const HEADER: usize = 1024;

/// Where they are: far enough from each other that no two share a cache line, nor the pair that is fetched together.
const TAIL: usize = 0;
const HEAD: usize = 128;
const READER_SLEEPS: usize = 256;
const WRITER_SLEEPS: usize = 384;

/// The other side has published a position that cannot be: the ring ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side's position in the ring makes no sense")]
pub(super) struct Nonsense;

/// Where a ring lies.
#[derive(Clone, Debug)]
struct Place {
    memory: Arc<SharedMemory>,
    header: usize,
    data: usize,
}

impl Place {
    /// `None`: it does not fit the memory.
    fn new(memory: &Arc<SharedMemory>, header: usize, data: usize) -> Option<Self> {
        let fits = |at: usize, len: usize| at.checked_add(len).is_some_and(|end| end <= memory.len());
        let whole = header.is_multiple_of(HEADER) && fits(header, HEADER) && fits(data, CAPACITY);
        whole.then(|| Self { memory: memory.clone(), header, data })
    }

    fn position(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `new` has seen that the header lies within the mapping, which `self` keeps; its parts are aligned, any bits
        // are a number, and both sides use them atomically.
        unsafe { AtomicU64::from_ptr(self.memory.start().as_ptr().add(self.header + at).cast()) }
    }

    fn flag(&self, at: usize) -> &AtomicU32 {
        // SAFETY: as in `position`.
        unsafe { AtomicU32::from_ptr(self.memory.start().as_ptr().add(self.header + at).cast()) }
    }

    /// Where the byte at `position` lies, and how many follow before the ring begins anew.
    fn at(&self, position: u64) -> (*mut u8, usize) {
        let index = position as usize % CAPACITY;
        // SAFETY: `new` has seen that the ring's bytes lie within the mapping, and the index is less than their number.
        (unsafe { self.memory.start().as_ptr().add(self.data + index) }, CAPACITY - index)
    }
}

/// The side that writes. One thread at a time; two would spoil each other's bytes, and nothing else.
#[derive(Debug)]
pub(super) struct Writer {
    place: Place,
    tail: AtomicU64,
    /// The reader's position when it was last looked at.
    head: AtomicU64,
}

impl Writer {
    /// A fresh ring's. `None`: it does not fit the memory.
    pub(super) fn new(memory: &Arc<SharedMemory>, header: usize, data: usize) -> Option<Self> {
        let place = Place::new(memory, header, data)?;
        Some(Self { place, tail: AtomicU64::new(0), head: AtomicU64::new(0) })
    }

    /// Writes as much as fits, and says how much.
    pub(super) fn write(&self, bufs: &[IoSlice<'_>]) -> Result<usize, Nonsense> {
        let start = self.tail.load(Ordering::Relaxed);
        let whole: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut free = CAPACITY - (start - self.head.load(Ordering::Relaxed)) as usize;
        if free < whole {
            free = self.look()?;
        }
        let mut tail = start;
        for buf in bufs {
            let mut bytes = &buf[..buf.len().min(free)];
            free -= bytes.len();
            while !bytes.is_empty() {
                let (at, room) = self.place.at(tail);
                let (now, rest) = bytes.split_at(room.min(bytes.len()));
                // SAFETY: `at` is good for `room` bytes of the mapping, and `now` is no longer; private memory and the mapping
                // do not overlap. The reader does not look at these bytes before `tail` says so; should a hostile one, or one
                // that writes them, it harms its own stream.
                unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), at, now.len()) };
                tail += now.len() as u64;
                bytes = rest;
            }
        }
        if tail != start {
            self.tail.store(tail, Ordering::Relaxed);
            // In one order with the reader's flag: either it sees these bytes, or this side sees that it sleeps.
            self.place.position(TAIL).swap(tail, Ordering::SeqCst);
        }
        Ok((tail - start) as usize)
    }

    /// Whether the reader sleeps and is to be woken by the caller; it is asked once a sleep.
    pub(super) fn is_to_wake(&self) -> bool {
        let flag = self.place.flag(READER_SLEEPS);
        flag.load(Ordering::SeqCst) != 0 && flag.swap(0, Ordering::SeqCst) != 0
    }

    /// Is about to sleep until there is room. Whether there is some already.
    pub(super) fn arm(&self) -> Result<bool, Nonsense> {
        self.place.flag(WRITER_SLEEPS).swap(1, Ordering::SeqCst);
        self.look().map(|free| free > 0)
    }

    /// Has slept.
    pub(super) fn disarm(&self) {
        self.place.flag(WRITER_SLEEPS).store(0, Ordering::Relaxed);
    }

    /// Looks at the reader's position: bytes of room.
    fn look(&self) -> Result<usize, Nonsense> {
        let head = self.place.position(HEAD).load(Ordering::SeqCst);
        let (tail, before) = (self.tail.load(Ordering::Relaxed), self.head.load(Ordering::Relaxed));
        let unread = tail.wrapping_sub(head);
        // It never goes back, nor past what was written.
        if unread > CAPACITY as u64 || head.wrapping_sub(before) > CAPACITY as u64 {
            return Err(Nonsense);
        }
        self.head.store(head, Ordering::Relaxed);
        Ok(CAPACITY - unread as usize)
    }
}

/// The side that reads. One thread at a time; two would take each other's bytes, and nothing else.
#[derive(Debug)]
pub(super) struct Reader {
    place: Place,
    head: AtomicU64,
    /// What the writer was told: it is told in strides, since it asks only when the ring seems full.
    told: AtomicU64,
}

/// How far a reader goes before it tells the writer. A writer that finds the ring full has at least the rest of it to be read,
/// and is told before that is.
const STRIDE: u64 = CAPACITY as u64 / 4;

impl Reader {
    /// A fresh ring's. `None`: it does not fit the memory.
    pub(super) fn new(memory: &Arc<SharedMemory>, header: usize, data: usize) -> Option<Self> {
        let place = Place::new(memory, header, data)?;
        Some(Self { place, head: AtomicU64::new(0), told: AtomicU64::new(0) })
    }

    /// Bytes that wait.
    pub(super) fn available(&self) -> Result<usize, Nonsense> {
        let tail = self.place.position(TAIL).load(Ordering::SeqCst);
        let unread = tail.wrapping_sub(self.head.load(Ordering::Relaxed));
        if unread > CAPACITY as u64 { Err(Nonsense) } else { Ok(unread as usize) }
    }

    /// Reads at most `left` bytes, of which [`Self::available`] has told, into one buffer and then the other, and says how many.
    pub(super) fn take(&self, mut left: usize, first: &mut [u8], then: &mut [u8]) -> usize {
        let start = self.head.load(Ordering::Relaxed);
        let mut head = start;
        for buf in [first, then] {
            let wanted = buf.len().min(left);
            let mut bytes = &mut buf[..wanted];
            left -= wanted;
            while !bytes.is_empty() {
                let (at, there) = self.place.at(head);
                let (now, rest) = bytes.split_at_mut(there.min(bytes.len()));
                // SAFETY: `at` is good for `there` bytes of the mapping, and `now` is no longer; private memory and the mapping
                // do not overlap. A writer that changes them meanwhile changes what is read, which is checked afterwards.
                unsafe { std::ptr::copy_nonoverlapping(at.cast_const(), now.as_mut_ptr(), now.len()) };
                head += now.len() as u64;
                bytes = rest;
            }
        }
        if head != start {
            self.head.store(head, Ordering::Relaxed);
        }
        (head - start) as usize
    }

    /// Asks for the lines where the next bytes will come, so that they travel together with the position that tells of them, not
    /// after it: a tenth of a round trip.
    pub(super) fn expect(&self) {
        #[cfg(target_arch = "x86_64")]
        for line in 0..2 {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let (at, _) = self.place.at(self.head.load(Ordering::Relaxed) + 64 * line);
            // SAFETY: a prefetch is a hint: it reads nothing that could be seen, and faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast_const().cast()) };
        }
    }

    /// Tells the writer how far this side is, now and then. Whether the writer sleeps and is to be woken by the caller.
    pub(super) fn tell(&self) -> bool {
        let head = self.head.load(Ordering::Relaxed);
        if head - self.told.load(Ordering::Relaxed) < STRIDE {
            return false;
        }
        self.told.store(head, Ordering::Relaxed);
        // In one order with the writer's flag: either it sees the room, or this side sees that it sleeps.
        self.place.position(HEAD).swap(head, Ordering::SeqCst);
        let flag = self.place.flag(WRITER_SLEEPS);
        flag.load(Ordering::SeqCst) != 0 && flag.swap(0, Ordering::SeqCst) != 0
    }

    /// Is about to sleep until there is something. Whether there is already.
    pub(super) fn arm(&self) -> Result<bool, Nonsense> {
        self.place.flag(READER_SLEEPS).swap(1, Ordering::SeqCst);
        self.available().map(|n| n > 0)
    }

    /// Has slept.
    pub(super) fn disarm(&self) {
        self.place.flag(READER_SLEEPS).store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring() -> (Writer, Reader) {
        let memory = Arc::new(SharedMemory::new((HEADER + CAPACITY).next_multiple_of(4096)).unwrap());
        (Writer::new(&memory, 0, HEADER).unwrap(), Reader::new(&memory, 0, HEADER).unwrap())
    }

    fn read(reader: &Reader, first: &mut [u8], then: &mut [u8]) -> Result<usize, Nonsense> {
        Ok(reader.take(reader.available()?, first, then))
    }

    fn put(writer: &Writer, bytes: &[u8]) -> usize {
        writer.write(&[IoSlice::new(bytes)]).unwrap()
    }

    proptest! {
        /// Whatever pieces go in and come out, over many times the ring's capacity, the bytes are the same.
        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in proptest::collection::vec((0..70_000_usize, 0..500_usize, 0..70_000_usize, 0..100_usize), 1..200)
        ) {
            let (writer, reader) = ring();
            let (mut sent, mut seen) = (0_u64, 0_u64);
            for (a, b, first, then) in steps {
                let byte = |i: u64| (i ^ (i >> 8)) as u8;
                let bytes: Vec<u8> = (sent..sent + (a + b) as u64).map(byte).collect();
                sent += writer.write(&[IoSlice::new(&bytes[..a]), IoSlice::new(&bytes[a..])]).unwrap() as u64;
                prop_assert!(sent - seen <= CAPACITY as u64);
                let (mut x, mut y) = (vec![0; first], vec![0; then]);
                let n = read(&reader, &mut x, &mut y).unwrap();
                prop_assert_eq!(n as u64, (sent - seen).min((first + then) as u64));
                x.extend(y);
                prop_assert!((seen..seen + n as u64).zip(&x).all(|(i, got)| byte(i) == *got));
                seen += n as u64;
                reader.tell();
            }
        }

        /// Whatever the other side writes to the positions, nothing is touched outside the ring, and it is noticed or harmless.
        #[test]
        fn hostile_positions_end_the_ring(nonsense in any::<u64>(), length in 1..300_usize) {
            let (writer, reader) = ring();
            put(&writer, &vec![1; length]);
            writer.place.position(TAIL).store(nonsense, Ordering::SeqCst);
            let mut out = vec![0; 1000];
            match read(&reader, &mut out, &mut []) {
                Ok(n) => prop_assert!(nonsense <= CAPACITY as u64 && n as u64 == nonsense.min(1000)),
                Err(Nonsense) => prop_assert!(nonsense > CAPACITY as u64),
            }
            writer.place.position(HEAD).store(nonsense, Ordering::SeqCst);
            match writer.arm() {
                Ok(_) => prop_assert!(nonsense <= length as u64),
                Err(Nonsense) => prop_assert!(nonsense > length as u64),
            }
        }
    }

    #[test]
    fn a_position_never_goes_back() {
        let (writer, reader) = ring();
        put(&writer, &[1; 5000]);
        read(&reader, &mut [0; 5000], &mut []).unwrap();
        reader.place.position(HEAD).store(5000, Ordering::SeqCst);
        assert!(writer.arm().unwrap());
        reader.place.position(HEAD).store(4000, Ordering::SeqCst);
        assert_eq!(writer.arm(), Err(Nonsense));
    }

    #[test]
    fn a_full_ring_takes_nothing_and_its_writer_is_woken() {
        let (writer, reader) = ring();
        assert_eq!(put(&writer, &vec![1; CAPACITY + 10]), CAPACITY);
        assert_eq!(put(&writer, &[1]), 0);
        assert!(!writer.arm().unwrap(), "no room");
        let mut out = vec![0; STRIDE as usize - 1];
        read(&reader, &mut out, &mut []).unwrap();
        assert!(!reader.tell(), "not yet worth it");
        read(&reader, &mut [0; 1], &mut []).unwrap();
        assert!(reader.tell(), "woken");
        assert!(!reader.tell(), "once");
        assert_eq!(put(&writer, &vec![1; CAPACITY]), STRIDE as usize);
    }

    #[test]
    fn a_reader_that_sleeps_is_woken_once() {
        let (writer, reader) = ring();
        assert!(!writer.is_to_wake(), "nobody sleeps");
        assert!(!reader.arm().unwrap());
        put(&writer, &[1]);
        assert!(writer.is_to_wake());
        put(&writer, &[2]);
        assert!(!writer.is_to_wake());
        assert!(reader.arm().unwrap(), "there is something: no sleep");
    }

    #[test]
    fn a_ring_that_does_not_fit_is_none() {
        let memory = Arc::new(SharedMemory::new(8192).unwrap());
        assert!(Writer::new(&memory, 0, HEADER).is_none());
        assert!(Reader::new(&memory, usize::MAX - 1023, 0).is_none());
        assert!(Reader::new(&memory, 8, HEADER).is_none());
    }

    /// Two threads, each as fast as it can, sleeping by the flags: what a lost wake-up would stop for ever.
    #[test]
    fn no_wake_up_is_lost() {
        use std::sync::mpsc;
        use std::time::Duration;
        let (writer, reader) = ring();
        const TOTAL: u64 = 40 << 20;
        let (wake_reader, reader_woken) = mpsc::channel();
        let (wake_writer, writer_woken) = mpsc::channel();
        let sending = std::thread::spawn(move || {
            let mut sent = 0_u64;
            while sent < TOTAL {
                let n = ((sent * 7919) % 60_000 + 1).min(TOTAL - sent) as usize;
                let bytes: Vec<u8> = (sent..sent + n as u64).map(|i| i as u8).collect();
                let mut at = 0;
                while at < n {
                    let went = put(&writer, &bytes[at..]);
                    if went > 0 && writer.is_to_wake() {
                        wake_reader.send(()).unwrap();
                    }
                    at += went;
                    if went == 0 && !writer.arm().unwrap() {
                        writer_woken.recv_timeout(Duration::from_secs(30)).expect("woken");
                    }
                }
                sent += n as u64;
            }
        });
        let mut seen = 0_u64;
        let mut out = vec![0; 10_000];
        while seen < TOTAL {
            let n = read(&reader, &mut out, &mut []).unwrap();
            assert!(out[..n].iter().zip(seen..).all(|(b, i)| *b == i as u8));
            seen += n as u64;
            if reader.tell() {
                wake_writer.send(()).unwrap();
            }
            if n == 0 && !reader.arm().unwrap() {
                reader_woken.recv_timeout(Duration::from_secs(30)).expect("woken");
            }
        }
        sending.join().unwrap();
    }
}
