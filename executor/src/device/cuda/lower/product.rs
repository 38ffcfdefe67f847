//! Products of matrices.

use genie_cuda_kernels::View;
use genie_cuda_kernels::gpu::{Product, WeightLayout};
use genie_cuda_kernels::launch::elementwise::{self, bias_activation, gated};
use genie_cuda_kernels::launch::epilogue::{Activation, Epilogue, Prologue};
use genie_cuda_kernels::launch::gemm::{Batch, Gemm};
use genie_cuda_kernels::launch::matvec::{Gate, MOST_ROWS, Matvec};
use genie_cuda_kernels::launch::weight::Weight;
use genie_cuda_kernels::launch::workspace::Machine;
use genie_graph::{DType, LinearLayout, NodeId, Op, QuantFormat, VerifiedGraph};

use super::super::plan::{ATTENTION_COUNTERS, At, V, Work};
use super::fuse::Fused;
use super::{Lowering, product, rows_and_width};

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
        match self.format {
            None => Weight::plain(at.view(self.v), self.layout),
            Some(format) => Weight::quantised(at.view(self.v), format),
        }
    }
}

/// A norm that a product does itself.
#[derive(Clone, Copy)]
enum Norm {
    None,
    Rms { eps: f32, weight: V },
    Layer { eps: f32, weight: V, bias: V },
}

impl Norm {
    fn at(self, at: &At<'_>) -> Prologue {
        match self {
            Self::None => Prologue::None,
            Self::Rms { eps, weight } => Prologue::RmsNorm { eps, weight: at.view(weight) },
            Self::Layer { eps, weight, bias } => {
                Prologue::LayerNorm { eps, weight: at.view(weight), bias: at.view(bias) }
            }
        }
    }

    fn reads(self) -> impl Iterator<Item = V> {
        let [weight, bias] = match self {
            Self::None => [None, None],
            Self::Rms { weight, .. } => [Some(weight), None],
            Self::Layer { weight, bias, .. } => [Some(weight), Some(bias)],
        };
        weight.into_iter().chain(bias)
    }
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

    /// The same after a product that has stored its bare sums in `y`; `None` where no kernel does it in one pass.
    fn alone(
        self,
        at: &At<'_>,
        y: View,
        rows: u64,
        width: u64,
    ) -> Option<Result<Vec<Work>, genie_cuda_kernels::LaunchError>> {
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
        match (bias, factor, residual) {
            (None, None, None) if self.activation == Activation::None => Some(Ok(Vec::new())),
            (bias, None, residual) => Some(super::one(bias_activation(activation, y, bias, residual, y, rows, width))),
            (None, Some(factor), None) => Some(super::one(gated(activation, y, factor, y))),
            _ => None,
        }
    }
}

impl Lowering<'_> {
    /// Whether every product that reads this norm does it itself.
    pub(super) fn is_taken_along(&self, norm: NodeId) -> bool {
        let node = &self.graph.nodes[norm.0 as usize];
        let few = self.dims(norm).and_then(|dims| rows_and_width(&dims)).is_some_and(|(rows, _)| rows <= MOST_ROWS);
        let is_norm = match (&node.op, &node.inputs[..]) {
            (Op::RmsNorm { .. }, _) => true,
            // The kernel reads both as one type.
            (Op::LayerNorm { .. }, &[_, weight, bias]) => {
                self.graph.nodes[weight.0 as usize].ty.dtype == self.graph.nodes[bias.0 as usize].ty.dtype
            }
            _ => false,
        };
        few && is_norm
            && self.fusions.all_readers(norm, |reader| {
                let reader = &self.graph.nodes[reader.0 as usize];
                matches!(reader.op, Op::Linear { .. })
                    && reader.inputs.iter().position(|&input| input == norm) == Some(0)
                    && reader.inputs.iter().filter(|&&input| input == norm).count() == 1
            })
    }

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
            let (x, norm) = self.normed(x_id)?;
            return self.matvec(x, norm, weight, gate, after, [rows, n, k]);
        }
        let x = self.value_of(x_id)?;
        self.gemm(x, weight, after, [1, rows, n, k], [0, 0, 0])
    }

    /// A linear layer by itself.
    fn linear_of(&mut self, id: NodeId) -> Option<V> {
        let alone = Fused { linear: id, activation: Activation::None, factor: None, gate: false, residual: None };
        self.made(id, |lowering| lowering.linear(alone))
    }

    /// What a product of few rows reads: its input, or that of the norm before it.
    fn normed(&mut self, x: NodeId) -> Option<(V, Norm)> {
        if self.of_node[x.0 as usize].is_some() || !self.is_taken_along(x) {
            return Some((self.value_of(x)?, Norm::None));
        }
        let graph = self.graph;
        let node = &graph.nodes[x.0 as usize];
        let (x, weight) = (self.value_of(*node.inputs.first()?)?, self.value_of(*node.inputs.get(1)?)?);
        match node.op {
            Op::RmsNorm { eps } => Some((x, Norm::Rms { eps, weight })),
            Op::LayerNorm { eps } => Some((x, Norm::Layer { eps, weight, bias: self.value_of(*node.inputs.get(2)?)? })),
            _ => None,
        }
    }

    fn matvec(
        &mut self,
        x: V,
        norm: Norm,
        weight: Stored,
        gate: Option<(Stored, Option<V>)>,
        after: After,
        [rows, n, k]: [u64; 3],
    ) -> Option<()> {
        let machine = Machine { sms: self.machine.sms, shared: self.machine.shared };
        let make = move |at: &At<'_>, y: View| Matvec {
            x: at.view(x),
            y,
            weight: weight.at(at),
            gate: gate.map(|(weight, bias)| Gate { weight: weight.at(at), bias: bias.map(|bias| at.view(bias)) }),
            prologue: norm.at(at),
            epilogue: after.at(at),
            rows,
            n,
            k,
        };
        let y = self.result()?;
        let bytes = self.nowhere(|at| make(at, at.view(y)).workspace_bytes(machine)).ok()?;
        self.counters(0, bytes)?;
        let gated = gate.iter().flat_map(|(weight, bias)| [Some(weight.v), *bias]).flatten();
        let reads: Vec<V> = [x, weight.v].into_iter().chain(norm.reads()).chain(gated).chain(after.reads()).collect();
        self.step(reads, y, move |at, y| {
            let workspace = View::new(at.counters + ATTENTION_COUNTERS, DType::U8, bytes);
            let launches = make(at, at.view(y)).launches(workspace, machine)?;
            Ok(launches.into_iter().flatten().map(Work::Launch).collect())
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
        let bytes = self.nowhere(|at| make(at, at.view(y)).workspace_bytes(machine)).ok()?;
        self.counters(0, bytes)?;
        let reads: Vec<V> = [a, weight.v].into_iter().chain(after.reads()).collect();
        self.step(reads, y, move |at, y| {
            let (y, b) = (at.view(y), weight.at(at));
            let workspace = View::new(at.counters + ATTENTION_COUNTERS, DType::U8, bytes);
            let own: Vec<_> = make(at, y).launch(workspace, machine)?.into_iter().collect();
            let alone = if same { after.alone(at, y, batch * m, n) } else { None };
            let Some(alone) = alone else { return Ok(own.into_iter().map(Work::Launch).collect()) };
            let layout = match b.layout {
                LinearLayout::OutIn => WeightLayout::OutIn,
                LinearLayout::InOut => WeightLayout::InOut,
            };
            let product = Product { dtype: a_type, layout, m, n, k, batch, a_step, b_step, c_step, accumulate: false };
            let then = alone?.into_iter().filter_map(|work| match work {
                Work::Launch(launch) => Some(launch),
                Work::Product { .. } => None,
            });
            let (a, b) = (at.view(a), b.view);
            Ok(vec![Work::Product { product, a, b, c: y, then: then.collect(), otherwise: own }])
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
                return self.matvec(x, Norm::None, weight, None, after, [rows, n, k]);
            }
            return self.gemm(x, weight, after, [1, rows, n, k], [0, 0, 0]);
        }
        let steps = [rows.checked_mul(k)?, k.checked_mul(n)?, rows.checked_mul(n)?];
        self.gemm(x, weight, after, [product(lead)?, *rows, n, k], steps)
    }

    /// Asks about a step before anything has a place: sizes alone decide, and any addresses will do.
    fn nowhere<T>(&self, ask: impl FnOnce(&At<'_>) -> T) -> T {
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
