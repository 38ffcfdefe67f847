//! What goes into a run and comes out of it, in buffers that the next run of the same binding uses again.

use std::sync::{Arc, PoisonError};

use genie_graph::{DType, NodeId, Sizes};
use genie_transport::memory::extend_counted;
use genie_transport::wire::{Argument, Arguments, Dims, Handle, RemoteError, TensorSpec, limits};

use crate::device::{HostTensor, KvCache, Memory};
use crate::programs::{Binding, Known, Source, bad, fits};
use crate::residents::Content;
use crate::session::Session;

/// Buffers that hold more than this are not kept: no quota counts those that are, and a session may have many bindings.
const SPARE_BYTES: usize = 64 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// In the program's order; of those that are residents, types and dimensions.
    pub(crate) arguments: Vec<HostTensor>,
    /// The memory of those that are residents, while a run has it.
    pub(crate) residents: Vec<Option<Memory>>,
    /// What pays for that memory.
    contents: Vec<Arc<Content>>,
    /// What came with this run.
    given: Vec<Given>,
    /// The request whose token this run takes, and the argument that it is.
    awaited: Option<(u64, usize)>,
    /// In the graph's order.
    pub(crate) outputs: Vec<HostTensor>,
    /// The caches while the run has them, in the program's order.
    pub(crate) kvs: Vec<KvCache>,
}

/// What came with a run for one argument.
#[derive(Debug, Default)]
enum Given {
    #[default]
    Nothing,
    /// Its bytes, or where they will come from.
    Bytes,
    /// A resident, as it was when the request came.
    Resident(Arc<Content>),
}

/// What arguments come with.
#[derive(Clone, Copy)]
pub(crate) enum With<'a> {
    /// A run of this session.
    Run(&'a Session),
    /// A generate, which has its own tokens for this argument.
    Generate { tokens: usize },
}

impl Binding {
    /// Buffers for one run, with the fixed arguments in their places.
    pub(crate) fn buffers(&self) -> Box<Buffers> {
        if let Some(buffers) = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return buffers;
        }
        let fixed = |source: &Source| match source {
            Source::Fixed(tensor) => tensor.clone(),
            Source::Resident(tensor) => {
                let (dtype, dims) = (Some(tensor.spec.dtype()), tensor.spec.dims().to_vec());
                HostTensor { dtype, dims, data: Vec::new() }
            }
            Source::Run => HostTensor::default(),
        };
        let count = self.sources.len();
        Box::new(Buffers {
            arguments: self.sources.iter().map(fixed).collect(),
            residents: Vec::new(),
            contents: Vec::new(),
            given: std::iter::repeat_with(Given::default).take(count).collect(),
            awaited: None,
            outputs: Vec::new(),
            kvs: Vec::with_capacity(self.caches.len()),
        })
    }

    /// Keeps buffers for the next run.
    pub(crate) fn recycle(&self, mut buffers: Box<Buffers>) {
        buffers.kvs.clear();
        buffers.let_go();
        let tensors = buffers.arguments.iter().chain(&buffers.outputs);
        if tensors.map(|t| t.data.capacity()).sum::<usize>() > SPARE_BYTES {
            return;
        }
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(buffers);
    }

    /// Takes the arguments that came with a run or a generate; all that are not bound come, but for a generate's tokens.
    pub(crate) fn fill(
        &self,
        buffers: &mut Buffers,
        arguments: Arguments<'_>,
        with: With<'_>,
    ) -> Result<(), RemoteError> {
        buffers.given.fill_with(Given::default);
        buffers.awaited = None;
        let later = if let With::Generate { tokens } = with { Some(tokens) } else { None };
        for argument in arguments.iter() {
            let at = self.program.argument_at(u32::from(argument.index()))?;
            let (Some(place), Some(given)) = (buffers.arguments.get_mut(at), buffers.given.get_mut(at)) else {
                continue;
            };
            if !matches!(given, Given::Nothing) || later == Some(at) {
                return Err(bad(format!("input `{}` is given twice", self.name(at))));
            }
            if !matches!(self.sources.get(at), Some(Source::Run)) {
                return Err(bad(format!("input `{}` was bound: it does not come with a run", self.name(at))));
            }
            *given = match argument {
                Argument::Inline { dtype, dims, data, .. } => {
                    fill(place, dtype, dims.as_slice(), data);
                    Given::Bytes
                }
                Argument::TokenOf { dims, request, .. } => {
                    if self.program.tokens != Some(at) || self.caches.is_empty() {
                        return Err(bad(format!(
                            "input `{}` cannot take another run's token: it takes no tokens, or the program has no KV cache",
                            self.name(at)
                        )));
                    }
                    buffers.awaited = Some((request, at));
                    // Whatever it will be, it has this type.
                    fill(place, DType::I32, dims.as_slice(), &[0; 4]);
                    Given::Bytes
                }
                Argument::Resident { dtype, dims, handle, .. } => {
                    let With::Run(session) = with else {
                        let name = self.name(at);
                        return Err(bad(format!(
                            "input `{name}` of a generate names a tensor: bind it, or give it inline"
                        )));
                    };
                    let content = self.resident(session, at, handle, (dtype, &dims))?;
                    fill(place, dtype, dims.as_slice(), &[]);
                    Given::Resident(content)
                }
            };
        }
        let missing = (0..self.sources.len()).find(|&i| {
            matches!((&self.sources[i], &buffers.given[i]), (Source::Run, Given::Nothing)) && later != Some(i)
        });
        match missing.and_then(|i| self.program.argument(i)) {
            Some(decl) => Err(bad(format!("input `{}` is missing: bind it or give it with the run", decl.name))),
            None => Ok(()),
        }
    }

    /// What a tensor of the session holds now, which a run names for an argument, and says this of.
    fn resident(
        &self,
        session: &Session,
        at: usize,
        handle: Handle,
        (dtype, dims): (DType, &Dims),
    ) -> Result<Arc<Content>, RemoteError> {
        let tensor = session.tensor(handle).map_err(|error| RemoteError {
            message: format!("input `{}`: {}", self.name(at), error.message),
            ..error
        })?;
        if let Some(decl) = self.program.argument(at) {
            fits(&self.program, decl, &tensor)?;
        }
        if tensor.spec.dtype() != dtype || tensor.spec.dims() != dims.as_slice() {
            let (name, dims) = (self.name(at), dims.as_slice());
            let (is, has) = (tensor.spec.dtype(), tensor.spec.dims());
            return Err(bad(format!("input `{name}` is said to be {dtype} {dims:?}, but the tensor is {is} {has:?}")));
        }
        Ok(tensor.content())
    }

    /// What an argument is called.
    fn name(&self, at: usize) -> &str {
        self.program.argument(at).map_or("", |decl| &decl.name)
    }

    /// Checks all arguments against what the program declares, and learns the sizes from them.
    pub(crate) fn sizes(&self, buffers: &Buffers) -> Result<Sizes, RemoteError> {
        let mut known = Known::default();
        for i in 0..self.sources.len() {
            let Some(decl) = self.program.argument(i) else { continue };
            if let Some(HostTensor { dtype: Some(dtype), dims, .. }) = buffers.arguments.get(i) {
                known.unify(decl, *dtype, dims)?;
            }
        }
        let sizes = Sizes {
            batch: known.batch.unwrap_or(1),
            sequence: self.program.step.or(known.sequence).unwrap_or(1),
            position: known.position.unwrap_or(0),
        };
        if !self.caches.is_empty() && sizes.batch != 1 {
            return Err(bad(format!(
                "{} batch rows share one KV cache: run each with a cache of its own",
                sizes.batch
            )));
        }
        Ok(sizes)
    }

    /// Takes the residents that are bound as arguments as they are now, beside those that came with the run: whoever writes them from
    /// here on writes elsewhere, until [`Buffers::let_go`].
    pub(crate) fn take_residents(&self, buffers: &mut Buffers) {
        buffers.residents.clear();
        buffers.contents.clear();
        let named = buffers.given.iter().any(|given| matches!(given, Given::Resident(_)));
        if !named && !self.sources.iter().any(|source| matches!(source, Source::Resident(_))) {
            return;
        }
        for (source, given) in self.sources.iter().zip(&buffers.given) {
            let content = match (source, given) {
                (Source::Resident(tensor), _) => Some(tensor.content()),
                (_, Given::Resident(content)) => Some(content.clone()),
                _ => None,
            };
            buffers.residents.push(content.as_ref().map(|content| content.memory.clone()));
            buffers.contents.extend(content);
        }
    }

    /// The bytes of fixed arguments, of which each run takes a copy.
    pub(crate) fn fixed_bytes(&self) -> u64 {
        let fixed = |source: &Source| if let Source::Fixed(tensor) = source { tensor.data.len() as u64 } else { 0 };
        self.sources.iter().map(fixed).fold(0, u64::saturating_add)
    }

    /// The bytes of an output in a run of these sizes.
    pub(crate) fn output_bytes(&self, output: usize, sizes: &Sizes) -> Result<u64, RemoteError> {
        let graph = &self.program.graph;
        let Some(output) = graph.outputs.get(output) else {
            return Err(bad(format!("output {output} of {} is asked for", graph.outputs.len())));
        };
        let node = graph.nodes.get(output.node.0 as usize);
        let bytes = node.and_then(|n| n.ty.bytes(sizes)).filter(|&n| n <= limits::TENSOR_BYTES);
        bytes.ok_or_else(|| bad(format!("output `{}` is too large", output.name)))
    }

    /// The type of an output in a run of these sizes.
    pub(crate) fn output_spec(&self, output: usize, sizes: &Sizes) -> Result<TensorSpec, RemoteError> {
        self.output_bytes(output, sizes)?;
        let graph = &self.program.graph;
        let node = graph.outputs.get(output).map_or(NodeId(u32::MAX), |o| o.node);
        match (graph.nodes.get(node.0 as usize), graph.concrete(node, sizes)) {
            (Some(node), Some(dims)) => Ok(TensorSpec::new(node.ty.dtype, &dims)?),
            _ => Err(bad(format!("output {output} is too large"))),
        }
    }
}

impl Buffers {
    /// Gives residents back.
    pub(crate) fn let_go(&mut self) {
        self.residents.clear();
        self.contents.clear();
        self.given.fill_with(Given::default);
    }

    /// Puts the token that this run takes from an earlier one in its place, if it takes one; `given` has the token of a request.
    pub(crate) fn take_awaited(&mut self, given: impl FnOnce(u64) -> Option<[u8; 4]>) -> Result<(), RemoteError> {
        let Some((request, at)) = self.awaited.take() else { return Ok(()) };
        let Some(token) = given(request) else {
            return Err(bad(format!(
                "the KV cache has no token of request {request}: it failed, was cancelled, wanted none, or was not the last run there"
            )));
        };
        if let Some(place) = self.arguments.get_mut(at) {
            place.data.clear();
            place.data.extend_from_slice(&token);
        }
        Ok(())
    }

    /// Sets the tokens that a run takes: `i32 [1, n]`.
    pub(crate) fn set_tokens(&mut self, at: usize, tokens: &[[u8; 4]]) {
        if let Some(place) = self.arguments.get_mut(at) {
            fill(place, DType::I32, &[1, tokens.len() as u64], tokens.as_flattened());
        }
    }

    /// Keeps the first of the tokens that were set.
    pub(crate) fn keep_tokens(&mut self, at: usize, most: usize) {
        if let Some(place) = self.arguments.get_mut(at) {
            place.data.truncate(most.saturating_mul(size_of::<[u8; 4]>()));
            place.dims.clear();
            place.dims.extend([1, most as u64]);
        }
    }

    /// The token that an output gave.
    pub(crate) fn token(&self, output: usize) -> Option<[u8; 4]> {
        self.outputs.get(output)?.data.first_chunk::<4>().copied()
    }
}

/// The bytes of all these arguments.
pub(crate) fn inline_bytes(arguments: Arguments<'_>) -> u64 {
    let bytes = |argument| match argument {
        Argument::Inline { data, .. } => data.len() as u64,
        Argument::TokenOf { .. } => 4,
        Argument::Resident { .. } => 0,
    };
    arguments.iter().map(bytes).sum()
}

fn fill(place: &mut HostTensor, dtype: DType, dims: &[u64], data: &[u8]) {
    place.dtype = Some(dtype);
    place.dims.clear();
    place.dims.extend_from_slice(dims);
    place.data.clear();
    extend_counted(&mut place.data, data);
}
