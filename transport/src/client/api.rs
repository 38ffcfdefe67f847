//! What both kinds of session take and give.

use std::time::Duration;

use genie_graph::DType;

use super::ClientError;
use crate::connection::ClientOptions;
use crate::link::tls::TlsClient;
use crate::polling;
use crate::wire::{
    Argument, Arguments, BindEntry, Caps, ContentHash, DecodeError, DeviceEntry, ErrorCode, Finish, Handle, HandleSpan,
    Offered, PutBody, PutRequest, PutTarget, RemoteError, Reply, Request, ResidencyCode, TensorSpec, Welcome, limits,
    write_argument, write_resident,
};

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Session, lanes, reconnecting.
    pub client: ClientOptions,
    /// How long a call polls for its answer before it parks, while answers come fast: 100 us, or 5 ms where there are eight cores or
    /// more. Zero: not at all.
    pub spin: Duration,
    /// Bytes of shared memory that puts from ordinary memory are copied to, where the link shares memory: they are then passed,
    /// and copied once. What does not fit travels in slices. Zero: everything does, gets too, but for what its user shares.
    pub staging: u64,
    /// Whom to trust, and what to show, on `tcps://`.
    pub tls: Option<TlsClient>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { client: ClientOptions::default(), spin: polling::client(), staging: 1 << 30, tls: None }
    }
}

/// A tensor that is resident on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its handle.
    pub handle: Handle,
    /// Its device.
    pub device: u16,
    /// Its type and shape.
    pub spec: TensorSpec,
}

/// A KV cache on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache(pub Handle);

/// A program that the server has verified and planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its handle.
    pub handle: Handle,
    /// The content hash of its graph.
    pub hash: ContentHash,
}

/// A program joined with residents: what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding(pub Handle);

/// What becomes of a new tensor.
#[derive(Clone, Copy, Debug, Default)]
pub struct PutOptions<'a> {
    /// Which device.
    pub device: u16,
    /// A name that others find it by.
    pub name: Option<&'a str>,
    /// Makes it a weight: shared by content, checked by the server.
    pub weight: Option<ContentHash>,
}

/// An inline tensor on its way to the server.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Node id of the graph's input.
    pub index: u16,
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub dims: &'a [u64],
    /// Elements, little-endian, row-major.
    pub data: &'a [u8],
}

/// What a binding joins.
#[derive(Clone, Debug, Default)]
pub struct BindInputs<'a> {
    /// All weights of the program, by node id, in whatever order: where their handles are consecutive in the order of the nodes, as
    /// those of an offer are as a rule, they take a few bytes together. Empty: they are among `residents`. To a server that takes spans
    /// the ids say no more than their order.
    pub weights: Vec<(u32, Handle)>,
    /// Inputs that are residents or caches, by node id.
    pub residents: Vec<(u32, Handle)>,
    /// Inputs that are the same in every run.
    pub fixed: Vec<Input<'a>>,
}

/// How a binding runs.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// The length that the cache must have.
    pub position: Option<u32>,
    /// Bit i: output i comes back. Older servers know those below 32 alone.
    pub wanted: u64,
    /// Bit i: output i stays as a resident. `wanted` and `keep` have at most [`limits::ARGUMENTS`] bits together.
    pub keep: u64,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { position: None, wanted: 1, keep: 0 }
    }
}

/// An output of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// It came back.
    Inline {
        /// Which output.
        index: u16,
        /// Element type.
        dtype: DType,
        /// Dimensions.
        dims: Vec<u64>,
        /// Elements, little-endian, row-major.
        data: Vec<u8>,
    },
    /// It stayed.
    Resident {
        /// Which output.
        index: u16,
        /// The tensor.
        tensor: Tensor,
    },
}

/// What a run gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// The device that ran it.
    pub device: u16,
    /// The cache's length after it.
    pub position: u32,
    /// The outputs that were wanted or kept.
    pub values: Vec<Value>,
}

/// How tokens are made.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions<'a> {
    /// The length that the cache must have.
    pub position: Option<u32>,
    /// Tokens to make at the most.
    pub max_new: u32,
    /// Tokens that end it.
    pub stop: Vec<i32>,
    /// Inputs that were not bound.
    pub inputs: Vec<Input<'a>>,
}

/// Tokens of a generate, as they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The device that ran it.
    pub device: u16,
    /// The cache's length after the last of them.
    pub position: u32,
    /// The tokens.
    pub tokens: Vec<i32>,
    /// Why it ended, with the last.
    pub finish: Option<Finish>,
}

/// A device of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Index.
    pub index: u32,
    /// `cpu:0`.
    pub name: String,
    /// What the hardware calls itself.
    pub model: String,
    /// Instruction set or compute capability.
    pub capability: String,
    /// Bytes that tensors may take.
    pub total_bytes: u64,
    /// Bytes not taken.
    pub free_bytes: u64,
}

impl From<&DeviceEntry<'_>> for DeviceInfo {
    fn from(d: &DeviceEntry<'_>) -> Self {
        Self {
            index: d.index,
            name: d.name.into(),
            model: d.model.into(),
            capability: d.capability.into(),
            total_bytes: d.total_bytes,
            free_bytes: d.free_bytes,
        }
    }
}

/// Which byte range of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) handle: Handle,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The put of a new tensor.
pub(super) fn put_new<'a>(spec: &TensorSpec, options: PutOptions<'a>, body: PutBody<'a>) -> Request<'a> {
    let residency = if options.weight.is_some() { ResidencyCode::Weight } else { ResidencyCode::Private };
    let target = PutTarget::New { device: options.device, residency, hash: options.weight, name: options.name };
    Request::Put(PutRequest { target, spec: spec.clone(), body })
}

/// Encodes inline tensors into a buffer.
pub(super) fn write_inputs(out: &mut Vec<u8>, inputs: &[Input<'_>]) -> Result<u32, ClientError> {
    out.clear();
    for input in inputs {
        write_argument(out, input.index, input.dtype, input.dims, input.data).map_err(ClientError::Request)?;
    }
    Ok(inputs.len() as u32)
}

/// Encodes what a run takes into a buffer.
pub(super) fn write_run_inputs(
    out: &mut Vec<u8>,
    inputs: &[Input<'_>],
    residents: &[(u16, &Tensor)],
) -> Result<u32, ClientError> {
    let count = write_inputs(out, inputs)?;
    for (index, tensor) in residents {
        write_resident(out, *index, &tensor.spec, tensor.handle).map_err(ClientError::Request)?;
    }
    Ok(count + residents.len() as u32)
}

pub(super) fn bind_request<'a>(
    program: &Program,
    inputs: &BindInputs<'_>,
    spans: bool,
    fixed: &'a [u8],
) -> Result<Request<'a>, ClientError> {
    let (bound, weights) = bind_entries(program, inputs, spans)?;
    let arguments = Arguments::new(inputs.fixed.len() as u32, fixed).map_err(ClientError::Request)?;
    Ok(Request::Bind { program: program.handle, bound, weights, arguments })
}

/// The residents of a bind, and its weights as spans if the server takes `spans`. Their epoch does not travel, so it is checked here: a
/// handle from before a restart must not come to name what has its place now.
pub(super) fn bind_entries(
    program: &Program,
    inputs: &BindInputs<'_>,
    spans: bool,
) -> Result<(Vec<BindEntry>, Vec<HandleSpan>), ClientError> {
    let all = || inputs.residents.iter().chain(&inputs.weights);
    if all().any(|(_, handle)| handle.epoch != program.handle.epoch) {
        let message = "a resident and the program are of different lives of the server: set both up again";
        return Err(RemoteError::new(ErrorCode::EpochGone, message).into());
    }
    let entry = |&(input, handle): &(u32, Handle)| BindEntry { input, handle };
    let mut weights = inputs.weights.clone();
    weights.sort_unstable_by_key(|(input, _)| *input);
    // Spans say nothing of nodes: one that is named twice goes as it is, for the server to refuse.
    let once = weights.windows(2).all(|two| two[0].0 != two[1].0);
    if spans && once && weights.len() <= limits::BOUND {
        let weights = HandleSpan::of(weights.into_iter().map(|(_, handle)| handle));
        return Ok((inputs.residents.iter().map(entry).collect(), weights));
    }
    Ok((all().map(entry).collect(), Vec::new()))
}

/// Whether a server that said this welcome takes weights as sets and spans.
pub(super) fn takes_sets(welcome: Option<&Welcome>) -> bool {
    welcome.is_some_and(|welcome| welcome.caps.has(Caps::SETS))
}

/// Whether a server with these capabilities can be asked for such a run.
pub(super) fn can_run(caps: Caps, residents: &[(u16, &Tensor)], options: &RunOptions) -> Result<(), ClientError> {
    if caps.has(Caps::NAMED) {
        return Ok(());
    }
    if !residents.is_empty() {
        return Err(ClientError::ServerTooOld("runs that name residents: bind them, or renew the server"));
    }
    if (options.wanted | options.keep) >> u32::BITS != 0 {
        return Err(ClientError::ServerTooOld("outputs of a run from 32 on: renew the server"));
    }
    Ok(())
}

pub(super) fn run_request<'a>(
    binding: Binding,
    options: RunOptions,
    count: u32,
    inputs: &'a [u8],
) -> Result<Request<'a>, ClientError> {
    let arguments = Arguments::new(count, inputs).map_err(ClientError::Request)?;
    let RunOptions { position, wanted, keep } = options;
    let (length, limit) = (u64::from(wanted.count_ones() + keep.count_ones()), limits::ARGUMENTS as u64);
    if length > limit {
        return Err(ClientError::Request(DecodeError::TooLong { what: "outputs of a run", length, limit }));
    }
    Ok(Request::Run { binding: binding.0, position, wanted, keep, arguments })
}

// ---- replies: each takes the one kind that answers its request

fn unexpected(reply: &Reply<'_>) -> ClientError {
    tracing::debug!(?reply, "an answer of another kind");
    DecodeError::Range("the server answered with another kind of reply than was asked for").into()
}

pub(super) fn done(reply: &Reply<'_>) -> Result<(), ClientError> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

pub(super) fn tensor(reply: &Reply<'_>) -> Result<Tensor, ClientError> {
    match reply {
        Reply::Tensor { handle, device, spec } => Ok(Tensor { handle: *handle, device: *device, spec: spec.clone() }),
        other => Err(unexpected(other)),
    }
}

pub(super) fn program(reply: &Reply<'_>) -> Result<Program, ClientError> {
    match reply {
        Reply::Program { handle, hash } => Ok(Program { handle: *handle, hash: *hash }),
        other => Err(unexpected(other)),
    }
}

/// A program that the server may lack.
pub(super) fn known(defined: Result<Program, ClientError>) -> Result<Option<Program>, ClientError> {
    match defined {
        Ok(program) => Ok(Some(program)),
        Err(ClientError::Remote(error)) if error.code == ErrorCode::NoSuchName => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn bound(reply: &Reply<'_>) -> Result<Binding, ClientError> {
    match reply {
        Reply::Bound(handle) => Ok(Binding(*handle)),
        other => Err(unexpected(other)),
    }
}

pub(super) fn got<'a>(reply: &Reply<'a>) -> Result<&'a [u8], ClientError> {
    match reply {
        Reply::Got(bytes) | Reply::Echo(bytes) => Ok(bytes),
        other => Err(unexpected(other)),
    }
}

pub(super) fn offered(reply: &Reply<'_>) -> Result<Vec<Offered>, ClientError> {
    match reply {
        Reply::Offered(entries) => Ok(entries.clone()),
        other => Err(unexpected(other)),
    }
}

/// The answers to the entries of an offer that was made by the hash of their set; `None`: offer them singly.
pub(super) fn offered_set(reply: &Reply<'_>, entries: usize) -> Result<Option<Vec<Offered>>, ClientError> {
    match reply {
        Reply::OfferedSet { spans, .. } if spans.is_empty() => Ok(None),
        Reply::OfferedSet { epoch, spans } => {
            let handles: Vec<_> = spans.iter().flat_map(|span| span.handles(*epoch)).map(Offered::Present).collect();
            if handles.len() == entries { Ok(Some(handles)) } else { Err(unexpected(reply)) }
        }
        other => Err(unexpected(other)),
    }
}

pub(super) fn devices(reply: &Reply<'_>) -> Result<Vec<DeviceInfo>, ClientError> {
    match reply {
        Reply::Devices(entries) => Ok(entries.iter().map(DeviceInfo::from).collect()),
        other => Err(unexpected(other)),
    }
}

pub(super) fn stats(reply: &Reply<'_>) -> Result<Vec<(String, u64)>, ClientError> {
    match reply {
        Reply::Stats(entries) => Ok(entries.iter().map(|e| (e.name.to_owned(), e.value)).collect()),
        other => Err(unexpected(other)),
    }
}

pub(super) fn outputs(reply: &Reply<'_>) -> Result<Outputs, ClientError> {
    let Reply::Ran { device, position, outputs } = reply else { return Err(unexpected(reply)) };
    let mut values = Vec::with_capacity(outputs.len());
    for output in outputs.iter() {
        values.push(match output {
            Argument::Inline { index, dtype, dims, data } => {
                Value::Inline { index, dtype, dims: dims.as_slice().to_vec(), data: data.to_vec() }
            }
            Argument::Resident { index, dtype, dims, handle } => {
                let tensor = Tensor { handle, device: *device, spec: TensorSpec::new(dtype, dims.as_slice())? };
                Value::Resident { index, tensor }
            }
            // No output is what another run gives.
            Argument::TokenOf { .. } => return Err(unexpected(reply)),
        });
    }
    Ok(Outputs { device: *device, position: *position, values })
}

/// The one token of a decode step, without an allocation.
pub(super) fn token(reply: &Reply<'_>) -> Result<i32, ClientError> {
    let Reply::Ran { outputs, .. } = reply else { return Err(unexpected(reply)) };
    match outputs.iter().next() {
        Some(Argument::Inline { dtype: DType::I32, data, .. }) => match data.first_chunk::<4>() {
            Some(bytes) => Ok(i32::from_le_bytes(*bytes)),
            None => Err(unexpected(reply)),
        },
        _ => Err(unexpected(reply)),
    }
}

pub(super) fn generated(reply: &Reply<'_>) -> Result<Generated, ClientError> {
    match reply {
        Reply::Generated { device, position, tokens, finish } => Ok(Generated {
            device: *device,
            position: *position,
            tokens: tokens.iter().map(|t| i32::from_le_bytes(*t)).collect(),
            finish: *finish,
        }),
        other => Err(unexpected(other)),
    }
}
