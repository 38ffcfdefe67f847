//! The CUDA device, its kernels on the CPU (`GENIE_TEST_GPU=1`: on a GPU, but where the stand-in is asked what it saw): whole models,
//! batches, captured steps, caches, faults, memory.

use std::sync::Arc;

use genie_cuda_kernels::View;
use genie_cuda_kernels::gpu::{Gpu, HostGpu, HostSettings, Stream};
use genie_cuda_kernels::launch::elementwise::{Unary, unary};
use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::cuda::CudaDevice;
use genie_executor::device::{Device, DeviceError, Row, Space};
use genie_graph::{DType, GraphBuilder, InputRole, LinearLayout, Op, TensorType};
use genie_transport::memory::Region;

use crate::models::{BOTH, agree_with_the_reference, text};
use crate::stand_in::gpu;
use crate::support::models::{Config, Model, gpt2, llama};
use crate::support::{Runner, Session, place, tensor};
use crate::tiny::TINY;

fn load(model: Model) -> Runner {
    Runner::new(gpu(), model)
}

#[test]
fn models_agree_with_the_reference() {
    agree_with_the_reference(10.0, load);
}

/// Feeds back the likeliest token, so many times.
fn greedy(runner: &Runner, prompt: &[i32], steps: usize) -> Vec<i32> {
    let mut session = runner.session();
    session.feed(prompt);
    let mut tokens = Vec::new();
    for _ in 0..steps {
        runner.step(&mut [&mut session], 1).unwrap();
        tokens.push(session.token());
        session.feed(&[session.token()]);
    }
    tokens
}

#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    for make in BOTH {
        let cpu = Runner::new(CpuDevice::new(0, 2, 1 << 30).unwrap(), make(&TINY));
        assert_eq!(greedy(&load(make(&TINY)), &text(0, 9), 64), greedy(&cpu, &text(0, 9), 64));
    }
}

#[test]
fn a_batch_gives_each_row_the_bits_it_gets_alone() {
    for make in BOTH {
        for weights in [DType::F32, DType::BF16] {
            let runner = load(make(&Config { weights, ..TINY }));
            let sessions = 5;
            let fill = |i: usize| {
                let mut session = runner.session();
                runner.feed(&mut session, &text(i, 1 + i * 23));
                session
            };
            let mut alone: Vec<Session> = (0..sessions).map(fill).collect();
            let mut together: Vec<Session> = (0..sessions).map(fill).collect();
            // The fourth step and those after it are captured ones.
            for step in 0..6 {
                for (i, session) in alone.iter_mut().enumerate() {
                    runner.feed(session, &text(i + step, 1));
                }
                together.iter_mut().enumerate().for_each(|(i, s)| s.feed(&text(i + step, 1)));
                runner.step(&mut together.iter_mut().collect::<Vec<_>>(), u64::MAX).unwrap();
                for (a, b) in alone.iter().zip(&together) {
                    assert_eq!(a.outputs, b.outputs, "step {step}");
                }
            }
        }
    }
}

#[test]
fn seeds_draw_the_tokens_of_the_cpu() {
    let draw = |runner: &Runner| {
        let mut session = runner.session();
        session.arguments[1] = tensor(&[1, 2], &[0.9, 0.95]);
        session.arguments[2].data[8] = 41;
        session.feed(&text(0, 5));
        let mut tokens = Vec::new();
        for _ in 0..10 {
            runner.step(&mut [&mut session], 1).unwrap();
            tokens.push(session.token());
            session.feed(&[session.token()]);
        }
        tokens
    };
    assert_eq!(draw(&load(llama(&TINY))), draw(&Runner::new(CpuDevice::new(0, 1, 1 << 30).unwrap(), llama(&TINY))));
}

#[test]
fn forks_and_truncated_caches_go_their_own_ways() {
    let runner = load(llama(&TINY));
    for prefix in [10, 64, 65] {
        let mut origin = runner.session();
        runner.feed(&mut origin, &text(0, prefix));
        let mut fork = runner.session();
        fork.cache = origin.cache.fork();
        let by_origin = runner.feed(&mut origin, &[1]);
        let by_fork = runner.feed(&mut fork, &[2]);
        let mut plain = runner.session();
        runner.feed(&mut plain, &text(0, prefix));
        assert_eq!(runner.feed(&mut plain, &[2]), by_fork);
        origin.cache.truncate(prefix as u64);
        assert_eq!(runner.feed(&mut origin, &[1]), by_origin);
    }
}

#[test]
fn what_is_exported_can_be_imported_elsewhere() {
    let (here, there) = (load(llama(&TINY)), Runner::new(CpuDevice::new(0, 1, 1 << 28).unwrap(), llama(&TINY)));
    let mut session = here.session();
    here.feed(&mut session, &text(0, 100));
    let segments = session.cache.segments();
    let blocks = segments.iter().map(|segment| {
        let mut space = there.device.allocate(segment.len()).unwrap();
        space.copy(0, segment).unwrap();
        space
    });
    let mut moved = there.session();
    moved.cache.import(100, blocks.collect()).unwrap();
    let (a, b) = (here.feed(&mut session, &[8]), there.feed(&mut moved, &[8]));
    let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn an_index_that_is_out_of_range_is_named() {
    let runner = load(llama(&TINY));
    let mut sessions: Vec<Session> = (0..3).map(|_| runner.session()).collect();
    for (session, token) in sessions.iter_mut().zip([5, -7, 200]) {
        session.feed(&[3, token]);
    }
    let error = runner.step(&mut sessions.iter_mut().collect::<Vec<_>>(), 1).unwrap_err();
    let DeviceError::IndexOutOfRange { row: 1, op: "embedding", index: -7, bound: 101, .. } = error else {
        panic!("{error}")
    };
    assert!(sessions.iter().all(|session| session.cache.is_empty()));
    sessions[0].feed(&[3, 5]);
    runner.step(&mut [&mut sessions[0]], 1).unwrap();
}

/// Indices that are weights were said to be -1, whatever they were.
#[test]
fn an_index_among_weights_is_named() {
    let mut builder = GraphBuilder::new("rows");
    let x = builder.input("x", InputRole::Argument, TensorType::new(DType::F32, [4.into(), 2.into()])).unwrap();
    let ids = builder.input("ids", InputRole::Weight, TensorType::new(DType::I64, [3.into()])).unwrap();
    let y = builder.push(Op::Gather, &[x, ids]).unwrap();
    builder.output("y", y);
    let device = gpu();
    let program = device.load(Arc::new(builder.finish().unwrap())).unwrap();
    let bytes: Vec<u8> = [1_i64, -5, 77].iter().flat_map(|id| id.to_le_bytes()).collect();
    let arguments = [tensor(&[4, 2], &[0.0; 8])];
    let mut outputs = Vec::new();
    let row = Row::new(&arguments, &mut outputs, 1);
    let error = program.run(&[place(&device, &bytes)], &mut [row]).unwrap_err();
    assert!(matches!(error, DeviceError::IndexOutOfRange { op: "gather", index: -5, bound: 4, .. }), "{error}");
}

#[test]
fn a_step_that_was_seen_before_is_one_graph() {
    let host = Arc::new(HostGpu::new(HostSettings { total_bytes: 1 << 30, ..HostSettings::default() }));
    let runner = Runner::new(CudaDevice::new(0, host.clone(), None).unwrap(), llama(&TINY));
    let mut session = runner.session();
    let mut last = 0;
    let mut launched = Vec::new();
    for step in 0..6 {
        runner.feed(&mut session, &[step]);
        launched.push(host.launches() - last);
        last = host.launches();
    }
    assert_eq!(launched[4], launched[5]);
    assert_eq!(host.replays(), 4, "two runs as they are, then captured");
}

/// A GPU that is this CPU, with a model on it.
fn counted(model: Model) -> (Arc<HostGpu>, Runner) {
    let host = Arc::new(HostGpu::new(HostSettings { total_bytes: 1 << 30, ..HostSettings::default() }));
    (host.clone(), Runner::new(CudaDevice::new(0, host, None).unwrap(), model))
}

/// The copies, and the fill of the words that faults are left in, were calls of their own: nine in all, with an event made for each step.
#[test]
fn a_step_that_was_seen_before_is_three_calls_of_the_driver() {
    for make in BOTH {
        for rows in [1, 5] {
            let (host, runner) = counted(make(&TINY));
            let mut sessions: Vec<Session> = (0..rows).map(|_| runner.session()).collect();
            for step in 0..8 {
                sessions.iter_mut().for_each(|session| session.feed(&[step]));
                let before = host.calls();
                runner.step(&mut sessions.iter_mut().collect::<Vec<_>>(), 1).unwrap();
                let calls = host.calls() - before;
                assert!(step < 3 || calls == 3, "{calls} calls, not the graph, an event and the wait for it");
            }
        }
    }
}

/// A plan had one graph, for what was wanted last.
#[test]
fn steps_of_which_other_outputs_are_wanted_have_graphs_of_their_own() {
    let (host, runner) = counted(llama(&TINY));
    let plain = load(llama(&TINY));
    let (mut session, mut other) = (runner.session(), plain.session());
    for step in 0..12 {
        let wanted = if step % 2 == 0 { 1 } else { u64::MAX };
        for (runner, session, wanted) in [(&runner, &mut session, wanted), (&plain, &mut other, u64::MAX)] {
            session.feed(&[step]);
            runner.step(&mut [session], wanted).unwrap();
        }
        assert_eq!(session.token(), other.token(), "step {step}");
        assert!(wanted == 1 || session.outputs == other.outputs, "step {step}");
    }
    assert_eq!(host.replays(), 12 - 4);
}

#[test]
fn the_thread_is_free_between_a_launch_and_its_end() {
    let (host, runner) = counted(llama(&TINY));
    let mut session = runner.session();
    for step in 0..6 {
        session.feed(&[step]);
        let before = (host.calls(), host.launches());
        let mut seen = before;
        let mut look = || seen = (host.calls(), host.launches());
        runner.program.run_with(&runner.weights, &mut [session.row(1)], &mut look).unwrap();
        assert!(seen.0 > before.0, "step {step}: it was put into the stream");
        assert!(host.launches() > seen.1, "step {step}: it was not done yet");
    }
}

/// Kernels of a decode step that is not captured yet, and how many of them are right behind another.
fn kernels_of_a_step(model: Model) -> [u64; 2] {
    let host = Arc::new(HostGpu::new(HostSettings { total_bytes: 1 << 30, ..HostSettings::default() }));
    let runner = Runner::new(CudaDevice::new(0, host.clone(), None).unwrap(), model);
    let mut session = runner.session();
    runner.feed(&mut session, &[1, 2, 3]);
    // The first of its kind makes the plan's constants, too.
    runner.feed(&mut session, &[4]);
    let before = [host.launches(), host.launches_behind()];
    runner.feed(&mut session, &[5]);
    [host.launches() - before[0], host.launches_behind() - before[1]]
}

#[test]
fn a_decode_step_has_few_kernels_and_all_but_the_first_are_right_behind_others() {
    // Norms and what is added are done by products, rotation and the cache by attention: gpt2 has four products a layer, llama six.
    for (make, each) in [(gpt2 as fn(&Config) -> Model, 5), (llama, 7)] {
        let [two, four] = [2, 4].map(|layers| kernels_of_a_step(make(&Config { layers, ..TINY })));
        assert_eq!(four[0] - two[0], 2 * each);
        // Embeddings, the last norm, the logits, sampling.
        assert!(two[0] - 2 * each <= 7, "{} besides the layers", two[0] - 2 * each);
        for [all, behind] in [two, four] {
            assert_eq!(behind, all - 1);
        }
    }
}

/// The kernels' stream was to have come to where memory was allocated before an upload to it could begin: a prompt of somebody else's,
/// or many.
#[test]
fn an_upload_does_not_wait_for_kernels() {
    let host = Arc::new(HostGpu::new(HostSettings { total_bytes: 1 << 28, ..HostSettings::default() }));
    let device = CudaDevice::new(0, host.clone(), None).unwrap();
    let others = host.allocate(4096).unwrap();
    let view = View::new(others, DType::F32, 1024);
    let launch = unary(Unary::Neg, view, view).unwrap().unwrap();
    // SAFETY: it stays until the end.
    unsafe { host.launch(Stream::Compute, &launch) }.unwrap();
    let before = host.launches();
    let bytes: Vec<u8> = (0..100_000).map(|i| (i * 7) as u8).collect();
    let Space::Device(buffer) = device.allocate_for_upload(100_000).unwrap() else { panic!() };
    buffer.write(0, &bytes[..40_000]).unwrap();
    buffer.send(40_000, Region::from_owner(bytes[40_000..].to_vec())).unwrap();
    buffer.settle().unwrap();
    let mut seen = vec![0; 100_000];
    buffer.read(0, &mut seen).unwrap();
    assert!(seen == bytes);
    assert_eq!(host.launches(), before, "no kernel was waited for");
    // SAFETY: nobody uses it.
    unsafe { host.free(others) };
}

/// What is allocated for an upload may be used first by kernels' stream all the same, and be given back with nothing done to it.
#[test]
fn memory_for_uploads_is_ordered_with_kernels() {
    let host = Arc::new(HostGpu::new(HostSettings { total_bytes: 1 << 28, ..HostSettings::default() }));
    let device = CudaDevice::new(0, host.clone(), None).unwrap();
    let mut source = device.allocate(5000).unwrap();
    source.write(0, &[9; 5000]).unwrap();
    let source = source.freeze();
    let mut seen = vec![1; 5000];
    let mut copied = device.allocate_for_upload(5000).unwrap();
    copied.copy(0, &source).unwrap();
    // What was still to be done of the allocation would make it other bytes.
    device.allocate_for_upload(1).unwrap().write(0, &[1]).unwrap();
    copied.freeze().read(0, &mut seen).unwrap();
    assert!(seen == [9; 5000]);
    let mut cleared = device.allocate_for_upload(5000).unwrap();
    cleared.clear().unwrap();
    cleared.write(10, &[4; 10]).unwrap();
    cleared.freeze().read(0, &mut seen).unwrap();
    assert!(seen[..10] == [0; 10] && seen[10..20] == [4; 10] && seen[20..] == [0; 4980]);
    drop(device.allocate_for_upload(5000).unwrap());
    drop(source);
    let event = host.event().unwrap();
    host.record(Stream::Compute, &event).unwrap();
    host.synchronize(&event).expect("what is given back unused was there before that");
}

/// As at the end of a model: the norm's rows get other dimensions on their way to the logits. Where these are not as wide, or somebody
/// else reads them, the norm is a kernel of its own.
#[test]
fn a_norm_behind_which_rows_are_reshaped_is_done_by_the_product() {
    let kernels = |dims: [u64; 2], read_twice: bool| {
        let mut builder = GraphBuilder::new("end");
        let ty = |dims: &[u64]| TensorType::new(DType::F32, dims.iter().map(|&dim| dim.into()));
        let x = builder.input("x", InputRole::Argument, ty(&[2, 1, 64])).unwrap();
        let [scale, shift] = ["scale", "shift"].map(|name| builder.input(name, InputRole::Weight, ty(&[64])).unwrap());
        let table = builder.input("table", InputRole::Weight, ty(&[8, dims[1]])).unwrap();
        let normed = builder.push(Op::LayerNorm { eps: 1e-5 }, &[x, scale, shift]).unwrap();
        let rows = builder.push(Op::Reshape { dims: dims.map(Into::into).to_vec() }, &[normed]).unwrap();
        let y = builder.push(Op::Linear { layout: LinearLayout::OutIn }, &[rows, table]).unwrap();
        builder.output("y", y);
        if read_twice {
            builder.output("rows", rows);
        }
        let host = Arc::new(HostGpu::new(HostSettings { total_bytes: 1 << 28, ..HostSettings::default() }));
        let device = CudaDevice::new(0, host.clone(), None).unwrap();
        let program = device.load(Arc::new(builder.finish().unwrap())).unwrap();
        let weights = [64, 64, 8 * dims[1]].map(|elements| place(&device, &vec![0; 4 * elements as usize]));
        let arguments = [tensor(&[2, 1, 64], &[1.0; 128])];
        let mut outputs = Vec::new();
        program.run(&weights, &mut [Row::new(&arguments, &mut outputs, u64::MAX)]).unwrap();
        host.launches()
    };
    assert_eq!(kernels([2, 64], false), 1);
    assert_eq!(kernels([4, 32], false), 2);
    assert_eq!(kernels([2, 64], true), 2);
}

#[test]
fn memory_comes_back() {
    let host = Arc::new(HostGpu::new(HostSettings { total_bytes: 1 << 28, ..HostSettings::default() }));
    let device = CudaDevice::new(0, host.clone(), None).unwrap();
    let full = device.info().free_bytes;
    let runner = Runner::new(device, llama(&TINY));
    let mut session = runner.session();
    runner.feed(&mut session, &text(0, 90));
    assert!(runner.device.info().free_bytes < full);
    let Runner { device, program, weights, .. } = runner;
    drop((session, program, weights));
    assert!(device.allocate(full).is_ok(), "what runs work in goes where memory is short");
    drop(device);
    // What is freed is so once the stream has come to it.
    let event = host.event().unwrap();
    host.record(Stream::Compute, &event).unwrap();
    host.synchronize(&event).unwrap();
    assert_eq!(host.used(), 0);
}
