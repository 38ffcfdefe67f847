//! How a link moves a tensor, who can read along, and what limits it.

#[cfg(feature = "rdma")]
use std::net::ToSocketAddrs;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(feature = "rdma")]
use anyhow::Context;
use anyhow::Result;
use genie_transport::Uri;
use genie_transport::client::blocking::Session;
#[cfg(feature = "rdma")]
use genie_transport::link::rdma::{self, DeviceMemory};
use genie_transport::link::tcp::{self, Path, Splice};
use socket2::SockRef;

use crate::connect::scheme;

/// What can be told of a link without moving a tensor.
#[derive(Debug)]
pub(super) struct Mechanism {
    pub(super) scheme: String,
    pub(super) congestion_control: Option<String>,
    /// For sockets: what lies between.
    path: Option<Path>,
    /// Whether pages can be handed to the kernel here.
    splices: bool,
}

/// An answer, and the reason for it.
pub(super) type Because<T> = (T, String);

impl Mechanism {
    pub(super) fn of(uri: &Uri) -> Result<Self> {
        let scheme = scheme(uri);
        if !["tcp", "tcps", "uring", "urings"].contains(&scheme.as_str()) {
            return Ok(Self { scheme, congestion_control: None, path: None, splices: false });
        }
        // Under all of them lies a socket to the same place.
        let socket: Uri = uri.to_string().replacen(&scheme, "tcp", 1).parse()?;
        let (stream, path) = tcp::connect(&socket, Duration::from_secs(5))?;
        let name = SockRef::from(&stream).tcp_congestion().ok();
        let name = name.map(|n| String::from_utf8_lossy(&n).trim_end_matches('\0').to_owned());
        Ok(Self { scheme, congestion_control: name, path: Some(path), splices: Splice::new().is_some() })
    }

    /// Whether what a put sends is copied on the way out. `sent`: what the lanes did, where they choose by themselves.
    pub(super) fn zero_copy(&self, sent: Sent) -> Because<bool> {
        let (zero_copy, why) = match (self.scheme.as_str(), self.path) {
            ("shm", _) => (true, "a tensor allocated in the shared memory is passed; any other is copied into it once"),
            ("rdma", _) => (true, "the device reads and writes registered memory itself"),
            ("tcps" | "urings", _) => (false, "what is sent is encrypted into buffers of its own"),
            (_, Some(Path::SameHost)) if self.splices => (
                true,
                "both ends are on one host: pages are handed to the kernel by reference, and the receiver's copy is the only one",
            ),
            (_, Some(Path::SameHost)) => (
                false,
                "this process may have no pipe of 1 MiB, or ends when one breaks: the kernel copies what is sent",
            ),
            ("uring", _) => return sent.zero_copy(),
            ("tcp", _) => (false, "the kernel copies what is sent: pages by reference pay over loopback alone"),
            _ => (false, "nothing is known of this link"),
        };
        (zero_copy, why.to_owned())
    }

    /// Whether somebody on the way could read along.
    pub(super) fn encrypted(&self) -> Because<bool> {
        let (encrypted, why) = match (self.scheme.as_str(), self.path) {
            ("tcps" | "urings", _) => (true, "TLS 1.3"),
            ("shm", _) => (false, "it does not leave this host: the memory is mapped by the two ends alone"),
            ("rdma", _) => (
                false,
                "RDMA payloads are not encrypted, with or without tokens: for a network that is trusted; tcps:// encrypts",
            ),
            (_, Some(Path::SameHost)) => (false, "it does not leave this host; tcps:// encrypts"),
            _ => (false, "whoever is on the way can read along: tcps:// encrypts"),
        };
        (encrypted, why.to_owned())
    }

    /// What limits a put: the first that explains it.
    pub(super) fn bottleneck(&self, put_gb_s: f64, memcpy_gb_s: f64) -> Because<&'static str> {
        let share = put_gb_s / memcpy_gb_s * 100.0;
        if share >= 70.0 {
            let why = format!("a put runs at {share:.0} % of what one thread copies from memory to memory");
            return ("memory", why);
        }
        match (self.scheme.as_str(), self.path) {
            ("tcps" | "urings", Some(Path::SameHost)) => (
                "processor",
                format!(
                    "each byte is encrypted, copied by the kernel and decrypted: {share:.0} % of a plain copy is left"
                ),
            ),
            ("tcp" | "uring", Some(Path::SameHost)) => (
                "kernel",
                format!(
                    "over loopback the kernel copies each byte for the receiver: {share:.0} % of a plain copy is left"
                ),
            ),
            ("tcp" | "tcps" | "uring" | "urings" | "rdma", _) => (
                "network",
                format!("a put runs at {share:.0} % of what one thread copies: memory is not what it waits for"),
            ),
            _ => (
                "copy",
                format!("a put of ordinary memory is copied into the link's: {share:.0} % of a plain copy is left"),
            ),
        }
    }
}

/// What a session's lanes have sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    slices: u64,
    /// Those that the kernel has not copied either, of lanes that choose.
    spared: u64,
}

impl Sent {
    pub(super) fn of(session: &mut Session) -> Self {
        let lanes = session.counters().lanes();
        let sum = |count: fn(&genie_transport::connection::LaneCounts) -> u64| lanes.iter().map(|l| count(l)).sum();
        Self {
            slices: sum(|lane| lane.slices_up.load(Ordering::Relaxed)),
            spared: sum(|lane| lane.zero_copied.load(Ordering::Relaxed)),
        }
    }

    fn zero_copy(self) -> Because<bool> {
        let Self { slices, spared } = self;
        let why = format!(
            "each lane measures sends with and without a copy, and goes on with the faster: {spared} of the {slices} slices of these \
             puts went without"
        );
        (spared * 2 > slices, why)
    }
}

/// How tensors in a GPU's memory come to the network card of this link, as this machine's own card can tell; and why.
#[cfg(feature = "rdma")]
pub(super) fn device_memory(uri: &Uri) -> Result<Option<Because<&'static str>>> {
    let Uri::Rdma { host, port } = uri else { return Ok(None) };
    let address = (host.as_str(), *port).to_socket_addrs()?.next();
    let address = address.with_context(|| format!("{host} has no address"))?;
    let found = DeviceMemory::towards(address).with_context(|| format!("asking the device that leads to {address}"))?;
    Ok(Some(match found.path {
        rdma::Path::Staged { why } => ("staged through pinned slabs", why),
        rdma::Path::Address => ("direct, by address", format!("nvidia-peermem tells {} of it", found.facts.device)),
        _ => ("direct, by dmabuf", format!("{} registers the memory itself", found.facts.device)),
    }))
}

/// Only a network card that reads memory by itself could read a GPU's.
#[cfg(not(feature = "rdma"))]
pub(super) fn device_memory(_: &Uri) -> Result<Option<Because<&'static str>>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mechanism(scheme: &str, path: Option<Path>) -> Mechanism {
        Mechanism { scheme: scheme.to_owned(), congestion_control: None, path, splices: true }
    }

    #[test]
    fn what_limits_a_put() {
        let of = |scheme, path, put| mechanism(scheme, path).bottleneck(put, 10.0).0;
        assert_eq!(of("tcp", Some(Path::SameHost), 8.0), "memory");
        assert_eq!(of("tcp", Some(Path::SameHost), 4.0), "kernel");
        assert_eq!(of("tcps", Some(Path::SameHost), 4.0), "processor");
        assert_eq!(of("tcp", Some(Path::Lan), 1.2), "network");
        assert_eq!(of("rdma", None, 1.2), "network");
        assert_eq!(of("shm", None, 3.0), "copy");
        assert_eq!(of("shm", None, 9.0), "memory");
    }

    /// On one host both links of sockets hand pages over; elsewhere tcp copies, and uring's lanes say what they did.
    #[test]
    fn what_is_copied_on_the_way_out() {
        let of = |scheme, path, spared| mechanism(scheme, path).zero_copy(Sent { slices: 100, spared });
        for scheme in ["tcp", "uring"] {
            assert!(of(scheme, Some(Path::SameHost), 0).0);
            let small = Mechanism { splices: false, ..mechanism(scheme, Some(Path::SameHost)) };
            assert!(!small.zero_copy(Sent::default()).0, "no page is handed over without a pipe");
        }
        for path in [Path::Lan, Path::Wan] {
            assert!(!of("tcp", Some(path), 0).0);
            let (chosen, why) = of("uring", Some(path), 90);
            assert!(chosen && why.contains("90 of the 100"), "{why}");
            assert!(!of("uring", Some(path), 4).0);
        }
        for scheme in ["tcps", "urings"] {
            assert!(!of(scheme, Some(Path::SameHost), 0).0);
        }
        assert!(of("shm", None, 0).0 && of("rdma", None, 0).0);
    }

    #[test]
    fn who_could_read_along() {
        let of = |scheme, path| mechanism(scheme, path).encrypted();
        for path in [Path::SameHost, Path::Lan, Path::Wan] {
            assert!(of("tcps", Some(path)).0 && of("urings", Some(path)).0);
            assert!(!of("tcp", Some(path)).0 && !of("uring", Some(path)).0);
        }
        assert!(of("tcp", Some(Path::Lan)).1.contains("read along"));
        assert!(of("shm", None).1.contains("this host"));
        let (encrypted, why) = of("rdma", None);
        assert!(!encrypted && why.contains("RDMA payloads are not encrypted"));
    }
}
