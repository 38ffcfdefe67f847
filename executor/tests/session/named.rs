//! Runs that name residents as their arguments, on the devices that there are.

use genie_cuda_kernels::gpu::{GpuError, HostGpu};
use genie_executor::Mode;
use genie_graph::{DType, Dim, GraphBuilder, InputRole, Op, Phase, TensorType, VerifiedGraph};
use genie_transport::connection::Service;
use genie_transport::wire::{
    Arguments, ContentHash, Effect, ErrorCode, Handle, PutBody, PutRequest, PutTarget, Request, TensorSpec,
    write_argument, write_resident,
};

use crate::client::{Answer, Client, Out, SLICE, Server, Told, noise, private, put_request, ran, tensor, weight};
use crate::graphs::{self, relu};
use crate::residents::{bind, floats, negated, put, servers};

/// What comes with a run.
#[derive(Default)]
struct Given {
    count: u32,
    bytes: Vec<u8>,
}

impl Given {
    fn resident(mut self, index: u16, dtype: DType, dims: &[u64], handle: Handle) -> Self {
        let spec = TensorSpec::new(dtype, dims).unwrap();
        write_resident(&mut self.bytes, index, &spec, handle).unwrap();
        self.count += 1;
        self
    }

    fn inline(mut self, index: u16, dtype: DType, dims: &[u64], data: &[u8]) -> Self {
        write_argument(&mut self.bytes, index, dtype, dims, data).unwrap();
        self.count += 1;
        self
    }

    fn arguments(&self) -> Arguments<'_> {
        Arguments::new(self.count, &self.bytes).unwrap()
    }

    fn run(&self, binding: Handle, wanted: u64, keep: u64) -> Request<'_> {
        Request::Run { binding, position: None, wanted, keep, arguments: self.arguments() }
    }
}

/// One `f32 [n]` of this session for input 0.
fn one(n: u64, handle: Handle) -> Given {
    Given::default().resident(0, DType::F32, &[n], handle)
}

/// `y = a - b` of `f32 [n]`: nodes 0 and 1.
fn difference(n: u64) -> VerifiedGraph {
    let mut g = GraphBuilder::new("difference");
    let ty = || TensorType::new(DType::F32, [Dim::from(n)]);
    let a = g.input("a", InputRole::Argument, ty()).unwrap();
    let b = g.input("b", InputRole::Argument, ty()).unwrap();
    let y = g.push(Op::Sub, &[a, b]).unwrap();
    g.output("y", y);
    g.finish().unwrap()
}

#[track_caller]
fn first(answer: Answer) -> Vec<u8> {
    match answer {
        Ok(Told::Ran { outputs, .. }) => match &outputs[..] {
            [Out::Inline(0, bytes)] => bytes.clone(),
            _ => panic!("{outputs:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn put_range(client: &mut Client<'_>, handle: Handle, values: &[f32]) {
    let bytes = floats(values.iter().copied());
    let spec = TensorSpec::new(DType::F32, &[values.len() as u64]).unwrap();
    let (target, body) = (PutTarget::Range { handle, offset: 0 }, PutBody::Inline(&bytes));
    client.call(Request::Put(PutRequest { target, spec, body })).unwrap();
}

#[test]
fn one_binding_of_nothing_runs_on_whatever_is_named() {
    const N: u64 = 1 << 20;
    for (server, gpu) in servers(Mode::Inline) {
        let mut client = server.client();
        let program = client.define(&difference(N).encode());
        let binding = bind(&mut client, program, &[], Arguments::EMPTY);
        let values = |by: f32| floats((0..N).map(|i| (i % 1000 + 1) as f32 * by));
        let [a, b] = [1.0, 3.0].map(|by| put(&mut client, DType::F32, &[N], &values(by)));
        let content = values(5.0);
        let target = weight(ContentHash::of(&content));
        let spec = TensorSpec::new(DType::F32, &[N]).unwrap();
        let body = PutBody::Sliced { slice_bytes: SLICE, announce: false };
        let id = client.ask(Request::Put(PutRequest { target, spec, body }));
        client.send(id, &content, &(0..content.len().div_ceil(SLICE as usize)).collect::<Vec<_>>());
        let shared = tensor(client.answer(id));
        let held = server.counter("genie_session_bytes");
        let passed = || gpu.as_ref().map_or(0, HostGpu::host_bytes);
        for (left, right, by) in
            [(a, b, -2.0), (b, a, 2.0), (a, a, 0.0), (shared, b, 2.0), (b, shared, -2.0), (a, b, -2.0)]
        {
            let given = Given::default().resident(1, DType::F32, &[N], right).resident(0, DType::F32, &[N], left);
            let before = passed();
            let kept = match client.call(given.run(binding, 0, 1)) {
                Ok(Told::Ran { outputs, .. }) => match outputs[..] {
                    [Out::Resident(0, handle)] => handle,
                    _ => panic!("{outputs:?}"),
                },
                other => panic!("{other:?}"),
            };
            assert!(passed() - before < 100, "nothing of them passes the host");
            assert_eq!(server.counter("genie_session_bytes"), held + 4 * N, "no run holds what it has read");
            let (offset, length) = (400, 4000);
            let got = client.call(Request::Get { handle: kept, offset, length, sliced: None });
            assert!(got == Ok(Told::Got(values(by)[400..4400].to_vec())), "other bytes than {by} times a");
            client.call(Request::Free(kept)).unwrap();
        }
        // Beside what comes with its bytes; and the one that did before is not taken for it again.
        let small = client.define(&difference(4).encode());
        let binding = bind(&mut client, small, &[], Arguments::EMPTY);
        let c = put(&mut client, DType::F32, &[4], &floats([1.0, 2.0, 3.0, 4.0]));
        for value in [1.0, 2.0, 3.0] {
            let data = floats([value; 4]);
            let given = Given::default().inline(0, DType::F32, &[4], &data).resident(1, DType::F32, &[4], c);
            let expected = floats([1.0, 2.0, 3.0, 4.0].map(|x| value - x));
            assert_eq!(first(client.call(given.run(binding, 1, 0))), expected);
            let given = Given::default().resident(0, DType::F32, &[4], c).inline(1, DType::F32, &[4], &data);
            let expected = floats([1.0, 2.0, 3.0, 4.0].map(|x| x - value));
            assert_eq!(first(client.call(given.run(binding, 1, 0))), expected);
        }
    }
}

#[test]
fn what_a_run_may_not_name_is_refused_before_anything_runs() {
    let server = Server::with(2, 1 << 20, |_| {});
    let (mut client, mut stranger) = (server.client(), server.client());
    let program = client.define(&relu().encode());
    let binding = bind(&mut client, program, &[], Arguments::EMPTY);
    let x = put(&mut client, DType::F32, &[4], &floats([1.0; 4]));
    let of_stranger = put(&mut stranger, DType::F32, &[4], &floats([1.0; 4]));
    let square = put(&mut client, DType::F32, &[2, 2], &floats([1.0; 4]));
    let ints = put(&mut client, DType::I32, &[4], &[0; 16]);
    let freed = put(&mut client, DType::F32, &[4], &floats([1.0; 4]));
    client.call(Request::Free(freed)).unwrap();
    let Ok(Told::Tensor(elsewhere, 1, _)) = client.call(Request::Copy { handle: x, device: 1 }) else { panic!() };
    let model = client.model(Phase::Decode);
    let bound = bind(&mut client, program, &[(0, x)], Arguments::EMPTY);
    let held = server.counter("genie_session_bytes");
    let named = |dtype, dims: &[u64], handle| Given::default().resident(0, dtype, dims, handle);
    let at = |index, handle| Given::default().resident(index, DType::F32, &[4], handle);
    use ErrorCode::{BadArgument, EpochGone, NoSuchHandle, StaleHandle, WrongType};
    let cases = [
        (binding, named(DType::I32, &[4], x), BadArgument, "another type than it has"),
        (binding, named(DType::F32, &[2, 2], x), BadArgument, "another shape than it has"),
        (binding, named(DType::F32, &[4], square), BadArgument, "the input's shape, but not its own"),
        (binding, named(DType::F32, &[4], ints), BadArgument, "the input's type, but not its own"),
        (binding, named(DType::F32, &[2, 2], square), BadArgument, "not the input's shape"),
        (binding, named(DType::I32, &[4], ints), BadArgument, "not the input's type"),
        (binding, named(DType::F32, &[4], elsewhere), BadArgument, "copy it there"),
        (binding, named(DType::F32, &[4], freed), StaleHandle, "freed"),
        (binding, named(DType::F32, &[4], of_stranger), NoSuchHandle, "another session's"),
        (binding, named(DType::F32, &[4], Handle { epoch: 1, ..x }), EpochGone, "of another life"),
        (binding, named(DType::F32, &[4], Handle { index: u32::MAX, ..x }), NoSuchHandle, "of no slot"),
        (binding, named(DType::F32, &[4], Handle { generation: x.generation + 1, ..x }), NoSuchHandle, "of the future"),
        (binding, named(DType::F32, &[4], program), WrongType, "a program"),
        (binding, named(DType::F32, &[4], binding), WrongType, "a binding"),
        (binding, named(DType::F32, &[4], model.cache), WrongType, "a cache"),
        (binding, one(4, x).resident(0, DType::F32, &[4], x), BadArgument, "twice"),
        (binding, one(4, x).inline(0, DType::F32, &[4], &[0; 16]), BadArgument, "twice, once inline"),
        (binding, at(1, x), BadArgument, "not an input"),
        (binding, at(u16::MAX, x), BadArgument, "no node"),
        (binding, Given::default(), BadArgument, "missing"),
        (bound, one(4, x), BadArgument, "bound already"),
        (model.binding, at(model.lm.table as u16, x), BadArgument, "a weight"),
        (model.binding, at(model.lm.cache as u16, x), BadArgument, "a cache's place"),
        (model.binding, at(3, x), BadArgument, "positions"),
    ];
    for (binding, given, code, what) in cases {
        let error = client.call(given.run(binding, 1, 0)).unwrap_err();
        assert_eq!((error.code, error.effect), (code, Effect::None), "{what}: {error}");
        assert!(error.message.len() > 20, "{what}: {error}");
    }
    let error = client.call(one(4, elsewhere).run(binding, 1, 0)).unwrap_err();
    assert!(error.message.contains("copy it there"), "{error}");
    // Nowhere but with a run.
    let given = one(4, x);
    let arguments = given.arguments();
    let fixed = Request::Bind { program, bound: Vec::new(), weights: Vec::new(), arguments };
    assert_eq!(client.fails(fixed), BadArgument);
    let free = client.bind_free(&model);
    let real = put(&mut client, DType::F32, &[1, 2], &floats([0.0, 1.0]));
    let sampling = Given::default().resident(model.lm.real, DType::F32, &[1, 2], real);
    let sampling = sampling.inline(model.lm.int, DType::I64, &[1, 2], &[0; 16]);
    let generate = |arguments| Request::Generate {
        prefill: free,
        decode: free,
        position: None,
        max_new: 1,
        prompt: &[[1, 0, 0, 0]],
        stop: &[],
        arguments,
    };
    let error = client.call(generate(sampling.arguments())).unwrap_err();
    assert_eq!((error.code, error.message.contains("bind it")), (BadArgument, true), "{error}");
    let tokens = Given::default().resident(model.lm.tokens, DType::I32, &[4], ints);
    assert_eq!(client.fails(generate(tokens.arguments())), BadArgument);
    assert_eq!(server.runs(), [], "nothing of that ran");
    client.call(Request::Free(free)).unwrap();
    client.call(Request::Free(real)).unwrap();
    assert_eq!(server.counter("genie_session_bytes"), held, "and nothing is held");
    assert_eq!(first(client.call(one(4, x).run(binding, 1, 0))), floats([1.0; 4]));
    assert_eq!(stranger.get(of_stranger), floats([1.0; 4]));
}

#[test]
fn a_run_reads_what_was_there_when_it_was_asked_for() {
    for (server, _gpu) in servers(Mode::Stepped) {
        let mut client = server.client();
        let program = client.define(&negated(4).encode());
        let binding = bind(&mut client, program, &[], Arguments::EMPTY);
        let empty = server.counter("genie_session_bytes");
        let x = put(&mut client, DType::F32, &[4], &floats([1.0; 4]));
        let held = server.counter("genie_session_bytes");
        let before = client.ask(one(4, x).run(binding, 1, 0));
        put_range(&mut client, x, &[2.0; 4]);
        let between = client.ask(one(4, x).run(binding, 1, 0));
        put_range(&mut client, x, &[3.0; 2]);
        let after = client.ask(one(4, x).run(binding, 1, 0));
        client.call(Request::Free(x)).unwrap();
        let freed = client.ask(one(4, x).run(binding, 1, 0));
        assert_eq!(client.answer(freed).unwrap_err().code, ErrorCode::StaleHandle);
        assert_eq!(server.counter("genie_session_bytes"), held + 32, "each waits with what it is to read");
        server.run_all();
        let expected = [[1.0; 4], [2.0; 4], [3.0, 3.0, 2.0, 2.0]].map(|x| floats(x.map(|x: f32| -x)));
        let heard = client.heard();
        assert_eq!(heard.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [before, between, after]);
        for ((_, answer), expected) in heard.into_iter().zip(expected) {
            assert_eq!(first(answer), expected);
        }
        assert_eq!(server.counter("genie_session_bytes"), empty);
        let x = put(&mut client, DType::F32, &[4], &floats([4.0; 4]));
        put_range(&mut client, x, &[5.0; 2]);
        assert_eq!(server.counter("genie_session_bytes"), held, "nobody reads it: it was written in place");
    }
}

#[test]
fn an_upload_under_way_is_not_seen() {
    for (server, _gpu) in servers(Mode::Inline) {
        let mut client = server.client();
        let program = client.define(&negated(4096).encode());
        let binding = bind(&mut client, program, &[], Arguments::EMPTY);
        let (old, new) = (floats((0..4096_u16).map(f32::from)), floats((0..4096_u16).map(|i| f32::from(i) + 7.0)));
        let negative =
            |bytes: &[u8]| -> Vec<u8> { floats(bytes.chunks(4).map(|b| -f32::from_le_bytes(b.try_into().unwrap()))) };
        let x = put(&mut client, DType::F32, &[4096], &old);
        let spec = TensorSpec::new(DType::F32, &[4096]).unwrap();
        let body = PutBody::Sliced { slice_bytes: SLICE, announce: false };
        let upload =
            client.ask(Request::Put(PutRequest { target: PutTarget::Range { handle: x, offset: 0 }, spec, body }));
        for slice in [2, 0, 3] {
            client.send(upload, &new, &[slice]);
            assert_eq!(first(client.call(one(4096, x).run(binding, 1, 0))), negative(&old));
        }
        client.send(upload, &new, &[1]);
        assert_eq!(tensor(client.answer(upload)), x);
        assert_eq!(first(client.call(one(4096, x).run(binding, 1, 0))), negative(&new));
    }
}

#[test]
fn a_run_that_is_asked_for_again_runs_once_on_what_it_named() {
    for (server, _gpu) in servers(Mode::Stepped) {
        let mut client = server.client();
        let program = client.define(&negated(4).encode());
        let binding = bind(&mut client, program, &[], Arguments::EMPTY);
        let x = put(&mut client, DType::F32, &[4], &floats([1.0; 4]));
        let given = one(4, x);
        let id = client.ask(given.run(binding, 1, 0));
        client.call(Request::Free(x)).unwrap();
        let mut expected = None;
        for ran in [false, true] {
            client.reconnect(id);
            // The handle is stale by now: it was looked up when the request first came.
            client.ask_as(id, given.run(binding, 1, 0));
            if !ran {
                assert_eq!(client.heard(), [], "it joins the one in progress");
                assert!(server.executor.step());
            }
            assert!(!server.executor.step(), "once");
            let got = first(client.answer(id));
            assert_eq!(got, *expected.get_or_insert(floats([-1.0; 4])));
        }
    }
}

#[test]
fn a_run_that_ends_early_lets_go_of_what_it_named() {
    for (server, _gpu) in servers(Mode::Stepped) {
        let mut client = server.client();
        let program = client.define(&negated(4).encode());
        let binding = bind(&mut client, program, &[], Arguments::EMPTY);
        let empty = server.counter("genie_session_bytes");
        let x = put(&mut client, DType::F32, &[4], &floats([1.0; 4]));
        let id = client.ask(one(4, x).run(binding, 1, 0));
        client.call(Request::Free(x)).unwrap();
        assert!(server.counter("genie_session_bytes") > empty);
        server.executor.cancel(&client.peer, id, server.now);
        server.run_all();
        assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::Cancelled);
        assert_eq!(server.counter("genie_session_bytes"), empty);
        // With its session.
        let x = put(&mut client, DType::F32, &[4], &floats([1.0; 4]));
        client.ask(one(4, x).run(binding, 1, 0));
        client.call(Request::Close).unwrap();
        server.run_all();
        assert_eq!(server.counter("genie_session_bytes"), 0);
    }
}

#[test]
fn what_waits_to_be_read_is_paid_for() {
    for (server, _gpu) in servers(Mode::Stepped) {
        let mut client = server.connect();
        client.open(100 << 10);
        let program = client.define(&negated(10_000).encode());
        let binding = bind(&mut client, program, &[], Arguments::EMPTY);
        let content = noise(40_000, 3);
        let mut handles: Vec<Handle> = (0..2).map(|_| put(&mut client, DType::F32, &[10_000], &content)).collect();
        let asked: Vec<u64> = handles.iter().map(|&x| client.ask(one(10_000, x).run(binding, 0, 0))).collect();
        for handle in handles.drain(..) {
            client.call(Request::Free(handle)).unwrap();
        }
        let spec = TensorSpec::new(DType::F32, &[10_000]).unwrap();
        let body = PutBody::Sliced { slice_bytes: SLICE, announce: false };
        let more = Request::Put(PutRequest { target: private(None, None), spec, body });
        assert_eq!(client.fails(more), ErrorCode::OverQuota);
        server.run_all();
        assert_eq!(client.heard().iter().map(|(id, _)| *id).collect::<Vec<_>>(), asked);
        put(&mut client, DType::F32, &[10_000], &content);
    }
}

#[test]
fn a_weight_that_is_waited_for_is_not_evicted() {
    let server = Server::with(1, 64 << 10, |config| config.mode = Mode::Stepped);
    let (mut client, mut other) = (server.client(), server.client());
    let program = client.define(&negated(8192).encode());
    let binding = bind(&mut client, program, &[], Arguments::EMPTY);
    let content = floats((0..8192_u16).map(f32::from));
    let spec = TensorSpec::new(DType::F32, &[8192]).unwrap();
    let (target, body) = (weight(ContentHash::of(&content)), PutBody::Inline(&content));
    let x = tensor(client.call(Request::Put(PutRequest { target, spec, body })));
    let id = client.ask(one(8192, x).run(binding, 1, 0));
    client.call(Request::Free(x)).unwrap();
    let large = noise(40 << 10, 1);
    assert_eq!(other.fails(put_request(private(None, None), &large)), ErrorCode::OutOfMemory);
    server.run_all();
    // What this device makes of it: none is below zero.
    assert!(first(client.answer(id)) == content);
    other.put(&large);
}

#[test]
fn a_device_that_fails_takes_what_was_named_along() {
    let [_, (server, gpu)] = servers(Mode::Stepped);
    let gpu = gpu.unwrap();
    let mut client = server.client();
    let program = client.define(&negated(4).encode());
    let binding = bind(&mut client, program, &[], Arguments::EMPTY);
    let x = put(&mut client, DType::F32, &[4], &floats([1.0; 4]));
    let asked = [0, 1].map(|_| client.ask(one(4, x).run(binding, 1, 0)));
    client.call(Request::Free(x)).unwrap();
    gpu.fail(GpuError::Fault { during: "a kernel", reason: "illegal address".to_owned() });
    server.run_all();
    let heard = client.heard();
    assert_eq!((heard[0].0, heard[0].1.as_ref().unwrap_err().code), (asked[0], ErrorCode::DeviceFailed));
    assert!(heard.iter().all(|(_, answer)| answer.is_err()), "{heard:?}");
    assert!(client.peer.is_closed());
    assert_eq!((server.counter("genie_session_bytes"), gpu.used()), (0, 0));
}

/// Steps that name their sampling, that have it bound and that bring it along run as one batch, and as each does alone.
#[test]
fn steps_of_different_sessions_that_name_residents_are_one_batch() {
    for (server, _gpu) in servers(Mode::Stepped) {
        let lm = graphs::lm(Phase::Decode);
        let sampling = floats([0.9, 0.95]);
        let mut steps: Vec<_> = (0..4)
            .map(|seed| {
                let mut client = server.client();
                let model = client.model(Phase::Decode);
                let other = client.model_with(Phase::Decode, model.table, None);
                let real = put(&mut client, DType::F32, &[1, 2], &sampling);
                let seeds: Vec<u8> = [seed, 0_i64].iter().flat_map(|i| i.to_le_bytes()).collect();
                let int = put(&mut client, DType::I64, &[1, 2], &seeds);
                let inputs = [(lm.table, model.table), (lm.cache, model.cache)];
                let bound = [&inputs[..], &[(lm.real.into(), real), (lm.int.into(), int)]].concat();
                let together = match seed {
                    0 => bind(&mut client, model.program, &bound, Arguments::EMPTY),
                    _ => client.bind_free(&model),
                };
                let alone = client.bind_free(&other);
                (client, model, together, alone, (real, int, seeds))
            })
            .collect();
        for step in 0..5_i32 {
            let token = step.to_le_bytes();
            let inline = |seeds: &[u8]| {
                let given = Given::default().inline(lm.tokens, DType::I32, &[1, 1], &token);
                given.inline(lm.real, DType::F32, &[1, 2], &sampling).inline(lm.int, DType::I64, &[1, 2], seeds)
            };
            let mut alone = Vec::new();
            for (client, _, _, binding, (.., seeds)) in &mut steps {
                let id = client.ask(inline(seeds).run(*binding, 0b11, 0));
                server.run_all();
                alone.push(client.answer(id).unwrap());
            }
            let batched = server.counter("genie_batched_rows_total");
            let mut ids = Vec::new();
            for (i, (client, _, binding, _, (real, int, seeds))) in steps.iter_mut().enumerate() {
                let tokens = Given::default().inline(lm.tokens, DType::I32, &[1, 1], &token);
                let named = |given: Given| given.resident(lm.int, DType::I64, &[1, 2], *int);
                let given = match i {
                    0 => tokens,
                    1 => named(tokens).resident(lm.real, DType::F32, &[1, 2], *real),
                    2 => named(tokens).inline(lm.real, DType::F32, &[1, 2], &sampling),
                    _ => inline(seeds),
                };
                ids.push(client.ask(given.run(*binding, 0b11, 0)));
            }
            server.run_all();
            assert_eq!(server.counter("genie_batched_rows_total"), batched + 4);
            for (((client, ..), id), alone) in steps.iter().zip(ids).zip(alone) {
                assert_eq!(client.answer(id), Ok(alone));
            }
        }
    }
}

#[test]
fn tokens_can_be_residents() {
    for (server, _gpu) in servers(Mode::Inline) {
        let mut client = server.client();
        let model = client.model(Phase::Prefill);
        let other = client.model_with(Phase::Prefill, model.table, None);
        let prompt = [3_i32, 1, 4, 1, 5];
        let bytes: Vec<u8> = prompt.iter().flat_map(|t| t.to_le_bytes()).collect();
        let tokens = put(&mut client, DType::I32, &[1, 5], &bytes);
        let given = Given::default().resident(model.lm.tokens, DType::I32, &[1, 5], tokens);
        let expected = client.run(&other, &prompt);
        assert_eq!(ran(client.call(given.run(model.binding, 1, 0))), expected);
        assert_eq!(client.get(model.cache), client.get(other.cache));
        // None of the model's: the cache stays as it is.
        let wild = put(&mut client, DType::I32, &[1, 1], &graphs::VOCABULARY.to_le_bytes()[..4]);
        let given = Given::default().resident(model.lm.tokens, DType::I32, &[1, 1], wild);
        assert_eq!(client.fails(given.run(model.binding, 1, 0)), ErrorCode::OutOfRange);
        let more = client.run(&other, &[2]);
        assert_eq!(client.run(&model, &[2]), more);
    }
}

/// Outputs from 32 on could be neither wanted nor kept.
#[test]
fn a_run_has_up_to_64_outputs() {
    let mut g = GraphBuilder::new("many");
    let x = g.input("x", InputRole::Argument, TensorType::new(DType::F32, [4.into()])).unwrap();
    let mut y = x;
    for i in 0..70 {
        y = g.push(Op::Neg, &[y]).unwrap();
        g.output(&format!("y{i}"), y);
    }
    let graph = g.finish().unwrap().encode();
    for (server, _gpu) in servers(Mode::Inline) {
        let mut client = server.client();
        let program = client.define(&graph);
        let binding = bind(&mut client, program, &[], Arguments::EMPTY);
        let x = put(&mut client, DType::F32, &[4], &floats([1.0, 2.0, 3.0, 4.0]));
        let [odd, even] = [-1.0, 1.0].map(|sign| floats([1.0, 2.0, 3.0, 4.0].map(|x: f32| sign * x)));
        let of = |i: u16| if i & 1 == 0 { odd.clone() } else { even.clone() };
        let every = |client: &mut Client<'_>, wanted: u64, keep: u64| {
            let Ok(Told::Ran { outputs, .. }) = client.call(one(4, x).run(binding, wanted, keep)) else { panic!() };
            assert_eq!(outputs.len() as u32, wanted.count_ones() + keep.count_ones());
            let (mut came, mut stayed) = (0_u64, 0_u64);
            for output in outputs {
                match output {
                    Out::Inline(i, bytes) => {
                        assert_eq!(bytes, of(i));
                        came |= 1 << i;
                    }
                    Out::Resident(i, handle) => {
                        assert_eq!(client.get(handle), of(i));
                        client.call(Request::Free(handle)).unwrap();
                        stayed |= 1 << i;
                    }
                }
            }
            assert_eq!((came, stayed), (wanted, keep));
        };
        every(&mut client, u64::MAX, 0);
        every(&mut client, 0, u64::MAX);
        every(&mut client, 1 << 63 | 1 << 31 | 1, 1 << 62 | 1 << 32 | 1);
    }
}
