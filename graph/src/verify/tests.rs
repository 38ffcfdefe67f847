use super::*;
use crate::example::{B, P, S, model, n};
use crate::graph::Output;
use crate::infer::infer;
use crate::size::Sizes;
use crate::types::{Annotation, Phase};

fn f32s(dims: &[Dim]) -> TensorType {
    TensorType::new(DType::F32, dims.iter().copied())
}

fn node(op: Op, inputs: &[u32], ty: TensorType) -> Node {
    Node { op, inputs: inputs.iter().map(|&i| NodeId(i)).collect(), ty, annotation: Annotation::default() }
}

fn input(name: &str, role: InputRole, ty: TensorType) -> Node {
    let residency = match role {
        InputRole::Weight => Residency::Weight,
        InputRole::KvCache => Residency::KvCache,
        _ => Residency::Activation,
    };
    let op = Op::Input { name: name.to_owned(), role };
    Node { annotation: Annotation { residency, ..Annotation::default() }, ..node(op, &[], ty) }
}

fn argument(name: &str, ty: TensorType) -> Node {
    input(name, InputRole::Argument, ty)
}

fn refused(nodes: Vec<Node>) -> VerifyError {
    verify(Graph { name: String::new(), nodes, outputs: Vec::new() }).expect_err("must be refused")
}

fn accepted(nodes: Vec<Node>) -> bool {
    verify(Graph { name: String::new(), nodes, outputs: Vec::new() }).is_ok()
}

#[test]
fn a_model_passes_and_says_what_it_wants() {
    let g = model();
    let roles = |role| g.inputs().iter().filter(|i| i.role == role).count();
    assert_eq!((roles(InputRole::Weight), roles(InputRole::KvCache), roles(InputRole::Tokens)), (15, 1, 1));
    assert!(g.inputs().windows(2).all(|w| w[0].node < w[1].node));
    assert!(g.inputs().iter().all(|i| g.nodes[i.node.0 as usize].ty == i.ty));
    assert_eq!(g.phase(), Phase::Decode);
    assert_eq!(verify(g.clone().into_graph()), Ok(g));
}

#[test]
fn a_cycle_is_told_from_a_wrong_order() {
    let ty = f32s(&[n(2)]);
    let neg = |i: u32| node(Op::Neg, &[i], ty.clone());
    let x = || argument("x", ty.clone());
    assert_eq!(refused(vec![neg(0)]), VerifyError::Cycle { node: NodeId(0), op: "neg" });
    let e = refused(vec![x(), node(Op::Add, &[0, 3], ty.clone()), neg(1), neg(2), neg(3)]);
    assert!(matches!(e, VerifyError::Cycle { node: NodeId(1..=3), .. }), "{e}");
    // A node that hangs on a cycle, and one that a cycle hangs on, are not on it.
    let e = refused(vec![neg(2), x(), node(Op::Add, &[1, 2], ty.clone())]);
    assert_eq!(e, VerifyError::Cycle { node: NodeId(2), op: "add" });
    assert_eq!(refused(vec![neg(1), x()]), VerifyError::Order { node: NodeId(0), op: "neg", input: NodeId(1) });
    assert_eq!(refused(vec![neg(7)]), VerifyError::UnknownInput { node: NodeId(0), op: "neg", input: NodeId(7) });
    assert!(matches!(refused(vec![neg(u32::MAX)]), VerifyError::UnknownInput { .. }));
}

#[test]
fn limits_hold() {
    assert_eq!(refused(Vec::new()), VerifyError::Empty);
    let ty = f32s(&[n(1)]);
    let zeros = || node(Op::Zeros, &[], ty.clone());
    let many = |count| (0..count).map(|_| zeros()).collect::<Vec<_>>();
    assert!(accepted(many(MAX_NODES)));
    assert!(matches!(refused(many(MAX_NODES + 1)), VerifyError::TooMany { what: "nodes", .. }));
    let wide = |count: usize| vec![zeros(), node(Op::Concat { axis: 0 }, &vec![0; count], f32s(&[n(count as u64)]))];
    assert!(accepted(wide(MAX_NODE_INPUTS)));
    assert!(matches!(
        refused(wide(MAX_NODE_INPUTS + 1)),
        VerifyError::TooManyInputs { node: NodeId(1), found: 65, .. }
    ));
    let named = |length: usize| vec![argument(&"x".repeat(length), ty.clone())];
    assert!(accepted(named(MAX_NAME_BYTES)));
    assert!(matches!(refused(named(MAX_NAME_BYTES + 1)), VerifyError::InputName { found: 257, .. }));
    assert!(matches!(refused(named(0)), VerifyError::InputName { found: 0, .. }));
    let g = Graph { name: "x".repeat(257), nodes: vec![zeros()], outputs: Vec::new() };
    assert_eq!(verify(g), Err(VerifyError::GraphName { found: 257 }));
    let outputs = (0..=MAX_OUTPUTS).map(|i| Output { name: i.to_string(), node: NodeId(0) }).collect();
    let g = Graph { name: String::new(), nodes: vec![zeros()], outputs };
    assert!(matches!(verify(g), Err(VerifyError::TooMany { what: "outputs", .. })));
}

/// The largest graph there can be, every node reading 64 others, all on one cycle: linear work, or this never ends.
#[test]
fn the_largest_hostile_graph_is_refused_quickly() {
    let count = MAX_NODES as u32;
    let nodes = (0..count)
        .map(|i| {
            let inputs: Vec<u32> = (1..=64).map(|k| (i + k) % count).collect();
            node(Op::Concat { axis: 0 }, &inputs, f32s(&[n(1)]))
        })
        .collect();
    assert!(matches!(refused(nodes), VerifyError::Cycle { .. }));
}

#[test]
fn impossible_types_are_refused() {
    for dims in [&[n(0)][..], &[n(-1_i64 as u64)], &[n(1); 9], &[n(1 << 40), n(1 << 40)], &[n(1 << 41)], &[B, n(0)]] {
        let e = refused(vec![argument("x", f32s(dims))]);
        assert!(matches!(e, VerifyError::Type { node: NodeId(0), op: "input", .. }), "{e}");
        assert!(matches!(refused(vec![node(Op::Zeros, &[], f32s(dims))]), VerifyError::Type { op: "zeros", .. }));
    }
    let e = refused(vec![argument("x", f32s(&[n(2), n(0)]))]);
    assert_eq!(e.to_string(), "node %0 (input): dimension 1 of [2, 0] is 0; a graph's tensors must not be empty");
}

#[test]
fn declared_types_must_be_the_inferred_ones() {
    let x = argument("x", f32s(&[B, n(2)]));
    let e = refused(vec![x.clone(), node(Op::Neg, &[0], f32s(&[B, n(3)]))]);
    assert!(matches!(&e, VerifyError::Declared { node: NodeId(1), op: "neg", .. }));
    assert_eq!(e.to_string(), "node %1 (neg) is declared to be f32 [batch, 3], but makes f32 [batch, 2]");
    let e = refused(vec![x.clone(), node(Op::Neg, &[0, 0], f32s(&[B, n(2)]))]);
    assert_eq!(e.to_string(), "node %1 (neg): takes 1 input(s) but has 2");
    let e = refused(vec![x, node(Op::Zeros, &[0], f32s(&[n(1)]))]);
    assert!(matches!(e, VerifyError::Op { op: "zeros", source: InferError::Arity { .. }, .. }));
}

#[test]
fn creation_ops_hold_their_values() {
    let of = |op: Op, dtype, dims: &[Dim]| accepted(vec![node(op, &[], TensorType::new(dtype, dims.iter().copied()))]);
    let full = |value, dtype| of(Op::Full { value }, dtype, &[B]);
    assert!(full(f64::NEG_INFINITY, DType::F16) && full(f64::NAN, DType::F32));
    assert!(full(255.9, DType::U8) && !full(256.0, DType::U8) && full(-0.5, DType::U8) && !full(-1.0, DType::U8));
    assert!(full(2147483647.5, DType::I32) && !full(2147483648.0, DType::I32) && !full(f64::NAN, DType::I32));
    assert!(full(-9.3e17, DType::I64) && !full(9_223_372_036_854_775_808.0, DType::I64));
    assert!(full(1.0, DType::Bool) && !full(0.5, DType::Bool));
    let arange = |start, step, dtype, dims: &[Dim]| of(Op::Arange { start, step }, dtype, dims);
    assert!(arange(0.0, 1.0, DType::U8, &[n(256)]) && !arange(0.0, 1.0, DType::U8, &[n(257)]));
    assert!(arange(0.0, 1.0, DType::I32, &[S]) && !arange(-1.0, 1.0, DType::U8, &[S]));
    assert!(!arange(0.0, 1.0, DType::Bool, &[n(1)]) && !arange(0.0, 1.0, DType::F32, &[n(1), n(1)]));
    assert!(!arange(f64::NAN, 1.0, DType::F32, &[n(1)]) && !arange(0.0, f64::INFINITY, DType::F32, &[n(1)]));
    for op in [Op::Rand { seed: 0 }, Op::Randn { seed: 0 }] {
        assert!(of(op.clone(), DType::BF16, &[]) && !of(op, DType::I32, &[]));
    }
}

#[test]
fn roles_have_their_types() {
    let i32s = TensorType::new(DType::I32, [B, S]);
    let cases = [
        (InputRole::Weight, f32s(&[n(2)]), f32s(&[B])),
        (InputRole::KvCache, f32s(&[P, n(1), n(2), n(1), n(64), n(8)]), f32s(&[P, n(1), n(2), n(1), n(63), n(8)])),
        (InputRole::Tokens, i32s.clone(), TensorType::new(DType::I64, [B, S])),
        (InputRole::Positions, i32s, TensorType::new(DType::I32, [S, B])),
        (InputRole::SamplingReal, f32s(&[B, n(2)]), f32s(&[B, n(3)])),
        (InputRole::SamplingInt, TensorType::new(DType::I64, [B, n(2)]), TensorType::new(DType::I32, [B, n(2)])),
    ];
    for (role, good, bad) in cases {
        assert!(accepted(vec![input("x", role, good.clone())]), "{role}");
        assert!(matches!(refused(vec![input("x", role, bad)]), VerifyError::RoleType { .. }), "{role}");
        let twice = vec![input("x", role, good.clone()), input("y", role, good)];
        if matches!(role, InputRole::Weight | InputRole::KvCache) {
            assert!(accepted(twice));
        } else {
            let e = refused(twice);
            assert!(matches!(e, VerifyError::DuplicateRole { node: NodeId(1), .. }), "{e}");
        }
    }
}

#[test]
fn residency_follows_the_role() {
    let annotated = |mut node: Node, residency| {
        node.annotation.residency = residency;
        vec![node]
    };
    let weight = || input("w", InputRole::Weight, f32s(&[n(1)]));
    let zeros = || node(Op::Zeros, &[], f32s(&[n(1)]));
    assert!(accepted(annotated(zeros(), Residency::Output)));
    assert!(matches!(refused(annotated(zeros(), Residency::Weight)), VerifyError::Residency { .. }));
    assert!(matches!(refused(annotated(zeros(), Residency::KvCache)), VerifyError::Residency { .. }));
    assert!(matches!(refused(annotated(weight(), Residency::Activation)), VerifyError::Residency { .. }));
}

#[test]
fn names_are_unique() {
    let x = argument("x", f32s(&[n(1)]));
    let e = refused(vec![x.clone(), x.clone()]);
    assert_eq!(e, VerifyError::DuplicateInput { node: NodeId(1), op: "input", name: "x".to_owned() });
    let with = |names: &[&str], id: u32| {
        let outputs = names.iter().map(|&n| Output { name: n.to_owned(), node: NodeId(id) }).collect();
        verify(Graph { name: String::new(), nodes: vec![x.clone()], outputs })
    };
    assert!(with(&["a", "b"], 0).is_ok());
    assert_eq!(with(&["a", "a"], 0), Err(VerifyError::DuplicateOutput { name: "a".to_owned() }));
    assert!(matches!(with(&["a"], 1), Err(VerifyError::Output { problem: "not in the graph", .. })));
    assert_eq!(with(&[""], 0), Err(VerifyError::OutputName { node: NodeId(0), found: 0 }));
}

#[test]
fn caches_are_only_for_attention() {
    let cache = input("c", InputRole::KvCache, f32s(&[P, n(2), n(2), n(1), n(64), n(4)]));
    let fake = argument("f", cache.ty.clone());
    let x = argument("x", f32s(&[B, S, n(4)]));
    let attend = |layer, cache: u32| {
        let op = Op::Attention { layer, heads: 1, kv_heads: 1, head_dim: 4, scale: 0.5, causal: true };
        node(op, &[0, 0, 0, cache], f32s(&[B, S, n(4)]))
    };
    assert!(accepted(vec![x.clone(), cache.clone(), attend(0, 1), attend(1, 1)]));
    assert_eq!(
        refused(vec![x.clone(), cache.clone(), attend(1, 1), attend(1, 1)]),
        VerifyError::CacheLayer { node: NodeId(3), op: "attention", cache: NodeId(1), layer: 1 }
    );
    let e = refused(vec![x.clone(), fake, attend(0, 1)]);
    assert_eq!(e, VerifyError::Cache { node: NodeId(2), op: "attention", input: NodeId(1), place: 3 });
    let e = refused(vec![x, cache.clone(), node(Op::Neg, &[1], cache.ty.clone())]);
    assert_eq!(e, VerifyError::Cache { node: NodeId(2), op: "neg", input: NodeId(1), place: 0 });
    let outputs = vec![Output { name: "y".to_owned(), node: NodeId(0) }];
    let e = verify(Graph { name: String::new(), nodes: vec![cache], outputs });
    assert!(matches!(e, Err(VerifyError::Output { .. })));
}

#[test]
fn sizes_are_checked_and_made_concrete() {
    let g = model();
    let sizes = |batch, sequence, position| Sizes { batch, sequence, position };
    let cache = g.inputs().iter().find(|i| i.role == InputRole::KvCache).unwrap().node;
    let blocks = |s: Sizes| g.concrete(cache, &s).map(|d| d[0]);
    assert_eq!(blocks(sizes(1, 1, 0)), Some(1));
    assert_eq!(blocks(sizes(1, 1, 63)), Some(1));
    assert_eq!(blocks(sizes(1, 1, 64)), Some(2));
    assert_eq!(blocks(sizes(1, 1, u64::MAX)), None);
    let logits = g.outputs[0].node;
    assert_eq!(g.concrete(logits, &sizes(3, 5, 0)), Some(vec![3, 16]));
    assert_eq!(g.concrete(logits, &sizes(u64::MAX, 5, 0)), None);
    assert_eq!(g.concrete(NodeId(u32::MAX), &sizes(1, 1, 0)), None);
    assert_eq!(g.check_sizes(&sizes(2, 7, 100)), Ok(()));
    assert_eq!(g.check_sizes(&sizes(0, 7, 100)), Err(SizeError::Zero(Symbol::Batch)));
    assert_eq!(g.check_sizes(&sizes(1, 0, 100)), Err(SizeError::Zero(Symbol::Sequence)));
    assert!(matches!(g.check_sizes(&sizes(1 << 40, 1 << 40, 0)), Err(SizeError::Overflow { .. })));

    let slice = Op::Slice { axis: -2, start: -4, end: None, step: 1 };
    let x = argument("x", f32s(&[B, S, n(2)]));
    let ty = infer(&slice, &[&x.ty]).unwrap();
    let g = verify(Graph { name: String::new(), nodes: vec![x, node(slice, &[0], ty)], outputs: Vec::new() }).unwrap();
    assert_eq!(g.check_sizes(&sizes(1, 4, 0)), Ok(()));
    let short = SizeError::Slice { node: NodeId(1), op: "slice", symbol: Symbol::Sequence, wanted: 4, available: 3 };
    assert_eq!(g.check_sizes(&sizes(1, 3, 0)), Err(short));
}

/// A graph without a cache ran at position 0, and its tensors along the position had no elements: kernels that rely on there
/// being one read outside of them, or wrote nothing.
#[test]
fn a_tensor_along_an_empty_cache_is_refused() {
    let at = |sequence, position| Sizes { batch: 1, sequence, position };
    let past = |dims: &[Dim]| {
        let zeros = node(Op::Zeros, &[], f32s(dims));
        verify(Graph { name: String::new(), nodes: vec![zeros], outputs: Vec::new() }).unwrap()
    };
    for dims in [&[P][..], &[B, P], &[P, n(4)]] {
        assert_eq!(past(dims).check_sizes(&at(1, 0)), Err(SizeError::Zero(Symbol::Position)));
        assert_eq!(past(dims).check_sizes(&at(1, 1)), Ok(()));
    }
    // The cache itself has room for the step's own tokens.
    assert_eq!(model().check_sizes(&at(5, 0)), Ok(()));
}
