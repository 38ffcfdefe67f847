//! Graphs, written node by node.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::genie_graph::{
    Annotation, Dim, GraphBuilder, InputRole, Modality, NodeId, Op, Phase, Symbol, TensorType, VerifiedGraph,
    VerifyError, decode, verify,
};

use crate::arguments::{Place, bytes, dims, dtype, fill, optional_text, slice, text};
use crate::handles::Table;
use crate::ops;
use crate::status::{Failure, entry, genie_error, genie_status};

/// A graph that is being written. Freed by `genie_graph_free`. Nodes are numbered from 0 in the order in which they are added.
pub struct genie_graph {
    _opaque: [u8; 0],
}

/// A dimension that is known when a program runs: rows that run together.
pub const GENIE_DIM_BATCH: u64 = u64::MAX - 1;
/// The same: tokens of this step.
pub const GENIE_DIM_SEQUENCE: u64 = u64::MAX - 2;
/// The same: tokens that are in the cache.
pub const GENIE_DIM_POSITION: u64 = u64::MAX - 3;

/// What an input is for. Functions take it as an `int32_t`.
#[repr(C)]
pub enum genie_role {
    /// A tensor that comes with each run, or is bound once.
    GENIE_ROLE_ARGUMENT = 0,
    /// An immutable tensor, bound once.
    GENIE_ROLE_WEIGHT = 1,
    /// A KV cache, bound once: float [GENIE_DIM_POSITION, layers, 2, kv_heads, 64, head_dim].
    GENIE_ROLE_KV_CACHE = 2,
    /// Token ids, i32 [GENIE_DIM_BATCH, GENIE_DIM_SEQUENCE]; generate feeds each new token back here.
    GENIE_ROLE_TOKENS = 3,
    /// Positions, i32 [GENIE_DIM_BATCH, GENIE_DIM_SEQUENCE], filled by the server.
    GENIE_ROLE_POSITIONS = 4,
    /// f32 [GENIE_DIM_BATCH, 2]: temperature (0: the likeliest token), top-p.
    GENIE_ROLE_SAMPLING_REAL = 5,
    /// i64 [GENIE_DIM_BATCH, 2]: top-k (0: off), seed.
    GENIE_ROLE_SAMPLING_INT = 6,
}

/// Which part of a model's work nodes belong to; the server orders its queues by it. Functions take it as an `int32_t`.
#[repr(C)]
pub enum genie_phase {
    /// Not said.
    GENIE_PHASE_UNKNOWN = 0,
    /// Work over a whole prompt.
    GENIE_PHASE_PREFILL = 1,
    /// One token a step.
    GENIE_PHASE_DECODE = 2,
    /// Image encoders.
    GENIE_PHASE_VISION = 3,
    /// Where modalities meet.
    GENIE_PHASE_FUSION = 4,
}

/// What kind of data nodes stand for. Functions take it as an `int32_t`.
#[repr(C)]
pub enum genie_modality {
    /// Not said.
    GENIE_MODALITY_NONE = 0,
    /// Text.
    GENIE_MODALITY_TEXT = 1,
    /// Images.
    GENIE_MODALITY_VISION = 2,
    /// Sound.
    GENIE_MODALITY_AUDIO = 3,
}

struct Draft {
    builder: GraphBuilder,
    /// How many nodes there are: the builder takes its own word for those that it is asked about.
    nodes: u32,
}

static GRAPHS: Table<Mutex<Draft>> = Table::new(8, "genie_graph");

fn lock(draft: &Mutex<Draft>) -> MutexGuard<'_, Draft> {
    draft.lock().unwrap_or_else(PoisonError::into_inner)
}

fn draft(graph: *const genie_graph) -> Result<Arc<Mutex<Draft>>, Failure> {
    GRAPHS.get(graph)
}

/// The graph as it is now, checked as a whole.
pub(crate) fn verified(graph: *const genie_graph) -> Result<VerifiedGraph, Failure> {
    let builder = lock(&*draft(graph)?).builder.clone();
    Ok(builder.finish()?)
}

/// An empty graph of this name (for logs; at most 256 bytes). `*graph` is the caller's, to be freed by `genie_graph_free`. It belongs to
/// no session; two threads that write one at once write one node after the other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_graph_new(
    name: *const c_char,
    graph: *mut *mut genie_graph,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, name) = unsafe { (Place::new(graph, "graph")?, text(name, "name")?) };
        place.set(GRAPHS.add(Mutex::new(Draft { builder: GraphBuilder::new(name), nodes: 0 }))?);
        Ok(())
    })
}

/// Sets the phase (`genie_phase`) and modality (`genie_modality`) of the nodes that follow.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_graph_annotate(
    graph: *const genie_graph,
    phase: i32,
    modality: i32,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        let phases = [Phase::Unknown, Phase::Prefill, Phase::Decode, Phase::Vision, Phase::Fusion];
        let modalities = [Modality::None, Modality::Text, Modality::Vision, Modality::Audio];
        let phase = pick(&phases, phase, "genie_phase")?;
        let modality = pick(&modalities, modality, "genie_modality")?;
        lock(&*draft(graph)?).builder.annotate(Annotation { phase, modality, ..Annotation::default() });
        Ok(())
    })
}

/// Adds an input: its name (unique in the graph), its role (`genie_role`), its elements (`genie_dtype`) and dimensions, `GENIE_DIM_BATCH`
/// and the like among them. `*node` is its number, by which it is bound.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_graph_input(
    graph: *const genie_graph,
    name: *const c_char,
    role: i32,
    dtype: i32,
    rank: usize,
    dims: *const u64,
    node: *mut u32,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        use InputRole::*;
        let roles = [Argument, Weight, KvCache, Tokens, Positions, SamplingReal, SamplingInt];
        // SAFETY: the header's rules for results and for what is read.
        let (place, name, ty) =
            unsafe { (Place::new(node, "node")?, text(name, "name")?, declared(dtype, rank, dims)?) };
        let role = pick(&roles, role, "genie_role")?;
        added(&mut lock(&*draft(graph)?), place, |g| g.input(name, role, ty))
    })
}

/// Adds an op that reads earlier nodes: its name ("relu", "matmul", ...) and its attributes, "name=value" with spaces between them, or
/// NULL: "axis=-1", "kind=sum axes=0,1 keep_dims=true", "dims=batch,-1". Numbers have a point, whatever the locale. docs/guide/c.md lists ops
/// and attributes. The type of its result follows from what it reads. `*node` is its number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_graph_op(
    graph: *const genie_graph,
    op: *const c_char,
    inputs: *const u32,
    input_count: usize,
    attributes: *const c_char,
    node: *mut u32,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, name, inputs, attributes) = unsafe {
            (
                Place::new(node, "node")?,
                text(op, "op")?,
                slice(inputs, input_count, "inputs")?,
                optional_text(attributes, "attributes")?,
            )
        };
        let op = ops::op(name, attributes.unwrap_or_default())?;
        let inputs: Vec<_> = inputs.iter().map(|&id| NodeId(id)).collect();
        added(&mut lock(&*draft(graph)?), place, |g| g.push(op, &inputs))
    })
}

/// Adds an op that makes a tensor of this type out of nothing: "zeros", "ones", "full" (value=), "arange" (start=, step=), "rand" and
/// "randn" (seed=). `*node` is its number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_graph_create(
    graph: *const genie_graph,
    op: *const c_char,
    dtype: i32,
    rank: usize,
    dims: *const u64,
    attributes: *const c_char,
    node: *mut u32,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, name, ty, attributes) = unsafe {
            (
                Place::new(node, "node")?,
                text(op, "op")?,
                declared(dtype, rank, dims)?,
                optional_text(attributes, "attributes")?,
            )
        };
        let op = ops::op(name, attributes.unwrap_or_default())?;
        added(&mut lock(&*draft(graph)?), place, |g| g.create(op, ty))
    })
}

/// Makes a node a result of the graph: output 0 is the first that is named so.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_graph_output(
    graph: *const genie_graph,
    name: *const c_char,
    node: u32,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for what is read.
        let name = unsafe { text(name, "name") }?;
        let draft = draft(graph)?;
        let mut draft = lock(&draft);
        if node >= draft.nodes {
            return Err(Failure::argument(format!("there is no node {node}: the graph has {}", draft.nodes)));
        }
        draft.builder.output(name, NodeId(node));
        Ok(())
    })
}

/// Checks a graph as a whole, and gives the 32 bytes of its hash, by which servers know it (`genie_define_known`). Errors:
/// GENIE_ERROR_GRAPH with the verifier's words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_graph_hash(
    graph: *const genie_graph,
    hash: *mut u8,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        let hashed = verified(graph)?.hash();
        // SAFETY: the header's rules for results: there is room for 32 bytes.
        unsafe { fill(hash, 32, hashed.0.into_iter(), "hash") }
    })
}

/// Checks a graph as a whole, and encodes it: the first `room` bytes go to `encoded`, and how many there are to `*size`. With `room` 0
/// it only counts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_graph_encode(
    graph: *const genie_graph,
    encoded: *mut c_void,
    room: usize,
    size: *mut usize,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results.
        let place = unsafe { Place::new(size, "size") }?;
        let bytes = verified(graph)?.encode();
        let count = bytes.len();
        // SAFETY: the header's rules for results.
        unsafe { fill(encoded.cast::<u8>(), room, bytes.into_iter(), "encoded") }?;
        place.set(count);
        Ok(())
    })
}

/// Reads an encoded graph of `size` bytes, to be looked at or defined. `encoded` is read before it returns. `*graph` is the caller's, to be
/// freed by `genie_graph_free`; nodes can be added to it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_graph_decode(
    encoded: *const c_void,
    size: usize,
    graph: *mut *mut genie_graph,
    error: *mut genie_error,
) -> genie_status {
    entry(error, || {
        // SAFETY: the header's rules for results and for what is read.
        let (place, encoded) = unsafe { (Place::new(graph, "graph")?, bytes(encoded, size, "encoded")?) };
        let read = verify(decode(encoded)?)?;
        let nodes = read.nodes.len() as u32;
        let builder = rebuilt(&read)?;
        if builder.clone().finish()?.hash() != read.hash() {
            let message = "the graph says of its inputs what a builder cannot write: define it by genie_define_encoded";
            return Err(Failure::new(genie_status::GENIE_ERROR_GRAPH, message));
        }
        place.set(GRAPHS.add(Mutex::new(Draft { builder, nodes }))?);
        Ok(())
    })
}

/// A builder that has written this graph.
fn rebuilt(graph: &VerifiedGraph) -> Result<GraphBuilder, Failure> {
    let mut builder = GraphBuilder::new(&graph.name);
    for node in &graph.nodes {
        builder.annotate(node.annotation);
        match &node.op {
            Op::Input { name, role } => builder.input(name, *role, node.ty.clone())?,
            op if op.is_declared() => builder.create(op.clone(), node.ty.clone())?,
            op => builder.push(op.clone(), &node.inputs)?,
        };
    }
    graph.outputs.iter().for_each(|output| builder.output(&output.name, output.node));
    builder.annotate(Annotation::default());
    Ok(builder)
}

/// Frees a graph; what was defined by it goes on. NULL is nothing, and is GENIE_OK.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn genie_graph_free(graph: *mut genie_graph, error: *mut genie_error) -> genie_status {
    entry(error, || if graph.is_null() { Ok(()) } else { GRAPHS.remove(graph).map(|_| ()) })
}

/// Adds a node, and says which it is.
fn added(
    draft: &mut Draft,
    place: Place<u32>,
    add: impl FnOnce(&mut GraphBuilder) -> Result<NodeId, VerifyError>,
) -> Result<(), Failure> {
    let NodeId(node) = add(&mut draft.builder)?;
    draft.nodes = node + 1;
    place.set(node);
    Ok(())
}

/// The type of a node that declares it.
///
/// # Safety
/// As the header says of dimensions.
unsafe fn declared(element: i32, rank: usize, at: *const u64) -> Result<TensorType, Failure> {
    // SAFETY: the caller upholds it.
    let dims = unsafe { dims(at, rank) }?;
    let dim = |&dim: &u64| match dim {
        GENIE_DIM_BATCH => Dim::Symbol(Symbol::Batch),
        GENIE_DIM_SEQUENCE => Dim::Symbol(Symbol::Sequence),
        GENIE_DIM_POSITION => Dim::Symbol(Symbol::Position),
        size => Dim::Fixed(size),
    };
    Ok(TensorType::new(dtype(element)?, dims.iter().map(dim)))
}

/// What a number stands for.
fn pick<T: Copy>(all: &[T], number: i32, what: &str) -> Result<T, Failure> {
    let found = usize::try_from(number).ok().and_then(|i| all.get(i));
    found.copied().ok_or_else(|| Failure::argument(format!("{number} is no {what}")))
}
