//! Nodes that are done together in one step.

use std::collections::HashMap;

use genie_graph::{DType, LinearLayout, NodeId, Op, Sizes, VerifiedGraph};

use super::elementwise::UnaryKind;

/// What is done together with an earlier node's step.
#[derive(Default)]
pub(super) struct Fusions {
    /// Linear -> the Add of its result, and the Add's other operand.
    pub(super) residual: HashMap<NodeId, (NodeId, NodeId)>,
    /// Mul -> the activation among its operands, and the other one.
    pub(super) gate: HashMap<NodeId, (NodeId, NodeId)>,
    /// The activations in `gate`.
    pub(super) gated: Vec<bool>,
    /// Dequantized tensors that nothing reads but products, as their `[out, in]` weight: these read the blocks.
    pub(super) packed: Vec<bool>,
}

impl Fusions {
    /// Finds them.
    pub(super) fn find(graph: &VerifiedGraph, sizes: &Sizes) -> Self {
        let mut uses = vec![0_u32; graph.nodes.len()];
        let reads = graph.nodes.iter().flat_map(|n| &n.inputs);
        reads.chain(graph.outputs.iter().map(|o| &o.node)).for_each(|id| uses[id.0 as usize] += 1);
        let node = |id: NodeId| &graph.nodes[id.0 as usize];
        let mut fusions = Self { gated: vec![false; graph.nodes.len()], packed: packed(graph), ..Self::default() };
        for (i, sum) in graph.nodes.iter().enumerate() {
            let (id, &[a, b]) = (NodeId(i as u32), &sum.inputs[..]) else { continue };
            let shapes_agree = graph.concrete(a, sizes) == graph.concrete(b, sizes);
            if sum.ty.dtype != DType::F32 || a == b || !shapes_agree {
                continue;
            }
            for (first, other) in [(a, b), (b, a)] {
                if uses[first.0 as usize] != 1 {
                    continue;
                }
                let fits = match (&sum.op, &node(first).op) {
                    (Op::Add, Op::Linear { .. }) => {
                        other < first && fusions.residual.insert(first, (id, other)).is_none()
                    }
                    (Op::Mul, op) if unary_kind(op).is_some() => fusions.gate.insert(id, (first, other)).is_none(),
                    _ => false,
                };
                if fits {
                    fusions.gated[first.0 as usize] = matches!(sum.op, Op::Mul);
                    break;
                }
            }
        }
        fusions
    }
}

/// For each node whether it is one of [`Fusions::packed`].
fn packed(graph: &VerifiedGraph) -> Vec<bool> {
    let mut packed: Vec<bool> = graph.nodes.iter().map(|n| matches!(n.op, Op::Dequantize { .. })).collect();
    for node in &graph.nodes {
        let is_product = matches!(node.op, Op::Linear { layout: LinearLayout::OutIn });
        for (place, input) in node.inputs.iter().enumerate() {
            packed[input.0 as usize] &= is_product && place == 1;
        }
    }
    graph.outputs.iter().for_each(|o| packed[o.node.0 as usize] = false);
    packed
}

/// The kernel of an op on one number.
pub(super) fn unary_kind(op: &Op) -> Option<UnaryKind> {
    Some(match op {
        Op::Gelu { tanh: true } => UnaryKind::GeluTanh,
        Op::Gelu { tanh: false } => UnaryKind::GeluErf,
        Op::Silu => UnaryKind::Silu,
        Op::Relu => UnaryKind::Relu,
        Op::Sigmoid => UnaryKind::Sigmoid,
        Op::Tanh => UnaryKind::Tanh,
        Op::Abs => UnaryKind::Abs,
        Op::Neg => UnaryKind::Neg,
        Op::Exp => UnaryKind::Exp,
        Op::Log => UnaryKind::Log,
        Op::Sqrt => UnaryKind::Sqrt,
        _ => return None,
    })
}
