//! A graph that passed.

use std::fmt::{Debug, Display, Formatter};
use std::ops::Deref;

use crate::codec::encode;
use crate::cost::node_cost;
use crate::graph::{Graph, Node, NodeId};
use crate::op::{InputRole, Op};
use crate::size::Sizes;
use crate::types::{Cost, Dim, Phase, Symbol, TensorType};

/// BLAKE3 of a graph's encoding: its name on a server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(
    /// The digest.
    pub [u8; 32],
);

impl Display for ContentHash {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Debug for ContentHash {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

/// What a graph wants from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputDecl {
    /// The input's node.
    pub node: NodeId,
    /// Unique within the graph.
    pub name: String,
    /// What it is for.
    pub role: InputRole,
    /// Its type.
    pub ty: TensorType,
}

/// Why a verified graph cannot be run with given sizes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// No rows, no tokens, or a tensor along a cache that holds none yet.
    #[error("the {0} is 0; a run needs at least 1")]
    Zero(Symbol),
    /// A tensor whose bytes do not fit 64 bits.
    #[error("node {node} ({op}) would have more bytes than 64 bits can count; run with smaller sizes")]
    Overflow {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
    },
    /// A slice that takes the last n of fewer.
    #[error("node {node} ({op}) takes the last {wanted} of {available} elements; run with a longer {symbol}")]
    Slice {
        /// The node.
        node: NodeId,
        /// Its op.
        op: &'static str,
        /// The sliced dimension.
        symbol: Symbol,
        /// How many it takes.
        wanted: u64,
        /// How many there are.
        available: u64,
    },
}

/// A graph that passed [`crate::verify`], with what a server needs to know of it. It cannot be changed.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedGraph {
    graph: Graph,
    inputs: Vec<InputDecl>,
    hash: ContentHash,
}

impl Deref for VerifiedGraph {
    type Target = Graph;

    fn deref(&self) -> &Graph {
        &self.graph
    }
}

impl VerifiedGraph {
    pub(super) fn new(graph: Graph, inputs: Vec<InputDecl>, hash: ContentHash) -> Self {
        Self { graph, inputs, hash }
    }

    /// The inputs, in the order of their nodes.
    pub fn inputs(&self) -> &[InputDecl] {
        &self.inputs
    }

    /// BLAKE3 of [`VerifiedGraph::encode`]: graphs with the same hash are the same.
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// The canonical encoding, which [`crate::decode`] reads.
    pub fn encode(&self) -> Vec<u8> {
        encode(&self.graph)
    }

    /// The graph without the seal, to be changed and verified anew.
    pub fn into_graph(self) -> Graph {
        self.graph
    }

    /// The phase that most nodes with a known phase are annotated with (of equals, the one first in [`Phase`]).
    pub fn phase(&self) -> Phase {
        let phases = [Phase::Prefill, Phase::Decode, Phase::Vision, Phase::Fusion];
        let count = |phase| self.nodes.iter().filter(|n| n.annotation.phase == phase).count();
        let counted = phases.map(|phase| (phase, count(phase)));
        counted.into_iter().rev().filter(|&(_, n)| n > 0).max_by_key(|&(_, n)| n).map_or(Phase::Unknown, |(p, _)| p)
    }

    /// How many tokens a run appends to its KV caches where the graph fixes that itself: all [`Op::Attention`] with a cache have `[1, n, ..]`
    /// then, with one n, and no dimension is the batch or the sequence. `None` for any other graph.
    pub fn fixed_step(&self) -> Option<u64> {
        let mut steps = self.nodes.iter().filter(|n| appends(n)).map(|n| match n.ty.shape.0[..] {
            [Dim::Fixed(1), Dim::Fixed(tokens), ..] => Some(tokens),
            _ => None,
        });
        let first = steps.next()??;
        let symbolic = |dim: &Dim| matches!(dim, Dim::Symbol(Symbol::Batch | Symbol::Sequence));
        let one =
            steps.all(|step| step == Some(first)) && !self.nodes.iter().any(|n| n.ty.shape.0.iter().any(symbolic));
        one.then_some(first)
    }

    /// A node's dimensions for these sizes; `None` where its bytes do not fit 64 bits or there is no such node.
    ///
    /// A KV cache counts blocks, not tokens, along its first dimension: as many as hold the tokens before and in this
    /// step, `ceil((position + sequence) / KV_BLOCK)`, for one batch row.
    pub fn concrete(&self, node: NodeId, sizes: &Sizes) -> Option<Vec<u64>> {
        let node = self.nodes.get(node.0 as usize)?;
        node.ty.concrete(&sizes_for(node, sizes)?)
    }

    /// Checks that the graph can be run with these sizes: then no dimension of any node is 0, which kernels rely on. It
    /// allocates nothing.
    ///
    /// # Errors
    /// A batch or sequence of 0, a position of 0 where a tensor other than a KV cache has it as a dimension, a slice of more
    /// than there is, a tensor that is too large to count.
    pub fn check_sizes(&self, sizes: &Sizes) -> Result<(), SizeError> {
        for symbol in [Symbol::Batch, Symbol::Sequence] {
            if sizes.of(symbol) == 0 {
                return Err(SizeError::Zero(symbol));
            }
        }
        for (i, node) in self.nodes.iter().enumerate() {
            let (id, op) = (NodeId(i as u32), node.op.name());
            if sizes.position == 0 && !is_cache(node) && node.ty.shape.0.contains(&Dim::Symbol(Symbol::Position)) {
                return Err(SizeError::Zero(Symbol::Position));
            }
            if sizes_for(node, sizes).and_then(|sizes| node.ty.bytes(&sizes)).is_none() {
                return Err(SizeError::Overflow { node: id, op });
            }
            if let Op::Slice { axis, start: start @ i64::MIN..0, end: None, .. } = node.op
                && let Some(Dim::Symbol(symbol)) = self.sliced(node.inputs.first(), axis)
                && sizes.of(symbol) < start.unsigned_abs()
            {
                let (wanted, available) = (start.unsigned_abs(), sizes.of(symbol));
                return Err(SizeError::Slice { node: id, op, symbol, wanted, available });
            }
        }
        Ok(())
    }

    fn sliced(&self, input: Option<&NodeId>, axis: i32) -> Option<Dim> {
        let shape = &self.nodes.get(input?.0 as usize)?.ty.shape.0;
        let axis = if axis < 0 { i64::from(axis) + shape.len() as i64 } else { i64::from(axis) };
        shape.get(usize::try_from(axis).ok()?).copied()
    }

    /// What one node costs for these sizes; nothing if there is no such node. Numbers saturate.
    pub fn cost(&self, node: NodeId, sizes: &Sizes) -> Cost {
        self.nodes.get(node.0 as usize).map_or(Cost::default(), |n| node_cost(&self.graph, n, sizes))
    }

    /// The sum of all nodes' costs.
    pub fn total_cost(&self, sizes: &Sizes) -> Cost {
        self.nodes.iter().map(|n| node_cost(&self.graph, n, sizes)).fold(Cost::default(), |a, b| Cost {
            flops: a.flops.saturating_add(b.flops),
            bytes: a.bytes.saturating_add(b.bytes),
        })
    }
}

/// The sizes as a node's type means them: the position of a KV cache is in blocks, and has room for this step's tokens.
fn sizes_for(node: &Node, sizes: &Sizes) -> Option<Sizes> {
    if !is_cache(node) {
        return Some(*sizes);
    }
    let blocks = sizes.position.checked_add(sizes.sequence)?.div_ceil(Op::KV_BLOCK);
    Some(Sizes { position: blocks, ..*sizes })
}

/// Whether a node appends to a KV cache.
fn appends(node: &Node) -> bool {
    matches!(node.op, Op::Attention { .. }) && node.inputs.len() == 4
}

fn is_cache(node: &Node) -> bool {
    matches!(node.op, Op::Input { role: InputRole::KvCache, .. })
}
