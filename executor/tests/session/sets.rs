//! Weights named together, by the hash of their list, and bound together.

use genie_graph::{DType, GraphBuilder, InputRole, Op, Phase, TensorType};
use genie_transport::wire::{
    Arguments, BindEntry, ContentHash, ErrorCode, Handle, HandleSpan, Offered, PutBody, PutRequest, Request, TensorSpec,
};

use crate::client::{Client, EPOCH, Server, Told, bytes_spec, noise, private, tensor};
use crate::graphs::{lm, table_bytes};

type Entries = Vec<(ContentHash, TensorSpec)>;

fn contents(first: u64) -> Vec<Vec<u8>> {
    (first..first + 4).map(|seed| noise(1000 + seed as usize, seed)).collect()
}

fn entries(contents: &[Vec<u8>]) -> Entries {
    contents.iter().map(|bytes| (ContentHash::of(bytes), bytes_spec(bytes.len()))).collect()
}

fn singly(client: &mut Client<'_>, entries: &Entries) -> Vec<Offered> {
    match client.call(Request::Offer { device: 0, entries: entries.clone() }) {
        Ok(Told::Offered(offered)) => offered,
        other => panic!("{other:?}"),
    }
}

/// Handles on all of a set, or none.
fn as_set(client: &mut Client<'_>, entries: &Entries) -> Vec<Handle> {
    match client.call(Request::OfferSet { device: 0, hash: ContentHash::of_set(entries) }) {
        Ok(Told::OfferedSet(handles)) => handles,
        other => panic!("{other:?}"),
    }
}

fn put_all(client: &mut Client<'_>, contents: &[Vec<u8>]) -> Vec<Handle> {
    contents.iter().map(|bytes| client.put_weight(bytes)).collect()
}

/// A server that was offered this set, and has its weights; nobody holds them.
fn taught(contents: &[Vec<u8>]) -> Server {
    let server = Server::inline();
    let mut first = server.client();
    let all = entries(contents);
    assert!(as_set(&mut first, &all).is_empty(), "nobody has offered it");
    assert_eq!(singly(&mut first, &all), vec![Offered::Absent; contents.len()]);
    assert!(as_set(&mut first, &all).is_empty(), "it is known, but not here");
    put_all(&mut first, contents);
    first.call(Request::Close).unwrap();
    server
}

#[test]
fn the_second_client_names_all_weights_by_one_hash() {
    let contents = contents(1);
    let server = taught(&contents);
    let mut second = server.client();
    let handles = as_set(&mut second, &entries(&contents));
    assert_eq!(handles.len(), contents.len());
    for (handle, bytes) in handles.iter().zip(&contents) {
        assert_eq!(second.get(*handle), *bytes, "in the order of the offer");
    }
    let held: usize = contents.iter().map(Vec::len).sum();
    assert_eq!(server.counter("genie_session_bytes"), held as u64, "they count as if they were offered singly");
    assert_eq!((server.counter("genie_weight_sets"), server.counter("genie_weight_sets_found_total")), (1, 1));
    // In another order, or in part, it is another set.
    let mut other = entries(&contents);
    other.swap(0, 1);
    assert!(as_set(&mut second, &other).is_empty());
    assert!(as_set(&mut second, &entries(&contents[..3])).is_empty());
    // Nor is it what any of them, or their list, hashes to.
    let (one, _) = entries(&contents)[0];
    assert_eq!(second.call(Request::OfferSet { device: 0, hash: one }), Ok(Told::OfferedSet(Vec::new())));
}

#[test]
fn a_set_that_is_asked_for_twice_under_one_id_is_there_once() {
    let contents = contents(1);
    let server = taught(&contents);
    let mut client = server.client();
    let request = || Request::OfferSet { device: 0, hash: ContentHash::of_set(&entries(&contents)) };
    let id = client.ask(request());
    let first = client.answer(id);
    client.reconnect(id);
    client.ask_as(id, request());
    assert_eq!(client.answer(id), first, "the same handles");
    assert_eq!(server.counter("genie_handles"), contents.len() as u64);
}

#[test]
fn a_set_of_which_one_weight_is_gone_is_offered_singly() {
    let contents: Vec<Vec<u8>> = (0..3).map(|seed| noise(16 << 10, seed)).collect();
    let all = entries(&contents);
    let server = Server::with(1, 64 << 10, |config| {
        (config.default_quota, config.max_quota, config.evicted_bytes) = (1 << 20, 1 << 20, 0);
    });
    let mut client = server.client();
    assert_eq!(singly(&mut client, &all), [Offered::Absent; 3]);
    let handles = put_all(&mut client, &contents);
    client.call(Request::Free(handles[1])).unwrap();
    let other = client.put(&noise(32 << 10, 99));
    assert_eq!(server.counter("genie_evictions_total"), 1);
    let held = server.counter("genie_session_bytes");
    assert!(as_set(&mut client, &all).is_empty(), "one was evicted");
    assert_eq!(
        (server.counter("genie_session_bytes"), server.counter("genie_handles")),
        (held, 3),
        "nothing of it is held"
    );
    let offered = singly(&mut client, &all);
    assert!(matches!(offered[..], [Offered::Present(_), Offered::Absent, Offered::Present(_)]), "{offered:?}");
    // Put again, it makes the set whole.
    client.call(Request::Free(other)).unwrap();
    client.put_weight(&contents[1]);
    let handles = as_set(&mut client, &all);
    assert_eq!(handles.len(), 3);
    assert_eq!(client.get(handles[1]), contents[1]);
}

#[test]
fn a_set_is_granted_whole_or_not_at_all() {
    let contents = contents(1);
    let (server, all) = (taught(&contents), entries(&contents));
    let hash = ContentHash::of_set(&all);
    let held: usize = contents.iter().map(Vec::len).sum();
    let mut poor = server.connect();
    poor.open(held as u64 - 1);
    assert_eq!(poor.fails(Request::OfferSet { device: 0, hash }), ErrorCode::OverQuota);
    assert_eq!((server.counter("genie_session_bytes"), server.counter("genie_handles")), (0, 0));
    assert_eq!(poor.fails(Request::OfferSet { device: 9, hash }), ErrorCode::NoSuchDevice);
    let mut stranger = server.connect();
    assert_eq!(stranger.fails(Request::OfferSet { device: 0, hash }), ErrorCode::NoSession);

    let server = Server::with(1, 1 << 20, |config| config.max_handles = 5);
    let mut client = server.client();
    singly(&mut client, &all);
    put_all(&mut client, &contents);
    assert_eq!(client.fails(Request::OfferSet { device: 0, hash }), ErrorCode::Busy);
    assert_eq!(server.counter("genie_handles"), 4);
    assert_eq!(server.counter("genie_session_bytes"), held as u64);
}

#[test]
fn a_list_that_does_not_fit_the_weights_gives_nobody_anything() {
    let contents = contents(1);
    let server = taught(&contents);
    let mut client = server.client();
    // The right hashes, with a shape of another size; and one hash of which nobody knows the content.
    let mut lying = entries(&contents);
    lying[1].1 = bytes_spec(5);
    let mut guessing = entries(&contents);
    guessing[3].0 = ContentHash([9; 32]);
    for set in [lying, guessing] {
        let offered = singly(&mut client, &set);
        assert_eq!(offered.iter().filter(|one| **one == Offered::Absent).count(), 1);
        assert!(as_set(&mut client, &set).is_empty());
    }
    assert_eq!(as_set(&mut client, &entries(&contents)).len(), 4, "the others' set is as it was");
}

#[test]
fn a_server_that_remembers_no_sets_is_offered_singly() {
    let server = Server::with(1, 1 << 20, |config| config.sets_bytes = 0);
    let contents = contents(1);
    let mut client = server.client();
    put_all(&mut client, &contents);
    assert_eq!(singly(&mut client, &entries(&contents)).len(), 4);
    assert!(as_set(&mut client, &entries(&contents)).is_empty());
    assert_eq!(server.counter("genie_weight_sets"), 0);
}

/// `y = x + ((one + two) + three)` of `f32 [4]`: the weights are nodes 1, 2 and 4.
fn sum() -> Vec<u8> {
    let mut b = GraphBuilder::new("sum");
    let ty = || TensorType::new(DType::F32, [4.into()]);
    let x = b.input("x", InputRole::Argument, ty()).unwrap();
    let one = b.input("one", InputRole::Weight, ty()).unwrap();
    let two = b.input("two", InputRole::Weight, ty()).unwrap();
    let y = b.push(Op::Add, &[one, two]).unwrap();
    let three = b.input("three", InputRole::Weight, ty()).unwrap();
    let y = b.push(Op::Add, &[y, three]).unwrap();
    let y = b.push(Op::Add, &[x, y]).unwrap();
    assert_eq!((one.0, two.0, three.0), (1, 2, 4));
    b.output("y", y);
    b.finish().unwrap().encode()
}

#[test]
fn spans_bind_the_weights_in_the_order_of_their_nodes() {
    let server = Server::inline();
    let mut client = server.client();
    let lm = lm(Phase::Decode);
    let program = client.define(&lm.graph.encode());
    let table = client.put_weight(&table_bytes());
    let create = Request::CacheCreate { program, input: lm.cache, reserve: 0 };
    let Ok(Told::Tensor(cache, ..)) = client.call(create) else { panic!() };
    let bind = |bound: &[(u32, Handle)], weights: Vec<HandleSpan>| Request::Bind {
        program,
        bound: bound.iter().map(|&(input, handle)| BindEntry { input, handle }).collect(),
        weights,
        arguments: Arguments::EMPTY,
    };
    let span = |handle: Handle, count| HandleSpan { index: handle.index, generation: handle.generation, count };
    assert!(matches!(client.call(bind(&[(lm.cache, cache)], vec![span(table, 1)])), Ok(Told::Bound(_))));
    let cases = [
        (vec![span(table, 2)], vec![(lm.cache, cache)], ErrorCode::BadArgument, "more than it has"),
        (vec![span(table, 1); 2], vec![(lm.cache, cache)], ErrorCode::BadArgument, "more than it has, in two spans"),
        (vec![span(table, 1)], vec![(lm.cache, cache), (lm.table, table)], ErrorCode::BadArgument, "twice"),
        (vec![span(cache, 1)], vec![(lm.cache, cache)], ErrorCode::WrongType, "a cache as a weight"),
        (vec![span(table, 1)], vec![], ErrorCode::BadArgument, "no cache"),
        (
            vec![HandleSpan { generation: table.generation + 1, ..span(table, 1) }],
            vec![(lm.cache, cache)],
            ErrorCode::NoSuchHandle,
            "a generation to come",
        ),
        (
            vec![HandleSpan { index: u32::MAX, generation: 1, count: 1 }],
            vec![(lm.cache, cache)],
            ErrorCode::NoSuchHandle,
            "no slot",
        ),
    ];
    for (weights, bound, code, what) in cases {
        assert_eq!(client.fails(bind(&bound, weights)), code, "{what}");
    }
    assert_eq!(client.get(table), table_bytes());
}

#[test]
fn a_span_must_name_every_weight_and_may_skip_no_slot() {
    let server = Server::inline();
    let mut client = server.client();
    let program = client.define(&sum());
    let spec = TensorSpec::new(DType::F32, &[4]).unwrap();
    let handles: Vec<Handle> = (0..4)
        .map(|seed| {
            let bytes = noise(16, seed);
            let put = PutRequest { target: private(None, None), spec: spec.clone(), body: PutBody::Inline(&bytes) };
            tensor(client.call(Request::Put(put)))
        })
        .collect();
    let bind = |weights| Request::Bind { program, bound: Vec::new(), weights, arguments: Arguments::EMPTY };
    let all = HandleSpan::of(handles[..3].iter().copied());
    assert_eq!(all, [HandleSpan { index: handles[0].index, generation: handles[0].generation, count: 3 }]);
    assert!(matches!(client.call(bind(all.clone())), Ok(Told::Bound(_))));
    assert_eq!(client.fails(bind(HandleSpan::of(handles[..2].iter().copied()))), ErrorCode::BadArgument);
    assert_eq!(client.fails(bind(Vec::new())), ErrorCode::BadArgument, "none is bound");
    client.call(Request::Free(handles[1])).unwrap();
    assert_eq!(client.fails(bind(all)), ErrorCode::StaleHandle);
    // In any order, with any holes: then they take more spans.
    let picked = HandleSpan::of([handles[3], handles[0], handles[2]]);
    assert_eq!(picked.len(), 3);
    assert!(matches!(client.call(bind(picked)), Ok(Told::Bound(_))));
    assert!(handles.iter().all(|handle| handle.epoch == EPOCH));
}
