//! `genie bench decode`: a language model on a server against the same executor in this process.

mod turns;

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use genie_graph::Phase;
use genie_models::Model;
use genie_models::remote::{Context, RemoteModel, RemoteOptions, Sampling};
use genie_transport::Uri;
use genie_transport::client::blocking::Session;
use serde::Serialize;

use super::relay::Relay;
use super::{median, rounded};
use crate::connect::{self, LinkArgs};
use crate::generate::{ModelArgs, establish, resident};
use crate::gpu::{self, Watch};
use crate::local::LocalModel;
use crate::progress::{self, Progress};
use crate::prompt;
use crate::say::{self, Say};
use crate::server::OwnServer;

use turns::{Far, Pair, Task};

/// Measure decode steps on a server and in this process in turns, the start of a second client, and several sessions at once.
///
/// Starts a server of its own unless --connect is given; then that should run on this machine, with as many threads as this
/// process may use.
///
/// Example: genie bench decode --model model.gguf --prompt-tokens 72 --new-tokens 50 --sessions 8
#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 72, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Decode steps; 0: run the prompt alone, which may then be as long as the model sees.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = steps)]
    new_tokens: u32,
    /// Turns of both.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// Requests under way beside the one whose reply is waited for, where steps do not wait for each reply: as many more as steps fit
    /// into a round trip.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    ahead: u32,
    /// Sessions that decode at the same time; 0 or 1: leave that out.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(..=256))]
    sessions: u32,
    /// Measure steps at this round trip as well: what goes to the server, on this machine and over tcp, is held back for that.
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    round_trip: Option<u64>,
    /// The device of the server that is started, and of this process, as for `genie serve`; of several the first.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    serve_device: String,
    /// Where a table of how busy the server's GPU was goes, if it is one of this machine: time_s, sm (percent), memory (bytes).
    #[arg(long, value_name = "FILE.csv")]
    utilisation: Option<PathBuf>,
    /// A server that runs already.
    #[arg(long, value_name = "URI")]
    connect: Option<Uri>,
    #[command(flatten)]
    link: LinkArgs,
}

#[derive(Debug, Serialize)]
struct Outcome {
    op: &'static str,
    model: String,
    model_bytes: u64,
    prompt_tokens: u32,
    new_tokens: u32,
    /// Requests under way beside the one whose reply is waited for, in what is called ahead.
    ahead: u32,
    local_prefill_ms: f64,
    remote_prefill_ms: f64,
    prefill_ratio: f64,
    #[serde(flatten)]
    decode: Option<Steps>,
    far: Option<FarSteps>,
    second_client: Option<SecondClient>,
    several: Option<Several>,
    /// Percent of the time in which the server's GPU ran a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_sm: Option<f64>,
}

/// Decode steps, where there were any.
#[derive(Debug, Serialize)]
struct Steps {
    local_decode_ms: f64,
    remote_decode_ms: f64,
    decode_ratio: f64,
    /// A token of steps that do not wait for each reply, and that by a step in this process.
    ahead_decode_ms: f64,
    ahead_ratio: f64,
    /// A token that the server makes by itself and streams, and that by a step in this process.
    streamed_decode_ms: f64,
    streamed_ratio: f64,
    /// How many of the first streamed tokens are those of the steps.
    streamed_alike: usize,
    step_bytes_up: u64,
    step_bytes_down: u64,
}

/// Steps at a longer round trip.
#[derive(Debug, Serialize)]
struct FarSteps {
    /// As it was measured.
    round_trip_us: f64,
    /// What of it bytes were held back for, there and back: no reply comes sooner.
    held_us: f64,
    local_decode_ms: f64,
    /// Waiting for each reply.
    remote_decode_ms: f64,
    decode_ratio: f64,
    /// With requests ahead, as in [`Steps`].
    ahead_decode_ms: f64,
    ahead_ratio: f64,
}

/// A client that finds the weights there.
#[derive(Debug, Serialize)]
struct SecondClient {
    bytes_up: u64,
    percent_of_model: f64,
    first_token_ms: f64,
    beyond_prefill_ms: f64,
}

/// Sessions at the same time.
#[derive(Debug, Serialize)]
struct Several {
    sessions: u32,
    tokens_s_one: f64,
    tokens_s_all: f64,
    speedup: f64,
}

/// Runs the command.
pub(crate) fn run(args: &DecodeArgs, say: Say) -> Result<()> {
    let model = Arc::new(args.model.open()?);
    prompt::fits(&model, args.prompt_tokens, args.new_tokens)?;
    let prompt = prompt::of_length(&model, args.prompt_tokens as usize)?;
    let text_of_prompt = as_text(&model, &prompt)?;
    let own = if args.connect.is_none() { Some(OwnServer::start(&args.serve_device)?) } else { None };
    let uri = own.as_ref().map(OwnServer::uri).or(args.connect.as_ref()).context("there is no server")?;
    let options = args.model.settled(&model, || session(args, uri))?;
    let bench = Bench { args, uri, model: &model, options, prompt: &prompt };
    let watch = bench.watch()?;
    let (pair, far) = bench.pair()?;
    // What makes no tokens leaves out all that needs some.
    let decodes = args.new_tokens > 0;
    let second_client = text_of_prompt.filter(|_| decodes);
    let second_client = second_client.map(|text| bench.second_client(&text, pair.remote_prefill)).transpose()?;
    let several = (decodes && args.sessions > 1).then(|| bench.several()).transpose()?;
    let ms = |s: f64| rounded(s * 1e3);
    let outcome = Outcome {
        op: "decode",
        model: model.name().to_owned(),
        model_bytes: model.weight_bytes(),
        prompt_tokens: args.prompt_tokens,
        new_tokens: args.new_tokens,
        ahead: args.ahead,
        local_prefill_ms: ms(pair.local_prefill),
        remote_prefill_ms: ms(pair.remote_prefill),
        prefill_ratio: rounded(pair.remote_prefill / pair.local_prefill),
        decode: pair.decode.map(|d| Steps {
            local_decode_ms: ms(d.local),
            remote_decode_ms: ms(d.remote),
            decode_ratio: rounded(d.remote / d.local),
            ahead_decode_ms: ms(d.ahead),
            ahead_ratio: rounded(d.ahead_ratio),
            streamed_decode_ms: ms(d.streamed),
            streamed_ratio: rounded(d.streamed_ratio),
            streamed_alike: d.streamed_alike,
            step_bytes_up: d.bytes.0,
            step_bytes_down: d.bytes.1,
        }),
        far: far.map(|f| FarSteps {
            round_trip_us: rounded(f.round_trip * 1e6),
            held_us: rounded(f.held * 1e6),
            local_decode_ms: ms(f.local),
            remote_decode_ms: ms(f.remote),
            decode_ratio: rounded(f.remote / f.local),
            ahead_decode_ms: ms(f.ahead),
            ahead_ratio: rounded(f.ahead_ratio),
        }),
        second_client,
        several,
        avg_sm: watch.as_ref().and_then(Watch::average_so_far).map(rounded),
    };
    if let (Some(watch), Some(path)) = (&watch, &args.utilisation) {
        watch.write(path)?;
    }
    say.result(&outcome, text)
}

fn text(o: &Outcome) -> String {
    let mut lines = vec![
        format!(
            "{} ({}), prompt of {} tokens, {} steps",
            o.model,
            say::bytes(o.model_bytes),
            o.prompt_tokens,
            o.new_tokens
        ),
        format!("prefill  in process {:.1} ms, remote {:.1} ms", o.local_prefill_ms, o.remote_prefill_ms),
    ];
    if let Some(d) = &o.decode {
        lines.push(format!(
            "decode   in process {:.2} ms a token, remote {:.2} ms: {:.3} times; streamed {:.2} ms: {:.3} times",
            d.local_decode_ms, d.remote_decode_ms, d.decode_ratio, d.streamed_decode_ms, d.streamed_ratio
        ));
        lines.push(format!(
            "ahead    with {} ahead of the reply {:.2} ms a token: {:.3} times",
            requests(o.ahead),
            d.ahead_decode_ms,
            d.ahead_ratio
        ));
        lines
            .push(format!("a step   {} bytes up, {} bytes down, headers included", d.step_bytes_up, d.step_bytes_down));
    }
    if let Some(f) = &o.far {
        lines.push(format!(
            "far      at a round trip of {:.1} us in process {:.2} ms a token; remote, waiting for each reply {:.2} ms: {:.3} times; \
             with {} ahead {:.2} ms: {:.3} times",
            f.round_trip_us,
            f.local_decode_ms,
            f.remote_decode_ms,
            f.decode_ratio,
            requests(o.ahead),
            f.ahead_decode_ms,
            f.ahead_ratio
        ));
    }
    if let Some(s) = &o.second_client {
        lines.push(format!(
            "second   a client that starts now sends {} ({:.4} % of the model) and has its first token after {:.0} ms, \
             {:.0} ms beyond the prefill",
            say::bytes(s.bytes_up),
            s.percent_of_model,
            s.first_token_ms,
            s.beyond_prefill_ms
        ));
    }
    if let Some(s) = &o.several {
        lines.push(format!(
            "several  1 session {:.1} tokens/s, {} sessions {:.1} tokens/s: {:.2} times",
            s.tokens_s_one, s.sessions, s.tokens_s_all, s.speedup
        ));
    }
    if let Some(percent) = o.avg_sm {
        lines.push(format!("avg_sm   a kernel ran on the GPU for {percent:.0} % of all that"));
    }
    lines.join("\n")
}

fn requests(count: u32) -> String {
    if count == 1 { "a request".to_owned() } else { format!("{count} requests") }
}

/// The prompt as a second client is told it; nothing for a model without a tokenizer.
fn as_text(model: &Model, prompt: &[i32]) -> Result<Option<String>> {
    let Ok(tokenizer) = model.tokenizer() else { return Ok(None) };
    let ids: Vec<u32> = prompt.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
    let text = tokenizer.decode(&ids)?;
    let again = tokenizer.encode(&text)?;
    if again != ids {
        // Where the passage is cut in the middle of what is one token.
        bail!(
            "the text of these {} tokens is {} tokens when it is read again, so a second client would be given another prompt: \
             choose another --prompt-tokens",
            ids.len(),
            again.len()
        );
    }
    Ok(Some(text))
}

struct Bench<'a> {
    args: &'a DecodeArgs,
    uri: &'a Uri,
    model: &'a Arc<Model>,
    /// With all types chosen: local and remote compute the same.
    options: RemoteOptions,
    prompt: &'a [i32],
}

fn session(args: &DecodeArgs, uri: &Uri) -> Result<Session> {
    connect::session_with(uri, args.link, connect::lasting(0.0))
}

impl Bench<'_> {
    /// Here and there; and, where that is asked for, from further away.
    fn pair(&self) -> Result<(Pair, Option<Far>)> {
        let graphs = self.options.graphs(self.model, Phase::Prefill, false);
        let local = LocalModel::new(self.model, &self.args.serve_device, graphs)?;
        let (steps, turns) = (self.args.new_tokens, self.args.turns);
        let task = Task { local: &local, prompt: self.prompt, steps, turns, ahead: self.args.ahead };
        resident(self.session()?, self.model, &self.options, |remote| {
            let pair = task.pair(remote)?;
            let far = self.args.round_trip.filter(|_| steps > 0).map(|us| self.far(&task, Duration::from_micros(us)));
            Ok((pair, far.transpose()?))
        })
    }

    /// The weights are there: they do not go through the relay.
    fn far(&self, task: &Task<'_>, round_trip: Duration) -> Result<Far> {
        let relay = Relay::to(self.uri)?;
        let session = connect::session_with(relay.uri(), self.args.link, connect::lasting(0.0))?;
        resident(session, self.model, &self.options, |remote| task.far(&relay, remote, round_trip))
    }

    /// Watches the server's GPU, if it is one of this machine.
    fn watch(&self) -> Result<Option<Watch>> {
        let mut session = self.session()?;
        let uuid = gpu::uuid_of(&mut session, self.args.model.device)?;
        session.close()?;
        Ok(uuid.and_then(|uuid| Watch::start(&uuid)))
    }

    fn session(&self) -> Result<Session> {
        session(self.args, self.uri)
    }

    /// A process of its own, as a second user would start it.
    fn second_client(&self, prompt: &str, prefill: f64) -> Result<SecondClient> {
        let me = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(me);
        command.args(["generate", "--json", "--connect", &self.uri.to_string(), "--max-new-tokens", "1", "--prompt"]);
        command.arg(prompt).args(self.args.link.arguments()).arg("--model").arg(&self.args.model.model);
        command.args(["--device", &self.options.device.to_string()]);
        let types = [
            ("--dtype", self.args.model.dtype),
            ("--activations", self.options.activations),
            ("--kv-dtype", self.options.kv_dtype),
        ];
        for (name, dtype) in types {
            command.args(dtype.into_iter().flat_map(|dtype| [name, dtype.name()]));
        }
        command.stderr(std::process::Stdio::inherit());
        let output = progress::watched(Progress::steps("second client", 1), 1, || 0, || command.output())
            .context("starting a second client")?;
        if !output.status.success() {
            bail!("the second client failed");
        }
        let outcome: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let number = |name: &str| {
            outcome
                .get(name)
                .and_then(serde_json::Value::as_f64)
                .ok_or_else(|| anyhow!("the second client said no {name}"))
        };
        if number("prompt_tokens")? != self.prompt.len() as f64 {
            bail!(
                "the second client ran another prompt: {} tokens, not {}",
                number("prompt_tokens")?,
                self.prompt.len()
            );
        }
        let bytes_up = number("bytes_up")?;
        let first = number("load_s")? + number("upload_s")? + number("first_token_s")?;
        Ok(SecondClient {
            bytes_up: bytes_up as u64,
            percent_of_model: (bytes_up / self.model.weight_bytes() as f64 * 1e8).round() / 1e6,
            first_token_ms: rounded(first * 1e3),
            beyond_prefill_ms: rounded((first - prefill) * 1e3),
        })
    }

    /// One session alone, then several at the same time, each with its own connection.
    fn several(&self) -> Result<Several> {
        let (turns, sessions) = (self.args.turns, self.args.sessions);
        let made = AtomicU64::new(0);
        let total = u64::from(turns) * u64::from(1 + sessions) * u64::from(self.args.new_tokens);
        let progress = Progress::steps("several sessions", total);
        let (one, all) = progress::watched(
            progress,
            total,
            || made.load(Ordering::Relaxed),
            || Ok::<_, anyhow::Error>((self.together(1, &made)?, self.together(sessions, &made)?)),
        )?;
        let (tokens_s_one, tokens_s_all) = (rounded(one), rounded(all));
        Ok(Several { sessions, tokens_s_one, tokens_s_all, speedup: rounded(all / one) })
    }

    /// Tokens a second of so many sessions: the median of some turns. `made` counts tokens.
    fn together(&self, sessions: u32, made: &AtomicU64) -> Result<f64> {
        let rates = (0..self.args.turns).map(|_| self.turn_together(sessions, made)).collect::<Result<Vec<_>>>()?;
        Ok(median(&rates))
    }

    fn turn_together(&self, sessions: u32, made: &AtomicU64) -> Result<f64> {
        let mut clients = Vec::new();
        let begun = (0..sessions).try_for_each(|_| {
            let mut remote = establish(self.session()?, self.model, &self.options)?;
            let first = self.begin(&mut remote);
            clients.push((remote, first));
            Ok::<_, anyhow::Error>(())
        });
        // Whoever cannot begin lets the others begin all the same: nobody waits for ever, and every session is closed.
        let start = Barrier::new(clients.len());
        let steps = self.args.new_tokens;
        let decode = |(mut remote, first): (RemoteModel, Result<(Context, i32)>)| -> Result<(Instant, Instant)> {
            start.wait();
            let began = Instant::now();
            let decoded = first.and_then(|(mut context, first)| {
                remote.generate(&mut context, &[first], steps, &[], |_| {
                    made.fetch_add(1, Ordering::Relaxed);
                    true
                })?;
                Ok((began, Instant::now()))
            });
            let closed = remote.close();
            let times = decoded?;
            closed?;
            Ok(times)
        };
        let times = std::thread::scope(|scope| {
            let decode = &decode;
            let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || decode(client))).collect();
            let joined = threads.into_iter().map(|t| t.join().map_err(|_| anyhow!("a client's thread failed"))?);
            joined.collect::<Result<Vec<_>>>()
        })?;
        begun?;
        let began = times.iter().map(|t| t.0).min().context("no session ran")?;
        let ended = times.iter().map(|t| t.1).max().context("no session ran")?;
        Ok(f64::from(sessions) * f64::from(steps) / (ended - began).as_secs_f64())
    }

    fn begin(&self, remote: &mut RemoteModel) -> Result<(Context, i32)> {
        let mut context = remote.context(Sampling::default())?;
        let first = remote.prefill(&mut context, self.prompt)?;
        Ok((context, first))
    }
}

/// One step alone has no other to be measured from.
fn steps(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|&n| n != 1).ok_or_else(|| "write a whole number: 0, or 2 and above".to_owned())
}
