//! Runs on a token that an earlier run gives: asked for before that one was answered, or has begun.

use genie_executor::Mode;
use genie_graph::{DType, Phase};
use genie_transport::connection::Service;
use genie_transport::wire::{
    Argument, Arguments, BindEntry, Effect, ErrorCode, RemoteError, Request, write_argument, write_token_of,
};

use crate::client::{Client, Model, Server, Told, ran};
use crate::fake::{continuation, next_token};

/// A run on 3, and as many behind it as are asked for, each on the token of the one before; all ids.
fn chain(client: &mut Client<'_>, model: &Model, behind: u32) -> Vec<u64> {
    let mut ids = vec![client.ask_run(model, &[3], Some(0))];
    for position in 1..=behind {
        ids.push(client.ask_run_on(model, ids[ids.len() - 1], Some(position)));
    }
    ids
}

fn refused(error: &RemoteError) {
    assert_eq!((error.code, error.effect), (ErrorCode::BadArgument, Effect::None), "{error}");
}

#[test]
fn runs_go_on_from_one_another_without_a_reply_between() {
    let server = Server::stepped();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let ids = chain(&mut client, &model, 5);
    assert_eq!(client.heard(), [], "nothing has run");
    server.run_all();
    let heard = client.heard();
    let expected = continuation(&[3], 6);
    for (i, (id, answer)) in heard.into_iter().enumerate() {
        assert_eq!((id, ran(answer)), (ids[i], (expected[i], 1 + i as u32)));
    }
    assert_eq!(server.runs(), [(1, 1); 6]);
    let cache = client.get(model.cache);
    // Answered long ago, and still the last.
    let id = client.ask_run_on(&model, ids[5], None);
    server.run_all();
    assert_eq!(ran(client.answer(id)), (continuation(&[3], 7)[6], 7));
    // One by one.
    let other = client.model_with(Phase::Decode, model.table, None);
    let mut token = 3;
    for _ in 0..6 {
        let id = client.ask_run(&other, &[token], None);
        server.run_all();
        token = ran(client.answer(id)).0;
    }
    assert_eq!(client.get(other.cache), cache, "the caches have the same bytes");
}

#[test]
fn two_sessions_ahead_run_as_one_batch() {
    let server = Server::stepped();
    let (mut a, mut b) = (server.client(), server.client());
    let models = (a.model(Phase::Decode), b.model(Phase::Decode));
    let ids = (chain(&mut a, &models.0, 3), chain(&mut b, &models.1, 3));
    server.run_all();
    for (client, ids) in [(&a, &ids.0), (&b, &ids.1)] {
        let heard = client.heard();
        assert_eq!(heard.iter().map(|(id, _)| *id).collect::<Vec<_>>(), *ids);
        let tokens: Vec<i32> = heard.into_iter().map(|(_, answer)| ran(answer).0).collect();
        assert_eq!(tokens, continuation(&[3], 4));
    }
    assert_eq!(server.runs(), [(2, 1); 4]);
}

#[test]
fn what_runs_on_a_run_that_failed_fails_and_changes_nothing() {
    let server = Server::stepped();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    *server.fakes[0].poison.lock().unwrap() = Some(next_token(&[3]));
    let ids = chain(&mut client, &model, 3);
    server.run_all();
    let heard = client.heard();
    assert_eq!(ran(heard[0].1.clone()), (next_token(&[3]), 1));
    assert_eq!((heard[1].0, heard[1].1.as_ref().unwrap_err().code), (ids[1], ErrorCode::BadArgument));
    assert!(heard[1].1.as_ref().unwrap_err().message.contains("poisoned"), "the run's own error");
    for (id, answer) in &heard[2..] {
        let error = answer.as_ref().unwrap_err();
        refused(error);
        assert!(error.message.contains(&format!("no token of request {}", id - 1)), "{error}");
    }
    // The cache is as the first left it, and so is its token.
    *server.fakes[0].poison.lock().unwrap() = None;
    let id = client.ask_run_on(&model, ids[0], Some(1));
    server.run_all();
    assert_eq!(ran(client.answer(id)), (continuation(&[3], 2)[1], 2));
}

#[test]
fn a_cancelled_run_takes_those_behind_it_along() {
    let server = Server::stepped();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let ids = chain(&mut client, &model, 3);
    server.executor.cancel(&client.peer, ids[1], server.now);
    server.run_all();
    let heard = client.heard();
    assert_eq!(ran(heard[0].1.clone()), (next_token(&[3]), 1));
    assert_eq!(heard[1].1.as_ref().unwrap_err().code, ErrorCode::Cancelled);
    heard[2..].iter().for_each(|(_, answer)| refused(answer.as_ref().unwrap_err()));
    assert_eq!(heard.len(), 4);
    assert_eq!(server.runs(), [(1, 1)]);
}

#[test]
fn a_token_that_was_never_given_is_refused() {
    let server = Server::inline();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let other = client.model_with(Phase::Decode, model.table, None);
    let first = client.ask_run(&model, &[3], None);
    client.answer(first).unwrap();
    // Of no request, of itself, of one to come, of one that is no run, of one in another cache.
    for request in [u64::MAX, client.next, client.next + 1, first - 1, 1] {
        let id = client.ask_run_on(&model, request, None);
        refused(&client.answer(id).unwrap_err());
    }
    let id = client.ask_run_on(&other, first, None);
    refused(&client.answer(id).unwrap_err());
    // Of one that kept its token to itself.
    let bytes = model.tokens(&[4]);
    let arguments = Arguments::new(1, &bytes).unwrap();
    let silent = client.ask(Request::Run { binding: model.binding, position: None, wanted: 2, keep: 0, arguments });
    client.answer(silent).unwrap();
    for request in [silent, first] {
        let id = client.ask_run_on(&model, request, None);
        refused(&client.answer(id).unwrap_err());
    }
    // A copy of the cache has its tokens, but no run of its own.
    let (last, _) = (client.ask_run(&model, &[5], None), client.heard());
    let Ok(Told::Tensor(fork, ..)) = client.call(Request::CacheFork(model.cache)) else { panic!() };
    let forked = client.model_with(Phase::Decode, model.table, Some(fork));
    let id = client.ask_run_on(&forked, last, None);
    refused(&client.answer(id).unwrap_err());
    let id = client.ask_run_on(&model, last, None);
    let fourth = next_token(&[3, 4, 5]);
    assert_eq!(ran(client.answer(id)), (next_token(&[3, 4, 5, fourth]), 4));
}

#[test]
fn another_sessions_token_is_out_of_reach() {
    let server = Server::inline();
    let (mut a, mut b) = (server.client(), server.client());
    let models = (a.model(Phase::Decode), b.model(Phase::Decode));
    let id = a.ask_run(&models.0, &[3], None);
    a.answer(id).unwrap();
    // The same number names b's own request, or none.
    let of_b = b.ask_run_on(&models.1, id, None);
    refused(&b.answer(of_b).unwrap_err());
}

#[test]
fn a_token_goes_nowhere_but_to_the_tokens_of_a_run() {
    let server = Server::inline();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let first = client.ask_run(&model, &[3], None);
    client.answer(first).unwrap();
    let token = model.token_of(first);
    let one = Arguments::new(1, &token).unwrap();
    let bound = vec![
        BindEntry { input: model.lm.table, handle: model.table },
        BindEntry { input: model.lm.cache, handle: model.cache },
    ];
    let bind = Request::Bind { program: model.program, bound, weights: Vec::new(), arguments: one };
    assert_eq!(client.fails(bind), ErrorCode::BadArgument);
    let generate = Request::Generate {
        prefill: model.binding,
        decode: model.binding,
        position: None,
        max_new: 1,
        prompt: &[[1, 0, 0, 0]],
        stop: &[],
        arguments: one,
    };
    assert_eq!(client.fails(generate), ErrorCode::BadArgument);
    let run = |bytes, count| Request::Run {
        binding: model.binding,
        position: None,
        wanted: 1,
        keep: 0,
        arguments: Arguments::new(count, bytes).unwrap(),
    };
    let mut elsewhere = Vec::new();
    write_token_of(&mut elsewhere, model.lm.int, first);
    assert_eq!(client.fails(run(&elsewhere, 1)), ErrorCode::BadArgument, "it was fixed when it was bound");
    let twice = [&token[..], &token[..]].concat();
    assert_eq!(client.fails(run(&twice, 2)), ErrorCode::BadArgument);
    let mut both = token.clone();
    write_argument(&mut both, model.lm.tokens, DType::I32, &[1, 1], &[0; 4]).unwrap();
    assert_eq!(client.fails(run(&both, 2)), ErrorCode::BadArgument);
    assert!(matches!(one.iter().next(), Some(Argument::TokenOf { request, .. }) if request == first));
    assert_eq!(client.run(&model, &[4]).1, 2, "nothing of that ran");
}

#[test]
fn runs_under_way_when_the_connection_breaks_run_once() {
    for steps_between in 0..4 {
        let server = Server::stepped();
        let mut client = server.client();
        let model = client.model(Phase::Decode);
        let ids = chain(&mut client, &model, 3);
        (0..steps_between).for_each(|_| _ = server.executor.step());
        // Whatever was answered is lost on the way.
        client.reconnect(ids[0]);
        let first = model.tokens(&[3]);
        for (position, &id) in ids.iter().enumerate() {
            let bytes = if position == 0 { first.clone() } else { model.token_of(ids[position - 1]) };
            let arguments = Arguments::new(1, &bytes).unwrap();
            let position = Some(position as u32);
            client.ask_as(id, Request::Run { binding: model.binding, position, wanted: 1, keep: 0, arguments });
        }
        server.run_all();
        let mut heard = client.heard();
        heard.sort_by_key(|(id, _)| *id);
        let tokens: Vec<_> = heard.into_iter().map(|(_, answer)| ran(answer).0).collect();
        assert_eq!(tokens, continuation(&[3], 4), "after {steps_between} steps");
        assert_eq!(server.runs().len(), 4);
    }
}

#[test]
fn a_long_line_of_them_is_bounded_and_fails_without_recursion() {
    // Each of them fails as soon as it has the cache, and lets the next have it.
    let work = || {
        let server = Server::with(1, 64 << 20, |config| {
            config.mode = Mode::Stepped;
            config.settings.credits = 2500;
        });
        let mut client = server.client();
        let model = client.model(Phase::Decode);
        *server.fakes[0].poison.lock().unwrap() = Some(3);
        let ids = chain(&mut client, &model, 4999);
        let one_more = client.ask_run_on(&model, ids[4999], None);
        let refused_at_once = client.answer(one_more).unwrap_err();
        assert_eq!((refused_at_once.code, refused_at_once.effect), (ErrorCode::NoCredit, Effect::None));
        server.run_all();
        let heard = client.heard();
        assert_eq!(heard.len(), ids.len());
        heard[1..].iter().for_each(|(_, answer)| refused(answer.as_ref().unwrap_err()));
        assert_eq!(server.runs(), [(1, 1)]);
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(work).unwrap().join().unwrap();
}
