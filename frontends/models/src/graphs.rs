//! What the graphs of all models share: inputs, outputs, and the steps between builder and names.

use std::collections::HashMap;

use genie_graph::{
    Annotation, DType, Dim, GraphBuilder, InputRole, LinearLayout, Modality, NodeId, Op, Phase, QuantFormat, Residency,
    Symbol, TensorType, VerifiedGraph,
};

use crate::ModelError;
use crate::weights::Weight;

/// Names of a model graph's inputs, weights aside.
pub mod inputs {
    /// Token ids, `i32 [Batch, Sequence]`.
    pub const TOKENS: &str = "tokens";
    /// Their positions, `i32 [Batch, Sequence]`; the server fills it.
    pub const POSITIONS: &str = "positions";
    /// Temperature and top-p, `f32 [Batch, 2]`.
    pub const SAMPLING_REAL: &str = "sampling.real";
    /// Top-k and seed, `i64 [Batch, 2]`.
    pub const SAMPLING_INT: &str = "sampling.int";
    /// The KV cache.
    pub const KV: &str = "kv";
}

/// Names of a model graph's outputs.
pub mod outputs {
    /// The sampled token, `i32 [Batch]`. Output 0.
    pub const TOKEN: &str = "token";
    /// Logits, `f32 [Batch, V]` of the last position, or `f32 [Batch, Sequence, V]` of all. Output 1.
    pub const LOGITS: &str = "logits";
}

/// What a graph is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphOptions {
    /// Goes into every node's annotation; the graph's body is the same for all phases.
    pub phase: Phase,
    /// Logits of every position rather than of the last alone.
    pub all_logits: bool,
    /// Element type of the KV cache.
    pub kv_dtype: DType,
    /// Float type of what products and attention read and give. What the layers add to, their norms and the logits stay f32, so that
    /// errors of 16 bits do not add up from layer to layer.
    pub activations: DType,
}

impl GraphOptions {
    /// Logits of the last position, an f32 cache, f32 activations.
    pub fn new(phase: Phase) -> Self {
        Self { phase, all_logits: false, kv_dtype: DType::F32, activations: DType::F32 }
    }
}

/// A graph in the making, with the inputs that every model has.
pub(crate) struct Body<'a> {
    builder: GraphBuilder,
    options: GraphOptions,
    weights: HashMap<&'a str, &'a Weight>,
    /// The inputs that are blocks.
    blocks: HashMap<NodeId, QuantFormat>,
    pub(crate) tokens: NodeId,
    pub(crate) positions: NodeId,
    sampling: [NodeId; 2],
    kv: NodeId,
}

/// Geometry of a model's attention.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) layers: u32,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head_dim: u32,
}

impl<'a> Body<'a> {
    pub(crate) fn new(
        name: &str,
        weights: &'a [Weight],
        heads: Heads,
        options: GraphOptions,
    ) -> Result<Self, ModelError> {
        let batch = Dim::Symbol(Symbol::Batch);
        let ids = || TensorType::new(DType::I32, [batch, Dim::Symbol(Symbol::Sequence)]);
        let pair = |dtype| TensorType::new(dtype, [batch, Dim::Fixed(2)]);
        let cache = [
            Dim::Symbol(Symbol::Position),
            u64::from(heads.layers).into(),
            2.into(),
            u64::from(heads.kv_heads).into(),
            Op::KV_BLOCK.into(),
            u64::from(heads.head_dim).into(),
        ];
        let mut builder = GraphBuilder::new(name);
        builder.annotate(annotation(options, Residency::Activation));
        let tokens = builder.input(inputs::TOKENS, InputRole::Tokens, ids())?;
        let positions = builder.input(inputs::POSITIONS, InputRole::Positions, ids())?;
        let real = builder.input(inputs::SAMPLING_REAL, InputRole::SamplingReal, pair(DType::F32))?;
        let int = builder.input(inputs::SAMPLING_INT, InputRole::SamplingInt, pair(DType::I64))?;
        let kv = builder.input(inputs::KV, InputRole::KvCache, TensorType::new(options.kv_dtype, cache))?;
        let weights = weights.iter().map(|w| (w.name(), w)).collect();
        Ok(Self { builder, options, weights, blocks: HashMap::new(), tokens, positions, sampling: [real, int], kv })
    }

    pub(crate) fn push(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId, ModelError> {
        Ok(self.builder.push(op, inputs)?)
    }

    /// The input for a weight that must be there.
    pub(crate) fn weight(&mut self, name: &str) -> Result<NodeId, ModelError> {
        self.optional(name)?.ok_or_else(|| ModelError::MissingTensor(name.to_owned()))
    }

    /// The input for a weight if the model has it.
    pub(crate) fn optional(&mut self, name: &str) -> Result<Option<NodeId>, ModelError> {
        let Some(weight) = self.weights.get(name).copied() else { return Ok(None) };
        let input = self.builder.input(name, InputRole::Weight, weight.ty())?;
        self.blocks.extend(weight.format().map(|format| (input, format)));
        Ok(Some(input))
    }

    /// A matrix as a product takes it, once for each product: devices read the blocks there rather than unpack them before.
    fn matrix(&mut self, weight: NodeId) -> Result<NodeId, ModelError> {
        match self.blocks.get(&weight).copied() {
            Some(format) => self.push(Op::Dequantize { format, to: self.options.activations }, &[weight]),
            None => Ok(weight),
        }
    }

    /// Rows of a table, `f32 [Batch, Sequence, H]`. Of one in blocks, only these rows are unpacked.
    pub(crate) fn embed(&mut self, table: NodeId, ids: NodeId) -> Result<NodeId, ModelError> {
        match self.blocks.get(&table).copied() {
            Some(format) => {
                let rows = self.push(Op::Gather, &[table, ids])?;
                self.push(Op::Dequantize { format, to: DType::F32 }, &[rows])
            }
            None => self.push(Op::Embedding { dtype: DType::F32 }, &[table, ids]),
        }
    }

    /// x / sqrt(mean(x^2) + eps) times `{name}.weight`, as products read it.
    pub(crate) fn rms_norm(&mut self, x: NodeId, name: &str, eps: f32) -> Result<NodeId, ModelError> {
        let weight = self.weight(&format!("{name}.weight"))?;
        let normed = self.push(Op::RmsNorm { eps }, &[x, weight])?;
        self.cast(normed, self.options.activations)
    }

    /// x without its mean over its deviation, times `{name}.weight`, plus `{name}.bias`, as products read it.
    pub(crate) fn layer_norm(&mut self, x: NodeId, name: &str, eps: f32) -> Result<NodeId, ModelError> {
        let weight = self.weight(&format!("{name}.weight"))?;
        let bias = self.weight(&format!("{name}.bias"))?;
        let normed = self.push(Op::LayerNorm { eps }, &[x, weight, bias])?;
        self.cast(normed, self.options.activations)
    }

    /// x, which is f32, plus what a layer gave.
    pub(crate) fn add_to(&mut self, x: NodeId, part: NodeId) -> Result<NodeId, ModelError> {
        let part = self.cast(part, DType::F32)?;
        self.push(Op::Add, &[x, part])
    }

    /// From f32 to the activations' type, or back: nothing where that is f32, too.
    fn cast(&mut self, x: NodeId, to: DType) -> Result<NodeId, ModelError> {
        if self.options.activations == DType::F32 { Ok(x) } else { self.push(Op::Cast { to }, &[x]) }
    }

    /// x times `{name}.weight`, plus `{name}.bias` if the model has it.
    pub(crate) fn linear(&mut self, x: NodeId, name: &str, layout: LinearLayout) -> Result<NodeId, ModelError> {
        let weight = self.weight(&format!("{name}.weight"))?;
        let bias = self.optional(&format!("{name}.bias"))?;
        let weight = self.matrix(weight)?;
        let inputs: Vec<_> = [x, weight].into_iter().chain(bias).collect();
        self.push(Op::Linear { layout }, &inputs)
    }

    /// Causal attention over the cache's layer and this step's tokens.
    pub(crate) fn attend(&mut self, layer: u32, heads: Heads, [q, k, v]: [NodeId; 3]) -> Result<NodeId, ModelError> {
        let Heads { heads, kv_heads, head_dim, .. } = heads;
        let scale = 1.0 / (f64::from(head_dim)).sqrt();
        let op = Op::Attention { layer, heads, kv_heads, head_dim, scale: scale as f32, causal: true };
        self.push(op, &[q, k, v, self.kv])
    }

    /// The positions whose logits are wanted: all, or the last.
    pub(crate) fn wanted_positions(&mut self, x: NodeId) -> Result<NodeId, ModelError> {
        if self.options.all_logits {
            return Ok(x);
        }
        self.last(x)
    }

    /// `[B, S, H]` to `[B, 1, H]`.
    fn last(&mut self, x: NodeId) -> Result<NodeId, ModelError> {
        self.push(Op::Slice { axis: 1, start: -1, end: None, step: 1 }, &[x])
    }

    /// From hidden states of the wanted positions to the outputs, through the output layer: a weight `[V, H]`, and its
    /// bias `[V]` if it has one.
    pub(crate) fn finish(
        mut self,
        hidden: NodeId,
        width: u64,
        output: &[NodeId],
        vocab: u64,
    ) -> Result<VerifiedGraph, ModelError> {
        let rows = |n: u64| Op::Reshape { dims: vec![Dim::Symbol(Symbol::Batch), Dim::Fixed(n)] };
        let (logits, last) = if self.options.all_logits {
            let logits = self.logits(hidden, output)?;
            let last = self.last(logits)?;
            (logits, self.push(rows(vocab), &[last])?)
        } else {
            let hidden = self.push(rows(width), &[hidden])?;
            let logits = self.logits(hidden, output)?;
            (logits, logits)
        };
        self.builder.annotate(annotation(self.options, Residency::Output));
        let token = self.push(Op::Sample, &[last, self.sampling[0], self.sampling[1], self.positions])?;
        self.builder.output(outputs::TOKEN, token);
        self.builder.output(outputs::LOGITS, logits);
        Ok(self.builder.finish()?)
    }

    /// f32 logits of hidden states.
    fn logits(&mut self, hidden: NodeId, output: &[NodeId]) -> Result<NodeId, ModelError> {
        let mut inputs = vec![hidden];
        for &part in output {
            inputs.push(self.matrix(part)?);
        }
        let logits = self.push(Op::Linear { layout: LinearLayout::OutIn }, &inputs)?;
        self.cast(logits, DType::F32)
    }
}

fn annotation(options: GraphOptions, residency: Residency) -> Annotation {
    Annotation { phase: options.phase, residency, modality: Modality::Text }
}
