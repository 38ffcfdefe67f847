//! Every op, with every element type it takes, against the reference: random shapes and values, seeded.

use std::collections::HashMap;
use std::sync::Arc;

use genie_executor::device::cpu::{CpuDevice, Isa};
use genie_executor::device::{Device, HostTensor, Row};
use genie_graph::{
    DType, Dim, GraphBuilder, InputRole, LinearLayout, NodeId, Op, ReduceKind, RopeStyle, Sizes, Symbol, TensorType,
    random,
};

use crate::reference::{Tensor, concrete, evaluate};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const NUMBERS: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U8];
const B: Dim = Dim::Symbol(Symbol::Batch);
const S: Dim = Dim::Symbol(Symbol::Sequence);

/// A stream of numbers for one case.
struct Source {
    seed: u64,
    drawn: u128,
}

impl Source {
    fn word(&mut self) -> u32 {
        self.drawn += 1;
        random::philox(self.seed, self.drawn)[0]
    }

    /// One of 0..n.
    fn below(&mut self, n: usize) -> usize {
        self.word() as usize % n
    }

    fn size(&mut self, most: usize) -> u64 {
        1 + self.below(most) as u64
    }

    fn real(&mut self) -> f64 {
        f64::from(random::uniform_f32(self.word())) * 4.0 - 2.0
    }

    fn dims(&mut self, rank: usize) -> Vec<Dim> {
        (0..rank).map(|_| self.size(7).into()).collect()
    }

    fn value(&mut self, dtype: DType) -> f64 {
        match dtype {
            DType::Bool => self.below(2) as f64,
            DType::U8 => self.below(20) as f64,
            DType::I32 | DType::I64 => self.below(41) as f64 - 20.0,
            _ => self.real(),
        }
    }
}

/// A graph of one op whose inputs are all arguments (or as given), run and compared.
struct Case {
    source: Source,
    sizes: Sizes,
    inputs: Vec<(TensorType, InputRole, Option<Vec<f64>>)>,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut source = Source { seed, drawn: 0 };
        let sizes = Sizes { batch: source.size(3), sequence: source.size(5), position: 0 };
        Self { source, sizes, inputs: Vec::new() }
    }

    fn argument(&mut self, dtype: DType, dims: &[Dim]) -> &mut Self {
        self.inputs.push((TensorType::new(dtype, dims.iter().copied()), InputRole::Argument, None));
        self
    }

    fn weight(&mut self, dtype: DType, dims: &[Dim]) -> &mut Self {
        self.inputs.push((TensorType::new(dtype, dims.iter().copied()), InputRole::Weight, None));
        self
    }

    fn given(&mut self, dtype: DType, dims: &[Dim], values: Vec<f64>) -> &mut Self {
        self.inputs.push((TensorType::new(dtype, dims.iter().copied()), InputRole::Argument, Some(values)));
        self
    }

    /// Runs the op on one, two and three threads and every instruction set, and compares.
    fn check(&mut self, op: Op) {
        self.check_within(op, 1.0);
    }

    fn check_within(&mut self, op: Op, slack: f64) {
        let mut builder = GraphBuilder::new("case");
        let (mut ids, mut values) = (Vec::new(), HashMap::new());
        for (i, (ty, role, given)) in self.inputs.iter().enumerate() {
            let id = builder.input(&format!("x{i}"), *role, ty.clone()).unwrap();
            let dims = concrete(&ty.shape.0, &self.sizes);
            let count = dims.iter().product();
            let data = match given {
                Some(values) => values.clone(),
                None => (0..count).map(|_| self.source.value(ty.dtype)).collect(),
            };
            ids.push(id);
            values.insert(id, Tensor::new(ty.dtype, &dims, data));
        }
        let y = builder.push(op.clone(), &ids).unwrap_or_else(|e| panic!("{op:?} {e}"));
        builder.output("y", y);
        let graph = Arc::new(builder.finish().unwrap());
        let expected = &evaluate(&graph, &self.sizes, &values, &mut vec![])[0];
        for isa in Isa::available() {
            let mut first: Option<HostTensor> = None;
            for threads in 1..=3 {
                let device = CpuDevice::with_isa(0, threads, 1 << 28, isa).unwrap();
                let got = run(&device, &graph, &values);
                compare(&op, &Tensor::from_host(&got), expected, slack);
                if let Some(first) = &first {
                    assert_eq!(first.data, got.data, "{op:?}: {threads} threads give other bits than one");
                }
                first.get_or_insert(got);
            }
        }
    }
}

fn run(device: &CpuDevice, graph: &Arc<genie_graph::VerifiedGraph>, values: &HashMap<NodeId, Tensor>) -> HostTensor {
    let program = device.load(Arc::clone(graph)).unwrap();
    let (mut weights, mut arguments) = (Vec::new(), Vec::new());
    for input in graph.inputs() {
        let host = values[&input.node].to_host();
        match input.role {
            InputRole::Weight => weights.push(genie_transport::memory::Region::copy_of(&host.data)),
            _ => arguments.push(host),
        }
    }
    let mut outputs = Vec::new();
    let row = Row { arguments: &arguments, caches: vec![], outputs: &mut outputs, wanted: u64::MAX };
    program.run(&weights, &mut [row]).unwrap();
    outputs.remove(0)
}

pub(crate) fn compare(what: &dyn std::fmt::Debug, got: &Tensor, expected: &Tensor, slack: f64) {
    assert_eq!((got.dtype, &got.dims), (expected.dtype, &expected.dims), "{what:?}");
    let relative = slack
        * match got.dtype {
            DType::F32 => 2e-5,
            DType::F16 => 2e-3,
            DType::BF16 => 1.6e-2,
            _ => 0.0,
        };
    for (i, (&g, &e)) in got.data.iter().zip(&expected.data).enumerate() {
        let same = g == e || (g.is_nan() && e.is_nan()) || (g - e).abs() <= relative * (e.abs() + 0.1 * slack);
        assert!(same, "{what:?} {} {:?}: element {i} is {g}, not {e}", got.dtype, got.dims);
    }
}

#[test]
fn elementwise_with_broadcasting() {
    for seed in 0..60 {
        for op in [Op::Add, Op::Sub, Op::Mul, Op::Div] {
            let mut case = Case::new(seed);
            let dtype = NUMBERS[case.source.below(6)];
            let rank = case.source.below(4);
            let (mut a, mut b) = (case.source.dims(rank), Vec::new());
            if case.source.below(2) == 0 && rank > 0 {
                a[0] = B;
            }
            for &dim in &a[case.source.below(rank + 1)..] {
                b.push(if case.source.below(3) == 0 { 1.into() } else { dim });
            }
            if case.source.below(2) == 0 {
                std::mem::swap(&mut a, &mut b);
            }
            let count: usize = concrete(&b, &case.sizes).iter().product();
            // Nothing is divided by zero here.
            let divisors = (0..count).map(|_| case.source.value(dtype).abs() + 1.0).collect();
            case.argument(dtype, &a).given(dtype, &b, divisors).check(op);
        }
    }
}

#[test]
fn integers_wrap_and_truncate() {
    let one = |dtype: DType, op: Op, a: f64, b: f64| {
        Case::new(0).given(dtype, &[1.into()], vec![a]).given(dtype, &[1.into()], vec![b]).check(op);
    };
    one(DType::I32, Op::Add, f64::from(i32::MAX), 1.0);
    one(DType::I32, Op::Mul, 1e6, 1e6);
    one(DType::U8, Op::Sub, 3.0, 5.0);
    one(DType::U8, Op::Add, 250.0, 9.0);
    one(DType::I64, Op::Div, -7.0, 2.0);
    one(DType::I32, Op::Div, f64::from(i32::MIN), -1.0);
    for op in [Op::Abs, Op::Neg] {
        Case::new(0).given(DType::I32, &[2.into()], vec![f64::from(i32::MIN), -3.0]).check(op);
    }
}

#[test]
fn functions_of_one_number() {
    let ops = [
        Op::Gelu { tanh: true },
        Op::Gelu { tanh: false },
        Op::Silu,
        Op::Relu,
        Op::Sigmoid,
        Op::Tanh,
        Op::Abs,
        Op::Neg,
        Op::Exp,
        Op::Log,
        Op::Sqrt,
    ];
    for op in ops {
        for dtype in FLOATS {
            for seed in 0..4 {
                let mut case = Case::new(seed);
                let n = 1 + case.source.below(1200);
                let mut values: Vec<f64> = (0..n).map(|_| case.source.real() * 4.0).collect();
                if matches!(op, Op::Log | Op::Sqrt) {
                    values.iter_mut().for_each(|v| *v = v.abs() + 0.01);
                }
                case.given(dtype, &[(n as u64).into()], values).check(op.clone());
            }
        }
        let odd = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 1e-40, -60.0, 60.0];
        Case::new(0).given(DType::F32, &[8.into()], odd).check(op.clone());
    }
    for (op, dtype) in [(Op::Abs, DType::I64), (Op::Neg, DType::I64), (Op::Neg, DType::I32)] {
        Case::new(1).argument(dtype, &[B, 33.into()]).check(op);
    }
}

#[test]
fn products() {
    for seed in 0..50 {
        for layout in [LinearLayout::OutIn, LinearLayout::InOut] {
            let mut case = Case::new(seed);
            let (k, n) = (case.source.size(90), case.source.size(70));
            let types = [(); 3].map(|()| FLOATS[case.source.below(3)]);
            let w = if layout == LinearLayout::OutIn { [n.into(), k.into()] } else { [k.into(), n.into()] };
            case.argument(types[0], &[B, S, k.into()]).weight(types[1], &w);
            if case.source.below(2) == 0 {
                case.weight(types[2], &[n.into()]);
            }
            case.check_within(Op::Linear { layout }, 4.0);
        }
        let mut case = Case::new(seed);
        let (m, k, n) = (case.source.size(20), case.source.size(40), case.source.size(40));
        let (a, b) = (FLOATS[case.source.below(3)], FLOATS[case.source.below(3)]);
        case.argument(a, &[B, m.into(), k.into()]);
        if case.source.below(2) == 0 {
            case.argument(b, &[k.into(), n.into()]);
        } else {
            case.argument(b, &[B, k.into(), n.into()]);
        }
        case.check_within(Op::MatMul, 4.0);
    }
}

#[test]
fn long_products_with_many_rows() {
    for dtype in FLOATS {
        for layout in [LinearLayout::OutIn, LinearLayout::InOut] {
            let mut case = Case::new(3);
            let w = if layout == LinearLayout::OutIn { [75, 515] } else { [515, 75] };
            case.argument(DType::F32, &[41.into(), 515.into()]).weight(dtype, &w.map(Dim::from));
            case.check_within(Op::Linear { layout }, 16.0);
        }
    }
}

#[test]
fn not_a_number_stays_in_its_row() {
    for layout in [LinearLayout::OutIn, LinearLayout::InOut] {
        let mut x: Vec<f64> = (0..3 * 20).map(f64::from).collect();
        x[25] = f64::NAN;
        x[50] = f64::INFINITY;
        let w = if layout == LinearLayout::OutIn { [9, 20] } else { [20, 9] };
        Case::new(0)
            .given(DType::F32, &[3.into(), 20.into()], x)
            .weight(DType::F32, &w.map(Dim::from))
            .check_within(Op::Linear { layout }, 8.0);
    }
}

#[test]
fn norms_and_softmax() {
    for seed in 0..40 {
        let mut case = Case::new(seed);
        let h = case.source.size(80);
        let types = [(); 3].map(|()| FLOATS[case.source.below(3)]);
        case.argument(types[0], &[B, S, h.into()]).weight(types[1], &[h.into()]);
        case.check_within(Op::RmsNorm { eps: 1e-5 }, 2.0);
        case.weight(types[2], &[h.into()]);
        // A mean near its elements cancels digits.
        case.check_within(Op::LayerNorm { eps: 1e-3 }, 8.0);

        let mut case = Case::new(seed);
        let rank = 1 + case.source.below(4);
        let dims = case.source.dims(rank);
        let axis = case.source.below(2 * rank) as i32 - rank as i32;
        case.argument(types[0], &dims).check(Op::Softmax { axis });
    }
    let odd = vec![1.0, f64::NEG_INFINITY, 3.0, f64::NAN, 1.0, 2.0, 1000.0, -1000.0, 0.0];
    Case::new(0).given(DType::F32, &[3.into(), 3.into()], odd.clone()).check(Op::Softmax { axis: 1 });
    Case::new(0).given(DType::F32, &[3.into(), 3.into()], odd).check(Op::Softmax { axis: 0 });
}

#[test]
fn rotary_embedding() {
    for seed in 0..20 {
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            let mut case = Case::new(seed);
            let head_dim = 2 * case.source.size(20);
            let width = head_dim * case.source.size(3);
            let dtype = FLOATS[case.source.below(3)];
            let count = (case.sizes.batch * case.sizes.sequence) as usize;
            let positions = (0..count).map(|_| case.source.below(300) as f64).collect();
            case.argument(dtype, &[B, S, width.into()]).given(DType::I32, &[B, S], positions);
            let op = Op::Rope { theta: 10_000.0, head_dim: head_dim as u32, style };
            // The angle is rounded to f32: at 300 that is some 1e-5.
            case.check_within(op.clone(), 4.0);
            case.weight(DType::F32, &[(head_dim / 2).into()]).check_within(op, 16.0);
        }
    }
}

#[test]
fn attention_without_a_cache() {
    for seed in 0..40 {
        let mut case = Case::new(seed);
        let (kv_heads, group, head_dim) = (case.source.size(3), case.source.size(4), case.source.size(40));
        case.sizes.sequence = case.source.size(150);
        let dtype = FLOATS[case.source.below(3)];
        let (q, kv) = (kv_heads * group * head_dim, kv_heads * head_dim);
        case.argument(dtype, &[B, S, q.into()]).argument(dtype, &[B, S, kv.into()]).argument(dtype, &[B, S, kv.into()]);
        let op = Op::Attention {
            layer: 0,
            heads: (kv_heads * group) as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            scale: 0.3,
            causal: case.source.below(2) == 0,
        };
        case.check_within(op, 4.0);
    }
}

#[test]
fn later_infinities_do_not_reach_earlier_tokens() {
    let (tokens, d) = (70, 4);
    let mut v: Vec<f64> = (0..tokens * d).map(|i| f64::from(i % 5)).collect();
    v[67 * d as usize] = f64::INFINITY;
    let mut case = Case::new(5);
    let dims = [1.into(), Dim::from(tokens as u64), (d as u64).into()];
    case.argument(DType::F32, &dims).argument(DType::F32, &dims).given(DType::F32, &dims, v);
    case.check_within(Op::Attention { layer: 0, heads: 1, kv_heads: 1, head_dim: 4, scale: 1.0, causal: true }, 4.0);
}

#[test]
fn movement() {
    for seed in 0..60 {
        let mut case = Case::new(seed);
        let dtype = DType::ALL[case.source.below(7)];
        let rank = 1 + case.source.below(5);
        let mut dims = case.source.dims(rank);
        let mut perm: Vec<u32> = (0..rank as u32).collect();
        (1..rank).for_each(|i| perm.swap(i, case.source.below(i + 1)));
        if case.source.below(2) == 0 {
            dims[0] = S;
        }
        case.argument(dtype, &dims).check(Op::Transpose { perm });

        let mut case = Case::new(seed);
        let mut dims = case.source.dims(rank);
        let axis = case.source.below(rank);
        let size = 2 + case.source.size(9);
        dims[axis] = size.into();
        let start = case.source.below(size as usize);
        let end = start + 1 + case.source.below(size as usize - start);
        let step = case.source.size(4);
        let from_end = case.source.below(2) == 0;
        let start = if from_end { start as i64 - size as i64 } else { start as i64 };
        let axis = axis as i32 - if from_end { rank as i32 } else { 0 };
        case.argument(dtype, &dims).check(Op::Slice { axis, start, end: Some(end as i64), step });

        let mut case = Case::new(seed);
        let dims = case.source.dims(rank);
        let axis = case.source.below(rank);
        for _ in 0..case.source.size(4) {
            let mut own = dims.clone();
            own[axis] = case.source.size(5).into();
            case.argument(dtype, &own);
        }
        case.check(Op::Concat { axis: axis as i32 });

        let mut case = Case::new(seed);
        case.argument(dtype, &[B, S, 6.into()]).check(Op::Reshape { dims: vec![B, 2.into(), S, Op::INFER] });
        let mut case = Case::new(seed);
        case.argument(dtype, &[B, S, 6.into()]).check(Op::Slice { axis: 1, start: -1, end: None, step: 1 });
    }
}

#[test]
fn reductions() {
    for seed in 0..60 {
        for kind in [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min, ReduceKind::Prod] {
            let mut case = Case::new(seed);
            let dtype =
                if kind == ReduceKind::Mean { FLOATS[case.source.below(3)] } else { NUMBERS[case.source.below(6)] };
            let rank = 1 + case.source.below(4);
            let dims = case.source.dims(rank);
            let axes = (0..rank as i32).filter(|_| case.source.below(2) == 0).collect();
            let keep_dims = case.source.below(2) == 0;
            let op = Op::Reduce { kind, axes, keep_dims };
            if kind == ReduceKind::Prod {
                // Small enough that the reference need not wrap.
                let count: usize = concrete(&dims, &case.sizes).iter().product();
                let values = (0..count).map(|_| (1 + case.source.below(100) / 99) as f64).collect();
                case.given(dtype, &dims, values).check(op);
            } else {
                case.argument(dtype, &dims).check_within(op, 4.0);
            }
        }
        let mut case = Case::new(seed);
        let dtype = NUMBERS[case.source.below(6)];
        let rank = 1 + case.source.below(4);
        let dims = case.source.dims(rank);
        let axis = case.source.below(2 * rank) as i32 - rank as i32;
        case.argument(dtype, &dims).check(Op::ArgMax { axis });
    }
    let odd = vec![f64::NAN, 1.0, 7.0, 7.0, f64::NAN, f64::NAN, f64::NEG_INFINITY, f64::NEG_INFINITY];
    Case::new(0).given(DType::F32, &[4.into(), 2.into()], odd.clone()).check(Op::ArgMax { axis: 1 });
    for kind in [ReduceKind::Max, ReduceKind::Min, ReduceKind::Sum] {
        let op = Op::Reduce { kind, axes: vec![1], keep_dims: false };
        Case::new(0).given(DType::F32, &[2.into(), 4.into()], odd.clone()).check(op);
    }
}

#[test]
fn casts() {
    for from in DType::ALL {
        for to in DType::ALL {
            Case::new(9).argument(from, &[B, 37.into()]).check(Op::Cast { to });
        }
    }
    let odd = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.9, 300.7, -5.5, 3e9, 0.0];
    for to in DType::ALL {
        Case::new(0).given(DType::F32, &[8.into()], odd.clone()).check(Op::Cast { to });
    }
}

#[test]
fn tables() {
    for seed in 0..20 {
        for op in [Op::Gather, Op::Embedding { dtype: FLOATS[seed as usize % 3] }] {
            let mut case = Case::new(seed);
            let rows = case.source.size(30);
            let id = [DType::I32, DType::I64][case.source.below(2)];
            let count = (case.sizes.batch * case.sizes.sequence) as usize;
            let ids = (0..count).map(|_| case.source.below(rows as usize) as f64).collect();
            let is_embedding = op != Op::Gather;
            let dtype = if is_embedding { FLOATS[case.source.below(3)] } else { DType::ALL[case.source.below(7)] };
            case.weight(dtype, &[rows.into(), case.source.seed.clamp(1, 9).into()]);
            case.given(id, &[B, S], ids).check(op);
        }
    }
}

#[test]
fn creation() {
    for dtype in DType::ALL {
        let mut ops = vec![Op::Zeros, Op::Ones, Op::Full { value: 1.0 }];
        if dtype != DType::Bool {
            ops.extend([Op::Full { value: 37.0 }, Op::Arange { start: 3.0, step: 2.0 }]);
        }
        if dtype.is_float() {
            ops.extend([Op::Rand { seed: 5 }, Op::Randn { seed: 6 }, Op::Arange { start: 0.5, step: -0.25 }]);
        }
        for op in ops {
            let dims: Vec<Dim> =
                if matches!(op, Op::Arange { .. }) { vec![100.into()] } else { vec![9.into(), 61.into()] };
            let mut builder = GraphBuilder::new("creation");
            let y = builder.create(op.clone(), TensorType::new(dtype, dims)).unwrap();
            builder.output("y", y);
            let graph = Arc::new(builder.finish().unwrap());
            let sizes = Sizes { batch: 1, sequence: 1, position: 0 };
            let expected = &evaluate(&graph, &sizes, &HashMap::new(), &mut vec![])[0];
            let got = run(&CpuDevice::new(0, 2, 1 << 26).unwrap(), &graph, &HashMap::new());
            compare(&op, &Tensor::from_host(&got), expected, 1.0);
        }
    }
}

#[test]
fn sampling() {
    for seed in 0..30 {
        let mut case = Case::new(seed);
        let vocabulary = case.source.size(300);
        let rows = case.sizes.batch as usize;
        let real = (0..rows)
            .flat_map(|_| [case.source.below(3) as f64 * 0.5, 0.5 + case.source.below(2) as f64 * 0.4])
            .collect();
        let int = (0..rows).flat_map(|_| [case.source.below(50) as f64, case.source.below(1000) as f64]).collect();
        let count = rows * case.sizes.sequence as usize;
        let positions = (0..count).map(|_| case.source.below(1000) as f64).collect();
        let dtype = FLOATS[case.source.below(3)];
        case.argument(dtype, &[B, vocabulary.into()]).given(DType::F32, &[B, 2.into()], real);
        case.given(DType::I64, &[B, 2.into()], int).given(DType::I32, &[B, S], positions).check(Op::Sample);
    }
}
