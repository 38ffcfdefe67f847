//! The same server with threads: nothing here depends on who is faster.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use genie_executor::Mode;
use genie_executor::device::cpu::CpuDevice;
use genie_graph::{DType, Phase};
use genie_transport::wire::{Arguments, ContentHash, ErrorCode, Handle, Request, write_argument};

use crate::client::{Answer, Client, Out, Server, Told, noise, sliced_put, tensor, weight};
use crate::fake::continuation;

fn server() -> Server {
    Server::with(2, 64 << 20, |config| config.mode = Mode::Threads)
}

/// The terminal reply to a request, and all tokens on the way.
#[track_caller]
fn wait(client: &Client<'_>, id: u64) -> (Answer, Vec<i32>) {
    let (deadline, mut all) = (Instant::now() + Duration::from_secs(60), Vec::new());
    loop {
        for (of, told) in client.heard() {
            assert_eq!(of, id);
            match told {
                Ok(Told::Generated { tokens, finish, .. }) => {
                    all.extend(&tokens);
                    if finish.is_some() {
                        return (Ok(Told::Done), all);
                    }
                }
                other => return (other, all),
            }
        }
        assert!(Instant::now() < deadline, "no reply");
        std::thread::yield_now();
    }
}

fn model(client: &mut Client<'_>) -> (crate::client::Model, u64) {
    let table = client.put_weight(&crate::graphs::table_bytes());
    let lm = crate::graphs::lm(Phase::Decode);
    let graph = lm.graph.encode();
    let id = client.ask(Request::Define { device: 0, graph: &graph });
    let Ok(Told::Program(program, _)) = wait(client, id).0 else { panic!() };
    let cache = tensor(client.call(Request::CacheCreate { program, input: lm.cache, reserve: 0 }));
    let binding = client.bind_model(&lm, program, table, cache);
    (crate::client::Model { lm, program, cache, binding, table }, id)
}

/// The prompt runs in pieces of 50 tokens, or up to 400 where nobody else decodes, and the continuation is right. The lengths of all runs
/// of several tokens.
#[track_caller]
fn pieces(prompt: &[i32], room: Option<u64>) -> Vec<u64> {
    let server = Server::with(1, 64 << 20, |config| {
        (config.mode, config.prefill_tokens, config.prefill_tokens_alone) = (Mode::Threads, 50, 400);
    });
    *server.fakes[0].room.lock().unwrap() = room;
    let mut client = server.client();
    let model = model(&mut client).0;
    let id = client.ask(Request::Generate {
        prefill: model.binding,
        decode: model.binding,
        position: Some(0),
        max_new: 3,
        prompt: &prompt.iter().map(|token| token.to_le_bytes()).collect::<Vec<_>>(),
        stop: &[],
        arguments: Arguments::EMPTY,
    });
    let (answer, tokens) = wait(&client, id);
    answer.unwrap();
    assert_eq!(tokens, continuation(prompt, 3));
    server.runs().iter().map(|run| run.1).filter(|&tokens| tokens > 1).collect()
}

#[test]
fn a_long_prompt_runs_in_longer_pieces_where_nobody_else_decodes() {
    let prompt: Vec<i32> = (0..1700).map(|i| i % 32).collect();
    let pieces = pieces(&prompt, None);
    assert_eq!((pieces[0], pieces.iter().sum::<u64>()), (50, 1700), "nothing is known at first");
    assert!(pieces.iter().any(|&tokens| tokens > 50), "{pieces:?}");
    assert!(pieces.iter().all(|&tokens| tokens <= 400), "{pieces:?}");
}

#[test]
fn a_piece_that_memory_has_no_room_for_is_made_shorter() {
    let prompt: Vec<i32> = (0..1700).map(|i| i % 32).collect();
    let pieces = pieces(&prompt, Some(60));
    assert_eq!(pieces.iter().filter(|&&tokens| tokens <= 60).sum::<u64>(), 1700, "{pieces:?}");
    assert!(pieces.iter().any(|&tokens| tokens > 60), "one was too long: {pieces:?}");
}

#[test]
fn eight_generates_at_once_give_what_each_gives_alone() {
    let server = server();
    let mut all: Vec<_> = (0..8)
        .map(|_| {
            let mut client = server.client();
            let model = model(&mut client).0;
            (client, model)
        })
        .collect();
    let mut asked = Vec::new();
    for (i, (client, model)) in all.iter_mut().enumerate() {
        let prompt: Vec<[u8; 4]> = (0..=i as i32).map(i32::to_le_bytes).collect();
        asked.push(client.ask(Request::Generate {
            prefill: model.binding,
            decode: model.binding,
            position: Some(0),
            max_new: 200,
            prompt: &prompt,
            stop: &[],
            arguments: Arguments::EMPTY,
        }));
    }
    for (i, ((client, _), id)) in all.iter_mut().zip(asked).enumerate() {
        let (answer, tokens) = wait(client, id);
        answer.unwrap();
        let prompt: Vec<i32> = (0..=i as i32).collect();
        assert_eq!(tokens, continuation(&prompt, 200));
    }
}

#[test]
fn large_weights_are_hashed_elsewhere() {
    let server = server();
    let mut client = server.client();
    let bytes = noise(1 << 20, 1);
    let slices: Vec<usize> = (0..256).collect();
    let id = client.ask(sliced_put(weight(ContentHash::of(&bytes)), bytes.len(), false));
    client.send(id, &bytes, &slices);
    let handle = tensor(wait(&client, id).0);
    assert_eq!(client.get(handle), bytes);
    let id = client.ask(Request::Copy { handle, device: 1 });
    let copy = tensor(wait(&client, id).0);
    assert_eq!(client.get(copy), bytes);
}

#[test]
fn shutting_down_answers_everything() {
    let server = server();
    let mut client = server.client();
    let model = model(&mut client).0;
    let id = client.ask(Request::Generate {
        prefill: model.binding,
        decode: model.binding,
        position: None,
        max_new: 1 << 20,
        prompt: &[[1, 0, 0, 0]],
        stop: &[],
        arguments: Arguments::EMPTY,
    });
    server.executor.shutdown();
    let (answer, _) = wait(&client, id);
    assert_eq!(answer.unwrap_err().code, ErrorCode::ShuttingDown);
    assert!(client.peer.is_closed());
}

#[test]
fn a_bug_outside_a_kernel_fails_the_request_and_not_the_device() {
    // Only the kernels' panics were caught. Any other on a device's thread ended the thread without a word, and every later
    // request to the device waited for ever.
    let server = Server::with(1, 8 * 4096, |config| config.mode = Mode::Threads);
    let mut client = server.client();
    let (model, _) = model(&mut client);
    let prefix: Vec<i32> = (0..64).map(|i| i % 30).collect();
    let id = client.ask_run(&model, &prefix, None);
    wait(&client, id).0.unwrap();
    let filler = client.put(&vec![0; 5 * 4096]);
    // The run finds no memory, and the server asks the device how much there is.
    server.fakes[0].info_panics.store(true, Ordering::Relaxed);
    let id = client.ask_run(&model, &[1], Some(64));
    assert_eq!(wait(&client, id).0.unwrap_err().code, ErrorCode::Internal);
    server.fakes[0].info_panics.store(false, Ordering::Relaxed);
    client.call(Request::Free(filler)).unwrap();
    let id = client.ask_run(&model, &[1], Some(64));
    wait(&client, id).0.unwrap();
}

/// A server with a CPU device of two threads.
fn cpu_server() -> Server {
    Server::with(1, 1 << 20, |config| {
        config.devices = vec![Arc::new(CpuDevice::new(0, 2, 64 << 20).unwrap())];
        (config.default_quota, config.max_quota, config.mode) = (64 << 20, 64 << 20, Mode::Threads);
    })
}

fn bound(client: &mut Client<'_>, graph: &[u8]) -> Handle {
    let id = client.ask(Request::Define { device: 0, graph });
    let Ok(Told::Program(program, _)) = wait(client, id).0 else { panic!() };
    let (bound, weights, arguments) = (Vec::new(), Vec::new(), Arguments::EMPTY);
    let id = client.ask(Request::Bind { program, bound, weights, arguments });
    let Ok(Told::Bound(binding)) = wait(client, id).0 else { panic!() };
    binding
}

fn ask_relu(client: &mut Client<'_>, binding: Handle, values: &[f32]) -> u64 {
    let (mut bytes, data) = (Vec::new(), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    write_argument(&mut bytes, 0, DType::F32, &[values.len() as u64], &data).unwrap();
    let arguments = Arguments::new(1, &bytes).unwrap();
    client.ask(Request::Run { binding, position: None, wanted: 1, keep: 0, arguments })
}

fn is_relu(answer: Answer, values: &[f32]) -> bool {
    let Ok(Told::Ran { outputs, .. }) = answer else { panic!("{answer:?}") };
    let relu: Vec<u8> = values.iter().flat_map(|v| v.max(0.0).to_le_bytes()).collect();
    outputs == [Out::Inline(0, relu)]
}

#[test]
fn a_brief_run_is_over_when_its_request_has_been_taken() {
    let server = cpu_server();
    let mut client = server.client();
    let binding = bound(&mut client, &crate::graphs::relu().encode());
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut at_once = 0;
    // The first has to be planned, and while the device's thread is at work others are its, too.
    while at_once < 200 {
        let values = [at_once as f32, -1.0, 0.5, -3.0];
        let id = ask_relu(&mut client, binding, &values);
        let mut heard = client.heard();
        at_once = if heard.is_empty() { 0 } else { at_once + 1 };
        let answer = heard.pop().map_or_else(|| wait(&client, id).0, |(_, answer)| answer);
        assert!(is_relu(answer, &values));
        assert!(Instant::now() < deadline, "brief runs wait for the device's thread");
    }
}

#[test]
fn brief_runs_and_long_ones_share_the_device() {
    let server = cpu_server();
    std::thread::scope(|scope| {
        for session in 0..4 {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.client();
                let long = session % 2 == 1;
                let graph = if long { crate::graphs::relu_of(100_000) } else { crate::graphs::relu() };
                let binding = bound(&mut client, &graph.encode());
                let values: Vec<f32> = (0..if long { 100_000 } else { 4 }).map(|i| (i - 2 * session) as f32).collect();
                for _ in 0..300 {
                    let id = ask_relu(&mut client, binding, &values);
                    assert!(is_relu(wait(&client, id).0, &values));
                }
            });
        }
    });
    assert_eq!(server.counter("genie_rows_total"), 1200);
}
