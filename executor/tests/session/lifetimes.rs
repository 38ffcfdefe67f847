//! Sessions: opened, resumed, taken over, outlived, ended.

use std::sync::Arc;
use std::time::Duration;

use genie_graph::Phase;
use genie_transport::auth::{Guard, Token, Tokens};
use genie_transport::wire::{ErrorCode, Request, SessionToken};

use crate::client::{EPOCH, Server, noise};

#[test]
fn most_requests_need_a_session() {
    let server = Server::inline();
    let mut client = server.connect();
    let handle = genie_transport::wire::Handle { index: 0, generation: 1, epoch: EPOCH };
    for request in [
        Request::Free(handle),
        Request::LookupName("x"),
        Request::Get { handle, offset: 0, length: 0, sliced: None },
        Request::Define { device: 0, graph: &[] },
        Request::CacheFork(handle),
        Request::Close,
    ] {
        assert_eq!(client.fails(request), ErrorCode::NoSession);
    }
    assert!(client.call(Request::Echo(b"hello")).is_ok());
    assert_eq!(client.devices()[0].0, "fake:0");
    client.open(0);
    assert_eq!(client.fails(Request::Open { quota: 0, lease_ms: 0 }), ErrorCode::Malformed);
}

#[test]
fn a_session_outlives_its_connection_and_nothing_is_lost() {
    let mut server = Server::inline();
    let opened;
    let (handle, cache, bytes) = {
        let mut client = server.client();
        let model = client.model(Phase::Decode);
        client.run(&model, &[3]);
        let bytes = noise(500, 1);
        let handle = client.put(&bytes);
        opened = client.opened.unwrap();
        client.break_off();
        (handle, model.cache, bytes)
    };
    server.pass(Duration::from_millis(900));
    let mut client = server.connect();
    client.call(Request::Resume { token: opened.token, epoch: opened.epoch, unanswered: 50 }).unwrap();
    assert_eq!(client.get(handle), bytes);
    client.next = 100;
    client.call(Request::CacheTruncate { cache, length: 1 }).unwrap();
    assert_eq!(client.fails(Request::CacheTruncate { cache, length: 2 }), ErrorCode::OutOfRange);
}

#[test]
fn a_lease_that_ran_out_frees_everything() {
    let mut server = Server::inline();
    let opened = {
        let mut client = server.client();
        let model = client.model(Phase::Decode);
        client.run(&model, &[3]);
        client.put(&noise(5000, 1));
        client.break_off();
        client.opened.unwrap()
    };
    server.pass(Duration::from_millis(1000));
    assert_eq!(server.counter("genie_sessions"), 0);
    assert_eq!(server.counter("genie_sessions_expired_total"), 1);
    let mut client = server.connect();
    let resume = Request::Resume { token: opened.token, epoch: opened.epoch, unanswered: 0 };
    assert_eq!(client.fails(resume), ErrorCode::SessionGone);
    let weights = server.counter("genie_weight_bytes");
    assert!((64 << 20) - client.devices()[0].1 <= weights.next_multiple_of(4096), "all but the shared weights is free");
}

#[test]
fn tokens_and_epochs_must_match() {
    let server = Server::inline();
    let opened = server.client().opened.unwrap();
    let mut client = server.connect();
    let resume = |token, epoch| Request::Resume { token, epoch, unanswered: 0 };
    assert_eq!(client.fails(resume(opened.token, EPOCH - 1)), ErrorCode::EpochGone);
    let mut forged = opened.token;
    forged.0[31] ^= 1;
    assert_eq!(client.fails(resume(forged, EPOCH)), ErrorCode::SessionGone);
    assert_eq!(client.fails(resume(SessionToken([0; 32]), EPOCH)), ErrorCode::SessionGone);
    client.call(resume(opened.token, EPOCH)).unwrap();
}

#[test]
fn a_second_connection_takes_the_session_over() {
    let server = Server::inline();
    let mut first = server.client();
    let handle = first.put(&[1, 2]);
    let opened = first.opened.unwrap();
    let mut second = server.connect();
    second.call(Request::Resume { token: opened.token, epoch: EPOCH, unanswered: 0 }).unwrap();
    assert!(first.peer.is_closed());
    assert_eq!(second.get(handle), [1, 2]);
    first.recorder.take();
    first.ask(Request::Free(handle));
    assert_eq!(second.get(handle), [1, 2], "the old connection speaks for nobody");
    // The old connection's end does not detach the session from the new one.
    first.break_off();
    assert_eq!(second.get(handle), [1, 2]);
}

#[test]
fn closing_frees_and_ends() {
    let server = Server::inline();
    let mut client = server.client();
    let handle = client.put(&noise(5000, 1));
    client.call(Request::Close).unwrap();
    assert_eq!(client.devices()[0].1, 64 << 20);
    assert_eq!(client.fails(Request::Free(handle)), ErrorCode::NoSession);
    client.open(0);
    assert_eq!(client.fails(Request::Free(handle)), ErrorCode::NoSuchHandle);
}

#[test]
fn there_are_only_so_many_sessions() {
    let server = Server::with(1, 1 << 20, |config| config.max_sessions = 2);
    let (_a, mut b) = (server.client(), server.client());
    let mut c = server.connect();
    assert_eq!(c.fails(Request::Open { quota: 0, lease_ms: 0 }), ErrorCode::Busy);
    b.call(Request::Close).unwrap();
    c.open(0);
}

#[test]
fn sessions_that_nobody_misses_make_room() {
    // Clients that opened sessions and went away kept everybody else out until the leases ended, an hour if they asked for it.
    let mut server = Server::with(1, 1 << 20, |config| config.max_sessions = 3);
    let opened = {
        let (mut first, second, third) = (server.client(), server.client(), server.client());
        first.put(&[1]);
        first.break_off();
        let second = second.opened.unwrap();
        third.break_off();
        second
    };
    server.pass(Duration::from_millis(10));
    {
        let mut fourth = server.connect();
        fourth.open(0);
        fourth.break_off();
        let mut back = server.connect();
        back.call(Request::Resume { token: opened.token, epoch: EPOCH, unanswered: 0 }).unwrap();
        back.next = 50;
        let mut fifth = server.connect();
        fifth.open(0);
        let mut sixth = server.connect();
        let refused = sixth.fails(Request::Open { quota: 0, lease_ms: 0 });
        assert_eq!(refused, ErrorCode::Busy, "one holds something, two are there");
        back.put(&[2]);
    }
}

#[test]
fn shutting_down_tells_everybody() {
    let server = Server::stepped();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let id = client.ask_run(&model, &[1], None);
    server.executor.shutdown();
    let heard = client.heard();
    assert!(heard.iter().any(|(i, a)| *i == id && a.as_ref().is_err_and(|e| e.code == ErrorCode::ShuttingDown)));
    assert!(client.peer.is_closed(), "goodbye was said");
    let mut late = server.connect();
    assert_eq!(late.fails(Request::Open { quota: 0, lease_ms: 0 }), ErrorCode::ShuttingDown);
}

/// A token was taken back, and its connections ended: the session kept its memory, and what it ran went on, until its lease was over.
#[test]
fn a_session_whose_token_was_taken_back_ends_with_all_that_it_has() {
    let [alice, bob] = ["alice", "bob"].map(|name| Arc::new(Token::draw(name).unwrap()));
    let both = Tokens::new([(*alice).clone(), (*bob).clone()]);
    let guard = Arc::new(Guard::with_tokens(both));
    let mut server = Server::with(1, 64 << 20, |config| config.settings.guard = guard.clone());
    let (bytes, held) = (noise(5000, 1), |server: &Server| server.counter("genie_session_bytes"));
    let (hers, connected, here) = {
        let mut away = server.client_of(&alice);
        away.put(&bytes);
        away.break_off();
        let mut there = server.client_of(&alice);
        there.put(&bytes);
        let mut his = server.client_of(&bob);
        his.put(&bytes);
        (away.opened.unwrap(), there.peer.clone(), his.peer.clone())
    };
    server.pass(Duration::from_millis(10));
    assert_eq!(held(&server), 15_000);
    guard.set_tokens(Tokens::new([(*bob).clone()]));
    server.pass(Duration::from_millis(10));
    assert_eq!(held(&server), 5000, "bob's alone");
    assert!(connected.is_closed() && !here.is_closed());
    let mut again = server.connect();
    let resume = Request::Resume { token: hers.token, epoch: hers.epoch, unanswered: 1 };
    assert_eq!(again.fails(resume), ErrorCode::SessionGone);
    // A request that was under way opens one more for her; it ends by itself.
    server.client_of(&alice).put(&bytes);
    server.pass(Duration::from_millis(10));
    assert_eq!(held(&server), 5000);
}
