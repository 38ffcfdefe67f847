//! `genie gap`: what it is worth to know what the bytes mean.

mod figure;
mod modes;
mod record;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use genie_models::Model;
use genie_models::remote::{RemoteOptions, Sampling};
use genie_transport::Uri;
use serde::Serialize;

use crate::connect::{self, LinkArgs};
use crate::fail::Differ;
use crate::generate::{ModelArgs, SamplingArgs};
use crate::gpu::{self, Watch};
use crate::local::LocalModel;
use crate::progress::Progress;
use crate::prompt;
use crate::say::Say;
use crate::server::OwnServer;

use modes::{Bench, Load, Local, Naive, RemoteCache, Resident};
use record::{Record, Summary};

/// Measure the semantic gap: a model with and without the server knowing what bytes mean
///
/// Model, prompt, seed and count of tokens are the same in all modes.
/// local runs in this process: the same executor, no network. naive is a server that keeps nothing: weights, program and KV cache
/// travel on every call. remote-cache keeps the weights, but the KV cache travels on every call. genie keeps all of it: tokens
/// travel. The tokens of all modes must be the same, else the command fails (exit status 4).
///
/// Each mode of each trial has a server of its own, unless --connect is given, and runs once before it is measured. Bytes are
/// counted at the socket, headers included. A server that keeps nothing would not have to be told to let go of it: what a call
/// leaves behind is freed after it, and neither the time nor the bytes of that count.
/// The table goes to FILE.csv, a figure beside it to FILE.svg. Where the device is a GPU of this machine, what it said of itself goes to
/// FILE.sm.csv: time_s, sm (percent), memory (bytes).
///
///   latency_s    time of the phase's steps
///   wall_s       the same, with what had to be set up before
///   setup_bytes  what was sent and received to set up (weights in the modes that keep them)
///   net_bytes    bytes_up + bytes_down: what the phase's steps sent and received
///   avg_sm       percent of the phase in which the server's GPU ran a kernel; empty where that is not known
///   steps        calls in the phase: 1 for the prefill, one for each new token in the decode
///   tokens_s     tokens that the phase ran through, by latency_s
///
/// Example: genie gap --model model.gguf --trials 3 --prompt-tokens 72 --new-tokens 16 --out gap.csv
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct GapArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Modes to compare.
    #[arg(long, value_delimiter = ',', default_value = "local,naive,remote-cache,genie")]
    modes: Vec<Mode>,
    /// Phases to measure.
    #[arg(long, value_delimiter = ',', default_value = "prefill,decode")]
    phases: Vec<Phase>,
    /// How often to measure each mode.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    trials: u32,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 72, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens that the decode phase makes, after the one that the prefill gives.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    new_tokens: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Where the table goes; the figure goes beside it.
    #[arg(long, value_name = "FILE.csv")]
    out: Option<PathBuf>,
    /// The device of the servers that are started, and of the local mode, as for `genie serve`; of several the first.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    serve_device: String,
    /// A server that runs already, instead of one for each measurement. Weights that it has are not sent again.
    #[arg(long, value_name = "URI")]
    connect: Option<Uri>,
    #[command(flatten)]
    link: LinkArgs,
}

/// Who knows what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// In this process.
    Local,
    /// A server that keeps nothing.
    Naive,
    /// A server that keeps weights.
    RemoteCache,
    /// A server that keeps all.
    #[value(alias = "sys_simulated")]
    Genie,
}

impl Mode {
    /// As in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Naive => "naive",
            Self::RemoteCache => "remote-cache",
            Self::Genie => "genie",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Phase {
    /// The prompt in one step.
    Prefill,
    /// Token after token.
    Decode,
}

impl Phase {
    /// As in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// How the model is kept, with all types chosen: all modes compute the same. Where the server's device decides, and the server is
/// one of this command's own, one is started for the question.
fn settled(args: &GapArgs, model: &Model) -> Result<RemoteOptions> {
    let mut own = None;
    args.model.settled(model, || {
        let uri = match &args.connect {
            Some(uri) => uri,
            None => own.insert(OwnServer::start(&args.serve_device)?).uri(),
        };
        connect::session_with(uri, args.link, connect::lasting(0.0))
    })
}

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome<'a> {
    model: &'a str,
    model_bytes: u64,
    prompt_tokens: u32,
    new_tokens: u32,
    seed: i64,
    tokens: &'a [i32],
    csv: Option<&'a Path>,
    figure: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    utilisation: Option<&'a Path>,
    rows: &'a [Record],
    summary: Vec<Summary>,
}

/// Runs the command.
pub(crate) fn run(args: &GapArgs, say: Say) -> Result<()> {
    args.out.as_deref().map(check_out).transpose()?;
    let model = Arc::new(args.model.open()?);
    prompt::fits(&model, args.prompt_tokens, args.new_tokens)?;
    let prompt = prompt::of_length(&model, args.prompt_tokens as usize)?;
    let load = Load::new(model.clone(), settled(args, &model)?)?;
    let mut gap = Gap {
        args,
        sampling: args.sampling.sampling()?,
        load: &load,
        prompt,
        tokens: None,
        records: Vec::new(),
        watch: None,
        progress: Progress::steps("gap", {
            let decode = if args.phases.contains(&Phase::Decode) { u64::from(args.new_tokens) } else { 0 };
            u64::from(args.trials) * args.modes.len() as u64 * (1 + decode)
        }),
    };
    let measured = gap.measure_all();
    let Gap { records, tokens, sampling, progress, watch, .. } = gap;
    drop(progress);
    if let Err(error) = measured {
        return Err(match &args.out {
            Some(csv) if !records.is_empty() => saved(error, csv, &records),
            _ => error,
        });
    }
    let (_, tokens) = tokens.unwrap_or_default();
    let svg = args.out.as_ref().map(|csv| csv.with_extension("svg"));
    if let (Some(csv), Some(svg)) = (&args.out, &svg) {
        write(csv, record::csv(&records)?.as_bytes())?;
        write(svg, figure::svg(&records, &title(&model, args))?.as_bytes())?;
    }
    let utilisation = watch.zip(args.out.as_ref()).map(|(watch, csv)| {
        let path = gpu::beside(csv);
        watch.write(&path).map(|()| path)
    });
    let utilisation = utilisation.transpose()?;
    let summary = record::summaries(&records);
    let outcome = Outcome {
        model: model.name(),
        model_bytes: model.weight_bytes(),
        prompt_tokens: args.prompt_tokens,
        new_tokens: args.new_tokens,
        seed: sampling.seed,
        tokens: &tokens,
        csv: args.out.as_deref(),
        figure: svg.as_deref(),
        utilisation: utilisation.as_deref(),
        rows: &records,
        summary,
    };
    say.result(&outcome, |o| {
        let mut files = match (o.csv, o.figure) {
            (Some(csv), Some(svg)) => format!("\ntable: {}\nfigure: {}", csv.display(), svg.display()),
            _ => String::new(),
        };
        if let Some(path) = o.utilisation {
            files += &format!("\nthe GPU's use: {}", path.display());
        }
        format!("{}\n{}\nThe tokens of all modes are the same.{files}", title(&model, args), record::table(&o.summary))
    })
}

/// What can be wrong with the table's place is said before anything is measured.
fn check_out(csv: &Path) -> Result<()> {
    let shown = csv.display();
    if csv.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg")) {
        bail!("{shown} is where the figure would go: --out names the table, FILE.csv, and the figure goes beside it");
    }
    let folder = csv.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if csv.file_name().is_none() || csv.is_dir() || !folder.is_dir() {
        bail!("{shown} cannot be written: --out takes the name of a file, FILE.csv, in a folder that is there");
    }
    Ok(())
}

/// The rows of before an error are not lost.
fn saved(error: anyhow::Error, csv: &Path, records: &[Record]) -> anyhow::Error {
    let written = record::csv(records).and_then(|table| write(csv, table.as_bytes()));
    match written {
        Ok(()) => error.context(format!("not all was measured (the rows so far are in {})", csv.display())),
        Err(other) => error.context(format!("not all was measured, and the rows so far are lost ({other:#})")),
    }
}

fn write(path: &Path, data: &[u8]) -> Result<()> {
    crate::get::write_whole(path, data).with_context(|| format!("cannot write {}", path.display()))
}

fn title(model: &Model, args: &GapArgs) -> String {
    let size = crate::say::bytes(model.weight_bytes());
    format!("{} ({size}), prompt of {} tokens, {} new tokens", model.name(), args.prompt_tokens, args.new_tokens)
}

/// A measurement in progress.
struct Gap<'a> {
    args: &'a GapArgs,
    sampling: Sampling,
    load: &'a Load,
    prompt: Vec<i32>,
    /// What the first mode said, which all others must say.
    tokens: Option<(&'static str, Vec<i32>)>,
    records: Vec<Record>,
    /// The GPU, from the first mode on that runs on one of this machine.
    watch: Option<Watch>,
    progress: Progress,
}

impl Gap<'_> {
    fn measure_all(&mut self) -> Result<()> {
        for trial in 0..self.args.trials {
            for &mode in &self.args.modes {
                self.progress.say(format!("{} ({}/{})", mode.name(), trial + 1, self.args.trials));
                self.measure(trial, mode).with_context(|| format!("mode {}", mode.name()))?;
            }
        }
        Ok(())
    }

    /// One mode of one trial.
    fn measure(&mut self, trial: u32, mode: Mode) -> Result<()> {
        let server = match (mode, &self.args.connect) {
            (Mode::Local, _) | (_, Some(_)) => None,
            (_, None) => Some(OwnServer::start(&self.args.serve_device)?),
        };
        let uri = server.as_ref().map(OwnServer::uri).or(self.args.connect.as_ref());
        let open = |uri| connect::session_with(uri, self.args.link, connect::lasting(0.0));
        let uri = uri.filter(|_| mode != Mode::Local);
        if let Some(uri) = uri.filter(|_| self.watch.is_none()) {
            // In a session of its own: neither its time nor its bytes are those of the mode.
            let uuid = gpu::uuid_of(&mut open(uri)?, self.args.model.device)?;
            self.watch(uuid);
        }
        let began = Instant::now();
        let session = uri.map(open).transpose()?;
        let mut bench: Box<dyn Bench> = match (mode, session) {
            (Mode::Naive, Some(session)) => Box::new(Naive::new(self.load, session, self.sampling)),
            (Mode::RemoteCache, Some(session)) => Box::new(RemoteCache::new(self.load, session, self.sampling)?),
            (Mode::Genie, Some(session)) => Box::new(Resident::new(self.load, session, self.sampling)?),
            _ => {
                let Load { model, options, .. } = self.load;
                let graphs = options.graphs(model, genie_graph::Phase::Prefill, false);
                let local = LocalModel::new(model, &self.args.serve_device, graphs)?;
                self.watch(local.gpu());
                Box::new(Local::new(local, self.sampling)?)
            }
        };
        let setup = (began.elapsed(), bench.traffic());
        let ran = self.run(&mut *bench, trial, mode, setup);
        let closed = bench.close();
        let tokens = ran?;
        closed?;
        drop(server);
        self.compare(mode, tokens)
    }

    /// From now on this GPU is watched, if it is one of this machine; the first that is stays.
    fn watch(&mut self, uuid: Option<String>) {
        if self.watch.is_none() {
            self.watch = uuid.and_then(|uuid| Watch::start(&uuid));
        }
    }

    /// The phases; gives the tokens.
    fn run(&mut self, bench: &mut dyn Bench, trial: u32, mode: Mode, setup: Setup) -> Result<Vec<i32>> {
        // Once unmeasured: the first call of a process maps its memory.
        let mut unmeasured = Took::default();
        let next = unmeasured.call(bench, |bench| bench.prefill(&self.prompt))?;
        unmeasured.call(bench, |bench| bench.step(next))?;
        bench.restart()?;
        let (mut prefilled, began) = (Took::default(), Instant::now());
        let mut tokens = vec![prefilled.call(bench, |bench| bench.prefill(&self.prompt))?];
        self.progress.step();
        self.record(trial, mode, Phase::Prefill, setup, &prefilled, began);
        if self.args.phases.contains(&Phase::Decode) {
            let (mut decoded, mut next, began) = (Took::default(), tokens[0], Instant::now());
            for _ in 0..self.args.new_tokens {
                next = decoded.call(bench, |bench| bench.step(next))?;
                tokens.push(next);
                self.progress.step();
            }
            self.record(trial, mode, Phase::Decode, setup, &decoded, began);
        }
        Ok(tokens)
    }

    fn record(&mut self, trial: u32, mode: Mode, phase: Phase, setup: Setup, took: &Took, began: Instant) {
        if !self.args.phases.contains(&phase) {
            return;
        }
        let (steps, ran) = match phase {
            Phase::Prefill => (1, self.args.prompt_tokens),
            Phase::Decode => (self.args.new_tokens, self.args.new_tokens),
        };
        let latency_s = took.time.as_secs_f64();
        let (setup_time, (setup_up, setup_down)) = setup;
        self.records.push(Record {
            trial,
            phase: phase.name(),
            mode: mode.name(),
            latency_s,
            wall_s: latency_s + setup_time.as_secs_f64(),
            net_bytes: took.up + took.down,
            avg_sm: self.watch.as_ref().and_then(|watch| watch.average(began, Instant::now())),
            setup_bytes: setup_up + setup_down,
            bytes_up: took.up,
            bytes_down: took.down,
            steps,
            tokens_s: f64::from(ran) / latency_s,
        });
    }

    fn compare(&mut self, mode: Mode, tokens: Vec<i32>) -> Result<()> {
        match &self.tokens {
            None => self.tokens = Some((mode.name(), tokens)),
            Some((_, first)) if *first == tokens => {}
            Some((other, first)) => {
                let at = first.iter().zip(&tokens).position(|(a, b)| a != b).unwrap_or(0);
                let message = format!(
                    "modes {other} and {} say different tokens from number {at} on ({:?} and {:?}): their results are not \
                     the same, so their times are not compared",
                    mode.name(),
                    first.get(at),
                    tokens.get(at)
                );
                return Err(Differ(message).into());
            }
        }
        Ok(())
    }
}

/// Time to set up, and bytes up and down.
type Setup = (Duration, (u64, u64));

/// What calls took.
#[derive(Debug, Default)]
struct Took {
    time: Duration,
    up: u64,
    down: u64,
}

impl Took {
    /// One call more. What it leaves behind is cleared away outside of the measurement.
    fn call(&mut self, bench: &mut dyn Bench, work: impl FnOnce(&mut dyn Bench) -> Result<i32>) -> Result<i32> {
        let (up, down) = bench.traffic();
        let began = Instant::now();
        let token = work(bench)?;
        self.time += began.elapsed();
        let after = bench.traffic();
        self.up += after.0 - up;
        self.down += after.1 - down;
        bench.clear()?;
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_place_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_out(&folder.path().join("x.csv")).is_ok() && check_out(Path::new("x")).is_ok());
        for bad in ["x.svg", "x.SVG", "missing/x.csv", "", ".."] {
            assert!(check_out(&folder.path().join(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn rows_of_before_an_error_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let csv = folder.path().join("x.csv");
        let record = Record {
            trial: 0,
            phase: "decode",
            mode: "local",
            latency_s: 1.0,
            wall_s: 1.0,
            net_bytes: 0,
            avg_sm: None,
            setup_bytes: 0,
            bytes_up: 0,
            bytes_down: 0,
            steps: 2,
            tokens_s: 2.0,
        };
        let error = saved(Differ("others".into()).into(), &csv, &[record]);
        assert!(error.to_string().contains("x.csv") && error.chain().any(|e| e.is::<Differ>()));
        assert!(std::fs::read_to_string(&csv).unwrap().lines().count() == 2);
    }
}
