//! From a graph to steps.
//!
//! Float arithmetic is f32 throughout: operands of other float types are converted before, results after, each once per op
//! (but matrix products read weights as they are, and multiply some as bf16: see [`super::linear::Linear::activations`]). Reshapes and whole slices cost nothing, they rename a
//! value, and so do blocks that only products read. A product followed by the addition of a residual is one step, as is an activation that is multiplied by a gate.

mod along;
mod image;
mod layout;
mod pointwise;
mod product;

use std::collections::HashMap;

use genie_graph::{DType, Dim, InputRole, NodeId, Op, RopeStyle, SizeError, Sizes, Symbol, VerifiedGraph, byte_len};

use super::attention::{Append, Attend, Heads, Layer, Source};
use super::convert::Convert;
use super::elementwise::{Binary, BinaryKind, Unary};
use super::fusions::{Fusions, unary_kind};
use super::gather::Gather;
use super::norm::{LayerNorm, RmsNorm, Softmax};
use super::plan::{Place, Plan, V, Value};
use super::quant::Dequantize;
use super::reduce::{ArgMax, Reduce};
use super::rope::{Rope, RopeTable};
use super::sample::Sample;
use super::scatter::Scatter;
use super::step::Step;
use super::strided::{Walk, contiguous};

/// A constant of a plan: bytes `offset..` of its constants.
pub(super) struct Constant {
    pub(super) offset: usize,
    pub(super) dtype: DType,
    pub(super) elements: usize,
    pub(super) content: Content,
}

/// How a constant is made.
pub(super) enum Content {
    /// A creation op of the graph.
    Op(Op),
    /// A rotary embedding's inverse frequencies, theta^(-i / elements).
    Frequencies { theta: f32 },
}

/// A graph lowered for one set of sizes.
pub(super) struct Lowered {
    pub(super) plan: Plan,
    pub(super) arguments: Vec<V>,
    pub(super) positions: Option<V>,
    pub(super) outputs: Vec<V>,
    /// Offsets in the arena of the values that lie where a run says: the arguments, then outputs.
    pub(super) lent: Vec<usize>,
    pub(super) constants: Vec<Constant>,
    pub(super) constant_bytes: usize,
}

/// Lowers a graph for a team of `members`.
///
/// # Errors
/// Sizes that the graph cannot be run with.
pub(super) fn lower(graph: &VerifiedGraph, sizes: &Sizes, members: usize) -> Result<Lowered, SizeError> {
    graph.check_sizes(sizes)?;
    let mut lowering = Lowering {
        graph,
        sizes,
        members,
        fusions: Fusions::find(graph, sizes),
        at: NodeId(0),
        values: Vec::new(),
        of_node: vec![None; graph.nodes.len()],
        steps: Vec::new(),
        converted: HashMap::new(),
        tables: HashMap::new(),
        constants: Vec::new(),
        constant_bytes: 0,
        arguments: Vec::new(),
        positions: None,
        weights: 0,
        caches: 0,
    };
    for i in 0..graph.nodes.len() {
        lowering.at = NodeId(i as u32);
        if lowering.node().is_none() {
            return Err(lowering.overflow());
        }
    }
    let outputs: Option<Vec<V>> = graph.outputs.iter().map(|o| lowering.of_node[o.node.0 as usize]).collect();
    let overflow = lowering.overflow();
    let Lowering { steps, values, arguments, positions, constants, constant_bytes, .. } = lowering;
    let outputs = outputs.ok_or_else(|| overflow.clone())?;
    let inputs: Vec<V> = arguments.iter().copied().chain(positions).collect();
    let mut plan = Plan::new(steps, values, &inputs, &outputs).ok_or(overflow)?;
    let computed = outputs.iter().filter(|&&v| Some(v) != positions);
    let lent = plan.lend(arguments.iter().chain(computed).copied());
    Ok(Lowered { plan, arguments, positions, outputs, lent, constants, constant_bytes })
}

struct Lowering<'g> {
    graph: &'g VerifiedGraph,
    sizes: &'g Sizes,
    members: usize,
    fusions: Fusions,
    /// The node that is being lowered.
    at: NodeId,
    values: Vec<Value>,
    of_node: Vec<Option<V>>,
    steps: Vec<Step>,
    /// Copies of values in other float types.
    converted: HashMap<(V, DType), V>,
    /// Rope tables by positions, frequencies and half.
    tables: HashMap<(V, Option<V>, u32, usize), V>,
    constants: Vec<Constant>,
    constant_bytes: usize,
    arguments: Vec<V>,
    positions: Option<V>,
    weights: usize,
    caches: usize,
}

/// Every function that returns an option gives `None` where a size does not fit, which ends the lowering.
impl Lowering<'_> {
    fn overflow(&self) -> SizeError {
        let op = self.graph.nodes.get(self.at.0 as usize).map_or("output", |n| n.op.name());
        SizeError::Overflow { node: self.at, op }
    }

    /// Lowers the node `self.at`.
    fn node(&mut self) -> Option<()> {
        let graph = self.graph;
        let (id, node) = (self.at, &graph.nodes[self.at.0 as usize]);
        let dtype = node.ty.dtype;
        if self.of_node[id.0 as usize].is_some() || self.fusions.gated[id.0 as usize] {
            return Some(());
        }
        match &node.op {
            Op::Input { role, .. } => self.input(*role),
            op @ (Op::Zeros | Op::Ones | Op::Full { .. } | Op::Arange { .. } | Op::Rand { .. } | Op::Randn { .. }) => {
                let elements = product(&self.dims(id)?)?;
                let value = self.constant(dtype, elements, Content::Op(op.clone()))?;
                self.set(value)
            }
            Op::Embedding { dtype: wanted } => {
                let table = self.operand(0)?;
                let from = self.values[table.0].dtype;
                if from == *wanted {
                    return self.gather(table, None);
                }
                let rows = self.temporary(from, product(&self.dims(id)?)?)?;
                self.gather(table, Some(rows))?;
                let y = self.result()?;
                self.convert(rows, y)
            }
            Op::Gather => self.gather(self.operand(0)?, None),
            Op::MatMul => self.matmul(),
            Op::Linear { layout } => self.linear(*layout),
            Op::Add => self.binary(BinaryKind::Add),
            Op::Sub => self.binary(BinaryKind::Sub),
            Op::Mul => match self.fusions.gate.get(&id).copied() {
                Some((activation, gate)) => self.gated(activation, gate),
                None => self.binary(BinaryKind::Mul),
            },
            Op::Div => self.binary(BinaryKind::Div),
            Op::RmsNorm { eps } => {
                let (rows, width) = rows_and_width(&self.dims(id)?)?;
                let (x, weight) = (self.f32_operand(0)?, self.f32_operand(1)?);
                self.float_step(|y| RmsNorm { x, weight, y, rows, width, eps: *eps }.into())
            }
            Op::LayerNorm { eps } => {
                let (rows, width) = rows_and_width(&self.dims(id)?)?;
                let (x, weight, bias) = (self.f32_operand(0)?, self.f32_operand(1)?, self.f32_operand(2)?);
                self.float_step(|y| LayerNorm { x, weight, bias, y, rows, width, eps: *eps }.into())
            }
            Op::Rope { theta, head_dim, style } => self.rope(*theta, *head_dim as usize, *style),
            Op::Softmax { axis } => {
                let (outer, length, inner) = around(&self.dims(id)?, *axis)?;
                let x = self.f32_operand(0)?;
                self.float_step(|y| Softmax { x, y, outer, length, inner }.into())
            }
            Op::Attention { layer, heads, kv_heads, head_dim, scale, causal } => {
                let shape =
                    Heads { heads: *heads as usize, kv_heads: *kv_heads as usize, head_dim: *head_dim as usize };
                self.attention(*layer as usize, shape, *scale, *causal)
            }
            Op::Reshape { .. } => self.set(self.operand(0)?),
            Op::Transpose { perm } => self.transpose(perm),
            Op::Slice { axis, start, step, .. } => self.slice(*axis, *start, *step),
            Op::Concat { axis } => self.concat(*axis),
            Op::Reduce { kind, axes, .. } => {
                let dims = self.input_dims(0)?;
                let steps = contiguous(&dims);
                let reduced = |i: usize| axes.is_empty() || axes.iter().any(|&a| axis_of(a, dims.len()) == Some(i));
                let walk = |gone: bool| {
                    let kept: Vec<usize> = (0..dims.len()).filter(|&i| reduced(i) == gone).collect();
                    let pick = |from: &[usize]| kept.iter().map(|&i| from[i]).collect::<Vec<_>>();
                    Walk::new(&pick(&dims), [&pick(&steps)], [0])
                };
                let (outer, inner, kind) = (walk(false), walk(true), *kind);
                let (x, dtype) = self.number_operand(0)?;
                self.number_step(|y| Reduce { kind, dtype, x, y, outer, inner }.into())
            }
            Op::ArgMax { axis } => {
                let (outer, length, inner) = around(&self.input_dims(0)?, *axis)?;
                let (x, dtype) = self.number_operand(0)?;
                let y = self.result()?;
                self.push(ArgMax { dtype, x, y, outer, length, inner })
            }
            Op::Sample => {
                let (rows, width) = rows_and_width(&self.input_dims(0)?)?;
                let (_, tokens) = rows_and_width(&self.input_dims(3)?)?;
                let (logits, real) = (self.f32_operand(0)?, self.operand(1)?);
                let (int, positions, y) = (self.operand(2)?, self.operand(3)?, self.result()?);
                self.push(Sample { logits, real, int, positions, y, rows, width, tokens })
            }
            Op::Conv2d { stride, padding, dilation, groups } => self.conv2d(*stride, *padding, *dilation, *groups),
            Op::Pool { kind, kernel, stride, padding, count_padding } => {
                self.pool(*kind, *kernel, *stride, *padding, *count_padding)
            }
            Op::BatchNorm { eps } => self.batch_norm(*eps),
            Op::Scatter => self.scatter(),
            Op::Unary { kind } => self.unary(*kind),
            Op::Binary { kind } => self.combine(*kind),
            Op::Compare { kind } => self.compare(*kind),
            Op::Where => self.choose(),
            Op::Broadcast { .. } => self.broadcast(),
            Op::Cumulative { kind, axis } => self.cumulative(*kind, *axis),
            Op::ArgSort { axis, descending } => self.argsort(*axis, *descending),
            Op::TakeAlong { axis } => self.take_along(*axis),
            Op::ScatterAlong { axis, kind } => self.scatter_along(*axis, *kind),
            Op::ArgReduce { kind, axis, .. } => self.arg_reduce(*kind, *axis),
            Op::Random { kind, .. } => self.random(*kind),
            Op::Flip { axes } => self.flip(axes),
            Op::Pad { before, value, .. } => self.pad(before, *value),
            // Products read the blocks themselves.
            Op::Dequantize { .. } if self.fusions.packed[id.0 as usize] => Some(()),
            Op::Dequantize { format, to } => {
                let x = self.operand(0)?;
                let blocks = self.values[x.0].bytes / usize::try_from(format.block_bytes()).ok()?;
                let y = self.result()?;
                self.push(Dequantize { x, format: *format, y, to: *to, blocks })
            }
            Op::Cast { to } => {
                let x = self.operand(0)?;
                if self.values[x.0].dtype == *to {
                    return self.set(x);
                }
                let y = self.result()?;
                self.convert(x, y)
            }
            op => {
                let kind = unary_kind(op)?;
                let count = product(&self.dims(id)?)?;
                let (x, dtype) = self.number_operand(0)?;
                self.number_step(|y| Unary { kind, dtype, x, by: None, y, count }.into())
            }
        }
    }

    fn input(&mut self, role: InputRole) -> Option<()> {
        let ty = &self.graph.nodes[self.at.0 as usize].ty;
        let value = match role {
            InputRole::Weight => {
                self.weights += 1;
                let elements = product(&self.dims(self.at)?)?;
                self.value(ty.dtype, elements, Place::Weight(self.weights - 1))?
            }
            InputRole::KvCache => {
                self.caches += 1;
                self.value(ty.dtype, 0, Place::Cache(self.caches - 1))?
            }
            InputRole::Positions => {
                let value = self.temporary(ty.dtype, product(&self.dims(self.at)?)?)?;
                self.positions = Some(value);
                value
            }
            InputRole::Argument | InputRole::Tokens | InputRole::SamplingReal | InputRole::SamplingInt => {
                let value = self.temporary(ty.dtype, product(&self.dims(self.at)?)?)?;
                self.arguments.push(value);
                value
            }
        };
        self.set(value)
    }

    fn gather(&mut self, table: V, into: Option<V>) -> Option<()> {
        let rows = self.input_dims(0)?;
        let ids = self.input_dims(1)?;
        let (&bound, row) = rows.split_first()?;
        let row_bytes = usize::try_from(self.values[table.0].dtype.bytes()).ok()?.checked_mul(product(row)?)?;
        let count = product(&ids)?;
        let id_values = self.operand(1)?;
        let wide = self.values[id_values.0].dtype == DType::I64;
        let y = match into {
            Some(y) => y,
            None => self.result()?,
        };
        let node = &self.graph.nodes[self.at.0 as usize];
        let per_row = self.per_row(node.inputs[1], count);
        let op = node.op.name();
        self.push(Gather { table, ids: id_values, wide, y, bound, row_bytes, count, per_row, node: self.at, op })
    }

    fn scatter(&mut self) -> Option<()> {
        let table = self.input_dims(0)?;
        let (&bound, row) = table.split_first()?;
        let count = product(&self.input_dims(1)?)?;
        let (x, ids, updates) = (self.operand(0)?, self.operand(1)?, self.operand(2)?);
        let row_bytes = self.element_bytes(x).checked_mul(product(row)?)?;
        let wide = self.values[ids.0].dtype == DType::I64;
        let per_row = self.per_row(self.graph.nodes[self.at.0 as usize].inputs[1], count);
        let (y, node) = (self.result()?, self.at);
        self.push(Scatter { x, ids, wide, updates, y, bound, row_bytes, count, per_row, node })
    }

    fn binary(&mut self, kind: BinaryKind) -> Option<()> {
        let dims = self.dims(self.at)?;
        let walk = self.pairs(&dims)?;
        let per_row = self.per_row(self.at, product(&dims)?);
        let ((a, dtype), (b, _)) = (self.number_operand(0)?, self.number_operand(1)?);
        let node = self.at;
        self.number_step(|y| Binary { kind, dtype, a, b, y, walk, per_row, node }.into())
    }

    /// `activation(x) * gate`, f32 all.
    fn gated(&mut self, activation: NodeId, gate: NodeId) -> Option<()> {
        let node = &self.graph.nodes[activation.0 as usize];
        let kind = unary_kind(&node.op)?;
        let x = self.of_node[node.inputs.first()?.0 as usize]?;
        // A chain of activations: the gate may itself be one that waits for its own product, never for this one.
        let by = Some(self.of_node[gate.0 as usize]?);
        let count = product(&self.dims(self.at)?)?;
        self.float_step(|y| Unary { kind, dtype: DType::F32, x, by, y, count }.into())
    }

    fn rope(&mut self, theta: f32, head_dim: usize, style: RopeStyle) -> Option<()> {
        let inputs = self.graph.nodes[self.at.0 as usize].inputs.len();
        let dims = self.dims(self.at)?;
        let [batch, sequence, width] = dims[..] else { return None };
        let tokens = batch.checked_mul(sequence)?;
        let half = head_dim / 2;
        let (x, positions) = (self.f32_operand(0)?, self.operand(1)?);
        let given = if inputs == 3 { Some(self.operand(2)?) } else { None };
        let key = (positions, given, theta.to_bits(), half);
        let table = match self.tables.get(&key) {
            Some(&table) => table,
            None => {
                let frequencies = match given {
                    Some(frequencies) => frequencies,
                    None => self.constant(DType::F32, half, Content::Frequencies { theta })?,
                };
                let table = self.temporary(DType::F32, tokens.checked_mul(head_dim)?)?;
                self.push(RopeTable { positions, frequencies, table, tokens, half })?;
                self.tables.insert(key, table);
                table
            }
        };
        self.float_step(|y| Rope { x, table, y, tokens, heads: width / head_dim, half, style }.into())
    }

    fn attention(&mut self, layer: usize, shape: Heads, scale: f32, causal: bool) -> Option<()> {
        let inputs = self.graph.nodes[self.at.0 as usize].inputs.len();
        let dims = self.dims(self.at)?;
        let [batch, tokens, _] = dims[..] else { return None };
        let (q, k, v) = (self.f32_operand(0)?, self.f32_operand(1)?, self.f32_operand(2)?);
        let source = if inputs == 4 {
            let cache = self.operand(3)?;
            let to = Layer { cache, dtype: self.values[cache.0].dtype, layer };
            self.push(Append { k, v, to, shape, batch, tokens })?;
            Source::Cached(to)
        } else {
            Source::Fresh { k, v }
        };
        let scratch = self.temporary(DType::F32, Attend::scratch(shape.head_dim)?.checked_mul(self.members)?)?;
        self.float_step(|y| Attend { q, source, y, scratch, shape, batch, tokens, scale, causal }.into())
    }

    fn convert(&mut self, x: V, y: V) -> Option<()> {
        let (from, to) = (self.values[x.0].dtype, self.values[y.0].dtype);
        let count = self.values[x.0].bytes / self.element_bytes(x);
        self.push(Convert { x, from, y, to, count })
    }

    /// A step whose f32 result is the node's, converted if the node is of another float type.
    fn float_step(&mut self, step: impl FnOnce(V) -> Step) -> Option<()> {
        let node = &self.graph.nodes[self.at.0 as usize];
        if node.ty.dtype == DType::F32 {
            let y = self.result()?;
            return self.push(step(y));
        }
        let elements = product(&self.dims(self.at)?)?;
        let wide = self.temporary(DType::F32, elements)?;
        self.push(step(wide))?;
        let y = self.result()?;
        self.convert(wide, y)
    }

    /// As [`Self::float_step`], or for integers a step whose result is the node's.
    fn number_step(&mut self, step: impl FnOnce(V) -> Step) -> Option<()> {
        if self.graph.nodes[self.at.0 as usize].ty.dtype.is_float() {
            return self.float_step(step);
        }
        let y = self.result()?;
        self.push(step(y))
    }

    fn push(&mut self, step: impl Into<Step>) -> Option<()> {
        self.steps.push(step.into());
        Some(())
    }

    /// The value of the node's input.
    fn operand(&self, input: usize) -> Option<V> {
        let id = self.graph.nodes[self.at.0 as usize].inputs.get(input)?;
        self.of_node[id.0 as usize]
    }

    /// The value of the node's float input as f32.
    fn f32_operand(&mut self, input: usize) -> Option<V> {
        self.float_operand(input, DType::F32)
    }

    /// The value of the node's float input as another float type, converted once for all who ask.
    fn float_operand(&mut self, input: usize, wanted: DType) -> Option<V> {
        let x = self.operand(input)?;
        let Value { dtype, bytes, .. } = self.values[x.0];
        if dtype == wanted {
            return Some(x);
        }
        if let Some(&converted) = self.converted.get(&(x, wanted)) {
            return Some(converted);
        }
        let y = self.temporary(wanted, bytes / usize::try_from(dtype.bytes()).ok()?)?;
        self.convert(x, y)?;
        self.converted.insert((x, wanted), y);
        Some(y)
    }

    /// Floats as f32, integers as they are.
    fn number_operand(&mut self, input: usize) -> Option<(V, DType)> {
        let x = self.operand(input)?;
        let dtype = self.values[x.0].dtype;
        if dtype.is_float() { Some((self.f32_operand(input)?, DType::F32)) } else { Some((x, dtype)) }
    }

    /// A new value for the node's result.
    fn result(&mut self) -> Option<V> {
        let dtype = self.graph.nodes[self.at.0 as usize].ty.dtype;
        let value = self.temporary(dtype, product(&self.dims(self.at)?)?)?;
        self.set(value)?;
        Some(value)
    }

    fn set(&mut self, value: V) -> Option<()> {
        self.of_node[self.at.0 as usize] = Some(value);
        Some(())
    }

    fn temporary(&mut self, dtype: DType, elements: usize) -> Option<V> {
        self.value(dtype, elements, Place::Arena(0))
    }

    fn constant(&mut self, dtype: DType, elements: usize, content: Content) -> Option<V> {
        let offset = self.constant_bytes;
        let value = self.value(dtype, elements, Place::Constant(offset))?;
        let end = offset.checked_add(self.values[value.0].bytes)?.checked_next_multiple_of(64)?;
        self.constant_bytes = end;
        self.constants.push(Constant { offset, dtype, elements, content });
        Some(value)
    }

    fn value(&mut self, dtype: DType, elements: usize, place: Place) -> Option<V> {
        let bytes = usize::try_from(byte_len(dtype, &[elements as u64])?).ok()?;
        isize::try_from(bytes).ok()?;
        self.values.push(Value { dtype, bytes, place });
        Some(V(self.values.len() - 1))
    }

    fn element_bytes(&self, v: V) -> usize {
        self.values[v.0].dtype.bytes() as usize
    }

    fn dims(&self, id: NodeId) -> Option<Vec<usize>> {
        self.graph.concrete(id, self.sizes)?.into_iter().map(|d| usize::try_from(d).ok()).collect()
    }

    fn input_dims(&self, input: usize) -> Option<Vec<usize>> {
        self.dims(*self.graph.nodes[self.at.0 as usize].inputs.get(input)?)
    }

    /// How many of a node's `count` elements belong to one batch row.
    fn per_row(&self, id: NodeId, count: usize) -> usize {
        let batched = self.graph.nodes[id.0 as usize].ty.shape.0.first() == Some(&Dim::Symbol(Symbol::Batch));
        let rows = if batched { usize::try_from(self.sizes.batch).unwrap_or(1) } else { 1 };
        (count / rows.max(1)).max(1)
    }
}

fn product(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1_usize, |p, &d| p.checked_mul(d))
}

fn rows_and_width(dims: &[usize]) -> Option<(usize, usize)> {
    let (&width, lead) = dims.split_last()?;
    Some((product(lead)?, width))
}

fn axis_of(axis: i32, rank: usize) -> Option<usize> {
    let rank_i = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { i64::from(axis) + rank_i } else { i64::from(axis) };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// Elements before, along and after an axis.
fn around(dims: &[usize], axis: i32) -> Option<(usize, usize, usize)> {
    let axis = axis_of(axis, dims.len())?;
    Some((product(&dims[..axis])?, dims[axis], product(&dims[axis + 1..])?))
}
