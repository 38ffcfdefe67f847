//! A model in this process: the same executor, no server, no socket.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use genie_executor::device::{Device, HostTensor, KvCache, KvSpec, Loaded, Memory, Row, select};
use genie_graph::{DType, InputRole, Phase, VerifiedGraph};
use genie_models::remote::Sampling;
use genie_models::{GraphOptions, Model};

/// A model on a device of this process.
pub(crate) struct LocalModel {
    device: Arc<dyn Device>,
    weights: Vec<Memory>,
    prefill: Arc<dyn Loaded>,
    decode: Arc<dyn Loaded>,
    kv: KvSpec,
}

/// What it has read so far.
pub(crate) struct LocalContext {
    cache: KvCache,
    arguments: [HostTensor; 3],
    outputs: Vec<HostTensor>,
}

impl LocalModel {
    /// Plans the programs of both phases, else as `options` says, and brings the weights into the device's memory.
    pub(crate) fn new(model: &Model, device: &str, options: GraphOptions) -> Result<Self> {
        let device =
            select::open(device, select::Limits::default())?.into_iter().next().context("there is no device")?;
        let graph = |phase| model.graph(GraphOptions { phase, ..options });
        let (prefill, decode) = (graph(Phase::Prefill)?, graph(Phase::Decode)?);
        let kv = prefill.inputs().iter().find(|i| i.role == InputRole::KvCache).and_then(|i| KvSpec::of(&i.ty));
        let kv = kv.context("the model has no KV cache")?;
        check_arguments(&prefill)?;
        let mut weights = Vec::new();
        for weight in model.weights() {
            let bytes = weight.bytes();
            // As on a server, where weights lie in the device's memory and not in a mapped file.
            let mut space = device.allocate(bytes.len() as u64)?;
            space.write(0, &bytes)?;
            weights.push(space.freeze());
        }
        let load = |graph: VerifiedGraph| device.load(Arc::new(graph));
        let (prefill, decode) = (load(prefill)?, load(decode)?);
        Ok(Self { device, weights, prefill, decode, kv })
    }

    /// The UUID of its device, if that is a GPU.
    pub(crate) fn gpu(&self) -> Option<String> {
        self.device.gpu().map(|gpu| gpu.uuid)
    }

    /// An empty context.
    pub(crate) fn context(&self, sampling: Sampling) -> Result<LocalContext> {
        let values = sampling.values();
        let fixed = |dtype, data: &[u8]| HostTensor { dtype: Some(dtype), dims: vec![1, 2], data: data.to_vec() };
        let tokens = HostTensor { dtype: Some(DType::I32), dims: vec![1, 0], data: Vec::new() };
        let arguments = [tokens, fixed(DType::F32, &values.real), fixed(DType::I64, &values.int)];
        Ok(LocalContext { cache: self.device.cache(self.kv)?, arguments, outputs: Vec::new() })
    }

    /// Runs tokens through the prefill program; gives the token that follows.
    pub(crate) fn prefill(&self, context: &mut LocalContext, tokens: &[i32]) -> Result<i32> {
        self.run(&*self.prefill, context, tokens)
    }

    /// Runs one token through the decode program; gives the token that follows.
    pub(crate) fn step(&self, context: &mut LocalContext, token: i32) -> Result<i32> {
        self.run(&*self.decode, context, &[token])
    }

    fn run(&self, program: &dyn Loaded, context: &mut LocalContext, tokens: &[i32]) -> Result<i32> {
        let LocalContext { cache, arguments, outputs } = context;
        arguments[0].dims[1] = tokens.len() as u64;
        arguments[0].data.clear();
        arguments[0].data.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
        let mut rows = [Row { caches: vec![cache], ..Row::new(arguments, outputs, 1) }];
        program.run(&self.weights, &mut rows)?;
        match outputs.first().and_then(|o| o.data.first_chunk()) {
            Some(bytes) => Ok(i32::from_le_bytes(*bytes)),
            None => bail!("the program gave no token"),
        }
    }
}

/// The arguments are given in the graph's order: tokens, then the two of the sampling.
fn check_arguments(graph: &VerifiedGraph) -> Result<()> {
    let others = [InputRole::Weight, InputRole::KvCache, InputRole::Positions];
    let roles: Vec<_> = graph.inputs().iter().map(|i| i.role).filter(|r| !others.contains(r)).collect();
    if roles != [InputRole::Tokens, InputRole::SamplingReal, InputRole::SamplingInt] {
        bail!("the model's program takes other inputs than a language model's");
    }
    Ok(())
}
