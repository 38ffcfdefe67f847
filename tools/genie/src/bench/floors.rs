//! The floor beside a row: what the machine gives to a program that does nothing else.
//!
//! Links over the network stand on plain sockets, in two processes. Shared memory stands on two threads that hand a message to
//! and fro through memory that both see, and on a plain copy of the bytes.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use genie_transport::Uri;
use hdrhistogram::Histogram;

use super::server::scheme;
use super::work::Op;
use super::{median, record, rounded, same_host, times};
use crate::floor::{Floor, Waiting};

/// What a row is compared with.
#[derive(Debug)]
pub(super) enum Floors {
    /// Plain sockets to a process of its own.
    Sockets(Floor, Waiting),
    /// Memory that two threads share.
    Memory,
}

/// What the floor gave for a row.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) what: String,
    latencies: Histogram<u64>,
    rates: Vec<f64>,
}

impl Floors {
    /// For a link; none for one that has none here, or whose server is on another machine. With the reason for that.
    pub(super) fn of(uri: &Uri, waiting: Waiting) -> Result<(Option<Self>, Option<String>)> {
        match scheme(uri).as_str() {
            "shm" => Ok((Some(Self::Memory), None)),
            "rdma" => Ok((None, Some("no floor for RDMA here: perftest is it (make test-rdma)".to_owned()))),
            _ => match same_host(uri) {
                Ok(()) => Ok((Some(Self::Sockets(Floor::start()?, waiting)), None)),
                Err(error) => Ok((None, Some(format!("no floors: {error:#}")))),
            },
        }
    }

    /// An empty record of the floor for a row.
    pub(super) fn beside(&self, op: Op, streams: u32) -> Result<Beside> {
        let what = match (self, op) {
            (Self::Sockets(_, Waiting::Busy), Op::Echo) => "sockets, polled".to_owned(),
            (Self::Sockets(_, Waiting::Blocking), Op::Echo) => "sockets".to_owned(),
            (Self::Sockets(..), _) if streams == 1 => "a raw stream".to_owned(),
            (Self::Sockets(..), _) => format!("{streams} raw streams"),
            (Self::Memory, Op::Echo) => "shared-memory spin".to_owned(),
            (Self::Memory, _) if streams == 1 => "memcpy".to_owned(),
            (Self::Memory, _) => format!("memcpy, {streams} threads"),
        };
        Ok(Beside { what, latencies: times()?, rates: Vec::new() })
    }

    /// Measures it for about so long, and adds that to the record.
    pub(super) fn turn(&self, beside: &mut Beside, op: Op, message: &[u8], streams: u32, time: Duration) -> Result<()> {
        match (self, op) {
            (Self::Sockets(floor, waiting), Op::Echo) => {
                floor.echo(message.len(), *waiting, time, |t| record(&mut beside.latencies, t))
            }
            (Self::Sockets(floor, _), _) => {
                // So many as take the time, going by the turn before.
                let rate = beside.rates.last().copied().unwrap_or(1.0);
                let fit = rate * 1e9 * time.as_secs_f64() / message.len() as f64 / f64::from(streams);
                let count = (fit as u64).clamp(2, 1 << 20);
                let took = floor.streams(message, count, streams)?;
                beside
                    .rates
                    .push((message.len() as u64 * count * u64::from(streams)) as f64 / took.as_secs_f64() / 1e9);
                Ok(())
            }
            (Self::Memory, Op::Echo) => {
                spin(message.len(), time, |t| record(&mut beside.latencies, t));
                Ok(())
            }
            (Self::Memory, _) => {
                beside.rates.push(copies(message, streams, time));
                Ok(())
            }
        }
    }
}

impl Beside {
    /// Forgets what was measured so far, but for how much fits a turn.
    pub(super) fn warmed(&mut self) {
        self.latencies.reset();
        self.rates.drain(..self.rates.len().saturating_sub(1));
    }

    /// The median round trip, in microseconds.
    pub(super) fn p50_us(&self) -> Option<f64> {
        (!self.latencies.is_empty()).then(|| rounded(self.latencies.value_at_quantile(0.5) as f64 / 1e3))
    }

    /// The median of the turns, in GB/s.
    pub(super) fn gb_s(&self) -> Option<f64> {
        (!self.rates.is_empty()).then(|| rounded(median(&self.rates)))
    }
}

/// A message in memory that two threads see, and the number of it: on a line of its own, as are its bytes.
#[repr(align(128))]
struct Mailbox {
    number: AtomicU64,
    words: Box<[AtomicU64]>,
}

impl Mailbox {
    fn new(bytes: usize) -> Self {
        Self { number: AtomicU64::new(0), words: (0..bytes.div_ceil(8)).map(|_| AtomicU64::new(0)).collect() }
    }

    fn send(&self, number: u64, words: &[u64]) {
        for (to, from) in self.words.iter().zip(words) {
            to.store(*from, Ordering::Relaxed);
        }
        self.number.store(number, Ordering::Release);
    }

    /// Whether the message with this number is there; then it is in `words`.
    fn receive(&self, number: u64, words: &mut [u64]) -> bool {
        if self.number.load(Ordering::Acquire) != number {
            return false;
        }
        for (to, from) in words.iter_mut().zip(&self.words) {
            *to = from.load(Ordering::Relaxed);
        }
        true
    }
}

/// Looks between two words to the scheduler: on one core, the other side has to run.
const LOOKS: u32 = 10_000;

/// Round trips between two threads that poll.
fn spin(bytes: usize, time: Duration, mut each: impl FnMut(Duration)) {
    let (there, back, stop) = (Mailbox::new(bytes), Mailbox::new(bytes), AtomicBool::new(false));
    let wait = |mailbox: &Mailbox, number, words: &mut [u64]| {
        let mut looks = 0u32;
        while !mailbox.receive(number, words) {
            looks += 1;
            if looks.is_multiple_of(LOOKS) {
                if stop.load(Ordering::Relaxed) {
                    return false;
                }
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        true
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut words = vec![0; bytes.div_ceil(8)];
            let mut number = 1;
            while wait(&there, number, &mut words) {
                back.send(number, &words);
                number += 1;
            }
        });
        let mut words = vec![7; bytes.div_ceil(8)];
        let began = Instant::now();
        let mut then = began;
        for number in 1.. {
            there.send(number, &words);
            if !wait(&back, number, &mut words) {
                break;
            }
            let now = Instant::now();
            // The first waits for the other thread to begin.
            if number > 1 {
                each(now - then);
                if now - began >= time {
                    break;
                }
            }
            then = now;
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// GB/s of plain copies of a message, in so many threads together.
fn copies(message: &[u8], threads: u32, time: Duration) -> f64 {
    let one = || {
        let mut to = vec![1; message.len()];
        let (began, mut bytes) = (Instant::now(), 0u64);
        loop {
            black_box(&mut to[..]).copy_from_slice(black_box(message));
            bytes += message.len() as u64;
            let took = began.elapsed();
            if took >= time {
                return bytes as f64 / took.as_secs_f64() / 1e9;
            }
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(one)).collect();
        one() + others.into_iter().map(|t| t.join().unwrap_or(f64::NAN)).sum::<f64>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_floor() {
        let mut trips = 0;
        spin(100, Duration::from_millis(5), |_| trips += 1);
        assert!(trips > 0);
        assert!(copies(&[3; 4096], 2, Duration::from_millis(5)) > 0.0);
    }

    #[test]
    fn a_mailbox_gives_what_was_sent() {
        let mailbox = Mailbox::new(20);
        let mut words = [0; 3];
        assert!(!mailbox.receive(1, &mut words));
        mailbox.send(1, &[1, 2, 3]);
        assert!(mailbox.receive(1, &mut words) && words == [1, 2, 3]);
    }

    #[test]
    fn a_floor_says_what_it_is() {
        let floors = Floors::Memory;
        assert_eq!(floors.beside(Op::Put, 2).unwrap().what, "memcpy, 2 threads");
        let (none, why) = Floors::of(&"tcp://192.0.2.1:1".parse().unwrap(), Waiting::Busy).unwrap();
        assert!(none.is_none() && why.is_some_and(|why| why.contains("another machine")));
    }
}
