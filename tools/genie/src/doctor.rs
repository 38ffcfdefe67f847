//! `genie doctor`: what this machine offers, and how to get what it lacks.

mod gpus;

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::say::{self, Say};

/// One thing that was looked at.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Good,
    /// It works; it could be better.
    Improvable,
    /// Not here; what needs it is not to be had.
    Absent,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, state: State::Good, found: found.into(), advice: None }
    }

    fn but(what: &'static str, state: State, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, state, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Runs the command.
pub(crate) fn run(say: Say) -> Result<()> {
    let mut findings = vec![
        cores(),
        instructions(&read("/proc/cpuinfo")),
        memory(&read("/proc/meminfo")),
        kernel(&read("/proc/sys/kernel/osrelease")),
        descriptors(),
        pinned(&read("/proc/self/limits")),
        congestion(
            &read("/proc/sys/net/ipv4/tcp_congestion_control"),
            &read("/proc/sys/net/ipv4/tcp_allowed_congestion_control"),
            &read("/proc/sys/net/ipv4/tcp_available_congestion_control"),
        ),
        io_uring(rings()),
        shared_memory(),
        rdma(&names_in("/sys/class/infiniband")),
    ];
    findings.extend(gpus::findings());
    say.result(&findings, |findings| findings.iter().map(line).collect())
}

fn line(f: &Finding) -> String {
    let mark = match f.state {
        State::Good => "ok  ",
        State::Improvable => "more",
        State::Absent => "none",
    };
    let advice = f.advice.as_ref().map_or_else(String::new, |a| format!("{:27}{a}\n", ""));
    format!("{mark}  {:20} {}\n{advice}", f.what, f.found)
}

fn cores() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{cores} for this process");
    if cores > 1 {
        return Finding::good("cores", found);
    }
    let advice =
        "with one core nothing is polled, and a round trip takes a wake-up: give the machine or container two or more";
    Finding::but("cores", State::Improvable, found, advice)
}

fn instructions(cpuinfo: &str) -> Finding {
    let has = |line: &str, name: &str| line.split_ascii_whitespace().any(|flag| flag == name);
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags") || l.starts_with("Features")).unwrap_or_default();
    let wide: Vec<_> = ["avx512f", "avx512_bf16", "avx2", "fma", "f16c", "asimd", "sve"]
        .into_iter()
        .filter(|name| has(flags, name))
        .collect();
    let wide_enough = ["avx512f", "avx2", "asimd"].into_iter().any(|name| has(flags, name));
    if wide_enough {
        return Finding::good("vector instructions", wide.join(" "));
    }
    let advice = "the CPU device computes without wide vectors here, several times slower; in a virtual machine, pass the host's CPU through";
    Finding::but("vector instructions", State::Improvable, "none that are wide", advice)
}

fn memory(meminfo: &str) -> Finding {
    let value = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|n| n.trim().parse::<u64>().ok()).map(|kb| kb * 1024)
    };
    match (value("MemTotal:"), value("MemAvailable:")) {
        (Some(total), Some(free)) => {
            Finding::good("memory", format!("{}, {} of it available", say::bytes(total), say::bytes(free)))
        }
        _ => Finding::but(
            "memory",
            State::Improvable,
            "unknown",
            "/proc/meminfo cannot be read: pass --memory to `genie serve`",
        ),
    }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 10) {
        return Finding::good("kernel", release.trim());
    }
    Finding::but(
        "kernel",
        State::Improvable,
        release.trim(),
        "Linux 5.10 or newer is what Genie is tried with: update the system",
    )
}

fn descriptors() -> Finding {
    match rlimit::Resource::NOFILE.get() {
        Ok((_, hard)) if hard >= 65_536 => Finding::good("open files", format!("up to {hard}")),
        Ok((_, hard)) => {
            let advice = "a server takes one for each connection and lane: raise the hard limit (LimitNOFILE= in a systemd unit, \
                          or a line `* hard nofile 65536` in /etc/security/limits.conf)";
            Finding::but("open files", State::Improvable, format!("up to {hard}"), advice)
        }
        Err(error) => Finding::but("open files", State::Improvable, error.to_string(), "look at `ulimit -Hn`"),
    }
}

fn pinned(limits: &str) -> Finding {
    let line = limits.lines().find_map(|l| l.strip_prefix("Max locked memory")).unwrap_or_default();
    let mut fields = line.split_ascii_whitespace();
    let (_, hard) = (fields.next(), fields.next().unwrap_or("unknown"));
    let enough = hard == "unlimited" || hard.parse::<u64>().is_ok_and(|n| n >= 1 << 30);
    let found = match hard.parse() {
        Ok(n) => say::bytes(n),
        Err(_) => hard.to_owned(),
    };
    if enough {
        return Finding::good("locked memory", found);
    }
    let advice = "memory that a network card or a GPU reaches directly is locked: raise it (LimitMEMLOCK=infinity in a systemd \
                  unit, or `* hard memlock unlimited` in /etc/security/limits.conf); plain TCP needs none";
    Finding::but("locked memory", State::Improvable, found, advice)
}

fn congestion(default: &str, allowed: &str, available: &str) -> Finding {
    let (default, allowed) = (default.trim(), allowed.trim());
    let found = format!("default {default}; allowed {allowed}");
    let may = |name: &str| allowed.split_ascii_whitespace().any(|a| a == name);
    if default != "bbr" || may("reno") || may("cubic") {
        return Finding::good("congestion control", found);
    }
    let loaded = available.split_ascii_whitespace().any(|a| a == "cubic");
    let load = if loaded { "" } else { "modprobe tcp_cubic; " };
    let advice = format!(
        "bbr paces even within a host, at up to a quarter of the speed: {load}\
         sysctl -w net.ipv4.tcp_allowed_congestion_control='bbr reno cubic'"
    );
    Finding::but("congestion control", State::Improvable, found, advice)
}

/// What the kernel says when it is asked for a ring: what a switch says is not all, as a container's filter may close it, too.
#[cfg(all(feature = "uring", target_os = "linux"))]
fn rings() -> Result<(), String> {
    genie_transport::link::uring::available().map_err(|why| why.to_string())
}

#[cfg(not(all(feature = "uring", target_os = "linux")))]
fn rings() -> Result<(), String> {
    Err("this build has no uring://: on Linux, cargo build --release -p genie --features uring".to_owned())
}

fn io_uring(rings: Result<(), String>) -> Finding {
    let Err(why) = rings else { return Finding::good("io_uring", "open to this process") };
    let (found, advice) = why.split_once(": ").unwrap_or((&why, "tcp:// does without"));
    Finding::but("io_uring", State::Absent, found, advice)
}

fn shared_memory() -> Finding {
    if Path::new("/dev/shm").is_dir() {
        return Finding::good("shared memory", "/dev/shm");
    }
    Finding::but("shared memory", State::Absent, "no /dev/shm", "mount -t tmpfs tmpfs /dev/shm")
}

fn rdma(devices: &[String]) -> Finding {
    if !devices.is_empty() {
        let devices = devices.join(" ");
        if cfg!(feature = "rdma") {
            return Finding::good("RDMA", devices);
        }
        let advice = "this build has no rdma://: cargo build --release -p genie --features rdma";
        return Finding::but("RDMA", State::Improvable, devices, advice);
    }
    let advice = "with a card: apt-get install rdma-core ibverbs-utils, then ibv_devices. Without one, for tests: modprobe rdma_rxe; \
                  rdma link add rxe0 type rxe netdev eth0. Genie works over TCP meanwhile";
    Finding::but("RDMA", State::Absent, "no device", advice)
}

/// A file's text; nothing where it cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn names_in(folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_understood() {
        assert_eq!(instructions("flags\t\t: fpu avx2 fma f16c\n").found, "avx2 fma f16c");
        assert_eq!(instructions("flags : fpu sse2\n").state, State::Improvable);
        assert_eq!(kernel("6.1.0-18-amd64\n").state, State::Good);
        assert_eq!(kernel("4.19.0\n").state, State::Improvable);
        assert!(memory("MemTotal: 1000000 kB\nMemAvailable: 500000 kB\n").found.starts_with("1.0 GB"));
        let limits = "Max locked memory         8388608              8388608              bytes     \n";
        assert_eq!(pinned(limits).found, "8.4 MB");
        assert_eq!(pinned(&limits.replace("8388608", "unlimited")).state, State::Good);
    }

    #[test]
    fn advice_is_for_what_is_lacking() {
        assert_eq!(congestion("cubic\n", "reno cubic\n", "reno cubic\n").advice, None);
        assert_eq!(congestion("bbr\n", "bbr reno\n", "bbr reno\n").advice, None);
        let bbr = congestion("bbr\n", "bbr\n", "bbr\n");
        assert!(bbr.advice.is_some_and(|a| a.contains("modprobe tcp_cubic")));
        assert_eq!(io_uring(Ok(())).state, State::Good);
        let closed = io_uring(Err("it is closed: open it".to_owned()));
        assert_eq!(closed, Finding::but("io_uring", State::Absent, "it is closed", "open it"));
        assert_eq!(rdma(&[]).state, State::Absent);
        let usable = if cfg!(feature = "rdma") { State::Good } else { State::Improvable };
        assert_eq!(rdma(&["mlx5_0".to_owned()]).state, usable);
    }
}
