//! Quotas, pressure, eviction, and running out.

use genie_transport::wire::{ContentHash, ErrorCode, Offered, Request};

use crate::client::{Server, Told, bytes_spec, noise, private, put_request, sliced_put, tensor};

#[test]
fn a_session_over_its_quota_is_refused_and_others_go_on() {
    let server = Server::inline();
    let mut greedy = server.connect();
    greedy.open(10_000);
    let first = greedy.put(&noise(6000, 1));
    assert_eq!(greedy.fails(put_request(private(None, None), &noise(6000, 2))), ErrorCode::OverQuota);
    let id = greedy.ask(sliced_put(private(None, None), 6000, false));
    assert_eq!(greedy.answer(id).unwrap_err().code, ErrorCode::OverQuota);
    let mut other = server.client();
    other.put(&noise(60_000, 3));
    greedy.call(Request::Free(first)).unwrap();
    greedy.put(&noise(6000, 2));
    assert_eq!(greedy.fails(Request::Free(first)), ErrorCode::StaleHandle);
}

#[test]
fn an_upload_in_progress_counts() {
    let server = Server::inline();
    let mut client = server.connect();
    client.open(10_000);
    client.ask(sliced_put(private(None, None), 8000, false));
    assert_eq!(client.fails(put_request(private(None, None), &noise(6000, 2))), ErrorCode::OverQuota);
}

#[test]
fn what_is_on_its_way_to_the_client_counts_until_it_is_sent() {
    // A sliced get put the bare memory into the connection's queue. Freed, or replaced by a put, it lived on there uncharged
    // until the client read it: one that never read held any amount of memory.
    let server = Server::inline();
    let mut client = server.connect();
    client.open(10_000);
    let get = |client: &mut crate::client::Client<'_>, handle, offset| {
        let id = client.ask(Request::Get { handle, offset, length: 0, sliced: Some(4096) });
        assert_eq!(client.answer(id), Ok(Told::Got(vec![])), "its slices wait for a lane");
        id
    };
    let handle = client.put(&noise(6000, 1));
    let id = get(&mut client, handle, 5000);
    client.call(Request::Free(handle)).unwrap();
    assert_eq!(server.counter("genie_session_bytes"), 6000);
    assert_eq!(client.fails(put_request(private(None, None), &noise(6000, 2))), ErrorCode::OverQuota);
    client.peer.cancel_sliced(id);
    assert_eq!(server.counter("genie_session_bytes"), 0);

    let handle = client.put(&noise(6000, 2));
    let id = get(&mut client, handle, 0);
    let range = || put_request(genie_transport::wire::PutTarget::Range { handle, offset: 0 }, &[7]);
    assert_eq!(client.fails(range()), ErrorCode::OverQuota, "old and new together");
    client.peer.cancel_sliced(id);
    client.call(range()).unwrap();
    client.call(Request::Free(handle)).unwrap();

    let model = client.model(genie_graph::Phase::Decode);
    client.run(&model, &[1; 65]);
    let held = server.counter("genie_session_bytes");
    let id = get(&mut client, model.cache, 2048);
    assert_eq!(server.counter("genie_session_bytes"), held + 2048, "one of the cache's two blocks");
    client.call(Request::CacheTruncate { cache: model.cache, length: 0 }).unwrap();
    assert_eq!(server.counter("genie_session_bytes"), held - 2048);
    client.peer.cancel_sliced(id);
    assert_eq!(server.counter("genie_session_bytes"), held - 2 * 2048);
}

#[test]
fn what_a_request_takes_on_the_host_counts() {
    // Arguments of queued runs, copies of bound residents, prompts and outputs lived in host memory that no quota saw: some
    // thousand requests of a few megabytes each, and the server was out of memory.
    let server = Server::with(1, 64 << 20, |config| config.mode = genie_executor::Mode::Stepped);
    let mut client = server.connect();
    client.open(1 << 20);
    let model = client.model(genie_graph::Phase::Decode);
    let held = server.counter("genie_session_bytes");
    let id = client.ask_run(&model, &[1], Some(9));
    assert_eq!(server.counter("genie_session_bytes"), held, "a step's few bytes cost nothing");
    server.run_all();
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::StalePosition);
    let prompt = vec![[0; 4]; 50_000];
    let generate = |max_new| Request::Generate {
        prefill: model.binding,
        decode: model.binding,
        position: Some(9),
        max_new,
        prompt: &prompt,
        stop: &[],
        arguments: genie_transport::wire::Arguments::EMPTY,
    };
    assert_eq!(client.fails(generate(300_000)), ErrorCode::OverQuota);
    assert_eq!(client.fails(generate(1)), ErrorCode::StalePosition);
    let tokens = vec![1; 300_000];
    let id = client.ask_run(&model, &tokens, None);
    assert_eq!(client.answer(id).unwrap_err().code, ErrorCode::OverQuota);
    assert_eq!(server.counter("genie_session_bytes"), held, "what has ended costs nothing");
}

#[test]
fn shared_weights_count_for_each_session() {
    let server = Server::inline();
    let bytes = noise(8000, 1);
    server.client().put_weight(&bytes);
    let mut poor = server.connect();
    poor.open(5000);
    let offer = Request::Offer { device: 0, entries: vec![(ContentHash::of(&bytes), bytes_spec(8000))] };
    assert_eq!(poor.fails(offer), ErrorCode::OverQuota);
}

#[test]
fn weights_nobody_holds_make_room_oldest_use_first() {
    let server = Server::with(1, 64 << 10, |_| {});
    let mut client = server.client();
    let weights: Vec<Vec<u8>> = (0..3).map(|i| noise(16 << 10, i)).collect();
    let handles: Vec<_> = weights.iter().map(|w| client.put_weight(w)).collect();
    client.call(Request::Free(handles[0])).unwrap();
    client.call(Request::Free(handles[1])).unwrap();
    let offer = |w: &Vec<u8>| Request::Offer { device: 0, entries: vec![(ContentHash::of(w), bytes_spec(w.len()))] };
    // 0 is used again, and let go again: 1 is now the oldest.
    let Ok(Told::Offered(offered)) = client.call(offer(&weights[0])) else { panic!() };
    let [Offered::Present(again)] = offered[..] else { panic!() };
    client.call(Request::Free(again)).unwrap();
    client.put(&noise(32 << 10, 9));
    assert_eq!(client.call(offer(&weights[1])), Ok(Told::Offered(vec![Offered::Absent])));
    let Ok(Told::Offered(offered)) = client.call(offer(&weights[0])) else { panic!() };
    assert!(matches!(offered[..], [Offered::Present(_)]));
    assert_eq!(client.get(handles[2]), weights[2], "what is held is never evicted");
    assert_eq!(server.counter("genie_evictions_total"), 1);
}

#[test]
fn out_of_memory_changes_nothing() {
    let server = Server::with(1, 64 << 10, |_| {});
    let mut client = server.client();
    let kept = client.put(&noise(16 << 10, 1));
    let idle = noise(16 << 10, 2);
    let handle = client.put_weight(&idle);
    client.call(Request::Free(handle)).unwrap();
    let free = client.devices()[0].1;
    let held = server.counter("genie_session_bytes");
    let too_much = noise(60 << 10, 3);
    let mut other = server.connect();
    other.open(0);
    assert_eq!(other.fails(put_request(private(None, None), &too_much[..56 << 10])), ErrorCode::OutOfMemory);
    let id = other.ask(sliced_put(private(None, None), 56 << 10, false));
    assert_eq!(other.answer(id).unwrap_err().code, ErrorCode::OutOfMemory);
    assert_eq!(client.devices()[0].1, free, "nothing was evicted for a wish that cannot be granted");
    assert_eq!(server.counter("genie_session_bytes"), held);
    assert_eq!(client.get(kept), noise(16 << 10, 1));
    other.put(&noise(40 << 10, 3));
    let offer = Request::Offer { device: 0, entries: vec![(ContentHash::of(&idle), bytes_spec(idle.len()))] };
    assert_eq!(client.call(offer), Ok(Told::Offered(vec![Offered::Absent])), "evicted where it helps");
}

#[test]
fn handles_are_bounded() {
    let server = Server::with(1, 1 << 20, |config| config.max_handles = 3);
    let mut client = server.client();
    let first = client.put(&[1]);
    client.put(&[2]);
    client.put(&[3]);
    assert_eq!(client.fails(put_request(private(None, None), &[4])), ErrorCode::Busy);
    client.call(Request::Free(first)).unwrap();
    tensor(client.call(put_request(private(None, None), &[4])));
}
