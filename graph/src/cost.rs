//! What a node costs: floating-point operations and bytes moved, for given sizes of the symbols.
//!
//! A count for scheduling and for `genie explain`, not a prediction of time. One arithmetic operation or transcendental
//! function of one element is 1 FLOP. Bytes are what an ideal device reads and writes once: a reshape is a view and
//! moves none, lookups read only the rows they return, attention reads the cache's tokens. Numbers saturate.

use crate::graph::{Graph, Node};
use crate::kinds::ScatterKind;
use crate::op::{LinearLayout, Op, QuantFormat};
use crate::size::Sizes;
use crate::types::{Cost, TensorType};

/// The cost of one node of a verified graph.
pub(crate) fn node_cost(graph: &Graph, node: &Node, sizes: &Sizes) -> Cost {
    let input = |i: usize| node.inputs.get(i).and_then(|id| graph.nodes.get(id.0 as usize)).map(|n| &n.ty);
    let read = |i: usize| input(i).map_or(0, |ty| bytes(ty, sizes));
    let read_all = || (0..node.inputs.len()).fold(0, |sum: u64, i| sum.saturating_add(read(i)));
    let out = elements(&node.ty, sizes);
    let written = bytes(&node.ty, sizes);
    let per_element = |flops: u64| Cost { flops: product(&[flops, out]), bytes: read_all().saturating_add(written) };
    let per_input = |flops: u64| Cost {
        flops: input(0).map_or(0, |ty| product(&[flops, elements(ty, sizes)])),
        bytes: read_all().saturating_add(written),
    };
    match &node.op {
        Op::Input { .. } | Op::Reshape { .. } => Cost::default(),
        Op::Zeros | Op::Ones | Op::Full { .. } => Cost { flops: 0, bytes: written },
        Op::Arange { .. } | Op::Rand { .. } | Op::Randn { .. } => per_element(2),
        Op::Embedding { .. } | Op::Gather => {
            let rows = input(0).map_or(0, |table| product(&[out, table.dtype.bytes()]));
            Cost { flops: 0, bytes: read(1).saturating_add(rows).saturating_add(written) }
        }
        Op::MatMul => {
            let inner = input(0).and_then(|a| a.shape.0.last()).map_or(1, |&k| sizes.dim(k));
            per_element(inner.saturating_mul(2))
        }
        Op::Linear { layout } => {
            let axis = match layout {
                LinearLayout::OutIn => 1,
                LinearLayout::InOut => 0,
            };
            let inner = input(1).and_then(|w| w.shape.fixed_dim(axis)).unwrap_or(1);
            per_element(inner.saturating_mul(2).saturating_add(u64::from(node.inputs.len() > 2)))
        }
        Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Relu
        | Op::Tanh
        | Op::Abs
        | Op::Neg
        | Op::Exp
        | Op::Log
        | Op::Sqrt => per_element(1),
        Op::Sigmoid => per_element(4),
        Op::Silu | Op::Softmax { .. } => per_element(5),
        Op::Gelu { tanh } => per_element(if *tanh { 9 } else { 5 }),
        Op::Dequantize { format, .. } => per_element(if *format == QuantFormat::Q8_0 { 1 } else { 2 }),
        Op::Conv2d { .. } => {
            // An output's products: those of a weight row.
            let dims = input(1).map_or(&[][..], |w| w.shape.0.get(1..).unwrap_or_default());
            let taps = dims.iter().fold(1, |p: u64, &d| p.saturating_mul(sizes.dim(d)));
            per_element(taps.saturating_mul(2).saturating_add(u64::from(node.inputs.len() > 2)))
        }
        Op::Pool { kernel, .. } => per_element(kernel.iter().fold(1, |p: u64, &k| p.saturating_mul(k.into()))),
        Op::RmsNorm { .. } | Op::BatchNorm { .. } => per_element(4),
        Op::LayerNorm { .. } => per_element(7),
        Op::Rope { .. } => per_element(3),
        Op::Attention { heads, kv_heads, head_dim, causal, .. } => {
            attention(node, input(3), [*heads, *kv_heads, *head_dim], *causal, sizes, [read(0), read(1), read(2)])
        }
        Op::Transpose { .. } | Op::Concat { .. } | Op::Cast { .. } | Op::Scatter => per_element(0),
        Op::Slice { .. } => Cost { flops: 0, bytes: written.saturating_mul(2) },
        Op::Reduce { .. } | Op::ArgMax { .. } => per_input(1),
        Op::Sample => per_input(5),
        Op::Unary { .. } | Op::Binary { .. } | Op::Compare { .. } | Op::Cumulative { .. } => per_element(1),
        Op::Where | Op::Broadcast { .. } | Op::Flip { .. } | Op::Pad { .. } => per_element(0),
        Op::ArgSort { axis, .. } => {
            // A comparison for each halving of the row.
            let dims = input(0).map_or(&[][..], |x| &x.shape.0);
            let axis = usize::try_from(if *axis < 0 { i64::from(*axis) + dims.len() as i64 } else { (*axis).into() });
            let row = axis.ok().and_then(|axis| dims.get(axis)).map_or(1, |&d| sizes.dim(d));
            per_element(u64::from(u64::BITS - row.saturating_sub(1).leading_zeros()))
        }
        Op::TakeAlong { .. } => Cost { flops: 0, bytes: read(1).saturating_add(written.saturating_mul(2)) },
        Op::ScatterAlong { kind, .. } => Cost {
            flops: if *kind == ScatterKind::Set { 0 } else { input(2).map_or(0, |ty| elements(ty, sizes)) },
            bytes: read_all().saturating_add(written),
        },
        Op::ArgReduce { .. } => per_input(1),
        Op::Random { .. } => per_element(2),
    }
}

/// Two products a pair of positions that see each other, and the softmax between them.
fn attention(
    node: &Node,
    cache: Option<&TensorType>,
    [heads, kv_heads, head_dim]: [u32; 3],
    causal: bool,
    sizes: &Sizes,
    reads: [u64; 3],
) -> Cost {
    let dim = |i: usize| node.ty.shape.0.get(i).map_or(1, |&d| sizes.dim(d));
    let (batch, sequence) = (dim(0), dim(1));
    let past = if cache.is_some() { sizes.position } else { 0 };
    let own = if causal {
        // Token s sees itself and the s before it.
        (u128::from(sequence) * (u128::from(sequence) + 1) / 2).try_into().unwrap_or(u64::MAX)
    } else {
        product(&[sequence, sequence])
    };
    let pairs = product(&[sequence, past]).saturating_add(own);
    let per_pair = (4 * u64::from(head_dim)).saturating_add(5);
    let token = cache.map_or(0, |ty| product(&[2, kv_heads.into(), head_dim.into(), ty.dtype.bytes()]));
    let cached = product(&[batch, token, past.saturating_add(sequence)]);
    let moved = reads.into_iter().chain([bytes(&node.ty, sizes), cached]).fold(0, u64::saturating_add);
    Cost { flops: product(&[batch, heads.into(), pairs, per_pair]), bytes: moved }
}

fn elements(ty: &TensorType, sizes: &Sizes) -> u64 {
    ty.elements(sizes).unwrap_or(u64::MAX)
}

fn bytes(ty: &TensorType, sizes: &Sizes) -> u64 {
    ty.bytes(sizes).unwrap_or(u64::MAX)
}

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |p: u64, &f| p.saturating_mul(f))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::GraphBuilder;
    use crate::example::model;
    use crate::graph::NodeId;
    use crate::kinds::{CompareKind, RandomKind};
    use crate::op::{InputRole, PoolKind};
    use crate::types::{DType, Shape};

    const SIZES: Sizes = Sizes { batch: 2, sequence: 3, position: 10 };

    /// Costs of the model's nodes with this op.
    fn costs(name: &str, sizes: &Sizes) -> Vec<Cost> {
        let g = model();
        let ids = (0..g.nodes.len()).filter(|&i| g.nodes[i].op.name() == name);
        ids.map(|i| g.cost(NodeId(i as u32), sizes)).collect()
    }

    #[test]
    fn costs_are_those_worked_out_by_hand() {
        // The embedding reads 6 ids, 6 rows of 8 bf16, and writes as many f32.
        assert_eq!(costs("embedding", &SIZES), [Cost { flops: 0, bytes: 6 * 4 + 48 * 2 + 48 * 4 }]);
        // The first linear is q: [6, 8] x [8, 8].
        assert_eq!(costs("linear", &SIZES)[0], Cost { flops: 2 * 6 * 8 * 8, bytes: 48 * 4 + 64 * 2 + 48 * 4 });
        // 2 rows, 2 heads, each of 3 tokens sees 10 cached ones and 1, 2, 3 of this step; 4 * 4 + 5 FLOPs a pair.
        // Reads q, k, v, writes the result, f16 keys and values of 10 + 3 tokens for each row.
        let bytes = (48 + 24 + 24 + 48) * 4 + 2 * 13 * 2 * 4 * 2;
        assert_eq!(costs("attention", &SIZES)[0], Cost { flops: 2 * 2 * (30 + 6) * 21, bytes });
        assert_eq!(costs("add", &SIZES)[0], Cost { flops: 48, bytes: 3 * 48 * 4 });
        assert_eq!(costs("reshape", &SIZES), [Cost::default()]);
        assert_eq!(costs("slice", &SIZES), [Cost { flops: 0, bytes: 2 * 16 * 4 }]);
        assert!(costs("input", &SIZES).iter().all(|&c| c == Cost::default()));
    }

    #[test]
    fn images_and_blocks_cost_what_their_windows_and_bytes_do() {
        let ty = |dtype, dims: &[u64]| TensorType { dtype, shape: Shape::fixed(dims) };
        let (x, w, c) = (ty(DType::F32, &[2, 4, 5, 5]), ty(DType::F16, &[6, 2, 3, 3]), |n: u64| ty(DType::F32, &[n]));
        let conv = Op::Conv2d { stride: [1; 2], padding: [0; 4], dilation: [1; 2], groups: 2 };
        // 2 images of 6 channels of 3 by 3; each output sums 2 * 3 * 3 products and adds a bias.
        let bytes = 200 * 4 + 108 * 2 + 6 * 4 + 108 * 4;
        assert_eq!(cost(conv, &[x.clone(), w, c(6)]), Cost { flops: 108 * 37, bytes });
        let pool =
            Op::Pool { kind: PoolKind::Max, kernel: [2, 3], stride: [1, 2], padding: [0; 4], count_padding: false };
        assert_eq!(cost(pool, std::slice::from_ref(&x)), Cost { flops: 64 * 6, bytes: (200 + 64) * 4 });
        let norm = cost(Op::BatchNorm { eps: 0.0 }, &[x, c(4), c(4), c(4), c(4)]);
        assert_eq!(norm, Cost { flops: 200 * 4, bytes: (400 + 16) * 4 });
        let dequantize = Op::Dequantize { format: QuantFormat::Q4_0, to: DType::F16 };
        assert_eq!(cost(dequantize, &[ty(DType::U8, &[3, 36])]), Cost { flops: 192 * 2, bytes: 108 + 384 });
        let scatter = [ty(DType::F32, &[7, 2]), ty(DType::I64, &[3]), ty(DType::F32, &[3, 2])];
        assert_eq!(cost(Op::Scatter, &scatter), Cost { flops: 0, bytes: 56 + 24 + 24 + 56 });
    }

    #[test]
    fn orders_and_lookups_cost_what_they_touch() {
        let ty = |dtype, dims: &[u64]| TensorType { dtype, shape: Shape::fixed(dims) };
        let (x, ids) = (ty(DType::F32, &[4, 100]), ty(DType::I64, &[4, 3]));
        // 100 elements are halved 7 times.
        let sorted = cost(Op::ArgSort { axis: -1, descending: true }, std::slice::from_ref(&x));
        assert_eq!(sorted, Cost { flops: 400 * 7, bytes: 400 * 4 + 400 * 8 });
        let taken = cost(Op::TakeAlong { axis: 1 }, &[x.clone(), ids.clone()]);
        assert_eq!(taken, Cost { flops: 0, bytes: 12 * 8 + 2 * 12 * 4 });
        let updates = ty(DType::F32, &[4, 3]);
        for (kind, flops) in [(ScatterKind::Set, 0), (ScatterKind::Add, 12)] {
            let scattered = cost(Op::ScatterAlong { axis: 1, kind }, &[x.clone(), ids.clone(), updates.clone()]);
            assert_eq!(scattered, Cost { flops, bytes: 2 * 400 * 4 + 12 * (8 + 4) });
        }
        let compared = cost(Op::Compare { kind: CompareKind::Lt }, &[x, ty(DType::F32, &[100])]);
        assert_eq!(compared, Cost { flops: 400, bytes: 400 * 4 + 100 * 4 + 400 });
        let random = Op::Random { kind: RandomKind::Bits, dtype: DType::I64, dims: vec![10.into()] };
        assert_eq!(cost(random, &[ty(DType::I64, &[2])]), Cost { flops: 20, bytes: 16 + 80 });
    }

    /// The cost of a graph of one op.
    fn cost(op: Op, inputs: &[TensorType]) -> Cost {
        let mut g = GraphBuilder::new("one");
        let ids = inputs.iter().enumerate().map(|(i, ty)| g.input(&i.to_string(), InputRole::Argument, ty.clone()));
        let ids: Vec<_> = ids.collect::<Result<_, _>>().unwrap();
        let y = g.push(op, &ids).unwrap();
        g.output("y", y);
        g.finish().unwrap().cost(y, &SIZES)
    }

    #[test]
    fn the_total_is_the_sum_and_saturates() {
        let g = model();
        let all = (0..g.nodes.len()).map(|i| g.cost(NodeId(i as u32), &SIZES));
        let (flops, bytes) = all.fold((0, 0), |(f, b), c| (f + c.flops, b + c.bytes));
        assert_eq!(g.total_cost(&SIZES), Cost { flops, bytes });
        assert_eq!(g.cost(NodeId(u32::MAX), &SIZES), Cost::default());
        let huge = Sizes { batch: u64::MAX, sequence: u64::MAX, position: u64::MAX };
        assert_eq!(g.total_cost(&huge), Cost { flops: u64::MAX, bytes: u64::MAX });
    }
}
