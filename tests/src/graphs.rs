//! Graphs that the tests define.

use genie_graph::{
    Annotation, DType, Dim, GraphBuilder, InputRole, LinearLayout, Op, Phase, Symbol, TensorType, VerifiedGraph,
    VerifyError,
};
use genie_transport::wire::{write_argument, write_token_of};

/// Tokens that the tiny model knows.
pub const VOCABULARY: u64 = 16;
/// Its width.
pub const WIDTH: u64 = 4;

/// A language model of one attention layer, and the node ids of its inputs.
#[derive(Clone, Debug)]
pub struct Tiny {
    /// The graph. Output 0 is the next token, output 1 the logits.
    pub graph: VerifiedGraph,
    /// Its embedding table, `f32 [VOCABULARY, WIDTH]`.
    pub table: u32,
    /// Its KV cache.
    pub cache: u32,
    /// Tokens, `i32 [batch, sequence]`.
    pub tokens: u16,
    /// Temperature and top-p, `f32 [batch, 2]`.
    pub real: u16,
    /// Top-k and seed, `i64 [batch, 2]`.
    pub int: u16,
}

/// The tiny model.
///
/// # Errors
/// None, as long as the builder takes what it took when this was written.
pub fn tiny() -> Result<Tiny, VerifyError> {
    const B: Dim = Dim::Symbol(Symbol::Batch);
    const S: Dim = Dim::Symbol(Symbol::Sequence);
    let fixed = |n: u64| Dim::from(n);
    let mut g = GraphBuilder::new("tiny");
    g.annotate(Annotation { phase: Phase::Decode, ..Annotation::default() });
    let table = g.input("table", InputRole::Weight, TensorType::new(DType::F32, [fixed(VOCABULARY), fixed(WIDTH)]))?;
    let dims = [Symbol::Position.into(), fixed(1), fixed(2), fixed(1), fixed(Op::KV_BLOCK), fixed(WIDTH)];
    let cache = g.input("cache", InputRole::KvCache, TensorType::new(DType::F32, dims))?;
    let tokens = g.input("tokens", InputRole::Tokens, TensorType::new(DType::I32, [B, S]))?;
    let positions = g.input("positions", InputRole::Positions, TensorType::new(DType::I32, [B, S]))?;
    let real = g.input("real", InputRole::SamplingReal, TensorType::new(DType::F32, [B, fixed(2)]))?;
    let int = g.input("int", InputRole::SamplingInt, TensorType::new(DType::I64, [B, fixed(2)]))?;
    let x = g.push(Op::Embedding { dtype: DType::F32 }, &[table, tokens])?;
    let head_dim = WIDTH as u32;
    let attention = Op::Attention { layer: 0, heads: 1, kv_heads: 1, head_dim, scale: 0.5, causal: true };
    let y = g.push(attention, &[x, x, x, cache])?;
    let last = g.push(Op::Slice { axis: 1, start: -1, end: None, step: 1 }, &[y])?;
    let row = g.push(Op::Reshape { dims: vec![B, fixed(WIDTH)] }, &[last])?;
    let logits = g.push(Op::Linear { layout: LinearLayout::OutIn }, &[row, table])?;
    let token = g.push(Op::Sample, &[logits, real, int, positions])?;
    g.output("token", token);
    g.output("logits", logits);
    let (tokens, real, int) = (tokens.0 as u16, real.0 as u16, int.0 as u16);
    Ok(Tiny { graph: g.finish()?, table: table.0, cache: cache.0, tokens, real, int })
}

impl Tiny {
    /// The table's bytes: numbers that differ from token to token.
    pub fn table_bytes() -> Vec<u8> {
        (0..VOCABULARY * WIDTH).flat_map(|i| ((i * 37 % 64) as f32 / 32.0 - 1.0).to_le_bytes()).collect()
    }

    /// The sampling inputs of a greedy choice, as fixed arguments of a binding: how many, and their bytes.
    pub fn greedy(&self) -> (u32, Vec<u8>) {
        let mut out = Vec::new();
        let real: Vec<u8> = [0_f32, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let written = write_argument(&mut out, self.real, DType::F32, &[1, 2], &real)
            .and_then(|()| write_argument(&mut out, self.int, DType::I64, &[1, 2], &[0; 16]));
        debug_assert!(written.is_ok());
        (2, out)
    }

    /// Tokens as the one argument of a run.
    pub fn run_arguments(&self, tokens: &[i32]) -> Vec<u8> {
        let mut out = Vec::new();
        let data: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let written = write_argument(&mut out, self.tokens, DType::I32, &[1, tokens.len() as u64], &data);
        debug_assert!(written.is_ok());
        out
    }

    /// The token that another run gives, as the one argument of a run.
    pub fn token_of(&self, request: u64) -> Vec<u8> {
        let mut out = Vec::new();
        write_token_of(&mut out, self.tokens, request);
        out
    }
}

/// `y = relu(x)` of `f32 [4]`; the input is node 0.
///
/// # Errors
/// None, as for [`tiny`].
pub fn relu() -> Result<VerifiedGraph, VerifyError> {
    let mut g = GraphBuilder::new("relu");
    let x = g.input("x", InputRole::Argument, TensorType::new(DType::F32, [Dim::from(4)]))?;
    let y = g.push(Op::Relu, &[x])?;
    g.output("y", y);
    g.finish()
}
