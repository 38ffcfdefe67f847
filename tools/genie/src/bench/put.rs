//! `genie bench put`: how fast tensors get to the server.

use anyhow::Result;
use clap::Args;
use genie_transport::Uri;
use genie_transport::client::blocking::Session;
use serde::Serialize;

use super::floors::{Beside, Floors};
use super::load::{self, Plan, Until};
use super::memory::Memory;
use super::usage::{Spent, Usage};
use super::work::{Op, Work};
use super::{median, rounded};
use crate::connect::{self, LinkArgs, size};
use crate::floor::Waiting;
use crate::progress::Progress;
use crate::say::{self, Say};

/// Measure puts of tensors of some sizes, and the same bytes without Genie.
///
/// Each put makes a new tensor, which is freed when it is there; checksums are on. The floor is a stream of messages of the same
/// size between two processes, over one TCP connection set up as Genie's own; for shm:// a plain copy of the bytes. Genie and floor are
/// measured in turns. (`genie bench transfer` measures more, and other things.)
///
/// With --json: a list with a row for each size: op, uri (the link's own, where genie:// chose it), bytes, gb_s and floor_gb_s (medians of
/// the turns), ratio (the median of the turns' ratios; it and the floor null without --floor), copied_bytes, which are payload bytes
/// that client and server copied in user space while they were put (null if the server does not count them).
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
    /// Measure a plain socket, or plain copies, as well.
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
    uri: String,
    bytes: u64,
    gb_s: f64,
    floor_gb_s: Option<f64>,
    ratio: Option<f64>,
    copied_bytes: Option<u64>,
}

/// Bytes that a turn moves, at least.
const TURN_BYTES: u64 = 256 << 20;
/// Puts in a turn, at least.
const TURN_PUTS: u64 = 8;

/// Runs the command.
pub(crate) fn run(args: &PutArgs, say: Say) -> Result<()> {
    let (uri, _) = connect::settled(&args.connect, args.link)?;
    let rows = connect::within_with(&uri, args.link, connect::lasting(0.0), |session| measure(args, &uri, session))?;
    say.result(&rows, |rows| {
        let optional = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
        say::table(
            ["op", "bytes", "GB/s", "floor GB/s", "ratio", "copied bytes"],
            rows.iter().map(|r| {
                let copied = r.copied_bytes.map_or_else(|| "-".to_owned(), |n| n.to_string());
                let rate = format!("{:.2}", r.gb_s);
                [r.op.to_owned(), r.bytes.to_string(), rate, optional(r.floor_gb_s), optional(r.ratio), copied]
            }),
        )
    })
}

fn measure(args: &PutArgs, uri: &Uri, session: &mut Session) -> Result<Vec<Row>> {
    let floors = args.floor.then(|| Floors::wanted(uri, Waiting::Blocking)).transpose()?;
    let mut progress = Progress::steps("put", args.sizes.len() as u64 * u64::from(args.turns));
    let mut rows = Vec::new();
    for &bytes in &args.sizes {
        let message = Memory::Heap.plain_bytes(usize::try_from(bytes)?)?;
        let count = TURN_BYTES.div_ceil(bytes).clamp(TURN_PUTS, 4096);
        let plan = Plan { depth: args.depth as usize, rate: None, until: Until::Count(count) };
        let mut beside = floors.as_ref().map(|floors| floors.beside(Op::Put, 1)).transpose()?;
        let mut work = Work::new(session, Op::Put, message.clone(), args.device, 1)?;
        let (mut rates, mut spent) = (Vec::new(), Spent::default());
        // Not counted: the first turn takes memory that later ones find.
        for turn in 0..=args.turns {
            let before = Usage::look(work.session())?;
            let outcome = load::run(&mut work, plan)?;
            let taken = Usage::look(work.session())?.since(&before);
            if let (Some(floors), Some(beside)) = (&floors, &mut beside) {
                floors.turn(beside, Op::Put, &message, (1, args.depth), outcome.took)?;
                if turn == 0 {
                    beside.warmed();
                }
            }
            if turn > 0 {
                rates.push((bytes * count) as f64 / outcome.took.as_secs_f64() / 1e9);
                spent.add(taken);
                progress.step();
            }
        }
        work.end()?;
        rows.push(Row {
            op: "put",
            uri: uri.to_string(),
            bytes,
            gb_s: rounded(median(&rates)),
            floor_gb_s: beside.as_ref().and_then(Beside::gb_s),
            ratio: beside.and_then(|beside| beside.ratio_of(&rates)),
            copied_bytes: spent.copied,
        });
    }
    Ok(rows)
}
