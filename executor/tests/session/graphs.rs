//! Graphs that the tests define.

use genie_graph::{
    Annotation, DType, Dim, GraphBuilder, InputRole, LinearLayout, NodeId, Op, Phase, Symbol, TensorType, VerifiedGraph,
};

pub(crate) const VOCABULARY: u64 = 32;
pub(crate) const WIDTH: u64 = 4;

const B: Dim = Dim::Symbol(Symbol::Batch);
const S: Dim = Dim::Symbol(Symbol::Sequence);

/// A language model of one attention layer, with the node ids of its inputs.
pub(crate) struct Lm {
    pub(crate) graph: VerifiedGraph,
    pub(crate) table: u32,
    pub(crate) cache: u32,
    pub(crate) tokens: u16,
    pub(crate) real: u16,
    pub(crate) int: u16,
}

/// Outputs: 0 the next token, 1 the logits.
pub(crate) fn lm(phase: Phase) -> Lm {
    let mut b = GraphBuilder::new("tiny");
    b.annotate(Annotation { phase, ..Annotation::default() });
    let table_type = TensorType::new(DType::F32, [VOCABULARY.into(), WIDTH.into()]);
    let table = b.input("table", InputRole::Weight, table_type).unwrap();
    let cache_dims = [Symbol::Position.into(), 1.into(), 2.into(), 1.into(), Op::KV_BLOCK.into(), WIDTH.into()];
    let cache = b.input("cache", InputRole::KvCache, TensorType::new(DType::F32, cache_dims)).unwrap();
    let tokens = b.input("tokens", InputRole::Tokens, TensorType::new(DType::I32, [B, S])).unwrap();
    let positions = b.input("positions", InputRole::Positions, TensorType::new(DType::I32, [B, S])).unwrap();
    let real = b.input("real", InputRole::SamplingReal, TensorType::new(DType::F32, [B, 2.into()])).unwrap();
    let int = b.input("int", InputRole::SamplingInt, TensorType::new(DType::I64, [B, 2.into()])).unwrap();
    let x = b.push(Op::Embedding { dtype: DType::F32 }, &[table, tokens]).unwrap();
    let attention = Op::Attention { layer: 0, heads: 1, kv_heads: 1, head_dim: WIDTH as u32, scale: 0.5, causal: true };
    let y = b.push(attention, &[x, x, x, cache]).unwrap();
    let last = b.push(Op::Slice { axis: 1, start: -1, end: None, step: 1 }, &[y]).unwrap();
    let last = b.push(Op::Reshape { dims: vec![B, WIDTH.into()] }, &[last]).unwrap();
    let logits = b.push(Op::Linear { layout: LinearLayout::OutIn }, &[last, table]).unwrap();
    let token = b.push(Op::Sample, &[logits, real, int, positions]).unwrap();
    b.output("token", token);
    b.output("logits", logits);
    let id = |node: NodeId| node.0 as u16;
    Lm { graph: b.finish().unwrap(), table: table.0, cache: cache.0, tokens: id(tokens), real: id(real), int: id(int) }
}

/// `y = relu(x)` of `f32 [4]`; the input is node 0.
pub(crate) fn relu() -> VerifiedGraph {
    relu_of(4)
}

/// The same of `f32 [n]`.
pub(crate) fn relu_of(n: u64) -> VerifiedGraph {
    let mut b = GraphBuilder::new("relu");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [Dim::from(n)])).unwrap();
    let y = b.push(Op::Relu, &[x]).unwrap();
    b.output("y", y);
    b.finish().unwrap()
}

/// The table's bytes: pseudo-random, so that tokens differ.
pub(crate) fn table_bytes() -> Vec<u8> {
    let mut state = 12345_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..VOCABULARY * WIDTH).flat_map(|_| next().to_le_bytes()).collect()
}
