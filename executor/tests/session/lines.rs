//! Who waits for a cache: how many may, and what happens when it is their turn.

use genie_executor::Mode;
use genie_graph::Phase;
use genie_transport::connection::Service;
use genie_transport::wire::{Arguments, ErrorCode, Request};

use crate::client::{Client, Model, Server, Told, code};

fn stepped(credits: u32) -> Server {
    Server::with(1, 64 << 20, |config| {
        config.mode = Mode::Stepped;
        config.settings.credits = credits;
    })
}

/// A generate that has the model's cache until it is cancelled.
fn occupy(client: &mut Client<'_>, model: &Model) -> u64 {
    let prompt = [[1, 0, 0, 0]];
    let id = client.ask(Request::Generate {
        prefill: model.binding,
        decode: model.binding,
        position: None,
        max_new: 1000,
        prompt: &prompt,
        stop: &[],
        arguments: Arguments::EMPTY,
    });
    assert!(client.server.executor.step());
    client.heard();
    id
}

#[test]
fn a_long_line_of_runs_that_fail_is_worked_off_without_recursion() {
    // A run that failed as soon as it had its cache let the next in line have it from within its own call, and that the next:
    // some thousand stale runs behind one generate overflowed the stack of whoever ended the generate, and the server died.
    let work = || {
        let server = stepped(10_000);
        let mut client = server.client();
        let model = client.model(Phase::Decode);
        let first = occupy(&mut client, &model);
        let stale: Vec<u64> = (0..5000).map(|_| client.ask_run(&model, &[1], Some(77))).collect();
        let last = client.ask_run(&model, &[1], None);
        assert_eq!(client.heard(), []);
        server.executor.cancel(&client.peer, first, server.now);
        server.run_all();
        let heard = client.heard();
        assert_eq!(heard.len(), 1 + stale.len() + 1);
        assert_eq!((heard[0].0, code(&heard[0].1)), (first, ErrorCode::Cancelled));
        for (id, answer) in stale.iter().zip(&heard[1..]) {
            assert_eq!((*id, code(&answer.1)), (answer.0, ErrorCode::StalePosition));
        }
        let (id, answer) = heard.last().unwrap();
        assert!(*id == last && matches!(answer, Ok(Told::Ran { .. })), "{answer:?}");
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn reconnecting_does_not_multiply_the_credits() {
    // Credits are counted for each connection: a client that came back again and again had as many requests pending as it
    // liked, each with its memory.
    let server = stepped(4);
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    occupy(&mut client, &model);
    for _ in 0..7 {
        client.ask_run(&model, &[1], None);
    }
    client.reconnect(0);
    let one_more = client.ask_run(&model, &[1], None);
    let refused = client.answer(one_more).unwrap_err();
    assert_eq!((refused.code, refused.effect), (ErrorCode::NoCredit, genie_transport::wire::Effect::None));
    server.run_all();
    client.ask_as(one_more, Request::CacheTruncate { cache: model.cache, length: 0 });
    assert_eq!(client.answer(one_more), Ok(Told::Done), "nothing had happened under this id");
}

#[test]
fn who_only_asks_leaves_the_line_with_its_connection() {
    // Gets and look-ups are not the session's pending requests. Those that waited for a busy cache stayed in its line when
    // their connection had long gone, and a client that came back again and again made the line as long as it liked.
    let server = stepped(4);
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let first = occupy(&mut client, &model);
    let mut peers = Vec::new();
    for _ in 0..5 {
        client.ask(Request::LookupHandle(model.cache));
        client.ask(Request::Get { handle: model.cache, offset: 0, length: 0, sliced: None });
        client.peer.close();
        peers.push(std::sync::Arc::downgrade(&client.peer));
        client.reconnect(first);
    }
    let last = client.ask(Request::LookupHandle(model.cache));
    assert!(peers.iter().all(|peer| peer.strong_count() == 0), "nothing keeps a connection that is gone");
    server.executor.cancel(&client.peer, first, server.now);
    server.run_all();
    assert!(matches!(client.answer(last), Ok(Told::Tensor(..))));
}
