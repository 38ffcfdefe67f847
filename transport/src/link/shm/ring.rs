//! A ring of bytes in shared memory: one side writes, the other reads.
//!
//! Positions count bytes since the beginning and never wrap back; a byte lies at its position modulo the capacity. What is written
//! at once is a record: a word, then the bytes, up to the next multiple of a cache line. The word is written last, and says where
//! the record ends: so a small message and the news of it arrive together, in a line or two, where a position kept elsewhere would
//! be one more to wait for. A line holds what was written a round ago until it is written again; the word has a key mixed in that
//! only the two ends know, so that no bytes of anybody's that are left over in the ring pass for one.
//!
//! Each side keeps its own position in its own memory. What the other side says is checked before it is used, and nothing that is
//! written to the shared memory can make this side read or write outside the ring. There is no lock, so a side that dies in the
//! middle leaves nothing behind that the other would wait for.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::memory::SharedMemory;

/// Bytes that a ring holds.
pub(super) const CAPACITY: usize = 128 << 10;

/// Bytes of memory for a ring's key, position and flags.
pub(super) const HEADER: usize = 1024;

/// Where they are: far enough from each other that no two share a cache line, nor the pair that is fetched together.
const KEY: usize = 0;
const HEAD: usize = 128;
const READER_SLEEPS: usize = 256;
const WRITER_SLEEPS: usize = 384;

/// A record begins and ends on a multiple of this; its word takes so many bytes of it.
const LINE: u64 = 64;
const WORD: u64 = 8;

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

    /// The word of the record that begins at `position`, a multiple of [`LINE`].
    fn word(&self, position: u64) -> &AtomicU64 {
        let (at, _) = self.at(position & !(LINE - 1));
        // SAFETY: `new` has seen that the ring's bytes lie within the mapping; a line, and so the eight bytes at its front, lies
        // within them, aligned, and any bits are a number. Where a record's own bytes are written there by plain copies, the other
        // side may see any mixture, as of all that it reads.
        unsafe { AtomicU64::from_ptr(at.cast()) }
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

/// What a side must know to tell a record from what was left over. Its highest bit is set: memory that is all zero holds no record.
pub(super) fn fresh_key(memory: &SharedMemory, header: usize) -> std::io::Result<()> {
    let mut key = [0; 8];
    getrandom::fill(&mut key).map_err(|error| std::io::Error::other(error.to_string()))?;
    key[7] |= 0x80;
    memory.write(header + KEY, &key);
    Ok(())
}

/// A record that begins at `position`, as its word says: where it ends, and its bytes. `None`: there is no record.
fn record(word: u64, key: u64, position: u64) -> Option<(u64, u64)> {
    let said = word ^ key;
    let (end, spare) = (said & !(LINE - 1), said & (LINE - 1));
    let whole = end.wrapping_sub(position);
    // What is left over from earlier rounds ends earlier, or is no word at all.
    if whole > CAPACITY as u64 {
        return None;
    }
    Some((end, whole.checked_sub(WORD + spare).filter(|&bytes| bytes > 0)?))
}

/// The side that writes. One thread at a time; two would spoil each other's bytes, and nothing else.
#[derive(Debug)]
pub(super) struct Writer {
    place: Place,
    key: u64,
    /// A multiple of [`LINE`].
    tail: AtomicU64,
    /// The reader's position when it was last looked at.
    head: AtomicU64,
}

impl Writer {
    /// A fresh ring's, which has its key. `None`: it does not fit the memory.
    pub(super) fn new(memory: &Arc<SharedMemory>, header: usize, data: usize) -> Option<Self> {
        let place = Place::new(memory, header, data)?;
        let key = place.position(KEY).load(Ordering::Relaxed);
        Some(Self { place, key, tail: AtomicU64::new(0), head: AtomicU64::new(0) })
    }

    /// Writes as much as fits, and says how much.
    pub(super) fn write(&self, bufs: &[IoSlice<'_>]) -> Result<usize, Nonsense> {
        let tail = self.tail.load(Ordering::Relaxed);
        let wanted: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut room = Self::room(CAPACITY - (tail - self.head.load(Ordering::Relaxed)) as usize);
        if room < wanted {
            room = Self::room(self.look()?);
        }
        let bytes = wanted.min(room);
        if bytes == 0 {
            return Ok(0);
        }
        // From the end: the first line, which the reader watches, is taken from it last and for the shortest time.
        let mut after = wanted;
        for buf in bufs.iter().rev() {
            let from = after - buf.len();
            after = from;
            if from < bytes {
                self.copy(tail + WORD + from as u64, &buf[..buf.len().min(bytes - from)]);
            }
        }
        let end = (tail + WORD + bytes as u64).next_multiple_of(LINE);
        let spare = end - (tail + WORD + bytes as u64);
        self.tail.store(end, Ordering::Relaxed);
        // In one order with the reader's flag: either it sees the record, or this side sees that it sleeps.
        self.place.word(tail).swap((end | spare) ^ self.key, Ordering::SeqCst);
        Ok(bytes)
    }

    /// Bytes of a record for which so many are free.
    fn room(free: usize) -> usize {
        (free & !(LINE as usize - 1)).saturating_sub(WORD as usize)
    }

    fn copy(&self, mut position: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (at, room) = self.place.at(position);
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            // SAFETY: `at` is good for `room` bytes of the mapping, and `now` is no longer; private memory and the mapping do not
            // overlap. The reader does not look at these bytes before the record's word says so; should a hostile one, or one that
            // writes them, it harms its own stream.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), at, now.len()) };
            position += now.len() as u64;
            bytes = rest;
        }
    }

    /// Whether the reader sleeps and is to be woken by the caller; it is asked once a sleep.
    #[inline]
    pub(super) fn is_to_wake(&self) -> bool {
        let flag = self.place.flag(READER_SLEEPS);
        flag.load(Ordering::SeqCst) != 0 && flag.swap(0, Ordering::SeqCst) != 0
    }

    /// Is about to sleep until there is room. Whether there is some already.
    pub(super) fn arm(&self) -> Result<bool, Nonsense> {
        self.place.flag(WRITER_SLEEPS).swap(1, Ordering::SeqCst);
        self.look().map(|free| Self::room(free) > 0)
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
    key: u64,
    /// The next byte; between two records, where the next begins.
    head: AtomicU64,
    /// Of the record that was begun: its bytes that were not read, and where it ends.
    left: AtomicU64,
    end: AtomicU64,
    /// What the writer was told: it is told in strides, since it asks only when the ring seems full.
    told: AtomicU64,
}

/// How far a reader goes before it tells the writer. A writer that finds the ring full has at least the rest of it to be read,
/// and is told before that is.
const STRIDE: u64 = CAPACITY as u64 / 4;

impl Reader {
    /// A fresh ring's, which has its key. `None`: it does not fit the memory.
    pub(super) fn new(memory: &Arc<SharedMemory>, header: usize, data: usize) -> Option<Self> {
        let place = Place::new(memory, header, data)?;
        let key = place.position(KEY).load(Ordering::Relaxed);
        let zero = || AtomicU64::new(0);
        Some(Self { place, key, head: zero(), left: zero(), end: zero(), told: zero() })
    }

    /// Whether something waits.
    #[inline]
    pub(super) fn has_more(&self) -> bool {
        self.left.load(Ordering::Relaxed) > 0 || self.next().is_some()
    }

    /// The record that begins where this side is.
    #[inline]
    fn next(&self) -> Option<(u64, u64)> {
        let head = self.head.load(Ordering::Relaxed);
        record(self.place.word(head).load(Ordering::SeqCst), self.key, head)
    }

    /// Reads one record, or the rest of it, into one buffer and then the other, and says how much: what has come since the caller saw
    /// that something waits, is not read with it.
    pub(super) fn read(&self, first: &mut [u8], then: &mut [u8]) -> usize {
        let mut head = self.head.load(Ordering::Relaxed);
        let mut left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            let Some((end, bytes)) = self.next() else { return 0 };
            self.end.store(end, Ordering::Relaxed);
            head += WORD;
            left = bytes;
        }
        let mut read = 0;
        for buf in [first, then] {
            let wanted = buf.len().min(left as usize);
            self.copy(head, &mut buf[..wanted]);
            head += wanted as u64;
            left -= wanted as u64;
            read += wanted;
        }
        self.left.store(left, Ordering::Relaxed);
        self.head.store(if left == 0 { self.end.load(Ordering::Relaxed) } else { head }, Ordering::Relaxed);
        read
    }

    fn copy(&self, mut position: u64, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let (at, there) = self.place.at(position);
            let (now, rest) = bytes.split_at_mut(there.min(bytes.len()));
            // SAFETY: `at` is good for `there` bytes of the mapping, and `now` is no longer; private memory and the mapping do not
            // overlap. A writer that changes them meanwhile changes what is read, which is checked afterwards.
            unsafe { std::ptr::copy_nonoverlapping(at.cast_const(), now.as_mut_ptr(), now.len()) };
            position += now.len() as u64;
            bytes = rest;
        }
    }

    /// Asks for the line behind the one that is watched, so that the two travel together.
    #[inline]
    pub(super) fn expect(&self) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let (at, _) = self.place.at(self.head.load(Ordering::Relaxed) + LINE);
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
    pub(super) fn arm(&self) -> bool {
        self.place.flag(READER_SLEEPS).swap(1, Ordering::SeqCst);
        self.has_more()
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

    impl Writer {
        /// What a process that is killed in the middle of a write leaves behind: the bytes lie there, and nobody is told.
        pub(in crate::link::shm) fn die_before_the_word(&self, bytes: &[u8]) {
            self.copy(self.tail.load(Ordering::Relaxed) + WORD, bytes);
        }
    }

    fn ring() -> (Writer, Reader) {
        let memory = Arc::new(SharedMemory::new((HEADER + CAPACITY).next_multiple_of(4096)).unwrap());
        fresh_key(&memory, 0).unwrap();
        (Writer::new(&memory, 0, HEADER).unwrap(), Reader::new(&memory, 0, HEADER).unwrap())
    }

    /// Record after record, until nothing waits or the buffer is full.
    fn read(reader: &Reader, out: &mut [u8]) -> usize {
        let mut all = 0;
        while all < out.len() && reader.has_more() {
            let third = (out.len() - all) / 3;
            let (first, then) = out[all..].split_at_mut(third);
            all += reader.read(first, then);
        }
        all
    }

    fn put(writer: &Writer, bytes: &[u8]) -> usize {
        writer.write(&[IoSlice::new(bytes)]).unwrap()
    }

    proptest! {
        /// Whatever pieces go in and come out, over many times the ring's capacity, the bytes are the same.
        #[test]
        fn bytes_come_out_as_they_went_in(
            steps in proptest::collection::vec((0..70_000_usize, 0..500_usize, 0..70_000_usize), 1..200)
        ) {
            let (writer, reader) = ring();
            let (mut sent, mut seen) = (0_u64, 0_u64);
            for (a, b, wanted) in steps {
                let byte = |i: u64| (i ^ (i >> 8)) as u8;
                let bytes: Vec<u8> = (sent..sent + (a + b) as u64).map(byte).collect();
                sent += writer.write(&[IoSlice::new(&bytes[..a]), IoSlice::new(&bytes[a..])]).unwrap() as u64;
                prop_assert!(sent - seen <= CAPACITY as u64);
                let mut out = vec![0; wanted];
                let n = read(&reader, &mut out);
                prop_assert_eq!(n as u64, (sent - seen).min(wanted as u64));
                prop_assert!((seen..seen + n as u64).zip(&out).all(|(i, got)| byte(i) == *got));
                seen += n as u64;
                reader.tell();
            }
        }

        /// Whatever the other side writes in place of a word or a position, nothing is touched outside the ring, and it is noticed or
        /// harmless.
        #[test]
        fn hostile_words_and_positions_are_harmless(nonsense in any::<u64>(), near in 0..300_000_u64, length in 1..300_usize) {
            for word in [nonsense, near, near ^ u64::MAX] {
                let (writer, reader) = ring();
                put(&writer, &vec![1; length]);
                writer.place.word(0).store(word ^ writer.key, Ordering::SeqCst);
                let mut out = vec![0; CAPACITY];
                let n = reader.read(&mut out, &mut []) as u64;
                let (end, spare) = (word & !63, word & 63);
                let good = end <= CAPACITY as u64 && end > spare + 8;
                prop_assert_eq!(n, if good { end - spare - 8 } else { 0 });
                writer.place.position(HEAD).store(word, Ordering::SeqCst);
                let tail = writer.tail.load(Ordering::Relaxed);
                prop_assert_eq!(writer.arm().is_ok(), word <= tail);
            }
        }
    }

    /// Somebody's tensor may be made of what words would be, did they have no key.
    #[test]
    fn what_is_left_over_from_a_round_before_is_no_record() {
        let (writer, reader) = ring();
        let words = |from: u64| -> Vec<u8> {
            (0..CAPACITY as u64 / 8)
                .flat_map(|i| ((from + i * 8).next_multiple_of(LINE) + LINE).to_ne_bytes())
                .collect()
        };
        let mut out = vec![0; CAPACITY];
        for round in 1..4 {
            let wrote = put(&writer, &words(round * CAPACITY as u64)[8..]);
            assert_eq!(wrote, CAPACITY - 8);
            assert_eq!(read(&reader, &mut out), wrote);
            assert!(!reader.has_more(), "round {round}");
            reader.tell();
        }
        let (_, fresh) = ring();
        assert!(!fresh.has_more(), "nor is memory that was never written");
    }

    #[test]
    fn a_record_is_read_by_itself() {
        let (writer, reader) = ring();
        put(&writer, &[1; 50]);
        put(&writer, &[2; 300]);
        let mut out = [0; 1000];
        assert_eq!(reader.read(&mut out, &mut []), 50);
        assert_eq!(reader.read(&mut out[..100], &mut []), 100);
        assert!(reader.has_more());
        assert_eq!(reader.read(&mut out, &mut []), 200);
        assert!(!reader.has_more());
        assert_eq!(reader.read(&mut out, &mut []), 0);
    }

    #[test]
    fn a_position_never_goes_back() {
        let (writer, reader) = ring();
        put(&writer, &[1; 5000]);
        read(&reader, &mut [0; 5000]);
        reader.place.position(HEAD).store(5000, Ordering::SeqCst);
        assert!(writer.arm().unwrap());
        reader.place.position(HEAD).store(4000, Ordering::SeqCst);
        assert_eq!(writer.arm(), Err(Nonsense));
    }

    #[test]
    fn a_full_ring_takes_nothing_and_its_writer_is_woken() {
        let (writer, reader) = ring();
        assert_eq!(put(&writer, &vec![1; CAPACITY + 10]), CAPACITY - 8);
        assert_eq!(put(&writer, &[1]), 0);
        assert!(!writer.arm().unwrap(), "no room");
        let mut out = vec![0; STRIDE as usize - 9];
        read(&reader, &mut out);
        assert!(!reader.tell(), "not yet worth it");
        read(&reader, &mut [0; 1]);
        assert!(reader.tell(), "woken");
        assert!(!reader.tell(), "once");
        assert_eq!(put(&writer, &vec![1; CAPACITY]), STRIDE as usize - 8);
    }

    #[test]
    fn a_reader_that_sleeps_is_woken_once() {
        let (writer, reader) = ring();
        assert!(!writer.is_to_wake(), "nobody sleeps");
        assert!(!reader.arm());
        put(&writer, &[1]);
        assert!(writer.is_to_wake());
        put(&writer, &[2]);
        assert!(!writer.is_to_wake());
        assert!(reader.arm(), "there is something: no sleep");
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
            let n = read(&reader, &mut out);
            assert!(out[..n].iter().zip(seen..).all(|(b, i)| *b == i as u8));
            seen += n as u64;
            if reader.tell() {
                // One that found room after all has not slept, and may have written all and ended.
                let _ = wake_writer.send(());
            }
            if n == 0 && !reader.arm() {
                reader_woken.recv_timeout(Duration::from_secs(30)).expect("woken");
            }
        }
        sending.join().unwrap();
    }
}
