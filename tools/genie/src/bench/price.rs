//! `genie bench price`: what integrity, or TLS, costs a tensor.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use genie_transport::Uri;
use genie_transport::client::blocking::Session;
use serde::Serialize;

use super::load::{self, Plan, Until};
use super::memory::Memory;
use super::output::OutputArgs;
use super::server::ServerArgs;
use super::sizes::{Sizes, flatten, sizes};
use super::work::{Op, Work};
use super::{median, rounded, row};
use crate::connect::{self, LinkArgs, scheme, seconds};
use crate::progress::Progress;
use crate::say::{self, Say};

/// Measure what integrity, or TLS, costs: throughput with it and without it, in turns, within one run.
///
/// With one address, slices with checksums are measured beside slices without (the server has to allow that: `genie serve
/// --unchecked`); tcps:// and urings:// have none to do without, since each of their records has a tag. With two, the first address is
/// measured beside the second: tcps:// beside tcp://. Then each side guards its bytes as it does by itself, and the output says how.
///
/// A turn of one is followed by a turn of the other, and the next pair begins with the other one, so that memory that gets slower
/// or faster meanwhile changes both. A pair gives a ratio; the row has the median of these, and the quartiles around it.
///
/// With --json: a list with a row for each op and size (with --csv the same as a table): op, bytes, with, without (what was measured), with_integrity, without_integrity
/// (what guards the bytes on either side: crc32c, record tags, none), with_gb_s, without_gb_s (medians of the turns), ratio,
/// ratio_q1, ratio_q3 (quartiles), pairs.
///
/// Examples:
///   genie bench price --serve --serve-args=--unchecked --sizes 1M,4M,64M
///   genie bench price --uri tcps://127.0.0.1:7071,tcp://127.0.0.1:7070 --ca ca.pem --op put,get --json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct PriceArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// What to measure: put, get, or mixed.
    #[arg(long, value_name = "OP", value_enum, value_delimiter = ',', default_value = "put,get")]
    op: Vec<Op>,
    /// Bytes of a tensor: 1M,4M, and sweeps FROM:TO:FACTOR.
    #[arg(long, value_delimiter = ',', default_value = "1M,4M,64M", value_parser = sizes)]
    sizes: Vec<Sizes>,
    /// Requests in flight.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: u32,
    /// Bulk lanes of each session.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    lanes: u32,
    /// Pairs of turns.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Seconds of each turn.
    #[arg(long, value_name = "S", default_value_t = 0.2, value_parser = seconds)]
    time: f64,
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
    bytes: u64,
    with: String,
    without: String,
    with_integrity: &'static str,
    without_integrity: &'static str,
    with_gb_s: f64,
    without_gb_s: f64,
    /// The median of the pairs' ratios, and their first and third quartiles.
    ratio: f64,
    ratio_q1: f64,
    ratio_q3: f64,
    pairs: u32,
}

/// Runs the command.
pub(crate) fn run(args: &PriceArgs, say: Say) -> Result<()> {
    if args.op.contains(&Op::Echo) {
        bail!("an echo has no slices: --op put, get or mixed");
    }
    if args.time <= 0.0 {
        bail!("--time 0 measures nothing");
    }
    let sizes = flatten(&args.sizes);
    let servers = args.server.ready(&args.link, args.device)?;
    let (mut with, mut without) = match servers.uris() {
        [uri] if uri.is_encrypted() => bail!(
            "{uri} has no checksums to do without: each record of TLS has a tag, so both sides would be the same. Give two \
             addresses, for what TLS costs: --uri tcps://HOST:PORT,tcp://HOST:PORT, or --serve --links tcps,tcp"
        ),
        [uri] if scheme(uri) == "shm" => bail!(
            "{uri} has no checksums to do without: tensors are passed, or copied once, in memory that both ends see, so both \
             sides would be the same. Give tcp://, or two addresses"
        ),
        [uri] => (Side::open(args, uri, false)?, Side::open(args, uri, true)?),
        [with, without] => (Side::open(args, with, false)?, Side::open(args, without, false)?),
        _ => bail!("one address, for integrity beside none, or two, to measure the first beside the second"),
    };
    let mut progress = Progress::steps("price", (args.op.len() * sizes.len()) as u64);
    let mut rows = Vec::new();
    for &op in &args.op {
        for &bytes in &sizes {
            progress.say(format!("{} {}", op.name(), row::size(bytes)));
            let row = measure(args, op, bytes, &mut with, &mut without);
            rows.push(row.with_context(|| format!("{} of {bytes} bytes", op.name()))?);
            progress.step();
        }
    }
    drop(progress);
    servers.write_utilisation()?;
    with.session.close()?;
    without.session.close()?;
    args.output.print(say, &rows, |rows| table(rows))
}

/// One of the two that are compared.
struct Side {
    name: String,
    integrity: &'static str,
    session: Session,
}

impl Side {
    fn open(args: &PriceArgs, uri: &Uri, unchecked: bool) -> Result<Self> {
        let mut session = connect::session_with(uri, args.link, |options| {
            connect::lasting(args.time)(options);
            options.client.lanes = args.lanes;
            options.client.unchecked = unchecked;
        })?;
        if unchecked {
            super::is_unchecked(&mut session, uri)?;
        }
        let name = if unchecked { format!("{uri} unchecked") } else { uri.to_string() };
        Ok(Self { name, integrity: integrity(uri, unchecked), session })
    }
}

/// What guards a tensor's bytes on their way.
fn integrity(uri: &Uri, unchecked: bool) -> &'static str {
    match scheme(uri).as_str() {
        "tcps" | "urings" => "record tags",
        // They lie in memory that both ends see.
        "shm" => "none",
        _ if unchecked => "none",
        _ => "crc32c",
    }
}

fn measure(args: &PriceArgs, op: Op, bytes: u64, with: &mut Side, without: &mut Side) -> Result<Row> {
    // Both send the same bytes: from other memory one might be faster.
    let data = Memory::Heap.plain_bytes(usize::try_from(bytes)?)?;
    let mut works = [&mut *with, without]
        .map(|side| Work::new(&mut side.session, op, data.clone(), args.device, 1))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let plan = Plan { depth: args.depth as usize, rate: None, until: Until::Time(Duration::from_secs_f64(args.time)) };
    let (mut rates, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    // Not counted: the first pair takes memory that later ones find.
    for pair in 0..=args.pairs {
        let mut rate = [0.0; 2];
        for turn in 0..2 {
            let which = (turn + pair as usize) % 2;
            works[which].wake()?;
            let outcome = load::run(&mut works[which], plan)?;
            rate[which] = (outcome.requests * bytes) as f64 / outcome.took.as_secs_f64() / 1e9;
        }
        if pair > 0 {
            rates.iter_mut().zip(rate).for_each(|(all, one)| all.push(one));
            ratios.push(rate[0] / rate[1]);
        }
    }
    works.into_iter().try_for_each(Work::end)?;
    ratios.sort_by(f64::total_cmp);
    let quartile = |part: usize| ratios[(ratios.len() - 1) * part / 4];
    Ok(Row {
        op: op.name(),
        bytes,
        with: with.name.clone(),
        without: without.name.clone(),
        with_integrity: with.integrity,
        without_integrity: without.integrity,
        with_gb_s: rounded(median(&rates[0])),
        without_gb_s: rounded(median(&rates[1])),
        ratio: rounded(median(&ratios)),
        ratio_q1: rounded(quartile(1)),
        ratio_q3: rounded(quartile(3)),
        pairs: args.pairs,
    })
}

fn table(rows: &[Row]) -> String {
    let names = rows.first().map_or_else(String::new, |r| {
        let side = |name: &str, integrity: &str| format!("{name} (integrity: {integrity})");
        format!("with: {}; without: {}", side(&r.with, r.with_integrity), side(&r.without, r.without_integrity))
    });
    let cells = rows.iter().map(|r| {
        let (with, without) = (row::digits(r.with_gb_s), row::digits(r.without_gb_s));
        let (low, high) = (r.ratio_q1, r.ratio_q3);
        [
            r.op.to_owned(),
            row::size(r.bytes),
            with,
            without,
            format!("{:.3}", r.ratio),
            format!("{low:.2} to {high:.2}"),
        ]
    });
    let head = ["op", "size", "with GB/s", "without GB/s", "ratio", "half of the pairs within"];
    format!("{}\n{names}", say::table(head, cells))
}
