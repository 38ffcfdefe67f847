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
        }
    }
}

impl Spent {
    /// Adds what was taken in another turn.
    pub(crate) fn add(&mut self, other: Self) {
        self.client_cpu += other.client_cpu;
        self.server_cpu = other.server_cpu.map(|time| time + self.server_cpu.unwrap_or_default());
        self.copied = other.copied.map(|n| n + self.copied.unwrap_or_default());
    }
}
