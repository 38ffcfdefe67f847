//! The CUDA device behind the same requests, over a GPU that is this CPU: what happens when it fails, and when memory is short.

use std::sync::Arc;
use std::time::Duration;

use genie_cuda_kernels::gpu::{Gpu, GpuError, HostGpu, HostSettings, Stream};
use genie_executor::device::cpu::CpuDevice;
use genie_executor::device::cuda::CudaDevice;
use genie_executor::device::{Device, DeviceError};
use genie_executor::{Config, Mode};
use genie_graph::{DType, GraphBuilder, InputRole, Op, Phase, TensorType};
use genie_transport::wire::{ContentHash, Effect, ErrorCode, Offered, PutTarget, Request, ResidencyCode};

use crate::client::{
    Client, Model, Server, Told, bytes_spec, code, noise, private, put_request, sliced_put, tensor, weight,
};
use crate::graphs;

/// A GPU of so many bytes, and the device over it.
fn device(total_bytes: u64) -> (HostGpu, Arc<CudaDevice>) {
    let gpu = HostGpu::new(HostSettings { total_bytes, seed: 3, ..HostSettings::default() });
    let device = CudaDevice::new(0, Arc::new(gpu.clone()), None).unwrap();
    (gpu, Arc::new(device))
}

/// A server with a GPU and a CPU.
fn server_with(total_bytes: u64, change: impl FnOnce(&mut Config)) -> (Server, HostGpu) {
    let (gpu, cuda) = device(total_bytes);
    let server = Server::with(1, 1 << 20, |config| {
        config.devices = vec![cuda, Arc::new(CpuDevice::new(1, 1, 16 << 20).unwrap())];
        change(config);
    });
    (server, gpu)
}

fn server(mode: Mode) -> (Server, HostGpu) {
    server_with(64 << 20, |config| config.mode = mode)
}

/// Memory is given back in the order of the kernels' stream, for which uploads do not wait.
fn finish_kernels(gpu: &HostGpu) {
    let event = gpu.event().unwrap();
    gpu.record(Stream::Compute, &event).unwrap();
    gpu.synchronize(&event).unwrap();
}

fn fault() -> GpuError {
    GpuError::Fault { during: "a kernel", reason: "illegal address".to_owned() }
}

fn on_cpu(name: Option<&str>) -> PutTarget<'_> {
    PutTarget::New { device: 1, residency: ResidencyCode::Private, hash: None, name }
}

fn offer<'a>(bytes: &[u8]) -> Request<'a> {
    Request::Offer { device: 0, entries: vec![(ContentHash::of(bytes), bytes_spec(bytes.len()))] }
}

/// The tokens of so many steps, each from the one before.
fn decode(client: &mut Client<'_>, model: &Model, steps: usize) -> Vec<i32> {
    let mut last = 1;
    (0..steps)
        .map(|_| {
            last = client.run(model, &[last]).0;
            last
        })
        .collect()
}

/// An op that a GPU has no kernel for is told when the program is defined, with the device that lacks it; a CPU beside it takes it.
#[test]
fn an_op_without_a_kernel_is_refused_by_its_name() {
    let (server, _gpu) = server(Mode::Inline);
    let mut client = server.client();
    let mut g = GraphBuilder::new("order");
    let x = g.input("x", InputRole::Argument, TensorType::new(DType::F32, [4.into()])).unwrap();
    let y = g.push(Op::ArgSort { axis: 0, descending: false }, &[x]).unwrap();
    g.output("y", y);
    let graph = g.finish().unwrap().encode();
    let error = client.call(Request::Define { device: 0, graph: &graph }).unwrap_err();
    let expected = "cuda:0 has no kernel for `argsort` yet: run this graph on a cpu device";
    assert_eq!((error.code, &error.message[..]), (ErrorCode::UnsupportedOp, expected));
    assert!(client.call(Request::Define { device: 1, graph: &graph }).is_ok());
}

#[test]
fn a_gpu_that_fails_ends_the_sessions_on_it_and_serves_new_ones() {
    let (server, gpu) = server(Mode::Inline);
    let mut fresh = server.client();
    let free = fresh.devices()[0].1;
    let (mut lost, mut elsewhere, mut empty) = (server.client(), server.client(), server.client());
    let model = lost.model(Phase::Decode);
    let table = graphs::table_bytes();
    // More than it takes until a plan is one graph.
    let before = decode(&mut lost, &model, 6);
    let kept = tensor(elsewhere.call(put_request(on_cpu(None), &noise(9000, 1))));
    assert!(fresh.devices()[0].1 < free);

    gpu.fail(fault());
    let id = lost.ask_run(&model, &[1], None);
    let error = lost.answer(id).unwrap_err();
    assert_eq!((error.code, error.effect), (ErrorCode::DeviceFailed, Effect::Partial));
    assert!(error.message.contains("illegal address") && error.message.contains("upload again"), "{}", error.message);
    assert!(lost.peer.is_closed(), "the client is told that its session ended");
    let opened = lost.opened.unwrap();
    let resume = Request::Resume { token: opened.token, epoch: opened.epoch, unanswered: id };
    assert_eq!(server.connect().fails(resume), ErrorCode::SessionGone);
    assert_eq!(server.counter("genie_devices_lost_total"), 1);
    assert_eq!(server.counter("genie_sessions"), 3);
    assert_eq!(server.counter("genie_programs"), 0);
    assert_eq!(server.counter("genie_weights"), 0);

    assert_eq!(elsewhere.get(kept), noise(9000, 1));
    assert_eq!(fresh.devices()[0].1, free, "memory is counted from nothing");
    assert_eq!(gpu.used(), 0);
    let Ok(Told::Offered(offered)) = empty.call(offer(&table)) else { panic!() };
    assert_eq!(offered, [Offered::Absent]);
    let again = empty.model(Phase::Decode);
    assert_eq!(decode(&mut empty, &again, 6), before, "who had nothing on it goes on in the same session");
    let mut anew = server.client();
    let again = anew.model(Phase::Decode);
    assert_eq!(decode(&mut anew, &again, 6), before);
}

#[test]
fn what_waits_for_a_gpu_that_fails_fails_with_it() {
    let (server, gpu) = server(Mode::Stepped);
    let mut clients: Vec<_> = (0..5).map(|_| server.client()).collect();
    let mut asked = Vec::new();
    for client in &mut clients {
        let id = client.ask(put_request(weight(ContentHash::of(&graphs::table_bytes())), &graphs::table_bytes()));
        let table = tensor(client.answer(id));
        let model = client.model_with(Phase::Decode, table, None);
        // Of each session two: the second waits for its turn with the cache.
        asked.push([client.ask_run(&model, &[1], None), client.ask_run(&model, &[2], None)]);
    }
    let mut uploader = server.client();
    let upload = uploader.ask(sliced_put(private(None, None), 9000, false));
    gpu.fail(fault());
    server.run_all();
    for (client, ids) in clients.iter().zip(asked) {
        let mut heard = client.heard();
        heard.sort_by_key(|(id, _)| *id);
        assert_eq!(heard.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids, "one answer each");
        assert!(heard.iter().all(|(_, told)| code(told) == ErrorCode::DeviceFailed), "{heard:?}");
        assert!(client.peer.is_closed());
    }
    assert_eq!(uploader.answer(upload).unwrap_err().code, ErrorCode::DeviceFailed);
    assert_eq!(server.counter("genie_session_bytes"), 0);
    assert_eq!(gpu.used(), 0);
}

#[test]
fn a_copy_that_fails_loses_the_gpu_as_a_kernel_does() {
    let (server, gpu) = server(Mode::Inline);
    let (mut client, mut other) = (server.client(), server.client());
    let named = tensor(client.call(put_request(private(None, Some("mine")), &noise(5000, 1))));
    tensor(other.call(put_request(on_cpu(Some("theirs")), &noise(5000, 2))));
    gpu.fail(fault());
    let error = client.call(Request::Get { handle: named, offset: 0, length: 0, sliced: None }).unwrap_err();
    assert_eq!(error.code, ErrorCode::DeviceFailed);
    assert!(client.peer.is_closed());
    assert_eq!(other.fails(Request::LookupName("mine")), ErrorCode::NoSuchName);
    tensor(other.call(Request::LookupName("theirs")));

    // Who has nothing there yet loses nothing but the request.
    let mut putter = server.client();
    gpu.fail(fault());
    assert_eq!(putter.fails(put_request(private(None, None), &noise(5000, 3))), ErrorCode::DeviceFailed);
    let handle = putter.put(&noise(5000, 3));
    assert_eq!(putter.get(handle), noise(5000, 3));
    assert_eq!(server.counter("genie_devices_lost_total"), 2);
}

#[test]
fn a_gpu_that_does_not_come_back_stays_out_and_is_tried_again() {
    let (mut server, gpu) = server(Mode::Inline);
    {
        let mut client = server.client();
        let handle = client.put(&noise(5000, 1));
        gpu.fail(fault());
        gpu.fail_revivals(2);
        client.call(Request::Get { handle, offset: 0, length: 0, sliced: None }).unwrap_err();
        let mut other = server.client();
        let error = other.call(put_request(private(None, None), &[1; 100])).unwrap_err();
        assert_eq!((error.code, error.effect), (ErrorCode::DeviceFailed, Effect::None));
        assert!(error.message.contains("could not be brought back"), "{}", error.message);
        assert_eq!(other.fails(offer(&[1; 100])), ErrorCode::DeviceFailed);
        let kept = tensor(other.call(put_request(on_cpu(None), &noise(9000, 1))));
        assert_eq!(other.get(kept), noise(9000, 1));
    }
    let is_out = |server: &Server| server.client().call(put_request(private(None, None), &[1; 100])).is_err();
    // The first moment after the failure; then the second attempt, which fails, too; then the third.
    server.pass(Duration::from_secs(1));
    server.pass(Duration::from_secs(5));
    assert!(is_out(&server));
    server.pass(Duration::from_secs(1));
    server.pass(Duration::from_secs(3));
    assert!(is_out(&server), "not before its time");
    server.pass(Duration::from_secs(3));
    assert!(!is_out(&server));
    assert_eq!(server.counter("genie_devices_lost_total"), 1);
}

#[test]
fn what_is_from_before_a_loss_is_refused_and_counts_for_nothing() {
    let (gpu, device) = device(8 << 20);
    let free = device.info().free_bytes;
    let mut before = device.allocate(1 << 20).unwrap();
    before.write(0, &noise(1 << 20, 1)).unwrap();
    let shared = device.allocate(4096).unwrap().freeze();
    gpu.fail(fault());
    let mut bytes = [0; 16];
    assert!(matches!(shared.read(0, &mut bytes), Err(DeviceError::Lost { .. })));
    assert!(device.loss().unwrap().contains("illegal address"));
    assert!(matches!(device.allocate(16), Err(DeviceError::Lost { .. })));
    device.revive().unwrap();
    assert_eq!(device.loss(), None);
    assert!(shared.is_lost());

    let mut after = device.allocate(1 << 20).unwrap();
    after.write(0, &noise(1 << 20, 2)).unwrap();
    let held = device.info().free_bytes;
    assert_eq!(held, free - (1 << 20));
    assert!(matches!(before.write(0, &[7; 16]), Err(DeviceError::Lost { .. })));
    assert!(matches!(after.copy(0, &shared), Err(DeviceError::Lost { .. })));
    drop((before, shared));
    assert_eq!((device.info().free_bytes, gpu.used()), (held, 1 << 20), "given back to nobody");
    assert_eq!(device.loss(), None, "the GPU of now has not failed");
    let mut read = vec![0; 1 << 20];
    after.freeze().read(0, &mut read).unwrap();
    assert!(read == noise(1 << 20, 2));
}

#[test]
fn memory_that_somebody_else_has_taken_is_no_failure_of_the_gpu() {
    let (server, gpu) = server(Mode::Inline);
    let mut client = server.client();
    let kept = client.put(&noise(5000, 1));
    let theirs = gpu.allocate((64 << 20) - gpu.used() - 8192).unwrap();
    let error = client.call(put_request(private(None, None), &noise(20_000, 2))).unwrap_err();
    assert_eq!((error.code, error.effect), (ErrorCode::OutOfMemory, Effect::None));
    let free = client.devices()[0].1;
    assert!(free > 20_000, "the server itself has not taken it");
    assert_eq!(client.get(kept), noise(5000, 1));
    // SAFETY: nothing uses it.
    unsafe { gpu.free(theirs) };
    client.put(&noise(20_000, 2));
    assert_eq!(server.counter("genie_devices_lost_total"), 0);
}

/// Weights of which two fit on a GPU of [`SMALL`] bytes, and three do not.
const WEIGHT: usize = 24 << 10;
const SMALL: u64 = 80 << 10;
/// What of its memory tensors may take.
const USABLE: u64 = SMALL / 8 * 7;

fn weights() -> [Vec<u8>; 3] {
    [1, 2, 3].map(|seed| noise(WEIGHT, seed))
}

/// What an offer of one weight finds; a handle is freed again, after its bytes were compared.
fn found(client: &mut Client<'_>, bytes: &[u8]) -> Offered {
    let Ok(Told::Offered(offered)) = client.call(offer(bytes)) else { panic!() };
    if let Offered::Present(handle) = offered[0] {
        assert!(client.get(handle) == bytes, "the same bytes");
        client.call(Request::Free(handle)).unwrap();
    }
    offered[0]
}

fn is_present(offered: &Offered) -> bool {
    matches!(offered, Offered::Present(_))
}

/// Puts weights one after another, and holds none of them.
fn put_all(client: &mut Client<'_>, weights: &[Vec<u8>]) {
    for bytes in weights {
        let handle = client.put_weight(bytes);
        client.call(Request::Free(handle)).unwrap();
    }
}

#[test]
fn evicted_weights_come_back_without_being_sent_again() {
    let (server, gpu) = server_with(SMALL, |config| config.mode = Mode::Inline);
    let mut client = server.client();
    let weights = weights();
    put_all(&mut client, &weights);
    assert_eq!(server.counter("genie_evictions_total"), 1);
    assert_eq!(server.counter("genie_evicted_bytes_total"), WEIGHT as u64);
    // In this order each is the one that had to go for the one before.
    for round in 0..3 {
        for (n, bytes) in weights.iter().enumerate() {
            assert!(is_present(&found(&mut client, bytes)), "round {round}, weight {n}");
            assert_eq!(client.devices()[0].1, USABLE - 2 * WEIGHT as u64);
            finish_kernels(&gpu);
            assert_eq!(gpu.used(), 2 * WEIGHT as u64);
        }
    }
    assert_eq!(server.counter("genie_weights_brought_back_total"), 9);
    assert_eq!(server.counter("genie_evictions_total"), 10);
    assert_eq!(server.counter("genie_host_weight_bytes"), 3 * WEIGHT as u64);
    assert_eq!(server.counter("genie_session_bytes"), 0, "copies are nobody's");

    // A put of one that was evicted needs none of its slices.
    let spec = bytes_spec(WEIGHT);
    let id = client.ask(sliced_put(weight(ContentHash::of(&weights[0])), WEIGHT, false));
    let Ok(Told::Tensor(handle, 0, of)) = client.answer(id) else { panic!() };
    assert_eq!(of, spec);
    assert!(client.get(handle) == weights[0]);
    assert_eq!(server.counter("genie_weights_brought_back_total"), 10);
}

#[test]
fn weights_that_are_held_stay_where_they_are() {
    let (server, _gpu) = server_with(SMALL, |config| config.mode = Mode::Inline);
    let mut client = server.client();
    let weights = weights();
    put_all(&mut client, &weights);
    let entries = weights.iter().map(|w| (ContentHash::of(w), bytes_spec(WEIGHT))).collect();
    let Ok(Told::Offered(offered)) = client.call(Request::Offer { device: 0, entries }) else { panic!() };
    let [Offered::Absent, Offered::Present(second), Offered::Present(third)] = offered[..] else {
        panic!("{offered:?}")
    };
    assert_eq!(server.counter("genie_session_bytes"), 2 * WEIGHT as u64, "what could not come back costs nothing");
    assert_eq!(client.fails(put_request(weight(ContentHash::of(&weights[0])), &weights[0])), ErrorCode::OutOfMemory);
    assert!(client.get(second) == weights[1] && client.get(third) == weights[2]);
    client.call(Request::Free(second)).unwrap();
    assert!(is_present(&found(&mut client, &weights[0])));
}

#[test]
fn copies_of_evicted_weights_are_bounded() {
    for (bound, copies) in [(0, 0), (WEIGHT as u64 + 100, 1), (2 * WEIGHT as u64, 2)] {
        let (server, _gpu) = server_with(SMALL, |config| {
            config.mode = Mode::Inline;
            config.evicted_bytes = bound;
        });
        let mut client = server.client();
        let all: Vec<_> = (1..=5).map(|seed| noise(WEIGHT, seed)).collect();
        put_all(&mut client, &all);
        assert_eq!(server.counter("genie_evictions_total"), 3);
        assert_eq!(server.counter("genie_host_weights"), copies as u64);
        assert_eq!(server.counter("genie_host_weight_bytes"), (copies * WEIGHT) as u64);
        // The copies are those of the last that were evicted.
        for (n, bytes) in all[..3].iter().enumerate() {
            let hash = ContentHash::of(bytes);
            let here = n >= 3 - copies;
            let known = client.call(Request::Offer { device: 1, entries: vec![(hash, bytes_spec(WEIGHT))] });
            let Ok(Told::Offered(known)) = known else { panic!() };
            assert_eq!(is_present(&known[0]), here, "weight {n} with a bound of {bound}");
        }
    }
}

#[test]
fn copies_of_evicted_weights_outlive_the_gpu() {
    let (server, gpu) = server_with(SMALL, |config| config.mode = Mode::Inline);
    let mut client = server.client();
    let [first, second, third] = weights();
    put_all(&mut client, &[first.clone(), second.clone(), third]);
    let handle = client.put(&[1; 100]);
    gpu.fail(fault());
    client.call(Request::Get { handle, offset: 0, length: 0, sliced: None }).unwrap_err();
    let mut anew = server.client();
    assert!(is_present(&found(&mut anew, &first)));
    assert_eq!(found(&mut anew, &second), Offered::Absent);
}

#[test]
fn a_gpu_that_fails_while_it_evicts_keeps_nothing_of_it() {
    let (server, gpu) = server_with(SMALL, |config| config.mode = Mode::Inline);
    let mut client = server.client();
    let [first, second, third] = weights();
    put_all(&mut client, &[first.clone(), second]);
    gpu.fail(fault());
    assert_eq!(client.fails(put_request(weight(ContentHash::of(&third)), &third)), ErrorCode::DeviceFailed);
    assert_eq!(server.counter("genie_host_weights"), 0);
    assert_eq!(found(&mut server.client(), &first), Offered::Absent);
    let handle = server.client().put_weight(&third);
    assert_eq!((handle.index, gpu.used()), (0, WEIGHT as u64));
}

#[test]
fn whoever_comes_next_finds_a_model_planned_and_captured() {
    let (server, gpu) = server(Mode::Inline);
    let mut first = server.client();
    let model = first.model(Phase::Decode);
    let told = decode(&mut first, &model, 6);
    assert_eq!(gpu.replays(), 4, "two runs as they are, then captured");
    first.call(Request::Close).unwrap();
    assert_eq!(server.counter("genie_programs"), 1);
    let mut next = server.client();
    let model = next.model(Phase::Decode);
    assert_eq!(decode(&mut next, &model, 6), told);
    assert_eq!(gpu.replays(), 4 + 6, "nothing is captured again");
}

#[test]
fn idle_programs_give_their_memory_back_before_a_weight_goes() {
    let (server, _gpu) = server_with(1 << 20, |config| {
        (config.mode, config.default_quota, config.max_quota) = (Mode::Inline, 16 << 20, 16 << 20);
    });
    let mut first = server.client();
    let model = first.model(Phase::Decode);
    let told = decode(&mut first, &model, 6);
    first.call(Request::Close).unwrap();
    let mut client = server.client();
    let mut held = Vec::new();
    let full = loop {
        let bytes = noise(60 << 10, held.len() as u64 + 10);
        match client.call(put_request(weight(ContentHash::of(&bytes)), &bytes)) {
            Ok(Told::Tensor(handle, ..)) => held.push(handle),
            Err(error) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(full.code, ErrorCode::OutOfMemory);
    // All that could go would not have been enough.
    assert_eq!((server.counter("genie_programs"), server.counter("genie_evictions_total")), (1, 0));
    client.call(Request::Free(held.remove(0))).unwrap();
    client.put_weight(&noise(60 << 10, 5));
    assert_eq!(server.counter("genie_programs"), 0);
    assert!(server.counter("genie_evictions_total") > 0, "its few bytes were not enough");
    held.drain(..).for_each(|handle| drop(client.call(Request::Free(handle))));
    let model = client.model(Phase::Decode);
    assert_eq!(decode(&mut client, &model, 6), told, "planned again");
}
