//! `genie bench decode`: a language model on a server against the same executor in this process.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use genie_models::Model;
use genie_models::remote::{Context, RemoteModel, Sampling};
use genie_transport::Uri;
use genie_transport::client::blocking::Session;
use serde::Serialize;

use super::{median, rounded};
use crate::connect::{self, LinkArgs};
use crate::fail::Differ;
use crate::generate::{ModelArgs, establish, resident};
use crate::gpu::{self, Watch};
use crate::local::LocalModel;
use crate::progress::{self, Progress};
use crate::prompt;
use crate::say::{self, Say};
use crate::server::OwnServer;

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
    /// Decode steps.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..))]
    new_tokens: u32,
    /// Turns of both.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// Sessions that decode at the same time; 0 or 1: leave that out.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(..=256))]
    sessions: u32,
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
    local_decode_ms: f64,
    remote_decode_ms: f64,
    decode_ratio: f64,
    local_prefill_ms: f64,
    remote_prefill_ms: f64,
    step_bytes_up: u64,
    step_bytes_down: u64,
    second_client: Option<SecondClient>,
    several: Option<Several>,
    /// Percent of the time in which the server's GPU ran a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_sm: Option<f64>,
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
    let bench = Bench { args, uri, model: &model, prompt: &prompt };
    let watch = bench.watch()?;
    let pair = bench.pair()?;
    let second_client = text_of_prompt.map(|text| bench.second_client(&text, pair.remote_prefill)).transpose()?;
    let several = (args.sessions > 1).then(|| bench.several()).transpose()?;
    let ms = |s: f64| rounded(s * 1e3);
    let outcome = Outcome {
        op: "decode",
        model: model.name().to_owned(),
        model_bytes: model.weight_bytes(),
        prompt_tokens: args.prompt_tokens,
        new_tokens: args.new_tokens,
        local_decode_ms: ms(pair.local_step),
        remote_decode_ms: ms(pair.remote_step),
        decode_ratio: rounded(pair.remote_step / pair.local_step),
        local_prefill_ms: ms(pair.local_prefill),
        remote_prefill_ms: ms(pair.remote_prefill),
        step_bytes_up: pair.step_bytes.0,
        step_bytes_down: pair.step_bytes.1,
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
        format!(
            "decode   in process {:.2} ms a token, remote {:.2} ms: {:.3} times",
            o.local_decode_ms, o.remote_decode_ms, o.decode_ratio
        ),
        format!("prefill  in process {:.1} ms, remote {:.1} ms", o.local_prefill_ms, o.remote_prefill_ms),
        format!("a step   {} bytes up, {} bytes down, headers included", o.step_bytes_up, o.step_bytes_down),
    ];
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
    prompt: &'a [i32],
}

/// Local and remote, in seconds.
struct Pair {
    local_prefill: f64,
    remote_prefill: f64,
    local_step: f64,
    remote_step: f64,
    /// Up and down, of the largest step.
    step_bytes: (u64, u64),
}

impl Bench<'_> {
    /// Both in turns: what slows the machine down slows down both.
    fn pair(&self) -> Result<Pair> {
        let local = LocalModel::new(self.model, &self.args.serve_device, self.args.model.kv_dtype)?;
        resident(self.session()?, self.model, &self.args.model.remote(), |remote| self.turns(&local, remote))
    }

    fn turns(&self, local: &LocalModel, remote: &mut RemoteModel) -> Result<Pair> {
        let (mut local_prefills, mut remote_prefills) = (Vec::new(), Vec::new());
        let (mut local_steps, mut remote_steps) = (Vec::new(), Vec::new());
        let mut step_bytes = (0, 0);
        let mut progress =
            Progress::steps("decode", (u64::from(self.args.turns) + 1) * u64::from(self.args.new_tokens) * 2);
        let sampling = Sampling::default();
        // Not counted: the first turn plans programs and touches memory for the first time.
        for turn in 0..=self.args.turns {
            let keep = |to: &mut Vec<f64>, time: Duration| {
                if turn > 0 {
                    to.push(time.as_secs_f64());
                }
            };
            let mut context = local.context(sampling)?;
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            let (token, time) = timed(|| local.prefill(&mut context, self.prompt))?;
            keep(&mut local_prefills, time);
            ours.push(token);
            for i in 0..self.args.new_tokens as usize {
                let (token, time) = timed(|| local.step(&mut context, ours[i]))?;
                keep(&mut local_steps, time);
                ours.push(token);
                progress.step();
            }
            drop(context);
            let mut context = remote.context(sampling)?;
            let (token, time) = timed(|| remote.prefill(&mut context, self.prompt))?;
            keep(&mut remote_prefills, time);
            theirs.push(token);
            for i in 0..self.args.new_tokens as usize {
                let before = remote.session().traffic();
                let (token, time) = timed(|| remote.step(&mut context, theirs[i]))?;
                let after = remote.session().traffic();
                step_bytes = (step_bytes.0.max(after.0 - before.0), step_bytes.1.max(after.1 - before.1));
                keep(&mut remote_steps, time);
                theirs.push(token);
                progress.step();
            }
            remote.forget(context)?;
            if ours != theirs {
                return Err(Differ("the server's tokens are not those of this process".to_owned()).into());
            }
        }
        Ok(Pair {
            local_prefill: median(&local_prefills),
            remote_prefill: median(&remote_prefills),
            local_step: median(&local_steps),
            remote_step: median(&remote_steps),
            step_bytes,
        })
    }

    /// Watches the server's GPU, if it is one of this machine.
    fn watch(&self) -> Result<Option<Watch>> {
        let mut session = self.session()?;
        let uuid = gpu::uuid_of(&mut session, self.args.model.device)?;
        session.close()?;
        Ok(uuid.and_then(|uuid| Watch::start(&uuid)))
    }

    fn session(&self) -> Result<Session> {
        connect::session_with(self.uri, self.args.link, connect::lasting(0.0))
    }

    /// A process of its own, as a second user would start it.
    fn second_client(&self, prompt: &str, prefill: f64) -> Result<SecondClient> {
        let me = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(me);
        command.args(["generate", "--json", "--connect", &self.uri.to_string(), "--max-new-tokens", "1", "--prompt"]);
        command.arg(prompt).args(self.args.link.arguments()).arg("--model").arg(&self.args.model.model);
        command.args(["--kv-dtype", self.args.model.kv_dtype.name(), "--device", &self.args.model.device.to_string()]);
        if let Some(dtype) = self.args.model.dtype {
            command.args(["--dtype", dtype.name()]);
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
            let mut remote = establish(self.session()?, self.model, &self.args.model.remote())?;
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

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(T, Duration), E> {
    let began = Instant::now();
    Ok((work()?, began.elapsed()))
}
