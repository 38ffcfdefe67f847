//! Whether the batch rows of a program depend on each other.

use genie_graph::{Dim, InputRole, Node, Op, Symbol, TensorType, VerifiedGraph};

/// Whether rows of different sessions can be joined along the batch and get what each would get alone: every argument and
/// output has the batch as its first dimension, no tensor has it elsewhere, and no op mixes along it or counts along it.
pub(super) fn rows_are_independent(graph: &VerifiedGraph) -> bool {
    let batch_leads = |ty: &TensorType| ty.shape.0.first() == Some(&BATCH);
    let inputs = graph.inputs().iter().all(|input| match input.role {
        InputRole::Weight | InputRole::KvCache => true,
        _ => batch_leads(&input.ty),
    });
    let outputs = graph.outputs.iter().all(|o| batch_leads(&graph.nodes[o.node.0 as usize].ty));
    let elsewhere = |ty: &TensorType| ty.shape.0.iter().skip(1).any(|&d| d == BATCH);
    inputs && outputs && graph.nodes.iter().all(|n| !elsewhere(&n.ty) && keeps_rows_apart(graph, n))
}

const BATCH: Dim = Dim::Symbol(Symbol::Batch);

/// Whether a node's result has, in batch row i, only what its operands have there.
fn keeps_rows_apart(graph: &VerifiedGraph, node: &Node) -> bool {
    let operand = |i: usize| node.inputs.get(i).map(|id| &graph.nodes[id.0 as usize].ty);
    let batched = |i: usize| operand(i).is_some_and(|ty| ty.shape.0.first() == Some(&BATCH));
    let first_axis = |axis: i32| {
        let rank = operand(0).map_or(0, |ty| ty.shape.0.len() as i64);
        axis == 0 || i64::from(axis) == -rank
    };
    match &node.op {
        Op::Input { .. } | Op::Zeros | Op::Ones | Op::Full { .. } => true,
        Op::Arange { .. } | Op::Rand { .. } | Op::Randn { .. } | Op::Random { .. } => {
            node.ty.shape.0.first() != Some(&BATCH)
        }
        // Tables are common to all rows.
        Op::Embedding { .. } | Op::Gather => !batched(0),
        // Any row of the table may come from any batch row; and a table by the batch is indexed along it.
        Op::Scatter => !batched(0) && !batched(1),
        // A second operand of rank 2 is common to all rows; without leading dimensions rows are columns of b.
        Op::MatMul => !batched(1) || (batched(0) && operand(1).is_some_and(|ty| ty.shape.rank() > 2)),
        Op::Softmax { axis }
        | Op::ArgMax { axis }
        | Op::ArgReduce { axis, .. }
        | Op::Slice { axis, .. }
        | Op::Cumulative { axis, .. }
        | Op::ArgSort { axis, .. }
        | Op::TakeAlong { axis } => !(batched(0) && first_axis(*axis)),
        // A table without the batch takes updates from any batch row.
        Op::ScatterAlong { axis, .. } => !((batched(0) || batched(1)) && first_axis(*axis)),
        Op::Flip { axes } => !(batched(0) && (axes.is_empty() || axes.iter().any(|&a| first_axis(a)))),
        Op::Concat { axis } => !((0..node.inputs.len()).any(batched) && first_axis(*axis)),
        Op::Reduce { axes, .. } => !(batched(0) && (axes.is_empty() || axes.iter().any(|&a| first_axis(a)))),
        Op::Transpose { perm } => !batched(0) || perm.first() == Some(&0),
        // The batch stays in front (the caller sees to it), so the rest of each row stays with it.
        Op::Reshape { .. } => true,
        _ => true,
    }
}
