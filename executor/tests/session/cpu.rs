//! The CPU device behind the same requests.

use std::sync::Arc;

use genie_executor::device::Device;
use genie_executor::device::cpu::CpuDevice;
use genie_graph::Phase;
use genie_transport::wire::{Arguments, Effect, ErrorCode, Finish, Request};

use crate::client::{Client, Model, Server, Told};

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
