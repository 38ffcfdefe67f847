//! `genie generate`: a model on a server goes on with a text.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use genie_graph::{DType, Phase};
use genie_models::remote::{RemoteModel, RemoteOptions, Sampling, Stage};
use genie_models::{Model, OpenOptions, TokenStream};
use genie_transport::Uri;
use genie_transport::client::blocking::Session;
use genie_transport::wire::Finish;
use serde::Serialize;

use crate::connect::{self, LinkArgs};
use crate::progress::Progress;
use crate::prompt;
use crate::say::{self, Say};

/// Go on with a text, by a model that is resident on a server.
///
/// The weights are sent once, and only those that the server has not got; they stay there. The text alone goes to standard
/// output, as it comes; what was measured goes to standard error.
///
/// Example: genie generate --connect tcp://127.0.0.1:7070 --model model.gguf --prompt 'The capital of France is'
/// --max-new-tokens 20
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The server: genie://HOST:PORT, or a link's own address: tcp://HOST:PORT.
    #[arg(long)]
    connect: Uri,
    #[command(flatten)]
    model: ModelArgs,
    /// The text to go on with.
    #[arg(long, short, allow_hyphen_values = true)]
    prompt: String,
    /// Lay the prompt out as a conversation, by the model's own template; without it, the text is simply continued.
    #[arg(long)]
    chat: bool,
    /// Tokens to make at the most; fewer are made where the model sees no more. 0: bring the model there and run the prompt.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    max_new_tokens: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Go on after the tokens that end a text.
    #[arg(long)]
    ignore_end: bool,
    /// Ask for each token by itself instead of having them all made and streamed.
    #[arg(long)]
    per_step: bool,
    #[command(flatten)]
    link: LinkArgs,
}

/// Which model, and where on the server.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// The model: a .gguf file, a .safetensors file beside its config.json, or a folder with both. Or random weights in the shape of
    /// a published model, for measurements: random:gpt2, random:gpt2-xl, random:gpt-j-6b.
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Convert matrices to f32, f16 or bf16. Without it, they stay as they are: Q8_0, Q4_0 and Q4_1 in blocks, which become floats
    /// inside the products; other quantised ones are sent as f32.
    #[arg(long, value_parser = crate::put::dtype)]
    pub(crate) dtype: Option<DType>,
    /// What products and attention compute with: f32, f16 or bf16. Without it, on a GPU what the matrices are of, elsewhere f32.
    #[arg(long, value_parser = crate::put::dtype)]
    pub(crate) activations: Option<DType>,
    /// Element type of the KV cache; without it, that of the activations.
    #[arg(long, value_parser = crate::put::dtype)]
    pub(crate) kv_dtype: Option<DType>,
    /// Index of the server's device.
    #[arg(long, default_value_t = 0)]
    pub(crate) device: u16,
}

impl ModelArgs {
    /// Opens the model.
    pub(crate) fn open(&self) -> Result<Model> {
        if let Some(dtype) = self.kv_dtype.filter(|dtype| !dtype.is_float()) {
            bail!("a KV cache holds f32, f16 or bf16, not {dtype}: choose another --kv-dtype");
        }
        if let Some(dtype) = self.activations.filter(|dtype| !dtype.is_float()) {
            bail!("activations are f32, f16 or bf16, not {dtype}: choose other --activations");
        }
        crate::model::open(&self.model, OpenOptions { dtype: self.dtype, blocks: self.dtype.is_none() })
    }

    /// How it is kept on the server.
    pub(crate) fn remote(&self) -> RemoteOptions {
        let (device, activations, kv_dtype) = (self.device, self.activations, self.kv_dtype);
        RemoteOptions { device, activations, kv_dtype, ..RemoteOptions::default() }
    }

    /// The same with all types chosen, so that they are the same wherever it runs. A session is opened where the server's device
    /// decides.
    pub(crate) fn settled(&self, model: &Model, session: impl FnOnce() -> Result<Session>) -> Result<RemoteOptions> {
        let mut options = self.remote();
        let mut on_gpu = false;
        if options.depends_on_device(model) {
            let mut session = session()?;
            on_gpu = options.on_gpu(&mut session, model)?;
            session.close()?;
        }
        let graphs = options.graphs(model, Phase::Prefill, on_gpu);
        (options.activations, options.kv_dtype) = (Some(graphs.activations), Some(graphs.kv_dtype));
        Ok(options)
    }
}

/// How tokens are chosen.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// 0: always the likeliest token; above: the larger, the more even the choice.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true, value_parser = temperature)]
    temperature: f32,
    /// Choose among this many of the likeliest tokens; 0: among all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability)]
    top_p: f32,
    /// The same seed gives the same tokens, on every machine: any number of 64 bits. Without it, one is drawn.
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = seed)]
    seed: Option<i64>,
}

impl SamplingArgs {
    /// As the model takes it.
    pub(crate) fn sampling(&self) -> Result<Sampling> {
        let seed = match self.seed {
            Some(seed) => seed,
            // Short enough to be typed again.
            None => i64::from(getrandom::u32().context("drawing a seed")?),
        };
        Ok(Sampling { temperature: self.temperature, top_k: self.top_k.into(), top_p: self.top_p, seed })
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|t: &f32| (0.0..=100.0).contains(t));
    value.ok_or_else(|| "write a number from 0 to 100".to_owned())
}

fn probability(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|p: &f32| *p > 0.0 && *p <= 1.0);
    value.ok_or_else(|| "write a number above 0, up to 1".to_owned())
}

/// Numbers that do not fit 63 bits are taken for what their 64 bits mean with a sign.
fn seed(text: &str) -> Result<i64, String> {
    let unsigned = || text.parse().map(u64::cast_signed);
    text.parse().or_else(|_| unsigned()).map_err(|_| "write a whole number of at most 64 bits".to_owned())
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Outcome {
    text: String,
    tokens: Vec<i32>,
    prompt_tokens: usize,
    new_tokens: usize,
    finish: &'static str,
    seed: i64,
    model_bytes: u64,
    upload_bytes: u64,
    bytes_up: u64,
    bytes_down: u64,
    load_s: f64,
    upload_s: f64,
    first_token_s: f64,
    tokens_s: f64,
}

/// Runs the command.
pub(crate) fn run(args: &GenerateArgs, say: Say) -> Result<()> {
    let began = Instant::now();
    crate::model::check_has_words(&args.model.model)?;
    let model = Arc::new(args.model.open()?);
    let tokenizer = model.tokenizer()?.clone();
    let encoded = if args.chat { tokenizer.encode_chat(&args.prompt)? } else { tokenizer.encode(&args.prompt)? };
    let tokens = prompt::ids(&encoded)?;
    if tokens.is_empty() {
        bail!("the prompt is empty, and this model has no token to begin a text with: write a --prompt");
    }
    let stop = if args.ignore_end { Vec::new() } else { prompt::ids(tokenizer.eos_ids())? };
    let max_new = fitting(args.max_new_tokens, tokens.len(), model.config().max_positions())?;
    let sampling = args.sampling.sampling()?;
    let loaded = Instant::now();
    // What goes on with the prompt may begin with a space; an answer in a chat is a text of its own.
    let stream = if args.chat { tokenizer.stream() } else { tokenizer.stream_after(&encoded) };
    let mut writer = Writer { stream, text: String::new(), echo: !say.json, failed: None };
    let session = connect::session(&args.connect, args.link)?;
    let outcome = resident(session, &model, &args.model.remote(), |remote| {
        let ready = Instant::now();
        let mut context = remote.context(sampling)?;
        let (mut made, mut first) = (Vec::new(), None);
        let mut each = |token: i32| {
            first.get_or_insert_with(Instant::now);
            made.push(token);
            // The token that ends a text is no part of it.
            stop.contains(&token) || writer.push(token)
        };
        let finish = if args.per_step {
            step_by_step(remote, &mut context, &tokens, max_new, &stop, &mut each)?
        } else {
            remote.generate(&mut context, &tokens, max_new, &stop, &mut each)?
        };
        let ended = Instant::now();
        writer.finish()?;
        let first = first.unwrap_or(ended);
        let (bytes_up, bytes_down) = remote.session().traffic();
        let seconds = (ended - first).as_secs_f64();
        Ok(Outcome {
            text: std::mem::take(&mut writer.text),
            prompt_tokens: tokens.len(),
            new_tokens: made.len(),
            finish: match finish {
                Finish::Stop => "stop",
                Finish::Length => "length",
            },
            seed: sampling.seed,
            model_bytes: model.weight_bytes(),
            upload_bytes: remote.uploaded().sent_bytes,
            bytes_up,
            bytes_down,
            load_s: (loaded - began).as_secs_f64(),
            upload_s: (ready - loaded).as_secs_f64(),
            first_token_s: (first - ready).as_secs_f64(),
            tokens_s: if made.len() > 1 { (made.len() - 1) as f64 / seconds } else { 0.0 },
            tokens: made,
        })
    });
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            if !say.json && !writer.text.is_empty() {
                // What went wrong begins a line of its own; whether this one can be ended is not what went wrong.
                let _: Result<()> = say::line("");
            }
            return Err(error);
        }
    };
    if say.json {
        return say.result(&outcome, |_| String::new());
    }
    say::line("")?;
    say::note(&summary(&outcome));
    Ok(())
}

/// How many new tokens fit behind a prompt: as many as are wanted, or as the model can see.
fn fitting(wanted: u32, prompt: usize, max: u64) -> Result<u32> {
    let room = max.saturating_sub(prompt as u64);
    if room == 0 {
        bail!(
            "the prompt has {prompt} tokens, but the model sees {max} at the most, new ones among them: shorten the prompt, or \
             choose a model with a longer context"
        );
    }
    let fits = u32::try_from(room).unwrap_or(u32::MAX);
    if fits < wanted {
        say::note(&format!("genie: the model sees {max} tokens at the most: up to {fits} new ones, not {wanted}"));
    }
    Ok(fits.min(wanted))
}

/// Does something with a model on a server, in a session that ends with it, whatever comes of it.
pub(crate) fn resident<T>(
    session: Session,
    model: &Arc<Model>,
    options: &RemoteOptions,
    work: impl FnOnce(&mut RemoteModel) -> Result<T>,
) -> Result<T> {
    let mut remote = establish(session, model, options)?;
    let done = work(&mut remote);
    let closed = remote.close();
    let done = done?;
    closed?;
    Ok(done)
}

/// Brings the model to the server, with progress where that takes long.
pub(crate) fn establish(session: Session, model: &Arc<Model>, options: &RemoteOptions) -> Result<RemoteModel> {
    let (mut hashing, mut uploading) = (None, None);
    let remote = RemoteModel::establish(session, model.clone(), options, |stage| match stage {
        Stage::Hashing(done, total) => {
            hashing.get_or_insert_with(|| Progress::bytes("hashing weights")).set(done, total)
        }
        Stage::Uploading(done, total) => {
            hashing = None;
            uploading.get_or_insert_with(|| Progress::bytes("uploading weights")).set(done, total);
        }
    });
    Ok(remote?)
}

fn step_by_step(
    remote: &mut RemoteModel,
    context: &mut genie_models::remote::Context,
    prompt: &[i32],
    max_new: u32,
    stop: &[i32],
    each: &mut dyn FnMut(i32) -> bool,
) -> Result<Finish> {
    let mut token = remote.prefill(context, prompt)?;
    for left in (0..max_new).rev() {
        if !each(token) || stop.contains(&token) {
            return Ok(Finish::Stop);
        }
        if left > 0 {
            token = remote.step(context, token)?;
        }
    }
    Ok(Finish::Length)
}

/// Text on its way to the reader.
struct Writer {
    stream: TokenStream,
    text: String,
    echo: bool,
    failed: Option<anyhow::Error>,
}

impl Writer {
    /// Whether anybody still reads.
    fn push(&mut self, token: i32) -> bool {
        let piece = u32::try_from(token).ok().and_then(|id| self.stream.push(id));
        self.write(piece);
        self.failed.is_none()
    }

    fn finish(&mut self) -> Result<()> {
        let rest = self.stream.finish();
        self.write(rest);
        self.failed.take().map_or(Ok(()), Err)
    }

    fn write(&mut self, piece: Option<String>) {
        let Some(piece) = piece else { return };
        if self.echo && self.failed.is_none() {
            self.failed = say::piece(&piece).err();
        }
        self.text.push_str(&piece);
    }
}

fn summary(o: &Outcome) -> String {
    let share = 100.0 * o.bytes_up as f64 / o.model_bytes.max(1) as f64;
    format!(
        "genie: {} prompt tokens, {} new ({}), seed {}\n\
         genie: model {}, weights sent {}, {} up ({share:.4} % of the model) and {} down in all\n\
         genie: opened in {}, on the server in {}, first token after {}, then {:.1} tokens/s",
        o.prompt_tokens,
        o.new_tokens,
        o.finish,
        o.seed,
        say::bytes(o.model_bytes),
        say::bytes(o.upload_bytes),
        say::bytes(o.bytes_up),
        say::bytes(o.bytes_down),
        say::seconds(o.load_s),
        say::seconds(o.upload_s),
        say::seconds(o.first_token_s),
        o.tokens_s,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_any_64_bits() {
        assert_eq!(seed("0"), Ok(0));
        assert_eq!(seed("4294967296"), Ok(1 << 32));
        assert_eq!((seed("-1"), seed("18446744073709551615")), (Ok(-1), Ok(-1)));
        assert_eq!(seed("-9223372036854775808"), Ok(i64::MIN));
        for bad in ["", "x", "1.5", "18446744073709551616", "-9223372036854775809"] {
            assert!(seed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn new_tokens_fit_behind_the_prompt() {
        assert_eq!(fitting(5, 10, 100).unwrap(), 5);
        assert_eq!(fitting(5, 97, 100).unwrap(), 3);
        assert!(fitting(5, 100, 100).unwrap_err().to_string().contains("shorten the prompt"));
        assert!(fitting(0, 1000, 100).is_err());
    }
}
