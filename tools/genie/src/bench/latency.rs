//! `genie bench latency`: the echo's round trip.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use genie_transport::Uri;
use genie_transport::client::blocking::Session;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::floors::Floors;
use super::work::Op;
use super::{LARGEST_ECHO, record, rounded, times};
use crate::connect::{self, LinkArgs, seconds, size};
use crate::floor::Waiting;
use crate::progress::Progress;
use crate::say::{self, Say};

/// Measure the round trip of messages of some sizes, and of the same messages over plain sockets.
///
/// The floor is an echo between two processes over one TCP connection, set up as Genie's own: busy-polled if this client polls
/// (--spin above 0), blocking if it does not. For shm:// it is two processes that poll shared memory. Genie and floor are measured
/// in turns.
///
/// With --json: a list with a row for each size: op, uri (the link's own, where genie:// chose it), bytes, p50_us, p99_us, floor_p50_us, ratio (the last two null without
/// --floor).
///
/// Example: genie bench latency --connect tcp://127.0.0.1:7070 --sizes 64,4096 --floor --json
#[derive(Debug, Args)]
pub(crate) struct LatencyArgs {
    /// The server: genie://HOST:PORT, or a link's own address: tcp://HOST:PORT.
    #[arg(long)]
    connect: Uri,
    /// Bytes of a message; up to 4M each.
    #[arg(long, value_delimiter = ',', default_value = "64,4096,65536,1048576", value_parser = size)]
    sizes: Vec<u64>,
    /// Measure plain sockets, or bare shared memory, as well.
    #[arg(long)]
    floor: bool,
    /// Seconds to measure each size, with the floor as long again.
    #[arg(long, value_name = "S", default_value_t = 1.5, value_parser = seconds)]
    time: f64,
    #[command(flatten)]
    link: LinkArgs,
}

/// One size's row.
#[derive(Debug, Serialize)]
struct Row {
    op: &'static str,
    uri: String,
    bytes: u64,
    p50_us: f64,
    p99_us: f64,
    floor_p50_us: Option<f64>,
    ratio: Option<f64>,
}

/// Turns that Genie and the floor take.
const TURNS: u32 = 10;

/// Runs the command.
pub(crate) fn run(args: &LatencyArgs, say: Say) -> Result<()> {
    if let Some(big) = args.sizes.iter().find(|&&n| n > LARGEST_ECHO) {
        bail!("{big} bytes are too many for an echo: up to {LARGEST_ECHO} (see `genie bench put` for more)");
    }
    let (uri, _) = connect::settled(&args.connect, args.link)?;
    let rows =
        connect::within_with(&uri, args.link, connect::lasting(args.time), |session| measure(args, &uri, session))?;
    say.result(&rows, |rows| {
        let optional = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
        say::table(
            ["op", "bytes", "p50 us", "p99 us", "floor p50 us", "ratio"],
            rows.iter().map(|r| {
                let (p50, p99) = (format!("{:.2}", r.p50_us), format!("{:.2}", r.p99_us));
                [r.op.to_owned(), r.bytes.to_string(), p50, p99, optional(r.floor_p50_us), optional(r.ratio)]
            }),
        )
    })
}

fn measure(args: &LatencyArgs, uri: &Uri, session: &mut Session) -> Result<Vec<Row>> {
    let waiting = if args.link.spin > 0 { Waiting::Busy } else { Waiting::Blocking };
    let floor = args.floor.then(|| Floors::wanted(uri, waiting)).transpose()?;
    let slice = Duration::from_secs_f64(args.time) / TURNS;
    let mut progress = Progress::steps("echo", args.sizes.len() as u64 * u64::from(TURNS));
    let mut rows = Vec::new();
    for &bytes in &args.sizes {
        let message = vec![7; usize::try_from(bytes)?];
        let mut ours = times()?;
        let mut theirs = floor.as_ref().map(|floor| floor.beside(Op::Echo, 1)).transpose()?;
        // Not counted: the first turn warms caches, buffers and the pollers' sense of how dense traffic is.
        for turn in 0..=TURNS {
            let counts = turn > 0;
            echo(session, &message, slice, |t| {
                if counts {
                    record(&mut ours, t)
                }
            })?;
            if let (Some(floor), Some(theirs)) = (&floor, &mut theirs) {
                floor.turn(theirs, Op::Echo, &message, (1, 1), slice)?;
                if !counts {
                    theirs.warmed();
                }
            }
            if counts {
                progress.step();
            }
        }
        let us = |h: &Histogram<u64>, q| rounded(h.value_at_quantile(q) as f64 / 1e3);
        let p50_us = us(&ours, 0.5);
        let floor_p50_us = theirs.and_then(|theirs| theirs.p50_us());
        let ratio = floor_p50_us.map(|f| rounded(p50_us / f));
        rows.push(Row {
            op: "echo",
            uri: uri.to_string(),
            bytes,
            p50_us,
            p99_us: us(&ours, 0.99),
            floor_p50_us,
            ratio,
        });
    }
    Ok(rows)
}

fn echo(session: &mut Session, message: &[u8], time: Duration, mut each: impl FnMut(Duration)) -> Result<()> {
    let mut back = Vec::with_capacity(message.len());
    let until = Instant::now() + time;
    let mut trips = 0;
    loop {
        let began = Instant::now();
        session.echo(message, &mut back)?;
        let ended = Instant::now();
        trips += 1;
        // As with the floor: a turn's first round trip wakes the other side.
        if trips > 1 {
            each(ended - began);
            if ended >= until {
                return if back == message { Ok(()) } else { Err(anyhow!("the echo came back changed")) };
            }
        }
    }
}
