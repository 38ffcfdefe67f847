//! Nodes that become one kernel.

use std::collections::{HashMap, HashSet};

use genie_cuda_kernels::launch::epilogue::Activation;
use genie_graph::{NodeId, Op, Sizes, VerifiedGraph};

/// A product with what is done to its sums: `activation(product) * factor + residual`, and on the way a conversion to another float type.
/// What comes out is rounded once, to the type of the last node: roundings on the way are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fused {
    /// The linear layer.
    pub(super) linear: NodeId,
    pub(super) activation: Activation,
    /// What the activated sums are multiplied by.
    pub(super) factor: Option<NodeId>,
    /// Whether `factor` is a linear layer of the same input that nobody else reads: it can be computed along.
    pub(super) gate: bool,
    /// What is added at the end.
    pub(super) residual: Option<NodeId>,
}

/// What of a graph is done together.
#[derive(Default)]
pub(super) struct Fusions {
    /// By the node whose value comes out.
    pub(super) products: HashMap<NodeId, Fused>,
    /// Nodes of a product before the last: nobody reads their values.
    pub(super) inner: HashSet<NodeId>,
    /// Who reads a node, and how often.
    uses: Vec<Vec<NodeId>>,
    outputs: HashSet<NodeId>,
}

impl Fusions {
    pub(super) fn find(graph: &VerifiedGraph, sizes: &Sizes) -> Self {
        let mut found = Self { uses: vec![Vec::new(); graph.nodes.len()], ..Self::default() };
        found.outputs.extend(graph.outputs.iter().map(|o| o.node));
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|input| found.uses[input.0 as usize].push(NodeId(i as u32)));
        }
        let mut taken = HashSet::new();
        for i in 0..graph.nodes.len() {
            let id = NodeId(i as u32);
            if matches!(graph.nodes[i].op, Op::Linear { .. }) && !taken.contains(&id) {
                found.follow(graph, sizes, id, &mut taken);
            }
        }
        found
    }

    /// The one node that reads this one, if there is just one and it is no output.
    pub(super) fn reader(&self, id: NodeId) -> Option<NodeId> {
        match self.uses[id.0 as usize][..] {
            [one] if !self.outputs.contains(&id) => Some(one),
            _ => None,
        }
    }

    /// Whether this node's value is read by `wanted` nodes only, and is no output.
    pub(super) fn all_readers(&self, id: NodeId, wanted: impl Fn(NodeId) -> bool) -> bool {
        !self.outputs.contains(&id) && self.uses[id.0 as usize].iter().all(|&reader| wanted(reader))
    }

    /// Takes along what follows a linear layer.
    fn follow(&mut self, graph: &VerifiedGraph, sizes: &Sizes, linear: NodeId, taken: &mut HashSet<NodeId>) {
        let node = |id: NodeId| &graph.nodes[id.0 as usize];
        let alike = |a: NodeId, b: NodeId| {
            node(a).ty.dtype == node(b).ty.dtype && graph.concrete(a, sizes) == graph.concrete(b, sizes)
        };
        let mut fused = Fused { linear, activation: Activation::None, factor: None, gate: false, residual: None };
        let mut last = linear;
        let mut converted = false;
        taken.insert(linear);
        while let Some(next) = self.reader(last).filter(|next| !taken.contains(next)) {
            let plain = fused.factor.is_none() && fused.residual.is_none();
            let other = node(next).inputs.iter().copied().find(|&input| input != last);
            match (&node(next).op, other) {
                (Op::Cast { to }, None) if to.is_float() && !converted => converted = true,
                (op, None) if plain && fused.activation == Activation::None && node(next).inputs.len() == 1 => {
                    let Some(activation) = activation(op) else { break };
                    fused.activation = activation;
                }
                (Op::Mul, Some(other)) if plain && alike(other, next) && alike(last, next) => {
                    fused.factor = Some(other);
                    fused.gate = self.is_gate_of(graph, linear, other, taken);
                    if fused.gate {
                        taken.insert(other);
                        self.inner.insert(other);
                    }
                }
                (Op::Add, Some(other)) if fused.residual.is_none() && alike(other, next) && alike(last, next) => {
                    fused.residual = Some(other);
                }
                _ => break,
            }
            self.inner.insert(last);
            taken.insert(next);
            last = next;
        }
        self.products.insert(last, fused);
    }

    /// Whether two linear layers differ in their weights alone, and the second is read by one node.
    fn is_gate_of(&self, graph: &VerifiedGraph, first: NodeId, second: NodeId, taken: &HashSet<NodeId>) -> bool {
        let [a, b] = [first, second].map(|id| &graph.nodes[id.0 as usize]);
        let weight = |n: usize| {
            let [x, y] = [a, b].map(|node| node.inputs.get(n).map(|id| &graph.nodes[id.0 as usize]));
            match (x, y) {
                (None, None) => true,
                (Some(x), Some(y)) => {
                    let stored = |node: &genie_graph::Node| match node.op {
                        Op::Dequantize { format, .. } => Some(format),
                        _ => None,
                    };
                    x.ty == y.ty && stored(x) == stored(y)
                }
                _ => false,
            }
        };
        a.op == b.op
            && a.inputs.first() == b.inputs.first()
            && weight(1)
            && weight(2)
            && !taken.contains(&second)
            && self.reader(second).is_some()
    }
}

/// The activation that a product can do itself.
fn activation(op: &Op) -> Option<Activation> {
    Some(match op {
        Op::Gelu { tanh: true } => Activation::GeluTanh,
        Op::Gelu { tanh: false } => Activation::Gelu,
        Op::Silu => Activation::Silu,
        Op::Relu => Activation::Relu,
        Op::Sigmoid => Activation::Sigmoid,
        Op::Tanh => Activation::Tanh,
        _ => return None,
    })
}
