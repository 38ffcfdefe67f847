//! Exactly once: a request that is sent again is answered again, and done once.

use genie_graph::Phase;
use genie_transport::wire::{Arguments, ErrorCode, Handle, Request};

use crate::client::{Server, noise, private, put_request, ran, tensor};
use crate::fake::next_token;

#[test]
fn a_repeated_put_gives_the_same_handle() {
    let server = Server::inline();
    let mut client = server.client();
    let bytes = noise(100, 1);
    let id = client.ask(put_request(private(None, None), &bytes));
    let first = tensor(client.answer(id));
    let held = server.counter("genie_session_bytes");
    client.reconnect(id);
    client.ask_as(id, put_request(private(None, None), &bytes));
    assert_eq!(tensor(client.answer(id)), first);
    assert_eq!(server.counter("genie_session_bytes"), held);
}

#[test]
fn a_repeated_run_runs_once() {
    let server = Server::stepped();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let bytes = model.tokens(&[5]);
    let run = || Request::Run {
        binding: model.binding,
        position: Some(0),
        wanted: 1,
        keep: 0,
        arguments: Arguments::new(1, &bytes).unwrap(),
    };
    let id = client.ask(run());
    client.reconnect(id);
    client.ask_as(id, run());
    assert_eq!(client.heard(), [], "it joins the one in progress");
    server.run_all();
    let (token, position) = ran(client.answer(id));
    assert_eq!((token, position), (next_token(&[5]), 1));
    client.reconnect(id);
    client.ask_as(id, run());
    assert_eq!(ran(client.answer(id)), (token, position), "answered again");
    assert_eq!(server.runs().len(), 1);
}

#[test]
fn a_failure_is_remembered_too() {
    let server = Server::inline();
    let mut client = server.client();
    let handle = client.put(&[1]);
    client.call(Request::Free(handle)).unwrap();
    let id = client.ask(Request::Free(handle));
    let first = client.answer(id).unwrap_err();
    assert_eq!(first.code, ErrorCode::StaleHandle);
    client.ask_as(id, Request::Free(handle));
    assert_eq!(client.answer(id).unwrap_err(), first);
}

#[test]
fn an_id_below_the_window_is_forgotten_and_does_nothing() {
    let server = Server::with(1, 1 << 20, |config| config.settings.credits = 2);
    let mut client = server.client();
    let handles: Vec<Handle> = (0..6).map(|i| client.put(&[i])).collect();
    let oldest = client.next - 6;
    client.ask_as(oldest, Request::Free(handles[5]));
    assert_eq!(client.answer(oldest).unwrap_err().code, ErrorCode::Forgotten);
    assert_eq!(client.get(handles[5]), [5]);
}

#[test]
fn what_the_client_has_need_not_be_kept() {
    let server = Server::inline();
    let mut client = server.client();
    let id = client.ask(put_request(private(None, None), &[1]));
    tensor(client.answer(id));
    client.reconnect(id + 1);
    client.ask_as(id, put_request(private(None, None), &[1]));
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::Forgotten);
}

#[test]
fn an_id_cannot_be_used_for_something_else() {
    let server = Server::inline();
    let mut client = server.client();
    let id = client.ask(put_request(private(None, None), &[1]));
    let handle = tensor(client.answer(id));
    client.ask_as(id, Request::Free(handle));
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::Malformed);
    assert_eq!(client.get(handle), [1]);
}

#[test]
fn replies_go_to_the_connection_that_has_asked() {
    // A reply used to go to a new connection before it had asked: the client did not know the request there yet, and the
    // connection counted a request as done that it had never counted in.
    let server = Server::stepped();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let id = client.ask_run(&model, &[9], None);
    client.reconnect(id);
    server.run_all();
    assert_eq!(client.heard(), [], "not before it asks");
    let bytes = model.tokens(&[9]);
    let arguments = Arguments::new(1, &bytes).unwrap();
    client.ask_as(id, Request::Run { binding: model.binding, position: None, wanted: 1, keep: 0, arguments });
    assert_eq!(ran(client.answer(id)), (next_token(&[9]), 1));
    assert_eq!(server.runs().len(), 1);
}
