//! `genie bench put`: how fast tensors get to the server.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use genie_graph::DType;
use genie_transport::Uri;
use genie_transport::client::PutOptions;
use genie_transport::client::blocking::Session;
use genie_transport::memory::copied_bytes;
use genie_transport::wire::TensorSpec;
use serde::Serialize;

use super::{median, rounded, same_host};
use crate::connect::{self, LinkArgs, size};
use crate::floor::Floor;
use crate::progress::Progress;
use crate::say::{self, Say};

/// Measure puts of tensors of some sizes, and the same bytes over one plain socket.
///
/// Each put makes a new tensor, which is freed when it is there; checksums are on. The floor is a stream of messages of the same
/// size between two processes, over one TCP connection set up as Genie's own. Genie and floor are measured in turns.
///
/// With --json: a list with a row for each size: op, bytes, gb_s, floor_gb_s, ratio (the last two null without --floor),
/// copied_bytes, which are payload bytes that client and server copied in user space while they were put.
///
/// Example: genie bench put --connect tcp://127.0.0.1:7070 --sizes 1M,4M,64M --floor --json
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The server: genie://HOST:PORT, or a link's own address: tcp://HOST:PORT.
    #[arg(long)]
    connect: Uri,
    /// Bytes of a tensor.
    #[arg(long, value_delimiter = ',', default_value = "65536,1048576,4194304,67108864", value_parser = size)]
    sizes: Vec<u64>,
    /// Measure a plain socket as well.
    #[arg(long)]
    floor: bool,
    /// Puts in flight together.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    depth: u32,
    /// Turns of each size; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// Index of the device.
    #[arg(long, default_value_t = 0)]
    device: u16,
    #[command(flatten)]
    link: LinkArgs,
}

/// One size's row.
#[derive(Debug, Serialize)]
struct Row {
    op: &'static str,
    bytes: u64,
    gb_s: f64,
    floor_gb_s: Option<f64>,
    ratio: Option<f64>,
    copied_bytes: u64,
}

/// Bytes that a turn moves, at least.
const TURN_BYTES: u64 = 256 << 20;
/// Puts in a turn, at least.
const TURN_PUTS: u64 = 8;

/// Runs the command.
pub(crate) fn run(args: &PutArgs, say: Say) -> Result<()> {
    let rows = connect::within(&args.connect, args.link, |session| measure(args, session))?;
    say.result(&rows, |rows| {
        let optional = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
        say::table(
            ["op", "bytes", "GB/s", "floor GB/s", "ratio", "copied bytes"],
            rows.iter().map(|r| {
                let (rate, copied) = (format!("{:.2}", r.gb_s), r.copied_bytes.to_string());
                [r.op.to_owned(), r.bytes.to_string(), rate, optional(r.floor_gb_s), optional(r.ratio), copied]
            }),
        )
    })
}

fn measure(args: &PutArgs, session: &mut Session) -> Result<Vec<Row>> {
    let floor = if args.floor {
        same_host(&args.connect)?;
        Some(Floor::start()?)
    } else {
        None
    };
    let mut progress = Progress::steps("put", args.sizes.len() as u64 * u64::from(args.turns));
    let mut rows = Vec::new();
    for &bytes in &args.sizes {
        let message = Bytes::from(vec![3; usize::try_from(bytes)?]);
        let spec = TensorSpec::new(DType::U8, &[bytes])?;
        let count = TURN_BYTES.div_ceil(bytes).clamp(TURN_PUTS, 4096);
        let (mut ours, mut theirs, mut copied) = (Vec::new(), Vec::new(), 0);
        // Not counted: the first turn takes memory that later ones find.
        for turn in 0..=args.turns {
            let before = all_copied(session)?;
            let took = puts(session, args, &spec, &message, count)?;
            let copied_now = all_copied(session)? - before;
            let floor_took = floor.as_ref().map(|f| f.stream(&message, count)).transpose()?;
            if turn > 0 {
                let rate = |took: Duration| (bytes * count) as f64 / took.as_secs_f64() / 1e9;
                ours.push(rate(took));
                theirs.extend(floor_took.map(rate));
                copied += copied_now;
                progress.step();
            }
        }
        let (gb_s, floor_gb_s) = (median(&ours), floor.is_some().then(|| median(&theirs)));
        rows.push(Row {
            op: "put",
            bytes,
            gb_s: rounded(gb_s),
            floor_gb_s: floor_gb_s.map(rounded),
            ratio: floor_gb_s.map(|f| rounded(gb_s / f)),
            copied_bytes: copied,
        });
    }
    Ok(rows)
}

/// Puts `count` tensors, `depth` at a time.
fn puts(session: &mut Session, args: &PutArgs, spec: &TensorSpec, data: &Bytes, count: u64) -> Result<Duration> {
    let options = PutOptions { device: args.device, ..PutOptions::default() };
    let mut flying = VecDeque::new();
    let mut done = None;
    let began = Instant::now();
    for _ in 0..count {
        if flying.len() == args.depth as usize
            && let Some(first) = flying.pop_front()
        {
            done = Some(session.finish_put(first)?);
        }
        flying.push_back(session.start_put(spec, data.clone(), options)?);
        // Freed while the next ones are on their way, so that the line never waits for it.
        if let Some(tensor) = done.take() {
            session.free(tensor.handle)?;
        }
    }
    let mut last = Vec::new();
    for pending in flying {
        last.push(session.finish_put(pending)?);
    }
    let took = began.elapsed();
    last.iter().try_for_each(|tensor| session.free(tensor.handle))?;
    Ok(took)
}

/// Payload bytes that this process and the server have copied in user space.
fn all_copied(session: &mut Session) -> Result<u64> {
    let stats = session.stats()?;
    let server = stats.iter().find(|(name, _)| name == "genie_copied_bytes_total").map_or(0, |(_, value)| *value);
    Ok(copied_bytes() + server)
}
