//! Bad input: a clear error, no cache grown, and the next run as if nothing had been.

use std::sync::Arc;

use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::{Device, DeviceError, HostTensor, KvSpec, Row};
use genie_graph::{DType, Dim, GraphBuilder, InputRole, NodeId, Op, ReduceKind, SizeError, Symbol, TensorType};
use genie_transport::memory::Region;

use crate::run::floats;
use crate::support::models::llama;
use crate::support::{Runner, Session, tensor};
use crate::tiny::TINY;

fn runner() -> Runner {
    Runner::new(CpuDevice::new(0, 2, 1 << 28).unwrap(), llama(&TINY))
}

fn primed(runner: &Runner) -> Session {
    let mut session = runner.session();
    session.feed(&[1, 2, 3]);
    runner.step(&mut [&mut session], 1).unwrap();
    session
}

/// Runs something bad and checks that a good step afterwards gives what it gives on a fresh session.
fn refused(wrong: impl FnOnce(&Runner, &mut Session) -> DeviceError) -> DeviceError {
    let runner = runner();
    let mut session = primed(&runner);
    let error = wrong(&runner, &mut session);
    assert_eq!(session.cache.len(), 3, "{error}");
    let fresh = runner.session();
    session.arguments = fresh.arguments;
    session.feed(&[7]);
    runner.step(&mut [&mut session], 3).unwrap();
    let mut other = primed(&runner);
    other.feed(&[7]);
    runner.step(&mut [&mut other], 3).unwrap();
    assert_eq!(session.logits(), other.logits(), "{error}");
    error
}

#[test]
fn tokens_outside_the_vocabulary() {
    for (token, index) in [(101, 101), (-1, -1), (i32::MAX, i64::from(i32::MAX)), (i32::MIN, i64::from(i32::MIN))] {
        let error = refused(|runner, session| {
            session.feed(&[3, token, 4]);
            runner.step(&mut [session], 1).unwrap_err()
        });
        let DeviceError::IndexOutOfRange { row: 0, op: "embedding", index: i, bound: 101, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(i, index);
    }
}

#[test]
fn a_bad_row_is_named_and_the_others_are_unharmed() {
    let runner = runner();
    let mut sessions: Vec<Session> = (0..4).map(|_| primed(&runner)).collect();
    sessions.iter_mut().for_each(|s| s.feed(&[5]));
    sessions[2].feed(&[500]);
    let error = runner.step(&mut sessions.iter_mut().collect::<Vec<_>>(), 3).unwrap_err();
    assert!(matches!(error, DeviceError::IndexOutOfRange { row: 2, .. }), "{error}");
    assert!(sessions.iter().all(|s| s.cache.len() == 3));
    sessions.remove(2);
    runner.step(&mut sessions.iter_mut().collect::<Vec<_>>(), 3).unwrap();
    let mut fresh = primed(&runner);
    fresh.feed(&[5]);
    runner.step(&mut [&mut fresh], 3).unwrap();
    assert!(sessions.iter().all(|s| s.logits() == fresh.logits() && s.cache.len() == 4));
}

#[test]
fn arguments_that_do_not_fit() {
    let error = refused(|r, s| {
        s.arguments.pop();
        r.step(&mut [s], 1).unwrap_err()
    });
    assert!(matches!(error, DeviceError::Count { what: "arguments", expected: 3, got: 2, .. }), "{error}");
    let error = refused(|r, s| {
        s.feed(&[1]);
        s.arguments[0].dtype = Some(DType::I64);
        r.step(&mut [s], 1).unwrap_err()
    });
    assert!(matches!(error, DeviceError::ArgumentType { .. }), "{error}");
    for dims in [vec![1], vec![1, 0], vec![0, 1], vec![1, 1, 1], vec![u64::MAX, u64::MAX]] {
        let error = refused(|r, s| {
            s.feed(&[1]);
            s.arguments[0].dims = dims;
            r.step(&mut [s], 1).unwrap_err()
        });
        assert!(matches!(error, DeviceError::ArgumentShape { .. } | DeviceError::ArgumentBytes { .. }), "{error}");
    }
    let error = refused(|r, s| {
        s.feed(&[1]);
        s.arguments[0].data.pop();
        r.step(&mut [s], 1).unwrap_err()
    });
    assert!(matches!(error, DeviceError::ArgumentBytes { expected: 4, got: 3, .. }), "{error}");
    let error = refused(|r, s| {
        s.feed(&[1]);
        s.arguments[1] = tensor(&[1, 3], &[0.0; 3]);
        r.step(&mut [s], 1).unwrap_err()
    });
    assert!(matches!(error, DeviceError::ArgumentShape { .. }), "{error}");
    let error = refused(|r, s| {
        // Two sequences, one cache.
        s.arguments[0] = HostTensor { dtype: Some(DType::I32), dims: vec![2, 1], data: vec![0; 8] };
        s.arguments[1] = tensor(&[2, 2], &[0.0; 4]);
        s.arguments[2] = HostTensor { dtype: Some(DType::I64), dims: vec![2, 2], data: vec![0; 32] };
        r.step(&mut [s], 1).unwrap_err()
    });
    assert!(matches!(error, DeviceError::Row { row: 0, .. }), "{error}");
}

#[test]
fn weights_and_caches_that_do_not_fit() {
    let error = refused(|r, s| {
        let row = s.row(1);
        r.program.run(&r.weights[1..], &mut [row]).unwrap_err()
    });
    assert!(matches!(error, DeviceError::Count { what: "weights", .. }), "{error}");
    let error = refused(|r, s| {
        let mut weights = r.weights.clone();
        weights[1] = Region::copy_of(&[0; 12]).into();
        r.program.run(&weights, &mut [s.row(1)]).unwrap_err()
    });
    assert!(matches!(error, DeviceError::WeightBytes { expected: 144, got: 12, .. }), "{error}");
    let error = refused(|r, s| {
        let mut weights = r.weights.clone();
        let shifted = Region::copy_of(&[0; 145]);
        weights[1] = shifted.slice(1..145).unwrap().into();
        r.program.run(&weights, &mut [s.row(1)]).unwrap_err()
    });
    assert!(matches!(error, DeviceError::Misaligned { bytes: 4, .. }), "{error}");
    let error = refused(|r, s| {
        let mut other = r.device.cache(KvSpec { head_dim: 7, ..r.spec }).unwrap();
        let mut row = s.row(1);
        row.caches = vec![&mut other];
        r.program.run(&r.weights, &mut [row]).unwrap_err()
    });
    assert!(matches!(error, DeviceError::CacheSpec { .. }), "{error}");
    let error = refused(|r, s| {
        let mut row = s.row(1);
        row.caches.clear();
        r.program.run(&r.weights, &mut [row]).unwrap_err()
    });
    assert!(matches!(error, DeviceError::Count { what: "caches", .. }), "{error}");
}

#[test]
fn rows_of_different_lengths() {
    let error = refused(|r, s| {
        let mut other = r.session();
        other.feed(&[1, 2]);
        s.feed(&[1]);
        let error = r.step(&mut [s, &mut other], 1).unwrap_err();
        assert!(other.cache.is_empty());
        error
    });
    assert!(matches!(error, DeviceError::Row { row: 1, .. }), "{error}");
}

#[test]
fn no_memory_for_the_cache_or_the_run() {
    let model = llama(&TINY);
    let runner = Runner::new(CpuDevice::new(0, 1, 200 << 10).unwrap(), model);
    let mut sessions: Vec<Session> = (0..20).map(|_| runner.session()).collect();
    sessions.iter_mut().for_each(|s| s.feed(&[1]));
    let error = runner.step(&mut sessions.iter_mut().collect::<Vec<_>>(), 1).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory(_)), "{error}");
    assert!(sessions.iter().all(|s| s.cache.is_empty() && s.cache.bytes() == 0));
    runner.step(&mut [&mut sessions[0]], 1).unwrap();
    sessions[0].feed(&vec![1; 1000]);
    let error = runner.step(&mut [&mut sessions[0]], 1).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory(_)), "{error}");
    sessions[0].feed(&[1]);
    runner.step(&mut [&mut sessions[0]], 1).unwrap();
    assert_eq!(sessions[0].cache.len(), 2);
}

/// The memory that runs work in is kept, but not from those who need it.
#[test]
fn residents_can_have_all_the_memory_between_runs() {
    let runner = Runner::new(CpuDevice::new(0, 1, 16 << 20).unwrap(), llama(&TINY));
    let mut session = runner.session();
    runner.feed(&mut session, &vec![1; 2000]);
    drop(session);
    let info = runner.device.info();
    assert!(info.free_bytes < info.total_bytes - (2 << 20));
    // All but the plan's few constants, in a size that is not rounded up.
    let all = runner.device.allocate(14 << 20).unwrap();
    let error = runner.device.allocate(2 << 20).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory(_)), "{error}");
    drop(all);
    runner.feed(&mut runner.session(), &[1]);
}

const B: Dim = Dim::Symbol(Symbol::Batch);

fn host(dtype: DType, dims: &[u64], data: Vec<u8>) -> HostTensor {
    HostTensor { dtype: Some(dtype), dims: dims.to_vec(), data }
}

#[test]
fn dividing_by_zero() {
    let mut b = GraphBuilder::new("div");
    let ty = || TensorType::new(DType::I32, [B, 2.into()]);
    let x = b.input("x", InputRole::Argument, ty()).unwrap();
    let y = b.input("y", InputRole::Argument, ty()).unwrap();
    let z = b.push(Op::Div, &[x, y]).unwrap();
    b.output("z", z);
    let device = CpuDevice::new(0, 2, 1 << 24).unwrap();
    let program = device.load(Arc::new(b.finish().unwrap())).unwrap();
    let ints = |a: i32, b: i32| host(DType::I32, &[1, 2], [a.to_le_bytes(), b.to_le_bytes()].concat());
    let arguments = [[ints(6, 8), ints(3, 4)], [ints(1, 1), ints(1, 0)]];
    let mut outputs = [Vec::new(), Vec::new()];
    let mut run = |which: &[usize]| {
        let mut rows: Vec<Row<'_>> = Vec::new();
        for (i, outputs) in outputs.iter_mut().enumerate().filter(|(i, _)| which.contains(i)) {
            rows.push(Row::new(&arguments[i], outputs, 1));
        }
        program.run(&[], &mut rows)
    };
    assert_eq!(run(&[0, 1]), Err(DeviceError::DivisionByZero { row: 1, node: NodeId(2) }));
    assert_eq!(run(&[0]), Ok(()));
    assert_eq!(outputs[0][0], ints(2, 2));
}

#[test]
fn indices_outside_a_table() {
    let mut b = GraphBuilder::new("gather");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::U8, [3.into(), 2.into()])).unwrap();
    let i = b.input("i", InputRole::Argument, TensorType::new(DType::I64, [B])).unwrap();
    let y = b.push(Op::Gather, &[x, i]).unwrap();
    b.output("y", y);
    let device = CpuDevice::new(0, 2, 1 << 24).unwrap();
    let program = device.load(Arc::new(b.finish().unwrap())).unwrap();
    let run = |ids: &[i64]| {
        let ids_bytes = ids.iter().flat_map(|i| i.to_le_bytes()).collect();
        let arguments =
            [host(DType::U8, &[3, 2], vec![1, 2, 3, 4, 5, 6]), host(DType::I64, &[ids.len() as u64], ids_bytes)];
        let mut outputs = Vec::new();
        let row = Row::new(&arguments, &mut outputs, 1);
        program.run(&[], &mut [row]).map(|()| outputs.remove(0).data)
    };
    assert_eq!(run(&[2, 0]), Ok(vec![5, 6, 1, 2]));
    for bad in [3, -1, i64::MAX, i64::MIN] {
        let error = run(&[0, bad, 99]).unwrap_err();
        assert_eq!(error, DeviceError::IndexOutOfRange { row: 0, node: NodeId(2), op: "gather", index: bad, bound: 3 });
    }
}

/// A program that mixes along the batch must not see other sessions' rows.
#[test]
fn rows_that_would_mix_run_one_by_one() {
    let mut b = GraphBuilder::new("softmax over the batch");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [B, 1.into()])).unwrap();
    let y = b.push(Op::Softmax { axis: 0 }, &[x]).unwrap();
    b.output("y", y);
    let device = CpuDevice::new(0, 2, 1 << 24).unwrap();
    let program = device.load(Arc::new(b.finish().unwrap())).unwrap();
    let arguments = [[tensor(&[1, 1], &[5.0])], [tensor(&[2, 1], &[1.0, 1.0])]];
    let mut outputs = [Vec::new(), Vec::new()];
    let [first, second] = &mut outputs;
    let mut rows = [Row::new(&arguments[0], first, 1), Row::new(&arguments[1], second, 1)];
    program.run(&[], &mut rows).unwrap();
    assert_eq!(floats(&outputs[0][0]), [1.0]);
    assert_eq!(floats(&outputs[1][0]), [0.5, 0.5]);
}

#[test]
fn rows_of_several_sequences_are_split_again() {
    let mut b = GraphBuilder::new("double");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [B, 2.into()])).unwrap();
    let y = b.push(Op::Add, &[x, x]).unwrap();
    b.output("y", y);
    let device = CpuDevice::new(0, 2, 1 << 24).unwrap();
    let program = device.load(Arc::new(b.finish().unwrap())).unwrap();
    let arguments = [[tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0])], [tensor(&[1, 2], &[5.0, 6.0])]];
    let mut outputs = [Vec::new(), Vec::new()];
    let [first, second] = &mut outputs;
    let mut rows = [Row::new(&arguments[0], first, 1), Row::new(&arguments[1], second, 1)];
    program.run(&[], &mut rows).unwrap();
    assert_eq!(outputs[0][0], tensor(&[2, 2], &[2.0, 4.0, 6.0, 8.0]));
    assert_eq!(outputs[1][0], tensor(&[1, 2], &[10.0, 12.0]));
}

/// Creation ops are computed when a plan is made: a peer may ask for more than there is.
#[test]
fn constants_count_against_the_memory() {
    let mut b = GraphBuilder::new("large");
    let x = b.create(Op::Ones, TensorType::new(DType::F32, [Dim::Fixed(1 << 38)])).unwrap();
    b.output("x", x);
    let device = CpuDevice::new(0, 1, 1 << 24).unwrap();
    let program = device.load(Arc::new(b.finish().unwrap())).unwrap();
    let mut outputs = Vec::new();
    let error = program.run(&[], &mut [Row::new(&[], &mut outputs, 1)]).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory(_)), "{error}");
}

/// Sizes that fit a graph's types but no machine.
#[test]
fn products_larger_than_any_memory() {
    for (rows, columns) in [(1 << 20, 1 << 40), (1 << 40, 1 << 40), (1 << 40, 1)] {
        let mut b = GraphBuilder::new("large");
        let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [B, 1.into()])).unwrap();
        let y = b.input("y", InputRole::Argument, TensorType::new(DType::F32, [1.into(), 1.into()])).unwrap();
        let ones = b.create(Op::Full { value: 1.0 }, TensorType::new(DType::U8, [Dim::Fixed(rows), 1.into()]));
        let ones = b.push(Op::Cast { to: DType::F32 }, &[ones.unwrap()]).unwrap();
        let wide = b.create(Op::Zeros, TensorType::new(DType::F32, [1.into(), Dim::Fixed(columns)])).unwrap();
        let Ok(product) = b.push(Op::MatMul, &[ones, wide]) else { continue };
        let sum = b.push(Op::Add, &[x, y]).unwrap();
        b.output("product", product);
        b.output("sum", sum);
        let device = CpuDevice::new(0, 1, 1 << 24).unwrap();
        let program = device.load(Arc::new(b.finish().unwrap())).unwrap();
        let arguments = [tensor(&[1, 1], &[1.0]), tensor(&[1, 1], &[2.0])];
        let mut outputs = Vec::new();
        let row = Row::new(&arguments, &mut outputs, 1);
        let error = program.run(&[], &mut [row]).unwrap_err();
        assert!(matches!(error, DeviceError::OutOfMemory(_) | DeviceError::Sizes(_)), "{error}");
        assert_eq!(device.info().free_bytes, device.info().total_bytes);
    }
}

/// A program of as many independent nodes as a graph may have is planned and run like any other.
#[test]
fn a_program_of_very_many_nodes() {
    let mut b = GraphBuilder::new("many");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [B, 3.into()])).unwrap();
    let nodes: Vec<NodeId> = (0..30_000).map(|_| b.push(Op::Neg, &[x]).unwrap()).collect();
    let mut sum = nodes[0];
    for &node in &nodes[1..] {
        sum = b.push(Op::Add, &[sum, node]).unwrap();
    }
    b.output("sum", sum);
    let device = CpuDevice::new(0, 2, 1 << 26).unwrap();
    let program = device.load(Arc::new(b.finish().unwrap())).unwrap();
    for batch in 1..4 {
        let arguments = [tensor(&[batch, 3], &vec![1.0; 3 * batch as usize])];
        let mut outputs = Vec::new();
        let row = Row::new(&arguments, &mut outputs, 1);
        program.run(&[], &mut [row]).unwrap();
        assert!(floats(&outputs[0]).iter().all(|&s| s == -30_000.0));
    }
}

/// Both graphs pass the verifier and have no cache, so that their position is 0: one took the last of no positions and brought
/// the process down, the other gave out what an earlier run had left in memory.
#[test]
fn tensors_along_an_empty_cache() {
    const P: Dim = Dim::Symbol(Symbol::Position);
    let device = CpuDevice::new(0, 2, 1 << 24).unwrap();
    let run = |b: GraphBuilder, arguments: &[HostTensor]| {
        let program = device.load(Arc::new(b.finish().unwrap())).unwrap();
        let mut outputs = Vec::new();
        let result = program.run(&[], &mut [Row::new(arguments, &mut outputs, 1)]);
        assert_eq!(result, Err(DeviceError::Sizes(SizeError::Zero(Symbol::Position))));
    };
    let mut b = GraphBuilder::new("sample");
    let logits = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [B, 4.into()])).unwrap();
    let real = b.input("r", InputRole::SamplingReal, TensorType::new(DType::F32, [B, 2.into()])).unwrap();
    let int = b.input("i", InputRole::SamplingInt, TensorType::new(DType::I64, [B, 2.into()])).unwrap();
    let positions = b.create(Op::Zeros, TensorType::new(DType::I32, [B, P])).unwrap();
    let token = b.push(Op::Sample, &[logits, real, int, positions]).unwrap();
    b.output("y", token);
    run(b, &[tensor(&[1, 4], &[0.0; 4]), tensor(&[1, 2], &[1.0; 2]), host(DType::I64, &[1, 2], vec![0; 16])]);

    let mut b = GraphBuilder::new("max");
    let x = b.create(Op::Zeros, TensorType::new(DType::F32, [P, 1024.into()])).unwrap();
    let y = b.push(Op::Reduce { kind: ReduceKind::Max, axes: vec![0], keep_dims: false }, &[x]).unwrap();
    b.output("y", y);
    run(b, &[]);
}
