//! Graph to bytes.

use super::{MAGIC, VERSION, tag};
use crate::graph::{Graph, Node};
use crate::op::Op;
use crate::types::Dim;

/// The canonical encoding of a graph; the module documents it byte by byte.
///
/// Any graph can be encoded, but only one within [`crate::limits`] is accepted by [`crate::decode`].
pub fn encode(graph: &Graph) -> Vec<u8> {
    let mut w = Writer(Vec::with_capacity(64 + graph.nodes.len() * 64));
    w.0.extend(MAGIC);
    w.0.extend(VERSION.to_le_bytes());
    w.0.extend([0; 2]);
    w.text(&graph.name);
    w.count(graph.nodes.len());
    for node in &graph.nodes {
        w.node(node);
    }
    w.count(graph.outputs.len());
    for output in &graph.outputs {
        w.text(&output.name);
        w.0.extend(output.node.0.to_le_bytes());
    }
    w.0
}

enum Value<'a> {
    Bool(bool),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Code(u8),
    Text(&'a str),
    Dims(&'a [Dim]),
    U32s(&'a [u32]),
    I32s(&'a [i32]),
    OptionalI64(Option<i64>),
}

struct Writer(Vec<u8>);

impl Writer {
    fn node(&mut self, node: &Node) {
        self.op(&node.op);
        self.count(node.inputs.len());
        for input in &node.inputs {
            self.0.extend(input.0.to_le_bytes());
        }
        self.0.push(node.ty.dtype.code());
        self.dims(&node.ty.shape.0);
        let a = node.annotation;
        self.0.extend([a.phase as u8, a.residency as u8, a.modality as u8]);
    }

    fn op(&mut self, op: &Op) {
        use Value::{Bool, Code, Dims, F32, F64, I32, I32s, I64, OptionalI64, Text, U32, U32s, U64};
        match op {
            Op::Input { name, role } => self.with(0, &[Text(name), Code(*role as u8)]),
            Op::Zeros => self.with(1, &[]),
            Op::Ones => self.with(2, &[]),
            Op::Full { value } => self.with(3, &[F64(*value)]),
            Op::Arange { start, step } => self.with(4, &[F64(*start), F64(*step)]),
            Op::Rand { seed } => self.with(5, &[U64(*seed)]),
            Op::Randn { seed } => self.with(6, &[U64(*seed)]),
            Op::Embedding { dtype } => self.with(7, &[Code(dtype.code())]),
            Op::MatMul => self.with(8, &[]),
            Op::Linear { layout } => self.with(9, &[Code(*layout as u8)]),
            Op::Add => self.with(10, &[]),
            Op::Sub => self.with(11, &[]),
            Op::Mul => self.with(12, &[]),
            Op::Div => self.with(13, &[]),
            Op::RmsNorm { eps } => self.with(14, &[F32(*eps)]),
            Op::LayerNorm { eps } => self.with(15, &[F32(*eps)]),
            Op::Rope { theta, head_dim, style } => {
                self.with(16, &[F32(*theta), U32(*head_dim), Code(*style as u8)]);
            }
            Op::Gelu { tanh } => self.with(17, &[Bool(*tanh)]),
            Op::Silu => self.with(18, &[]),
            Op::Relu => self.with(19, &[]),
            Op::Sigmoid => self.with(20, &[]),
            Op::Tanh => self.with(21, &[]),
            Op::Abs => self.with(22, &[]),
            Op::Neg => self.with(23, &[]),
            Op::Exp => self.with(24, &[]),
            Op::Log => self.with(25, &[]),
            Op::Sqrt => self.with(26, &[]),
            Op::Softmax { axis } => self.with(27, &[I32(*axis)]),
            Op::Attention { layer, heads, kv_heads, head_dim, scale, causal } => {
                let sizes = [U32(*layer), U32(*heads), U32(*kv_heads), U32(*head_dim), F32(*scale), Bool(*causal)];
                self.with(28, &sizes);
            }
            Op::Reshape { dims } => self.with(29, &[Dims(dims)]),
            Op::Transpose { perm } => self.with(30, &[U32s(perm)]),
            Op::Slice { axis, start, end, step } => {
                self.with(31, &[I32(*axis), I64(*start), OptionalI64(*end), U64(*step)]);
            }
            Op::Concat { axis } => self.with(32, &[I32(*axis)]),
            Op::Reduce { kind, axes, keep_dims } => {
                self.with(33, &[Code(*kind as u8), I32s(axes), Bool(*keep_dims)]);
            }
            Op::ArgMax { axis } => self.with(34, &[I32(*axis)]),
            Op::Sample => self.with(35, &[]),
            Op::Cast { to } => self.with(36, &[Code(to.code())]),
            Op::Gather => self.with(37, &[]),
            Op::Dequantize { format, to } => self.with(38, &[Code(*format as u8), Code(to.code())]),
            Op::Conv2d { stride, padding, dilation, groups } => {
                self.with(39, &[U32s(stride), U32s(padding), U32s(dilation), U32(*groups)]);
            }
            Op::BatchNorm { eps } => self.with(40, &[F32(*eps)]),
            Op::Pool { kind, kernel, stride, padding, count_padding } => {
                let sizes = [Code(*kind as u8), U32s(kernel), U32s(stride), U32s(padding), Bool(*count_padding)];
                self.with(41, &sizes);
            }
            Op::Scatter => self.with(42, &[]),
            Op::Unary { kind } => self.with(43, &[Code(*kind as u8)]),
            Op::Binary { kind } => self.with(44, &[Code(*kind as u8)]),
            Op::Compare { kind } => self.with(45, &[Code(*kind as u8)]),
            Op::Where => self.with(46, &[]),
            Op::Broadcast { dims } => self.with(47, &[Dims(dims)]),
            Op::Cumulative { kind, axis } => self.with(48, &[Code(*kind as u8), I32(*axis)]),
            Op::ArgSort { axis, descending } => self.with(49, &[I32(*axis), Bool(*descending)]),
            Op::TakeAlong { axis } => self.with(50, &[I32(*axis)]),
            Op::ScatterAlong { axis, kind } => self.with(51, &[I32(*axis), Code(*kind as u8)]),
            Op::ArgReduce { kind, axis, keep_dims } => {
                self.with(52, &[Code(*kind as u8), I32(*axis), Bool(*keep_dims)]);
            }
            Op::Random { kind, dtype, dims } => self.with(53, &[Code(*kind as u8), Code(dtype.code()), Dims(dims)]),
            Op::Flip { axes } => self.with(54, &[I32s(axes)]),
            Op::Pad { before, after, value } => self.with(55, &[U32s(before), U32s(after), F64(*value)]),
        }
    }

    fn with(&mut self, code: u8, attributes: &[Value<'_>]) {
        self.0.extend([code, attributes.len() as u8]);
        for value in attributes {
            self.attribute(value);
        }
    }

    fn attribute(&mut self, value: &Value<'_>) {
        match *value {
            Value::Bool(v) => self.0.extend([tag::BOOL, u8::from(v)]),
            Value::U32(v) => self.tagged(tag::U32, v.to_le_bytes()),
            Value::I32(v) => self.tagged(tag::I32, v.to_le_bytes()),
            Value::U64(v) => self.tagged(tag::U64, v.to_le_bytes()),
            Value::I64(v) => self.tagged(tag::I64, v.to_le_bytes()),
            Value::F32(v) => self.tagged(tag::F32, v.to_bits().to_le_bytes()),
            Value::F64(v) => self.tagged(tag::F64, v.to_bits().to_le_bytes()),
            Value::Code(v) => self.0.extend([tag::CODE, v]),
            Value::Text(v) => {
                self.0.push(tag::TEXT);
                self.text(v);
            }
            Value::Dims(v) => {
                self.0.push(tag::DIMS);
                self.dims(v);
            }
            Value::U32s(v) => {
                self.0.push(tag::U32S);
                self.count(v.len());
                self.0.extend(v.iter().flat_map(|n| n.to_le_bytes()));
            }
            Value::I32s(v) => {
                self.0.push(tag::I32S);
                self.count(v.len());
                self.0.extend(v.iter().flat_map(|n| n.to_le_bytes()));
            }
            Value::OptionalI64(v) => {
                self.0.extend([tag::OPTIONAL_I64, u8::from(v.is_some())]);
                self.0.extend(v.into_iter().flat_map(i64::to_le_bytes));
            }
        }
    }

    fn tagged<const N: usize>(&mut self, tag: u8, value: [u8; N]) {
        self.0.push(tag);
        self.0.extend(value);
    }

    fn dims(&mut self, dims: &[Dim]) {
        self.count(dims.len());
        for dim in dims {
            match *dim {
                Dim::Fixed(n) => self.tagged(0, n.to_le_bytes()),
                Dim::Symbol(s) => self.0.extend([1, s as u8]),
            }
        }
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend(text.as_bytes());
    }

    /// A count; one that does not fit is far over every limit, and stays so when it saturates.
    fn count(&mut self, n: usize) {
        self.0.extend(u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
    }
}
