//! Bound arguments and kept outputs, on the devices that there are: they stay in the device's memory from run to run.

use std::sync::Arc;

use genie_cuda_kernels::gpu::{GpuError, HostGpu, HostSettings};
use genie_executor::Mode;
use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::cuda::CudaDevice;
use genie_executor::device::{Device, HostTensor, Row};
use genie_graph::{DType, Dim, GraphBuilder, InputRole, Op, Phase, Symbol, TensorType, VerifiedGraph};
use genie_transport::memory::{Regions, SharedBytes, copied_bytes};
use genie_transport::wire::{
    Arguments, BindEntry, Effect, ErrorCode, Handle, PutBody, PutRequest, PutTarget, Request, TensorSpec,
    write_argument,
};

use crate::client::{Client, Out, SLICE, Server, Told, private, tensor};
use crate::graphs;

/// A server with one device, and the GPU that the device is made of, if it is.
pub(crate) fn servers(mode: Mode) -> [(Server, Option<HostGpu>); 2] {
    let gpu = HostGpu::new(HostSettings { total_bytes: 256 << 20, seed: 7, ..HostSettings::default() });
    let cuda = CudaDevice::with_staging(0, Arc::new(gpu.clone()), None, 16 << 20).unwrap();
    [
        (server(Arc::new(CpuDevice::new(0, 1, 256 << 20).unwrap()), mode), None),
        (server(Arc::new(cuda), mode), Some(gpu)),
    ]
}

fn server(device: Arc<dyn Device>, mode: Mode) -> Server {
    Server::with(1, 1 << 20, |config| {
        config.devices = vec![device];
        config.default_quota = 128 << 20;
        config.max_quota = 128 << 20;
        config.mode = mode;
    })
}

pub(crate) fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// `y = -x` of `f32 [columns]`; the input is node 0.
pub(crate) fn negated(columns: u64) -> VerifiedGraph {
    let mut b = GraphBuilder::new("negated");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [Dim::from(columns)])).unwrap();
    let y = b.push(Op::Neg, &[x]).unwrap();
    b.output("y", y);
    b.finish().unwrap()
}

#[track_caller]
pub(crate) fn put(client: &mut Client<'_>, dtype: DType, dims: &[u64], bytes: &[u8]) -> Handle {
    let spec = TensorSpec::new(dtype, dims).unwrap();
    if bytes.len() <= SLICE as usize {
        let body = PutBody::Inline(bytes);
        return tensor(client.call(Request::Put(PutRequest { target: private(None, None), spec, body })));
    }
    let body = PutBody::Sliced { slice_bytes: SLICE, announce: false };
    let id = client.ask(Request::Put(PutRequest { target: private(None, None), spec, body }));
    client.send(id, bytes, &(0..bytes.len().div_ceil(SLICE as usize)).collect::<Vec<_>>());
    tensor(client.answer(id))
}

#[track_caller]
pub(crate) fn bind(
    client: &mut Client<'_>,
    program: Handle,
    bound: &[(u32, Handle)],
    arguments: Arguments<'_>,
) -> Handle {
    let bound = bound.iter().map(|&(input, handle)| BindEntry { input, handle }).collect();
    match client.call(Request::Bind { program, bound, weights: Vec::new(), arguments }) {
        Ok(Told::Bound(handle)) => handle,
        other => panic!("{other:?}"),
    }
}

fn run(binding: Handle, wanted: u64, keep: u64) -> Request<'static> {
    Request::Run { binding, position: None, wanted, keep, arguments: Arguments::EMPTY }
}

/// The first output of a run that keeps it, and nothing else.
#[track_caller]
fn kept(client: &mut Client<'_>, binding: Handle) -> Handle {
    match client.call(run(binding, 0, 1)) {
        Ok(Told::Ran { outputs, .. }) => match outputs[..] {
            [Out::Resident(0, handle)] => handle,
            _ => panic!("{outputs:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Runs the program on a resident, and again on what came of it, so many times; the last resident. The others are freed.
fn chain(client: &mut Client<'_>, program: Handle, mut handle: Handle, times: usize) -> Handle {
    for _ in 0..times {
        let binding = bind(client, program, &[(0, handle)], Arguments::EMPTY);
        let next = kept(client, binding);
        client.call(Request::Free(binding)).unwrap();
        client.call(Request::Free(handle)).unwrap();
        handle = next;
    }
    handle
}

#[test]
fn outputs_go_on_as_arguments_without_passing_the_host() {
    const COLUMNS: usize = 4 << 20;
    let bytes = floats((0..COLUMNS).map(|i| (i % 1000) as f32 - 500.0));
    for (server, gpu) in servers(Mode::Inline) {
        let mut client = server.client();
        let program = client.define(&negated(COLUMNS as u64).encode());
        let held = server.counter("genie_session_bytes");
        let handle = put(&mut client, DType::F32, &[COLUMNS as u64], &bytes);
        let passed = || gpu.as_ref().map_or(0, HostGpu::host_bytes);
        let before = passed();
        let last = chain(&mut client, program, handle, 3);
        assert_eq!(passed(), before);
        let more = server.counter("genie_session_bytes") - held;
        assert_eq!(more, bytes.len() as u64, "the last one, and nothing beside it");
        let (offset, length) = (400, 4000);
        let expected = floats(bytes[400..4400].chunks(4).map(|b| -f32::from_le_bytes(b.try_into().unwrap())));
        let got = client.call(Request::Get { handle: last, offset, length, sliced: None });
        assert_eq!(got, Ok(Told::Got(expected)));
    }
}

#[test]
fn an_output_can_stay_and_come_back() {
    for (server, _gpu) in servers(Mode::Inline) {
        let mut client = server.client();
        let program = client.define(&negated(5).encode());
        let handle = put(&mut client, DType::F32, &[5], &floats([1.0, -2.0, 3.0, -4.0, 5.0]));
        let binding = bind(&mut client, program, &[(0, handle)], Arguments::EMPTY);
        let expected = floats([-1.0, 2.0, -3.0, 4.0, -5.0]);
        for _ in 0..4 {
            let Ok(Told::Ran { outputs, .. }) = client.call(run(binding, 1, 1)) else { panic!() };
            let [Out::Resident(0, kept), Out::Inline(0, inline)] = &outputs[..] else { panic!("{outputs:?}") };
            assert_eq!((client.get(*kept), inline), (expected.clone(), &expected));
        }
    }
}

#[test]
fn a_resident_that_is_written_is_read_as_it_is_then() {
    for (server, _gpu) in servers(Mode::Stepped) {
        let mut client = server.client();
        let program = client.define(&negated(4).encode());
        let held = server.counter("genie_session_bytes");
        let handle = put(&mut client, DType::F32, &[4], &floats([1.0; 4]));
        let binding = bind(&mut client, program, &[(0, handle)], Arguments::EMPTY);
        for value in [2.0, 3.0, 4.0] {
            let bytes = floats([value; 2]);
            let (target, body) = (PutTarget::Range { handle, offset: 8 }, PutBody::Inline(&bytes));
            let spec = TensorSpec::new(DType::F32, &[2]).unwrap();
            client.call(Request::Put(PutRequest { target, spec, body })).unwrap();
            let id = client.ask(run(binding, 1, 0));
            server.run_all();
            let Ok(Told::Ran { outputs, .. }) = client.answer(id) else { panic!() };
            assert_eq!(outputs, [Out::Inline(0, floats([-1.0, -1.0, -value, -value]))]);
        }
        assert_eq!(server.counter("genie_session_bytes"), held + 16, "no run holds a copy");
    }
}

/// Steps whose sampling is bound to residents, each to its session's own, run as one batch, and as they do alone.
#[test]
fn steps_with_bound_arguments_are_one_batch() {
    for (server, _gpu) in servers(Mode::Stepped) {
        let lm = graphs::lm(Phase::Decode);
        let mut steps: Vec<_> = (0..3)
            .map(|seed| {
                let mut client = server.client();
                let model = client.model(Phase::Decode);
                let real = put(&mut client, DType::F32, &[1, 2], &floats([0.9, 0.95]));
                let seeds: Vec<u8> = [seed, 0_i64].iter().flat_map(|i| i.to_le_bytes()).collect();
                let int = put(&mut client, DType::I64, &[1, 2], &seeds);
                let inputs = [(lm.table, model.table), (lm.cache, model.cache)];
                let bound = [&inputs[..], &[(lm.real.into(), real), (lm.int.into(), int)]].concat();
                let binding = bind(&mut client, model.program, &bound, Arguments::EMPTY);
                // The same with the sampling fixed, in a cache of its own.
                let other = client.model_with(Phase::Decode, model.table, None);
                let mut fixed = Vec::new();
                write_argument(&mut fixed, lm.real, DType::F32, &[1, 2], &floats([0.9, 0.95])).unwrap();
                write_argument(&mut fixed, lm.int, DType::I64, &[1, 2], &seeds).unwrap();
                let inputs = [(lm.table, other.table), (lm.cache, other.cache)];
                let alone = bind(&mut client, other.program, &inputs, Arguments::new(2, &fixed).unwrap());
                (client, model, binding, alone)
            })
            .collect();
        for step in 0..5 {
            let ask = |client: &mut Client<'_>, binding, tokens: &[u8]| {
                let arguments = Arguments::new(1, tokens).unwrap();
                client.ask(Request::Run { binding, position: None, wanted: 0b11, keep: 0, arguments })
            };
            let mut alone = Vec::new();
            for (client, model, _, binding) in &mut steps {
                let id = ask(client, *binding, &model.tokens(&[step]));
                server.run_all();
                alone.push(client.answer(id).unwrap());
            }
            let batched = server.counter("genie_batched_rows_total");
            let mut ids = Vec::new();
            for (client, model, binding, _) in &mut steps {
                ids.push(ask(client, *binding, &model.tokens(&[step])));
            }
            server.run_all();
            assert_eq!(server.counter("genie_batched_rows_total"), batched + 3);
            for (((client, ..), id), alone) in steps.iter().zip(ids).zip(alone) {
                assert_eq!(client.answer(id), Ok(alone));
            }
        }
    }
}

/// `y = table[ids]`, table `f32 [4, 2]` and ids `i64 [n]` bound: nodes 0 and 1.
fn rows() -> VerifiedGraph {
    let mut b = GraphBuilder::new("rows");
    let table = b.input("table", InputRole::Argument, TensorType::new(DType::F32, [4.into(), 2.into()])).unwrap();
    let ids = TensorType::new(DType::I64, [Dim::Symbol(Symbol::Batch)]);
    let ids = b.input("ids", InputRole::Argument, ids).unwrap();
    let y = b.push(Op::Gather, &[table, ids]).unwrap();
    b.output("y", y);
    b.finish().unwrap()
}

#[test]
fn a_run_that_fails_keeps_nothing() {
    for (server, gpu) in servers(Mode::Inline) {
        let mut client = server.client();
        let program = client.define(&rows().encode());
        let table = put(&mut client, DType::F32, &[4, 2], &floats((0..8_i16).map(f32::from)));
        let bind_ids = |client: &mut Client<'_>, ids: [i64; 3]| {
            let ids = put(client, DType::I64, &[3], ids.map(i64::to_le_bytes).as_flattened());
            bind(client, program, &[(0, table), (1, ids)], Arguments::EMPTY)
        };
        let (good, bad) = (bind_ids(&mut client, [3, 0, 2]), bind_ids(&mut client, [1, 4, 0]));
        let handle = kept(&mut client, good);
        assert_eq!(client.get(handle), floats([6.0, 7.0, 0.0, 1.0, 4.0, 5.0]));
        client.call(Request::Free(handle)).unwrap();
        let (held, free) = (server.counter("genie_session_bytes"), client.devices()[0].1);
        for (wanted, keep) in [(0, 1), (1, 1), (1, 0)] {
            let error = client.call(run(bad, wanted, keep)).unwrap_err();
            assert_eq!((error.code, error.effect), (ErrorCode::OutOfRange, Effect::None));
            assert_eq!((server.counter("genie_session_bytes"), client.devices()[0].1), (held, free));
        }
        let handle = kept(&mut client, good);
        assert_eq!(client.get(handle).len(), 24);

        let Some(gpu) = gpu else { continue };
        gpu.fail(GpuError::Fault { during: "a kernel", reason: "illegal address".to_owned() });
        let error = client.call(run(good, 0, 1)).unwrap_err();
        assert_eq!((error.code, error.effect), (ErrorCode::DeviceFailed, Effect::Partial));
        assert!(error.message.contains("illegal address"), "{}", error.message);
        assert!(client.peer.is_closed());
        assert_eq!((server.counter("genie_session_bytes"), gpu.used()), (0, 0));
    }
}

#[test]
fn what_a_session_may_not_hold_is_not_kept() {
    for (server, _gpu) in servers(Mode::Inline) {
        let mut client = server.connect();
        client.open(100 << 10);
        let program = client.define(&negated(10_000).encode());
        let handle = put(&mut client, DType::F32, &[10_000], &floats((0..10_000_u16).map(f32::from)));
        let binding = bind(&mut client, program, &[(0, handle)], Arguments::EMPTY);
        let first = kept(&mut client, binding);
        assert_eq!(client.fails(run(binding, 0, 1)), ErrorCode::OverQuota);
        client.call(Request::Free(first)).unwrap();
        kept(&mut client, binding);
    }
}

/// Other tests copy bytes, and the counter is the process's: this one runs in a process of its own.
#[test]
fn a_cpu_reads_and_writes_them_where_they_lie() {
    let this = std::env::current_exe().unwrap();
    let done = std::process::Command::new(this).args(["--exact", "residents::alone", "--ignored"]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "a part of `a_cpu_reads_and_writes_them_where_they_lie`"]
fn alone() {
    const COLUMNS: u64 = 1 << 20;
    for (server, _gpu) in servers(Mode::Inline) {
        let mut client = server.client();
        let program = client.define(&negated(COLUMNS).encode());
        let handle = put(&mut client, DType::F32, &[COLUMNS], &vec![7; 4 << 20]);
        let before = copied_bytes();
        chain(&mut client, program, handle, 3);
        assert_eq!(copied_bytes(), before);
    }
    // What a client may write meanwhile is copied first, and once.
    let (regions, shared) = (Regions::default(), SharedBytes::new(4096).unwrap());
    let file = shared.memory().fd().unwrap().try_clone_to_owned().unwrap();
    regions.share(1, file, shared.memory().len() as u64, shared.era());
    let device = CpuDevice::new(0, 1, 1 << 20).unwrap();
    let program = device.load(Arc::new(negated(1000))).unwrap();
    let residents = [Some(regions.passed(1, 0, 4000).unwrap().into())];
    let arguments = [HostTensor { dtype: Some(DType::F32), dims: vec![1000], data: vec![] }];
    let before = copied_bytes();
    let mut outputs = Vec::new();
    let row = Row { residents: &residents, ..Row::new(&arguments, &mut outputs, 1) };
    program.run(&[], &mut [row]).unwrap();
    assert_eq!((copied_bytes(), outputs[0].data.len()), (before + 4000, 4000));
}
