//! From a graph that anyone may have written to one that can be run.
//!
//! The verifier takes time and memory linear in the graph's size: every count is checked before it is looped over, and
//! no check looks at more than one node, its inputs and a hash set.

mod verified;

use std::collections::HashSet;

use crate::codec::encode;
use crate::graph::{Graph, Node, NodeId};
use crate::infer::{CACHE_SHAPE, InferError, cache_layers, infer};
use crate::limits::{MAX_NAME_BYTES, MAX_NODE_INPUTS, MAX_NODES, MAX_OUTPUTS};
use crate::op::{InputRole, Op};
use crate::size::TypeError;
use crate::types::{DType, Dim, Residency, Symbol, TensorType};

pub use verified::{ContentHash, InputDecl, SizeError, VerifiedGraph};

/// Why a graph cannot be run. Nothing has been done with it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A graph without nodes.
    #[error("the graph has no nodes; add at least one")]
    Empty,
    /// More of something than [`crate::limits`] allows.
    #[error("the graph has {found} {what}; at most {max} are supported")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
        /// How many there are.
        found: usize,
    },
    /// A node that reads more nodes than [`MAX_NODE_INPUTS`].
    #[error("node {node} ({op}) has {found} inputs; at most {MAX_NODE_INPUTS} are supported")]
    TooManyInputs {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// How many it has.
        found: usize,
    },
    /// The graph's name is too long.
    #[error("the graph's name has {found} bytes; at most {MAX_NAME_BYTES} are supported")]
    GraphName {
        /// Its length.
        found: usize,
    },
    /// An input's name is empty or too long.
    #[error("node {node} ({op}) has a name of {found} bytes; it must have 1 to {MAX_NAME_BYTES}")]
    InputName {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// The name's length.
        found: usize,
    },
    /// Two inputs with one name.
    #[error("node {node} ({op}) is named {name:?}, as an earlier input is; names must be unique")]
    DuplicateInput {
        /// The later node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// The name.
        name: String,
    },
    /// Two inputs with a role that a graph can have only once.
    #[error("node {node} ({op}) is a second input of role {role}; a graph can have one")]
    DuplicateRole {
        /// The later node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// The role.
        role: InputRole,
    },
    /// An input whose type its role does not have.
    #[error("node {node} ({op}) has role {role}, whose type must be {expected}, but its type is {got}")]
    RoleType {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// The role.
        role: InputRole,
        /// What the role wants.
        expected: &'static str,
        /// The declared type.
        got: TensorType,
    },
    /// A residency that contradicts the node's role.
    #[error(
        "node {node} ({op}) is annotated as {residency}; exactly the inputs of role weight and kv-cache must be weight and kv-cache"
    )]
    Residency {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// Its annotation.
        residency: Residency,
    },
    /// A type that no tensor can have.
    #[error("node {node} ({op}): {source}")]
    Type {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// What is wrong with it.
        source: TypeError,
    },
    /// Inputs or attributes that the op does not take.
    #[error("node {node} ({op}): {source}")]
    Op {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// What is wrong with it.
        source: InferError,
    },
    /// A node whose type is not what its op makes.
    #[error("node {node} ({op}) is declared to be {declared}, but makes {inferred}")]
    Declared {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// What the graph says.
        declared: TensorType,
        /// What inference says.
        inferred: TensorType,
    },
    /// A node that reads one that is not in the graph.
    #[error("node {node} ({op}) reads {input}, which is not in the graph")]
    UnknownInput {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// What it reads.
        input: NodeId,
    },
    /// Nodes that need each other's results.
    #[error("node {node} ({op}) depends on itself: the graph has a cycle")]
    Cycle {
        /// A node of the cycle.
        node: NodeId,
        /// Its op.
        op: &'static str,
    },
    /// Nodes in an order in which they cannot be run, though there is one.
    #[error("node {node} ({op}) reads {input}, which comes later; sort the nodes topologically")]
    Order {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// What it reads.
        input: NodeId,
    },
    /// A KV cache that is read as if it were a tensor, or a tensor that is read as if it were a cache.
    #[error(
        "node {node} ({op}) reads {input} as input {place}: the fourth input of an attention must be an input of role kv-cache, and nothing else can read one"
    )]
    Cache {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// What it reads.
        input: NodeId,
        /// As which input.
        place: usize,
    },
    /// Two attentions that append to one place.
    #[error(
        "node {node} ({op}) appends to layer {layer} of cache {cache}, as an earlier node does; give each its own layer"
    )]
    CacheLayer {
        /// The later node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// The cache.
        cache: NodeId,
        /// The layer.
        layer: u32,
    },
    /// An output's name is empty or too long.
    #[error("the output of node {node} has a name of {found} bytes; it must have 1 to {MAX_NAME_BYTES}")]
    OutputName {
        /// The node.
        node: NodeId,
        /// The name's length.
        found: usize,
    },
    /// Two outputs with one name.
    #[error("two outputs are named {name:?}; names must be unique")]
    DuplicateOutput {
        /// The name.
        name: String,
    },
    /// An output that is not in the graph, or is a KV cache.
    #[error("output {name:?} is node {node}, which is {problem}")]
    Output {
        /// The output.
        name: String,
        /// What it names.
        node: NodeId,
        /// What is wrong with that.
        problem: &'static str,
    },
}

/// Checks everything that a run relies on: limits, names, order, and of each node the arity, element types, shapes,
/// attributes and declared type.
///
/// # Errors
/// The first problem found, naming the node and its op where there is one.
pub fn verify(graph: Graph) -> Result<VerifiedGraph, VerifyError> {
    check_limits(&graph)?;
    check_order(&graph)?;
    let mut inputs = Inputs::default();
    let mut appended = HashSet::new();
    let mut types = Vec::with_capacity(MAX_NODE_INPUTS);
    for (i, node) in graph.nodes.iter().enumerate() {
        let id = NodeId(i as u32);
        check_type(id, node, &graph, &mut types)?;
        check_residency(id, node)?;
        check_cache_use(id, node, &graph, &mut appended)?;
        inputs.add(id, node)?;
    }
    check_outputs(&graph)?;
    let hash = ContentHash(*blake3::hash(&encode(&graph)).as_bytes());
    let inputs = inputs.declarations;
    Ok(VerifiedGraph::new(graph, inputs, hash))
}

fn check_limits(graph: &Graph) -> Result<(), VerifyError> {
    if graph.nodes.is_empty() {
        return Err(VerifyError::Empty);
    }
    if graph.name.len() > MAX_NAME_BYTES {
        return Err(VerifyError::GraphName { found: graph.name.len() });
    }
    for (what, max, found) in [("nodes", MAX_NODES, graph.nodes.len()), ("outputs", MAX_OUTPUTS, graph.outputs.len())] {
        if found > max {
            return Err(VerifyError::TooMany { what, max, found });
        }
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        let found = node.inputs.len();
        if found > MAX_NODE_INPUTS {
            return Err(VerifyError::TooManyInputs { node: NodeId(i as u32), op: node.op.name(), found });
        }
    }
    Ok(())
}

fn check_order(graph: &Graph) -> Result<(), VerifyError> {
    let mut late = None;
    for (i, node) in graph.nodes.iter().enumerate() {
        for &input in &node.inputs {
            let (id, op) = (NodeId(i as u32), node.op.name());
            if input.0 as usize >= graph.nodes.len() {
                return Err(VerifyError::UnknownInput { node: id, op, input });
            }
            if input >= id {
                late.get_or_insert(VerifyError::Order { node: id, op, input });
            }
        }
    }
    let Some(order) = late else { return Ok(()) };
    // Only now, on the way to an error, is it worth finding out whether sorting would help.
    Err(match on_cycle(graph) {
        Some(node) => VerifyError::Cycle { node, op: graph.nodes[node.0 as usize].op.name() },
        None => order,
    })
}

/// A node on a cycle, if there is one, by Kahn's algorithm: nodes that nothing reads are taken away until none is left.
/// All input ids must be in range.
fn on_cycle(graph: &Graph) -> Option<NodeId> {
    let reads = |i: usize| graph.nodes[i].inputs.iter().map(|id| id.0 as usize);
    let mut readers = vec![0_u32; graph.nodes.len()];
    for i in 0..graph.nodes.len() {
        reads(i).for_each(|input| readers[input] += 1);
    }
    let mut unread: Vec<usize> = (0..readers.len()).filter(|&i| readers[i] == 0).collect();
    while let Some(i) = unread.pop() {
        for input in reads(i) {
            readers[input] -= 1;
            if readers[input] == 0 {
                unread.push(input);
            }
        }
    }
    // What is left is read by something that is left, so going from reader to reader must come round. One reader of
    // each node is enough for that.
    let mut a_reader = vec![None; graph.nodes.len()];
    for i in (0..graph.nodes.len()).filter(|&i| readers[i] > 0) {
        reads(i).for_each(|input| a_reader[input] = Some(i));
    }
    let mut at = (0..readers.len()).find(|&i| readers[i] > 0)?;
    let mut seen = vec![false; graph.nodes.len()];
    while !std::mem::replace(&mut seen[at], true) {
        at = a_reader[at]?;
    }
    Some(NodeId(at as u32))
}

fn check_type<'g>(
    id: NodeId,
    node: &'g Node,
    graph: &'g Graph,
    types: &mut Vec<&'g TensorType>,
) -> Result<(), VerifyError> {
    let op = node.op.name();
    if node.op.is_declared() {
        if !node.inputs.is_empty() {
            let source = InferError::Arity { expected: "no", got: node.inputs.len() };
            return Err(VerifyError::Op { node: id, op, source });
        }
        return check_declared(id, &node.op, &node.ty);
    }
    types.clear();
    types.extend(node.inputs.iter().map(|input| &graph.nodes[input.0 as usize].ty));
    let inferred = infer(&node.op, types).map_err(|source| VerifyError::Op { node: id, op, source })?;
    if inferred != node.ty {
        return Err(VerifyError::Declared { node: id, op, declared: node.ty.clone(), inferred });
    }
    Ok(())
}

/// Checks an input or creation op: its attributes and the type it declares.
pub(crate) fn check_declared(node: NodeId, op: &Op, ty: &TensorType) -> Result<(), VerifyError> {
    let name = op.name();
    ty.check().map_err(|source| VerifyError::Type { node, op: name, source })?;
    match op {
        Op::Input { name: input, role } => {
            if input.is_empty() || input.len() > MAX_NAME_BYTES {
                return Err(VerifyError::InputName { node, op: name, found: input.len() });
            }
            role_type(*role, ty).map_err(|expected| VerifyError::RoleType {
                node,
                op: name,
                role: *role,
                expected,
                got: ty.clone(),
            })
        }
        _ => check_creation(op, ty).map_err(|source| VerifyError::Op { node, op: name, source }),
    }
}

/// What the type must be, if it is not.
fn role_type(role: InputRole, ty: &TensorType) -> Result<(), &'static str> {
    const B: Dim = Dim::Symbol(Symbol::Batch);
    const S: Dim = Dim::Symbol(Symbol::Sequence);
    let is = |dtype: DType, dims: &[Dim]| ty.dtype == dtype && ty.shape.0 == dims;
    let (ok, expected) = match role {
        InputRole::Argument => (true, "any"),
        InputRole::Weight => (ty.shape.0.iter().all(|d| matches!(d, Dim::Fixed(_))), "of fixed dimensions"),
        InputRole::KvCache => (ty.dtype.is_float() && cache_layers(ty).is_some(), CACHE_SHAPE),
        InputRole::Tokens | InputRole::Positions => (is(DType::I32, &[B, S]), "i32 [batch, sequence]"),
        InputRole::SamplingReal => (is(DType::F32, &[B, Dim::Fixed(2)]), "f32 [batch, 2]"),
        InputRole::SamplingInt => (is(DType::I64, &[B, Dim::Fixed(2)]), "i64 [batch, 2]"),
    };
    if ok { Ok(()) } else { Err(expected) }
}

fn check_creation(op: &Op, ty: &TensorType) -> Result<(), InferError> {
    let attribute = |name, reason: String| Err(InferError::Attribute { name, reason });
    match *op {
        Op::Full { value } if !holds(ty.dtype, value) => {
            attribute("value", format!("is {value}, which {} cannot hold", ty.dtype))
        }
        Op::Arange { start, step } => {
            let [length] = ty.shape.0[..] else {
                return attribute("type", format!("is {ty}, but must have one dimension"));
            };
            if ty.dtype == DType::Bool {
                return attribute("type", "is bool, but must be a number type".to_owned());
            }
            // How long a symbolic dimension is, is seen only at run time: there the conversion saturates.
            let last = match length {
                Dim::Fixed(n) => start + n.saturating_sub(1) as f64 * step,
                Dim::Symbol(_) => start,
            };
            match [("start", start), ("step", step)].into_iter().find(|(_, v)| !v.is_finite()) {
                Some((name, value)) => attribute(name, format!("is {value}, but must be finite")),
                None if !holds(ty.dtype, start) => {
                    attribute("start", format!("is {start}, which {} cannot hold", ty.dtype))
                }
                None if !holds(ty.dtype, last) => {
                    attribute("step", format!("leads to {last}, which {} cannot hold", ty.dtype))
                }
                None => Ok(()),
            }
        }
        Op::Rand { .. } | Op::Randn { .. } if !ty.dtype.is_float() => {
            attribute("type", format!("is {ty}, but must be of f32, f16 or bf16"))
        }
        _ => Ok(()),
    }
}

/// Whether a number, truncated, is one of an integer type's; floats hold all.
pub(crate) fn holds(dtype: DType, value: f64) -> bool {
    let whole = value.trunc();
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => true,
        // 2^63 itself is the first f64 that does not fit.
        DType::I64 => (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&whole),
        DType::I32 => (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&whole),
        DType::U8 => (0.0..=255.0).contains(&whole),
        DType::Bool => value == 0.0 || value == 1.0,
    }
}

fn check_residency(id: NodeId, node: &Node) -> Result<(), VerifyError> {
    let residency = node.annotation.residency;
    let ok = match &node.op {
        Op::Input { role: InputRole::Weight, .. } => residency == Residency::Weight,
        Op::Input { role: InputRole::KvCache, .. } => residency == Residency::KvCache,
        _ => !matches!(residency, Residency::Weight | Residency::KvCache),
    };
    if ok { Ok(()) } else { Err(VerifyError::Residency { node: id, op: node.op.name(), residency }) }
}

fn check_cache_use(
    id: NodeId,
    node: &Node,
    graph: &Graph,
    appended: &mut HashSet<(NodeId, u32)>,
) -> Result<(), VerifyError> {
    for (place, &input) in node.inputs.iter().enumerate() {
        let wanted = place == 3 && matches!(node.op, Op::Attention { .. });
        if is_cache(&graph.nodes[input.0 as usize]) != wanted {
            return Err(VerifyError::Cache { node: id, op: node.op.name(), input, place });
        }
    }
    if let (Op::Attention { layer, .. }, Some(&cache)) = (&node.op, node.inputs.get(3))
        && !appended.insert((cache, *layer))
    {
        return Err(VerifyError::CacheLayer { node: id, op: node.op.name(), cache, layer: *layer });
    }
    Ok(())
}

fn is_cache(node: &Node) -> bool {
    matches!(node.op, Op::Input { role: InputRole::KvCache, .. })
}

/// The inputs seen so far.
#[derive(Default)]
struct Inputs<'g> {
    declarations: Vec<InputDecl>,
    names: HashSet<&'g str>,
    single: HashSet<InputRole>,
}

impl<'g> Inputs<'g> {
    fn add(&mut self, id: NodeId, node: &'g Node) -> Result<(), VerifyError> {
        let Op::Input { name, role } = &node.op else { return Ok(()) };
        let (op, role) = (node.op.name(), *role);
        if !self.names.insert(name) {
            return Err(VerifyError::DuplicateInput { node: id, op, name: name.clone() });
        }
        // The server fills these by itself, and `generate` must know the one to feed.
        let once = !matches!(role, InputRole::Argument | InputRole::Weight | InputRole::KvCache);
        if once && !self.single.insert(role) {
            return Err(VerifyError::DuplicateRole { node: id, op, role });
        }
        self.declarations.push(InputDecl { node: id, name: name.clone(), role, ty: node.ty.clone() });
        Ok(())
    }
}

fn check_outputs(graph: &Graph) -> Result<(), VerifyError> {
    let mut names = HashSet::new();
    for output in &graph.outputs {
        let (name, node) = (&output.name, output.node);
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(VerifyError::OutputName { node, found: name.len() });
        }
        if !names.insert(name) {
            return Err(VerifyError::DuplicateOutput { name: name.clone() });
        }
        let problem = match graph.nodes.get(node.0 as usize) {
            None => "not in the graph",
            Some(node) if is_cache(node) => "a KV cache: those stay on the server and are read by handle",
            Some(_) => continue,
        };
        return Err(VerifyError::Output { name: name.clone(), node, problem });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
