//! `genie explain`: which link it is, how tensors travel over it, and why.

#[cfg(feature = "rdma")]
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use genie_graph::DType;
use genie_transport::Uri;
use genie_transport::client::PutOptions;
use genie_transport::client::blocking::Session;
use genie_transport::link::choose::{self, Outcome, Report};
#[cfg(feature = "rdma")]
use genie_transport::link::rdma::{self, DeviceMemory};
use genie_transport::link::tcp::{self, Path, Splice};
use genie_transport::memory::copied_bytes;
use genie_transport::wire::TensorSpec;
use serde::Serialize;
use socket2::SockRef;

use crate::bench::{median, rounded, times};
use crate::connect::{self, LinkArgs};
use crate::say::{self, Say};

/// Say which link carries a connection, how tensors travel over it, what limits it, and why.
///
/// Measures for about a second: round trips, puts of 16 MiB, and what one thread of this machine copies.
///
/// With --json: asked, uri, link, why, same_host and candidates (of genie:// alone; else null and empty), lanes, lanes_why, eager_bytes,
/// slice_bytes, credits, zero_copy, zero_copy_why, congestion_control, device_memory and device_memory_why (of rdma:// alone; else null),
/// copies_per_byte, round_trip_us, put_gb_s, memcpy_gb_s, bottleneck, bottleneck_why.
///
/// Example: genie explain genie://127.0.0.1:7070
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The server: genie://HOST:PORT for whichever link is best, or a link's own address.
    uri: Uri,
    #[command(flatten)]
    link: LinkArgs,
}

#[derive(Debug, Serialize)]
struct Explained {
    asked: String,
    uri: String,
    link: String,
    why: String,
    same_host: Option<bool>,
    candidates: Vec<Candidate>,
    lanes: u32,
    lanes_why: String,
    eager_bytes: u64,
    slice_bytes: u64,
    credits: u32,
    zero_copy: bool,
    zero_copy_why: String,
    congestion_control: Option<String>,
    device_memory: Option<&'static str>,
    device_memory_why: Option<String>,
    copies_per_byte: f64,
    round_trip_us: f64,
    put_gb_s: f64,
    memcpy_gb_s: f64,
    bottleneck: &'static str,
    bottleneck_why: String,
}

/// A link that the server offers.
#[derive(Debug, Serialize)]
struct Candidate {
    link: &'static str,
    outcome: &'static str,
    why: String,
    round_trip_us: Option<f64>,
}

/// Runs the command.
pub(crate) fn run(args: &ExplainArgs, say: Say) -> Result<()> {
    let asked = connect::wanted(&args.uri, args.link)?;
    let (uri, report) = settled(&asked, args.link)?;
    let explained = connect::within(&uri, LinkArgs { link: None, ..args.link }, |session| {
        explain(session, &asked, &uri, report.as_ref())
    })?;
    say.result(&explained, text)
}

/// The link's own address, and how it was chosen where there was a choice.
fn settled(asked: &Uri, link: LinkArgs) -> Result<(Uri, Option<Report>)> {
    let Uri::Genie { host, port, link: forced } = asked else { return Ok((asked.clone(), None)) };
    connect::reach(asked, link)?;
    let found = choose::find(host, *port, *forced, link.tls(asked)?.as_ref())
        .with_context(|| format!("choosing a link to {asked}"))?;
    Ok((found.report.chosen.clone(), Some(found.report)))
}

fn explain(session: &mut Session, asked: &Uri, uri: &Uri, report: Option<&Report>) -> Result<Explained> {
    let welcome = session.welcome().context("the connection broke: try again")?;
    let plan = session.lane_plan();
    let mechanism = Mechanism::of(uri)?;
    let round_trip = round_trip(session)?;
    let (put_gb_s, copies_per_byte) = puts(session)?;
    let memcpy_gb_s = memcpy();
    let (bottleneck, bottleneck_why) = bottleneck(&mechanism, put_gb_s, memcpy_gb_s);
    let (device_memory, device_memory_why) = device_memory(uri)?.unzip();
    let why = match report {
        Some(report) => report.why.clone(),
        None => "its address was given; genie:// would choose".to_owned(),
    };
    Ok(Explained {
        asked: asked.to_string(),
        uri: uri.to_string(),
        link: mechanism.scheme,
        why,
        same_host: report.map(|r| r.same_host),
        candidates: report.map(candidates).unwrap_or_default(),
        lanes: plan.lanes,
        lanes_why: plan.why,
        eager_bytes: u64::from(welcome.eager_bytes),
        slice_bytes: u64::from(welcome.slice_bytes),
        credits: welcome.credits,
        zero_copy: mechanism.zero_copy,
        zero_copy_why: mechanism.zero_copy_why.to_owned(),
        congestion_control: mechanism.congestion_control,
        device_memory,
        device_memory_why,
        copies_per_byte: rounded(copies_per_byte),
        round_trip_us: rounded(round_trip.as_secs_f64() * 1e6),
        put_gb_s: rounded(put_gb_s),
        memcpy_gb_s: rounded(memcpy_gb_s),
        bottleneck,
        bottleneck_why,
    })
}

fn candidates(report: &Report) -> Vec<Candidate> {
    let of = |tried: &choose::Tried| {
        let (outcome, why) = match &tried.outcome {
            Outcome::Chosen => ("chosen", report.why.clone()),
            Outcome::Spare => ("spare", "a better one works".to_owned()),
            Outcome::LeftOut(why) => ("left out", why.clone()),
            Outcome::Failed(why) => ("failed", why.clone()),
        };
        let round_trip_us = tried.round_trip.map(|t| rounded(t.as_secs_f64() * 1e6));
        Candidate { link: tried.scheme.name(), outcome, why, round_trip_us }
    };
    report.tried.iter().map(of).collect()
}

/// How a link moves a tensor, as far as can be told without moving one.
struct Mechanism {
    scheme: String,
    zero_copy: bool,
    zero_copy_why: &'static str,
    congestion_control: Option<String>,
    /// For TCP: what lies between.
    path: Option<Path>,
}

impl Mechanism {
    fn of(uri: &Uri) -> Result<Self> {
        let text = uri.to_string();
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme).to_owned();
        let plain = |zero_copy, zero_copy_why| Self {
            scheme: scheme.clone(),
            zero_copy,
            zero_copy_why,
            congestion_control: None,
            path: None,
        };
        if !["tcp", "tcps", "uring", "urings"].contains(&scheme.as_str()) {
            return Ok(match scheme.as_str() {
                "shm" => {
                    plain(true, "a tensor allocated in the shared memory is passed; any other is copied into it once")
                }
                "rdma" => plain(true, "the device reads and writes registered memory itself"),
                _ => plain(false, "nothing is known of this link"),
            });
        }
        // Under all of them lies a socket to the same place.
        let socket: Uri = text.replacen(&scheme, "tcp", 1).parse()?;
        let (stream, path) = tcp::connect(&socket, Duration::from_secs(5))?;
        let name = SockRef::from(&stream).tcp_congestion().ok();
        let name = name.map(|n| String::from_utf8_lossy(&n).trim_end_matches('\0').to_owned());
        let (zero_copy, zero_copy_why) = match path {
            _ if uri.is_encrypted() => (false, "what is sent is encrypted into buffers of its own"),
            _ if scheme == "uring" => {
                (true, "a lane's first slices are sent with and without a copy in turns, and the faster way stays")
            }
            Path::SameHost if Splice::new().is_some() => (
                true,
                "both ends are on one host: pages are handed to the kernel by reference, and the receiver's copy is the only one",
            ),
            Path::SameHost => (
                false,
                "this process may have no pipe of 1 MiB, or ends when one breaks: the kernel copies what is sent",
            ),
            Path::Lan | Path::Wan => {
                (false, "the kernel copies what is sent: pages by reference pay over loopback alone")
            }
        };
        Ok(Self { scheme, zero_copy, zero_copy_why, congestion_control: name, path: Some(path) })
    }
}

/// How tensors in a GPU's memory come to the network card of this link, as this machine's own card can tell; and why.
#[cfg(feature = "rdma")]
fn device_memory(uri: &Uri) -> Result<Option<(&'static str, String)>> {
    let Uri::Rdma { host, port } = uri else { return Ok(None) };
    let address = (host.as_str(), *port).to_socket_addrs()?.next();
    let address = address.with_context(|| format!("{host} has no address"))?;
    let found = DeviceMemory::towards(address).with_context(|| format!("asking the device that leads to {address}"))?;
    Ok(Some(match found.path {
        rdma::Path::Staged { why } => ("staged through pinned slabs", why),
        _ => ("direct, by dmabuf", format!("{} registers the memory itself", found.facts.device)),
    }))
}

/// Only a network card that reads memory by itself could read a GPU's.
#[cfg(not(feature = "rdma"))]
fn device_memory(_: &Uri) -> Result<Option<(&'static str, String)>> {
    Ok(None)
}

/// What limits a put: the first that explains it.
fn bottleneck(mechanism: &Mechanism, put_gb_s: f64, memcpy_gb_s: f64) -> (&'static str, String) {
    let share = put_gb_s / memcpy_gb_s * 100.0;
    if share >= 70.0 {
        let why = format!("a put runs at {share:.0} % of what one thread copies from memory to memory");
        return ("memory", why);
    }
    match (mechanism.scheme.as_str(), mechanism.path) {
        ("tcp" | "tcps" | "uring" | "urings", Some(Path::SameHost)) => (
            "kernel",
            format!("over loopback the kernel copies each byte for the receiver: {share:.0} % of a plain copy is left"),
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

const TRIPS: u32 = 2000;
const TRIPS_TIME: Duration = Duration::from_millis(300);

/// The median of some, after some that are not counted.
fn round_trip(session: &mut Session) -> Result<Duration> {
    let mut histogram = times()?;
    let until = Instant::now() + TRIPS_TIME;
    for i in 0..TRIPS {
        let took = session.ping()?;
        if i >= TRIPS / 20 || took > TRIPS_TIME / 20 {
            crate::bench::record(&mut histogram, took);
        }
        if Instant::now() > until {
            break;
        }
    }
    Ok(Duration::from_nanos(histogram.value_at_quantile(0.5)))
}

const PUT_BYTES: u64 = 16 << 20;
const PUTS: usize = 8;
const PUTS_TIME: Duration = Duration::from_millis(700);

/// GB/s of puts one after another, and copies in user space, at both ends, of each byte.
fn puts(session: &mut Session) -> Result<(f64, f64)> {
    let spec = TensorSpec::new(DType::U8, &[PUT_BYTES])?;
    let data = Bytes::from(vec![3; usize::try_from(PUT_BYTES)?]);
    let mut rates = Vec::new();
    // Not counted: it opens a bulk lane and takes memory.
    let tensor = session.put(&spec, data.clone(), PutOptions::default())?;
    session.free(tensor.handle)?;
    let before = all_copied(session)?;
    let until = Instant::now() + PUTS_TIME;
    while rates.len() < PUTS && (rates.is_empty() || Instant::now() < until) {
        let began = Instant::now();
        let tensor = session.put(&spec, data.clone(), PutOptions::default())?;
        rates.push(PUT_BYTES as f64 / began.elapsed().as_secs_f64() / 1e9);
        session.free(tensor.handle)?;
    }
    let copied = all_copied(session)? - before;
    Ok((median(&rates), copied as f64 / (PUT_BYTES * rates.len() as u64) as f64))
}

/// Payload bytes that this process and the server have copied in user space.
fn all_copied(session: &mut Session) -> Result<u64> {
    let stats = session.stats()?;
    let server = stats.iter().find(|(name, _)| name == "genie_copied_bytes_total").map_or(0, |(_, value)| *value);
    Ok(copied_bytes() + server)
}

/// What one thread copies, in GB/s, of more than a cache holds.
fn memcpy() -> f64 {
    let from = vec![1_u8; 4 * PUT_BYTES as usize];
    let mut to = vec![0_u8; from.len()];
    let mut rates = Vec::new();
    for _ in 0..4 {
        let began = Instant::now();
        to.copy_from_slice(&from);
        std::hint::black_box(&mut to);
        rates.push(from.len() as f64 / began.elapsed().as_secs_f64() / 1e9);
    }
    // The first touches its pages.
    median(&rates[1..])
}

fn text(e: &Explained) -> String {
    let mut text = say::table(
        ["", "", "why"],
        [
            ["link", &e.uri, &e.why],
            ["round trip", &format!("{:.1} us", e.round_trip_us), "the median of empty requests"],
            ["lanes", &format!("1 + {}", e.lanes), &e.lanes_why],
            [
                "inline up to",
                &say::bytes(e.eager_bytes),
                "as the server asks: larger payloads go in slices over the bulk lanes",
            ],
            [
                "slice",
                &say::bytes(e.slice_bytes),
                "as the server asks: still in the cache when it is sent, after its checksum",
            ],
            ["zero copy", if e.zero_copy { "yes" } else { "no" }, &e.zero_copy_why],
            [
                "copies per byte",
                &format!("{:.2}", e.copies_per_byte),
                "in user space, both ends, counted over puts of 16 MiB",
            ],
            [
                "congestion control",
                e.congestion_control.as_deref().unwrap_or("-"),
                "chosen by how far away the server is",
            ],
            [
                "device memory",
                e.device_memory.unwrap_or("-"),
                e.device_memory_why.as_deref().unwrap_or("only an RDMA device could read a GPU's memory by itself"),
            ],
            ["put", &format!("{:.2} GB/s", e.put_gb_s), &format!("one thread copies {:.2} GB/s here", e.memcpy_gb_s)],
            ["bottleneck", e.bottleneck, &e.bottleneck_why],
        ]
        .map(|row: [&str; 3]| row.map(str::to_owned)),
    );
    if !e.candidates.is_empty() {
        text.push_str("\n\n");
        text.push_str(&say::table(
            ["link", "", "round trip", "why"],
            e.candidates.iter().map(|c| {
                let trip = c.round_trip_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.1} us"));
                [c.link.to_owned(), c.outcome.to_owned(), trip, c.why.clone()]
            }),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mechanism(scheme: &str, path: Option<Path>) -> Mechanism {
        let scheme = scheme.to_owned();
        Mechanism { scheme, zero_copy: false, zero_copy_why: "", congestion_control: None, path }
    }

    #[test]
    fn what_limits_a_put() {
        let of = |scheme, path, put| bottleneck(&mechanism(scheme, path), put, 10.0).0;
        assert_eq!(of("tcp", Some(Path::SameHost), 8.0), "memory");
        assert_eq!(of("tcp", Some(Path::SameHost), 4.0), "kernel");
        assert_eq!(of("tcp", Some(Path::Lan), 1.2), "network");
        assert_eq!(of("rdma", None, 1.2), "network");
        assert_eq!(of("shm", None, 3.0), "copy");
        assert_eq!(of("shm", None, 9.0), "memory");
    }
}
