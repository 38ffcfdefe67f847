//! One mapping in two processes. Each end has a counter on a cache line of its own, which the other one watches.

use std::fs::OpenOptions;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use crate::measure::{self, DEPTHS, ECHO_BYTES, PUT_BYTES};
use crate::{OtherEnd, Result, ready};

/// Counters and messages of the two ends, then the slots that puts go to.
const ASKED: usize = 0;
const ANSWERED: usize = 128;
const QUESTION: usize = 256;
const ANSWER: usize = 384;
const SLOTS: usize = 4096;

/// In a question's first byte: give the message back, or say only that it is there.
const ECHO: u8 = 0;
const PUT: u8 = 1;

fn bytes() -> usize {
    SLOTS + DEPTHS[DEPTHS.len() - 1] * PUT_BYTES[PUT_BYTES.len() - 1]
}

/// An echo of a message, and puts: one copy into the slot of the other's memory, which is this end's as well.
pub(crate) fn measure() -> Result<()> {
    let path = format!("/dev/shm/genie-peers-raw-{}", std::process::id());
    let map = Shared::open(&path, true)?;
    let server = OtherEnd::start(&["shm", &path]);
    // Both have it by now, and nobody else needs its name.
    std::fs::remove_file(&path)?;
    let _server = server?;
    let mut turn = 0;
    let (sent, mut back) = ([ECHO; ECHO_BYTES], [1; ECHO_BYTES]);
    let echo = measure::echo(|| {
        turn += 1;
        map.write(QUESTION, &sent);
        map.counter(ASKED).store(turn, Ordering::Release);
        map.wait(ANSWERED, turn);
        map.read(ANSWER, &mut back);
        Ok(())
    })?;
    let mut puts = Vec::new();
    for size in PUT_BYTES {
        for depth in DEPTHS {
            let sources = vec![vec![7; size]; depth];
            map.write(QUESTION, &[PUT; ECHO_BYTES]);
            puts.push(measure::put(size, depth, |count| {
                for i in 0..count {
                    map.wait(ANSWERED, (turn + 1).saturating_sub(depth as u64));
                    turn += 1;
                    map.write(SLOTS + (i % depth) * size, &sources[i % depth]);
                    map.counter(ASKED).store(turn, Ordering::Release);
                }
                map.wait(ANSWERED, turn);
                Ok(())
            })?);
        }
    }
    measure::report(Some(&echo), &puts);
    Ok(())
}

pub(crate) fn serve(path: &str) -> Result<()> {
    let map = Shared::open(path, false)?;
    ready("ready")?;
    let mut message = [0; ECHO_BYTES];
    for turn in 1.. {
        map.wait(ASKED, turn);
        map.read(QUESTION, &mut message);
        if message[0] == ECHO {
            map.write(ANSWER, &message);
        }
        map.counter(ANSWERED).store(turn, Ordering::Release);
    }
    Ok(())
}

/// Copies within one process, by one thread: what no transport that copies once can beat.
pub(crate) fn copies() -> Result<()> {
    let mut puts = Vec::new();
    for size in PUT_BYTES {
        for depth in DEPTHS {
            let sources = vec![vec![7_u8; size]; depth];
            let mut targets = vec![vec![0_u8; size]; depth];
            puts.push(measure::put(size, depth, |count| {
                for i in 0..count {
                    targets[i % depth].copy_from_slice(&sources[i % depth]);
                    std::hint::black_box(&mut targets);
                }
                Ok(())
            })?);
        }
    }
    measure::report(None, &puts);
    Ok(())
}

struct Shared(MmapRaw);

impl Shared {
    fn open(path: &str, create: bool) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(create).open(path)?;
        if create {
            file.set_len(bytes() as u64)?;
        }
        Ok(Self(MmapOptions::new().len(bytes()).map_raw(&file)?))
    }

    fn counter(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= bytes());
        // SAFETY: within the mapping, aligned, and touched by both processes only as an atomic.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().add(at).cast()) }
    }

    /// Returns when the counter has come so far.
    fn wait(&self, at: usize, turn: u64) {
        while self.counter(at).load(Ordering::Acquire) < turn {
            std::hint::spin_loop();
        }
    }

    fn write(&self, at: usize, bytes_in: &[u8]) {
        assert!(at + bytes_in.len() <= bytes());
        // SAFETY: within the mapping; the counters' turns give this place to one end at a time.
        unsafe { self.0.as_mut_ptr().add(at).copy_from_nonoverlapping(bytes_in.as_ptr(), bytes_in.len()) }
    }

    fn read(&self, at: usize, out: &mut [u8]) {
        assert!(at + out.len() <= bytes());
        // SAFETY: as in `write`.
        unsafe { out.as_mut_ptr().copy_from_nonoverlapping(self.0.as_mut_ptr().add(at), out.len()) }
    }
}
