//! The floor beside a row: what the machine gives to a program that does nothing else.
//!
//! Links over the network stand on plain sockets, in two processes. Shared memory stands on two processes that hand a message to
//! and fro through memory that both map, and on a plain copy of the bytes.

use std::hint::black_box;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use genie_transport::Uri;
use hdrhistogram::Histogram;

use super::memory::{Memory, Place};
use super::work::Op;
use super::{median, record, rounded, same_host, times};
use crate::connect::scheme;
use crate::floor::{Floor, Waiting, Way, memory};
use crate::say;

/// What a row is compared with.
#[derive(Debug)]
pub(super) enum Floors {
    /// Plain sockets to a process of its own.
    Sockets(Floor, Waiting),
    /// Memory that two processes map; and bytes that are copied to memory of this kind.
    Memory(Memory),
}

/// What the floor gave for a row.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) what: String,
    latencies: Histogram<u64>,
    /// GB/s of each turn.
    rates: Vec<f64>,
    /// That of the turn before: how much fits the next.
    last: Option<f64>,
}

impl Floors {
    /// For a link whose payloads lie in this memory; none for one that has none here, or whose server is on another machine. With the
    /// reason for that.
    pub(super) fn of(uri: &Uri, waiting: Waiting, memory: Memory) -> Result<(Option<Self>, Option<String>)> {
        match scheme(uri).as_str() {
            "shm" => Ok((Some(Self::Memory(memory)), None)),
            "rdma" => Ok((None, Some("no floor for RDMA here: perftest is it (make test-rdma)".to_owned()))),
            _ => match same_host(uri) {
                Ok(()) => Ok((Some(Self::Sockets(Floor::start()?, waiting)), None)),
                Err(error) => Ok((None, Some(format!("no floors: {error:#}")))),
            },
        }
    }

    /// The same, with the reason said to the user.
    pub(super) fn or_note(uri: &Uri, waiting: Waiting, memory: Memory) -> Result<Option<Self>> {
        let (floors, why) = Self::of(uri, waiting, memory)?;
        if let Some(why) = why {
            say::note(&format!("genie: {why}"));
        }
        Ok(floors)
    }

    /// For a link whose floor was asked for, and whose payloads lie in Genie's own memory.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn wanted(uri: &Uri, waiting: Waiting) -> Result<Self> {
        let (floors, why) = Self::of(uri, waiting, Memory::Heap)?;
        floors.ok_or_else(|| anyhow!(why.unwrap_or_default()))
    }

    /// An empty record of the floor for a row.
    pub(super) fn beside(&self, op: Op, streams: u32) -> Result<Beside> {
        let what = match (self, op) {
            (Self::Sockets(_, Waiting::Busy), Op::Echo) => "sockets, polled".to_owned(),
            (Self::Sockets(_, Waiting::Blocking), Op::Echo) => "sockets".to_owned(),
            (Self::Sockets(..), _) if streams == 1 => "a raw stream".to_owned(),
            (Self::Sockets(..), _) => format!("{streams} raw streams"),
            (Self::Memory(_), Op::Echo) => "shared-memory spin".to_owned(),
            (Self::Memory(_), _) if streams == 1 => "memcpy".to_owned(),
            (Self::Memory(_), _) => format!("memcpy, {streams} threads"),
        };
        Ok(Beside { what, latencies: times()?, rates: Vec::new(), last: None })
    }

    /// A connection that is there and silent; none where the floor has no such thing.
    pub(super) fn connection(&self) -> Result<Option<TcpStream>> {
        match self {
            Self::Sockets(floor, _) => floor.hold().map(Some),
            Self::Memory(_) => Ok(None),
        }
    }

    /// Measures it for about so long, and adds that to the record. `depth`: requests in flight, each of which has memory of its own.
    pub(super) fn turn(
        &self,
        beside: &mut Beside,
        op: Op,
        message: &[u8],
        (streams, depth): (u32, u32),
        time: Duration,
    ) -> Result<()> {
        match (self, op) {
            (Self::Sockets(floor, waiting), Op::Echo) => {
                floor.echo(message.len(), *waiting, time, |t| record(&mut beside.latencies, t))
            }
            (Self::Sockets(floor, _), _) => {
                // So many as take the time, going by the turn before.
                let fit = beside.last.unwrap_or_else(|| guess(message.len())) * 1e9 * time.as_secs_f64()
                    / message.len() as f64
                    / f64::from(streams);
                let count = (fit as u64).clamp(2, 1 << 20);
                let way = if op == Op::Get { Way::Back } else { Way::There };
                let took = floor.streams(way, message, count, streams, places_for(message, depth))?;
                beside.moved((message.len() as u64 * count * u64::from(streams)) as f64 / took.as_secs_f64() / 1e9);
                Ok(())
            }
            (Self::Memory(_), Op::Echo) => memory::spin(message.len(), time, |t| record(&mut beside.latencies, t)),
            (Self::Memory(kind), _) => {
                beside.moved(copies(message, *kind, (streams, depth), time)?);
                Ok(())
            }
        }
    }
}

impl Beside {
    /// Forgets what was measured so far, but for how much fits a turn.
    pub(super) fn warmed(&mut self) {
        self.latencies.reset();
        self.rates.clear();
    }

    fn moved(&mut self, rate: f64) {
        self.rates.push(rate);
        self.last = Some(rate);
    }

    /// How many times the floor something moved, from its GB/s in the same turns: the median of the turns' ratios. What both gain or lose
    /// while memory gets faster or slower cancels out.
    pub(super) fn ratio_of(&self, turns: &[f64]) -> Option<f64> {
        let ratios: Vec<f64> = turns.iter().zip(&self.rates).map(|(ours, floor)| ours / floor).collect();
        (!ratios.is_empty()).then(|| rounded(median(&ratios)))
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

/// GB/s of a floor that was not measured yet: a nanosecond for a byte, and 4 us for a message.
fn guess(bytes: usize) -> f64 {
    bytes as f64 / (bytes as f64 + 4e3)
}

/// Memory of all the places that a message goes to, at the most: past every cache, it does not matter how many they are.
const PLACES_BYTES: usize = 256 << 20;

/// Bytes that are copied between two looks at the clock, at least: small copies take less time than a look.
const UNLOOKED: usize = 1 << 20;

fn places_for(message: &[u8], depth: u32) -> u32 {
    let most = (PLACES_BYTES / message.len().max(1)).max(1);
    depth.clamp(1, u32::try_from(most).unwrap_or(u32::MAX))
}

/// GB/s of plain copies of a message, in so many threads together, each to so many places in turn. The places are of the kind that the
/// message lies in, and that a link copies to: small pages would be slower, and no floor.
fn copies(message: &[u8], memory: Memory, (threads, places): (u32, u32), time: Duration) -> Result<f64> {
    let places = places_for(message, places) as usize;
    let unlooked = (UNLOOKED / message.len().max(1)).max(1);
    let all = |_| (0..places).map(|_| memory.place(message.len())).collect::<Result<Vec<_>>>();
    let mut to = (0..threads).map(all).collect::<Result<Vec<_>>>()?;
    let one = |to: &mut [Place]| {
        let mut to: Vec<&mut [u8]> = to.iter_mut().map(|place| &mut ***place).collect();
        let (began, mut bytes) = (Instant::now(), 0u64);
        let mut at = (0..places).cycle();
        loop {
            for place in at.by_ref().take(unlooked) {
                black_box(&mut to[place][..]).copy_from_slice(black_box(message));
            }
            bytes += (unlooked * message.len()) as u64;
            let took = began.elapsed();
            if took >= time {
                return bytes as f64 / took.as_secs_f64() / 1e9;
            }
        }
    };
    std::thread::scope(|scope| {
        let mut to = to.iter_mut();
        let first = to.next();
        let others: Vec<_> = to.map(|to| scope.spawn(move || one(to))).collect();
        Ok(first.map_or(0.0, |to| one(to)) + others.into_iter().map(|t| t.join().unwrap_or(f64::NAN)).sum::<f64>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_floor() {
        for kind in [Memory::Heap, Memory::Malloc] {
            assert!(copies(&[3; 4096], kind, (2, 4), Duration::from_millis(5)).unwrap() > 0.0);
        }
    }

    /// The floor's first turn finds cold caches: it says how much fits a turn, and counts for nothing else.
    #[test]
    fn turns_are_compared_with_those_beside_them() {
        let floors = Floors::Memory(Memory::Heap);
        let mut beside = floors.beside(Op::Put, 1).unwrap();
        beside.moved(100.0);
        beside.warmed();
        assert_eq!((beside.last, beside.gb_s(), beside.ratio_of(&[])), (Some(100.0), None, None));
        // Memory is twice as fast in the second turn, for both.
        [4.0, 8.0, 4.0].into_iter().for_each(|rate| beside.moved(rate));
        assert_eq!((beside.gb_s(), beside.ratio_of(&[3.0, 6.0, 2.0])), (Some(4.0), Some(0.75)));
    }

    #[test]
    fn a_floor_says_what_it_is() {
        let floors = Floors::Memory(Memory::Heap);
        assert_eq!(floors.beside(Op::Put, 2).unwrap().what, "memcpy, 2 threads");
        let (none, why) = Floors::of(&"tcp://192.0.2.1:1".parse().unwrap(), Waiting::Busy, Memory::Heap).unwrap();
        assert!(none.is_none() && why.is_some_and(|why| why.contains("another machine")));
    }
}
