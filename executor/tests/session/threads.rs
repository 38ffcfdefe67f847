//! The same server with threads: nothing here depends on who is faster.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use genie_executor::Mode;
use genie_graph::Phase;
use genie_transport::wire::{Arguments, ContentHash, ErrorCode, Request};

use crate::client::{Answer, Client, Server, Told, noise, sliced_put, tensor, weight};
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
