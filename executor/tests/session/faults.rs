//! The rows of the fault table that are this layer's: each ends in a clear error, and nobody else notices.

use genie_graph::{DType, Phase};
use genie_transport::wire::{Arguments, ErrorCode, Handle, PutTarget, Request, TensorSpec, write_resident};
use proptest::prelude::*;

use crate::client::{Server, code, noise, private, put_request, ran};
use crate::graphs::{lm, relu};

#[test]
fn a_handle_of_another_session_names_nothing() {
    let server = Server::inline();
    let (mut owner, mut thief) = (server.client(), server.client());
    for i in 0..5 {
        owner.put(&[i]);
    }
    let handle = owner.put(&noise(100, 1));
    assert_eq!(thief.fails(Request::Get { handle, offset: 0, length: 0, sliced: None }), ErrorCode::NoSuchHandle);
    assert_eq!(thief.fails(Request::Free(handle)), ErrorCode::NoSuchHandle);
    assert_eq!(owner.get(handle), noise(100, 1));
}

#[test]
fn a_handle_of_another_session_does_not_fit_by_chance() {
    // Every session's handles began at 0.1: a client that mixed up two sessions, or kept handles over the end of its lease,
    // freed and read what happened to have the same place in the other.
    let server = Server::inline();
    let (mut one, mut two) = (server.client(), server.client());
    let handle = one.put(&[1]);
    let other = two.put(&[2]);
    assert_eq!(handle.index, other.index);
    assert_eq!(two.fails(Request::Free(handle)), ErrorCode::NoSuchHandle);
    assert_eq!(one.fails(Request::Free(other)), ErrorCode::NoSuchHandle);
    one.call(Request::Close).unwrap();
    one.open(0);
    let anew = one.put(&[3]);
    assert_eq!(one.fails(Request::Free(handle)), ErrorCode::NoSuchHandle);
    assert_eq!((one.get(anew), two.get(other)), (vec![3], vec![2]));
}

#[test]
fn stale_handles_are_told_apart() {
    let server = Server::inline();
    let mut client = server.client();
    let handle = client.put(&[1]);
    client.call(Request::Free(handle)).unwrap();
    let again = client.put(&[2]);
    assert_eq!(again.index, handle.index);
    let get = |handle| Request::Get { handle, offset: 0, length: 0, sliced: None };
    assert_eq!(client.fails(get(handle)), ErrorCode::StaleHandle);
    assert_eq!(client.fails(get(Handle { epoch: handle.epoch + 1, ..again })), ErrorCode::EpochGone);
    assert_eq!(client.fails(get(Handle { generation: again.generation + 1, ..again })), ErrorCode::NoSuchHandle);
    assert_eq!(client.get(again), [2]);
}

#[test]
fn handles_of_the_wrong_type_are_refused() {
    let server = Server::inline();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let get = |handle| Request::Get { handle, offset: 0, length: 0, sliced: None };
    let run = |binding| Request::Run { binding, position: None, wanted: 0, keep: 0, arguments: Arguments::EMPTY };
    assert_eq!(client.fails(get(model.program)), ErrorCode::WrongType);
    assert_eq!(client.fails(get(model.binding)), ErrorCode::WrongType);
    assert_eq!(client.fails(run(model.cache)), ErrorCode::WrongType);
    assert_eq!(client.fails(run(model.program)), ErrorCode::WrongType);
    assert_eq!(client.fails(Request::CacheFork(model.table)), ErrorCode::WrongType);
    assert_eq!(client.fails(Request::Copy { handle: model.cache, device: 0 }), ErrorCode::WrongType);
    let range = PutTarget::Range { handle: model.cache, offset: 0 };
    assert_eq!(client.fails(put_request(range, &[1])), ErrorCode::WrongType);
}

proptest! {
    /// Whatever is sent as a graph: an error or a program, and the session goes on.
    #[test]
    fn arbitrary_graphs_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let server = Server::inline();
        let mut client = server.client();
        let mut mutated = if bytes.len() % 2 == 0 { relu().encode() } else { lm(Phase::Decode).graph.encode() };
        for (at, value) in flips {
            let at = at.index(mutated.len());
            mutated[at] = value;
        }
        for graph in [&bytes, &mutated] {
            let id = client.ask(Request::Define { device: 0, graph });
            if let answer @ Err(_) = client.answer(id) {
                prop_assert!(matches!(code(&answer), ErrorCode::BadGraph | ErrorCode::UnsupportedOp));
            }
        }
        let handle = client.put(&[1]);
        prop_assert_eq!(client.get(handle), [1]);
    }

    /// Forged handles in every place: always an error, never a panic, and the model still runs.
    #[test]
    fn forged_handles_do_no_harm(index in 0..12_u32, generation in 0..3_u32, which in 0..10_u8, length: u32) {
        let server = Server::inline();
        let mut client = server.client();
        let model = client.model(Phase::Decode);
        let generation = model.table.generation + generation - 1;
        let handle = Handle { index, generation, epoch: crate::client::EPOCH };
        let prompt = [[0; 4]];
        let mut named = Vec::new();
        write_resident(&mut named, model.lm.tokens, &TensorSpec::new(DType::I32, &[1, 1]).unwrap(), handle).unwrap();
        let named = Arguments::new(1, &named).unwrap();
        let request = match which {
            0 => Request::Get { handle, offset: 0, length: u64::from(length), sliced: None },
            1 => Request::Run { binding: handle, position: None, wanted: length.into(), keep: 0, arguments: Arguments::EMPTY },
            2 => Request::CacheTruncate { cache: handle, length },
            3 => Request::CacheCreate { program: handle, input: length, reserve: length },
            4 => Request::Bind { program: handle, bound: vec![], weights: Vec::new(), arguments: Arguments::EMPTY },
            5 => Request::LookupHandle(handle),
            6 => put_request(PutTarget::Range { handle, offset: u64::from(length) }, &[1]),
            7 => put_request(PutTarget::Cache { handle, length }, &[1]),
            8 => Request::Run { binding: model.binding, position: None, wanted: 1, keep: 0, arguments: named },
            _ => Request::Generate {
                prefill: handle, decode: handle, position: None, max_new: length % 5, prompt: &prompt, stop: &[],
                arguments: Arguments::EMPTY,
            },
        };
        let id = client.ask(request);
        let heard = client.heard();
        prop_assert!(!heard.is_empty() && heard.iter().all(|(of, _)| *of == id));
        let id = client.ask_run(&model, &[3], None);
        ran(client.answer(id));
    }
}

#[test]
fn errors_of_one_session_are_not_felt_by_another() {
    let server = Server::inline();
    let mut good = server.client();
    let kept = good.put(&noise(1000, 1));
    let mut bad = server.client();
    for i in 0..50_u32 {
        let handle = Handle { index: i, generation: i, epoch: u64::from(i) };
        bad.call(Request::Free(handle)).unwrap_err();
        bad.call(put_request(PutTarget::Range { handle, offset: u64::MAX }, &[1])).unwrap_err();
        bad.call(Request::Define { device: i as u16, graph: &[0; 9] }).unwrap_err();
    }
    assert_eq!(
        bad.fails(put_request(private(Some(genie_transport::wire::ContentHash([0; 32])), None), &[1])),
        ErrorCode::HashMismatch
    );
    assert_eq!(good.get(kept), noise(1000, 1));
}
