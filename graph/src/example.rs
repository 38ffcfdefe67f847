//! A small decoder language model with every kind of input, for tests.

use crate::{
    Annotation, DType, Dim, GraphBuilder, InputRole, LinearLayout, Modality, NodeId, Op, Phase, RopeStyle, Symbol,
    TensorType, VerifiedGraph, VerifyError,
};

pub(crate) const B: Dim = Dim::Symbol(Symbol::Batch);
pub(crate) const S: Dim = Dim::Symbol(Symbol::Sequence);
pub(crate) const P: Dim = Dim::Symbol(Symbol::Position);

pub(crate) fn n(size: u64) -> Dim {
    Dim::Fixed(size)
}

/// Two layers of width 8 with 2 heads over 1 key/value head, a vocabulary of 16, and sampling.
pub(crate) fn model() -> VerifiedGraph {
    build().expect("the example is valid")
}

fn build() -> Result<VerifiedGraph, VerifyError> {
    let mut g = GraphBuilder::new("example");
    g.annotate(Annotation { phase: Phase::Decode, modality: Modality::Text, ..Annotation::default() });
    let tokens = g.input("tokens", InputRole::Tokens, TensorType::new(DType::I32, [B, S]))?;
    let positions = g.input("positions", InputRole::Positions, TensorType::new(DType::I32, [B, S]))?;
    let cache_type = TensorType::new(DType::F16, [P, n(2), n(2), n(1), n(Op::KV_BLOCK), n(4)]);
    let cache = g.input("cache", InputRole::KvCache, cache_type)?;
    let table = weight(&mut g, "embed", &[16, 8])?;
    let mut x = g.push(Op::Embedding { dtype: DType::F32 }, &[table, tokens])?;
    for layer in 0..2 {
        let gain = weight(&mut g, &format!("{layer}.norm"), &[8])?;
        let h = g.push(Op::RmsNorm { eps: 1e-5 }, &[x, gain])?;
        let q = linear(&mut g, &format!("{layer}.q"), h, 8, 8)?;
        let k = linear(&mut g, &format!("{layer}.k"), h, 4, 8)?;
        let v = linear(&mut g, &format!("{layer}.v"), h, 4, 8)?;
        let rope = Op::Rope { theta: 1e4, head_dim: 4, style: RopeStyle::Half };
        let q = g.push(rope.clone(), &[q, positions])?;
        let k = g.push(rope, &[k, positions])?;
        let attention = Op::Attention { layer, heads: 2, kv_heads: 1, head_dim: 4, scale: 0.5, causal: true };
        let a = g.push(attention, &[q, k, v, cache])?;
        let o = linear(&mut g, &format!("{layer}.o"), a, 8, 8)?;
        x = g.push(Op::Add, &[x, o])?;
        let up = linear(&mut g, &format!("{layer}.up"), x, 32, 8)?;
        let act = g.push(Op::Silu, &[up])?;
        let down = linear(&mut g, &format!("{layer}.down"), act, 8, 32)?;
        x = g.push(Op::Add, &[x, down])?;
    }
    let last = g.push(Op::Slice { axis: 1, start: -1, end: None, step: 1 }, &[x])?;
    let flat = g.push(Op::Reshape { dims: vec![B, Op::INFER] }, &[last])?;
    let logits = g.push(Op::Linear { layout: LinearLayout::OutIn }, &[flat, table])?;
    let real = g.input("real", InputRole::SamplingReal, TensorType::new(DType::F32, [B, n(2)]))?;
    let int = g.input("int", InputRole::SamplingInt, TensorType::new(DType::I64, [B, n(2)]))?;
    let next = g.push(Op::Sample, &[logits, real, int, positions])?;
    g.output("logits", logits);
    g.output("next", next);
    g.finish()
}

fn weight(g: &mut GraphBuilder, name: &str, dims: &[u64]) -> Result<NodeId, VerifyError> {
    g.input(name, InputRole::Weight, TensorType::new(DType::BF16, dims.iter().map(|&d| n(d))))
}

fn linear(g: &mut GraphBuilder, name: &str, x: NodeId, out: u64, inner: u64) -> Result<NodeId, VerifyError> {
    let w = weight(g, name, &[out, inner])?;
    g.push(Op::Linear { layout: LinearLayout::OutIn }, &[x, w])
}
