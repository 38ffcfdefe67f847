//! A model that lives on a server.
//!
//! [`RemoteModel`] keeps weights and programs there, and any number of [`Context`]s: what was said so far, as a KV cache. A
//! decode step is one request of a few bytes and one reply. Should the server restart, its device fail, or the session's lease run
//! out, what was lost is built again without the caller's doing: weights by offer, programs, and each context by running its tokens again,
//! just as they ran before, so that its keys and values have the same bits and the text goes on the same.

mod plan;
mod rebuild;
mod steps;
mod upload;

use std::sync::Arc;

use genie_graph::{DType, Phase};
use genie_transport::client::blocking::Session;
use genie_transport::client::{Binding, Cache, ClientError, GenerateOptions, Generated, Program, RunOptions};
use genie_transport::wire::{ContentHash, DecodeError, ErrorCode, Finish, Handle};

use crate::{GraphOptions, HashCache, Model, ModelError};

use rebuild::is_loss;

pub use plan::{Plan, Sampling, SamplingValues};
pub use steps::StepsOptions;
pub use upload::{Uploaded, weight_spec};

/// Why a remote model did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteModelError {
    /// The server, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The model's files or graphs.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model is not one that this drives.
    #[error("this model cannot be run token by token: {0}")]
    Inputs(String),
    /// More tokens than the model can see. Nothing was sent.
    #[error(
        "{length} tokens would be in the context, but the model sees {max} at the most: shorten the prompt, ask for fewer \
         tokens, or begin another context"
    )]
    ContextFull {
        /// What would be in the context.
        length: u64,
        /// What the model can see.
        max: u64,
    },
    /// No tokens were given.
    #[error("there is no token to run: give at least one")]
    NoTokens,
    /// The session was lost each time it had been built again.
    #[error("the session was lost {0} times in a row; is the server short of memory, or restarting?")]
    LostAgain(u32),
}

/// How a model is kept on a server.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// Index of the device.
    pub device: u16,
    /// Float type of what products and attention read and give. `None`: on a GPU that of the model's matrices, f32 elsewhere. In f16
    /// what lies beyond 65,504 becomes infinite: for a model that was trained in bf16 choose that.
    pub activations: Option<DType>,
    /// Element type of the KV caches. `None`: that of the activations.
    pub kv_dtype: Option<DType>,
    /// Where content hashes are remembered.
    pub hashes: HashCache,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self { device: 0, activations: None, kv_dtype: None, hashes: HashCache::user() }
    }
}

impl RemoteOptions {
    /// What the model's programs are built for, on a GPU or elsewhere.
    pub fn graphs(&self, model: &Model, phase: Phase, on_gpu: bool) -> GraphOptions {
        let theirs = model.matrix_dtype().filter(|_| on_gpu).unwrap_or(DType::F32);
        let activations = self.activations.unwrap_or(theirs);
        GraphOptions { activations, kv_dtype: self.kv_dtype.unwrap_or(activations), ..GraphOptions::new(phase) }
    }

    /// Whether it matters for [`Self::graphs`] if the device is a GPU.
    pub fn depends_on_device(&self, model: &Model) -> bool {
        self.activations.is_none() && model.matrix_dtype().is_some_and(|dtype| dtype != DType::F32)
    }

    /// Whether the device is a GPU, as far as [`Self::graphs`] must know: the server is asked only where it matters.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn on_gpu(&self, session: &mut Session, model: &Model) -> Result<bool, ClientError> {
        if !self.depends_on_device(model) {
            return Ok(false);
        }
        let devices = session.devices()?;
        Ok(devices.iter().any(|d| d.index == u32::from(self.device) && d.name.starts_with("cuda:")))
    }
}

/// What takes long before a model is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Bytes hashed, and to hash.
    Hashing(u64, u64),
    /// Bytes sent, and to send.
    Uploading(u64, u64),
}

/// A model on a server. See the module.
pub struct RemoteModel {
    session: Session,
    model: Arc<Model>,
    hashes: Vec<ContentHash>,
    device: u16,
    prefill: Plan,
    decode: Plan,
    resident: Option<Resident>,
    /// Counts how often it was established: contexts of an earlier life are built again when they are next used.
    life: u64,
    /// How many sessions had been lost when it was established.
    lost: u64,
    uploaded: Uploaded,
}

/// What the server holds of it.
struct Resident {
    weights: Vec<Handle>,
    prefill: Program,
    decode: Program,
}

/// What a model has read and written so far. It belongs to the [`RemoteModel`] that made it, and holds memory there until
/// [`RemoteModel::forget`] or the session's end.
#[derive(Debug)]
pub struct Context {
    life: u64,
    live: Option<Live>,
    sampling: Sampling,
    history: Vec<Part>,
    length: u32,
}

/// The server's side of a context.
#[derive(Clone, Copy, Debug)]
struct Live {
    cache: Cache,
    prefill: Binding,
    decode: Binding,
}

/// What was run, in the way in which it was.
#[derive(Clone, Debug)]
enum Part {
    /// In one run of the prefill program.
    Whole(Vec<i32>),
    /// By a generate, which may run a long prompt in pieces.
    Prompt(Vec<i32>),
    /// In one run of the decode program.
    Token(i32),
}

impl Context {
    /// Tokens in the KV cache.
    pub fn len(&self) -> u32 {
        self.length
    }

    /// Whether nothing was run in it.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The tokens in the KV cache.
    pub fn tokens(&self) -> Vec<i32> {
        let mut all = Vec::new();
        for part in &self.history {
            match part {
                Part::Whole(tokens) | Part::Prompt(tokens) => all.extend_from_slice(tokens),
                Part::Token(token) => all.push(*token),
            }
        }
        all
    }

    fn add(&mut self, part: Part) {
        self.length += match &part {
            Part::Whole(tokens) | Part::Prompt(tokens) => tokens.len() as u32,
            Part::Token(_) => 1,
        };
        self.history.push(part);
    }
}

impl RemoteModel {
    /// Brings a model to a server, or finds it there: hashes the weights, offers them, sends what is missing, defines the
    /// programs.
    ///
    /// # Errors
    /// [`RemoteModelError`]; the session is closed then.
    pub fn establish(
        mut session: Session,
        model: Arc<Model>,
        options: &RemoteOptions,
        mut progress: impl FnMut(Stage),
    ) -> Result<Self, RemoteModelError> {
        let on_gpu = match options.on_gpu(&mut session, &model) {
            Ok(on_gpu) => on_gpu,
            Err(error) => return Err(closing(session, error.into())),
        };
        let plans = |phase| Plan::new(&model, options.graphs(&model, phase, on_gpu));
        let (prefill, decode) = match plans(Phase::Prefill).and_then(|p| Ok((p, plans(Phase::Decode)?))) {
            Ok(both) => both,
            Err(error) => return Err(closing(session, error)),
        };
        let hashes = model.hashes(&options.hashes, |done, total| progress(Stage::Hashing(done, total)));
        let mut this = Self {
            session,
            model,
            hashes,
            device: options.device,
            prefill,
            decode,
            resident: None,
            life: 0,
            lost: 0,
            uploaded: Uploaded::default(),
        };
        match this.again(|this| this.resident(&mut progress).map(|_| ())) {
            Ok(()) => Ok(this),
            Err(error) => Err(closing(this.session, error)),
        }
    }

    /// What the last upload came to.
    pub fn uploaded(&self) -> Uploaded {
        self.uploaded
    }

    /// How often it was built anew on the server; 1 as long as nothing was lost.
    pub fn lives(&self) -> u64 {
        self.life
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The session that it is in.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Ends the session, and frees all that it holds.
    ///
    /// # Errors
    /// [`RemoteModelError::Client`]; the session then ends with its lease.
    pub fn close(self) -> Result<(), RemoteModelError> {
        Ok(self.session.close()?)
    }

    /// An empty context.
    ///
    /// # Errors
    /// [`RemoteModelError`].
    pub fn context(&mut self, sampling: Sampling) -> Result<Context, RemoteModelError> {
        let mut context = Context { life: 0, live: None, sampling, history: Vec::new(), length: 0 };
        self.again(|this| this.live(&mut context).map(|_| ()))?;
        Ok(context)
    }

    /// A second context with the same tokens; memory is shared until one of the two goes on.
    ///
    /// # Errors
    /// [`RemoteModelError`].
    pub fn fork(&mut self, context: &mut Context) -> Result<Context, RemoteModelError> {
        self.again(|this| {
            let live = this.live(context)?;
            let cache = this.session.fork_cache(live.cache)?;
            let live = Some(this.bind(cache, context.sampling)?);
            let (life, history, length) = (this.life, context.history.clone(), context.length);
            Ok(Context { life, live, sampling: context.sampling, history, length })
        })
    }

    /// Frees what a context holds on the server.
    ///
    /// # Errors
    /// [`RemoteModelError::Client`]; the memory then goes with the session.
    pub fn forget(&mut self, context: Context) -> Result<(), RemoteModelError> {
        let Some(live) = context.live.filter(|_| context.life == self.life) else { return Ok(()) };
        let freed = live.handles().into_iter().try_for_each(|h| self.session.free(h));
        match freed {
            // It went with the session.
            Err(error) if is_loss(&error) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Runs tokens through the prefill program, in one run; gives the token that follows them. That one is not in the context
    /// yet: pass it to [`Self::step`].
    ///
    /// # Errors
    /// [`RemoteModelError`]; the context is as it was.
    pub fn prefill(&mut self, context: &mut Context, tokens: &[i32]) -> Result<i32, RemoteModelError> {
        if tokens.is_empty() {
            return Err(RemoteModelError::NoTokens);
        }
        self.check_room(context, tokens.len() as u64)?;
        let next = self.again(|this| {
            let live = this.live(context)?;
            let ran = this.run_prefill(live, tokens, context.length);
            ran.map_err(|error| this.settled(context, error))
        })?;
        context.add(Part::Whole(tokens.to_vec()));
        Ok(next)
    }

    /// Runs one token through the decode program: one request, one reply. Gives the token that follows.
    ///
    /// # Errors
    /// [`RemoteModelError`]; the context is as it was.
    pub fn step(&mut self, context: &mut Context, token: i32) -> Result<i32, RemoteModelError> {
        self.check_room(context, 1)?;
        let next = self.again(|this| {
            let live = this.live(context)?;
            let ran = this.run_decode(live, token, context.length);
            ran.map_err(|error| this.settled(context, error))
        })?;
        context.add(Part::Token(token));
        Ok(next)
    }

    /// Runs a prompt, and makes up to `max_new` tokens on the server, which `each` sees as they come; it ends the generate by
    /// returning `false`. The last token is not in the context: begin the next prompt with it. A prompt of one token behind others runs
    /// as [`Self::step`] runs it, with its bits, and beside other sessions' steps.
    ///
    /// # Errors
    /// [`RemoteModelError`]; if `each` saw tokens, then the prompt and all of them but the last are in the context, else it is
    /// as it was.
    pub fn generate(
        &mut self,
        context: &mut Context,
        prompt: &[i32],
        max_new: u32,
        stop: &[i32],
        mut each: impl FnMut(i32) -> bool,
    ) -> Result<Finish, RemoteModelError> {
        if prompt.is_empty() {
            return Err(RemoteModelError::NoTokens);
        }
        // The last token is not run.
        self.check_room(context, prompt.len() as u64 + u64::from(max_new.saturating_sub(1)))?;
        let as_step = prompt.len() == 1 && !context.is_empty();
        let mut run = Running { as_step, made: 0, last: None, ended: false };
        let finish = self.again(|this| {
            if let Some(last) = run.last {
                // Lost with the word that it was over: everything had come.
                if run.ended || stop.contains(&last) {
                    return Ok(Finish::Stop);
                }
                if run.made >= max_new {
                    return Ok(Finish::Length);
                }
            }
            let live = this.live(context)?;
            // After a loss in the middle, the last token is the one that has not been run: the decode program goes on from it.
            let rest = run.last.map(|token| [token]);
            let (first, tokens) = match &rest {
                Some(token) => (live.decode, &token[..]),
                None if as_step => (live.decode, prompt),
                None => (live.prefill, prompt),
            };
            let options = GenerateOptions {
                position: Some(context.length),
                max_new: max_new - run.made,
                stop: stop.to_vec(),
                inputs: Vec::new(),
            };
            // What the cache will hold when the next token is made that was not seen yet.
            let mut expected = context.length + tokens.len() as u32;
            let mut followed = Ok(());
            let finish = this.session.generate(first, live.decode, tokens, &options, |generated| {
                if run.ended || followed.is_err() {
                    return false;
                }
                match unseen(generated, &mut expected) {
                    Ok(fresh) => fresh.iter().for_each(|&token| run.see(context, prompt, token, &mut each)),
                    Err(error) => followed = Err(error),
                }
                !run.ended && followed.is_ok()
            });
            match followed.and(finish) {
                Ok(finish) if !run.ended => Ok(finish),
                Err(error) if !(run.ended && is_cancelled(&error)) => Err(this.settled(context, error.into())),
                _ => {
                    // It ran further than was wanted before it heard of it.
                    this.cut_back(context);
                    Ok(Finish::Stop)
                }
            }
        })?;
        if run.last.is_none() {
            context.add(run.prompt(prompt));
        }
        Ok(finish)
    }

    // ---- inside

    fn check_room(&self, context: &Context, more: u64) -> Result<(), RemoteModelError> {
        let (length, max) = (u64::from(context.length) + more, self.model.config().max_positions());
        if length > max { Err(RemoteModelError::ContextFull { length, max }) } else { Ok(()) }
    }

    fn run_prefill(&mut self, live: Live, tokens: &[i32], position: u32) -> Result<i32, RemoteModelError> {
        let ids: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let dims = [1, tokens.len() as u64];
        let input = self.prefill.tokens(&dims, &ids);
        Ok(self.session.step(live.prefill, &[input], at(position))?)
    }

    fn run_decode(&mut self, live: Live, token: i32, position: u32) -> Result<i32, RemoteModelError> {
        let ids = token.to_le_bytes();
        let input = self.decode.tokens(&[1, 1], &ids);
        Ok(self.session.step(live.decode, &[input], at(position))?)
    }
}

impl std::fmt::Debug for RemoteModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteModel")
            .field("model", &self.model.name())
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

/// A generate in progress, across lost sessions.
struct Running {
    /// The prompt is one token, and runs through the decode program.
    as_step: bool,
    made: u32,
    last: Option<i32>,
    /// `each` wants no more.
    ended: bool,
}

impl Running {
    /// A token has come: with it, it is known that the one before it, or the prompt, was run.
    fn see(&mut self, context: &mut Context, prompt: &[i32], token: i32, each: &mut impl FnMut(i32) -> bool) {
        if self.ended {
            return;
        }
        context.add(match self.last.replace(token) {
            Some(before) => Part::Token(before),
            None => self.prompt(prompt),
        });
        self.made += 1;
        self.ended = !each(token);
    }

    /// The prompt in the way in which it was run.
    fn prompt(&self, prompt: &[i32]) -> Part {
        match prompt {
            [token] if self.as_step => Part::Token(*token),
            _ => Part::Prompt(prompt.to_vec()),
        }
    }
}

/// Ends a session that is of no use after an error, and gives the error: what it holds would else stay until its lease ends.
fn closing(session: Session, error: RemoteModelError) -> RemoteModelError {
    if let Err(closed) = session.close() {
        tracing::debug!(%closed, "the session ends with its lease");
    }
    error
}

/// The tokens of a message that were not seen before: a server that is asked again after a lost connection says all it made,
/// not only what was missed. `expected`: the cache's length with the next token that is new.
///
/// # Errors
/// [`ClientError::Protocol`] if tokens between those that were seen and these are missing.
fn unseen<'a>(generated: &'a Generated, expected: &mut u32) -> Result<&'a [i32], ClientError> {
    let (tokens, last) = (&generated.tokens[..], i64::from(generated.position));
    // The last token of the message was made when the cache held `last` tokens, the one before it one fewer, and so on.
    let first = last + 1 - tokens.len() as i64;
    if !tokens.is_empty() && first > i64::from(*expected) {
        return Err(DecodeError::Range("tokens are missing between two messages of a generate").into());
    }
    let seen = usize::try_from(i64::from(*expected) - first).unwrap_or(0).min(tokens.len());
    let fresh = &tokens[seen..];
    *expected = expected.saturating_add(fresh.len() as u32);
    Ok(fresh)
}

fn at(position: u32) -> RunOptions {
    RunOptions { position: Some(position), ..RunOptions::default() }
}

fn is_cancelled(error: &ClientError) -> bool {
    matches!(error, ClientError::Remote(e) if e.code == ErrorCode::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(position: u32, tokens: &[i32]) -> Generated {
        Generated { device: 0, position, tokens: tokens.to_vec(), finish: None }
    }

    #[test]
    fn tokens_are_seen_once() {
        // A prompt of 5: the first token is made when the cache holds 5, the second when it holds 6.
        let mut expected = 5;
        assert_eq!(unseen(&message(5, &[10]), &mut expected), Ok(&[10][..]));
        assert_eq!(unseen(&message(6, &[11]), &mut expected), Ok(&[11][..]));
        assert_eq!(unseen(&message(8, &[10, 11, 12, 13]), &mut expected), Ok(&[12, 13][..]));
        assert_eq!(unseen(&message(8, &[10, 11, 12, 13]), &mut expected), Ok(&[][..]));
        assert_eq!(unseen(&message(8, &[]), &mut expected), Ok(&[][..]), "the end of a generate");
        assert_eq!(expected, 9);
    }

    #[test]
    fn tokens_that_are_missing_are_noticed() {
        let mut expected = 5;
        assert!(matches!(unseen(&message(6, &[11]), &mut expected), Err(ClientError::Protocol(_))));
        assert!(matches!(unseen(&message(9, &[12, 13]), &mut expected), Err(ClientError::Protocol(_))));
        assert_eq!(expected, 5);
    }

    #[test]
    fn types_are_those_of_the_matrices_on_a_gpu() {
        let model = |dtype| crate::synthetic::random_gpt2(crate::Gpt2Config::of(1, 1, 8), 1, dtype).unwrap();
        let types = |options: &RemoteOptions, model: &Model, on_gpu| {
            let graph = options.graphs(model, Phase::Decode, on_gpu);
            (graph.activations, graph.kv_dtype)
        };
        let options = || RemoteOptions { hashes: HashCache::none(), ..RemoteOptions::default() };
        let (narrow, wide) = (model(DType::BF16), model(DType::F32));
        assert_eq!(types(&options(), &narrow, true), (DType::BF16, DType::BF16));
        assert_eq!(types(&options(), &narrow, false), (DType::F32, DType::F32));
        assert_eq!(types(&options(), &wide, true), (DType::F32, DType::F32));
        assert!(options().depends_on_device(&narrow) && !options().depends_on_device(&wide));
        let said = RemoteOptions { activations: Some(DType::F16), kv_dtype: Some(DType::F32), ..options() };
        assert_eq!(types(&said, &narrow, true), (DType::F16, DType::F32));
        assert!(!said.depends_on_device(&narrow));
    }

    #[test]
    fn a_prompt_that_runs_as_a_step_is_remembered_as_one() {
        for (as_step, prompt) in [(true, vec![7]), (false, vec![7]), (false, vec![7, 8])] {
            let mut context =
                Context { life: 0, live: None, sampling: Sampling::default(), history: Vec::new(), length: 0 };
            let mut run = Running { as_step, made: 0, last: None, ended: false };
            run.see(&mut context, &prompt, 9, &mut |_| true);
            assert_eq!((context.tokens(), run.last), (prompt, Some(9)));
            assert_eq!(matches!(context.history[..], [Part::Token(7)]), as_step);
        }
    }

    #[test]
    fn what_was_run_is_remembered_in_order() {
        let mut context =
            Context { life: 0, live: None, sampling: Sampling::default(), history: Vec::new(), length: 0 };
        assert!(context.is_empty());
        context.add(Part::Prompt(vec![1, 2]));
        context.add(Part::Token(3));
        context.add(Part::Whole(vec![4]));
        assert_eq!((context.len(), context.tokens()), (4, vec![1, 2, 3, 4]));
    }
}
