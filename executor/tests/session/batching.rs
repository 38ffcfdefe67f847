//! Which steps run together, and which first.

use std::sync::atomic::Ordering;

use genie_graph::Phase;
use genie_transport::wire::{Arguments, ErrorCode, Request};

use crate::client::{Client, Model, Server, Told, ran};
use crate::fake::{continuation, next_token};

fn sessions(server: &Server, n: usize, phase: Phase) -> Vec<(Client<'_>, Model)> {
    let of = |_| {
        let mut client = server.client();
        let model = client.model(phase);
        (client, model)
    };
    (0..n).map(of).collect()
}

#[test]
fn steps_of_different_sessions_run_as_one_batch() {
    let server = Server::stepped();
    let mut all = sessions(&server, 8, Phase::Decode);
    let asked: Vec<u64> = all.iter_mut().enumerate().map(|(i, (c, m))| c.ask_run(m, &[i as i32], None)).collect();
    server.run_all();
    assert_eq!(server.runs(), [(8, 1)]);
    for (i, ((client, _), id)) in all.iter_mut().zip(asked).enumerate() {
        assert_eq!(ran(client.answer(id)), (next_token(&[i as i32]), 1));
    }
    assert_eq!(server.counter("genie_batched_rows_total"), 8);
}

#[test]
fn a_batch_has_a_bound() {
    let server = Server::with(1, 64 << 20, |config| {
        config.mode = genie_executor::Mode::Stepped;
        config.max_batch = 3;
    });
    let mut all = sessions(&server, 7, Phase::Decode);
    for (client, model) in &mut all {
        client.ask_run(model, &[1], None);
    }
    server.run_all();
    assert_eq!(server.runs(), [(3, 1), (3, 1), (1, 1)]);
}

#[test]
fn generates_fall_into_step() {
    let server = Server::stepped();
    let mut all = sessions(&server, 4, Phase::Decode);
    let mut asked = Vec::new();
    for (i, (client, model)) in all.iter_mut().enumerate() {
        let prompt: Vec<[u8; 4]> = (0..=i as i32).map(i32::to_le_bytes).collect();
        asked.push(client.ask(Request::Generate {
            prefill: model.binding,
            decode: model.binding,
            position: None,
            max_new: 10,
            prompt: &prompt,
            stop: &[],
            arguments: Arguments::EMPTY,
        }));
        // They come one after another, while the others are at work already.
        server.executor.step();
    }
    server.run_all();
    let runs = server.runs();
    let steps = runs.iter().filter(|(rows, _)| *rows == 4).count();
    assert!(steps >= 5, "{runs:?}");
    for (i, ((client, _), id)) in all.iter_mut().zip(asked).enumerate() {
        let mut tokens = Vec::new();
        for (of, told) in client.heard() {
            assert_eq!(of, id);
            let Ok(Told::Generated { tokens: some, .. }) = told else { panic!("{told:?}") };
            tokens.extend(some);
        }
        let prompt: Vec<i32> = (0..=i as i32).collect();
        assert_eq!(tokens, continuation(&prompt, 10));
    }
}

#[test]
fn other_weights_or_longer_steps_do_not_join() {
    let server = Server::stepped();
    let mut a = server.client();
    let one = a.model(Phase::Decode);
    let mut b = server.client();
    let other_table = b.put_weight(&vec![0; 512]);
    let two = b.model_with(Phase::Decode, other_table, None);
    let mut c = server.client();
    let three = c.model(Phase::Decode);
    a.ask_run(&one, &[1], None);
    b.ask_run(&two, &[1], None);
    c.ask_run(&three, &[1, 2], None);
    server.run_all();
    assert_eq!(server.runs(), [(1, 1), (1, 2), (1, 1)], "two tokens are a prefill, which waits for one step");
}

#[test]
fn decode_goes_first_and_prefill_does_not_starve() {
    let server = Server::stepped();
    let mut long = server.client();
    let prefill = long.model(Phase::Prefill);
    let mut decoder = server.client();
    let decode = decoder.model(Phase::Decode);
    let prompt = [[1, 0, 0, 0]];
    decoder.ask(Request::Generate {
        prefill: decode.binding,
        decode: decode.binding,
        position: None,
        max_new: 100,
        prompt: &prompt,
        stop: &[],
        arguments: Arguments::EMPTY,
    });
    long.ask_run(&prefill, &[1; 20], None);
    long.ask_run(&prefill, &[1; 300], None);
    server.run_all();
    let runs = server.runs();
    let at = |tokens| runs.iter().position(|&(_, sequence)| sequence == tokens).unwrap();
    assert_eq!(at(20), 1, "a short prompt waits for one step");
    assert_eq!(at(300), at(20) + 1 + 300 / 32, "a long one for more, but not for all");
}

#[test]
fn a_session_with_many_steps_does_not_go_before_others() {
    // The queue was first come, first served: a session with a step on each of its many caches had them all run before anybody
    // else's next one.
    let server = Server::with(1, 64 << 20, |config| {
        config.mode = genie_executor::Mode::Stepped;
        config.max_batch = 1;
    });
    let mut greedy = server.client();
    let first = greedy.model(Phase::Decode);
    let mut models: Vec<Model> = (0..20).map(|_| greedy.model_with(Phase::Decode, first.table, None)).collect();
    models.push(first);
    let mut polite = server.client();
    let model = polite.model(Phase::Decode);
    models.iter().for_each(|model| _ = greedy.ask_run(model, &[1], None));
    server.executor.step();
    for token in [2, 3] {
        let id = polite.ask_run(&model, &[token], None);
        server.executor.step();
        server.executor.step();
        ran(polite.answer(id));
    }
    assert!(greedy.heard().len() >= 2, "they take turns");
    server.run_all();
}

#[test]
fn a_prompt_to_a_decode_program_waits_like_any_other() {
    // A long prompt went before other sessions' steps if only its program called itself decode.
    let server = Server::stepped();
    let mut long = server.client();
    let labelled = long.model(Phase::Decode);
    let mut decoder = server.client();
    let decode = decoder.model(Phase::Decode);
    let prompt = [[1, 0, 0, 0]];
    decoder.ask(Request::Generate {
        prefill: decode.binding,
        decode: decode.binding,
        position: None,
        max_new: 100,
        prompt: &prompt,
        stop: &[],
        arguments: Arguments::EMPTY,
    });
    long.ask_run(&labelled, &[1; 300], None);
    server.run_all();
    assert_eq!(server.runs().iter().position(|&(_, sequence)| sequence == 300), Some(300 / 32));
}

#[test]
fn one_bad_row_fails_alone() {
    let server = Server::stepped();
    *server.fakes[0].poison.lock().unwrap() = Some(13);
    let mut all = sessions(&server, 3, Phase::Decode);
    let asked: Vec<u64> = all.iter_mut().zip([1, 13, 2]).map(|((c, m), t)| c.ask_run(m, &[t], None)).collect();
    server.run_all();
    // Every row of such a batch used to run again alone: one session's bad steps cost all others theirs.
    assert_eq!(server.runs(), [(3, 1), (1, 1), (2, 1)], "the bad one alone, the others as a batch");
    let answers: Vec<_> = all.iter_mut().zip(asked).map(|((c, _), id)| c.answer(id)).collect();
    assert_eq!(answers[1].as_ref().unwrap_err().code, ErrorCode::BadArgument);
    assert_eq!(ran(answers[0].clone()), (next_token(&[1]), 1));
    assert_eq!(ran(answers[2].clone()), (next_token(&[2]), 1));
}

#[test]
fn a_device_that_panics_fails_the_request_only() {
    let server = Server::inline();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    server.fakes[0].panics.store(true, Ordering::Relaxed);
    let id = client.ask_run(&model, &[1], None);
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::DeviceFailed);
    server.fakes[0].panics.store(false, Ordering::Relaxed);
    assert_eq!(client.run(&model, &[1]), (next_token(&[1]), 1), "the cache is as it was");
}
