//! `genie bench transfer`: puts, gets and echoes of many sizes, over many links.

use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use genie_transport::Uri;
use genie_transport::client::blocking::Session;

use super::floors::{Beside, Floors};
use super::load::{self, Outcome, Plan, Until};
use super::memory::Memory;
use super::output::OutputArgs;
use super::row::{self, Row};
use super::server::{ServerArgs, Servers};
use super::sizes::{Sizes, flatten, sizes};
use super::usage::{Spent, Usage};
use super::work::{Op, Work};
use super::{LARGEST_ECHO, figure, rounded};
use crate::connect::{self, LinkArgs, scheme, seconds};
use crate::floor::Waiting;
use crate::progress::Progress;
use crate::say::Say;

/// Measure puts, gets and echoes: latency, throughput, CPU time and copies, each row beside its floor.
///
/// A request is a put of a new tensor (freed when it is there), a get of a resident one, an echo, or puts and gets in turn. Each
/// thread has a session of its own and keeps --depth requests in flight, or begins them at --rate whatever became of the earlier
/// ones; then a latency counts from when the request was meant to begin, so that nothing slow is left out.
///
/// A row's floor is measured in turns with it: for an echo one raw socket that is polled if this client polls, else as many raw
/// streams as there are lanes and threads, a get's from the server to the client, the others' there; for shm:// two processes that poll shared memory, and memcpy to as many places in turn as
/// there are requests in flight. An echo's ratio is its p50 by the floor's, for one request in flight; the others' is GB/s by the
/// floor's, the median of the turns' ratios.
///
/// With --json a list with a row for each link, op and size; with --csv the same as a table. Times in microseconds (_us), rates in
/// GB/s (10^9), CPU time in seconds for each GB (_cpu_s_gb) of client and server, copied_per_byte of both ends together,
/// copy_overlap (for a server with --trace: the part of the time that copies to and from its GPU took, in which the network filled or
/// emptied other slabs), avg_sm (percent of the time in which the GPU ran a kernel), connect_us and first_us for what is only paid once, first_registering_us for what of that was registering memory (rdma:// alone).
///
/// Examples:
///   genie bench transfer --serve --op echo --sizes 64,4K
///   genie bench transfer --serve --links tcp,shm --op put,get --sizes 64:64M:4 --svg transfer.svg
///   genie bench transfer --uri tcp://gpu-host:7070 --op put --sizes 64M --lanes 4 --threads 2 --depth 8 --time 5
///   genie bench transfer --serve --op echo --sizes 64 --rate 20000 --csv
///   genie bench transfer --serve --serve-device cuda --op put,get --sizes 64M --trace overlap.json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct TransferArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// What to measure.
    #[arg(long, value_name = "OP", value_enum, value_delimiter = ',', default_value = "put")]
    op: Vec<Op>,
    /// Bytes of a tensor or echo: 64,4K,1M, and sweeps FROM:TO:FACTOR.
    #[arg(long, value_delimiter = ',', default_value = "64,4K,64K,1M,4M,64M", value_parser = sizes)]
    sizes: Vec<Sizes>,
    /// Requests in flight, of each thread.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: Option<u32>,
    /// Tensors (or echoes) that one request is made of; its latency is that of the last.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,
    /// Bulk lanes of each session; 0: as many as suit what lies between.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=16))]
    lanes: u32,
    /// Threads, each with a session of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Where the client's payloads lie: heap (Genie's, in large pages), malloc (the allocator's), pinned (locked pages), shared (over
    /// shm://, where gets land in it anyway), device (with CUDA).
    #[arg(long, value_enum, default_value = "heap")]
    memory: Memory,
    /// Checksums of bulk slices; off where the server was started with --unchecked. Over tcps:// records are authenticated instead.
    #[arg(long, value_enum, default_value = "on")]
    integrity: Switch,
    /// Index of the server's device.
    #[arg(long, default_value_t = 0)]
    device: u16,
    /// Requests a second of all threads together (open loop); without it, the next begins when one ends.
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Seconds before each row that do not count.
    #[arg(long, value_name = "S", default_value_t = 0.2, value_parser = seconds)]
    warmup: f64,
    /// Seconds to measure each row, with the floor as long again.
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = seconds)]
    time: f64,
    /// Instead: requests of each thread and row.
    #[arg(long, value_name = "N", conflicts_with = "time", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,
    /// Leave the floors out.
    #[arg(long)]
    no_floor: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// Draw latency and throughput by size into this file.
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    link: LinkArgs,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// Turns that Genie and the floor take.
const TURNS: u32 = 5;

/// Runs the command.
pub(crate) fn run(args: &TransferArgs, say: Say) -> Result<()> {
    let sizes = flatten(&args.sizes);
    args.check(&sizes)?;
    let servers = args.server.ready(&args.link, args.device)?;
    servers.uris().iter().try_for_each(|uri| args.memory.check(uri))?;
    let mut progress = Progress::steps("transfer", (servers.uris().len() * args.op.len() * sizes.len()) as u64);
    let mut rows = Vec::new();
    for uri in servers.uris() {
        measure((args, &servers), uri, &sizes, &mut progress, &mut rows)?;
    }
    drop(progress);
    servers.write_utilisation()?;
    if let Some(path) = &args.svg {
        std::fs::write(path, figure::transfer(&rows)?).with_context(|| format!("writing {}", path.display()))?;
    }
    args.output.print(say, &rows, |rows| row::table(rows))
}

impl TransferArgs {
    fn check(&self, sizes: &[u64]) -> Result<()> {
        if let Some(big) = sizes.iter().find(|&&n| n > LARGEST_ECHO).filter(|_| self.op.contains(&Op::Echo)) {
            bail!(
                "{big} bytes are too many for an echo: up to {LARGEST_ECHO}; --op put and --op get have no such limit"
            );
        }
        if matches!(self.memory, Memory::Pinned | Memory::Malloc | Memory::Device)
            && self.op.iter().any(|op| op.reads())
        {
            bail!(
                "a get lands in memory of its session's own, which is not {}: --memory {} is for puts and echoes",
                self.memory.name(),
                self.memory.name()
            );
        }
        if self.time <= 0.0 && self.iterations.is_none() {
            bail!("--time 0 measures nothing: give a time, or --iterations");
        }
        Ok(())
    }

    /// Small things one at a time, so that latency is latency; tensors as `genie bench put`; an open loop as it comes.
    fn depth_for(&self, op: Op) -> u32 {
        match self.depth {
            Some(depth) => depth,
            None if self.rate.is_some() => 64,
            None if op == Op::Echo => 1,
            None => 4,
        }
    }

    fn plan(&self, depth: u32, turn: u32) -> Plan {
        let turns = self.turns();
        let until = match self.iterations {
            // The remainder goes to the first turns: with fewer requests than turns some have none.
            Some(n) => Until::Count(n / u64::from(turns) + u64::from(u64::from(turn) < n % u64::from(turns))),
            None => Until::Time(Duration::from_secs_f64(self.time) / turns),
        };
        Plan { depth: depth as usize, rate: self.rate.map(|r| r / f64::from(self.threads)), until }
    }
}

/// All rows of one server.
fn measure(
    (args, servers): (&TransferArgs, &Servers),
    uri: &Uri,
    sizes: &[u64],
    progress: &mut Progress,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let waiting = if args.link.spin > 0 { Waiting::Busy } else { Waiting::Blocking };
    let floors = if args.no_floor { None } else { Floors::or_note(uri, waiting, args.memory)? };
    // Looks at the server's counters, and does not poll while it has nothing to ask.
    let mut observer = connect::session_with(uri, LinkArgs { spin: 0, ..args.link }, connect::lasting(args.time))?;
    let began = Instant::now();
    let mut sessions = vec![args.session(uri)?];
    let connect = began.elapsed();
    for _ in 1..args.threads {
        sessions.push(args.session(uri)?);
    }
    let lanes = sessions.first_mut().map_or(1, |session| session.lane_plan().lanes).max(1);
    let mut bench = Bench { args, uri, floors: floors.as_ref(), sessions, observer: &mut observer, connect, lanes };
    let mut done = Ok(());
    'rows: for &op in &args.op {
        for &bytes in sizes {
            progress.say(format!("{} {} {}", scheme(uri), op.name(), row::size(bytes)));
            let began = Instant::now();
            match bench.row(op, bytes) {
                Ok(row) => rows.push(Row { avg_sm: servers.avg_sm(began), ..row }),
                Err(error) => {
                    done = Err(error.context(format!("{} of {bytes} bytes over {uri}", op.name())));
                    break 'rows;
                }
            }
            progress.step();
        }
    }
    // What a failure left on the server ends with its session.
    let closed = bench.sessions.into_iter().map(Session::close).chain([observer.close()]).collect::<Result<(), _>>();
    done?;
    Ok(closed?)
}

/// One server under measurement.
struct Bench<'a> {
    args: &'a TransferArgs,
    uri: &'a Uri,
    floors: Option<&'a Floors>,
    sessions: Vec<Session>,
    observer: &'a mut Session,
    connect: Duration,
    /// As many as the sessions use.
    lanes: u32,
}

impl TransferArgs {
    /// Turns are for the floor's sake: each begins and ends with nothing in flight.
    fn turns(&self) -> u32 {
        if self.no_floor { 1 } else { TURNS }
    }

    fn session(&self, uri: &Uri) -> Result<Session> {
        let mut session = connect::session_with(uri, self.link, |options| {
            connect::lasting(self.time)(options);
            options.client.lanes = self.lanes;
            options.client.unchecked = self.integrity == Switch::Off;
        })?;
        if self.integrity == Switch::Off {
            super::is_unchecked(&mut session, uri)?;
        }
        Ok(session)
    }
}

impl Bench<'_> {
    fn row(&mut self, op: Op, bytes: u64) -> Result<Row> {
        let (args, uri) = (self.args, self.uri);
        let depth = args.depth_for(op);
        let message = args.memory.plain_bytes(usize::try_from(bytes)?)?;
        let streams = if op == Op::Echo { 1 } else { self.lanes * args.threads };
        let mut beside = self.floors.map(|floors| floors.beside(op, streams)).transpose()?;
        let barrier = Barrier::new(self.sessions.len() + 1);
        let observer = &mut *self.observer;
        let floors = self.floors;
        let slice = Duration::from_secs_f64(args.time) / args.turns();
        let (mut spent, mut failed) = (Spent::default(), Ok(()));
        let threads: Vec<Result<Thread>> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .sessions
                .iter_mut()
                .map(|session| scope.spawn(|| thread(args, uri, session, op, depth, bytes, &barrier)))
                .collect();
            // Whatever fails here, the threads go through all of their turns: each waits for the others.
            barrier.wait();
            if let (Some(floors), Some(beside)) = (floors, &mut beside) {
                failed = floors.turn(beside, op, &message, (streams, depth), slice / 2);
                beside.warmed();
            }
            for _ in 0..args.turns() {
                // Each session has been silent for as long as the floor took.
                barrier.wait();
                barrier.wait();
                let before = Usage::look(observer);
                barrier.wait();
                barrier.wait();
                let turn = || {
                    spent.add(Usage::look(observer)?.since(&before?));
                    if let (Some(floors), Some(beside)) = (floors, &mut beside) {
                        floors.turn(beside, op, &message, (streams, depth), slice)?;
                    }
                    Ok(())
                };
                if failed.is_ok() {
                    failed = turn();
                }
            }
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("a thread failed")))).collect()
        });
        let threads: Vec<Thread> = threads.into_iter().collect::<Result<_>>()?;
        failed?;
        let (mut outcome, mut rates) = (Outcome::empty()?, Vec::new());
        for turn in 0..args.turns() as usize {
            let mut all = Outcome::empty()?;
            threads.iter().filter_map(|thread| thread.turns.get(turn)).for_each(|one| all.beside(one));
            // Fewer requests than turns: the last turns have none.
            if all.requests > 0 {
                let moved = all.requests * u64::from(args.batch) * bytes;
                rates.push(moved as f64 / all.took.as_secs_f64() / 1e9);
            }
            outcome.after(&all);
        }
        let first = threads.iter().map(|t| t.first).max().unwrap_or_default();
        let us = |time: Duration| rounded(time.as_secs_f64() * 1e6);
        let mut row = Row {
            op: op.name(),
            link: scheme(self.uri),
            uri: self.uri.to_string(),
            bytes,
            depth,
            batch: args.batch,
            lanes: self.lanes,
            threads: args.threads,
            memory: args.memory.name(),
            integrity: if args.integrity == Switch::On { "on" } else { "off" },
            spin_us: args.link.spin,
            rate: args.rate,
            connect_us: us(self.connect),
            first_us: us(first),
            first_registering_us: threads.iter().filter_map(|t| t.registering).max().map(us),
            ..Row::default()
        };
        row.measured(&outcome, &rates, &spent);
        if let Some(beside) = beside {
            compare(&mut row, op, beside, &rates);
        }
        Ok(row)
    }
}

/// Puts the floor beside a row; their ratio where both did the same. `rates`: GB/s of the turns.
fn compare(row: &mut Row, op: Op, beside: Beside, rates: &[f64]) {
    (row.floor_p50_us, row.floor_gb_s) = (beside.p50_us(), beside.gb_s());
    let ratio = beside.ratio_of(rates);
    row.floor = Some(beside.what);
    row.ratio = match (row.floor_p50_us, row.floor_gb_s) {
        (Some(us), _) if op == Op::Echo && row.depth * row.batch * row.threads == 1 => Some(rounded(row.p50_us / us)),
        // An open loop moves what it was asked to.
        (None, Some(_)) if row.rate.is_none() => ratio,
        _ => None,
    };
}

/// What a thread measured.
struct Thread {
    first: Duration,
    /// Of that, registering memory.
    registering: Option<Duration>,
    turns: Vec<Outcome>,
}

/// A thread's part of a row. It comes to the barrier once when it is warm, and four times in each turn, whatever fails: before and after
/// it wakes its session, and before and after what is measured.
fn thread(
    args: &TransferArgs,
    uri: &Uri,
    session: &mut Session,
    op: Op,
    depth: u32,
    bytes: u64,
    barrier: &Barrier,
) -> Result<Thread> {
    let mut work = warm(args, uri, session, op, depth, bytes);
    barrier.wait();
    let mut turns = Vec::new();
    let mut failed = Ok(());
    for turn in 0..args.turns() {
        barrier.wait();
        if let (Ok((work, ..)), Ok(())) = (&mut work, &failed) {
            failed = work.wake();
        }
        barrier.wait();
        barrier.wait();
        if let (Ok((work, ..)), Ok(())) = (&mut work, &failed) {
            failed = load::run(work, args.plan(depth, turn)).map(|outcome| turns.push(outcome));
        }
        barrier.wait();
    }
    let (work, first, registering) = work?;
    failed?;
    work.end()?;
    Ok(Thread { first, registering, turns })
}

/// The requests, ready and warm; how long the first took, and how much of that was registering memory.
fn warm<'a>(
    args: &TransferArgs,
    uri: &Uri,
    session: &'a mut Session,
    op: Op,
    depth: u32,
    bytes: u64,
) -> Result<(Work<'a>, Duration, Option<Duration>)> {
    let data = args.memory.bytes(session, usize::try_from(bytes)?)?;
    let mut work = Work::new(session, op, data, args.device, args.batch)?;
    let before = registering();
    let first = load::run(&mut work, Plan { depth: 1, rate: None, until: Until::Count(1) })?;
    let registering = registering().zip(before).map(|(now, before)| now.saturating_sub(before));
    let until = Until::Time(Duration::from_secs_f64(args.warmup));
    load::run(&mut work, Plan { depth: depth as usize, rate: None, until })?;
    // Over a link that registers no memory nothing was spent on it.
    Ok((work, first.took, registering.filter(|_| scheme(uri) == "rdma")))
}

/// How long this process has registered memory with devices, if it can.
#[cfg(feature = "rdma")]
fn registering() -> Option<Duration> {
    Some(genie_transport::link::rdma::registering())
}

/// Nothing to be registered with.
#[cfg(not(feature = "rdma"))]
fn registering() -> Option<Duration> {
    None
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (1e-3..=1e9).contains(&rate) => Ok(rate),
        _ => Err("write requests a second: 20000".to_owned()),
    }
}
