//! What must hold for any graph and for any bytes.

use std::collections::BTreeSet;

use genie_graph::{
    Annotation, ArgReduceKind, BinaryKind, CompareKind, CumulativeKind, DType, Dim, GraphBuilder, InputRole,
    LinearLayout, Modality, NodeId, Op, Phase, PoolKind, QuantFormat, RandomKind, ReduceKind, RopeStyle, ScatterKind,
    Shape, Sizes, Symbol, TensorType, UnaryKind, VerifiedGraph, VerifyError, decode, encode, infer, verify,
};
use proptest::prelude::*;

const B: Dim = Dim::Symbol(Symbol::Batch);
const S: Dim = Dim::Symbol(Symbol::Sequence);
const P: Dim = Dim::Symbol(Symbol::Position);

fn n(size: u64) -> Dim {
    Dim::Fixed(size)
}

/// What one step of the generator draws from.
type Step = (usize, [usize; 4], [u32; 4]);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..1000_usize, any::<[usize; 4]>(), any::<[u32; 4]>()), 1..60)
}

/// A graph of random ops on random nodes. Steps that inference refuses are left out, so that what is built is valid.
fn build(steps: &[Step]) -> VerifiedGraph {
    let mut g = GraphBuilder::new("random");
    let mut nodes = inputs(&mut g);
    for &(kind, picks, words) in steps {
        let [a, b, c, d] = words;
        let phases = [Phase::Unknown, Phase::Prefill, Phase::Decode, Phase::Vision];
        g.annotate(Annotation { phase: phases[a as usize % 4], modality: Modality::Text, ..Annotation::default() });
        let pick = |i: usize| nodes[picks[i] % nodes.len()];
        let ops = ops(words, g.ty(pick(0)));
        let op = ops[kind % ops.len()].clone();
        let made = if op.is_declared() {
            let dtype = DType::ALL[b as usize % 7];
            let dims = [if c % 9 == 8 { P } else { n(1 + u64::from(c % 9)) }, if d % 2 == 0 { B } else { n(8) }];
            g.create(op, TensorType::new(dtype, dims.into_iter().take(1 + d as usize % 2))).ok()
        } else if matches!(op, Op::Attention { .. } | Op::Sample | Op::Embedding { .. }) {
            // These fit few inputs: give them the ones they were made for.
            let (x, table, cache) = (nodes[0], nodes[2], nodes[6]);
            let made = match op {
                Op::Sample => {
                    let last = g.push(Op::Reduce { kind: ReduceKind::Max, axes: vec![1], keep_dims: false }, &[x]);
                    last.and_then(|logits| g.push(op, &[logits, nodes[7], nodes[8], nodes[5]]))
                }
                Op::Embedding { .. } => g.push(op, &[table, nodes[4]]),
                _ if d % 2 == 0 => g.push(op, &[x, x, x]),
                _ => g.push(op, &[x, x, x, cache]),
            };
            made.ok()
        } else {
            // The cache is for attention only.
            let read: Vec<NodeId> = (0..3).map(pick).filter(|&i| i != nodes[6]).collect();
            let (x, gain, image) = (nodes[0], nodes[3], nodes[10]);
            let tries: [&[NodeId]; 14] = [
                &read,
                &read[..read.len() / 2],
                &[x, nodes[1]],
                &[x, gain],
                &[x, gain, gain],
                &[x, nodes[5]],
                &[image],
                &[image, nodes[11]],
                &[image, gain, gain, gain, gain],
                &[nodes[12]],
                &[nodes[2], nodes[13], nodes[14]],
                &[nodes[9], nodes[9], nodes[9]],
                &[nodes[15]],
                &[nodes[13], nodes[13], nodes[13]],
            ];
            tries.into_iter().find_map(|inputs| g.push(op.clone(), inputs).ok())
        };
        nodes.extend(made);
    }
    g.output("y", nodes[nodes.len() - 1]);
    // Where two attentions drew one layer of the cache, only a prefix of the steps is valid.
    match g.finish() {
        Ok(graph) => graph,
        Err(VerifyError::CacheLayer { .. }) => build(&steps[..steps.len() / 2]),
        Err(e) => panic!("the generator made an invalid graph: {e}"),
    }
}

fn inputs(g: &mut GraphBuilder) -> Vec<NodeId> {
    let f32s = |dims: &[Dim]| TensorType::new(DType::F32, dims.iter().copied());
    let i32s = |dims: &[Dim]| TensorType::new(DType::I32, dims.iter().copied());
    [
        ("x", InputRole::Argument, f32s(&[B, S, n(8)])),
        ("w", InputRole::Weight, TensorType::new(DType::BF16, [n(8), n(8)])),
        ("table", InputRole::Weight, f32s(&[n(16), n(8)])),
        ("gain", InputRole::Weight, f32s(&[n(8)])),
        ("tokens", InputRole::Tokens, i32s(&[B, S])),
        ("positions", InputRole::Positions, i32s(&[B, S])),
        ("cache", InputRole::KvCache, TensorType::new(DType::F16, [P, n(4), n(2), n(2), n(64), n(4)])),
        ("real", InputRole::SamplingReal, f32s(&[B, n(2)])),
        ("int", InputRole::SamplingInt, TensorType::new(DType::I64, [B, n(2)])),
        ("flags", InputRole::Argument, TensorType::new(DType::Bool, [n(2), n(3), n(4)])),
        ("image", InputRole::Argument, f32s(&[B, n(8), n(5), n(4)])),
        ("kernel", InputRole::Weight, TensorType::new(DType::F16, [n(8), n(4), n(3), n(2)])),
        ("blocks", InputRole::Weight, TensorType::new(DType::U8, [n(8), n(34 * 18 * 20)])),
        ("ids", InputRole::Argument, TensorType::new(DType::I64, [n(3)])),
        ("rows", InputRole::Argument, f32s(&[n(3), n(8)])),
        ("key", InputRole::Argument, TensorType::new(DType::I64, [n(2)])),
    ]
    .into_iter()
    .map(|(name, role, ty)| g.input(name, role, ty).expect("the inputs are valid"))
    .collect()
}

/// One of each op but inputs, with attributes that are likely to fit a node of type `ty`.
fn ops([a, b, c, d]: [u32; 4], ty: &TensorType) -> Vec<Op> {
    let rank = ty.shape.rank().max(1) as u32;
    let axis = (a % (2 * rank)) as i32 - rank as i32;
    let dtype = DType::ALL[b as usize % 7];
    let mut perm: Vec<u32> = (0..ty.shape.rank() as u32).collect();
    perm.rotate_left(c as usize % rank as usize);
    let mut dims = ty.shape.0.clone();
    match c % 3 {
        0 => dims.push(Op::INFER),
        1 => dims.insert(0, n(1)),
        _ => {}
    }
    vec![
        Op::Zeros,
        Op::Ones,
        Op::Full { value: f64::from(a % 2) },
        Op::Arange { start: 0.0, step: f64::from(b % 3) },
        Op::Rand { seed: c.into() },
        Op::Randn { seed: d.into() },
        Op::Embedding { dtype: if b % 2 == 0 { DType::F32 } else { DType::F16 } },
        Op::MatMul,
        Op::Linear { layout: if a % 2 == 0 { LinearLayout::OutIn } else { LinearLayout::InOut } },
        Op::Add,
        Op::Sub,
        Op::Mul,
        Op::Div,
        Op::RmsNorm { eps: 1e-5 },
        Op::LayerNorm { eps: 1e-5 },
        Op::Rope { theta: 1e4, head_dim: 4, style: RopeStyle::Half },
        Op::Gelu { tanh: a % 2 == 0 },
        Op::Silu,
        Op::Relu,
        Op::Sigmoid,
        Op::Tanh,
        Op::Abs,
        Op::Neg,
        Op::Exp,
        Op::Log,
        Op::Sqrt,
        Op::Softmax { axis },
        Op::Attention { layer: a % 4, heads: 2, kv_heads: 2, head_dim: 4, scale: 0.5, causal: b % 2 == 0 },
        Op::Reshape { dims },
        Op::Transpose { perm },
        Op::Slice { axis, start: -i64::from(1 + b % 2), end: None, step: 1 },
        Op::Concat { axis },
        Op::Reduce { kind: ReduceKind::Max, axes: vec![axis], keep_dims: d % 2 == 0 },
        Op::ArgMax { axis },
        Op::Sample,
        Op::Cast { to: dtype },
        Op::Gather,
        Op::Dequantize { format: QuantFormat::ALL[a as usize % 3], to: dtype },
        Op::Conv2d {
            stride: [1 + a % 3, 1 + b % 3],
            padding: [a % 2, b % 3, c % 2, d % 3],
            dilation: [1; 2],
            groups: 2,
        },
        Op::BatchNorm { eps: 1e-5 },
        Op::Pool {
            kind: if a % 2 == 0 { PoolKind::Max } else { PoolKind::Average },
            kernel: [1 + a % 3, 1 + b % 3],
            stride: [1 + c % 3, 1 + d % 3],
            padding: [a % (1 + a % 3), 0, c % (1 + a % 3), 0],
            count_padding: b % 2 == 0,
        },
        Op::Scatter,
        Op::Unary { kind: one_of(UnaryKind::ALL, a) },
        Op::Binary { kind: one_of(BinaryKind::ALL, a) },
        Op::Compare { kind: one_of(CompareKind::ALL, a) },
        Op::Where,
        Op::Broadcast { dims: [&[n(2), n(1)][..c as usize % 3], &ty.shape.0].concat() },
        Op::Cumulative { kind: one_of(CumulativeKind::ALL, b), axis },
        Op::ArgSort { axis, descending: c % 2 == 0 },
        Op::TakeAlong { axis },
        Op::ScatterAlong { axis, kind: one_of(ScatterKind::ALL, b) },
        Op::ArgReduce { kind: one_of(ArgReduceKind::ALL, b), axis, keep_dims: c % 2 == 0 },
        Op::Random {
            kind: one_of(RandomKind::ALL, c),
            dtype: if c % 3 == 2 { DType::I64 } else { DType::BF16 },
            dims: ty.shape.0.clone(),
        },
        Op::Flip { axes: vec![axis] },
        Op::Pad {
            before: vec![0; ty.shape.rank()],
            after: ty.shape.0.iter().map(|d| if matches!(d, Dim::Fixed(_)) { c % 4 } else { 0 }).collect(),
            value: f64::from(a % 2),
        },
    ]
}

fn one_of<T: Copy>(all: &[T], word: u32) -> T {
    all[word as usize % all.len()]
}

/// Whatever it is given, a decoder and a verifier must return, and what they accept must be consistent.
fn survive(bytes: &[u8]) {
    let Ok(graph) = decode(bytes) else { return };
    assert_eq!(encode(&graph), bytes, "decoding lost something");
    let dumped = graph.dump();
    assert!(dumped.lines().count() > graph.nodes.len());
    let Ok(verified) = verify(graph) else { return };
    assert_eq!(verified.encode(), bytes);
    for sizes in SIZES {
        assert_sized(&verified, &sizes);
        let _ = verified.total_cost(&sizes);
    }
}

/// Kernels rely on it: with sizes that pass, every node has as many dimensions as its type says, and none of them is 0.
fn assert_sized(graph: &VerifiedGraph, sizes: &Sizes) {
    let passes = graph.check_sizes(sizes).is_ok();
    for (i, node) in graph.nodes.iter().enumerate() {
        let dims = graph.concrete(NodeId(i as u32), sizes);
        assert!(dims.as_ref().is_none_or(|d| d.len() == node.ty.shape.rank()));
        if passes {
            assert!(dims.as_ref().is_some_and(|d| d.iter().all(|&d| d > 0)), "%{i} is {dims:?} for {sizes:?}");
        }
    }
}

const SIZES: [Sizes; 5] = [
    Sizes { batch: 1, sequence: 1, position: 0 },
    Sizes { batch: 2, sequence: 3, position: 4 },
    Sizes { batch: 0, sequence: 3, position: 4 },
    Sizes { batch: 2, sequence: 0, position: 4 },
    Sizes { batch: u64::MAX, sequence: u64::MAX, position: u64::MAX },
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn valid_graphs_round_trip(steps in steps()) {
        let graph = build(&steps);
        let bytes = graph.encode();
        let again = decode(&bytes).expect("an encoding decodes");
        prop_assert_eq!(&again, &*graph);
        prop_assert_eq!(encode(&again), bytes);
        let again = verify(again).expect("a verified graph verifies again");
        prop_assert_eq!(again.hash(), graph.hash());
        prop_assert_eq!(again.inputs(), graph.inputs());
        for sizes in SIZES {
            assert_sized(&graph, &sizes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        survive(&bytes);
        let with_header = [b"GSRG\x01\0\0\0\0\0\0\0", &bytes[..]].concat();
        survive(&with_header);
    }

    #[test]
    fn mutated_graphs_never_panic(
        steps in steps(),
        changes in prop::collection::vec((any::<usize>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let mut bytes = build(&steps).encode();
        for (at, byte, kind) in changes {
            let at = at % bytes.len();
            match kind {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => { bytes.remove(at); }
                _ => bytes.insert(at, byte),
            }
        }
        survive(&bytes);
    }

    /// Unlike mutated bytes, which mostly end in the decoder, these all reach the verifier.
    #[test]
    fn mutated_nodes_never_panic(steps in steps(), at: usize, other: usize, what in 0..8_u8, word: u64) {
        let mut graph = build(&steps).into_graph();
        let count = graph.nodes.len();
        let (at, other) = (at % count, other % count);
        match what {
            0 => graph.nodes[at].op = graph.nodes[other].op.clone(),
            1 => graph.nodes[at].ty = graph.nodes[other].ty.clone(),
            2 => graph.nodes[at].inputs = graph.nodes[other].inputs.clone(),
            3 => graph.nodes[at].inputs.push(NodeId(word as u32)),
            4 => graph.nodes[at].ty.shape.0.push(Dim::Fixed(word)),
            5 => graph.nodes.swap(at, other),
            6 => { graph.nodes.remove(at); }
            _ => graph.nodes[at].annotation = graph.nodes[other].annotation,
        }
        survive(&encode(&graph));
        let _ = verify(graph);
    }

    /// Inference on its own stands any types and attributes, also ones that no verified graph has.
    #[test]
    fn inference_never_panics(
        types in prop::collection::vec((0..7_usize, prop::collection::vec(any_dim(), 0..10)), 0..5),
        kind: usize,
        words: [u32; 4],
        wild: (u32, u32, i64, u64),
    ) {
        let types: Vec<_> = types
            .into_iter()
            .map(|(dtype, dims)| TensorType { dtype: DType::ALL[dtype], shape: Shape(dims) })
            .collect();
        let default = TensorType { dtype: DType::F32, shape: Shape::default() };
        let mut ops = ops(words, types.first().unwrap_or(&default));
        let (x, y, start, step) = wild;
        ops.extend([
            Op::Slice { axis: x as i32 % 9, start, end: Some(step as i64), step },
            Op::Transpose { perm: vec![x, y, x % 3] },
            Op::Reshape { dims: vec![Dim::Fixed(step), Op::INFER, B] },
            Op::Reduce { kind: ReduceKind::Mean, axes: vec![x as i32, y as i32], keep_dims: true },
            Op::Attention { layer: x, heads: x, kv_heads: y, head_dim: x, scale: f32::from_bits(y), causal: true },
            Op::Rope { theta: f32::from_bits(x), head_dim: y, style: RopeStyle::Half },
            Op::Conv2d { stride: [x, y], padding: [y, x, x, y], dilation: [y % 4, x], groups: y % 3 },
            Op::Conv2d { stride: [1; 2], padding: [x; 4], dilation: [1; 2], groups: 1 },
            Op::Pool {
                kind: PoolKind::Max,
                kernel: [x, y],
                stride: [y, 1],
                padding: [x / 2, y / 2, x / 3, y / 3],
                count_padding: true,
            },
            Op::BatchNorm { eps: f32::from_bits(y) },
            Op::Broadcast { dims: vec![Dim::Fixed(step), B, Dim::Fixed(x.into())] },
            Op::Random { kind: RandomKind::Bits, dtype: DType::I64, dims: vec![Dim::Fixed(step); x as usize % 10] },
            Op::Flip { axes: vec![x as i32, y as i32 % 9] },
            Op::Pad { before: vec![x, y % 3, 0], after: vec![y, 0, x], value: f64::from_bits(step) },
        ]);
        let inputs: Vec<&TensorType> = types.iter().collect();
        if let Ok(ty) = infer(&ops[kind % ops.len()], &inputs) {
            prop_assert_eq!(ty.check(), Ok(()));
        }
    }
}

fn any_dim() -> impl Strategy<Value = Dim> {
    prop_oneof![
        (1..5_u64).prop_map(Dim::Fixed),
        any::<u64>().prop_map(Dim::Fixed),
        Just(Dim::Fixed(0)),
        Just(Op::INFER),
        (0..3_usize).prop_map(|i| Dim::Symbol(Symbol::ALL[i])),
    ]
}

/// The properties above are only worth something if the generator makes every op.
#[test]
fn the_generator_reaches_every_op() {
    let mut seen = BTreeSet::new();
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    for _ in 0..400 {
        let steps: Vec<Step> = (0..30)
            .map(|_| (next() as usize % 1000, [(); 4].map(|()| next() as usize), [(); 4].map(|()| next())))
            .collect();
        seen.extend(build(&steps).nodes.iter().map(|node| node.op.name()));
    }
    let all: BTreeSet<_> = ops([0; 4], &TensorType { dtype: DType::F32, shape: Shape::default() })
        .iter()
        .map(Op::name)
        .chain(["input"])
        .collect();
    assert_eq!(all.len(), 56);
    assert_eq!(seen, all, "missing: {:?}", all.difference(&seen).collect::<Vec<_>>());
}
