//! Links that are slow, lossy, far, or down for a while: two network namespaces of the test's own, joined by a veth pair. What is
//! sent arrives, byte for byte, and about as fast as over a raw stream on the same path in the same run.
//!
//! Making namespaces needs root; where it is not allowed the tests say so and do nothing. Delay, jitter and reordering need a kernel
//! with sch_netem: they run where `GENIE_SHAPED=netem` is set (the guest of `make test-rdma` sets it).

mod path;
mod roles;

use std::io::Write;
use std::time::Duration;

use genie_tests::child::patience;

use path::{Need, Path};
use roles::Ends;

/// Of a raw stream's throughput.
const ENOUGH: f64 = 0.8;
/// Measured again as often as this before it is too little: congestion control has moods.
const ROUNDS: u32 = 20;

/// What was measured of one side.
#[derive(Default)]
struct Rates {
    best: f64,
    mean: f64,
    count: f64,
}

impl Rates {
    fn add(&mut self, rate: f64) {
        self.best = self.best.max(rate);
        self.mean = (self.mean * self.count + rate) / (self.count + 1.0);
        self.count += 1.0;
    }

    /// Of the best where a machine was busy with others, of the means where a path is a matter of luck.
    fn ratio(&self, of: &Self) -> f64 {
        (self.best / of.best).max(self.mean / of.mean)
    }
}

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
        let (mut ours, mut raw) = (Rates::default(), Rates::default());
        for round in 1..=ROUNDS {
            ours.add(ends.rate(what, bytes));
            raw.add(ends.rate(if what == "put" { "raw-up" } else { "raw-down" }, bytes));
            if round > 1 && ours.ratio(&raw) >= ENOUGH {
                break;
            }
        }
        let ratio = ours.ratio(&raw);
        tell(&format!("{name}: {what} {ours}, a raw stream {raw}: {ratio:.2}"));
        assert!(ratio >= ENOUGH, "{name}: {what} reaches {ours} where a raw stream reaches {raw}");
    }
}

const GIGABIT: &[&str] =
    &["tc", "qdisc", "add", "dev", "DEV", "root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms"];
impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} MB/s at best and {:.1} in the mean of {}", self.best, self.mean, self.count)
    }
}

/// No bundles of packets: what is lost, or overtaken, is one.
const SINGLE: &[&str] = &["ip", "link", "set", "dev", "DEV", "gso_max_segs", "1"];
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
    on("1 Gb/s, loss 1 %", Need::Nothing, &[SINGLE, GIGABIT, LOSS], 8 << 20);
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

/// Neither side is told: no packet comes through any more.
#[test]
fn a_link_that_does_not_come_back() {
    let name = "a link that does not come back";
    let path = match Path::new(Need::Nothing) {
        Ok(path) => path,
        Err(why) => return tell(&format!("skipped: {name}: {why}")),
    };
    path.on_both(GIGABIT);
    let mut ends = Ends::with_keepalive(&path, Some(KEEPALIVE));
    assert_eq!(ends.sessions(), 1);
    ends.begin("cut", 256 << 20);
    std::thread::sleep(Duration::from_millis(300));
    path.set(false);
    // Three keepalives; then the client tries for a second to come back, and the server holds the session for its lease.
    let found = KEEPALIVE * 3 + Duration::from_secs(4);
    let took = ends.end_within("cut", found);
    tell(&format!("{name}: the client gave up after {:.1} s", took.as_secs_f64()));
    let left = patience(found, |_| (ends.sessions() == 0).then_some(()));
    assert!(left.is_some(), "the server holds what it had for a client that nobody will hear of again");
}

const KEEPALIVE: Duration = Duration::from_millis(500);

/// Slower than what an emulated machine can do, so that the path is what is measured.
const FAR: &[&str] =
    &["tc", "qdisc", "add", "dev", "DEV", "root", "netem", "limit", "10000", "rate", "100mbit", "delay"];

#[test]
fn far_away() {
    let delay = [FAR, &["10ms"]].concat();
    on("100 Mb/s, delay 20 ms", Need::Netem, &[&delay], 4 << 20);
}

#[test]
fn far_away_and_unsteady() {
    let unsteady = [FAR, &["10ms", "2ms", "25%", "reorder", "2%", "50%"]].concat();
    on("100 Mb/s, delay 20 ms, jitter and reordering", Need::Netem, &[SINGLE, &unsteady], 4 << 20);
}

#[test]
fn far_away_and_lossy() {
    let lossy = [FAR, &["10ms", "2ms", "loss", "1%"]].concat();
    on("100 Mb/s, delay 20 ms, jitter, loss 1 %", Need::Netem, &[SINGLE, &lossy], 2 << 20);
}
