//! Token after token on the server.

use std::sync::Arc;

use genie_graph::Sizes;
use genie_transport::wire::{Arguments, ErrorCode, Finish, RemoteError};

use crate::account::HostMemory;
use crate::buffers::{Buffers, With, inline_bytes};
use crate::core::Core;
use crate::error::fail;
use crate::programs::{Binding, Source, bad};
use crate::scheduler::{Job, Said, piece};
use crate::session::Session;

/// Tokens that one generate may make: its record must fit one reply.
pub(crate) const MAX_NEW: u32 = 1 << 20;

/// What a generate is asked for.
pub(crate) struct Wish<'a> {
    pub(crate) prefill: Arc<Binding>,
    pub(crate) decode: Arc<Binding>,
    pub(crate) position: Option<u32>,
    pub(crate) max_new: u32,
    pub(crate) prompt: &'a [[u8; 4]],
    pub(crate) stop: &'a [[u8; 4]],
    pub(crate) arguments: Arguments<'a>,
}

/// How far a generate has come. It is a [`Job`] that runs the prefill binding on the prompt, piece by piece, then the decode
/// binding on the token that the last run gave, and keeps its caches all the while.
///
/// The token that the prefill samples is the first new one. The last token is not run: the caches end one short of it.
pub(crate) struct Generation {
    prompt: Vec<[u8; 4]>,
    /// Prompt tokens that have run.
    fed: usize,
    stop: Vec<[u8; 4]>,
    made: u32,
    max_new: u32,
    /// Where the prefill's and the decode's next token is.
    sampled: [usize; 2],
    /// What the job goes on with after the prompt.
    decode: Option<(Arc<Binding>, Box<Buffers>)>,
}

/// What comes after a run.
pub(crate) enum Onward {
    /// Another run, and the token that this one made, which is still to be sent.
    Again(Option<Said>),
    /// Nothing: the last token was sent.
    Ended,
    /// Nothing, because of this; the token is sent first.
    Failed(Option<Said>, RemoteError),
}

impl Generation {
    /// The job of a generate.
    pub(crate) fn job(core: &Core, session: Arc<Session>, id: u64, wish: &Wish<'_>) -> Result<Job, RemoteError> {
        let Wish { prefill, decode, .. } = wish;
        if wish.max_new > MAX_NEW {
            return Err(bad(format!(
                "{} tokens are asked for; at most {MAX_NEW} come from one generate",
                wish.max_new
            )));
        }
        if prefill.caches.is_empty() || !prefill.shares_caches(decode) {
            return Err(bad("a generate needs two bindings with the same KV caches".to_owned()));
        }
        let sampled = [sampled(prefill, "prefill")?, sampled(decode, "decode")?];
        let tokens = [takes_tokens(prefill, "prefill")?, takes_tokens(decode, "decode")?];
        // The arguments go into the buffers of both bindings; prompt and new tokens are kept to the end.
        let tokens_kept = 4 * (wish.prompt.len() as u64 + u64::from(wish.max_new));
        let fixed = prefill.fixed_bytes().saturating_add(decode.fixed_bytes());
        let taken = 2 * inline_bytes(wish.arguments) + tokens_kept;
        let host = HostMemory::new(&session.account, fixed.saturating_add(taken))?;
        let mut buffers = prefill.buffers();
        prefill.fill(&mut buffers, wish.arguments, With::Generate { tokens: tokens[0] })?;
        let first = wish.prompt.get(..piece(core, &prefill.program)).unwrap_or(wish.prompt);
        buffers.set_tokens(tokens[0], first);
        let sizes = prefill.sizes(&buffers)?;
        let mut later = decode.buffers();
        decode.fill(&mut later, wish.arguments, With::Generate { tokens: tokens[1] })?;
        later.set_tokens(tokens[1], &[[0; 4]]);
        decode.sizes(&later)?;
        let generation = Self {
            prompt: wish.prompt.to_vec(),
            fed: 0,
            stop: wish.stop.to_vec(),
            made: 0,
            max_new: wish.max_new,
            sampled,
            decode: Some((decode.clone(), later)),
        };
        Ok(Job {
            session,
            id,
            binding: prefill.clone(),
            buffers,
            sizes,
            position: wish.position,
            wanted: 1 << sampled[0],
            keep: 0,
            kept: Vec::new(),
            host,
            generation: Some(Box::new(generation)),
            turns: 0,
            changed: false,
        })
    }

    /// A run has ended well: readies the job for the next, or sends the last token.
    pub(crate) fn advance(&mut self, core: &Arc<Core>, job: &mut Job) -> Onward {
        let prefilled = self.decode.is_some();
        if prefilled {
            self.fed += usize::try_from(job.sizes.sequence).unwrap_or(usize::MAX);
            if let Some(rest) = self.prompt.get(self.fed..).filter(|rest| !rest.is_empty()) {
                let next = rest.get(..piece(core, &job.binding.program)).unwrap_or(rest);
                return self.again(core, job, next, None);
            }
        }
        let device = job.binding.program.device;
        if self.max_new == 0 {
            job.session.generated(job.id, device, job.length(), None, Some(Finish::Length));
            return Onward::Ended;
        }
        let Some(token) = job.buffers.token(self.sampled[usize::from(!prefilled)]) else {
            return Onward::Failed(None, fail(ErrorCode::DeviceFailed, "the program gave no token"));
        };
        self.made += 1;
        core.stats.token();
        let finish = if self.stop.contains(&token) {
            Some(Finish::Stop)
        } else {
            (self.made == self.max_new).then_some(Finish::Length)
        };
        if finish.is_some() {
            job.session.generated(job.id, device, job.length(), Some(token), finish);
            return Onward::Ended;
        }
        let said = Said { session: job.session.clone(), id: job.id, device, position: job.length(), token };
        if let Some((binding, buffers)) = self.decode.take() {
            turn_to(job, binding, buffers);
            job.wanted = 1 << self.sampled[1];
        }
        self.again(core, job, &[token], Some(said))
    }

    fn again(&self, core: &Arc<Core>, job: &mut Job, tokens: &[[u8; 4]], said: Option<Said>) -> Onward {
        if let Some(at) = job.binding.program.tokens {
            job.buffers.set_tokens(at, tokens);
        }
        job.position = None;
        job.sizes = Sizes { sequence: tokens.len() as u64, ..job.sizes };
        match job.prepare(core) {
            Ok(()) => Onward::Again(said),
            Err(error) => Onward::Failed(said, error),
        }
    }
}

/// The job goes on with another binding, which has the same caches, though perhaps in another order.
fn turn_to(job: &mut Job, binding: Arc<Binding>, mut buffers: Box<Buffers>) {
    let mut had: Vec<_> = job.binding.caches.iter().zip(job.buffers.kvs.drain(..)).collect();
    for cache in &binding.caches {
        if let Some(at) = had.iter().position(|(c, _)| Arc::ptr_eq(c, cache)) {
            buffers.kvs.push(had.swap_remove(at).1);
        }
    }
    drop(had);
    let before = std::mem::replace(&mut job.buffers, buffers);
    std::mem::replace(&mut job.binding, binding).recycle(before);
}

fn sampled(binding: &Binding, which: &str) -> Result<usize, RemoteError> {
    let output = binding.program.sampled.filter(|&output| output < u64::BITS as usize);
    output.ok_or_else(|| bad(format!("the {which} program has no output `i32 [batch]` for the next token")))
}

fn takes_tokens(binding: &Binding, which: &str) -> Result<usize, RemoteError> {
    match binding.program.tokens {
        Some(at) if matches!(binding.sources.get(at), Some(Source::Run)) => Ok(at),
        Some(_) => Err(bad(format!("the {which} binding has its tokens bound: leave them for the run"))),
        None => Err(bad(format!("the {which} program takes no tokens"))),
    }
}
