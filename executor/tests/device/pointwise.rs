//! Functions, comparisons and choices element by element, in all their kinds, with every element type they take.

use std::sync::Arc;

use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::{Device, DeviceError, HostTensor, Row};
use genie_graph::{
    BinaryKind, CompareKind, DType, Dim, GraphBuilder, InputRole, NodeId, Op, RandomKind, Symbol, TensorType, UnaryKind,
};

use crate::case::Case;
use crate::reference::concrete;

const B: Dim = Dim::Symbol(Symbol::Batch);
const S: Dim = Dim::Symbol(Symbol::Sequence);
const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

/// Where a function is defined, and its result moderate.
fn domain(kind: UnaryKind, v: f64) -> f64 {
    match kind {
        UnaryKind::Asin | UnaryKind::Acos | UnaryKind::Atanh | UnaryKind::Erfinv => v / 2.1,
        UnaryKind::Acosh => 1.0 + v.abs(),
        UnaryKind::Log1p => v.abs() - 0.9,
        UnaryKind::Log2 | UnaryKind::Log10 | UnaryKind::Rsqrt | UnaryKind::Reciprocal => v.abs() + 0.1,
        // Away from the poles, where the reference has digits left.
        UnaryKind::Lgamma | UnaryKind::Digamma => (v * 4.0).floor() + 0.3 + v.abs() / 5.0,
        UnaryKind::Floor | UnaryKind::Ceil | UnaryKind::Round | UnaryKind::Trunc => (v * 8.0).round() / 2.0,
        _ => v * 1.5,
    }
}

#[test]
fn functions_of_one_number() {
    for &kind in UnaryKind::ALL {
        for dtype in DType::ALL.into_iter().filter(|&d| kind.takes(d)) {
            for seed in 0..4 {
                let mut case = Case::new(seed);
                let rank = case.source.below(4);
                let mut dims = case.source.dims(rank);
                if rank == 3 {
                    dims[0] = B;
                }
                let count: usize = concrete(&dims, &case.sizes).iter().product();
                let mut value = || {
                    let v = case.source.value(dtype);
                    if dtype.is_float() { domain(kind, v) } else { v }
                };
                let values = (0..count).map(|_| value()).collect();
                case.given(dtype, &dims, values).check(Op::Unary { kind });
            }
        }
        if kind.takes(DType::F32) && kind != UnaryKind::Digamma {
            let odd = vec![NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, 60.0, 1e-30];
            Case::new(0).given(DType::F32, &[12.into()], odd).check(Op::Unary { kind });
        }
    }
    let long = Op::Unary { kind: UnaryKind::Erf };
    Case::new(7).argument(DType::F32, &[B, 1300.into()]).check(long);
}

/// Two shapes that broadcast with each other.
fn shapes(case: &mut Case) -> (Vec<Dim>, Vec<Dim>) {
    let rank = case.source.below(5);
    let mut a = case.source.dims(rank);
    if rank > 0 && case.source.below(2) == 0 {
        a[0] = [B, S][case.source.below(2)];
    }
    let mut b = a[case.source.below(rank + 1)..].to_vec();
    for dim in a.iter_mut().rev().zip(b.iter_mut().rev()) {
        match case.source.below(6) {
            0 => *dim.0 = 1.into(),
            1 | 2 => *dim.1 = 1.into(),
            _ => {}
        }
    }
    if case.source.below(2) == 0 { (a, b) } else { (b, a) }
}

fn values(case: &mut Case, dims: &[Dim], mut value: impl FnMut(&mut Case) -> f64) -> Vec<f64> {
    let count: usize = concrete(dims, &case.sizes).iter().product();
    (0..count).map(|_| value(case)).collect()
}

#[test]
fn functions_of_two_numbers() {
    for &kind in BinaryKind::ALL {
        for dtype in DType::ALL.into_iter().filter(|&d| kind.takes(d)) {
            for seed in 0..12 {
                let mut case = Case::new(seed);
                let (a, b) = shapes(&mut case);
                // Of numbers and zeros among them, and some that are equal.
                let number = |case: &mut Case| (case.source.value(dtype) * 4.0).round() / 4.0;
                let first = match kind {
                    BinaryKind::Pow if dtype.is_float() => values(&mut case, &a, |c| number(c).abs() + 0.25),
                    BinaryKind::Pow => {
                        values(&mut case, &a, |c| c.source.below(4) as f64 - f64::from(i32::from(dtype != DType::U8)))
                    }
                    _ => values(&mut case, &a, number),
                };
                let second = values(&mut case, &b, |case| match kind {
                    _ if dtype.is_float() || dtype == DType::Bool => number(case),
                    BinaryKind::Pow if dtype == DType::U8 => case.source.below(5) as f64,
                    BinaryKind::Pow => case.source.below(13) as f64 - 3.0,
                    BinaryKind::ShiftLeft | BinaryKind::ShiftRight if dtype == DType::U8 => {
                        case.source.below(12) as f64
                    }
                    BinaryKind::ShiftLeft | BinaryKind::ShiftRight => {
                        [-1.0, 0.0, 3.0, 30.0, 64.0, 1e9][case.source.below(6)]
                    }
                    _ if number(case) < 0.0 => -1.0 - case.source.below(5) as f64,
                    _ => 1.0 + case.source.below(5) as f64,
                });
                case.given(dtype, &a, first).given(dtype, &b, second).check(Op::Binary { kind });
            }
        }
        if kind.takes(DType::F32) {
            let odd = [NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 2.5, -3.0, 1e-45, 3e38];
            let n = odd.len() as u64;
            for dtype in [DType::F32, DType::BF16] {
                let op = Op::Binary { kind };
                Case::new(0)
                    .given(dtype, &[n.into(), 1.into()], odd.to_vec())
                    .given(dtype, &[n.into()], odd.to_vec())
                    .check(op);
            }
        }
    }
}

#[test]
fn integers_wrap_and_divide_as_pythons() {
    let one = |dtype, kind, a: f64, b: f64| {
        let op = Op::Binary { kind };
        Case::new(0).given(dtype, &[], vec![a]).given(dtype, &[1.into()], vec![b]).check(op);
    };
    let least = f64::from(i32::MIN);
    one(DType::I32, BinaryKind::Pow, -1.0, -3.0);
    one(DType::I32, BinaryKind::Pow, 0.0, -3.0);
    one(DType::I32, BinaryKind::Pow, 0.0, 0.0);
    one(DType::I32, BinaryKind::Pow, -2.0, 31.0);
    one(DType::I32, BinaryKind::ShiftRight, least, 31.0);
    one(DType::I32, BinaryKind::ShiftRight, least, 32.0);
    one(DType::I32, BinaryKind::Remainder, least, -1.0);
    one(DType::I32, BinaryKind::Fmod, -7.0, 2.0);
    one(DType::I64, BinaryKind::FloorDivide, -7.0, 2.0);
    one(DType::U8, BinaryKind::FloorDivide, 250.0, 7.0);
    // What does not fit: the only quotient that wraps.
    let wrapped = run_i32(BinaryKind::FloorDivide, i32::MIN, -1).unwrap();
    assert_eq!(wrapped, i32::MIN);
    assert_eq!(run_i32(BinaryKind::Pow, 3, 21), Ok(3_i32.wrapping_pow(21)));
    for kind in [BinaryKind::Remainder, BinaryKind::Fmod, BinaryKind::FloorDivide] {
        assert_eq!(run_i32(kind, 5, 0), Err(DeviceError::DivisionByZero { row: 0, node: NodeId(2) }), "{kind:?}");
    }
}

fn run_i32(kind: BinaryKind, a: i32, b: i32) -> Result<i32, DeviceError> {
    let mut g = GraphBuilder::new("g");
    let ids = ["a", "b"].map(|name| g.input(name, InputRole::Argument, TensorType::new(DType::I32, [])).unwrap());
    let y = g.push(Op::Binary { kind }, &ids).unwrap();
    g.output("y", y);
    let program = CpuDevice::new(0, 2, 1 << 24).unwrap().load(Arc::new(g.finish().unwrap())).unwrap();
    let scalar = |v: i32| HostTensor { dtype: Some(DType::I32), dims: vec![], data: v.to_le_bytes().to_vec() };
    let mut outputs = Vec::new();
    program.run(&[], &mut [Row::new(&[scalar(a), scalar(b)], &mut outputs, u64::MAX)])?;
    Ok(i32::from_le_bytes(outputs[0].data[..].try_into().unwrap()))
}

#[test]
fn comparisons() {
    for &kind in CompareKind::ALL {
        for dtype in DType::ALL {
            for seed in 0..10 {
                let mut case = Case::new(seed);
                let (a, b) = shapes(&mut case);
                let few = |case: &mut Case| case.source.value(dtype).round();
                let (first, second) = (values(&mut case, &a, few), values(&mut case, &b, few));
                case.given(dtype, &a, first).given(dtype, &b, second).check(Op::Compare { kind });
            }
        }
        let odd = vec![NAN, INF, -INF, 0.0, -0.0, 1.0];
        let mut case = Case::new(0);
        case.given(DType::F16, &[6.into(), 1.into()], odd.clone()).given(DType::F16, &[6.into()], odd);
        case.check(Op::Compare { kind });
    }
}

#[test]
fn choices() {
    for seed in 0..60 {
        let mut case = Case::new(seed);
        let dtype = DType::ALL[case.source.below(7)];
        let (a, b) = shapes(&mut case);
        let longer = if a.len() > b.len() { &a } else { &b };
        let condition = match case.source.below(3) {
            0 => vec![],
            1 => longer.clone(),
            _ => longer.iter().map(|_| 1.into()).collect(),
        };
        case.argument(DType::Bool, &condition).argument(dtype, &a).argument(dtype, &b).check(Op::Where);
    }
    let mut case = Case::new(3);
    case.argument(DType::Bool, &[B, 700.into()]).argument(DType::F32, &[B, 700.into()]).argument(DType::F32, &[]);
    case.check(Op::Where);
}

/// A client's bools may be any bytes: what is not 0 is true.
#[test]
fn any_byte_but_zero_is_true() {
    let mut g = GraphBuilder::new("g");
    let ty = |n: u64| TensorType::new(DType::Bool, [n.into()]);
    let ids = ["a", "b"].map(|name| g.input(name, InputRole::Argument, ty(4)).unwrap());
    let [a, _] = ids;
    let equal = g.push(Op::Compare { kind: CompareKind::Eq }, &ids).unwrap();
    let both = g.push(Op::Binary { kind: BinaryKind::BitAnd }, &ids).unwrap();
    let not = g.push(Op::Unary { kind: UnaryKind::Not }, &[a]).unwrap();
    let chosen = g.push(Op::Where, &[a, equal, both]).unwrap();
    for (name, node) in [("equal", equal), ("both", both), ("not", not), ("chosen", chosen)] {
        g.output(name, node);
    }
    let program = CpuDevice::new(0, 1, 1 << 24).unwrap().load(Arc::new(g.finish().unwrap())).unwrap();
    let bytes = |data: [u8; 4]| HostTensor { dtype: Some(DType::Bool), dims: vec![4], data: data.to_vec() };
    let mut outputs = Vec::new();
    let arguments = [bytes([0, 1, 2, 255]), bytes([7, 9, 1, 0])];
    program.run(&[], &mut [Row::new(&arguments, &mut outputs, u64::MAX)]).unwrap();
    let found: Vec<_> = outputs.iter().map(|o| o.data.clone()).collect();
    assert_eq!(found, [[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0]]);
}

/// Checks an op of one input whose result has symbols that the input may lack: another input brings their sizes.
fn check_beside_symbols(case: &mut Case, op: Op) {
    case.argument(DType::U8, &[B, S]);
    case.check_graph(&op, 1.0, |g, ids| g.push(op.clone(), &ids[..1]).unwrap());
}

#[test]
fn repetition_mirrors_and_borders() {
    for seed in 0..40 {
        let mut case = Case::new(seed);
        let dtype = DType::ALL[case.source.below(7)];
        let rank = case.source.below(4);
        let lead = case.source.below(3);
        let (mut from, mut to) = (Vec::new(), case.source.dims(lead));
        for _ in 0..rank {
            let size = case.source.size(6).into();
            to.push(if case.source.below(4) == 0 { [B, S][case.source.below(2)] } else { size });
            from.push(if case.source.below(2) == 0 { 1.into() } else { to[to.len() - 1] });
        }
        check_beside_symbols(case.argument(dtype, &from), Op::Broadcast { dims: to });

        let mut case = Case::new(seed);
        let mut dims = case.source.dims(rank);
        let axes: Vec<i32> = (0..rank as i32).filter(|_| case.source.below(2) == 0).collect();
        if rank > 0 && case.source.below(2) == 0 {
            dims[0] = S;
        }
        case.argument(dtype, &dims).check(Op::Flip { axes });

        let mut case = Case::new(seed);
        let mut dims = case.source.dims(rank);
        let mut border = || (0..rank).map(|_| case.source.below(4) as u32).collect::<Vec<u32>>();
        let (mut before, mut after) = (border(), border());
        if rank > 0 && case.source.below(2) == 0 {
            (dims[0], before[0], after[0]) = (B, 0, 0);
        }
        let value = if dtype == DType::Bool { 1.0 } else { 2.75 };
        case.argument(dtype, &dims).check(Op::Pad { before, after, value });
    }
}

#[test]
fn random_numbers_of_a_key_that_is_data() {
    for (seed, &kind) in (0..).zip(RandomKind::ALL) {
        for dtype in DType::ALL.into_iter().filter(|&d| kind.makes(d)) {
            for (key, start) in [(5.0, 0.0), (-3.0, 1e12), (0.0, -1.0)] {
                let dims = vec![B, 301.into(), 3.into()];
                let mut case = Case::new(seed);
                case.given(DType::I64, &[2.into()], vec![key, start]);
                check_beside_symbols(&mut case, Op::Random { kind, dtype, dims });
                Case::new(0).given(DType::I64, &[2.into()], vec![key, start]).check(Op::Random {
                    kind,
                    dtype,
                    dims: vec![],
                });
            }
        }
    }
}

/// With first block 0 the numbers are those of the op that has the seed within it.
#[test]
fn a_key_gives_what_its_seed_gives() {
    let ty = TensorType::new(DType::F32, [1000.into()]);
    for (kind, fixed) in [(RandomKind::Uniform, Op::Rand { seed: 77 }), (RandomKind::Normal, Op::Randn { seed: 77 })] {
        let mut g = GraphBuilder::new("g");
        let key = g.input("key", InputRole::Argument, TensorType::new(DType::I64, [2.into()])).unwrap();
        let free = g.push(Op::Random { kind, dtype: DType::F32, dims: vec![1000.into()] }, &[key]).unwrap();
        let fixed = g.create(fixed, ty.clone()).unwrap();
        g.output("free", free);
        g.output("fixed", fixed);
        let program = CpuDevice::new(0, 3, 1 << 24).unwrap().load(Arc::new(g.finish().unwrap())).unwrap();
        let data = [77_i64, 0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut outputs = Vec::new();
        let arguments = [HostTensor { dtype: Some(DType::I64), dims: vec![2], data }];
        program.run(&[], &mut [Row::new(&arguments, &mut outputs, u64::MAX)]).unwrap();
        assert_eq!(outputs[0].data, outputs[1].data);
    }
}
