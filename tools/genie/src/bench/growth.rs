//! `genie bench growth`: what another connection, or another resident, costs the server.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use genie_graph::DType;
use genie_transport::Uri;
use genie_transport::client::PutOptions;
use genie_transport::client::blocking::Session;
use genie_transport::wire::TensorSpec;
use serde::Serialize;

use super::figure;
use super::floors::Floors;
use super::load::{self, Outcome, Plan, Until};
use super::memory::Memory;
use super::output::OutputArgs;
use super::rounded;
use super::row::digits;
use super::server::ServerArgs;
use super::usage::Usage;
use super::work::{Op, Work};
use crate::connect::{self, LinkArgs, scheme, seconds, size};
use crate::floor::Waiting;
use crate::progress::Progress;
use crate::say::{self, Say};
use crate::serve::more_descriptors;

/// Measure latency, memory and idle CPU time while connections, or residents, grow in number.
///
/// Each connection has a session of its own and is silent but for the one that is measured by echoes. Residents are small tensors
/// of one session, and what is measured is a get of another. Memory is what the processes have in place, more than before the
/// first, for each.
///
/// The floor beside a row: an echo over a plain socket, polled if this client polls, while as many plain connections are open, each of
/// which was opened by a byte each way; for shm:// two processes that poll shared memory, which has no connections to be opened.
///
/// With --json a list with a row for each number (with --csv the same as a table): what, link, count, p50_us, p99_us, each_us (to add one), server_bytes_each,
/// client_bytes_each, idle_cpu_percent (of one core, by the server, with all of them silent), floor, floor_p50_us, floor_each_us.
///
/// Example: genie bench growth --serve --connections 1,10,100,1000,10000 --residents 1,10,100,1000,10000,100000 --svg growth.svg
#[derive(Debug, Args)]
pub(crate) struct GrowthArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Numbers of connections; 0 alone: leave them out.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,10,100,1000,10000")]
    connections: Vec<u32>,
    /// Numbers of residents; 0 alone: leave them out.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,10,100,1000,10000,100000")]
    residents: Vec<u32>,
    /// Bytes of a resident.
    #[arg(long, default_value = "64", value_parser = size)]
    bytes: u64,
    /// Seconds to measure at each number, and to be silent; up to 10.
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = seconds)]
    time: f64,
    /// Leave the floors out.
    #[arg(long)]
    no_floor: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// Draw latency and memory by number into this file.
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    link: LinkArgs,
}

/// What there is so many of, and what that does.
#[derive(Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) link: String,
    pub(super) count: u32,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) each_us: f64,
    pub(super) server_bytes_each: Option<f64>,
    pub(super) client_bytes_each: Option<f64>,
    pub(super) idle_cpu_percent: Option<f64>,
    pub(super) floor: Option<String>,
    pub(super) floor_p50_us: Option<f64>,
    pub(super) floor_each_us: Option<f64>,
}

/// Bytes of the echo, and of the get.
const SMALL: usize = 64;

/// A server waits for three of its keepalives, 30 s, before it takes a connection for dead. One that is counted here is silent while the
/// others are asked for a ping, for a `--time`, and while requests are measured.
const LONGEST_S: f64 = 10.0;

/// Puts of residents that are in flight.
const FLYING: usize = 32;

/// Runs the command.
pub(crate) fn run(args: &GrowthArgs, say: Say) -> Result<()> {
    if args.time > LONGEST_S {
        bail!(
            "--time {}: up to {LONGEST_S}, or the server takes connections that are silent that long for dead",
            args.time
        );
    }
    more_descriptors();
    let servers = args.server.ready(&args.link, 0)?;
    let (connections, residents) = (ascending(&args.connections), ascending(&args.residents));
    let mut progress = Progress::steps("growth", (servers.uris().len() * (connections.len() + residents.len())) as u64);
    let mut rows = Vec::new();
    for uri in servers.uris() {
        let mut observer = connect::session_with(uri, LinkArgs { spin: 0, ..args.link }, connect::lasting(args.time))?;
        let waiting = if args.link.spin > 0 { Waiting::Busy } else { Waiting::Blocking };
        let floors = if args.no_floor { None } else { Floors::or_note(uri, waiting, Memory::Heap)? };
        let mut growth = Growth { args, uri, floors, observer: &mut observer, progress: &mut progress };
        let grown = growth.connections(&connections, &mut rows).and_then(|()| growth.residents(&residents, &mut rows));
        let closed = observer.close();
        grown?;
        closed?;
    }
    drop(progress);
    servers.write_utilisation()?;
    if let Some(path) = &args.svg {
        std::fs::write(path, figure::growth(&rows)?).with_context(|| format!("writing {}", path.display()))?;
    }
    args.output.print(say, &rows, |rows| {
        let some = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), digits);
        let header = [
            "link",
            "what",
            "count",
            "p50 us",
            "p99",
            "floor p50",
            "us to add",
            "floor",
            "server B each",
            "client B each",
            "idle CPU %",
        ];
        say::table(
            header,
            rows.iter().map(|r| {
                let [p50, p99, each] = [r.p50_us, r.p99_us, r.each_us].map(digits);
                let [server, client, idle] = [r.server_bytes_each, r.client_bytes_each, r.idle_cpu_percent].map(some);
                let [floor, floor_each] = [r.floor_p50_us, r.floor_each_us].map(some);
                let named = [r.link.clone(), r.what.to_owned(), r.count.to_string()];
                let [link, what, count] = named;
                [link, what, count, p50, p99, floor, each, floor_each, server, client, idle]
            }),
        )
    })
}

/// The numbers above 0, each once.
fn ascending(counts: &[u32]) -> Vec<u32> {
    let mut counts: Vec<u32> = counts.iter().copied().filter(|n| *n > 0).collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// What is beside a row.
#[derive(Default)]
struct Floor {
    what: Option<String>,
    p50_us: Option<f64>,
    each_us: Option<f64>,
}

impl Floor {
    fn beside(self, row: Row) -> Row {
        Row { floor: self.what, floor_p50_us: self.p50_us, floor_each_us: self.each_us, ..row }
    }
}

struct Growth<'a> {
    args: &'a GrowthArgs,
    uri: &'a Uri,
    floors: Option<Floors>,
    observer: &'a mut Session,
    progress: &'a mut Progress,
}

impl Growth<'_> {
    fn connections(&mut self, counts: &[u32], rows: &mut Vec<Row>) -> Result<()> {
        // First, and then closed: this process has descriptors for so many connections, not for twice as many.
        let mut plain = Vec::new();
        let floors: Vec<Floor> =
            counts.iter().map(|&count| self.floor(count, Some(&mut plain))).collect::<Result<_>>()?;
        drop(plain);
        let mut sessions: Vec<Session> = Vec::new();
        let before = Usage::look(self.observer)?;
        for (&count, floor) in counts.iter().zip(floors) {
            let (began, had) = (Instant::now(), sessions.len());
            while sessions.len() < count as usize {
                let session = connect::another(self.uri, self.args.link, connect::lasting(self.args.time))
                    .with_context(|| format!("after {} connections", sessions.len()))?;
                sessions.push(session);
            }
            let each = began.elapsed().as_secs_f64() / (sessions.len() - had).max(1) as f64;
            // All of them are there: who says nothing for long is taken for dead.
            sessions.iter_mut().try_for_each(|session| session.ping().map(|_| ()))?;
            let Some(first) = sessions.first_mut() else { continue };
            let row = self.row("connections", count, each, before, first, Op::Echo)?;
            rows.push(floor.beside(row));
        }
        sessions.into_iter().try_for_each(Session::close)?;
        Ok(())
    }

    fn residents(&mut self, counts: &[u32], rows: &mut Vec<Row>) -> Result<()> {
        let mut session = connect::another(self.uri, self.args.link, connect::lasting(self.args.time))?;
        let (data, spec) =
            (vec![9; usize::try_from(self.args.bytes)?], TensorSpec::new(DType::U8, &[self.args.bytes])?);
        let data = Bytes::from(data);
        let before = Usage::look(self.observer)?;
        let mut there = 0;
        for &count in counts {
            let (began, had) = (Instant::now(), there);
            let mut flying = VecDeque::new();
            while there < count || !flying.is_empty() {
                if there < count && flying.len() < FLYING {
                    flying.push_back(session.start_put(&spec, data.clone(), PutOptions::default())?);
                    there += 1;
                } else if let Some(put) = flying.pop_front() {
                    session.finish_put(put).with_context(|| format!("after {there} residents"))?;
                }
            }
            let each = began.elapsed().as_secs_f64() / f64::from((there - had).max(1));
            let floor = self.floor(count, None)?;
            let row = self.row("residents", count, each, before, &mut session, Op::Get)?;
            rows.push(floor.beside(row));
        }
        // They end with their session.
        Ok(session.close()?)
    }

    /// What the machine gives without Genie, with so many plain connections open where it is those that grow in number.
    fn floor(&self, count: u32, plain: Option<&mut Vec<TcpStream>>) -> Result<Floor> {
        let Some(floors) = &self.floors else { return Ok(Floor::default()) };
        let mut each = None;
        if let Some(plain) = plain {
            let (began, had) = (Instant::now(), plain.len());
            while plain.len() < count as usize {
                let connection = floors.connection().with_context(|| format!("after {} plain ones", plain.len()))?;
                let Some(connection) = connection else { break };
                plain.push(connection);
            }
            let more = plain.len() - had;
            each = (more > 0).then(|| rounded(began.elapsed().as_secs_f64() / more as f64 * 1e6));
        }
        let mut beside = floors.beside(Op::Echo, 1)?;
        for time in [self.args.time / 4.0, self.args.time] {
            beside.warmed();
            floors.turn(&mut beside, Op::Echo, &[7; SMALL], (1, 1), Duration::from_secs_f64(time))?;
        }
        Ok(Floor { p50_us: beside.p50_us(), what: Some(beside.what), each_us: each })
    }

    /// Silence, then requests.
    fn row(
        &mut self,
        what: &'static str,
        count: u32,
        each: f64,
        before: Usage,
        session: &mut Session,
        op: Op,
    ) -> Result<Row> {
        let quiet = Usage::look(self.observer)?;
        let began = Instant::now();
        std::thread::sleep(Duration::from_secs_f64(self.args.time));
        let after = Usage::look(self.observer)?;
        let idle = after.since(&quiet).server_cpu.map(|cpu| cpu.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0);
        let outcome = self.requests(session, op)?;
        let us = |q| rounded(outcome.latencies.value_at_quantile(q) as f64 / 1e3);
        let more = |now: Option<u64>, then: Option<u64>| {
            let more = now?.saturating_sub(then?);
            Some((more as f64 / f64::from(count)).round())
        };
        self.progress.step();
        Ok(Row {
            what,
            link: scheme(self.uri),
            count,
            p50_us: us(0.5),
            p99_us: us(0.99),
            each_us: rounded(each * 1e6),
            server_bytes_each: more(after.server_resident, before.server_resident),
            client_bytes_each: more(after.client_resident, before.client_resident),
            idle_cpu_percent: idle.map(rounded),
            ..Row::default()
        })
    }

    fn requests(&self, session: &mut Session, op: Op) -> Result<Outcome> {
        let mut work = Work::new(session, op, vec![7; SMALL].into(), 0, 1)?;
        let time = Duration::from_secs_f64(self.args.time);
        let plan = |time| Plan { depth: 1, rate: None, until: Until::Time(time) };
        load::run(&mut work, plan(time / 4))?;
        let outcome = load::run(&mut work, plan(time))?;
        work.end()?;
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow() {
        assert_eq!(ascending(&[100, 1, 10, 1]), [1, 10, 100]);
        assert!(ascending(&[0]).is_empty());
    }
}
