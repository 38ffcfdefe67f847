//! Every op, with every element type it takes, against the reference: random shapes and values, seeded.

use std::collections::HashMap;
use std::sync::Arc;

use genie_executor::device::cpu::CpuDevice;
use genie_graph::{DType, Dim, GraphBuilder, LinearLayout, Op, ReduceKind, RopeStyle, Sizes, Symbol, TensorType};

use crate::case::{Case, compare, run};
use crate::reference::{Tensor, concrete, evaluate};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const NUMBERS: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U8];
const LAYOUTS: [LinearLayout; 2] = [LinearLayout::OutIn, LinearLayout::InOut];
const B: Dim = Dim::Symbol(Symbol::Batch);
const S: Dim = Dim::Symbol(Symbol::Sequence);

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
        for layout in LAYOUTS {
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
        for layout in LAYOUTS {
            let mut case = Case::new(3);
            let w = if layout == LinearLayout::OutIn { [75, 515] } else { [515, 75] };
            case.argument(DType::F32, &[41.into(), 515.into()]).weight(dtype, &w.map(Dim::from));
            case.check_within(Op::Linear { layout }, 16.0);
        }
    }
}

#[test]
fn not_a_number_stays_in_its_row() {
    for (layout, dtype) in LAYOUTS.into_iter().flat_map(|layout| FLOATS.map(|dtype| (layout, dtype))) {
        let mut x: Vec<f64> = (0..3 * 20).map(f64::from).collect();
        x[25] = f64::NAN;
        x[50] = f64::INFINITY;
        let w = if layout == LinearLayout::OutIn { [9, 20] } else { [20, 9] };
        Case::new(0)
            .given(DType::F32, &[3.into(), 20.into()], x)
            .weight(dtype, &w.map(Dim::from))
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
    for seed in 0..20 {
        for kind in [ReduceKind::Max, ReduceKind::Min] {
            let mut case = Case::new(seed);
            let rank = case.source.below(4);
            let dims = case.source.dims(rank);
            let axes = (0..rank as i32).filter(|_| case.source.below(2) == 0).collect();
            case.argument(DType::Bool, &dims).check(Op::Reduce { kind, axes, keep_dims: seed % 2 == 0 });
        }
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

/// Whatever the parameters, the token is one of the vocabulary, and the one that the reference draws.
#[test]
fn sampling_by_odd_numbers() {
    let temperatures = [0.0, -1.0, 1e-40, 1e30, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0];
    let top_ps = [1.0, 0.0, -3.0, 1e-30, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.5];
    let top_ks = [0, 1, -1, i64::MIN, i64::MAX, 1 << 40, 6, 2];
    let rows: [&[f64]; 5] = [
        &[0.0, 1.0, 2.0, 3.0, 4.0],
        &[f64::NAN; 5],
        &[f64::NEG_INFINITY; 5],
        &[1.0, f64::INFINITY, f64::NAN, f64::INFINITY, -1.0],
        &[f64::NAN, f64::NEG_INFINITY, -3e38, 3e38, 0.0],
    ];
    for (i, logits) in rows.into_iter().enumerate() {
        let n = temperatures.len();
        for shift in 0..n {
            let mut case = Case::new(i as u64);
            case.sizes.batch = n as u64;
            let real = (0..n).flat_map(|r| [temperatures[r], top_ps[(r + shift) % n]]).collect();
            let int = (0..n).flat_map(|r| [top_ks[(r * 3 + shift) % n] as f64, r as f64]).collect();
            let positions = (0..n * case.sizes.sequence as usize).map(|p| p as f64 - 3.0).collect();
            case.given(DType::F32, &[B, 5.into()], logits.repeat(n)).given(DType::F32, &[B, 2.into()], real);
            case.given(DType::I64, &[B, 2.into()], int).given(DType::I32, &[B, S], positions).check(Op::Sample);
        }
    }
}
