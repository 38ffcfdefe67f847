//! What a measurement takes of both machines: CPU time, copies, memory.

use std::time::Duration;

use anyhow::Result;
use genie_executor::process;
use genie_transport::client::blocking::Session;
use genie_transport::memory::copied_bytes;

/// What both ends have taken so far. A server that does not count something leaves it out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    client_cpu: Duration,
    server_cpu: Option<Duration>,
    /// Payload bytes that both have copied in user space.
    copied: Option<u64>,
    /// What copies to and from the server's GPUs took, and how much of that while the network was busy.
    copies: Option<(Duration, Duration)>,
    /// Bytes of the server's memory that are in place.
    pub(crate) server_resident: Option<u64>,
    /// This process's.
    pub(crate) client_resident: Option<u64>,
}

/// What was taken between two looks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) client_cpu: Duration,
    pub(crate) server_cpu: Option<Duration>,
    pub(crate) copied: Option<u64>,
    /// As [`Usage::copies`].
    pub(crate) copies: Option<(Duration, Duration)>,
}

impl Usage {
    /// Asks the server, over a session that carries nothing else.
    pub(crate) fn look(observer: &mut Session) -> Result<Self> {
        let stats = observer.stats()?;
        let value = |name| stats.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        Ok(Self {
            client_cpu: process::cpu_time(),
            server_cpu: value("genie_process_cpu_microseconds_total").map(Duration::from_micros),
            copied: value("genie_copied_bytes_total").map(|n| n + copied_bytes()),
            copies: copies(&stats),
            server_resident: value("genie_process_resident_bytes"),
            client_resident: process::resident_bytes(),
        })
    }

    /// What was taken since an earlier look.
    pub(crate) fn since(&self, before: &Self) -> Spent {
        let both = |now: Option<Duration>, then: Option<Duration>| Some(now?.saturating_sub(then?));
        Spent {
            client_cpu: self.client_cpu.saturating_sub(before.client_cpu),
            server_cpu: both(self.server_cpu, before.server_cpu),
            copied: self.copied.zip(before.copied).map(|(now, then)| now.saturating_sub(then)),
            copies: both(self.copies.map(|c| c.0), before.copies.map(|c| c.0))
                .zip(both(self.copies.map(|c| c.1), before.copies.map(|c| c.1))),
        }
    }
}

impl Spent {
    /// Adds what was taken in another turn.
    pub(crate) fn add(&mut self, other: Self) {
        self.client_cpu += other.client_cpu;
        self.server_cpu = other.server_cpu.map(|time| time + self.server_cpu.unwrap_or_default());
        self.copied = other.copied.map(|n| n + self.copied.unwrap_or_default());
        let before = self.copies.unwrap_or_default();
        self.copies = other.copies.map(|(took, overlapped)| (took + before.0, overlapped + before.1));
    }

    /// The part of the time that copies to and from GPUs took, in which the network was busy; nothing where none is known of.
    pub(crate) fn copy_overlap(&self) -> Option<f64> {
        let (took, overlapped) = self.copies.filter(|(took, _)| !took.is_zero())?;
        Some(overlapped.div_duration_f64(took))
    }
}

/// What a server's counters say of copies to and from its GPUs; nothing where it does not trace them.
fn copies(stats: &[(String, u64)]) -> Option<(Duration, Duration)> {
    let sum = |ends: &str| {
        let is_one = |name: &str| {
            let ways = ["genie_device_copy_to_device", "genie_device_copy_from_device"];
            ways.iter().any(|way| name.strip_prefix(way).is_some_and(|rest| rest.starts_with(ends)))
        };
        let all: Vec<u64> = stats.iter().filter(|(name, _)| is_one(name)).map(|(_, value)| *value).collect();
        (!all.is_empty()).then(|| Duration::from_micros(all.iter().sum()))
    };
    sum("_microseconds_total{").zip(sum("_overlapped_microseconds_total{"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(values: [u64; 4]) -> Vec<(String, u64)> {
        let names = ["to_device", "to_device_overlapped", "from_device", "from_device_overlapped"];
        let name = |what: &str| format!("genie_device_copy_{what}_microseconds_total{{device=\"cuda:0\"}}");
        let copies = names.iter().zip(values).map(|(what, value)| (name(what), value));
        copies.chain([("genie_runs_total".to_owned(), 7)]).collect()
    }

    #[test]
    fn overlap_is_of_what_was_copied_between_two_looks() {
        let look = |copies| Usage {
            client_cpu: Duration::ZERO,
            server_cpu: None,
            copied: None,
            copies,
            server_resident: None,
            client_resident: None,
        };
        let (before, after) = (look(copies(&stats([10, 1, 20, 2]))), look(copies(&stats([70, 46, 60, 32]))));
        let mut spent = Spent::default();
        spent.add(after.since(&before));
        assert_eq!(spent.copies, Some((Duration::from_micros(100), Duration::from_micros(75))));
        assert_eq!(spent.copy_overlap(), Some(0.75));
        spent.add(after.since(&after));
        assert_eq!(spent.copy_overlap(), Some(0.75));
    }

    #[test]
    fn nothing_is_said_of_copies_that_nobody_traces() {
        assert_eq!(copies(&[("genie_runs_total".to_owned(), 7)]), None);
        assert_eq!(Spent { copies: Some((Duration::ZERO, Duration::ZERO)), ..Spent::default() }.copy_overlap(), None);
    }
}
