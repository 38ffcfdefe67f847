//! KV caches and generate.

use genie_graph::Phase;
use genie_transport::connection::Service;
use genie_transport::wire::{Arguments, Effect, ErrorCode, Finish, Handle, PutTarget, Request, TensorSpec};

use crate::client::{Client, Model, Server, Told, tensor};
use crate::fake::{continuation, next_token};

fn generate<'a>(model: &Model, prompt: &'a [[u8; 4]], max_new: u32, stop: &'a [[u8; 4]]) -> Request<'a> {
    Request::Generate {
        prefill: model.binding,
        decode: model.binding,
        position: None,
        max_new,
        prompt,
        stop,
        arguments: Arguments::EMPTY,
    }
}

fn ids(tokens: &[i32]) -> Vec<[u8; 4]> {
    tokens.iter().map(|t| t.to_le_bytes()).collect()
}

/// All tokens of the replies to one request, and how it ended.
fn collect(client: &Client<'_>, id: u64) -> (Vec<i32>, Option<Finish>, u32) {
    let (mut all, mut end, mut at) = (Vec::new(), None, 0);
    for (of, told) in client.heard() {
        assert_eq!(of, id);
        let Ok(Told::Generated { position, tokens, finish }) = told else { panic!("{told:?}") };
        assert_eq!(end, None, "nothing follows the end");
        all.extend(tokens);
        (end, at) = (finish, position);
    }
    (all, end, at)
}

#[test]
fn generate_gives_what_single_steps_give() {
    let server = Server::inline();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let prompt = [3, 1, 4, 1, 5];
    let expected = continuation(&prompt, 70);
    let id = client.ask(generate(&model, &ids(&prompt), 70, &[]));
    assert_eq!(collect(&client, id), (expected.clone(), Some(Finish::Length), 5 + 69));

    let other = client.model_with(Phase::Decode, model.table, None);
    let (mut token, _) = client.run(&other, &prompt);
    let mut stepped = vec![token];
    for _ in 1..70 {
        token = client.run(&other, &[token]).0;
        stepped.push(token);
    }
    assert_eq!(stepped, expected);
}

#[test]
fn a_stop_token_ends_it_and_is_the_last() {
    let server = Server::inline();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let all = continuation(&[7, 7], 20);
    let stop = all[6];
    let first = all.iter().position(|&t| t == stop).unwrap();
    let id = client.ask(generate(&model, &ids(&[7, 7]), 20, &ids(&[stop])));
    assert_eq!(collect(&client, id), (all[..=first].to_vec(), Some(Finish::Stop), 2 + first as u32));
    let id = client.ask(generate(&model, &ids(&[1]), 0, &[]));
    assert_eq!(collect(&client, id), (vec![], Some(Finish::Length), 2 + first as u32 + 1), "only the prompt runs");
}

#[test]
fn a_long_prompt_runs_in_pieces() {
    let server = Server::with(1, 64 << 20, |config| config.prefill_tokens = 50);
    let mut client = server.client();
    let model = client.model(Phase::Prefill);
    let prompt: Vec<i32> = (0..170).map(|i| i % 32).collect();
    let id = client.ask(generate(&model, &ids(&prompt), 3, &[]));
    assert_eq!(collect(&client, id), (continuation(&prompt, 3), Some(Finish::Length), 172));
    assert_eq!(server.runs(), [(1, 50), (1, 50), (1, 50), (1, 20), (1, 1), (1, 1)]);
}

#[test]
fn a_cancelled_generate_stops_at_the_next_step() {
    let server = Server::stepped();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let id = client.ask(generate(&model, &ids(&[1]), 100, &[]));
    for _ in 0..3 {
        server.executor.step();
    }
    assert_eq!(collect(&client, id).0, continuation(&[1], 3));
    server.executor.cancel(&client.peer, id, server.now);
    server.run_all();
    let error = client.answer(id).unwrap_err();
    assert_eq!((error.code, error.effect), (ErrorCode::Cancelled, Effect::Partial));
    assert_eq!(server.runs().len(), 3);
    // The cache is free again, with what ran.
    let next = continuation(&[1], 3)[2];
    let id = client.ask_run(&model, &[next], Some(3));
    server.run_all();
    client.answer(id).unwrap();
}

#[test]
fn a_generate_goes_on_without_its_client_and_is_replayed() {
    let server = Server::stepped();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let (prompt, all) = (ids(&[2, 3]), continuation(&[2, 3], 6));
    let id = client.ask(generate(&model, &prompt, 6, &[]));
    server.executor.step();
    server.executor.step();
    assert_eq!(collect(&client, id).0, all[..2]);
    client.break_off();
    server.executor.step();
    server.executor.step();
    client.reconnect(id);
    client.ask_as(id, generate(&model, &prompt, 6, &[]));
    assert_eq!(collect(&client, id), (all[..4].to_vec(), None, 2 + 3), "from the beginning; positions tell which");
    server.run_all();
    assert_eq!(collect(&client, id), (all[4..].to_vec(), Some(Finish::Length), 2 + 5));
    client.reconnect(id);
    client.ask_as(id, generate(&model, &prompt, 6, &[]));
    assert_eq!(collect(&client, id), (all, Some(Finish::Length), 2 + 5), "the record has them all");
    assert_eq!(server.runs().len(), 6);
}

#[test]
fn tokens_that_come_between_resume_and_the_request_are_replayed_whole() {
    // A generate went on between Resume and the repeated request, and its tokens of that moment were streamed to the new
    // connection. The client, which is yet to ask there, took them for the first of the replay: they came twice, and where the
    // last token was among them those before it were lost.
    for (steps_between, more) in [(1, true), (4, false)] {
        let server = Server::stepped();
        let mut client = server.client();
        let model = client.model(Phase::Decode);
        let (prompt, all) = (ids(&[2, 3]), continuation(&[2, 3], 6));
        let id = client.ask(generate(&model, &prompt, 6, &[]));
        server.executor.step();
        server.executor.step();
        assert_eq!(collect(&client, id).0, all[..2]);
        client.reconnect(id);
        (0..steps_between).for_each(|_| assert!(server.executor.step()));
        assert_eq!(client.heard(), [], "it has not asked yet");
        client.ask_as(id, generate(&model, &prompt, 6, &[]));
        let (tokens, end, _) = collect(&client, id);
        assert_eq!((&tokens[..], end.is_none()), (&all[..2 + steps_between], more));
        server.run_all();
        assert_eq!(collect(&client, id).0, all[2 + steps_between..]);
        assert_eq!(server.runs().len(), 6);
    }
}

#[test]
fn a_generate_without_a_session_stops() {
    let mut server = Server::stepped();
    {
        let mut client = server.client();
        let model = client.model(Phase::Decode);
        client.ask(generate(&model, &ids(&[1]), 1000, &[]));
        server.executor.step();
        client.break_off();
    }
    server.pass(std::time::Duration::from_secs(2));
    server.run_all();
    assert!(server.runs().len() <= 2);
    assert_eq!(server.counter("genie_session_bytes"), 0);
}

#[test]
fn generates_are_checked() {
    let server = Server::inline();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let other = client.model_with(Phase::Decode, model.table, None);
    let (prompt, arguments) = (ids(&[1]), Arguments::EMPTY);
    let ask = |prefill, decode, max_new, position| Request::Generate {
        prefill,
        decode,
        position,
        max_new,
        prompt: &prompt,
        stop: &[],
        arguments,
    };
    let (a, b) = (model.binding, other.binding);
    assert_eq!(client.fails(ask(a, b, 1, None)), ErrorCode::BadArgument, "different caches");
    assert_eq!(client.fails(ask(a, a, u32::MAX, None)), ErrorCode::BadArgument);
    assert_eq!(client.fails(ask(a, model.table, 1, None)), ErrorCode::WrongType);
    let error = client.call(ask(a, a, 1, Some(5))).unwrap_err();
    assert_eq!((error.code, error.effect), (ErrorCode::StalePosition, Effect::None));
    let given = model.tokens(&[1]);
    let twice = Request::Generate {
        prefill: a,
        decode: a,
        position: None,
        max_new: 1,
        prompt: &prompt,
        stop: &[],
        arguments: Arguments::new(1, &given).unwrap(),
    };
    assert_eq!(client.fails(twice), ErrorCode::BadArgument);
}

#[test]
fn a_fork_goes_its_own_way() {
    let server = Server::inline();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let prefix: Vec<i32> = (0..100).map(|i| i % 30).collect();
    client.run(&model, &prefix);
    let Ok(Told::Tensor(fork, 0, spec)) = client.call(Request::CacheFork(model.cache)) else { panic!() };
    assert_eq!(spec.dims(), [2, 1, 2, 1, 64, 4]);
    let forked = client.model_with(Phase::Decode, model.table, Some(fork));
    let with = |t| [&prefix[..], &[t]].concat();
    assert_eq!(client.run(&model, &[1]), (next_token(&with(1)), 101));
    assert_eq!(client.run(&forked, &[2]), (next_token(&with(2)), 101));
    client.call(Request::CacheTruncate { cache: fork, length: 100 }).unwrap();
    assert_eq!(client.run(&forked, &[3]), (next_token(&with(3)), 101));
    client.call(Request::Free(model.cache)).unwrap();
    assert_eq!(client.run(&forked, &[4]).1, 102);
}

#[test]
fn a_caches_contents_travel() {
    let server = Server::inline();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let prefix: Vec<i32> = (0..130).map(|i| i % 30).collect();
    client.run(&model, &prefix);
    let bytes = client.get(model.cache);
    assert_eq!(bytes.len(), 3 * 64 * 2 * 4 * 4);
    let other = client.model_with(Phase::Decode, model.table, None);
    let spec = TensorSpec::new(genie_graph::DType::F32, &[3, 1, 2, 1, 64, 4]).unwrap();
    let target = PutTarget::Cache { handle: other.cache, length: 130 };
    let body = genie_transport::wire::PutBody::Inline(&bytes);
    let put = |target, spec, body| Request::Put(genie_transport::wire::PutRequest { target, spec, body });
    assert_eq!(tensor(client.call(put(target, spec.clone(), body))), other.cache);
    assert_eq!(client.run(&other, &[9]), (next_token(&[&prefix[..], &[9]].concat()), 131));
    for length in [0, 128, 193] {
        let target = PutTarget::Cache { handle: other.cache, length };
        assert_eq!(client.fails(put(target, spec.clone(), body)), ErrorCode::BadArgument, "{length}");
    }
    // The same in slices: the second slice comes first, and the first fills two blocks.
    let body = genie_transport::wire::PutBody::Sliced { slice_bytes: 4096, announce: false };
    let id = client.ask(put(PutTarget::Cache { handle: other.cache, length: 130 }, spec, body));
    client.send(id, &bytes, &[1]);
    assert_eq!(client.heard(), []);
    client.send(id, &bytes, &[0]);
    tensor(client.answer(id));
    assert_eq!(client.run(&other, &[9]), (next_token(&[&prefix[..], &[9]].concat()), 131));
}

#[test]
fn runs_of_one_cache_keep_their_order() {
    let server = Server::stepped();
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let a = client.ask_run(&model, &[1], Some(0));
    let b = client.ask_run(&model, &[2], Some(1));
    let fork = client.ask(Request::CacheFork(model.cache));
    let c = client.ask_run(&model, &[3], Some(2));
    assert_eq!(client.heard(), [], "everything waits for the first run");
    server.run_all();
    let order: Vec<u64> = client.heard().iter().map(|(id, told)| (*id, told.as_ref().unwrap()).0).collect();
    assert_eq!(order, [a, b, fork, c]);
    assert_eq!(server.runs(), [(1, 1); 3], "two runs of one cache are never one batch");
}

#[test]
fn a_decode_without_memory_changes_nothing() {
    // Room for the table and three blocks; the counting device needs the blocks twice while it appends.
    let server = Server::with(1, 8 * 4096, |_| {});
    let mut client = server.client();
    let model = client.model(Phase::Decode);
    let prefix: Vec<i32> = (0..64).map(|i| i % 30).collect();
    client.run(&model, &prefix);
    let filler = client.put(&vec![0; 5 * 4096]);
    let held = server.counter("genie_session_bytes");
    let id = client.ask_run(&model, &[1], Some(64));
    let error = client.answer(id).unwrap_err();
    assert_eq!((error.code, error.effect), (ErrorCode::OutOfMemory, Effect::None));
    assert_eq!(server.counter("genie_session_bytes"), held);
    client.call(Request::Free(filler)).unwrap();
    let id = client.ask_run(&model, &[1], Some(64));
    client.answer(id).unwrap();
}

#[test]
fn a_cache_over_the_quota_is_refused() {
    let server = Server::inline();
    let mut client = server.connect();
    client.open(4000);
    let model = client.model(Phase::Decode);
    let program = model.program;
    let create = |reserve| Request::CacheCreate { program, input: model.lm.cache, reserve };
    assert_eq!(client.fails(create(200)), ErrorCode::OverQuota);
    assert_eq!(client.fails(create(u32::MAX)), ErrorCode::OverQuota);
    let id = client.ask_run(&model, &vec![1; 65], None);
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::OverQuota);
    client.run(&model, &vec![1; 64]);
    let id = client.ask_run(&model, &[1], Some(64));
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::OverQuota, "the next block does not fit");
    let not_a_cache = Request::CacheCreate { program, input: model.lm.table, reserve: 0 };
    assert_eq!(client.fails(not_a_cache), ErrorCode::BadArgument);
    let none = Handle { index: 99, ..program };
    assert_eq!(client.fails(Request::CacheFork(none)), ErrorCode::NoSuchHandle);
}
