//! From a graph to steps on a GPU.
//!
//! Values have the element types of the graph; kernels compute in f32. Reshapes and whole slices cost nothing, they rename a value;
//! parts of the last dimension are read where they lie, where a kernel can. A linear layer takes along what is done to its sums
//! (`fuse`), and in a decode step the norm before it.

mod ahead;
mod attend;
mod fuse;
mod image;
mod layout;
mod norm;
mod pointwise;
mod product;

use std::collections::HashMap;

use genie_cuda_kernels::launch::{self, binary::Binary, elementwise::Unary};
use genie_cuda_kernels::{Launch, LaunchError};
use genie_graph::{DType, Dim, InputRole, Node, NodeId, Op, SizeError, Sizes, Symbol, VerifiedGraph};

use self::fuse::Fusions;
use super::plan::{At, HEAD_ALIGN, Place, Step, V, Value, Work, place};
use crate::device::KvSpec;

/// The name of a node's op, if there is no kernel for it yet.
pub(super) fn missing(node: &Node) -> Option<&'static str> {
    match &node.op {
        Op::Reduce { .. } if node.ty.dtype == DType::Bool => Some("reduce of bool"),
        op @ (Op::Cumulative { .. } | Op::ArgSort { .. } | Op::ScatterAlong { .. } | Op::ArgReduce { .. }) => {
            Some(op.name())
        }
        _ => None,
    }
}

/// What the kernels of a plan may go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Machine {
    /// Multiprocessors.
    pub(super) sms: u32,
    /// Bytes of shared memory a block.
    pub(super) shared: u32,
    /// Blocks of a KV cache that a row's table has room for.
    pub(super) max_blocks: u32,
    /// Whether products ask for weights of later ones.
    pub(super) prefetches: bool,
}

/// A node that can fault at run time: an index out of range, a division by zero. The word of its number says which element is the
/// first to blame, or is all ones.
#[derive(Clone, Debug)]
pub(super) struct FaultSite {
    pub(super) node: NodeId,
    /// The indices and what they must be below; none: a division.
    pub(super) ids: Option<(V, u64)>,
    /// Elements that belong to one batch row.
    pub(super) per_row: u64,
}

/// Where the rows' caches are, for one cache input: `lens` i32 `[B]`, `blocks` i64 `[B, max_blocks]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    pub(super) lens: V,
    pub(super) blocks: V,
    pub(super) spec: KvSpec,
}

/// A graph lowered for one set of sizes.
pub(super) struct Lowered {
    pub(super) steps: Vec<Step>,
    pub(super) values: Vec<Value>,
    pub(super) arena_bytes: usize,
    /// The head has what a run brings from the host: arguments, and last the words of faults, so that one copy resets them. Behind them
    /// is the token that was sampled, so that one copy fetches both.
    pub(super) head_bytes: usize,
    /// Where the words of faults are in it.
    pub(super) faults_at: usize,
    /// Where what a run brings ends.
    pub(super) brought_bytes: usize,
    /// Made once, when the plan is.
    pub(super) constants: Vec<Step>,
    pub(super) constant_bytes: usize,
    pub(super) arguments: Vec<V>,
    pub(super) positions: Option<V>,
    pub(super) tables: Vec<Tables>,
    pub(super) faults: Vec<FaultSite>,
    pub(super) outputs: Vec<V>,
    /// Bytes that attention and products need of the words that are 0 between runs, and behind them.
    pub(super) counter_bytes: usize,
}

/// Bytes of outputs that lie in the head, at the most.
const SMALL_OUTPUTS: usize = 4 << 10;

/// Lowers a graph.
///
/// # Errors
/// Sizes that the graph cannot be run with.
pub(super) fn lower(graph: &VerifiedGraph, sizes: &Sizes, machine: Machine) -> Result<Lowered, SizeError> {
    graph.check_sizes(sizes)?;
    let mut lowering = Lowering {
        graph,
        sizes,
        machine,
        fusions: Fusions::find(graph, sizes),
        at: NodeId(0),
        values: Vec::new(),
        of_node: vec![None; graph.nodes.len()],
        steps: Vec::new(),
        asks: None,
        frequencies: HashMap::new(),
        head_bytes: 0,
        constants: Vec::new(),
        constant_bytes: 0,
        counter_bytes: 0,
        arguments: Vec::new(),
        positions: None,
        tables: Vec::new(),
        faults: Vec::new(),
        weights: 0,
    };
    for i in 0..graph.nodes.len() {
        lowering.at = NodeId(i as u32);
        if lowering.node().is_none() {
            return Err(lowering.overflow());
        }
    }
    let outputs: Option<Vec<V>> = graph.outputs.iter().map(|o| lowering.value_of(o.node)).collect();
    let overflow = lowering.overflow();
    let outputs = outputs.ok_or_else(|| overflow.clone())?;
    let Lowering { steps, mut values, faults, .. } = lowering;
    // What a fault names is looked up after the run.
    let ids = faults.iter().filter_map(|site| site.ids.map(|(ids, _)| ids));
    let stay: Vec<V> = outputs.iter().copied().chain(ids).collect();
    let faults_at = lowering.head_bytes;
    let brought_bytes = faults_at.checked_add(8 * faults.len()).ok_or_else(|| overflow.clone())?;
    let head_bytes = small_outputs(&mut values, &outputs, brought_bytes).ok_or_else(|| overflow.clone())?;
    let arena_bytes = place(&steps, &mut values, &stay).ok_or(overflow)?;
    Ok(Lowered {
        steps,
        values,
        arena_bytes,
        head_bytes,
        faults_at,
        brought_bytes,
        constants: lowering.constants,
        constant_bytes: lowering.constant_bytes,
        arguments: lowering.arguments,
        positions: lowering.positions,
        tables: lowering.tables,
        faults,
        outputs,
        counter_bytes: lowering.counter_bytes,
    })
}

/// Gives small outputs of whole numbers places in the head, from here on; where they end. Products' results stay where they are: the
/// library goes by how they are aligned.
fn small_outputs(values: &mut [Value], outputs: &[V], from: usize) -> Option<usize> {
    let mut end = from.checked_next_multiple_of(HEAD_ALIGN)?;
    let most = end.checked_add(SMALL_OUTPUTS)?;
    for v in outputs {
        let value = &mut values[v.0];
        let bytes = value.bytes();
        let whole = matches!(value.dtype, DType::I32 | DType::I64) && matches!(value.place, Place::Arena(_));
        if whole && bytes > 0 && bytes <= most - end {
            value.place = Place::Head(end);
            end = (end + bytes).next_multiple_of(HEAD_ALIGN).min(most);
        }
    }
    Some(end)
}

/// What a node has come to.
#[derive(Clone, Debug)]
enum Made {
    /// It lies there.
    Value(V),
    /// Columns of another value, read where they lie by who can: `[rows, width]`, rows `stride` elements apart.
    Columns { of: V, start: u64, stride: u64 },
    /// A rotary embedding that is done where keys are put into the cache, if it is for that.
    Turned(attend::Turned),
    /// A KV cache: the number of its input.
    Cache(usize),
}

struct Lowering<'g> {
    graph: &'g VerifiedGraph,
    sizes: &'g Sizes,
    machine: Machine,
    fusions: Fusions,
    /// The node that is being lowered.
    at: NodeId,
    values: Vec<Value>,
    of_node: Vec<Option<Made>>,
    steps: Vec<Step>,
    /// The step that asks for what the next large product reads.
    asks: Option<usize>,
    /// Tables of inverse frequencies, by theta and head size.
    frequencies: HashMap<(u32, u64), V>,
    head_bytes: usize,
    constants: Vec<Step>,
    constant_bytes: usize,
    counter_bytes: usize,
    arguments: Vec<V>,
    positions: Option<V>,
    tables: Vec<Tables>,
    faults: Vec<FaultSite>,
    weights: usize,
}

/// A launch as the work of a step.
fn one(launch: Result<Option<Launch>, LaunchError>) -> Result<Vec<Work>, LaunchError> {
    Ok(launch?.map(Work::launch).into_iter().collect())
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
        if self.of_node[id.0 as usize].is_some() || self.fusions.inner.contains(&id) {
            return Some(());
        }
        if let Some(fused) = self.fusions.products.get(&id).copied() {
            return self.linear(fused);
        }
        match &node.op {
            Op::Input { role, .. } => self.input(*role),
            Op::Zeros => self.fill(0.0),
            Op::Ones => self.fill(1.0),
            Op::Full { value } => self.fill(*value),
            Op::Arange { start, step } => {
                let (start, step) = (*start, *step);
                self.emit([], move |at, y| one(launch::create::arange(start, step, at.view(y))))
            }
            Op::Rand { seed } => {
                let seed = *seed;
                self.emit([], move |at, y| one(launch::create::rand(seed, at.view(y))))
            }
            Op::Randn { seed } => {
                let seed = *seed;
                self.emit([], move |at, y| one(launch::create::randn(seed, at.view(y))))
            }
            Op::Embedding { .. } | Op::Gather => self.gather(),
            Op::Scatter => self.scatter(),
            // `fusions.products` has every linear layer.
            Op::Linear { .. } => None,
            Op::MatMul => self.matmul(),
            Op::Add => self.binary(Binary::Add),
            Op::Sub => self.binary(Binary::Sub),
            Op::Mul => self.binary(Binary::Mul),
            Op::Div => self.binary(Binary::Div),
            Op::RmsNorm { .. } | Op::LayerNorm { .. } => self.norm(),
            Op::Rope { theta, head_dim, style } => self.rope(*theta, u64::from(*head_dim), *style),
            Op::Softmax { axis } => self.softmax(*axis),
            Op::Attention { .. } => self.attention(),
            // Products behind it take the norm before it along.
            Op::Reshape { .. } if self.is_taken_along(self.rows_of(id)) => Some(()),
            Op::Reshape { .. } => {
                let x = self.operand(0)?;
                self.set(Made::Value(x))
            }
            Op::Transpose { perm } => {
                let perm: Vec<usize> = perm.iter().map(|&p| p as usize).collect();
                self.transpose(&perm)
            }
            Op::Slice { axis, start, step, .. } => self.slice(*axis, *start, *step),
            Op::Concat { axis } => self.concat(*axis),
            Op::Reduce { kind, axes, .. } => self.reduce(*kind, axes),
            Op::ArgMax { axis } => self.argmax(*axis),
            Op::Sample => self.sample(),
            Op::Cast { .. } if self.norm_of(id).is_some() => self.norm(),
            Op::Cast { to } => {
                let x = self.operand(0)?;
                if self.values[x.0].dtype == *to {
                    return self.set(Made::Value(x));
                }
                self.emit([x], move |at, y| one(launch::cast::cast(at.view(x), at.view(y))))
            }
            Op::Dequantize { format, .. } => {
                // Who multiplies by it reads the blocks.
                let reads_blocks = |reader: NodeId| product::takes_blocks(graph, reader, id);
                if self.fusions.all_readers(id, reads_blocks) {
                    return Some(());
                }
                let x = self.operand(0)?;
                let format = *format;
                self.emit([x], move |at, y| one(launch::dequant::dequantize(format, at.view(x), at.view(y))))
            }
            Op::Conv2d { .. } => self.convolution(),
            Op::BatchNorm { eps } => self.batch_norm(*eps),
            Op::Pool { .. } => self.pool(),
            Op::Unary { kind } => self.function(*kind),
            Op::Binary { kind } => self.combine(*kind),
            Op::Compare { kind } => self.compare(*kind),
            Op::Where => self.choose(),
            Op::Broadcast { .. } => self.broadcast(),
            Op::Pad { before, value, .. } => self.pad(before, *value),
            Op::Flip { axes } => self.flip(axes),
            Op::TakeAlong { axis } => self.take_along(*axis),
            Op::Random { kind, .. } => self.random(*kind),
            op => {
                let function = unary(op)?;
                let x = self.operand(0)?;
                self.emit([x], move |at, y| one(launch::elementwise::unary(function, at.view(x), at.view(y))))
            }
        }
    }

    fn input(&mut self, role: InputRole) -> Option<()> {
        let ty = &self.graph.nodes[self.at.0 as usize].ty;
        let value = match role {
            InputRole::KvCache => {
                let spec = KvSpec::of(ty)?;
                let lens = self.head(DType::I32, self.sizes.batch)?;
                let blocks = self.head(DType::I64, self.sizes.batch.checked_mul(self.machine.max_blocks.into())?)?;
                self.tables.push(Tables { lens, blocks, spec });
                return self.set(Made::Cache(self.tables.len() - 1));
            }
            InputRole::Weight => {
                self.weights += 1;
                let elements = product(&self.dims(self.at)?)?;
                self.value(ty.dtype, elements, Place::Weight(self.weights - 1))?
            }
            InputRole::Positions => {
                let value = self.head(ty.dtype, product(&self.dims(self.at)?)?)?;
                self.positions = Some(value);
                value
            }
            InputRole::Argument | InputRole::Tokens | InputRole::SamplingReal | InputRole::SamplingInt => {
                let value = self.head(ty.dtype, product(&self.dims(self.at)?)?)?;
                self.arguments.push(value);
                value
            }
        };
        self.set(Made::Value(value))
    }

    fn fill(&mut self, value: f64) -> Option<()> {
        let bits = bits(self.graph.nodes[self.at.0 as usize].ty.dtype, value);
        self.emit([], move |at, y| one(launch::create::fill(at.view(y), bits)))
    }

    fn binary(&mut self, kind: Binary) -> Option<()> {
        let (a_dims, b_dims) = (self.input_dims(0)?, self.input_dims(1)?);
        let count = product(&self.dims(self.at)?)?;
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        // The kernel takes a word in any case; only integers divide by zero.
        let word = self.fault(None, count)?;
        self.emit([a, b], move |at, y| {
            one(launch::binary::binary(kind, at.view(a), &a_dims, at.view(b), &b_dims, at.view(y), at.view(word).at))
        })
    }

    fn sample(&mut self) -> Option<()> {
        let (rows, width) = rows_and_width(&self.input_dims(0)?)?;
        let [logits, real, integer, positions] =
            [self.operand(0)?, self.operand(1)?, self.operand(2)?, self.operand(3)?];
        let scratch = self.temporary(DType::U8, launch::sample::scratch_bytes(rows))?;
        self.emit([logits, real, integer, positions, scratch], move |at, y| {
            let sample = launch::sample::Sample {
                rows,
                width,
                logits: at.view(logits),
                real: at.view(real),
                integer: at.view(integer),
                positions: at.view(positions),
                tokens: at.view(y),
                scratch: at.view(scratch),
            };
            Ok(launch::sample::sample(&sample, at.sms)?.into_iter().flatten().map(Work::launch).collect())
        })
    }

    /// A step whose result is the node's.
    fn emit(
        &mut self,
        reads: impl IntoIterator<Item = V>,
        make: impl Fn(&At<'_>, V) -> Result<Vec<Work>, LaunchError> + Send + Sync + 'static,
    ) -> Option<()> {
        let y = self.result()?;
        self.step(reads, y, make)
    }

    /// A step whose result is `y`.
    fn step(
        &mut self,
        reads: impl IntoIterator<Item = V>,
        y: V,
        make: impl Fn(&At<'_>, V) -> Result<Vec<Work>, LaunchError> + Send + Sync + 'static,
    ) -> Option<()> {
        self.steps.push(Step::new(reads.into_iter().chain([y]), move |at| make(at, y)));
        Some(())
    }

    /// A word that says which element of this node is to blame, if any.
    fn fault(&mut self, ids: Option<(V, u64)>, count: u64) -> Option<V> {
        let word = self.value(DType::I64, 1, Place::Fault(self.faults.len()))?;
        let batched = self.graph.nodes[self.at.0 as usize].ty.shape.0.first() == Some(&Dim::Symbol(Symbol::Batch));
        let rows = if batched { self.sizes.batch } else { 1 };
        self.faults.push(FaultSite { node: self.at, ids, per_row: (count / rows.max(1)).max(1) });
        Some(word)
    }

    fn inputs(&self) -> usize {
        self.graph.nodes[self.at.0 as usize].inputs.len()
    }

    fn input_node(&self, input: usize) -> Option<NodeId> {
        self.graph.nodes[self.at.0 as usize].inputs.get(input).copied()
    }

    /// The value of the node's input.
    fn operand(&mut self, input: usize) -> Option<V> {
        self.value_of(self.input_node(input)?)
    }

    /// The value of a node, made now if it was put off.
    fn value_of(&mut self, id: NodeId) -> Option<V> {
        match self.of_node[id.0 as usize].clone()? {
            Made::Value(v) => Some(v),
            Made::Columns { of, start, stride } => self.made(id, |lowering| lowering.copy_columns(of, start, stride)),
            Made::Turned(turned) => self.made(id, |lowering| lowering.turn(turned)),
            Made::Cache(_) => None,
        }
    }

    /// Makes the value of an earlier node.
    fn made(&mut self, id: NodeId, make: impl FnOnce(&mut Self) -> Option<()>) -> Option<V> {
        let now = std::mem::replace(&mut self.at, id);
        let made = make(self);
        self.at = now;
        made?;
        match self.of_node[id.0 as usize] {
            Some(Made::Value(v)) => Some(v),
            _ => None,
        }
    }

    /// A new value for the node's result.
    fn result(&mut self) -> Option<V> {
        let dtype = self.graph.nodes[self.at.0 as usize].ty.dtype;
        let value = self.temporary(dtype, product(&self.dims(self.at)?)?)?;
        self.set(Made::Value(value))?;
        Some(value)
    }

    fn set(&mut self, result: Made) -> Option<()> {
        self.of_node[self.at.0 as usize] = Some(result);
        Some(())
    }

    fn temporary(&mut self, dtype: DType, elements: u64) -> Option<V> {
        self.value(dtype, elements, Place::Arena(0))
    }

    /// A value that each run brings.
    fn head(&mut self, dtype: DType, elements: u64) -> Option<V> {
        let value = self.value(dtype, elements, Place::Head(self.head_bytes))?;
        let end = self.head_bytes.checked_add(self.values[value.0].bytes())?;
        self.head_bytes = end.checked_next_multiple_of(HEAD_ALIGN)?;
        Some(value)
    }

    fn value(&mut self, dtype: DType, elements: u64, place: Place) -> Option<V> {
        let bytes = elements.checked_mul(dtype.bytes())?;
        isize::try_from(bytes).ok()?;
        self.values.push(Value { dtype, elements, place });
        Some(V(self.values.len() - 1))
    }

    fn dims(&self, id: NodeId) -> Option<Vec<u64>> {
        self.graph.concrete(id, self.sizes)
    }

    fn input_dims(&self, input: usize) -> Option<Vec<u64>> {
        self.dims(self.input_node(input)?)
    }
}

fn product(dims: &[u64]) -> Option<u64> {
    dims.iter().try_fold(1_u64, |p, &d| p.checked_mul(d))
}

fn rows_and_width(dims: &[u64]) -> Option<(u64, u64)> {
    let (&width, lead) = dims.split_last()?;
    Some((product(lead)?, width))
}

fn axis_of(axis: i32, rank: usize) -> Option<usize> {
    let rank_i = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { i64::from(axis) + rank_i } else { i64::from(axis) };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// Elements before, along and after an axis.
fn around(dims: &[u64], axis: i32) -> Option<(u64, u64, u64)> {
    let axis = axis_of(axis, dims.len())?;
    Some((product(&dims[..axis])?, dims[axis], product(&dims[axis + 1..])?))
}

/// Strides of a contiguous tensor.
fn contiguous(dims: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    strides
}

/// A number as the bits of an element.
fn bits(dtype: DType, value: f64) -> u64 {
    match dtype {
        DType::F32 => (value as f32).to_bits().into(),
        DType::F16 => half::f16::from_f32(value as f32).to_bits().into(),
        DType::BF16 => half::bf16::from_f32(value as f32).to_bits().into(),
        DType::I64 => (value as i64) as u64,
        DType::I32 => ((value as i32) as u32).into(),
        DType::U8 => (value as u8).into(),
        DType::Bool => u64::from(value != 0.0),
    }
}

fn unary(op: &Op) -> Option<Unary> {
    Some(match op {
        Op::Gelu { tanh: true } => Unary::GeluTanh,
        Op::Gelu { tanh: false } => Unary::Gelu,
        Op::Silu => Unary::Silu,
        Op::Relu => Unary::Relu,
        Op::Sigmoid => Unary::Sigmoid,
        Op::Tanh => Unary::Tanh,
        Op::Abs => Unary::Abs,
        Op::Neg => Unary::Neg,
        Op::Exp => Unary::Exp,
        Op::Log => Unary::Log,
        Op::Sqrt => Unary::Sqrt,
        _ => return None,
    })
}
