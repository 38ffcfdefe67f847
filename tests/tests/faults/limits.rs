//! More than is allowed: requests, bytes, connections.

use genie_tests::answer::Told;
use genie_tests::graphs::tiny;
use genie_tests::raw::{Raw, frame};
use genie_transport::wire::{ErrorCode, Kind, PutBody, Request};

use crate::scene::{Scene, bytes_spec, get, is, put, refused, resident};

#[test]
fn more_requests_than_credits() {
    let mut scene = Scene::with(|config| config.settings.credits = 4);
    let (mut raw, welcome, _) = scene.session();
    assert_eq!(welcome.credits, 4);
    // Four puts whose slices never come.
    let waiting =
        |raw: &mut Raw| raw.start(&put(bytes_spec(8192), PutBody::Sliced { slice_bytes: 4096, announce: false }));
    let four: Vec<u64> = (0..4).map(|_| waiting(&mut raw)).collect();
    for asked in [Request::Echo(b"fifth"), Request::Devices, put(bytes_spec(1), PutBody::Inline(&[1]))] {
        refused(raw.ask(&asked), ErrorCode::NoCredit, &["more than 4 requests in flight", "wait for replies"]);
    }
    let fifth = waiting(&mut raw);
    refused(raw.end_of(fifth), ErrorCode::NoCredit, &["more than 4 requests in flight"]);
    // A hundred at once, over another connection, are answered one by one.
    let (mut other, ..) = scene.session();
    let many: Vec<u64> = (0..100).map(|_| other.start(&Request::Echo(b"many"))).collect();
    for id in many {
        match other.end_of(id) {
            Ok(told) => assert_eq!(told, Told::Bytes(b"many".to_vec())),
            Err(error) => refused(Err(error), ErrorCode::NoCredit, &["wait for replies"]),
        }
    }
    raw.send(&frame(Kind::Cancel, four[2], &[], &[]));
    refused(raw.end_of(four[2]), ErrorCode::Cancelled, &["cancelled"]);
    assert_eq!(raw.ask(&Request::Echo(b"again")), Ok(Told::Bytes(b"again".to_vec())));
    scene.is_unharmed();
}

#[test]
fn a_session_over_its_quota() {
    let mut scene = Scene::new();
    let (mut raw, _, opened) = Raw::open(scene.server.address(), 100_000);
    assert_eq!(opened.quota, 100_000);
    let words = ["100000", "free tensors or caches", "a larger quota"];
    let large = vec![1; 100_001];
    refused(raw.ask(&put(bytes_spec(100_001), PutBody::Inline(&large))), ErrorCode::OverQuota, &words);
    let sliced = PutBody::Sliced { slice_bytes: 4096, announce: false };
    let huge = PutBody::Sliced { slice_bytes: 4 << 20, announce: false };
    refused(raw.ask(&put(bytes_spec(1 << 40), huge)), ErrorCode::OverQuota, &words);
    refused(raw.ask(&put(bytes_spec(1 << 40), sliced)), ErrorCode::Malformed, &["slices of one transfer", "262144"]);
    let held = resident(&mut raw, &large[..60_000]);
    refused(raw.ask(&put(bytes_spec(40_001), sliced)), ErrorCode::OverQuota, &words);
    refused(raw.ask(&Request::Copy { handle: held, device: 0 }), ErrorCode::OverQuota, &words);
    let model = tiny().expect("a model");
    let graph = model.graph.encode();
    let Ok(Told::Program(program, _)) = raw.ask(&Request::Define { device: 0, graph: &graph }) else {
        panic!("no program")
    };
    let cache = Request::CacheCreate { program, input: model.cache, reserve: 1 << 20 };
    refused(raw.ask(&cache), ErrorCode::OverQuota, &words);
    // What it holds is as it was, and what is freed can be used again.
    assert_eq!(raw.ask(&get(held)), Ok(Told::Bytes(vec![1; 60_000])));
    assert_eq!(raw.ask(&Request::Free(held)), Ok(Told::Done));
    let again = resident(&mut raw, &large[..90_000]);
    assert_eq!(raw.ask(&get(again)), Ok(Told::Bytes(vec![1; 90_000])));
    scene.is_unharmed();
}

#[test]
fn a_quota_for_the_asking_has_an_end() {
    let mut scene = Scene::with(|config| config.max_quota = 4 << 20);
    let (mut raw, _, opened) = Raw::open(scene.server.address(), u64::MAX);
    assert_eq!(opened.quota, 4 << 20);
    let sliced = PutBody::Sliced { slice_bytes: 4096, announce: false };
    refused(raw.ask(&put(bytes_spec(5 << 20), sliced)), ErrorCode::OverQuota, &["4194304"]);
    scene.is_unharmed();
}

#[test]
fn more_than_the_device_has() {
    let mut scene = Scene::with(|config| {
        config.default_quota = 1 << 40;
        config.max_quota = 1 << 40;
    });
    let (mut raw, ..) = scene.session();
    let sliced = PutBody::Sliced { slice_bytes: 4 << 20, announce: false };
    refused(raw.ask(&put(bytes_spec(1 << 39), sliced)), ErrorCode::OutOfMemory, &["free"]);
    scene.is_unharmed();
}

#[test]
fn more_connections_than_allowed() {
    let mut scene = Scene::with(|config| config.settings.max_connections = 4);
    let (first, ..) = scene.session();
    let rest: Vec<_> = (0..2).map(|_| Raw::greet(scene.server.address())).collect();
    for _ in 0..3 {
        let mut raw = Raw::dial(scene.server.address());
        raw.send(&genie_tests::raw::control(&genie_transport::wire::Control::Hello(genie_transport::wire::Caps::OURS)));
        is(&raw.goodbye(), ErrorCode::Busy, &["its most of 4 connections", "try again later"]);
    }
    scene.witness.is_unharmed();
    drop((first, rest));
    // Their places are free as soon as the server has noticed.
    loop {
        let mut raw = Raw::dial(scene.server.address());
        raw.send(&genie_tests::raw::control(&genie_transport::wire::Control::Hello(genie_transport::wire::Caps::OURS)));
        if matches!(raw.hear_control(), Some(genie_transport::wire::Control::Welcome(_))) {
            break;
        }
    }
    scene.witness.is_unharmed();
}
