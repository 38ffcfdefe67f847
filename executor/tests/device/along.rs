//! Ops along an axis: what is carried, order, elements by index.

use std::sync::Arc;

use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::{Device, DeviceError, HostTensor, Row};
use genie_graph::{
    ArgReduceKind, CumulativeKind, DType, Dim, GraphBuilder, InputRole, NodeId, Op, ScatterKind, Symbol, TensorType,
};

use crate::case::Case;
use crate::reference::concrete;

const B: Dim = Dim::Symbol(Symbol::Batch);
const S: Dim = Dim::Symbol(Symbol::Sequence);
const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

/// A shape and an axis of it, from either end.
fn shape(case: &mut Case) -> (Vec<Dim>, usize, i32) {
    let rank = 1 + case.source.below(4);
    let mut dims = case.source.dims(rank);
    let axis = case.source.below(rank);
    dims[axis] = (1 + case.source.below(20) as u64).into();
    if case.source.below(3) == 0 {
        dims[case.source.below(rank)] = [B, S][case.source.below(2)];
    }
    let signed = axis as i32 - if case.source.below(2) == 0 { rank as i32 } else { 0 };
    (dims, axis, signed)
}

#[test]
fn what_is_carried() {
    for seed in 0..40 {
        for &kind in CumulativeKind::ALL {
            let mut case = Case::new(seed);
            let dtype = DType::ALL[case.source.below(6)];
            let (dims, _, axis) = shape(&mut case);
            let op = Op::Cumulative { kind, axis };
            if kind == CumulativeKind::Prod {
                // Small enough that the reference need not wrap.
                let count: usize = concrete(&dims, &case.sizes).iter().product();
                let values = (0..count).map(|_| (1 + case.source.below(12) / 11) as f64).collect();
                case.given(dtype, &dims, values).check(op);
            } else {
                case.argument(dtype, &dims).check_within(op, 4.0);
            }
        }
    }
    let odd = vec![1.0, NAN, 3.0, -INF, INF, 2.0, -1.0, -0.0, 5.0, 5.0];
    for &kind in CumulativeKind::ALL {
        for axis in 0..2 {
            let op = Op::Cumulative { kind, axis };
            Case::new(0).given(DType::F32, &[5.into(), 2.into()], odd.clone()).check(op);
        }
    }
    // More rows beside each other than are gone through at once.
    let wide = Op::Cumulative { kind: CumulativeKind::Sum, axis: 1 };
    Case::new(1).argument(DType::I32, &[3.into(), 5.into(), 37.into()]).check(wide);
}

#[test]
fn order() {
    for seed in 0..60 {
        for descending in [false, true] {
            let mut case = Case::new(seed);
            let dtype = DType::ALL[case.source.below(7)];
            let (dims, _, axis) = shape(&mut case);
            // Many are equal: they stay in their order.
            let count: usize = concrete(&dims, &case.sizes).iter().product();
            let values = (0..count).map(|_| (case.source.value(dtype) * 2.0).round() / 2.0).collect();
            case.given(dtype, &dims, values).check(Op::ArgSort { axis, descending });
        }
    }
    let odd = vec![1.0, NAN, -INF, 3.0, -0.0, 0.0, INF, NAN, -1e-40, 1e-40];
    for descending in [false, true] {
        for dtype in [DType::F32, DType::BF16] {
            let op = Op::ArgSort { axis: 0, descending };
            Case::new(0).given(dtype, &[10.into()], odd.clone()).check(op);
        }
        let op = Op::ArgSort { axis: -1, descending };
        Case::new(0).argument(DType::F32, &[3.into(), 1500.into()]).check(op);
        let ends = vec![0.0, -1.0, (1_u64 << 53) as f64, -((1_u64 << 53) as f64), 7.0];
        let op = Op::ArgSort { axis: 0, descending };
        Case::new(0).given(DType::I64, &[5.into()], ends).check(op);
    }
}

#[test]
fn the_most_extreme() {
    for seed in 0..60 {
        for &kind in ArgReduceKind::ALL {
            let mut case = Case::new(seed);
            let dtype = DType::ALL[case.source.below(7)];
            let (dims, _, axis) = shape(&mut case);
            let keep_dims = case.source.below(2) == 0;
            let count: usize = concrete(&dims, &case.sizes).iter().product();
            let values = (0..count).map(|_| case.source.value(dtype).round()).collect();
            case.given(dtype, &dims, values).check(Op::ArgReduce { kind, axis, keep_dims });
        }
    }
    let odd = vec![1.0, NAN, 3.0, NAN, -INF, INF, -INF, INF, 2.0, 2.0];
    for &kind in ArgReduceKind::ALL {
        for (axis, dims) in [(0, [5, 2]), (1, [2, 5]), (1, [5, 2])] {
            let op = Op::ArgReduce { kind, axis, keep_dims: false };
            Case::new(0).given(DType::F32, &dims.map(Dim::from), odd.clone()).check(op);
        }
    }
}

/// Ids for a tensor of these dimensions: as many or fewer along each, any number along the axis.
fn ids(case: &mut Case, dims: &[Dim], axis: usize) -> (Vec<Dim>, Vec<f64>) {
    let mut own = dims.to_vec();
    for (i, dim) in own.iter_mut().enumerate() {
        match dim {
            _ if i == axis => *dim = case.source.size(9).into(),
            Dim::Fixed(n) if case.source.below(3) == 0 => *dim = case.source.size(*n as usize).into(),
            _ => {}
        }
    }
    let bound = case.sizes.dim(dims[axis]) as usize;
    let count: usize = concrete(&own, &case.sizes).iter().product();
    (own, (0..count).map(|_| case.source.below(bound) as f64).collect())
}

#[test]
fn elements_are_taken() {
    for seed in 0..80 {
        let mut case = Case::new(seed);
        let dtype = DType::ALL[case.source.below(7)];
        let (dims, at, axis) = shape(&mut case);
        let (id_dims, values) = ids(&mut case, &dims, at);
        let id = [DType::I32, DType::I64][case.source.below(2)];
        case.argument(dtype, &dims).given(id, &id_dims, values).check(Op::TakeAlong { axis });
    }
}

#[test]
fn elements_are_updated() {
    for seed in 0..80 {
        for &kind in ScatterKind::ALL {
            let mut case = Case::new(seed);
            let dtype = DType::ALL[case.source.below(if kind == ScatterKind::Set { 7 } else { 6 })];
            let (dims, at, axis) = shape(&mut case);
            let (id_dims, values) = ids(&mut case, &dims, at);
            let id = [DType::I32, DType::I64][case.source.below(2)];
            let count = values.len();
            // Products stay small, so that the reference need not wrap.
            let factors = |case: &mut Case| (1 + case.source.below(2)) as f64;
            let updates = (0..count).map(|_| match kind {
                ScatterKind::Mul => factors(&mut case),
                _ => case.source.value(dtype),
            });
            let updates = updates.collect();
            case.argument(dtype, &dims).given(id, &id_dims, values).given(dtype, &id_dims, updates);
            case.check_within(Op::ScatterAlong { axis, kind }, 4.0);
        }
    }
    for kind in [ScatterKind::Max, ScatterKind::Min] {
        let mut case = Case::new(0);
        case.given(DType::F32, &[4.into()], vec![NAN, 1.0, 2.0, 3.0]);
        case.given(DType::I64, &[4.into()], vec![0.0, 1.0, 2.0, 2.0]);
        case.given(DType::F32, &[4.into()], vec![5.0, NAN, 7.0, -7.0]).check(Op::ScatterAlong { axis: 0, kind });
    }
}

#[test]
fn ids_outside_the_axis() {
    let i64s = |dims: &[u64], ids: &[i64]| {
        let data = ids.iter().flat_map(|i| i.to_le_bytes()).collect();
        HostTensor { dtype: Some(DType::I64), dims: dims.to_vec(), data }
    };
    for op in [Op::TakeAlong { axis: 1 }, Op::ScatterAlong { axis: 1, kind: ScatterKind::Add }] {
        let name = op.name();
        let mut b = GraphBuilder::new("along");
        let x = b.input("x", InputRole::Argument, TensorType::new(DType::I64, [2.into(), 3.into()])).unwrap();
        let i = b.input("i", InputRole::Argument, TensorType::new(DType::I64, [2.into(), 2.into()])).unwrap();
        let reads = if name == "take_along" { vec![x, i] } else { vec![x, i, i] };
        let y = b.push(op, &reads).unwrap();
        b.output("y", y);
        let graph = Arc::new(b.finish().unwrap());
        for threads in 1..=3 {
            let program = CpuDevice::new(0, threads, 1 << 24).unwrap().load(Arc::clone(&graph)).unwrap();
            let run = |ids: &[i64]| {
                let arguments = [i64s(&[2, 3], &[10, 20, 30, 40, 50, 60]), i64s(&[2, 2], ids)];
                let mut outputs = Vec::new();
                let row = Row::new(&arguments, &mut outputs, 1);
                program.run(&[], &mut [row]).map(|()| outputs.remove(0).data)
            };
            for bad in [3, -1, i64::MAX, i64::MIN] {
                let expected = DeviceError::IndexOutOfRange { row: 0, node: NodeId(2), op: name, index: bad, bound: 3 };
                assert_eq!(run(&[0, 1, bad, 2]), Err(expected));
            }
            let expected: &[i64] = if name == "take_along" { &[10, 30, 60, 60] } else { &[10, 20, 32, 40, 50, 64] };
            assert_eq!(run(&[0, 2, 2, 2]), Ok(i64s(&[], expected).data));
        }
    }
}

/// Rows of several sessions run as one batch where the axis is not the batch's, and by themselves where it is: each gets its own.
#[test]
fn sessions_do_not_mix() {
    for (axis, alone) in [(0, vec![1_i64]), (1, vec![1, 3, 6])] {
        let mut b = GraphBuilder::new("sum");
        let width = alone.len() as u64;
        let x = b.input("x", InputRole::Argument, TensorType::new(DType::I64, [B, width.into()])).unwrap();
        let y = b.push(Op::Cumulative { kind: CumulativeKind::Sum, axis }, &[x]).unwrap();
        b.output("y", y);
        let program = CpuDevice::new(0, 2, 1 << 24).unwrap().load(Arc::new(b.finish().unwrap())).unwrap();
        let data: Vec<u8> = (1..=width as i64).flat_map(i64::to_le_bytes).collect();
        let arguments = [HostTensor { dtype: Some(DType::I64), dims: vec![1, width], data }];
        let mut outputs = [Vec::new(), Vec::new()];
        let mut rows: Vec<Row<'_>> = outputs.iter_mut().map(|outputs| Row::new(&arguments, outputs, 1)).collect();
        program.run(&[], &mut rows).unwrap();
        let expected: Vec<u8> = alone.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert!(outputs.iter().all(|o| o[0].data == expected), "axis {axis}");
    }
}
