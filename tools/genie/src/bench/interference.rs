//! `genie bench interference`: what a small request waits while a large put runs on the same connection.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use genie_graph::DType;
use genie_transport::client::PutOptions;
use genie_transport::client::blocking::Session;
use genie_transport::wire::TensorSpec;
use serde::Serialize;

use super::load::{self, Outcome, Pace, Plan, Target, Until};
use super::memory::Memory;
use super::output::OutputArgs;
use super::row::{digits, size as short};
use super::server::ServerArgs;
use super::work::{Op, Work};
use super::{LARGEST_ECHO, rounded};
use crate::connect::{self, LinkArgs, scheme, size};
use crate::progress::Progress;
use crate::say::{self, Say};

/// Measure small requests while nothing else happens, and while a large put runs on the same connection.
///
/// The requests begin at --rate, in both cases, and their latencies count from when they were meant to begin: one that is held up
/// cannot hide those behind it. All that were meant to begin from the put's start to its end count, those that could not begin
/// meanwhile as well. The goal is a 99th percentile of at most three times the idle one.
///
/// With --json a list with a row for each server (with --csv the same as a table): idle_p50_us, idle_p99_us, busy_p50_us, busy_p99_us, busy_max_us, ratio_p99,
/// put_gb_s, avg_sm (percent of the time in which the server's GPU ran a kernel), and what was asked for.
///
/// Example: genie bench interference --serve --links tcp,shm --tensor 1G
#[derive(Debug, Args)]
pub(crate) struct InterferenceArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Bytes of the put.
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = size)]
    tensor: u64,
    /// Bytes of the small request, an echo.
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = size)]
    small: u64,
    /// Small requests a second.
    #[arg(long, value_name = "R", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Puts, each after as long without one.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// Bulk lanes.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    lanes: u32,
    /// Where the put's bytes lie: heap (Genie's, in large pages), malloc (the allocator's), pinned (locked pages), shared (over shm://).
    #[arg(long, value_enum, default_value = "heap")]
    memory: Memory,
    /// Index of the server's device.
    #[arg(long, default_value_t = 0)]
    device: u16,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    link: LinkArgs,
}

#[derive(Debug, Serialize)]
struct Row {
    op: &'static str,
    link: String,
    uri: String,
    tensor_bytes: u64,
    small_bytes: u64,
    rate: u32,
    lanes: u32,
    idle_requests: u64,
    idle_p50_us: f64,
    idle_p99_us: f64,
    busy_requests: u64,
    busy_p50_us: f64,
    busy_p99_us: f64,
    busy_max_us: f64,
    ratio_p99: f64,
    put_gb_s: f64,
    /// Percent of the time in which the server's GPU ran a kernel; null where nobody tells.
    avg_sm: Option<f64>,
}

/// Small requests that may be in flight: more than this wait for their turn, and count from when they were meant to begin.
const DEPTH: usize = 256;

/// Runs the command.
pub(crate) fn run(args: &InterferenceArgs, say: Say) -> Result<()> {
    if args.small > LARGEST_ECHO {
        anyhow::bail!("{} bytes are too many for a small request: up to {LARGEST_ECHO}", args.small);
    }
    let servers = args.server.ready(&args.link, args.device)?;
    servers.uris().iter().try_for_each(|uri| args.memory.check(uri))?;
    let mut progress = Progress::steps("interference", servers.uris().len() as u64 * u64::from(args.turns));
    let mut rows = Vec::new();
    for uri in servers.uris() {
        let began = Instant::now();
        let mut session = connect::session_with(uri, args.link, |options| {
            connect::lasting(0.0)(options);
            options.client.lanes = args.lanes;
        })?;
        let measured = measure(args, &mut session, &mut progress);
        let closed = session.close();
        let (idle, busy, moved) = measured?;
        closed?;
        let us = |outcome: &Outcome, q| rounded(outcome.latencies.value_at_quantile(q) as f64 / 1e3);
        rows.push(Row {
            op: "interference",
            link: scheme(uri),
            uri: uri.to_string(),
            tensor_bytes: args.tensor,
            small_bytes: args.small,
            rate: args.rate,
            lanes: args.lanes,
            idle_requests: idle.latencies.len(),
            idle_p50_us: us(&idle, 0.5),
            idle_p99_us: us(&idle, 0.99),
            busy_requests: busy.latencies.len(),
            busy_p50_us: us(&busy, 0.5),
            busy_p99_us: us(&busy, 0.99),
            busy_max_us: us(&busy, 1.0),
            ratio_p99: rounded(us(&busy, 0.99) / us(&idle, 0.99)),
            put_gb_s: rounded((args.tensor * u64::from(args.turns)) as f64 / moved.as_secs_f64() / 1e9),
            avg_sm: servers.avg_sm(began),
        });
    }
    drop(progress);
    servers.write_utilisation()?;
    args.output.print(say, &rows, |rows| {
        let header =
            ["link", "put", "lanes", "GB/s", "small", "idle p50 us", "p99", "busy p50", "p99", "max", "ratio p99"];
        let cells = rows.iter().map(|r| {
            let [rate, idle, idle99] = [r.put_gb_s, r.idle_p50_us, r.idle_p99_us].map(digits);
            let [busy, busy99, max, ratio] = [r.busy_p50_us, r.busy_p99_us, r.busy_max_us, r.ratio_p99].map(digits);
            let (tensor, small) = (short(r.tensor_bytes), short(r.small_bytes));
            [r.link.clone(), tensor, r.lanes.to_string(), rate, small, idle, idle99, busy, busy99, max, ratio]
        });
        format!("{}\n{} small requests/s, goal: ratio p99 <= 3", say::table(header, cells), args.rate)
    })
}

/// Idle, busy, and how long the puts took together.
fn measure(
    args: &InterferenceArgs,
    session: &mut Session,
    progress: &mut Progress,
) -> Result<(Outcome, Outcome, Duration)> {
    let data = args.memory.bytes(session, usize::try_from(args.tensor)?)?;
    let spec = TensorSpec::new(DType::U8, &[args.tensor])?;
    let options = PutOptions { device: args.device, ..PutOptions::default() };
    let pace = Pace { rate: f64::from(args.rate), depth: DEPTH };
    let (mut idle, mut busy, mut moved) = (Outcome::empty()?, Outcome::empty()?, Duration::ZERO);
    let mut work = Work::new(session, Op::Echo, vec![7; usize::try_from(args.small)?].into(), args.device, 1)?;
    // Not counted: the first put takes memory that later ones find.
    for turn in 0..=args.turns {
        // A link that copies the tensor before it returns keeps the small requests waiting as well.
        let since = work.now();
        let put = work.session().start_put(&spec, data.clone(), options)?;
        let beside = load::during(&mut work, pace, since, |work| work.session().is_done(&put))?;
        let tensor = work.session().finish_put(put)?;
        work.session().free(tensor.handle)?;
        // As many without one.
        let plan = Plan { depth: pace.depth, rate: Some(pace.rate), until: Until::Time(beside.took) };
        let alone = load::run(&mut work, plan)?;
        if turn > 0 {
            moved += beside.took;
            busy.after(&beside);
            idle.after(&alone);
            progress.step();
        }
    }
    work.end()?;
    Ok((idle, busy, moved))
}
