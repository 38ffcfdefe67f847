//! Small and large decoder models with random weights, for tests and benches of devices.

use genie_graph::{
    DType, Dim, GraphBuilder, InputRole, LinearLayout, NodeId, Op, RopeStyle, Symbol, TensorType, VerifiedGraph, random,
};
use genie_transport::memory::Region;
use half::{bf16, f16};

/// The sizes of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) layers: u32,
    pub(crate) hidden: u64,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) intermediate: u64,
    pub(crate) vocabulary: u64,
    pub(crate) weights: DType,
    pub(crate) cache: DType,
    /// What products and attention read and give; the rest is f32.
    pub(crate) activations: DType,
    /// Of biases and norms; none: as the other weights.
    pub(crate) vectors: Option<DType>,
}

impl Config {
    fn head_dim(&self) -> u64 {
        self.hidden / u64::from(self.heads)
    }
}

/// A graph with weights for it.
pub(crate) struct Model {
    pub(crate) graph: VerifiedGraph,
    pub(crate) weights: Vec<Region>,
}

const B: Dim = Dim::Symbol(Symbol::Batch);
const S: Dim = Dim::Symbol(Symbol::Sequence);

struct Builder {
    graph: GraphBuilder,
    weights: Vec<Region>,
    dtype: DType,
    vectors: DType,
    activations: DType,
}

impl Builder {
    fn new(name: &str, config: &Config) -> Self {
        let Config { weights: dtype, activations, vectors, .. } = *config;
        let (graph, vectors) = (GraphBuilder::new(name), vectors.unwrap_or(dtype));
        Self { graph, weights: Vec::new(), dtype, vectors, activations }
    }

    fn input(&mut self, name: &str, role: InputRole, dtype: DType, dims: &[Dim]) -> NodeId {
        self.graph.input(name, role, TensorType::new(dtype, dims.iter().copied())).unwrap()
    }

    fn push(&mut self, op: Op, inputs: &[NodeId]) -> NodeId {
        self.graph.push(op, inputs).unwrap()
    }

    /// From f32 to the activations' type, or back.
    fn cast(&mut self, x: NodeId, to: DType) -> NodeId {
        if self.activations == DType::F32 { x } else { self.push(Op::Cast { to }, &[x]) }
    }

    /// As products read it.
    fn narrow(&mut self, x: NodeId) -> NodeId {
        self.cast(x, self.activations)
    }

    /// As it is added to what the layers add to.
    fn wide(&mut self, x: NodeId) -> NodeId {
        self.cast(x, DType::F32)
    }

    /// A weight of small random numbers around `mean`.
    fn weight(&mut self, dims: &[u64], mean: f32) -> NodeId {
        let dtype = if dims.len() == 1 { self.vectors } else { self.dtype };
        let seed = self.weights.len() as u64;
        let mut values = vec![0.0; dims.iter().product::<u64>() as usize];
        random::fill_uniform(seed, 0, &mut values);
        let scale = 2.0 / (*dims.last().unwrap() as f32).sqrt();
        values.iter_mut().for_each(|v| *v = mean + (*v - 0.5) * scale);
        let bytes: Vec<u8> = match dtype {
            DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        self.weights.push(Region::copy_of(&bytes));
        let name = format!("w{seed}");
        let dims: Vec<Dim> = dims.iter().map(|&d| d.into()).collect();
        self.input(&name, InputRole::Weight, dtype, &dims)
    }

    fn linear(&mut self, layout: LinearLayout, x: NodeId, k: u64, n: u64, bias: bool) -> NodeId {
        let w = match layout {
            LinearLayout::OutIn => self.weight(&[n, k], 0.0),
            LinearLayout::InOut => self.weight(&[k, n], 0.0),
        };
        let op = Op::Linear { layout };
        if bias {
            let b = self.weight(&[n], 0.0);
            return self.push(op, &[x, w, b]);
        }
        self.push(op, &[x, w])
    }

    fn cache(&mut self, config: &Config) -> NodeId {
        let dims = [
            Symbol::Position.into(),
            u64::from(config.layers).into(),
            2.into(),
            u64::from(config.kv_heads).into(),
            Op::KV_BLOCK.into(),
            config.head_dim().into(),
        ];
        self.input("cache", InputRole::KvCache, config.cache, &dims)
    }

    /// The last position's logits, and a token drawn from them.
    fn finish(mut self, x: NodeId, table: NodeId, positions: NodeId, hidden: u64) -> Model {
        let last = self.push(Op::Slice { axis: 1, start: -1, end: None, step: 1 }, &[x]);
        let last = self.push(Op::Reshape { dims: vec![B, hidden.into()] }, &[last]);
        let logits = self.push(Op::Linear { layout: LinearLayout::OutIn }, &[last, table]);
        let logits = self.wide(logits);
        let real = self.input("real", InputRole::SamplingReal, DType::F32, &[B, 2.into()]);
        let int = self.input("int", InputRole::SamplingInt, DType::I64, &[B, 2.into()]);
        let token = self.push(Op::Sample, &[logits, real, int, positions]);
        self.graph.output("token", token);
        self.graph.output("logits", logits);
        Model { graph: self.graph.finish().unwrap(), weights: self.weights }
    }
}

/// A Llama: arguments tokens, sampling real, sampling int; outputs token, logits.
pub(crate) fn llama(config: &Config) -> Model {
    let mut b = Builder::new("llama", config);
    let (hidden, head_dim) = (config.hidden, config.head_dim());
    let kv = u64::from(config.kv_heads) * head_dim;
    let tokens = b.input("tokens", InputRole::Tokens, DType::I32, &[B, S]);
    let positions = b.input("positions", InputRole::Positions, DType::I32, &[B, S]);
    let cache = b.cache(config);
    let table = b.weight(&[config.vocabulary, hidden], 0.0);
    let mut x = b.push(Op::Embedding { dtype: DType::F32 }, &[table, tokens]);
    let rope = Op::Rope { theta: 10_000.0, head_dim: head_dim as u32, style: RopeStyle::Half };
    for layer in 0..config.layers {
        let w = b.weight(&[hidden], 1.0);
        let h = b.push(Op::RmsNorm { eps: 1e-5 }, &[x, w]);
        let h = b.narrow(h);
        let q = b.linear(LinearLayout::OutIn, h, hidden, hidden, false);
        let k = b.linear(LinearLayout::OutIn, h, hidden, kv, false);
        let v = b.linear(LinearLayout::OutIn, h, hidden, kv, false);
        let q = b.push(rope.clone(), &[q, positions]);
        let k = b.push(rope.clone(), &[k, positions]);
        let attention = attention(config, layer);
        let a = b.push(attention, &[q, k, v, cache]);
        let o = b.linear(LinearLayout::OutIn, a, hidden, hidden, false);
        let o = b.wide(o);
        x = b.push(Op::Add, &[x, o]);
        let w = b.weight(&[hidden], 1.0);
        let h = b.push(Op::RmsNorm { eps: 1e-5 }, &[x, w]);
        let h = b.narrow(h);
        let gate = b.linear(LinearLayout::OutIn, h, hidden, config.intermediate, false);
        let up = b.linear(LinearLayout::OutIn, h, hidden, config.intermediate, false);
        let gate = b.push(Op::Silu, &[gate]);
        let h = b.push(Op::Mul, &[gate, up]);
        let down = b.linear(LinearLayout::OutIn, h, config.intermediate, hidden, false);
        let down = b.wide(down);
        x = b.push(Op::Add, &[x, down]);
    }
    let w = b.weight(&[hidden], 1.0);
    let x = b.push(Op::RmsNorm { eps: 1e-5 }, &[x, w]);
    let x = b.narrow(x);
    b.finish(x, table, positions, hidden)
}

/// A GPT-2: arguments and outputs as [`llama`]; as many key/value heads as heads.
pub(crate) fn gpt2(config: &Config) -> Model {
    let config = &Config { kv_heads: config.heads, ..*config };
    let mut b = Builder::new("gpt2", config);
    let hidden = config.hidden;
    let tokens = b.input("tokens", InputRole::Tokens, DType::I32, &[B, S]);
    let positions = b.input("positions", InputRole::Positions, DType::I32, &[B, S]);
    let cache = b.cache(config);
    let table = b.weight(&[config.vocabulary, hidden], 0.0);
    let places = b.weight(&[1024, hidden], 0.0);
    let token = b.push(Op::Embedding { dtype: DType::F32 }, &[table, tokens]);
    let place = b.push(Op::Embedding { dtype: DType::F32 }, &[places, positions]);
    let mut x = b.push(Op::Add, &[token, place]);
    for layer in 0..config.layers {
        let h = norm(&mut b, x, hidden);
        let qkv = b.linear(LinearLayout::InOut, h, hidden, 3 * hidden, true);
        let part =
            |i: u64| Op::Slice { axis: -1, start: (i * hidden) as i64, end: Some(((i + 1) * hidden) as i64), step: 1 };
        let [q, k, v] = [0, 1, 2].map(|i| b.push(part(i), &[qkv]));
        let a = b.push(attention(config, layer), &[q, k, v, cache]);
        let o = b.linear(LinearLayout::InOut, a, hidden, hidden, true);
        let o = b.wide(o);
        x = b.push(Op::Add, &[o, x]);
        let h = norm(&mut b, x, hidden);
        let h = b.linear(LinearLayout::InOut, h, hidden, config.intermediate, true);
        let h = b.push(Op::Gelu { tanh: true }, &[h]);
        let h = b.linear(LinearLayout::InOut, h, config.intermediate, hidden, true);
        let h = b.wide(h);
        x = b.push(Op::Add, &[h, x]);
    }
    let x = norm(&mut b, x, hidden);
    b.finish(x, table, positions, hidden)
}

fn norm(b: &mut Builder, x: NodeId, hidden: u64) -> NodeId {
    let (w, bias) = (b.weight(&[hidden], 1.0), b.weight(&[hidden], 0.0));
    let h = b.push(Op::LayerNorm { eps: 1e-5 }, &[x, w, bias]);
    b.narrow(h)
}

fn attention(config: &Config, layer: u32) -> Op {
    let head_dim = config.head_dim() as u32;
    let Config { heads, kv_heads, .. } = *config;
    Op::Attention { layer, heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), causal: true }
}
