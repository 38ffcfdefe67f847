//! The CPU device behind the same requests.

use std::sync::Arc;

use genie_executor::device::Device;
use genie_executor::device::cpu::CpuDevice;
use genie_graph::{DType, Dim, GraphBuilder, InputRole, Op, Phase, Symbol, TensorType, VerifiedGraph};
use genie_transport::wire::{Arguments, BindEntry, Effect, ErrorCode, Finish, Request, write_argument};

use crate::client::{Client, Model, Server, Told, tensor};

fn server(memory: u64, mode: genie_executor::Mode) -> Server {
    Server::with(1, 1 << 20, |config| {
        let cpu: Arc<dyn Device> = Arc::new(CpuDevice::new(0, 1, memory).unwrap());
        config.devices = vec![cpu];
        config.default_quota = memory;
        config.max_quota = memory;
        config.mode = mode;
    })
}

fn ask(client: &mut Client<'_>, model: &Model, prompt: &[i32], max_new: u32) -> u64 {
    let prompt: Vec<[u8; 4]> = prompt.iter().map(|t| t.to_le_bytes()).collect();
    client.ask(Request::Generate {
        prefill: model.binding,
        decode: model.binding,
        position: None,
        max_new,
        prompt: &prompt,
        stop: &[],
        arguments: Arguments::EMPTY,
    })
}

fn tokens(client: &Client<'_>, id: u64) -> Vec<i32> {
    let (mut all, mut end) = (Vec::new(), None);
    for (of, told) in client.heard() {
        assert_eq!(of, id);
        let Ok(Told::Generated { tokens, finish, .. }) = told else { panic!("{told:?}") };
        all.extend(tokens);
        end = finish;
    }
    assert_eq!(end, Some(Finish::Length));
    all
}

#[test]
fn a_batch_gives_what_each_session_gets_alone() {
    let prompts: Vec<Vec<i32>> = (1..=5).map(|n| (0..n * 20).map(|i| i * 7 % 32).collect()).collect();
    let alone: Vec<Vec<i32>> = prompts
        .iter()
        .map(|prompt| {
            let server = server(64 << 20, genie_executor::Mode::Inline);
            let mut client = server.client();
            let model = client.model(Phase::Decode);
            let id = ask(&mut client, &model, prompt, 40);
            tokens(&client, id)
        })
        .collect();
    let server = server(64 << 20, genie_executor::Mode::Stepped);
    let mut all: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let mut client = server.client();
            let model = client.model(Phase::Decode);
            let id = ask(&mut client, &model, prompt, 40);
            (client, id)
        })
        .collect();
    server.run_all();
    assert!(server.counter("genie_batched_rows_total") > 100);
    for ((client, id), alone) in all.iter_mut().zip(alone) {
        assert_eq!(tokens(client, *id), alone);
    }
}

#[test]
fn single_steps_and_replays_agree_with_generate() {
    let server = server(64 << 20, genie_executor::Mode::Inline);
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let prompt = [5, 9, 2];
    let id = ask(&mut client, &model, &prompt, 30);
    let all = tokens(&client, id);
    // The cache by replaying the tokens, as a client does whose server was restarted.
    let again = client.model_with(Phase::Decode, model.table, None);
    client.run(&again, &[&prompt[..], &all[..10]].concat()[..12]);
    let id = ask(&mut client, &again, &all[9..10], 20);
    assert_eq!(tokens(&client, id), all[10..]);
}

#[test]
fn a_decode_without_memory_changes_nothing() {
    let server = server(160 << 10, genie_executor::Mode::Inline);
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    client.run(&model, &vec![3; 64]);
    let mut fillers = Vec::new();
    while client.devices()[0].1 >= 4096 {
        fillers.push(client.put(&[0; 4096]));
    }
    let id = client.ask_run(&model, &[1], Some(64));
    let error = client.answer(id).unwrap_err();
    assert_eq!((error.code, error.effect), (ErrorCode::OutOfMemory, Effect::None));
    for filler in fillers {
        client.call(Request::Free(filler)).unwrap();
    }
    let id = client.ask_run(&model, &[1], Some(64));
    client.answer(id).unwrap();
}

#[test]
fn a_token_outside_the_vocabulary_fails_its_request() {
    let server = server(64 << 20, genie_executor::Mode::Inline);
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    for token in [32, -1, i32::MAX, i32::MIN] {
        let id = client.ask_run(&model, &[token], Some(0));
        let error = client.answer(id).unwrap_err();
        assert_eq!((error.code, error.effect), (ErrorCode::OutOfRange, Effect::None));
    }
    client.run(&model, &[1]);
}

/// Two caches; the tokens go through both.
fn two_caches() -> VerifiedGraph {
    let (b, s) = (Dim::Symbol(Symbol::Batch), Dim::Symbol(Symbol::Sequence));
    let mut g = GraphBuilder::new("two caches");
    let dims = [Symbol::Position.into(), 1.into(), 2.into(), 1.into(), Op::KV_BLOCK.into(), 4.into()];
    let cache = TensorType::new(DType::F32, dims);
    let first = g.input("first", InputRole::KvCache, cache.clone()).unwrap();
    let second = g.input("second", InputRole::KvCache, cache).unwrap();
    let x = g.input("x", InputRole::Argument, TensorType::new(DType::F32, [b, s, 4.into()])).unwrap();
    let attention = Op::Attention { layer: 0, heads: 1, kv_heads: 1, head_dim: 4, scale: 0.5, causal: true };
    let y = g.push(attention.clone(), &[x, x, x, first]).unwrap();
    let z = g.push(attention, &[y, y, y, second]).unwrap();
    g.output("z", z);
    g.finish().unwrap()
}

#[test]
fn runs_that_want_the_same_caches_in_another_order_both_end() {
    let server = server(64 << 20, genie_executor::Mode::Stepped);
    let mut client = server.client();
    let program = client.define(&two_caches().encode());
    let create = |client: &mut Client<'_>| tensor(client.call(Request::CacheCreate { program, input: 0, reserve: 0 }));
    let (a, b) = (create(&mut client), create(&mut client));
    let bind = |client: &mut Client<'_>, first, second| {
        let bound = vec![BindEntry { input: 0, handle: first }, BindEntry { input: 1, handle: second }];
        client.call(Request::Bind { program, bound, weights: Vec::new(), arguments: Arguments::EMPTY })
    };
    let Ok(Told::Bound(there)) = bind(&mut client, a, b) else { panic!() };
    let Ok(Told::Bound(back)) = bind(&mut client, b, a) else { panic!() };
    assert_eq!(bind(&mut client, a, a).unwrap_err().code, ErrorCode::BadArgument);
    let mut bytes = Vec::new();
    write_argument(&mut bytes, 2, DType::F32, &[1, 1, 4], &[0; 16]).unwrap();
    let arguments = Arguments::new(1, &bytes).unwrap();
    let mut asked = Vec::new();
    for binding in [there, back, there, back] {
        asked.push(client.ask(Request::Run { binding, position: None, wanted: 0, keep: 0, arguments }));
    }
    server.run_all();
    for (n, (of, told)) in (1..).zip(client.heard()) {
        assert_eq!(of, asked[n - 1]);
        assert!(matches!(told, Ok(Told::Ran { position, .. }) if position as usize == n), "{told:?}");
    }
}
