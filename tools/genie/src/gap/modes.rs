//! The ways to run a model. Apart from who keeps what, they are the same: one session, one connection, the same programs.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use genie_executor::device::KvSpec;
use genie_graph::{Op, Phase};
use genie_models::remote::{Context, Plan, RemoteModel, RemoteOptions, Sampling, weight_spec};
use genie_models::{ContentHash, Model};
use genie_transport::client::blocking::Session;
use genie_transport::client::{BindInputs, Binding, Cache, Program, PutOptions, RunOptions};
use genie_transport::memory::Region;
use genie_transport::wire::{Handle, Offered, TensorSpec};

use crate::local::{LocalContext, LocalModel};

/// One way to run a model.
pub(super) trait Bench {
    /// Runs the prompt; gives the token that follows.
    fn prefill(&mut self, prompt: &[i32]) -> Result<i32>;
    /// Runs a token; gives the next.
    fn step(&mut self, token: i32) -> Result<i32>;
    /// Frees what the last call left on the server. Not measured.
    fn clear(&mut self) -> Result<()> {
        Ok(())
    }
    /// Forgets what was run, but not what was set up.
    fn restart(&mut self) -> Result<()>;
    /// Bytes sent and received so far.
    fn traffic(&mut self) -> (u64, u64);
    /// Ends it.
    fn close(self: Box<Self>) -> Result<()>;
}

/// What all modes run. Weights are converted and hashed once, before anything is measured.
pub(super) struct Load {
    pub(super) model: Arc<Model>,
    pub(super) options: RemoteOptions,
    weights: Vec<(TensorSpec, Bytes)>,
    hashes: Vec<ContentHash>,
    prefill: Plan,
    decode: Plan,
    kv: KvSpec,
}

impl Load {
    /// Opens what is to be measured. The options say all types: no device is asked.
    pub(super) fn new(model: Arc<Model>, options: RemoteOptions) -> Result<Self> {
        let mut progress = crate::progress::Progress::bytes("hashing weights");
        let hashes = model.hashes(&options.hashes, |done, total| progress.set(done, total));
        let weights = model.weights().iter().map(|w| Ok((weight_spec(w)?, Bytes::from_owner(w.bytes()))));
        let graph = model.graph(options.graphs(&model, Phase::Prefill, false))?;
        let kv = graph.inputs().iter().find_map(|i| KvSpec::of(&i.ty)).context("the model has no KV cache")?;
        Ok(Self {
            weights: weights.collect::<Result<_>>()?,
            hashes,
            prefill: Plan::new(&model, options.graphs(&model, Phase::Prefill, false))?,
            decode: Plan::new(&model, options.graphs(&model, Phase::Decode, false))?,
            kv,
            options,
            model,
        })
    }
}

/// In this process.
pub(super) struct Local {
    model: LocalModel,
    context: LocalContext,
    sampling: Sampling,
}

impl Local {
    pub(super) fn new(model: LocalModel, sampling: Sampling) -> Result<Self> {
        let context = model.context(sampling)?;
        Ok(Self { model, context, sampling })
    }
}

impl Bench for Local {
    fn prefill(&mut self, prompt: &[i32]) -> Result<i32> {
        self.model.prefill(&mut self.context, prompt)
    }

    fn step(&mut self, token: i32) -> Result<i32> {
        self.model.step(&mut self.context, token)
    }

    fn restart(&mut self) -> Result<()> {
        self.context = self.model.context(self.sampling)?;
        Ok(())
    }

    fn traffic(&mut self) -> (u64, u64) {
        (0, 0)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// All of it stays on the server.
pub(super) struct Resident {
    model: RemoteModel,
    context: Context,
    sampling: Sampling,
}

impl Resident {
    pub(super) fn new(load: &Load, session: Session, sampling: Sampling) -> Result<Self> {
        let mut model = crate::generate::establish(session, &load.model, &load.options)?;
        match model.context(sampling) {
            Ok(context) => Ok(Self { model, context, sampling }),
            Err(error) => {
                // The first error says more than what closing might add.
                let _ = model.close();
                Err(error.into())
            }
        }
    }
}

impl Bench for Resident {
    fn prefill(&mut self, prompt: &[i32]) -> Result<i32> {
        Ok(self.model.prefill(&mut self.context, prompt)?)
    }

    fn step(&mut self, token: i32) -> Result<i32> {
        Ok(self.model.step(&mut self.context, token)?)
    }

    fn restart(&mut self) -> Result<()> {
        let fresh = self.model.context(self.sampling)?;
        Ok(self.model.forget(std::mem::replace(&mut self.context, fresh))?)
    }

    fn traffic(&mut self) -> (u64, u64) {
        self.model.session().traffic()
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.model.close()?)
    }
}

/// The KV cache on the client's side: what the server gave back, to be sent again.
struct Travelling {
    kv: KvSpec,
    tokens: u32,
    blocks: Option<Region>,
}

impl Travelling {
    fn new(kv: KvSpec) -> Self {
        Self { kv, tokens: 0, blocks: None }
    }

    /// A cache of so many tokens as a tensor: whole blocks.
    fn spec(&self, tokens: u32) -> Result<TensorSpec> {
        let KvSpec { layers, kv_heads, head_dim, dtype } = self.kv;
        let blocks = u64::from(tokens).div_ceil(Op::KV_BLOCK);
        Ok(TensorSpec::new(dtype, &[blocks, layers, 2, kv_heads, Op::KV_BLOCK, head_dim])?)
    }

    /// Makes a cache of it on the server.
    fn unpack(&self, session: &mut Session, program: &Program, kv: u32) -> Result<Cache> {
        let cache = session.create_cache(program, kv, 0)?;
        if let Some(blocks) = &self.blocks {
            session.put_cache(cache, self.tokens, &self.spec(self.tokens)?, Bytes::from_owner(blocks.clone()))?;
        }
        Ok(cache)
    }

    /// Takes the server's cache back.
    fn pack(&mut self, session: &mut Session, cache: Cache, more: usize) -> Result<()> {
        let tokens = self.tokens + u32::try_from(more)?;
        let blocks = session.get_range(cache.0, 0, self.spec(tokens)?.bytes())?;
        if let Some(old) = self.blocks.replace(blocks) {
            session.recycle(old);
        }
        self.tokens = tokens;
        Ok(())
    }
}

/// The prefill's and the decode's.
type Programs = [(Program, Plan); 2];

/// Weights stay, the KV cache travels.
pub(super) struct RemoteCache {
    session: Session,
    sampling: Sampling,
    weights: Vec<Handle>,
    programs: Programs,
    cache: Travelling,
    used: Vec<Handle>,
}

impl RemoteCache {
    pub(super) fn new(load: &Load, mut session: Session, sampling: Sampling) -> Result<Self> {
        match Self::set_up(load, &mut session) {
            Ok((weights, programs)) => {
                let cache = Travelling::new(load.kv);
                Ok(Self { session, sampling, weights, programs, cache, used: Vec::new() })
            }
            Err(error) => {
                // The first error says more than what closing might add.
                let _ = session.close();
                Err(error)
            }
        }
    }

    fn set_up(load: &Load, session: &mut Session) -> Result<(Vec<Handle>, Programs)> {
        let weights = share_weights(load, session)?;
        let mut define =
            |plan: &Plan| Ok::<_, anyhow::Error>((session.define(load.options.device, &plan.encoded)?, plan.clone()));
        Ok((weights, [define(&load.prefill)?, define(&load.decode)?]))
    }

    fn call(&mut self, which: usize, tokens: &[i32]) -> Result<i32> {
        let Self { session, sampling, weights, programs, cache, used } = self;
        let (program, plan) = &programs[which];
        let there = cache.unpack(session, program, plan.kv)?;
        used.push(there.0);
        let binding = bind(session, program, plan, weights, there, *sampling)?;
        used.push(binding.0);
        let token = run(session, plan, binding, tokens)?;
        cache.pack(session, there, tokens.len())?;
        Ok(token)
    }
}

impl Bench for RemoteCache {
    fn prefill(&mut self, prompt: &[i32]) -> Result<i32> {
        self.call(0, prompt)
    }

    fn step(&mut self, token: i32) -> Result<i32> {
        self.call(1, &[token])
    }

    fn clear(&mut self) -> Result<()> {
        free(&mut self.session, &mut self.used)
    }

    fn restart(&mut self) -> Result<()> {
        self.cache = Travelling::new(self.cache.kv);
        Ok(())
    }

    fn traffic(&mut self) -> (u64, u64) {
        self.session.traffic()
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.session.close()?)
    }
}

/// Nothing stays.
pub(super) struct Naive<'a> {
    load: &'a Load,
    session: Session,
    sampling: Sampling,
    cache: Travelling,
    used: Vec<Handle>,
}

impl<'a> Naive<'a> {
    pub(super) fn new(load: &'a Load, session: Session, sampling: Sampling) -> Self {
        Self { load, session, sampling, cache: Travelling::new(load.kv), used: Vec::new() }
    }

    fn call(&mut self, plan: &Plan, tokens: &[i32]) -> Result<i32> {
        let Self { load, session, sampling, cache, used } = self;
        let weights = put_weights(load, session)?;
        used.extend(&weights);
        let program = session.define(load.options.device, &plan.encoded)?;
        used.push(program.handle);
        let there = cache.unpack(session, &program, plan.kv)?;
        used.push(there.0);
        let binding = bind(session, &program, plan, &weights, there, *sampling)?;
        used.push(binding.0);
        let token = run(session, plan, binding, tokens)?;
        cache.pack(session, there, tokens.len())?;
        Ok(token)
    }
}

impl Bench for Naive<'_> {
    fn prefill(&mut self, prompt: &[i32]) -> Result<i32> {
        self.call(&self.load.prefill, prompt)
    }

    fn step(&mut self, token: i32) -> Result<i32> {
        self.call(&self.load.decode, &[token])
    }

    fn clear(&mut self) -> Result<()> {
        free(&mut self.session, &mut self.used)
    }

    fn restart(&mut self) -> Result<()> {
        self.cache = Travelling::new(self.cache.kv);
        Ok(())
    }

    fn traffic(&mut self) -> (u64, u64) {
        self.session.traffic()
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.session.close()?)
    }
}

/// What was made last goes first.
fn free(session: &mut Session, used: &mut Vec<Handle>) -> Result<()> {
    while let Some(handle) = used.pop() {
        session.free(handle)?;
    }
    Ok(())
}

/// Puts in flight together.
const FLYING: usize = 8;

/// The weights as private tensors, in their order.
fn put_weights(load: &Load, session: &mut Session) -> Result<Vec<Handle>> {
    let options = PutOptions { device: load.options.device, ..PutOptions::default() };
    let (mut flying, mut handles) = (VecDeque::new(), Vec::with_capacity(load.weights.len()));
    for (spec, data) in &load.weights {
        if flying.len() == FLYING
            && let Some(first) = flying.pop_front()
        {
            handles.push(session.finish_put(first)?.handle);
        }
        flying.push_back(session.start_put(spec, data.clone(), options)?);
    }
    for pending in flying {
        handles.push(session.finish_put(pending)?.handle);
    }
    Ok(handles)
}

/// The weights as residents that sessions share, in their order.
fn share_weights(load: &Load, session: &mut Session) -> Result<Vec<Handle>> {
    let device = load.options.device;
    let entries: Vec<_> = load.hashes.iter().copied().zip(load.weights.iter().map(|(spec, _)| spec.clone())).collect();
    let offered = session.offer(device, &entries)?;
    let mut flying = VecDeque::new();
    let mut handles = vec![None; entries.len()];
    for (i, answer) in offered.iter().enumerate() {
        if let Offered::Present(handle) = answer {
            handles[i] = Some(*handle);
            continue;
        }
        if flying.len() == FLYING
            && let Some((at, first)) = flying.pop_front()
        {
            handles[at] = Some(session.finish_put(first)?.handle);
        }
        let (spec, data) = &load.weights[i];
        let options = PutOptions { device, name: None, weight: Some(load.hashes[i]) };
        flying.push_back((i, session.start_put(spec, data.clone(), options)?));
    }
    for (at, pending) in flying {
        handles[at] = Some(session.finish_put(pending)?.handle);
    }
    handles.into_iter().collect::<Option<_>>().context("the server did not answer for every weight")
}

fn bind(
    session: &mut Session,
    program: &Program,
    plan: &Plan,
    weights: &[Handle],
    cache: Cache,
    sampling: Sampling,
) -> Result<Binding> {
    let values = sampling.values();
    let (weights, residents) = (plan.bound(weights), vec![(plan.kv, cache.0)]);
    Ok(session.bind(program, &BindInputs { weights, residents, fixed: plan.sampling(&values).to_vec() })?)
}

fn run(session: &mut Session, plan: &Plan, binding: Binding, tokens: &[i32]) -> Result<i32> {
    let ids: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    let dims = [1, tokens.len() as u64];
    Ok(session.step(binding, &[plan.tokens(&dims, &ids)], RunOptions::default())?)
}
