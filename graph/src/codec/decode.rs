//! Bytes to graph.

use super::{DecodeError, MAGIC, OPS, VERSION, tag};
use crate::graph::{Graph, Node, NodeId, Output};
use crate::kinds::{ArgReduceKind, BinaryKind, CompareKind, CumulativeKind, RandomKind, ScatterKind, UnaryKind};
use crate::limits::{MAX_NAME_BYTES, MAX_NODE_INPUTS, MAX_NODES, MAX_OUTPUTS};
use crate::op::{InputRole, LinearLayout, Op, PoolKind, QuantFormat, ReduceKind, RopeStyle};
use crate::types::{Annotation, DType, Dim, Modality, Phase, Residency, Shape, Symbol, TensorType};

/// Reads what [`crate::encode`] writes. The result is not yet to be trusted: see [`crate::verify`].
///
/// Memory is allocated in proportion to the bytes that are there, whatever the counts in them claim.
///
/// # Errors
/// Anything but exactly one well-formed graph within [`crate::limits`].
pub fn decode(bytes: &[u8]) -> Result<Graph, DecodeError> {
    let mut r = Reader { bytes, at: 0 };
    if r.array()? != MAGIC {
        return Err(DecodeError::Magic);
    }
    let found = u16::from_le_bytes(r.array()?);
    if found != VERSION {
        return Err(DecodeError::Version { found });
    }
    if r.array()? != [0; 2] {
        return Err(DecodeError::Reserved { offset: r.at - 2 });
    }
    let name = r.text("bytes in the name")?;
    let count = r.count("nodes", MAX_NODES, MIN_NODE_BYTES)?;
    let mut nodes = Vec::with_capacity(count);
    for i in 0..count {
        nodes.push(r.node(NodeId(i as u32))?);
    }
    let count = r.count("outputs", MAX_OUTPUTS, MIN_OUTPUT_BYTES)?;
    let mut outputs = Vec::with_capacity(count);
    for _ in 0..count {
        outputs.push(Output { name: r.text("bytes in an output's name")?, node: NodeId(r.u32()?) });
    }
    match bytes.len() - r.at {
        0 => Ok(Graph { name, nodes, outputs }),
        count => Err(DecodeError::Trailing { count }),
    }
}

/// Op, attribute count, inputs, element type, shape, annotation.
const MIN_NODE_BYTES: usize = 1 + 1 + 4 + 1 + 4 + 3;
/// Name, id.
const MIN_OUTPUT_BYTES: usize = 4 + 4;
/// A symbol: the smaller of the two forms.
const MIN_DIM_BYTES: usize = 2;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn node(&mut self, node: NodeId) -> Result<Node, DecodeError> {
        let op = self.op(node)?;
        let count = self.count("inputs of one node", MAX_NODE_INPUTS, 4)?;
        let mut inputs = Vec::with_capacity(count);
        for _ in 0..count {
            inputs.push(NodeId(self.u32()?));
        }
        let dtype = self.code("element type", &DType::ALL)?;
        let shape = Shape(self.dims()?);
        let annotation = Annotation {
            phase: self.code("phase", &PHASES)?,
            residency: self.code("residency", &RESIDENCIES)?,
            modality: self.code("modality", &MODALITIES)?,
        };
        Ok(Node { op, inputs, ty: TensorType { dtype, shape }, annotation })
    }

    fn op(&mut self, node: NodeId) -> Result<Op, DecodeError> {
        let code = self.u8()?;
        let &op = OPS.get(usize::from(code)).ok_or(DecodeError::UnknownOp { node, code })?;
        let count = self.u8()?;
        let mut a = Attributes { reader: self, node, op, count, left: count };
        let op = match code {
            0 => Op::Input { name: a.text("name")?, role: a.code("role", &ROLES)? },
            1 => Op::Zeros,
            2 => Op::Ones,
            3 => Op::Full { value: a.f64("value")? },
            4 => Op::Arange { start: a.f64("start")?, step: a.f64("step")? },
            5 => Op::Rand { seed: a.u64("seed")? },
            6 => Op::Randn { seed: a.u64("seed")? },
            7 => Op::Embedding { dtype: a.code("dtype", &DType::ALL)? },
            8 => Op::MatMul,
            9 => Op::Linear { layout: a.code("layout", &[LinearLayout::OutIn, LinearLayout::InOut])? },
            10 => Op::Add,
            11 => Op::Sub,
            12 => Op::Mul,
            13 => Op::Div,
            14 => Op::RmsNorm { eps: a.f32("eps")? },
            15 => Op::LayerNorm { eps: a.f32("eps")? },
            16 => Op::Rope {
                theta: a.f32("theta")?,
                head_dim: a.u32("head_dim")?,
                style: a.code("style", &[RopeStyle::Half, RopeStyle::Interleaved])?,
            },
            17 => Op::Gelu { tanh: a.bool("tanh")? },
            18 => Op::Silu,
            19 => Op::Relu,
            20 => Op::Sigmoid,
            21 => Op::Tanh,
            22 => Op::Abs,
            23 => Op::Neg,
            24 => Op::Exp,
            25 => Op::Log,
            26 => Op::Sqrt,
            27 => Op::Softmax { axis: a.i32("axis")? },
            28 => Op::Attention {
                layer: a.u32("layer")?,
                heads: a.u32("heads")?,
                kv_heads: a.u32("kv_heads")?,
                head_dim: a.u32("head_dim")?,
                scale: a.f32("scale")?,
                causal: a.bool("causal")?,
            },
            29 => Op::Reshape { dims: a.dims("dims")? },
            30 => Op::Transpose { perm: a.list("perm", tag::U32S, u32::from_le_bytes)? },
            31 => Op::Slice {
                axis: a.i32("axis")?,
                start: a.i64("start")?,
                end: a.optional_i64("end")?,
                step: a.u64("step")?,
            },
            32 => Op::Concat { axis: a.i32("axis")? },
            33 => Op::Reduce {
                kind: a.code("kind", &REDUCTIONS)?,
                axes: a.list("axes", tag::I32S, i32::from_le_bytes)?,
                keep_dims: a.bool("keep_dims")?,
            },
            34 => Op::ArgMax { axis: a.i32("axis")? },
            35 => Op::Sample,
            36 => Op::Cast { to: a.code("to", &DType::ALL)? },
            37 => Op::Gather,
            38 => Op::Dequantize { format: a.code("format", &QuantFormat::ALL)?, to: a.code("to", &DType::ALL)? },
            39 => Op::Conv2d {
                stride: a.u32s("stride")?,
                padding: a.u32s("padding")?,
                dilation: a.u32s("dilation")?,
                groups: a.u32("groups")?,
            },
            40 => Op::BatchNorm { eps: a.f32("eps")? },
            41 => Op::Pool {
                kind: a.code("kind", &[PoolKind::Max, PoolKind::Average])?,
                kernel: a.u32s("kernel")?,
                stride: a.u32s("stride")?,
                padding: a.u32s("padding")?,
                count_padding: a.bool("count_padding")?,
            },
            42 => Op::Scatter,
            43 => Op::Unary { kind: a.code("kind", UnaryKind::ALL)? },
            44 => Op::Binary { kind: a.code("kind", BinaryKind::ALL)? },
            45 => Op::Compare { kind: a.code("kind", CompareKind::ALL)? },
            46 => Op::Where,
            47 => Op::Broadcast { dims: a.dims("dims")? },
            48 => Op::Cumulative { kind: a.code("kind", CumulativeKind::ALL)?, axis: a.i32("axis")? },
            49 => Op::ArgSort { axis: a.i32("axis")?, descending: a.bool("descending")? },
            50 => Op::TakeAlong { axis: a.i32("axis")? },
            51 => Op::ScatterAlong { axis: a.i32("axis")?, kind: a.code("kind", ScatterKind::ALL)? },
            52 => Op::ArgReduce {
                kind: a.code("kind", ArgReduceKind::ALL)?,
                axis: a.i32("axis")?,
                keep_dims: a.bool("keep_dims")?,
            },
            53 => Op::Random {
                kind: a.code("kind", RandomKind::ALL)?,
                dtype: a.code("dtype", &DType::ALL)?,
                dims: a.dims("dims")?,
            },
            54 => Op::Flip { axes: a.list("axes", tag::I32S, i32::from_le_bytes)? },
            55 => Op::Pad {
                before: a.list("before", tag::U32S, u32::from_le_bytes)?,
                after: a.list("after", tag::U32S, u32::from_le_bytes)?,
                value: a.f64("value")?,
            },
            _ => return Err(DecodeError::UnknownOp { node, code }),
        };
        a.finish()?;
        Ok(op)
    }

    fn dims(&mut self) -> Result<Vec<Dim>, DecodeError> {
        let count = self.count("dimensions", Shape::MAX_RANK, MIN_DIM_BYTES)?;
        let mut dims = Vec::with_capacity(count);
        for _ in 0..count {
            dims.push(match self.u8()? {
                0 => Dim::Fixed(u64::from_le_bytes(self.array()?)),
                1 => Dim::Symbol(self.code("symbol", &Symbol::ALL)?),
                found => return Err(DecodeError::Code { what: "kind of dimension", found, offset: self.at - 1 }),
            });
        }
        Ok(dims)
    }

    /// A count of things of at least `size` bytes each, of which so many can still come.
    fn count(&mut self, what: &'static str, max: usize, size: usize) -> Result<usize, DecodeError> {
        let offset = self.at;
        let found = self.u32()?;
        let count = usize::try_from(found).ok().filter(|&n| n <= max);
        let count = count.ok_or(DecodeError::Limit { what, max, found, offset })?;
        let wanted = count.saturating_mul(size);
        if wanted > self.bytes.len() - self.at {
            return Err(DecodeError::Truncated { offset: self.bytes.len(), wanted });
        }
        Ok(count)
    }

    fn text(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let count = self.count(what, MAX_NAME_BYTES, 1)?;
        let offset = self.at;
        let text = std::str::from_utf8(self.take(count)?).map_err(|_| DecodeError::Utf8 { offset })?;
        Ok(text.to_owned())
    }

    fn code<T: Copy>(&mut self, what: &'static str, values: &[T]) -> Result<T, DecodeError> {
        let found = self.u8()?;
        let value = values.get(usize::from(found)).copied();
        value.ok_or(DecodeError::Code { what, found, offset: self.at - 1 })
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let rest = &self.bytes[self.at..];
        let &array = rest.first_chunk().ok_or(DecodeError::Truncated { offset: self.bytes.len(), wanted: N })?;
        self.at += N;
        Ok(array)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or(DecodeError::Truncated { offset: self.bytes.len(), wanted: count })?;
        self.at += count;
        Ok(taken)
    }
}

/// The attributes of one node, read in their order.
struct Attributes<'r, 'a> {
    reader: &'r mut Reader<'a>,
    node: NodeId,
    op: &'static str,
    count: u8,
    left: u8,
}

impl Attributes<'_, '_> {
    /// Reads the type byte of the next attribute, which must be `expected`.
    fn next(&mut self, attribute: &'static str, expected: u8) -> Result<(), DecodeError> {
        let (node, op) = (self.node, self.op);
        self.left = self.left.checked_sub(1).ok_or(DecodeError::AttributeCount { node, op, found: self.count })?;
        let found = self.reader.u8()?;
        if found == expected {
            return Ok(());
        }
        let (expected, found) = (tag::name(expected), tag::name(found));
        Err(DecodeError::AttributeType { node, op, attribute, expected, found })
    }

    fn finish(self) -> Result<(), DecodeError> {
        match self.left {
            0 => Ok(()),
            _ => Err(DecodeError::AttributeCount { node: self.node, op: self.op, found: self.count }),
        }
    }

    fn bool(&mut self, attribute: &'static str) -> Result<bool, DecodeError> {
        self.next(attribute, tag::BOOL)?;
        self.value(attribute, &[false, true])
    }

    fn u32(&mut self, attribute: &'static str) -> Result<u32, DecodeError> {
        self.next(attribute, tag::U32)?;
        self.reader.u32()
    }

    fn i32(&mut self, attribute: &'static str) -> Result<i32, DecodeError> {
        self.next(attribute, tag::I32)?;
        self.reader.array().map(i32::from_le_bytes)
    }

    fn u64(&mut self, attribute: &'static str) -> Result<u64, DecodeError> {
        self.next(attribute, tag::U64)?;
        self.reader.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self, attribute: &'static str) -> Result<i64, DecodeError> {
        self.next(attribute, tag::I64)?;
        self.reader.array().map(i64::from_le_bytes)
    }

    fn f32(&mut self, attribute: &'static str) -> Result<f32, DecodeError> {
        self.next(attribute, tag::F32)?;
        self.reader.array().map(f32::from_le_bytes)
    }

    fn f64(&mut self, attribute: &'static str) -> Result<f64, DecodeError> {
        self.next(attribute, tag::F64)?;
        self.reader.array().map(f64::from_le_bytes)
    }

    fn code<T: Copy>(&mut self, attribute: &'static str, values: &[T]) -> Result<T, DecodeError> {
        self.next(attribute, tag::CODE)?;
        self.value(attribute, values)
    }

    fn value<T: Copy>(&mut self, attribute: &'static str, values: &[T]) -> Result<T, DecodeError> {
        let found = self.reader.u8()?;
        let value = values.get(usize::from(found)).copied();
        value.ok_or(DecodeError::AttributeValue { node: self.node, op: self.op, attribute, found })
    }

    fn text(&mut self, attribute: &'static str) -> Result<String, DecodeError> {
        self.next(attribute, tag::TEXT)?;
        self.reader.text("bytes in an input's name")
    }

    fn dims(&mut self, attribute: &'static str) -> Result<Vec<Dim>, DecodeError> {
        self.next(attribute, tag::DIMS)?;
        self.reader.dims()
    }

    fn list<T>(&mut self, attribute: &'static str, tag: u8, from: fn([u8; 4]) -> T) -> Result<Vec<T>, DecodeError> {
        self.next(attribute, tag)?;
        let count = self.reader.count("values in an attribute", Shape::MAX_RANK, 4)?;
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(from(self.reader.array()?));
        }
        Ok(values)
    }

    /// A list of exactly N.
    fn u32s<const N: usize>(&mut self, attribute: &'static str) -> Result<[u32; N], DecodeError> {
        let values = self.list(attribute, tag::U32S, u32::from_le_bytes)?;
        let (node, op, found) = (self.node, self.op, values.len());
        values.try_into().map_err(|_| DecodeError::AttributeLength { node, op, attribute, expected: N, found })
    }

    fn optional_i64(&mut self, attribute: &'static str) -> Result<Option<i64>, DecodeError> {
        self.next(attribute, tag::OPTIONAL_I64)?;
        let present = self.value(attribute, &[false, true])?;
        if present { self.reader.array().map(i64::from_le_bytes).map(Some) } else { Ok(None) }
    }
}

const PHASES: [Phase; 5] = [Phase::Unknown, Phase::Prefill, Phase::Decode, Phase::Vision, Phase::Fusion];
const RESIDENCIES: [Residency; 4] = [Residency::Activation, Residency::Weight, Residency::KvCache, Residency::Output];
const MODALITIES: [Modality; 4] = [Modality::None, Modality::Text, Modality::Vision, Modality::Audio];
const ROLES: [InputRole; 7] = [
    InputRole::Argument,
    InputRole::Weight,
    InputRole::KvCache,
    InputRole::Tokens,
    InputRole::Positions,
    InputRole::SamplingReal,
    InputRole::SamplingInt,
];
const REDUCTIONS: [ReduceKind; 5] =
    [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min, ReduceKind::Prod];
