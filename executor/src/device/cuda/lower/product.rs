//! Products of matrices.

use genie_cuda_kernels::gpu::{Operands, Product, WeightLayout};
use genie_cuda_kernels::launch::ahead::Ahead;
use genie_cuda_kernels::launch::cast;
use genie_cuda_kernels::launch::elementwise::{self, bias_activation, gated};
use genie_cuda_kernels::launch::epilogue::{Activation, Epilogue};
use genie_cuda_kernels::launch::gemm::{Batch, Gemm};
use genie_cuda_kernels::launch::matvec::{Gate, MOST_ROWS, Matvec};
use genie_cuda_kernels::launch::weight::Weight;
use genie_cuda_kernels::launch::workspace::Machine;
use genie_cuda_kernels::{Launch, LaunchError, View};
use genie_graph::{DType, LinearLayout, NodeId, Op, QuantFormat, VerifiedGraph};

use super::super::plan::{ATTENTION_COUNTERS, At, V, Value, Way, Work};
use super::fuse::Fused;
use super::norm::{Norm, Rows};
use super::{Lowering, product, rows_and_width};

/// Rows from which on a bias is rounded for a library's product, to the result's type: that costs a small kernel, and saves one that goes
/// over all results.
const ROUNDED_BIAS_ROWS: u64 = 64;

/// Whether a node multiplies by the blocks that `dequantized` would unpack.
pub(super) fn takes_blocks(graph: &VerifiedGraph, reader: NodeId, dequantized: NodeId) -> bool {
    let node = &graph.nodes[reader.0 as usize];
    let blocks = &graph.nodes[dequantized.0 as usize];
    let is_weight = blocks.inputs.first().is_some_and(|&x| {
        matches!(graph.nodes[x.0 as usize].op, Op::Input { .. }) && graph.nodes[x.0 as usize].ty.shape.rank() == 2
    });
    node.op == Op::Linear { layout: LinearLayout::OutIn }
        && is_weight
        && node.inputs.get(1) == Some(&dequantized)
        && node.inputs.iter().filter(|&&input| input == dequantized).count() == 1
}

/// A weight as a product reads it.
#[derive(Clone, Copy)]
struct Stored {
    v: V,
    format: Option<QuantFormat>,
    layout: LinearLayout,
}

impl Stored {
    fn at(self, at: &At<'_>) -> Weight {
        let weight = match self.format {
            None => Weight::plain(at.view(self.v), self.layout),
            Some(format) => Weight::quantised(at.view(self.v), format),
        };
        weight.with_constant(at.is_weight(self.v))
    }
}

/// The ways of a library to do a product and what is behind it: all at once, where it can do `whole`, and else the bare sums, which
/// `alone` finishes.
fn ways(
    bare: Product,
    sums: Operands,
    alone: Option<Result<Option<Launch>, LaunchError>>,
    whole: Option<Epilogue>,
) -> Result<Vec<Way>, LaunchError> {
    let mut ways = Vec::new();
    if let Some(Epilogue { bias, activation, residual, .. }) = whole
        && bias.is_none_or(|bias| bias.dtype == bare.c_type)
    {
        let product = Product { gelu: activation == Activation::GeluTanh, ..bare };
        ways.push(Way { product, operands: Operands { added: residual, bias, ..sums }, then: Vec::new() });
    }
    if let Some(alone) = alone {
        let then: Vec<_> = alone?.into_iter().collect();
        // Nothing is left to do where the first way was the bare product.
        if !then.is_empty() || ways.is_empty() {
            ways.push(Way { product: bare, operands: sums, then });
        }
    }
    Ok(ways)
}

/// What happens to the sums.
#[derive(Clone, Copy)]
struct After {
    bias: Option<V>,
    activation: Activation,
    factor: Option<V>,
    residual: Option<V>,
}

impl After {
    fn at(self, at: &At<'_>) -> Epilogue {
        let view = |v: Option<V>| v.map(|v| at.view(v));
        Epilogue {
            bias: view(self.bias),
            activation: self.activation,
            factor: view(self.factor),
            residual: view(self.residual),
        }
    }

    fn reads(self) -> impl Iterator<Item = V> {
        self.bias.into_iter().chain(self.factor).chain(self.residual)
    }

    /// Whether a library's product does all of it, where the bias has the result's type: its gelu follows what is added, and is good enough
    /// for results of 16 bits alone; and what is added has the result's type.
    fn is_of_library(self, values: &[Value], y: V) -> bool {
        let y_type = values[y.0].dtype;
        let alike = self.residual.is_none_or(|residual| values[residual.0].dtype == y_type);
        let activated = match self.activation {
            Activation::None => true,
            Activation::GeluTanh => self.residual.is_none() && y_type != DType::F32,
            _ => false,
        };
        alike && activated && self.factor.is_none()
    }

    /// The same after a product that has stored its bare sums in `y`; `None` where no kernel does it in one pass.
    fn alone(self, at: &At<'_>, y: View, rows: u64, width: u64) -> Option<Result<Option<Launch>, LaunchError>> {
        let activation = match self.activation {
            Activation::None => elementwise::Activation::None,
            Activation::Relu => elementwise::Activation::Relu,
            Activation::Silu => elementwise::Activation::Silu,
            Activation::Gelu => elementwise::Activation::Gelu,
            Activation::GeluTanh => elementwise::Activation::GeluTanh,
            Activation::Sigmoid => elementwise::Activation::Sigmoid,
            Activation::Tanh => elementwise::Activation::Tanh,
        };
        let Epilogue { bias, factor, residual, .. } = self.at(at);
        if [factor, residual].into_iter().flatten().any(|view| view.dtype != y.dtype) {
            return None;
        }
        match (bias, factor, residual) {
            (None, None, None) if self.activation == Activation::None => Some(Ok(None)),
            (bias, None, residual) => Some(bias_activation(activation, y, bias, residual, y, rows, width)),
            (None, Some(factor), None) => Some(gated(activation, y, factor, y)),
            _ => None,
        }
    }
}

impl Lowering<'_> {
    /// The weight of a linear layer.
    fn stored(&mut self, id: NodeId, layout: LinearLayout) -> Option<Stored> {
        let node = &self.graph.nodes[id.0 as usize];
        if let (Op::Dequantize { format, .. }, None) = (&node.op, &self.of_node[id.0 as usize]) {
            let format = Some(*format);
            return Some(Stored { v: self.value_of(*node.inputs.first()?)?, format, layout });
        }
        Some(Stored { v: self.value_of(id)?, format: None, layout })
    }

    pub(super) fn linear(&mut self, fused: Fused) -> Option<()> {
        let graph = self.graph;
        let node = &graph.nodes[fused.linear.0 as usize];
        let &Op::Linear { layout } = &node.op else { return None };
        let (x_id, w_id) = (*node.inputs.first()?, *node.inputs.get(1)?);
        let (rows, k) = rows_and_width(&self.dims(x_id)?)?;
        let n = *self.dims(fused.linear)?.last()?;
        let weight = self.stored(w_id, layout)?;
        let bias = node.inputs.get(2).map(|&id| self.value_of(id));
        let bias = match bias {
            Some(bias) => Some(bias?),
            None => None,
        };
        let residual = match fused.residual {
            Some(id) => Some(self.value_of(id)?),
            None => None,
        };
        let few = rows <= MOST_ROWS;
        let gate = match fused.factor.filter(|_| fused.gate && few) {
            Some(id) => {
                let gate = &graph.nodes[id.0 as usize];
                let weight = self.stored(*gate.inputs.get(1)?, layout)?;
                let bias = match gate.inputs.get(2) {
                    Some(&id) => Some(self.value_of(id)?),
                    None => None,
                };
                Some((weight, bias))
            }
            None => None,
        };
        let factor = match fused.factor.filter(|_| gate.is_none()) {
            // It was left for its product, which takes too many rows for that.
            Some(id) if fused.gate => Some(self.linear_of(id)?),
            Some(id) => Some(self.value_of(id)?),
            None => None,
        };
        let after = After { bias, activation: fused.activation, factor, residual };
        if few {
            let x = self.normed(x_id)?;
            return self.matvec(x, weight, gate, after, [rows, n, k]);
        }
        let x = self.value_of(x_id)?;
        self.gemm(x, weight, after, [1, rows, n, k], [0, 0, 0])
    }

    /// A linear layer by itself.
    fn linear_of(&mut self, id: NodeId) -> Option<V> {
        let alone = Fused { linear: id, activation: Activation::None, factor: None, gate: false, residual: None };
        self.made(id, |lowering| lowering.linear(alone))
    }

    fn matvec(
        &mut self,
        rows_of: Rows,
        weight: Stored,
        gate: Option<(Stored, Option<V>)>,
        after: After,
        [rows, n, k]: [u64; 3],
    ) -> Option<()> {
        let machine = Machine { sms: self.machine.sms, shared: self.machine.shared };
        let Rows { x, norm, rounded } = rows_of;
        let make = move |at: &At<'_>, y: View| Matvec {
            x: at.view(x),
            x_as: rounded,
            y,
            weight: weight.at(at),
            gate: gate.map(|(weight, bias)| Gate { weight: weight.at(at), bias: bias.map(|bias| at.view(bias)) }),
            prologue: norm.at(at),
            epilogue: after.at(at),
            ahead: at.ahead.map(|(v, part)| Ahead { weight: at.view(v), part }),
            rows,
            n,
            k,
        };
        let y = self.result()?;
        let bytes = self.nowhere(|at| make(at, at.view(y)).workspace_bytes(machine)).ok()?;
        self.counters(0, bytes)?;
        self.ask_for(weight.v, |at, most| make(at, at.view(y)).later(machine, most))?;
        let gated = gate.iter().flat_map(|(weight, bias)| [Some(weight.v), *bias]).flatten();
        let reads: Vec<V> = [x, weight.v].into_iter().chain(norm.reads()).chain(gated).chain(after.reads()).collect();
        self.step(reads, y, move |at, y| {
            let workspace = View::new(at.counters + ATTENTION_COUNTERS, DType::U8, bytes);
            let launches = make(at, at.view(y)).launches(workspace, machine)?;
            Ok(launches.into_iter().flatten().map(Work::launch).collect())
        })
    }

    /// A product of many rows, or of several matrices: `[batch, m, n, k]`, and the elements from one of a, of b and of c to the next.
    fn gemm(
        &mut self,
        a: V,
        weight: Stored,
        after: After,
        [batch, m, n, k]: [u64; 4],
        [a_step, b_step, c_step]: [u64; 3],
    ) -> Option<()> {
        let a_type = self.values[a.0].dtype;
        let same = weight.format.is_none() && self.values[weight.v.0].dtype == a_type;
        let machine = Machine { sms: self.machine.sms, shared: self.machine.shared };
        let make = move |at: &At<'_>, c: View| Gemm {
            a: at.view(a),
            b: weight.at(at),
            c,
            epilogue: after.at(at),
            m,
            n,
            k,
            batch: Batch { count: batch, same_a: false, same_b: false },
        };
        let y = self.result()?;
        let y_type = self.values[y.0].dtype;
        let is_known = same && [a_type, DType::F32].contains(&y_type);
        let of_library = is_known && after.is_of_library(&self.values, y);
        // The bias as the library takes it, where it is not so already.
        let rounded = match after.bias.filter(|bias| of_library && self.values[bias.0].dtype != y_type) {
            Some(bias) if m >= ROUNDED_BIAS_ROWS => Some((bias, self.temporary(y_type, n)?)),
            _ => None,
        };
        let bytes = self.nowhere(|at| make(at, at.view(y)).workspace_bytes(machine)).ok()?;
        self.counters(0, bytes)?;
        let of_bias = rounded.map(|(_, narrow)| narrow);
        let reads: Vec<V> = [a, weight.v].into_iter().chain(after.reads()).chain(of_bias).collect();
        self.step(reads, y, move |at, y| {
            let (y, b) = (at.view(y), weight.at(at));
            let workspace = View::new(at.counters + ATTENTION_COUNTERS, DType::U8, bytes);
            let otherwise: Vec<_> = make(at, y).launch(workspace, machine)?.into_iter().collect();
            let layout = match b.layout {
                LinearLayout::OutIn => WeightLayout::OutIn,
                LinearLayout::InOut => WeightLayout::InOut,
            };
            let (c_type, gelu) = (y.dtype, false);
            let bare = Product { dtype: a_type, c_type, layout, m, n, k, batch, a_step, b_step, c_step, gelu };
            let sums = Operands::new(at.view(a), b.view, y);
            if !is_known {
                return Ok(vec![Work::Product { ways: Vec::new(), otherwise }]);
            }
            let mut work = Vec::new();
            if let Some((bias, narrow)) = rounded {
                work.extend(cast::cast(at.view(bias), at.view(narrow))?.map(Work::launch));
            }
            let whole = After { bias: of_bias.or(after.bias), ..after };
            let ways = ways(bare, sums, after.alone(at, y, batch * m, n), of_library.then(|| whole.at(at)))?;
            work.push(Work::Product { ways, otherwise });
            Ok(work)
        })
    }

    pub(super) fn matmul(&mut self) -> Option<()> {
        let (a, b) = (self.input_dims(0)?, self.input_dims(1)?);
        let [lead @ .., rows, k] = &a[..] else { return None };
        let (n, k) = (*b.last()?, *k);
        let x = self.operand(0)?;
        let weight = Stored { v: self.operand(1)?, format: None, layout: LinearLayout::InOut };
        let after = After { bias: None, activation: Activation::None, factor: None, residual: None };
        if b.len() == 2 {
            let rows = product(lead)?.checked_mul(*rows)?;
            if rows <= MOST_ROWS {
                let rows_of = Rows { x, norm: Norm::None, rounded: self.values[x.0].dtype };
                return self.matvec(rows_of, weight, None, after, [rows, n, k]);
            }
            return self.gemm(x, weight, after, [1, rows, n, k], [0, 0, 0]);
        }
        let steps = [rows.checked_mul(k)?, k.checked_mul(n)?, rows.checked_mul(n)?];
        self.gemm(x, weight, after, [product(lead)?, *rows, n, k], steps)
    }

    /// Asks about a step before anything has a place: sizes alone decide, and any addresses will do.
    pub(super) fn nowhere<T>(&self, ask: impl FnOnce(&At<'_>) -> T) -> T {
        let weights = vec![0; self.weights];
        let at = At {
            values: &self.values,
            arena: 0,
            head: 0,
            faults: 0,
            constants: 0,
            weights: &weights,
            counters: 0,
            sms: self.machine.sms,
            ahead: None,
        };
        ask(&at)
    }

    /// Notes what a step needs of the words that are 0 between runs, and of the workspace behind them.
    pub(super) fn counters(&mut self, attention: u64, workspace: u64) -> Option<()> {
        if attention > ATTENTION_COUNTERS {
            return None;
        }
        let all = usize::try_from(ATTENTION_COUNTERS.checked_add(workspace)?).ok()?;
        self.counter_bytes = self.counter_bytes.max(all);
        Some(())
    }
}
