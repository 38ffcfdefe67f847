//! Rows of a table replaced by index.

use std::sync::Arc;

use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::{Device, DeviceError, HostTensor, Row};
use genie_graph::{DType, Dim, GraphBuilder, InputRole, NodeId, Op, Symbol, TensorType};

use crate::case::Case;

const B: Dim = Dim::Symbol(Symbol::Batch);
const S: Dim = Dim::Symbol(Symbol::Sequence);

#[test]
fn rows_are_replaced() {
    for seed in 0..60 {
        let mut case = Case::new(seed);
        let dtype = DType::ALL[case.source.below(7)];
        let rank = case.source.below(3);
        let mut table = vec![Dim::from(case.source.size(12))];
        table.extend(case.source.dims(rank));
        let Dim::Fixed(rows) = table[0] else { unreachable!() };
        let count = [case.source.size(15).into(), B, S][case.source.below(3)];
        // Many are equal: the last counts.
        let ids = (0..case.sizes.dim(count)).map(|_| case.source.below(rows as usize) as f64).collect();
        let updates = [&[count], &table[1..]].concat();
        let id = [DType::I32, DType::I64][case.source.below(2)];
        case.argument(dtype, &table).given(id, &[count], ids).argument(dtype, &updates).check(Op::Scatter);
    }
}

fn bytes(dims: &[u64], data: &[u8]) -> HostTensor {
    HostTensor { dtype: Some(DType::U8), dims: dims.to_vec(), data: data.to_vec() }
}

#[test]
fn ids_outside_the_table() {
    let mut b = GraphBuilder::new("scatter");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::U8, [4.into(), 2.into()])).unwrap();
    let i = b.input("i", InputRole::Argument, TensorType::new(DType::I64, [S])).unwrap();
    let u = b.input("u", InputRole::Argument, TensorType::new(DType::U8, [S, 2.into()])).unwrap();
    let y = b.push(Op::Scatter, &[x, i, u]).unwrap();
    b.output("y", y);
    let graph = Arc::new(b.finish().unwrap());
    for threads in 1..=3 {
        let program = CpuDevice::new(0, threads, 1 << 24).unwrap().load(Arc::clone(&graph)).unwrap();
        let run = |ids: &[i64]| {
            let n = ids.len() as u64;
            let data = ids.iter().flat_map(|i| i.to_le_bytes()).collect();
            let updates: Vec<u8> = (10..10 + 2 * n as u8).collect();
            let arguments = [
                bytes(&[4, 2], &[1, 2, 3, 4, 5, 6, 7, 8]),
                HostTensor { dtype: Some(DType::I64), dims: vec![n], data },
                bytes(&[n, 2], &updates),
            ];
            let mut outputs = Vec::new();
            let row = Row::new(&arguments, &mut outputs, 1);
            program.run(&[], &mut [row]).map(|()| outputs.remove(0).data)
        };
        assert_eq!(run(&[3, 0, 3]), Ok(vec![12, 13, 3, 4, 5, 6, 14, 15]));
        for bad in [4, -1, i64::MAX, i64::MIN] {
            let error = run(&[0, bad, 99]).unwrap_err();
            let expected =
                DeviceError::IndexOutOfRange { row: 0, node: NodeId(3), op: "scatter", index: bad, bound: 4 };
            assert_eq!(error, expected);
        }
        assert_eq!(run(&[1]), Ok(vec![1, 2, 10, 11, 5, 6, 7, 8]));
    }
}

/// Ids by the batch change a table that all rows would share: each session's row runs by itself.
#[test]
fn sessions_do_not_write_into_each_others_tables() {
    let mut b = GraphBuilder::new("scatter");
    let table = b.create(Op::Zeros, TensorType::new(DType::U8, [4.into()])).unwrap();
    let i = b.input("i", InputRole::Argument, TensorType::new(DType::I32, [B])).unwrap();
    let u = b.input("u", InputRole::Argument, TensorType::new(DType::U8, [B])).unwrap();
    let y = b.push(Op::Scatter, &[table, i, u]).unwrap();
    // As many ids as rows: a result by the batch that shows the whole table.
    let all = b.push(Op::Reduce { kind: genie_graph::ReduceKind::Sum, axes: vec![], keep_dims: true }, &[y]).unwrap();
    let y = b.push(Op::Add, &[u, all]).unwrap();
    b.output("y", y);
    let program = CpuDevice::new(0, 2, 1 << 24).unwrap().load(Arc::new(b.finish().unwrap())).unwrap();
    let ids = |i: i32| HostTensor { dtype: Some(DType::I32), dims: vec![1], data: i.to_le_bytes().to_vec() };
    let arguments = [[ids(0), bytes(&[1], &[5])], [ids(1), bytes(&[1], &[7])]];
    let mut outputs = [Vec::new(), Vec::new()];
    let rows = arguments.iter().zip(&mut outputs);
    let mut rows: Vec<Row<'_>> = rows.map(|(arguments, outputs)| Row::new(arguments, outputs, 1)).collect();
    program.run(&[], &mut rows).unwrap();
    assert_eq!(outputs.map(|o| o[0].data.clone()), [vec![10], vec![14]]);
}
