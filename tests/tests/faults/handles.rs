//! Handles that name nothing here, or nothing any more.

use genie_tests::answer::Told;
use genie_tests::graphs::tiny;
use genie_tests::raw::Raw;
use genie_tests::serve::{Live, config};
use genie_transport::wire::{
    Arguments, ContentHash, ErrorCode, Handle, HandleSpan, PutBody, PutRequest, PutTarget, Request, ResidencyCode,
    SessionToken,
};

use crate::scene::{Scene, bytes_spec, get, refused, resident};

/// Every request that takes a tensor's handle.
fn uses(handle: Handle) -> Vec<Request<'static>> {
    let range = PutTarget::Range { handle, offset: 0 };
    vec![
        get(handle),
        Request::Get { handle, offset: 0, length: 1, sliced: Some(4096) },
        Request::Copy { handle, device: 0 },
        Request::Free(handle),
        Request::LookupHandle(handle),
        Request::Put(PutRequest { target: range, spec: bytes_spec(1), body: PutBody::Inline(&[9]) }),
        Request::CacheFork(handle),
        Request::CacheTruncate { cache: handle, length: 0 },
        Request::CacheCreate { program: handle, input: 0, reserve: 0 },
    ]
}

#[test]
fn handle_of_another_session() {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let theirs = scene.witness.tensor().handle;
    for asked in uses(theirs) {
        refused(raw.ask(&asked), ErrorCode::NoSuchHandle, &["this session gave out no handle"]);
    }
    // Nor does it reach what is theirs from a session that has something in the same place.
    let ours: Vec<_> = (0..=theirs.index).map(|i| resident(&mut raw, &[i as u8; 8])).collect();
    for asked in uses(theirs) {
        match raw.ask(&asked) {
            Err(error) => refused(Err(error), ErrorCode::NoSuchHandle, &["this session gave out no handle"]),
            Ok(told) => panic!("{told:?}"),
        }
    }
    for (i, handle) in ours.into_iter().enumerate() {
        assert_eq!(raw.ask(&get(handle)), Ok(Told::Bytes(vec![i as u8; 8])));
    }
    scene.is_unharmed();
}

#[test]
fn stale_generation() {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let old = resident(&mut raw, b"old");
    assert_eq!(raw.ask(&Request::Free(old)), Ok(Told::Done));
    for asked in uses(old) {
        refused(raw.ask(&asked), ErrorCode::StaleHandle, &["was freed", "put it again"]);
    }
    let new = resident(&mut raw, b"new");
    assert_eq!(new.index, old.index, "the slot is used again");
    for asked in uses(old) {
        refused(raw.ask(&asked), ErrorCode::StaleHandle, &["was freed", "put it again"]);
    }
    assert_eq!(raw.ask(&get(new)), Ok(Told::Bytes(b"new".to_vec())));
    let future = Handle { generation: new.generation + 1, ..new };
    for asked in uses(future) {
        refused(raw.ask(&asked), ErrorCode::NoSuchHandle, &["this session gave out no handle"]);
    }
    scene.is_unharmed();
}

#[test]
fn stale_epoch() {
    let mut scene = Scene::new();
    let before = Live::start(config(6));
    let (mut raw, _, opened) = Raw::open(before.address(), 0);
    let old = resident(&mut raw, b"old");
    drop(raw);
    before.kill();
    let (mut raw, _) = Raw::greet(scene.server.address());
    let resume = Request::Resume { token: opened.token, epoch: opened.epoch, unanswered: 1 };
    refused(raw.ask(&resume), ErrorCode::EpochGone, &["restarted", "open a session and offer what you had"]);
    assert!(matches!(raw.ask(&Request::Open { quota: 0, lease_ms: 0 }), Ok(Told::Opened(_))));
    for asked in uses(old) {
        refused(raw.ask(&asked), ErrorCode::EpochGone, &["life 6", "this is 7", "open a new session"]);
    }
    scene.is_unharmed();
}

#[test]
fn a_token_that_is_nobodys() {
    let mut scene = Scene::new();
    let (mut raw, welcome) = Raw::greet(scene.server.address());
    let resume = Request::Resume { token: SessionToken([7; 32]), epoch: welcome.epoch, unanswered: 1 };
    refused(raw.ask(&resume), ErrorCode::SessionGone, &["no session has this token", "open another"]);
    scene.is_unharmed();
}

#[test]
fn an_object_of_another_type() {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let tensor = resident(&mut raw, b"a tensor");
    refused(raw.ask(&Request::CacheFork(tensor)), ErrorCode::WrongType, &["names a tensor", "needs a KV cache"]);
    let asked = Request::CacheCreate { program: tensor, input: 0, reserve: 0 };
    refused(raw.ask(&asked), ErrorCode::WrongType, &["names a tensor", "needs a program"]);
    assert_eq!(raw.ask(&get(tensor)), Ok(Told::Bytes(b"a tensor".to_vec())));
    scene.is_unharmed();
}

#[test]
fn spans_over_what_is_not_the_sessions() {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let theirs = scene.witness.tensor().handle;
    let model = tiny().expect("a model");
    let graph = model.graph.encode();
    let Ok(Told::Program(program, _)) = raw.ask(&Request::Define { device: 0, graph: &graph }) else {
        panic!("no program")
    };
    let bind = |weights| Request::Bind { program, bound: Vec::new(), weights, arguments: Arguments::EMPTY };
    let span = |index, generation, count| vec![HandleSpan { index, generation, count }];
    let nothing = &["this session gave out no handle"][..];
    refused(raw.ask(&bind(span(theirs.index, theirs.generation, 1))), ErrorCode::NoSuchHandle, nothing);
    refused(raw.ask(&bind(span(u32::MAX, u32::MAX, 1))), ErrorCode::NoSuchHandle, nothing);
    let all = &["name all of them, or none"][..];
    refused(raw.ask(&bind(span(0, 1, 4096))), ErrorCode::BadArgument, all);
    let many = (0..4096).map(|index| HandleSpan { index, generation: 1, count: 1 }).collect();
    refused(raw.ask(&bind(many)), ErrorCode::BadArgument, all);
    refused(raw.ask(&bind(span(0, 1, 4097))), ErrorCode::Malformed, &["spans of handles"]);
    refused(raw.ask(&bind(span(7, 1, 0))), ErrorCode::OutOfRange, &["at least one"]);
    refused(raw.ask(&bind(span(u32::MAX, 1, 2))), ErrorCode::Malformed, &["overflow"]);
    scene.is_unharmed();
}

/// Hashes that are guessed, or of something else, open nothing; not the hash of a weight that is there either.
#[test]
fn sets_that_nobody_offered() {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let content = [5; 32];
    let hash = ContentHash::of(&content);
    let target = PutTarget::New { device: 0, residency: ResidencyCode::Weight, hash: Some(hash), name: None };
    let put = PutRequest { target, spec: bytes_spec(32), body: PutBody::Inline(&content) };
    assert!(matches!(raw.ask(&Request::Put(put)), Ok(Told::Tensor { .. })));
    let entries = vec![(hash, bytes_spec(32)); 2];
    for guess in [ContentHash([0; 32]), hash, ContentHash::of_set(&entries), ContentHash::of_set(&[])] {
        assert_eq!(raw.ask(&Request::OfferSet { device: 0, hash: guess }), Ok(Told::OfferedSet(Vec::new())));
    }
    // The same weight twice is a set like another.
    let set = Request::OfferSet { device: 0, hash: ContentHash::of_set(&entries) };
    assert!(matches!(raw.ask(&Request::Offer { device: 0, entries }), Ok(Told::Offered(_))));
    let Ok(Told::OfferedSet(handles)) = raw.ask(&set) else { panic!("it is known now") };
    assert_eq!(handles.len(), 2);
    assert_eq!(raw.ask(&get(handles[1])), Ok(Told::Bytes(content.to_vec())));
    scene.is_unharmed();
}
