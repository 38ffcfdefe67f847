//! Define, bind, run.

use std::time::Duration;

use genie_graph::{DType, GraphBuilder, InputRole, Op, Phase, TensorType};
use genie_transport::wire::{Arguments, BindEntry, ContentHash, ErrorCode, Request, TensorSpec, write_argument};

use crate::client::{Out, Server, Told, noise, private, put_request, ran, tensor};
use crate::fake::next_token;
use crate::graphs::{self, lm, relu};

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn a_graph_is_planned_once_for_all() {
    let server = Server::inline();
    let graph = relu().encode();
    let (mut a, mut b) = (server.client(), server.client());
    let first = a.call(Request::Define { device: 0, graph: &graph }).unwrap();
    let second = b.call(Request::Define { device: 0, graph: &graph }).unwrap();
    let (Told::Program(_, x), Told::Program(_, y)) = (&first, &second) else { panic!() };
    assert_eq!((x, x.0), (y, relu().hash().0));
    assert_eq!(server.counter("genie_programs"), 1);
}

#[test]
fn a_graph_that_the_server_has_is_defined_by_its_hash() {
    let server = Server::inline();
    let (graph, hash) = (relu().encode(), ContentHash(relu().hash().0));
    let mut a = server.client();
    assert_eq!(a.fails(Request::DefineKnown { device: 0, hash }), ErrorCode::NoSuchName);
    let program = a.define(&graph);
    a.call(Request::Free(program)).unwrap();
    a.call(Request::Close).unwrap();
    let mut b = server.client();
    let known = b.call(Request::DefineKnown { device: 0, hash }).unwrap();
    assert!(matches!(known, Told::Program(_, found) if found == hash), "it outlives the session that sent it");
    assert_eq!(b.fails(Request::DefineKnown { device: 9, hash }), ErrorCode::NoSuchDevice);
}

#[test]
fn a_bad_graph_is_refused_with_the_reason() {
    let server = Server::inline();
    let mut client = server.client();
    let good = relu().encode();
    let mut bad = relu().into_graph();
    bad.nodes[1].inputs.push(genie_graph::NodeId(0));
    for (graph, what) in
        [(&good[..good.len() - 1], "truncated"), (&genie_graph::encode(&bad)[..], "arity"), (&[], "empty")]
    {
        let error = client.call(Request::Define { device: 0, graph }).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadGraph, "{what}: {error}");
        assert!(error.message.len() > 30, "{what}: {error}");
    }
    assert_eq!(client.fails(Request::Define { device: 9, graph: &good }), ErrorCode::NoSuchDevice);
    let mut b = GraphBuilder::new("unsupported");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [4.into()])).unwrap();
    let y = b.push(Op::Sqrt, &[x]).unwrap();
    b.output("y", y);
    let graph = b.finish().unwrap().encode();
    let error = client.call(Request::Define { device: 0, graph: &graph }).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnsupportedOp);
    assert!(error.message.contains("sqrt"), "{error}");
}

#[test]
fn arguments_come_bound_fixed_or_with_the_run() {
    let server = Server::inline();
    let mut client = server.client();
    let program = client.define(&relu().encode());
    let x = floats(&[-1.0, 2.0, -3.0, 4.0]);
    let mut argument = Vec::new();
    write_argument(&mut argument, 0, DType::F32, &[4], &x).unwrap();
    let arguments = Arguments::new(1, &argument).unwrap();
    let spec = TensorSpec::new(DType::F32, &[4]).unwrap();
    let body = genie_transport::wire::PutBody::Inline(&x);
    let put = genie_transport::wire::PutRequest { target: private(None, None), spec, body };
    let resident = tensor(client.call(Request::Put(put)));
    let bound = vec![BindEntry { input: 0, handle: resident }];
    let bindings = [
        (vec![], Arguments::EMPTY, arguments),
        (vec![], arguments, Arguments::EMPTY),
        (bound, Arguments::EMPTY, Arguments::EMPTY),
    ];
    for (bound, fixed, with) in bindings {
        let Ok(Told::Bound(binding)) =
            client.call(Request::Bind { program, bound, weights: Vec::new(), arguments: fixed })
        else {
            panic!()
        };
        let run = Request::Run { binding, position: None, wanted: 1, keep: 0, arguments: with };
        let Ok(Told::Ran { device: 0, position: 0, outputs }) = client.call(run) else { panic!() };
        assert_eq!(outputs, [Out::Inline(0, floats(&[0.0, 2.0, 0.0, 4.0]))]);
        let run = Request::Run { binding, position: None, wanted: 0, keep: 1, arguments: with };
        let Ok(Told::Ran { outputs, .. }) = client.call(run) else { panic!() };
        let [Out::Resident(0, kept)] = outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(client.get(kept), floats(&[0.0, 2.0, 0.0, 4.0]));
    }
}

#[test]
fn a_bound_argument_is_read_anew_by_each_run() {
    let server = Server::inline();
    let mut client = server.client();
    let program = client.define(&relu().encode());
    let spec = TensorSpec::new(DType::F32, &[4]).unwrap();
    let put = |client: &mut crate::client::Client<'_>, target, values: &[f32]| {
        let bytes = floats(values);
        let body = genie_transport::wire::PutBody::Inline(&bytes);
        tensor(client.call(Request::Put(genie_transport::wire::PutRequest { target, spec: spec.clone(), body })))
    };
    let handle = put(&mut client, private(None, None), &[1.0; 4]);
    let bound = vec![BindEntry { input: 0, handle }];
    let bind = Request::Bind { program, bound, weights: Vec::new(), arguments: Arguments::EMPTY };
    let Ok(Told::Bound(binding)) = client.call(bind) else { panic!() };
    for value in [1.0_f32, 2.0, 3.0] {
        put(&mut client, genie_transport::wire::PutTarget::Range { handle, offset: 0 }, &[value; 4]);
        let run = Request::Run { binding, position: None, wanted: 1, keep: 0, arguments: Arguments::EMPTY };
        let Ok(Told::Ran { outputs, .. }) = client.call(run) else { panic!() };
        assert_eq!(outputs, [Out::Inline(0, floats(&[value; 4]))]);
    }
}

#[test]
fn runs_check_their_arguments() {
    let server = Server::inline();
    let mut client = server.client();
    let program = client.define(&relu().encode());
    let bind = Request::Bind { program, bound: vec![], weights: Vec::new(), arguments: Arguments::EMPTY };
    let Ok(Told::Bound(binding)) = client.call(bind) else { panic!() };
    let mut run = |index, dtype, dims: &[u64], n: usize, times: u32, wanted| {
        let mut bytes = Vec::new();
        for _ in 0..times {
            write_argument(&mut bytes, index, dtype, dims, &vec![0; n]).unwrap();
        }
        let arguments = Arguments::new(times, &bytes).unwrap();
        client.fails(Request::Run { binding, position: None, wanted, keep: 0, arguments })
    };
    assert_eq!(run(0, DType::F32, &[5], 20, 1, 1), ErrorCode::BadArgument, "shape");
    assert_eq!(run(0, DType::I32, &[4], 16, 1, 1), ErrorCode::BadArgument, "type");
    assert_eq!(run(0, DType::F32, &[2, 2], 16, 1, 1), ErrorCode::BadArgument, "rank");
    assert_eq!(run(1, DType::F32, &[4], 16, 1, 1), ErrorCode::BadArgument, "not an input");
    assert_eq!(run(999, DType::F32, &[4], 16, 1, 1), ErrorCode::BadArgument, "no node");
    assert_eq!(run(0, DType::F32, &[4], 16, 2, 1), ErrorCode::BadArgument, "twice");
    assert_eq!(run(0, DType::F32, &[4], 16, 0, 1), ErrorCode::BadArgument, "missing");
    assert_eq!(run(0, DType::F32, &[4], 16, 1, 0b10), ErrorCode::BadArgument, "no such output");
}

#[test]
fn bindings_are_checked() {
    let server = Server::with(2, 1 << 20, |_| {});
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let l = lm(Phase::Decode);
    let (table, cache) = (model.table, model.cache);
    let wrong_shape = client.put(&noise(99, 1));
    let Ok(Told::Tensor(elsewhere, 1, _)) = client.call(Request::Copy { handle: table, device: 1 }) else { panic!() };
    let entry = |input, handle| BindEntry { input, handle };
    let cases = [
        (vec![entry(l.table, table)], ErrorCode::BadArgument, "no cache"),
        (vec![entry(l.cache, cache)], ErrorCode::BadArgument, "no weight"),
        (vec![entry(l.table, table), entry(l.table, table), entry(l.cache, cache)], ErrorCode::BadArgument, "twice"),
        (vec![entry(l.table, cache), entry(l.cache, cache)], ErrorCode::WrongType, "a cache as a weight"),
        (vec![entry(l.table, table), entry(l.cache, table)], ErrorCode::WrongType, "a weight as a cache"),
        (vec![entry(l.table, model.program), entry(l.cache, cache)], ErrorCode::WrongType, "a program"),
        (vec![entry(l.table, wrong_shape), entry(l.cache, cache)], ErrorCode::BadArgument, "shape"),
        (vec![entry(l.table, elsewhere), entry(l.cache, cache)], ErrorCode::BadArgument, "device"),
        (vec![entry(l.table, table), entry(l.cache, cache), entry(77, table)], ErrorCode::BadArgument, "no input"),
        (vec![entry(l.table, table), entry(l.cache, cache), entry(3, table)], ErrorCode::BadArgument, "positions"),
    ];
    for (bound, code, what) in cases {
        let program = model.program;
        assert_eq!(
            client.fails(Request::Bind { program, bound, weights: Vec::new(), arguments: Arguments::EMPTY }),
            code,
            "{what}"
        );
    }
    assert_eq!(
        client.fails(Request::Bind { program: table, bound: vec![], weights: Vec::new(), arguments: Arguments::EMPTY }),
        ErrorCode::WrongType
    );
}

#[test]
fn a_weight_stays_as_long_as_a_binding_has_it() {
    let server = Server::with(1, 64 << 10, |_| {});
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    client.call(Request::Free(model.table)).unwrap();
    assert_eq!(client.fails(put_request(private(None, None), &noise(62 << 10, 1))), ErrorCode::OutOfMemory);
    assert_eq!(client.run(&model, &[4]), (next_token(&[4]), 1));
    assert_eq!(graphs::table_bytes().len(), 512);
}

#[test]
fn a_position_that_is_not_the_caches_is_stale() {
    let server = Server::inline();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let id = client.ask_run(&model, &[1], Some(0));
    assert_eq!(ran(client.answer(id)), (next_token(&[1]), 1));
    let id = client.ask_run(&model, &[2], Some(0));
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::StalePosition);
    let id = client.ask_run(&model, &[2], Some(1));
    assert_eq!(ran(client.answer(id)), (next_token(&[1, 2]), 2));
}

#[test]
fn one_session_cannot_have_all_programs() {
    // The server's limit on programs was the only one: one session could take them all, by handles or by bindings whose
    // programs it had freed, and nobody else could define anything.
    let server = Server::with(1, 1 << 20, |config| config.max_programs = 16);
    let mut greedy = server.client();
    let model = greedy.model(Phase::Decode);
    let program = greedy.define(&relu().encode());
    let third = lm(Phase::Prefill).graph.encode();
    assert_eq!(greedy.fails(Request::Define { device: 0, graph: &third }), ErrorCode::Busy);
    greedy.call(Request::Free(model.program)).unwrap();
    assert_eq!(greedy.fails(Request::Define { device: 0, graph: &third }), ErrorCode::Busy, "its binding has it");
    server.client().define(&third);
    greedy.call(Request::Free(program)).unwrap();
    greedy.define(&third);
}

#[test]
fn only_so_many_programs() {
    let server = Server::with(1, 1 << 20, |config| config.max_programs = 1);
    let mut client = server.client();
    let program = client.define(&relu().encode());
    let graph = lm(Phase::Decode).graph.encode();
    assert_eq!(client.fails(Request::Define { device: 0, graph: &graph }), ErrorCode::Busy);
    client.call(Request::Free(program)).unwrap();
    client.define(&graph);
}

/// Another graph for every number.
fn numbered(n: u64) -> Vec<u8> {
    let mut b = GraphBuilder::new("numbered");
    let x = b.input("x", InputRole::Argument, TensorType::new(DType::F32, [(n + 1).into()])).unwrap();
    let y = b.push(Op::Relu, &[x]).unwrap();
    b.output("y", y);
    b.finish().unwrap().encode()
}

#[test]
fn of_idle_programs_those_that_were_asked_for_last_stay() {
    let server = Server::with(1, 1 << 20, |config| config.max_programs = 3);
    let mut client = server.client();
    let mut define = |n| match client.call(Request::Define { device: 0, graph: &numbered(n) }) {
        Ok(Told::Program(program, hash)) => {
            client.call(Request::Free(program)).unwrap();
            hash
        }
        other => panic!("{other:?}"),
    };
    let [a, b, _] = [define(0), define(1), define(2)];
    assert_eq!(define(0), a);
    define(3);
    assert_eq!(server.counter("genie_programs"), 3);
    let mut client = server.client();
    assert_eq!(client.fails(Request::DefineKnown { device: 0, hash: b }), ErrorCode::NoSuchName);
    assert!(client.call(Request::DefineKnown { device: 0, hash: a }).is_ok());
}

#[test]
fn a_program_that_is_idle_for_long_goes_and_one_that_somebody_has_stays() {
    let mut server = Server::inline();
    let [idle, kept] = [numbered(0), numbered(1)];
    {
        let mut client = server.client();
        let program = client.define(&idle);
        client.call(Request::Free(program)).unwrap();
        client.define(&kept);
        client.break_off();
    }
    // The session outlives its connection for a moment: one program is somebody's still.
    server.pass(Duration::from_millis(100));
    assert_eq!(server.counter("genie_programs"), 2);
    server.pass(Duration::from_secs(14 * 60));
    assert_eq!(server.counter("genie_programs"), 2);
    server.pass(Duration::from_secs(2 * 60));
    assert_eq!(server.counter("genie_programs"), 1, "idle for a quarter of an hour");
    server.pass(Duration::from_secs(16 * 60));
    assert_eq!(server.counter("genie_programs"), 0);
}
