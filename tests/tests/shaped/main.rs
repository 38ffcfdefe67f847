//! Links that are slow, lossy, far, or down for a while: two network namespaces of the test's own, joined by a veth pair. What is
//! sent arrives, byte for byte, and about as fast as over a raw stream on the same path in the same run.
//!
//! Making namespaces needs root; where it is not allowed the tests say so and do nothing. Delay, jitter and reordering need a kernel
//! with sch_netem: they run where `GENIE_SHAPED=netem` is set (the guest of `make test-rdma` sets it).

mod path;
mod roles;

use std::io::Write;
use std::time::Duration;

use path::{Need, Path};
use roles::Ends;

/// Of a raw stream's throughput.
const ENOUGH: f64 = 0.8;
/// Measured again as often as this before it is too little: the best of each side count, and congestion control has moods.
const ROUNDS: u32 = 8;

/// A line that is seen though the test passes.
fn tell(line: &str) {
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn on(name: &str, need: Need, shape: &[&[&str]], bytes: u64) {
    let path = match Path::new(need) {
        Ok(path) => path,
        Err(why) => return tell(&format!("skipped: {name}: {why}")),
    };
    shape.iter().for_each(|words| path.on_both(words));
    let mut ends = Ends::start(&path);
    for what in ["put", "get"] {
        let (mut best, mut raw) = (0.0_f64, 0.0_f64);
        for round in 1..=ROUNDS {
            best = best.max(ends.rate(what, bytes));
            raw = raw.max(ends.rate(if what == "put" { "raw-up" } else { "raw-down" }, bytes));
            if round > 1 && best >= ENOUGH * raw {
                break;
            }
        }
        tell(&format!("{name}: {what} {best:.1} MB/s, a raw stream {raw:.1} MB/s: {:.2}", best / raw));
        assert!(best >= ENOUGH * raw, "{name}: {what} reaches {best:.1} MB/s where a raw stream reaches {raw:.1}");
    }
}

const GIGABIT: &[&str] =
    &["tc", "qdisc", "add", "dev", "DEV", "root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms"];
const LOSS: &[&str] = &[
    "iptables",
    "-A",
    "INPUT",
    "-i",
    "DEV",
    "-m",
    "statistic",
    "--mode",
    "random",
    "--probability",
    "0.01",
    "-j",
    "DROP",
];

#[test]
fn a_gigabit() {
    on("1 Gb/s", Need::Nothing, &[GIGABIT], 48 << 20);
}

#[test]
fn one_packet_in_a_hundred_is_lost() {
    on("1 Gb/s, loss 1 %", Need::Nothing, &[GIGABIT, LOSS], 24 << 20);
}

#[test]
fn three_seconds_without_a_link() {
    let name = "a link that is down for 3 s";
    let path = match Path::new(Need::Nothing) {
        Ok(path) => path,
        Err(why) => return tell(&format!("skipped: {name}: {why}")),
    };
    path.on_both(GIGABIT);
    let mut ends = Ends::start(&path);
    for what in ["put", "get", "raw-up", "raw-down"] {
        ends.begin(what, 64 << 20);
        std::thread::sleep(Duration::from_millis(150));
        path.set(false);
        std::thread::sleep(Duration::from_secs(3));
        path.set(true);
        let took = ends.end(what);
        tell(&format!("{name}: {what} of 64 MiB took {:.1} s", took.as_secs_f64()));
        assert!(took >= Duration::from_secs(3), "it was over before the link went down: {took:?}");
    }
}

#[test]
fn far_away() {
    let delay: &[&str] = &["tc", "qdisc", "add", "dev", "DEV", "root", "netem", "limit", "100000", "delay", "10ms"];
    on("delay 20 ms", Need::Netem, &[delay], 24 << 20);
}

#[test]
fn far_away_and_unsteady() {
    let unsteady: &[&str] = &[
        "tc",
        "qdisc",
        "add",
        "dev",
        "DEV",
        "root",
        "netem",
        "limit",
        "100000",
        "delay",
        "10ms",
        "2ms",
        "distribution",
        "normal",
        "reorder",
        "2%",
        "25%",
        "loss",
        "0.1%",
    ];
    on("delay 20 ms, jitter, reordering, loss", Need::Netem, &[unsteady], 8 << 20);
}
