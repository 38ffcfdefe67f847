//! What a token may do.

use bytes::Bytes;
use genie_graph::DType;
use genie_transport::auth::{Rights, Token};
use genie_transport::client::{ClientError, PutOptions};
use genie_transport::wire::{ContentHash, ErrorCode, Offered, TensorSpec};

use super::Scene;

fn token(name: &str, rights: Rights) -> Token {
    Token { rights, ..Token::draw(name).unwrap() }
}

fn refused<T>(result: Result<T, ClientError>, code: ErrorCode, words: &str) {
    match result.err() {
        Some(ClientError::Remote(error)) => {
            assert_eq!(error.code, code, "{error}");
            assert!(error.message.contains(words), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_that_is_not_the_tokens_is_refused_and_not_listed() {
    let none = token("none", Rights { devices: Some(vec!["cuda:7".into()]), ..Rights::ALL });
    let scene = Scene::new(&[&none], "tcp");
    let mut session = scene.connect(Some(&none)).unwrap();
    let spec = TensorSpec::new(DType::U8, &[4]).unwrap();
    let bytes = Bytes::from_static(b"1234");
    let hash = ContentHash::of(&bytes);
    let words = "may not use device 0";
    refused(session.put(&spec, bytes, PutOptions::default()), ErrorCode::Forbidden, words);
    refused(session.offer(0, &[(hash, spec.clone())]), ErrorCode::Forbidden, words);
    let set = [(hash, spec.clone()), (hash, spec)];
    refused(session.offer(0, &set), ErrorCode::Forbidden, words);
    refused(session.define(0, &[1, 2, 3]), ErrorCode::Forbidden, words);
    refused(session.define_known(0, hash), ErrorCode::Forbidden, words);
    assert_eq!(session.devices().unwrap().len(), 0);
    assert_eq!(scene.refused("genie_refused_forbidden_total"), 5);
}

#[test]
fn weights_that_may_only_be_read_are_not_uploaded() {
    let writer = token("writer", Rights::ALL);
    let reader = token("reader", Rights { upload_weights: false, ..Rights::ALL });
    let scene = Scene::new(&[&writer, &reader], "tcp");
    let spec = TensorSpec::new(DType::U8, &[4]).unwrap();
    let bytes = Bytes::from_static(b"1234");
    let hash = ContentHash::of(&bytes);
    let weight = PutOptions { weight: Some(hash), ..PutOptions::default() };
    let mut reads = scene.connect(Some(&reader)).unwrap();
    refused(reads.put(&spec, bytes.clone(), weight), ErrorCode::Forbidden, "not upload any");
    scene.connect(Some(&writer)).unwrap().put(&spec, bytes.clone(), weight).unwrap();
    // What is there may be used, and what is no weight may be put.
    assert_eq!(reads.offer(0, &[(hash, spec.clone())]).unwrap().len(), 1);
    reads.put(&spec, bytes, PutOptions::default()).unwrap();
}

#[test]
fn quota_and_sessions_are_capped() {
    let small = token("small", Rights { quota: Some(1 << 16), sessions: Some(1), ..Rights::ALL });
    let scene = Scene::new(&[&small], "tcp");
    let mut session = scene.connect_with(Some(&small), |o| o.client.quota = 1 << 30).unwrap();
    assert_eq!(session.opened().map(|o| o.quota), Some(1 << 16));
    let spec = TensorSpec::new(DType::U8, &[1 << 17]).unwrap();
    let put = session.put(&spec, Bytes::from(vec![0; 1 << 17]), PutOptions::default());
    refused(put, ErrorCode::OverQuota, "");
    refused(scene.connect(Some(&small)), ErrorCode::Forbidden, "1 sessions");
    session.close().unwrap();
    assert!(scene.connect(Some(&small)).is_ok());
}

/// Names are each tenant's own.
#[test]
fn a_name_is_not_found_by_another_token() {
    let (alice, bob) = (token("alice", Rights::ALL), token("bob", Rights::ALL));
    let scene = Scene::new(&[&alice, &bob], "tcp");
    let spec = TensorSpec::new(DType::U8, &[4]).unwrap();
    let named = PutOptions { name: Some("secret"), ..PutOptions::default() };
    scene.connect(Some(&alice)).unwrap().put(&spec, Bytes::from_static(b"1234"), named).unwrap();
    refused(scene.connect(Some(&bob)).unwrap().lookup("secret"), ErrorCode::NoSuchName, "secret");
    assert!(scene.connect(Some(&alice)).unwrap().lookup("secret").is_ok());
}

/// A set is found by whoever knows its hash, as each of its weights is; and a client that offers without end pushes out only its own.
#[test]
fn sets_of_weights_are_found_by_all_who_know_them() {
    let (alice, bob) = (token("alice", Rights::ALL), token("bob", Rights { upload_weights: false, ..Rights::ALL }));
    let mallory = token("mallory", Rights::ALL);
    let scene = Scene::new(&[&alice, &bob, &mallory], "tcp");
    let contents: Vec<Bytes> = (0..3).map(|i| Bytes::from(vec![i; 100])).collect();
    let spec = TensorSpec::new(DType::U8, &[100]).unwrap();
    let entries: Vec<_> = contents.iter().map(|bytes| (ContentHash::of(bytes), spec.clone())).collect();
    let mut first = scene.connect(Some(&alice)).unwrap();
    assert_eq!(first.offer(0, &entries).unwrap(), [Offered::Absent; 3]);
    for (bytes, (hash, _)) in contents.iter().zip(&entries) {
        let weight = PutOptions { weight: Some(*hash), ..PutOptions::default() };
        first.put(&spec, bytes.clone(), weight).unwrap();
    }
    let mut hostile = scene.connect(Some(&mallory)).unwrap();
    for set in 0..200_u32 {
        let made_up = |i: u32| ContentHash::of(&(set * 1024 + i).to_le_bytes());
        let set: Vec<_> = (0..1024).map(|i| (made_up(i), spec.clone())).collect();
        assert!(hostile.offer(0, &set).unwrap().iter().all(|one| *one == Offered::Absent));
    }
    let mut reads = scene.connect(Some(&bob)).unwrap();
    let offered = reads.offer(0, &entries).unwrap();
    assert!(offered.iter().all(|one| matches!(one, Offered::Present(_))));
    let stats = reads.stats().unwrap();
    let counter = |wanted: &str| stats.iter().find(|(name, _)| name == wanted).unwrap().1;
    assert_eq!(counter("genie_weight_sets_found_total"), 1, "by its hash");
    // An eighth of 16 MiB, in lists of some 100 KiB.
    assert!((10..30).contains(&counter("genie_weight_sets")), "{} sets are remembered", counter("genie_weight_sets"));
}
