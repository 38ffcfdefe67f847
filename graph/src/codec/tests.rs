use super::*;
use crate::example::{B, S, model, n};
use crate::limits::{MAX_NAME_BYTES, MAX_NODES};
use crate::{
    Annotation, ArgReduceKind, BinaryKind, CompareKind, CumulativeKind, DType, Graph, InputRole, LinearLayout,
    Modality, Node, NodeId, Op, Output, Phase, PoolKind, QuantFormat, RandomKind, ReduceKind, Residency, RopeStyle,
    ScatterKind, TensorType, UnaryKind,
};

/// One of each op, in the order of the codes.
fn every_op() -> Vec<Op> {
    vec![
        Op::Input { name: "ü".to_owned(), role: InputRole::SamplingInt },
        Op::Zeros,
        Op::Ones,
        Op::Full { value: -0.0 },
        Op::Arange { start: 1.5, step: -2.0 },
        Op::Rand { seed: u64::MAX },
        Op::Randn { seed: 1 },
        Op::Embedding { dtype: DType::BF16 },
        Op::MatMul,
        Op::Linear { layout: LinearLayout::InOut },
        Op::Add,
        Op::Sub,
        Op::Mul,
        Op::Div,
        Op::RmsNorm { eps: 1e-6 },
        Op::LayerNorm { eps: 1e-5 },
        Op::Rope { theta: 1e4, head_dim: 64, style: RopeStyle::Interleaved },
        Op::Gelu { tanh: true },
        Op::Silu,
        Op::Relu,
        Op::Sigmoid,
        Op::Tanh,
        Op::Abs,
        Op::Neg,
        Op::Exp,
        Op::Log,
        Op::Sqrt,
        Op::Softmax { axis: -1 },
        Op::Attention { layer: 3, heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, causal: true },
        Op::Reshape { dims: vec![B, S, Op::INFER, n(7)] },
        Op::Transpose { perm: vec![2, 0, 1] },
        Op::Slice { axis: 1, start: -4, end: Some(-1), step: 2 },
        Op::Concat { axis: 2 },
        Op::Reduce { kind: ReduceKind::Prod, axes: vec![0, -1], keep_dims: true },
        Op::ArgMax { axis: -1 },
        Op::Sample,
        Op::Cast { to: DType::Bool },
        Op::Gather,
        Op::Dequantize { format: QuantFormat::Q4_1, to: DType::F16 },
        Op::Conv2d { stride: [1, 2], padding: [3, 4, 5, u32::MAX], dilation: [6, 7], groups: 8 },
        Op::BatchNorm { eps: 1e-3 },
        Op::Pool {
            kind: PoolKind::Average,
            kernel: [9, 10],
            stride: [11, 12],
            padding: [1, 2, 3, 4],
            count_padding: true,
        },
        Op::Scatter,
        Op::Unary { kind: UnaryKind::IsFinite },
        Op::Binary { kind: BinaryKind::ShiftRight },
        Op::Compare { kind: CompareKind::Ge },
        Op::Where,
        Op::Broadcast { dims: vec![B, n(3), S] },
        Op::Cumulative { kind: CumulativeKind::Min, axis: -2 },
        Op::ArgSort { axis: 1, descending: true },
        Op::TakeAlong { axis: -1 },
        Op::ScatterAlong { axis: 3, kind: ScatterKind::Min },
        Op::ArgReduce { kind: ArgReduceKind::Min, axis: -3, keep_dims: true },
        Op::Random { kind: RandomKind::Bits, dtype: DType::I64, dims: vec![n(5), B] },
        Op::Flip { axes: vec![0, -1] },
        Op::Pad { before: vec![1, 0], after: vec![2, u32::MAX], value: -1.5 },
    ]
}

fn graph_of(op: Op) -> Graph {
    let ty = TensorType::new(DType::I64, [B, n(3)]);
    let annotation = Annotation { phase: Phase::Fusion, residency: Residency::Output, modality: Modality::Audio };
    Graph {
        name: "g".to_owned(),
        nodes: vec![Node { op, inputs: vec![NodeId(0), NodeId(u32::MAX)], ty, annotation }],
        outputs: vec![Output { name: "y".to_owned(), node: NodeId(7) }],
    }
}

/// Where the first node of [`graph_of`] starts: header, the name "g", the number of nodes.
const NODE: usize = 8 + 5 + 4;

#[test]
fn every_op_comes_back_as_it_was() {
    let ops = every_op();
    assert_eq!(ops.len(), OPS.len());
    for (code, op) in ops.into_iter().enumerate() {
        assert_eq!(OPS[code], op.name());
        let graph = graph_of(op);
        let bytes = encode(&graph);
        assert_eq!(usize::from(bytes[NODE]), code);
        assert_eq!(decode(&bytes), Ok(graph));
    }
    let open = graph_of(Op::Slice { axis: 0, start: 1, end: None, step: 1 });
    assert_eq!(decode(&encode(&open)), Ok(open));
}

#[test]
fn a_graph_cut_anywhere_is_refused() {
    for op in every_op() {
        let bytes = encode(&graph_of(op));
        for length in 0..bytes.len() {
            let e = decode(&bytes[..length]).unwrap_err();
            assert!(matches!(e, DecodeError::Truncated { offset, .. } if offset == length), "{length}: {e}");
        }
    }
}

#[test]
fn each_malformed_field_has_its_error() {
    let good = encode(&graph_of(Op::Gelu { tanh: true }));
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        decode(&bytes).unwrap_err()
    };
    let (node, op) = (NodeId(0), "gelu");
    assert_eq!(with(0, b'X'), DecodeError::Magic);
    assert_eq!(with(4, 2), DecodeError::Version { found: 2 });
    assert_eq!(with(7, 1), DecodeError::Reserved { offset: 6 });
    assert_eq!(with(12, 0xFF), DecodeError::Utf8 { offset: 12 });
    assert_eq!(with(NODE, 56), DecodeError::UnknownOp { node, code: 56 });
    assert_eq!(with(NODE, 255), DecodeError::UnknownOp { node, code: 255 });
    assert_eq!(with(NODE + 1, 0), DecodeError::AttributeCount { node, op, found: 0 });
    assert_eq!(with(NODE + 1, 2), DecodeError::AttributeCount { node, op, found: 2 });
    let wrong = DecodeError::AttributeType { node, op, attribute: "tanh", expected: "bool", found: "f32" };
    assert_eq!(with(NODE + 2, 6), wrong);
    assert_eq!(wrong.to_string(), "node %0 (gelu): attribute tanh is f32 but must be bool");
    assert!(matches!(with(NODE + 2, 99), DecodeError::AttributeType { found: "no known type", .. }));
    assert_eq!(with(NODE + 3, 2), DecodeError::AttributeValue { node, op, attribute: "tanh", found: 2 });
    assert!(matches!(with(NODE + 4, 65), DecodeError::Limit { what: "inputs of one node", max: 64, found: 65, .. }));
    let ty = NODE + 4 + 4 + 8;
    assert_eq!(with(ty, 7), DecodeError::Code { what: "element type", found: 7, offset: ty });
    assert!(matches!(with(ty + 1, 9), DecodeError::Limit { what: "dimensions", max: 8, found: 9, .. }));
    assert!(matches!(with(ty + 5, 2), DecodeError::Code { what: "kind of dimension", found: 2, .. }));
    assert!(matches!(with(ty + 6, 3), DecodeError::Code { what: "symbol", found: 3, .. }));
    let annotation = ty + 5 + 2 + 9;
    for (i, what, unknown) in [(0, "phase", 5), (1, "residency", 4), (2, "modality", 4)] {
        let offset = annotation + i;
        assert_eq!(with(offset, unknown), DecodeError::Code { what, found: unknown, offset });
    }
    let longer = [&good[..], &[0, 0]].concat();
    assert_eq!(decode(&longer), Err(DecodeError::Trailing { count: 2 }));
}

/// A list that is part of an op's meaning has its length, neither more nor less.
#[test]
fn lists_of_another_length_are_refused() {
    let op = Op::Conv2d { stride: [1, 1], padding: [0; 4], dilation: [1, 1], groups: 1 };
    let good = encode(&graph_of(op));
    // Op code, number of attributes, then the list's type, its length and two numbers.
    let at = NODE + 3;
    assert_eq!(good[at..at + 4], 2_u32.to_le_bytes());
    for (found, numbers) in [(0, &[][..]), (1, &[1]), (3, &[1, 1, 1]), (8, &[1; 8])] {
        let mut bytes = good[..at].to_vec();
        bytes.extend((found as u32).to_le_bytes());
        bytes.extend(numbers.iter().flat_map(|n: &u32| n.to_le_bytes()));
        bytes.extend(&good[at + 12..]);
        let (node, op, attribute) = (NodeId(0), "conv2d", "stride");
        let wrong = DecodeError::AttributeLength { node, op, attribute, expected: 2, found };
        assert_eq!(decode(&bytes), Err(wrong));
    }
    let mut bytes = good;
    bytes[at] = 9;
    assert!(matches!(decode(&bytes), Err(DecodeError::Limit { what: "values in an attribute", found: 9, .. })));
    bytes[NODE + 2] = tag::I32S;
    assert!(matches!(decode(&bytes), Err(DecodeError::AttributeType { attribute: "stride", .. })));
    let pool = Op::Pool { kind: PoolKind::Max, kernel: [1; 2], stride: [1; 2], padding: [0; 4], count_padding: false };
    let mut bytes = encode(&graph_of(pool));
    assert_eq!(bytes[NODE + 2..NODE + 4], [tag::CODE, 0]);
    bytes[NODE + 3] = 2;
    assert!(matches!(decode(&bytes), Err(DecodeError::AttributeValue { attribute: "kind", found: 2, .. })));
}

#[test]
fn counts_are_limited_before_anything_is_allocated() {
    let mut bytes = encode(&Graph::default());
    let at = 8 + 4;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(decode(&bytes), Err(DecodeError::Limit { what: "nodes", max: MAX_NODES, found: u32::MAX, .. })));
    bytes[at..at + 4].copy_from_slice(&(MAX_NODES as u32).to_le_bytes());
    assert!(matches!(decode(&bytes), Err(DecodeError::Truncated { wanted, .. }) if wanted == MAX_NODES * 14));
    let long = Graph { name: "x".repeat(MAX_NAME_BYTES + 1), ..Graph::default() };
    assert!(matches!(decode(&encode(&long)), Err(DecodeError::Limit { max: MAX_NAME_BYTES, found: 257, .. })));
    let long = Graph { name: "x".repeat(MAX_NAME_BYTES), ..Graph::default() };
    assert_eq!(decode(&encode(&long)), Ok(long));
    assert!(matches!(
        decode(&encode(&graph_of(Op::Transpose { perm: vec![0; 9] }))),
        Err(DecodeError::Limit { what: "values in an attribute", max: 8, found: 9, .. })
    ));
}

#[test]
fn floats_keep_their_bits() {
    let bits = 0x7FF8_0000_DEAD_BEEF;
    let bytes = encode(&graph_of(Op::Full { value: f64::from_bits(bits) }));
    let Op::Full { value } = decode(&bytes).unwrap().nodes[0].op else { panic!("another op") };
    assert_eq!(value.to_bits(), bits);
}

#[test]
fn bytes_are_as_documented() {
    let ty = TensorType::new(DType::F16, [B, n(258)]);
    let x = Node {
        op: Op::Input { name: "x".to_owned(), role: InputRole::Argument },
        inputs: Vec::new(),
        ty: ty.clone(),
        annotation: Annotation::default(),
    };
    let y = Node {
        op: Op::Softmax { axis: -1 },
        inputs: vec![NodeId(0)],
        ty,
        annotation: Annotation { phase: Phase::Decode, residency: Residency::Output, modality: Modality::Text },
    };
    let graph = Graph {
        name: "ab".to_owned(),
        nodes: vec![x, y],
        outputs: vec![Output { name: "y".to_owned(), node: NodeId(1) }],
    };
    let parts: [&[u8]; 13] = [
        b"GSRG\x01\0\0\0",
        b"\x02\0\0\0ab",
        b"\x02\0\0\0",
        b"\0\x02\x09\x01\0\0\0x\x08\0", // input, 2 attributes: text "x", code 0
        b"\0\0\0\0",
        b"\x01\x02\0\0\0\x01\0\0\x02\x01\0\0\0\0\0\0", // f16, 2 dims: symbol 0, fixed 258
        b"\0\0\0",
        b"\x1b\x01\x03\xff\xff\xff\xff", // softmax, 1 attribute: i32 -1
        b"\x01\0\0\0\0\0\0\0",
        b"\x01\x02\0\0\0\x01\0\0\x02\x01\0\0\0\0\0\0",
        b"\x02\x03\x01",
        b"\x01\0\0\0",
        b"\x01\0\0\0y\x01\0\0\0",
    ];
    assert_eq!(encode(&graph), parts.concat());
    assert_eq!(decode(&parts.concat()), Ok(graph));
}

/// Servers and clients of different builds name programs by this: a change of the format must raise its version.
#[test]
fn the_format_is_pinned() {
    let graph = model();
    assert_eq!(graph.encode().len(), 2156);
    assert_eq!(graph.hash().to_string(), "e7e23b7d92e002a6777b9c0c3bba3a98bae5b64c5868d72d2167dfa5e05769af");
    let hash = |ops: &[Op]| {
        let nodes = ops.iter().flat_map(|op| graph_of(op.clone()).nodes).collect();
        blake3::hash(&encode(&Graph { nodes, ..graph_of(Op::Zeros) })).to_string()
    };
    let ops = every_op();
    // The ops that the format began with, then those that were appended.
    assert_eq!(hash(&ops[..38]), "16657752d7e5fdb0fdddd9ee12ddeb1941463f3a12871a8e7fb48006ec109b45");
    assert_eq!(hash(&ops[38..43]), "f79183792b04cbc450fdf7cd6f52d8bf9ccc29ae7f51859d8498bcf60ad803f8");
    assert_eq!(hash(&ops[43..56]), "7934b911168248fa496193282ecf312e163af04c56992e5b297769dab74e6d66");
}

/// A kind's code is its place in the list that documents it.
#[test]
fn every_kind_comes_back_as_it_was() {
    let ops = (UnaryKind::ALL.iter().map(|&kind| Op::Unary { kind }))
        .chain(BinaryKind::ALL.iter().map(|&kind| Op::Binary { kind }))
        .chain(CompareKind::ALL.iter().map(|&kind| Op::Compare { kind }))
        .chain(CumulativeKind::ALL.iter().map(|&kind| Op::Cumulative { kind, axis: 0 }))
        .chain(ScatterKind::ALL.iter().map(|&kind| Op::ScatterAlong { axis: 0, kind }))
        .chain(ArgReduceKind::ALL.iter().map(|&kind| Op::ArgReduce { kind, axis: 0, keep_dims: false }))
        .chain(RandomKind::ALL.iter().map(|&kind| Op::Random { kind, dtype: DType::F32, dims: Vec::new() }));
    for op in ops {
        let graph = graph_of(op);
        assert_eq!(decode(&encode(&graph)), Ok(graph));
    }
    for (op, first_unknown) in [
        (Op::Unary { kind: UnaryKind::Sin }, 33),
        (Op::Binary { kind: BinaryKind::Pow }, 15),
        (Op::Compare { kind: CompareKind::Eq }, 6),
    ] {
        let (name, mut bytes) = (op.name(), encode(&graph_of(op)));
        assert_eq!(bytes[NODE + 2..NODE + 4], [tag::CODE, 0]);
        bytes[NODE + 3] = first_unknown;
        let found = first_unknown;
        let wrong = DecodeError::AttributeValue { node: NodeId(0), op: name, attribute: "kind", found };
        assert_eq!(decode(&bytes), Err(wrong));
    }
}
