//! `genie explain`: which link it is, how tensors travel over it, and why.

mod mechanism;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use genie_graph::DType;
use genie_transport::Uri;
use genie_transport::client::PutOptions;
use genie_transport::client::blocking::Session;
use genie_transport::link::choose::{self, Outcome, Report};
use genie_transport::wire::{LinkScheme, TensorSpec};
use serde::Serialize;

use self::mechanism::{Mechanism, Sent, device_memory};
use crate::bench::usage::Usage;
use crate::bench::{median, rounded, times};
use crate::connect::{self, LinkArgs};
use crate::say::{self, Say};

/// Say which link carries a connection, how tensors travel over it, what limits it, and why.
///
/// Measures for about a second: round trips, puts of 16 MiB, and what one thread of this machine copies. Where genie:// takes tcp and the
/// server has io_uring as well, puts by that, too.
///
/// With --json: asked, uri, link, why, same_host and candidates (of genie:// alone; else null and empty), encrypted, encrypted_why, lanes,
/// lanes_why, eager_bytes, eager_why, slice_bytes, slice_why, credits, zero_copy, zero_copy_why, congestion_control, device_memory and
/// device_memory_why (of rdma:// alone; else null), copies_per_byte (null if the server does not count copies), round_trip_us, put_gb_s,
/// memcpy_gb_s, bottleneck, bottleneck_why.
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
    encrypted: bool,
    encrypted_why: String,
    lanes: u32,
    lanes_why: String,
    eager_bytes: u64,
    eager_why: &'static str,
    slice_bytes: u64,
    slice_why: &'static str,
    credits: u32,
    zero_copy: bool,
    zero_copy_why: String,
    congestion_control: Option<String>,
    device_memory: Option<&'static str>,
    device_memory_why: Option<String>,
    copies_per_byte: Option<f64>,
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
    /// Of the link that was chosen, and of io_uring where tcp was chosen in its place.
    put_gb_s: Option<f64>,
}

impl Explained {
    /// Puts by rings, where these were left out for plain calls: what both are worth between these two ends, for who might ask for them
    /// by name.
    fn measure_rings(&mut self, asked: &Uri, link: LinkArgs) {
        let (Uri::Genie { host, port, .. }, "tcp") = (asked, self.link.as_str()) else { return };
        let name = LinkScheme::Uring.name();
        let Some(rings) = self.candidates.iter_mut().find(|c| c.link == name && c.outcome == "left out") else {
            return;
        };
        let forced = Uri::Genie { host: host.clone(), port: *port, link: Some(LinkScheme::Uring) };
        let measured = connect::within(&forced, LinkArgs { link: None, ..link }, puts);
        match measured {
            Ok((rate, _)) => rings.put_gb_s = Some(rounded(rate)),
            Err(error) => rings.why = format!("{}; it cannot be used here: {error:#}", rings.why),
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &ExplainArgs, say: Say) -> Result<()> {
    let asked = connect::wanted(&args.uri, args.link)?;
    let (uri, report) = connect::settled(&asked, args.link)?;
    let mut explained = connect::within(&uri, args.link, |session| explain(session, &asked, &uri, report.as_ref()))?;
    explained.measure_rings(&asked, args.link);
    say.result(&explained, text)
}

fn explain(session: &mut Session, asked: &Uri, uri: &Uri, report: Option<&Report>) -> Result<Explained> {
    let welcome = session.welcome().context("the connection broke: try again")?;
    let (plan, slices) = (session.lane_plan(), session.slice_plan());
    let mechanism = Mechanism::of(uri)?;
    let round_trip = round_trip(session)?;
    let (put_gb_s, copies_per_byte) = puts(session)?;
    let (zero_copy, zero_copy_why) = mechanism.zero_copy(Sent::of(session));
    let (encrypted, encrypted_why) = mechanism.encrypted();
    let memcpy_gb_s = memcpy();
    let (bottleneck, bottleneck_why) = mechanism.bottleneck(put_gb_s, memcpy_gb_s);
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
        candidates: report.map(|report| candidates(report, put_gb_s)).unwrap_or_default(),
        encrypted,
        encrypted_why,
        lanes: plan.lanes,
        lanes_why: plan.why,
        eager_bytes: u64::from(welcome.eager_bytes),
        eager_why: "fixed: the server says so, nothing is measured; larger payloads go in slices over the bulk lanes",
        slice_bytes: u64::from(slices.bytes),
        slice_why: slices.why,
        credits: welcome.credits,
        zero_copy,
        zero_copy_why,
        congestion_control: mechanism.congestion_control,
        device_memory,
        device_memory_why,
        copies_per_byte: copies_per_byte.map(rounded),
        round_trip_us: rounded(round_trip.as_secs_f64() * 1e6),
        put_gb_s: rounded(put_gb_s),
        memcpy_gb_s: rounded(memcpy_gb_s),
        bottleneck,
        bottleneck_why,
    })
}

fn candidates(report: &Report, put_gb_s: f64) -> Vec<Candidate> {
    let of = |tried: &choose::Tried| {
        let (outcome, why) = match &tried.outcome {
            Outcome::Chosen => ("chosen", report.why.clone()),
            Outcome::Spare => ("spare", "a better one works".to_owned()),
            Outcome::LeftOut(why) => ("left out", why.clone()),
            Outcome::Failed(why) => ("failed", why.clone()),
        };
        let round_trip_us = tried.round_trip.map(|t| rounded(t.as_secs_f64() * 1e6));
        let put_gb_s = (tried.outcome == Outcome::Chosen).then(|| rounded(put_gb_s));
        Candidate { link: tried.scheme.name(), outcome, why, round_trip_us, put_gb_s }
    };
    report.tried.iter().map(of).collect()
}

const TRIPS: u32 = 2000;
const TRIPS_TIME: Duration = Duration::from_millis(300);

/// The median of some, after some that are not counted: fewer of those where each takes long, so that at least one is.
fn round_trip(session: &mut Session) -> Result<Duration> {
    let mut histogram = times()?;
    let began = Instant::now();
    for i in 0..TRIPS {
        let so_far = began.elapsed();
        let took = session.ping()?;
        if i >= TRIPS / 20 || so_far > TRIPS_TIME / 20 {
            crate::bench::record(&mut histogram, took);
        }
        if so_far > TRIPS_TIME {
            break;
        }
    }
    Ok(Duration::from_nanos(histogram.value_at_quantile(0.5)))
}

const PUT_BYTES: u64 = 16 << 20;
const PUTS: usize = 8;
const PUTS_TIME: Duration = Duration::from_millis(700);

/// GB/s of puts one after another, and copies in user space, at both ends, of each byte, if the server counts them.
fn puts(session: &mut Session) -> Result<(f64, Option<f64>)> {
    let spec = TensorSpec::new(DType::U8, &[PUT_BYTES])?;
    let data = Bytes::from(vec![3; usize::try_from(PUT_BYTES)?]);
    let mut rates = Vec::new();
    // Not counted: it opens a bulk lane and takes memory.
    let tensor = session.put(&spec, data.clone(), PutOptions::default())?;
    session.free(tensor.handle)?;
    let before = Usage::look(session)?;
    let until = Instant::now() + PUTS_TIME;
    while rates.len() < PUTS && (rates.is_empty() || Instant::now() < until) {
        let began = Instant::now();
        let tensor = session.put(&spec, data.clone(), PutOptions::default())?;
        rates.push(PUT_BYTES as f64 / began.elapsed().as_secs_f64() / 1e9);
        session.free(tensor.handle)?;
    }
    let copied = Usage::look(session)?.since(&before).copied;
    let moved = (PUT_BYTES * rates.len() as u64) as f64;
    Ok((median(&rates), copied.map(|bytes| bytes as f64 / moved)))
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
            ["encrypted", if e.encrypted { "yes" } else { "no" }, &e.encrypted_why],
            ["inline up to", &say::bytes(e.eager_bytes), e.eager_why],
            ["slice", &say::bytes(e.slice_bytes), e.slice_why],
            ["zero copy", if e.zero_copy { "yes" } else { "no" }, &e.zero_copy_why],
            [
                "copies per byte",
                &e.copies_per_byte.map_or_else(|| "not counted".to_owned(), |n| format!("{n:.2}")),
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
            ["link", "", "round trip", "put", "why"],
            e.candidates.iter().map(|c| {
                let trip = c.round_trip_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.1} us"));
                let put = c.put_gb_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2} GB/s"));
                [c.link.to_owned(), c.outcome.to_owned(), trip, put, c.why.clone()]
            }),
        ));
    }
    text
}
