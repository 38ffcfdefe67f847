//! A model that lives on a server.
//!
//! [`RemoteModel`] keeps weights and programs there, and any number of [`Context`]s: what was said so far, as a KV cache. A
//! decode step is one request of a few bytes and one reply. Should the server restart, or the session's lease run out, what was
//! lost is built again without the caller's doing: weights by offer, programs, and each context by running its tokens again,
//! just as they ran before, so that its keys and values have the same bits and the text goes on the same.

mod plan;
mod upload;

use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_graph::{DType, Phase};
use genie_transport::client::blocking::Session;
use genie_transport::client::{
    BindInputs, Binding, Cache, ClientError, GenerateOptions, Generated, Program, RunOptions,
};
use genie_transport::wire::{ContentHash, ErrorCode, Finish, Handle};

use crate::{HashCache, Model, ModelError};

pub use plan::{Plan, Sampling, SamplingValues};
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
    /// Element type of the KV caches.
    pub kv_dtype: DType,
    /// Where content hashes are remembered.
    pub hashes: HashCache,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self { device: 0, kv_dtype: DType::F32, hashes: HashCache::user() }
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

/// How often in a row a lost session is built again for one call.
const TRIES: u32 = 4;

impl RemoteModel {
    /// Brings a model to a server, or finds it there: hashes the weights, offers them, sends what is missing, defines the
    /// programs.
    ///
    /// # Errors
    /// [`RemoteModelError`].
    pub fn establish(
        session: Session,
        model: Arc<Model>,
        options: &RemoteOptions,
        mut progress: impl FnMut(Stage),
    ) -> Result<Self, RemoteModelError> {
        let prefill = Plan::new(&model, Phase::Prefill, options.kv_dtype)?;
        let decode = Plan::new(&model, Phase::Decode, options.kv_dtype)?;
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
        this.again(|this| this.resident(&mut progress).map(|_| ()))?;
        Ok(this)
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
        let freed = [live.prefill.0, live.decode.0, live.cache.0].into_iter().try_for_each(|h| self.session.free(h));
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
        let next = self.again(|this| {
            let live = this.live(context)?;
            this.run_prefill(live, tokens, context.length)
        })?;
        context.add(Part::Whole(tokens.to_vec()));
        Ok(next)
    }

    /// Runs one token through the decode program: one request, one reply. Gives the token that follows.
    ///
    /// # Errors
    /// [`RemoteModelError`]; the context is as it was.
    pub fn step(&mut self, context: &mut Context, token: i32) -> Result<i32, RemoteModelError> {
        let next = self.again(|this| {
            let live = this.live(context)?;
            this.run_decode(live, token, context.length)
        })?;
        context.add(Part::Token(token));
        Ok(next)
    }

    /// Runs a prompt, and makes up to `max_new` tokens on the server, which `each` sees as they come; it ends the generate by
    /// returning `false`. The last token is not in the context: begin the next prompt with it.
    ///
    /// # Errors
    /// [`RemoteModelError`]; tokens that `each` saw but the last are in the context.
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
        let mut run = Running { made: 0, last: None, ended: false };
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
            let finish = this.session.generate(first, live.decode, tokens, &options, |generated| {
                for token in unseen(generated, &mut expected) {
                    if run.ended {
                        break;
                    }
                    context.add(match run.last.replace(token) {
                        Some(before) => Part::Token(before),
                        None => Part::Prompt(prompt.to_vec()),
                    });
                    run.made += 1;
                    run.ended = !each(token);
                }
                !run.ended
            });
            match finish {
                Err(ClientError::Remote(e)) if run.ended && e.code == ErrorCode::Cancelled => {}
                Err(error) => return Err(error.into()),
                Ok(finish) if !run.ended => return Ok(finish),
                Ok(_) => {}
            }
            // It ran further than was wanted before it heard of it.
            this.session.truncate_cache(live.cache, context.length)?;
            Ok(Finish::Stop)
        })?;
        if run.last.is_none() {
            context.add(Part::Prompt(prompt.to_vec()));
        }
        Ok(finish)
    }

    // ---- inside

    /// Does something that may find the session lost, again from a session that was built anew.
    fn again<T>(
        &mut self,
        mut work: impl FnMut(&mut Self) -> Result<T, RemoteModelError>,
    ) -> Result<T, RemoteModelError> {
        for _ in 0..TRIES {
            match work(self) {
                Err(RemoteModelError::Client(error)) if is_loss(&error) => {
                    tracing::warn!(%error, "the session was lost: building it again");
                    self.resident = None;
                    if is_farewell(&error) {
                        self.await_successor()?;
                    }
                }
                other => return other,
            }
        }
        Err(RemoteModelError::LostAgain(TRIES))
    }

    /// The server said that it is shutting down: waits until another has taken its place, for as long as the session tries to
    /// reach one.
    fn await_successor(&mut self) -> Result<(), RemoteModelError> {
        /// A server that has said so is gone within this time.
        const LONGEST: Duration = Duration::from_secs(30);
        let (until, lost) = (Instant::now() + LONGEST, self.session.sessions_lost());
        while self.session.sessions_lost() == lost && Instant::now() < until {
            match self.session.ping() {
                Ok(_) => {}
                Err(error) if is_loss(&error) || error == ClientError::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Weights and programs, brought to the server if they are not there.
    fn resident(&mut self, progress: &mut dyn FnMut(Stage)) -> Result<&Resident, RemoteModelError> {
        let lost = self.session.sessions_lost();
        if lost != self.lost {
            // It was lost where no request of this told of it.
            self.resident = None;
        }
        if self.resident.is_none() {
            self.lost = lost;
            let mut sent = |done, total| progress(Stage::Uploading(done, total));
            let (weights, uploaded) =
                upload::upload(&mut self.session, self.device, &self.model, &self.hashes, &mut sent)?;
            let prefill = self.prefill.define(&mut self.session, self.device)?;
            let decode = self.decode.define(&mut self.session, self.device)?;
            self.uploaded = uploaded;
            self.life += 1;
            return Ok(self.resident.insert(Resident { weights, prefill, decode }));
        }
        self.resident.as_ref().ok_or_else(|| RemoteModelError::Inputs("it is not on the server".to_owned()))
    }

    /// The server's side of a context, built again if it was lost.
    fn live(&mut self, context: &mut Context) -> Result<Live, RemoteModelError> {
        self.resident(&mut |_| ())?;
        if let Some(live) = context.live.filter(|_| context.life == self.life) {
            return Ok(live);
        }
        let (program, kv) = (self.resident(&mut |_| ())?.prefill, self.prefill.kv);
        let cache = self.session.create_cache(&program, kv, context.length)?;
        let live = self.bind(cache, context.sampling)?;
        let mut position = 0;
        for part in &context.history {
            match part {
                Part::Whole(tokens) => {
                    self.run_prefill(live, tokens, position)?;
                    position += tokens.len() as u32;
                }
                Part::Prompt(tokens) => {
                    let options = GenerateOptions { position: Some(position), ..GenerateOptions::default() };
                    self.session.generate(live.prefill, live.decode, tokens, &options, |_| true)?;
                    position += tokens.len() as u32;
                }
                Part::Token(token) => {
                    self.run_decode(live, *token, position)?;
                    position += 1;
                }
            }
        }
        context.live = Some(live);
        context.life = self.life;
        Ok(live)
    }

    /// Bindings for a cache.
    fn bind(&mut self, cache: Cache, sampling: Sampling) -> Result<Live, RemoteModelError> {
        let values = sampling.values();
        let resident = self.resident(&mut |_| ())?;
        let (prefill, decode) = (resident.prefill, resident.decode);
        let weights = resident.weights.clone();
        let mut bind = |program: &Program, plan: &Plan| {
            let mut residents: Vec<_> = plan.weights.iter().copied().zip(weights.iter().copied()).collect();
            residents.push((plan.kv, cache.0));
            let inputs = BindInputs { residents, fixed: plan.sampling(&values).to_vec() };
            self.session.bind(program, &inputs)
        };
        let prefill = bind(&prefill, &self.prefill)?;
        let decode = bind(&decode, &self.decode)?;
        Ok(Live { cache, prefill, decode })
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
    made: u32,
    last: Option<i32>,
    /// `each` wants no more.
    ended: bool,
}

/// The tokens of a message that were not seen before: a server that is asked again after a lost connection says all it made,
/// not only what was missed. `expected`: the cache's length with the next token that is new.
fn unseen(generated: &Generated, expected: &mut u32) -> Vec<i32> {
    let (count, last) = (generated.tokens.len(), generated.position);
    // The last token of the message was made when the cache held `last` tokens, the one before it one fewer, and so on.
    let first = (i64::from(last) + 1) - count as i64;
    let seen = usize::try_from(i64::from(*expected) - first).unwrap_or(0).min(count);
    *expected += (count - seen) as u32;
    generated.tokens[seen..].to_vec()
}

fn at(position: u32) -> RunOptions {
    RunOptions { position: Some(position), ..RunOptions::default() }
}

/// Whether an error says that what the session held is gone, or about to go.
fn is_loss(error: &ClientError) -> bool {
    match error {
        ClientError::SessionLost(_) => true,
        ClientError::Remote(e) => {
            matches!(e.code, ErrorCode::EpochGone | ErrorCode::SessionGone | ErrorCode::ShuttingDown)
        }
        _ => false,
    }
}

/// Whether the server said that it is shutting down.
fn is_farewell(error: &ClientError) -> bool {
    matches!(error, ClientError::Remote(e) if e.code == ErrorCode::ShuttingDown)
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
        assert_eq!(unseen(&message(5, &[10]), &mut expected), [10]);
        assert_eq!(unseen(&message(6, &[11]), &mut expected), [11]);
        assert_eq!(unseen(&message(8, &[10, 11, 12, 13]), &mut expected), [12, 13]);
        assert_eq!(unseen(&message(8, &[10, 11, 12, 13]), &mut expected), [0; 0]);
        assert_eq!(expected, 9);
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
