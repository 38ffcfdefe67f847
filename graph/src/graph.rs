//! The graph itself: plain data that anyone may write, and that [`crate::verify`] makes trustworthy.

use crate::op::Op;
use crate::types::{Annotation, TensorType};

/// Index of a node in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// One operation with what it reads and what it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// The nodes whose results it reads, in the order the op names them.
    pub inputs: Vec<NodeId>,
    /// Type of the result: declared for inputs and creation ops, inferred for all others and checked by the verifier.
    pub ty: TensorType,
    /// What the frontend knows of it.
    pub annotation: Annotation,
}

/// A named result of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Unique within the graph.
    pub name: String,
    /// The node it is.
    pub node: NodeId,
}

/// A graph as a frontend wrote it or a peer sent it: not to be trusted before it is verified.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Graph {
    /// What it is, for logs: a model's name.
    pub name: String,
    /// The nodes, each after the ones it reads.
    pub nodes: Vec<Node>,
    /// What a run returns, in order.
    pub outputs: Vec<Output>,
}
